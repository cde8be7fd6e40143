"""Signals on axes: each sample at its time, each value at its height."""

import numpy as np
import pytest

from ddpm_jax.evaluation.panels import (
  drawn,
  panel_corners,
  signal_panels,
  ticks,
  time_axis,
  value_range,
)

RNG = np.random.default_rng(0)


def test_samples_lie_at_their_times():
  times, end, unit = time_axis(128, 25.0)
  assert (times[0], times[25], end, unit) == (0, 1, 5.12, 'seconds')
  times, end, unit = time_axis(128, None)
  assert (times.tolist(), end, unit) == (list(range(128)), 128, 'samples')


def test_the_axis_of_values_has_all_of_them_and_a_margin():
  assert value_range(np.array([-10.0, 30.0])) == (-12, 32)
  assert value_range(np.array([5.0])) == (4, 6)
  assert value_range(np.array([np.nan, -1.0, np.inf, 1.0])) == pytest.approx((-1.1, 1.1))
  assert value_range(np.full(3, np.nan)) == (-1, 1)


@pytest.mark.parametrize(
  ('low', 'high', 'expected'),
  [
    (0, 5.12, [0, 1, 2, 3, 4, 5]),
    (-3, 41, [0, 10, 20, 30, 40]),
    (0, 0.016, [0, 0.005, 0.01, 0.015]),
  ],
)
def test_ticks_are_round_numbers_within_the_axis(low, high, expected):
  np.testing.assert_allclose(ticks(low, high, 6), expected, atol=1e-12)


def of_ticks(axis, corner):
  """(position within the panel at a corner, number) of each tick that lies in it."""
  places = [place - corner for place in axis.get_ticklocs()]
  texts = [label.get_text() for label in axis.get_ticklabels()]
  return [(x, float(text)) for x, text in zip(places, texts, strict=True) if -1e-9 <= x <= 1 + 1e-9]


def test_curves_and_ticks_agree_in_every_panel():
  signals = RNG.normal(size=(5, 40, 2)) * [3, 30] + [5, 0]
  figure = signal_panels(signals, columns=3, rate=20.0, channel_names=['a', '_$b^$'])
  (axes,) = figure.axes
  corners = panel_corners(5, 3)
  assert len(set(map(tuple, corners.round(6).tolist()))) == 5
  assert axes.get_xlabel() == 'seconds'
  for channel in range(2):
    for i, curve in enumerate(axes.collections[channel].get_segments()):
      x, y = (curve - corners[i]).T
      for at, found, expected in (
        (of_ticks(axes.xaxis, corners[i, 0]), x, np.arange(40) / 20),
        (of_ticks(axes.yaxis, corners[i, 1]), y, signals[i, :, channel]),
      ):
        # Two ticks are a scale: it reads the signal off the curve.
        (first, one), *_, (last, other) = at
        read = one + (found - first) * (other - one) / (last - first)
        np.testing.assert_allclose(read, expected, atol=1e-6)
        assert found.min() >= 0
        assert found.max() <= 1
  (legend,) = figure.legends
  assert [text.get_text() for text in legend.get_texts()] == ['a', '_$b^$']
  assert drawn(figure).shape[-1] == 3


def test_values_beyond_the_axis_are_drawn_at_its_end():
  figure = signal_panels(np.array([[[-5.0], [0.5], [9.0]]]), columns=1, values=(0.0, 1.0))
  (curve,) = figure.axes[0].collections[0].get_segments()
  assert curve[:, 1].tolist() == [0, 0.5, 1]


def test_panels_without_a_signal_have_no_curve_and_no_part_in_the_range():
  signals = np.stack([np.zeros((4, 1)), np.full((4, 1), 1e9)])
  figure = signal_panels(signals, columns=2, is_empty=np.array([False, True]))
  (axes,) = figure.axes
  curves, frames, grid = (lines.get_segments() for lines in axes.collections)
  assert (len(curves), len(frames)) == (1, 1)
  assert all(0 <= x <= 1 for line in grid for x, _ in line)  # the first panel is there
  assert all(abs(number) <= 1 for _, number in of_ticks(axes.yaxis, 0))


def test_texts_stand_with_their_rows_and_columns_as_they_are():
  signals = RNG.normal(size=(4, 8, 1))
  names = ['$x^$', 'b_']
  figure = signal_panels(
    signals, columns=2, captions=names, headings=['left', 'right'], channel_names=['$V^$']
  )
  (axes,) = figure.axes
  found = {text.get_text(): text.get_position() for text in axes.texts}
  assert set(found) == {*names, 'left', 'right'}
  assert found['$x^$'][1] > found['b_'][1]
  assert found['left'][0] < found['right'][0]
  assert found['left'][1] > found['$x^$'][1]
  assert axes.get_ylabel() == '$V^$'
  drawn(figure)  # a formula that is none would raise
