"""The analytic variance: the exact one on data whose posterior is known, in few steps and many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import (
  Parameterization,
  bpd_loop,
  make_betas,
  make_denoiser,
  make_schedule,
  mean_square_eps,
  p_mean_variance,
  timestep_subsequence,
  with_analytic_variance,
  x_0_variances,
)
from ddpm_jax.errors import UserError
from ddpm_jax.sampling.ancestral import ancestral, respaced
from tests.analytic import (
  MIXTURE,
  batch_noise_fn,
  gaussian_posterior_variances,
  mixture_network,
  noise_level,
)

T, MEAN, SCALE = 100, 0.1, 0.25
SCHEDULE = make_schedule(make_betas('linear', T, beta_end=0.2))


def denoiser_of(weights, means, stds):
  network = mixture_network(SCHEDULE, weights, means, stds)
  return make_denoiser(network, Parameterization('eps'), SCHEDULE)


def estimate(denoiser, x_0):
  squares = jax.jit(
    lambda x: mean_square_eps(SCHEDULE, denoiser, x, batch_noise_fn(x.shape, seed=3))
  )(x_0)
  assert squares.shape == (len(x_0), T)
  return x_0_variances(SCHEDULE, np.asarray(squares, np.float64).mean(axis=0)), np.asarray(squares)


def standard_errors(squares):
  of_square = squares.std(axis=0, ddof=1) / np.sqrt(len(squares))
  return np.square(SCHEDULE.sqrt_recipm1_alphas_cumprod) * of_square


def test_of_gaussian_data_it_is_the_exact_variance():
  x_0 = MEAN + SCALE * jax.random.normal(jax.random.key(0), (1000, 64))
  variances, squares = estimate(denoiser_of([1.0], [MEAN], [SCALE]), x_0)
  of_x_0, _ = gaussian_posterior_variances(SCHEDULE, SCALE)
  rounding = 1e-6 * np.square(SCHEDULE.sqrt_recipm1_alphas_cumprod)
  assert (np.abs(variances - of_x_0) < 5 * standard_errors(squares) + rounding).all()
  assert (standard_errors(squares) < 0.1 * of_x_0)[:20].all()


def test_of_a_mixture_it_is_the_mean_variance_of_x_0_given_x_t():
  rng, count = np.random.default_rng(0), 400_000
  weights, means, stds = (np.array(MIXTURE[name]) for name in ('weights', 'means', 'stds'))
  component = (rng.random(count) < weights[1]).astype(int)
  x_0 = jnp.float32(means[component] + stds[component] * rng.standard_normal(count))[:, None]
  denoiser = denoiser_of(**MIXTURE)
  variances, squares = estimate(denoiser, x_0)
  errors = standard_errors(squares)
  for t in (3, 10, 25):
    steps = jnp.full(count, t)
    alpha, sigma = noise_level(SCHEDULE, x_0, steps)
    x_t = alpha * x_0 + sigma * jax.random.normal(jax.random.key(t), x_0.shape)
    # E[Var(x_0 | x_t)] is the mean square of what is left of x_0.
    rest = np.square(np.asarray(x_0 - denoiser(x_t, steps).x_0, np.float64))
    error = 5 * np.hypot(errors[t], rest.std() / np.sqrt(count))
    assert variances[t] == pytest.approx(rest.mean(), abs=error)
    assert error < 0.1 * rest.mean()


def exact_variance_denoiser():
  of_x_0, _ = gaussian_posterior_variances(SCHEDULE, SCALE)
  return with_analytic_variance(denoiser_of([1.0], [MEAN], [SCALE]), of_x_0)


def test_a_step_has_the_exact_variance_of_the_reverse_process():
  x_t, t = jnp.ones((3, 2)), jnp.array([0, 50, 99])
  prediction = exact_variance_denoiser()(x_t, t)
  _, variance, log_variance = p_mean_variance(SCHEDULE, prediction, x_t, t, variance=None)
  _, of_previous = gaussian_posterior_variances(SCHEDULE, SCALE)
  assert variance.shape == log_variance.shape == (3, 2)
  np.testing.assert_allclose(variance[:, 0], of_previous[[0, 50, 99]], rtol=1e-5)
  np.testing.assert_allclose(log_variance[:, 0], np.log(of_previous)[[0, 50, 99]], rtol=1e-5)


@pytest.mark.parametrize('num_steps', [3, 10, 100])
def test_the_bound_of_few_steps_is_the_exact_likelihood_of_gaussian_data(num_steps):
  # Of a density: with the exact reverse process, the bound is tight whatever the steps.
  timesteps = timestep_subsequence(SCHEDULE, num_steps, 'linspace')
  x_0 = MEAN + SCALE * jax.random.normal(jax.random.key(0), (2000, 32))

  def bound(denoiser, variance):
    kept, of_kept = respaced(SCHEDULE, denoiser, timesteps)
    noise_fn = batch_noise_fn(x_0.shape)
    run = jax.jit(lambda x: bpd_loop(kept, of_kept, x, noise_fn, variance=variance, levels=None))
    return np.asarray(run(x_0)['total_bpd'], np.float64)

  z = (np.asarray(x_0) - MEAN) / SCALE
  exact = (0.5 * z**2 + np.log(SCALE * np.sqrt(2 * np.pi))).mean(axis=1) / np.log(2)
  excess = bound(exact_variance_denoiser(), None) - exact
  error = 4 * excess.std(ddof=1) / np.sqrt(len(excess))
  assert excess.mean() == pytest.approx(0, abs=error + 2e-3)
  fixed = bound(denoiser_of([1.0], [MEAN], [SCALE]), 'fixedlarge') - exact
  assert fixed.mean() > excess.mean() + 0.05


@pytest.mark.parametrize('num_steps', [2, 10])
def test_few_ancestral_steps_keep_the_variance_of_gaussian_data(num_steps):
  count = 40_000
  timesteps = timestep_subsequence(SCHEDULE, num_steps, 'linspace')
  noise_fn = batch_noise_fn((count, 1))
  arguments = SCHEDULE, exact_variance_denoiser(), noise_fn(T), noise_fn, timesteps
  x_0 = np.asarray(ancestral(*arguments, variance=None))
  abar = SCHEDULE.alphas_cumprod[timesteps[0]]
  expected = abar * SCALE**4 / (abar * SCALE**2 + 1 - abar)  # the last step adds no noise
  assert x_0.var() == pytest.approx(expected, rel=5 * np.sqrt(2 / count) + 0.01)


def test_estimates_are_kept_within_what_data_can_have():
  mean_squares = np.full(T, 1.1)
  mean_squares[-1] = -100.0
  variances = x_0_variances(SCHEDULE, mean_squares)
  assert (variances[:-1] == 1e-12).all()
  assert variances[-1] == 1
  jsd = make_schedule(make_betas('jsd', 20))
  assert np.isfinite(x_0_variances(jsd, np.ones(20))).all()
  with pytest.raises(UserError, match=r'has the shape \(100,\), and the schedule 20 timesteps'):
    x_0_variances(jsd, mean_squares)
