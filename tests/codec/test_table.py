"""The table: what is fitted is the model's error, and the plan is as cheap as the bound allows."""

import functools

import numpy as np
import pytest

from ddpm_jax.codec.table import (
  Table,
  check_arrays,
  errors_of,
  fit_table,
  grid,
  shuffled,
  step_coefficients,
)
from ddpm_jax.diffusion.schedules import respace
from ddpm_jax.errors import UserError
from tests.codec import gaussian
from tests.codec.gaussian import SCHEDULE, SHAPE, STD, posterior_variance, predict

SIZE = int(np.prod(SHAPE))


@functools.cache
def table(levels=256):
  return fit_table(SCHEDULE, predict, gaussian.examples(400, levels=levels), levels=levels)


def test_a_step_is_that_of_the_respaced_chain():
  kept = respace(SCHEDULE, np.array([40, 300, 800]))
  for row, (t, s) in enumerate([(300, 40), (800, 300)], start=1):
    take, keep, variance, gain = step_coefficients(SCHEDULE, t, s)
    np.testing.assert_allclose(take, kept.posterior_mean_coef1[row])
    np.testing.assert_allclose(keep, kept.posterior_mean_coef2[row])
    np.testing.assert_allclose(variance, kept.posterior_variance[row])
    np.testing.assert_allclose(gain, take**2 / variance)
  take, keep, variance, gain = step_coefficients(SCHEDULE, None, 300)
  np.testing.assert_allclose([take**2, variance], [kept.alphas_cumprod[1], 1 - take**2])
  assert keep == 0
  np.testing.assert_allclose(gain, take**2 / variance)


def test_errors_are_those_of_the_posterior():
  arrays = table().arrays
  found = errors_of(arrays['errors'])
  expected = [STD**2, *posterior_variance(arrays['timesteps'])]
  np.testing.assert_allclose(found.mean(1), expected, rtol=0.04, atol=2e-5)


def test_the_expected_kls_sum_up_to_the_information():
  """Of long steps it is a little more, as a step does not see what it has sent itself."""
  steps = table().steps(SCHEDULE)
  bits = sum(step.pieces.bits for step in steps)
  assert len(steps) > 3
  assert 1 < bits / gaussian.information(steps[-1].timestep) < 1.35


def test_pieces_cover_the_elements_and_have_about_a_bit():
  for step in table().steps(SCHEDULE):
    ends, kls = step.pieces
    assert (np.diff([0, *ends]) > 0).all()
    assert ends[-1] == SIZE
    assert (kls[:-1] >= 8).all()
    assert (kls <= 2 * 16).all()
    np.testing.assert_allclose(step.pieces.bits, -np.log2(step.ratio).sum(), atol=0.1)
    assert ((step.ratio > 0) & (step.ratio <= 1)).all()
  assert step.ends_section


def test_the_grid_goes_from_noise_to_data():
  timesteps = grid(SCHEDULE)
  assert timesteps[0] == 999
  assert timesteps[-1] == 0
  assert (np.diff(timesteps) < 0).all()


def test_the_order_is_fixed():
  assert shuffled(10).tolist() == [4, 2, 9, 3, 6, 0, 8, 5, 7, 1]
  assert sorted(shuffled(1000).tolist()) == list(range(1000))


def test_the_id_is_that_of_the_content(tmp_path):
  np.savez(tmp_path / 'x.npz', **table().arrays)
  with np.load(tmp_path / 'x.npz') as arrays:
    assert Table(dict(arrays)).sha256 == table().sha256
  for name, array in table().arrays.items():
    changed = array.copy()
    changed.flat[0] += 1
    assert Table(table().arrays | {name: changed}).sha256 != table().sha256


@pytest.mark.parametrize('levels', [256, 4096, None])
def test_a_table_of_another_model_is_known(levels):
  arrays = table(levels).arrays if levels else {
    name: x for name, x in table().arrays.items()
    if name not in ('classes', 'prior', 'shapes', 'weights', 'filter', 'edges')
  } | {'levels': np.zeros(1, np.int32)}  # fmt: skip
  assert check_arrays(arrays, SHAPE, levels)
  assert not check_arrays(arrays, (*SHAPE[:2], 5), levels)
  assert not check_arrays(arrays, SHAPE, 17)
  assert not check_arrays({**arrays, 'more': arrays['means']}, SHAPE, levels)


def test_one_example_is_too_few():
  with pytest.raises(UserError, match='two at least'):
    fit_table(SCHEDULE, predict, gaussian.examples(1), levels=256)
