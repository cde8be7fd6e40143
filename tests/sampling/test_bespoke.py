"""Solvers whose coefficients are fitted, to data whose denoiser is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import make_betas, make_schedule, timestep_subsequence
from ddpm_jax.sampling.bespoke import _slopes, fine_solution, fit_bespoke
from ddpm_jax.sampling.optimised import coefficients_of, least_error, solved_products
from ddpm_jax.sampling.solvers import bespoke_table, make_levels
from tests.analytic import MIXTURE
from tests.sampling.test_solvers import GAUSSIAN, mixture_denoiser, run, transported

SCHEDULE = make_schedule(make_betas('linear', 1000))


@pytest.fixture
def predict_of(float64):
  """(data) -> (x, t) -> the exact mean of x_0, in float64."""

  def make(data):
    predict = jax.jit(lambda x, t: mixture_denoiser(SCHEDULE, **data)(x, jnp.full(len(x), t)).x_0)
    return lambda x, t: np.asarray(predict(x, t))

  return make


def exact(x_T, data, predict):
  """x_0 as predicted at t = 0, where the flow takes x_T."""
  tables = SCHEDULE.sqrt_alphas_cumprod, SCHEDULE.sqrt_one_minus_alphas_cumprod
  last, first = ((tables[0][t], tables[1][t]) for t in (-1, 0))
  return predict(transported(x_T, last, first, **data), 0)


def fine_levels(count=128):
  timesteps = timestep_subsequence(SCHEDULE, count, 'logsnr')
  return make_levels(SCHEDULE, np.unique([*timesteps, SCHEDULE.num_timesteps - 1]))


def sampled(bespoke, timesteps, data, x_T):
  denoiser = mixture_denoiser(SCHEDULE, **data)
  choices = {'timesteps': timesteps, 'coefficients': bespoke.coefficients}
  return np.asarray(run('bespoke', SCHEDULE, denoiser, x_T, **choices))


def root_mean_square(x):
  return np.sqrt(np.square(x).mean())


def test_ten_evaluations_of_an_exact_score_are_within_a_thousandth(predict_of):
  predict = predict_of(MIXTURE)
  x_T = np.random.default_rng(0).standard_normal((512, 1))
  x_0 = fine_solution(fine_levels(), predict, x_T)
  np.testing.assert_allclose(x_0[:8], exact(x_T[:8], MIXTURE, predict), atol=1e-4)

  products = solved_products(fine_levels(), predict, x_T)
  timesteps = np.sort(products.levels.timesteps[least_error(products, 10)])
  found = fit_bespoke(make_levels(SCHEDULE, timesteps), predict, x_T, x_0, num_held_out=256)
  others = np.linspace(-2.5, 2.5, 41)[:, None]
  right = exact(others, MIXTURE, predict)

  def error(**choices):
    denoiser = mixture_denoiser(SCHEDULE, **MIXTURE)
    return root_mean_square(run('dpmpp_2m', SCHEDULE, denoiser, others, **choices) - right)

  assert error(timesteps=timesteps) == pytest.approx(found.before, rel=0.3)
  assert found.before > 0.01
  assert found.error < 1e-3
  assert root_mean_square(sampled(found, timesteps, MIXTURE, others) - right) < 1e-3


def test_of_gaussian_data_two_steps_are_exact_since_all_is_linear(predict_of):
  predict = predict_of(GAUSSIAN)
  x_T = np.random.default_rng(0).standard_normal((32, 1))
  timesteps = timestep_subsequence(SCHEDULE, 2, 'trailing')
  levels = make_levels(SCHEDULE, timesteps)
  found = fit_bespoke(levels, predict, x_T, exact(x_T, GAUSSIAN, predict), num_held_out=16)
  assert found.before > 0.05
  assert found.error < 1e-6
  others = np.array([[-3.0], [0.2], [2.0]])
  np.testing.assert_allclose(
    sampled(found, timesteps, GAUSSIAN, others), exact(others, GAUSSIAN, predict), atol=1e-5
  )


def test_slopes_are_the_derivatives_by_the_coefficients(predict_of):
  predict = predict_of(MIXTURE)
  timesteps = timestep_subsequence(SCHEDULE, 4, 'logsnr')
  levels = make_levels(SCHEDULE, timesteps)
  coefficients = coefficients_of(bespoke_table(levels))
  coefficients[np.tri(4, 5, k=1, dtype=bool)] += 0.05 * np.random.default_rng(1).standard_normal(14)
  x_T = np.array([[-1.3], [-0.1], [0.4]])
  denoiser = mixture_denoiser(SCHEDULE, **MIXTURE)

  def ends(given):
    x, seen = jnp.asarray(x_T), []
    for row, t in zip(given, levels.timesteps, strict=True):
      seen = [denoiser(x, jnp.full(len(x), t)).x_0, *seen]
      x = row[0] * x + sum(c * d for c, d in zip(row[1:], seen, strict=False))
    return x

  found, slopes = _slopes(coefficients, levels.timesteps, predict, x_T)
  np.testing.assert_allclose(found, ends(jnp.asarray(coefficients)), rtol=1e-12)
  derivatives = np.moveaxis(np.asarray(jax.jacfwd(ends)(jnp.asarray(coefficients))), (2, 3), (0, 1))
  expected = derivatives[np.tri(4, 5, k=1, dtype=bool)]
  np.testing.assert_allclose(slopes, expected, rtol=1e-4, atol=1e-5)


def test_without_coefficients_it_is_where_a_fit_starts():
  denoiser, x_T = mixture_denoiser(SCHEDULE, **MIXTURE), jnp.linspace(-1, 1, 5)[:, None]
  timesteps = timestep_subsequence(SCHEDULE, 5, 'trailing')
  of = [run(name, SCHEDULE, denoiser, x_T, timesteps=timesteps) for name in ('bespoke', 'dpmpp_2m')]
  np.testing.assert_allclose(*of, atol=1e-6)


@pytest.mark.parametrize('seed', [0, 2])
def test_what_suits_the_fitted_examples_alone_is_not_kept(predict_of, seed):
  # Three examples decide nothing of 44 coefficients.
  predict = predict_of(MIXTURE)
  levels = make_levels(SCHEDULE, timestep_subsequence(SCHEDULE, 8, 'logsnr'))
  x_T = np.random.default_rng(seed).standard_normal((103, 1))
  x_0 = fine_solution(fine_levels(), predict, x_T)
  found = fit_bespoke(levels, predict, x_T, x_0, num_held_out=100)
  assert found.error <= found.before
  own = sampled(found, levels.timesteps[::-1], MIXTURE, x_T[3:])
  assert root_mean_square(own - x_0[3:]) == pytest.approx(found.error, rel=1e-6)
