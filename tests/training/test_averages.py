"""Averages of parameters: their profiles, and those of other widths made of kept ones."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.training.averages import (
  added_up,
  averaged,
  check_synthesis,
  decay_rate,
  gamma_of,
  name_of,
  power_rate,
  rates_of,
  start_of,
  synthesis,
)

WIDTHS = (0.05, 0.1)


def profile(rate, count):
  """The weights of the parameters after steps 1, ..., count in an average."""
  weights = np.zeros(count)
  for step in range(1, count + 1):
    now = float(rate(jnp.float32(step)))
    weights *= 1 - now
    weights[step - 1] += now
  return weights


@pytest.mark.parametrize('width', [0.03, 0.05, 0.1, 0.2])
def test_a_power_average_has_its_profile_and_its_width(width):
  count, gamma = 2000, gamma_of(width)
  weights, steps = profile(power_rate(width), count), np.arange(1, count + 1) / count
  assert weights.sum() == pytest.approx(1, abs=1e-4)
  inner = slice(count // 2, None)
  expected = (gamma + 1) * steps**gamma / count
  np.testing.assert_allclose(weights[inner], expected[inner], rtol=0.02)
  mean = weights @ steps
  assert np.sqrt(weights @ (steps - mean) ** 2) == pytest.approx(width, rel=0.01)


def test_the_widths_of_the_paper_have_its_exponents():
  assert gamma_of(0.05) == pytest.approx(16.97, abs=0.01)  # Sec. 3.1, EDM2
  assert gamma_of(0.1) == pytest.approx(6.94, abs=0.01)


@pytest.mark.parametrize('width', [0.0, -0.1, 0.3])
def test_a_width_that_no_average_has_is_refused(width):
  with pytest.raises(UserError, match=rf'width of an average is {width}; it must lie in'):
    gamma_of(width)


@pytest.mark.parametrize('warmup', [None, 0.05])
def test_the_warm_up_bounds_the_half_life_by_the_steps_done(warmup):
  decay = 0.999
  rate = decay_rate(decay, warmup)
  for count in (1, 10, 100, 1000, 100_000):
    half_life = np.inf if warmup is None else warmup * count
    expected = max(1 - decay, 1 - 0.5 ** (1 / half_life))
    assert float(rate(jnp.float32(count))) == pytest.approx(expected, rel=1e-4)


def test_without_a_warm_up_the_rate_is_that_of_the_decay_to_the_bit():
  assert decay_rate(0.9999)(jnp.int32(7)) == 1 - 0.9999


@pytest.mark.parametrize('width', [0.05, 0.07, 0.08, 0.12])
def test_an_average_made_afterwards_is_the_one_kept_on_the_way(width):
  count, every = 4000, 250
  rng = np.random.default_rng(0)
  params = np.cumsum(rng.standard_normal((count, 20)), axis=0) / np.sqrt(count)
  rates = {one: power_rate(one) for one in (*WIDTHS, width)}
  now, kept = {one: np.zeros(20) for one in rates}, {}
  for step in range(1, count + 1):
    for one, rate in rates.items():
      now[one] = averaged(now[one], params[step - 1], float(rate(jnp.float32(step))))
    if step % every == 0:
      kept |= {(step, one): now[one] for one in WIDTHS}
  places = list(kept)
  weights, error = check_synthesis(places, width, count)
  made = added_up(weights, lambda i: {'w': kept[places[i]]})['w']
  off = np.abs(made - now[width]).max() / np.abs(now[width]).max()
  assert off < 1e-3
  assert error < 0.02
  assert made.dtype == np.float32


def test_the_error_is_that_of_the_profile():
  places, width, count = [(1000, 0.05), (1000, 0.1), (500, 0.1)], 0.2, 1000
  weights, error = synthesis(places, width, count)
  s = (np.arange(200_000) + 0.5) / 200

  def density(step, one):
    gamma = gamma_of(one)
    return np.where(s < step, (gamma + 1) * (s / step) ** gamma / step, 0)

  target = density(count, width)
  made = sum(w * density(*place) for w, place in zip(weights, places, strict=True))
  expected = np.sqrt(((made - target) ** 2).sum() / (target**2).sum())
  assert error == pytest.approx(expected, rel=1e-3)
  with pytest.raises(UserError, match=r'ema.width is 0.2, which the kept averages \(widths 0.05, '):
    check_synthesis(places, width, count)


def test_averages_begin_at_the_parameters_in_buffers_of_their_own():
  rates = rates_of((0.9,), WIDTHS)
  assert (
    list(rates)
    == ['decay 0.9', 'width 0.05', 'width 0.1']
    == [
      name_of('decay', 0.9),
      *(name_of('width', one) for one in WIDTHS),
    ]
  )
  params = {'w': jnp.ones(3)}
  averages = start_of(rates, params)
  pointers = {tree['w'].unsafe_buffer_pointer() for tree in (params, *averages.values())}
  assert len(pointers) == 4
  assert start_of({}, params) is None
