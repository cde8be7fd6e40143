"""Examples of any shape as pictures: what stands where, and what an animation has."""

import numpy as np
import PIL.Image
import pytest

from ddpm_jax.data import Encoding
from ddpm_jax.evaluation import display
from ddpm_jax.evaluation.display import Display, projections, slices, strip_frames

RNG = np.random.default_rng(0)
VOLUMES = Display(num_axes=3)
FILMS = Display(num_axes=3, rate=20.0, are_films=True)


def test_projections_and_slices_are_those_of_each_axis():
  volumes = RNG.normal(size=(2, 4, 6, 8, 1))
  for axis, projected, sliced in zip((1, 2, 3), projections(volumes), slices(volumes), strict=True):
    np.testing.assert_array_equal(projected, np.mean(volumes, axis=axis))
    np.testing.assert_array_equal(sliced, np.take(volumes, volumes.shape[axis] // 2, axis))


def test_a_volume_is_its_slices_above_its_projections():
  volumes = RNG.integers(0, 256, (2, 64, 64, 64, 1), np.uint8)
  pictures = VOLUMES.pictures(volumes)
  assert pictures.shape == (2, 64 + 1 + 64, 64 + 1 + 64 + 1 + 64, 1)
  assert (pictures[:, 64] == display.LINE_LEVEL).all()
  for column, axis in enumerate((1, 2, 3)):
    of_column = pictures[:, :, 65 * column : 65 * column + 64]
    np.testing.assert_array_equal(of_column[:, :64], volumes.take(32, axis))
    means = volumes.mean(axis)
    assert np.abs(of_column[:, 65:] - means).max() <= 0.51


def test_parts_of_a_volume_with_unequal_axes_keep_their_form():
  volumes = np.full((1, 32, 64, 16, 1), 255, np.uint8)
  picture = VOLUMES.pictures(volumes)[0, ..., 0]
  sizes = (64, 16), (32, 16), (32, 64)  # what is left of 32 x 64 x 16 without each axis
  assert picture.shape == (2 * 64 + 1, sum(width for _, width in sizes) + 2)
  assert (picture == 255).sum() == 2 * sum(height * width for height, width in sizes)


def test_channels_that_are_no_colours_lie_beside_one_another():
  pictures = RNG.integers(0, 256, (3, 4, 5, 2), np.uint8)
  shown = Display().pictures(pictures)
  assert shown.shape == (3, 4, 10, 1)
  np.testing.assert_array_equal(shown[:, :, 5:, 0], pictures[..., 1])


@pytest.mark.parametrize(
  ('length', 'expected'), [(3, [0, 1, 2]), (15, [0, 2, 4, 6, 8, 10, 12, 14])]
)
def test_a_strip_goes_from_the_first_frame_to_the_last(length, expected):
  assert strip_frames(length) == expected


def test_a_film_is_a_strip_and_an_animation_of_its_rate(tmp_path):
  films = np.arange(4 * 15, dtype=np.uint8).reshape(4, 15, 1, 1, 1) * np.ones(
    (1, 1, 70, 70, 1), np.uint8
  )
  picture = FILMS.pictures(films)[1, ..., 0]
  assert picture.shape == (70, 8 * 71 - 1)
  assert picture[5, 35::71].tolist() == [15 + t for t in range(0, 15, 2)]
  FILMS.save(tmp_path / 'a.png', films, columns=2, is_empty=np.arange(4) == 3)
  with PIL.Image.open(tmp_path / 'a.gif') as gif:
    assert gif.n_frames == 15
    for t in range(15):
      gif.seek(t)
      assert gif.info['duration'] == 50
      frame = np.asarray(gif.convert('RGB'))[..., 0]
      assert frame[37::72, 37::72].tolist() == [[t, 15 + t], [30 + t, 0]]
  assert np.asarray(PIL.Image.open(tmp_path / 'a.png')).max() > 200  # which frames these are
  FILMS.save_one(tmp_path / 'b.png', films[1])
  with PIL.Image.open(tmp_path / 'b.gif') as gif:
    assert (gif.n_frames, gif.size) == (15, (70, 70))
  np.testing.assert_array_equal(np.asarray(PIL.Image.open(tmp_path / 'b.png')), picture)


def test_a_picture_is_written_pixel_by_pixel(tmp_path):
  picture = RNG.integers(0, 256, (5, 7, 3), np.uint8)
  Display().save_one(tmp_path / 'a.png', picture)
  np.testing.assert_array_equal(np.asarray(PIL.Image.open(tmp_path / 'a.png')), picture)
  assert [path.name for path in tmp_path.iterdir()] == ['a.png']


def panels_of(monkeypatch):
  """The arguments of each call of signal_panels from now on."""
  calls, panels = [], display.signal_panels

  def noted(signals, **choices):
    calls.append((signals, choices))
    return panels(signals, **choices)

  monkeypatch.setattr(display, 'signal_panels', noted)
  return calls


def test_signals_are_shown_in_their_own_unit_and_time(monkeypatch, tmp_path):
  calls = panels_of(monkeypatch)
  encoding = Encoding('int16', 4096, -2048)
  signals = RNG.integers(-2048, 2048, (5, 30, 2)).astype(np.int16)
  shown = Display(encoding, 1, 25.0, ('left', 'right'))
  picture = shown.grid(signals)
  assert (picture.dtype, picture.shape[-1]) == (np.uint8, 3)
  ((given, choices),) = calls
  np.testing.assert_array_equal(given, signals)
  assert (choices['rate'], choices['channel_names']) == (25.0, ('left', 'right'))
  assert choices['columns'] == 3
  shown.save_one(tmp_path / 'a.png', signals[2])
  np.testing.assert_array_equal(calls[1][0], signals[2:3])
  assert PIL.Image.open(tmp_path / 'a.png').mode == 'RGB'


def test_an_animation_of_signals_has_the_axes_of_its_end(monkeypatch):
  calls = panels_of(monkeypatch)
  steps = [scale * RNG.normal(size=(2, 8, 1)) for scale in (100, 10, 1)]
  frames = Display(num_axes=1).animation(steps)
  assert len({frame.shape for frame in frames}) == 1
  ranges = {choices['values'] for _, choices in calls}
  assert ranges == {Display(num_axes=1).value_range(steps[-1])}
  assert Display().value_range(steps[-1]) is None
