"""The process q: its moments and Bayes' rule, then the original program's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import (
  make_schedule,
  q_mean_variance,
  q_posterior_mean_variance,
  q_sample,
)
from ddpm_jax.diffusion.forward import scale_levels


def column(values, like):
  return values.reshape(-1, *[1] * (like.ndim - 1))


def test_images_are_scaled_to_the_interval_from_minus_one_to_one():
  scaled = scale_levels(np.array([0, 51, 255], np.uint8))
  assert scaled.dtype == jnp.float32
  np.testing.assert_allclose(scaled, [-1, -0.6, 1], rtol=1e-6)


@pytest.mark.parametrize('t', [0, 9, 999])
def test_q_sample_has_the_moments_of_eq_4(linear, t):
  count = 100_000
  x_0 = jnp.broadcast_to(jnp.array([-1.0, 0.5]), (count, 2))
  noise = jax.random.normal(jax.random.key(t), x_0.shape)
  t = jnp.full(count, t)
  x_t = np.asarray(q_sample(linear, x_0, t, noise))
  mean, variance, log_variance = q_mean_variance(linear, x_0, t)
  std_error = np.sqrt(variance[0] / count)
  np.testing.assert_allclose(x_t.mean(axis=0), mean[0], atol=5 * std_error[0])
  np.testing.assert_allclose(x_t.var(axis=0) / variance[0], 1, atol=5 * np.sqrt(2 / count))
  np.testing.assert_allclose(np.exp(log_variance), variance, rtol=1e-5)


def test_posterior_is_bayes_rule(linear, example):
  x_0, _, t, x_t = example
  t, x_0, x_t = t[1:], x_0[1:], x_t[1:]  # at t = 0 it is a point
  mean, variance, log_variance = q_posterior_mean_variance(linear, x_0, x_t, t)
  beta = column(linear.betas[t], x_t)
  abar_prev = column(linear.alphas_cumprod[t - 1], x_t)
  precision = (1 - beta) / beta + 1 / (1 - abar_prev)
  from_x_t = np.sqrt(1 - beta) * x_t / beta
  from_x_0 = np.sqrt(abar_prev) * x_0 / (1 - abar_prev)
  np.testing.assert_allclose(mean, (from_x_t + from_x_0) / precision, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(variance, 1 / precision, rtol=1e-5)
  np.testing.assert_allclose(log_variance, -np.log(precision), rtol=1e-5)


def test_posterior_at_the_first_step_is_x_0(linear, example):
  x_0, _, _, x_t = example
  t = np.zeros(5, int)
  mean, variance, log_variance = q_posterior_mean_variance(linear, x_0, x_t, t)
  np.testing.assert_allclose(mean, x_0, rtol=1e-6)
  assert (variance == 0).all()
  assert jnp.isfinite(log_variance).all()


def test_schedule_may_be_an_argument_of_a_compiled_function(linear, example):
  x_0, _, t, _ = example
  actual = jax.jit(q_mean_variance)(linear, x_0, t)
  expected = q_mean_variance(linear, x_0, t)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected
  )
  np.testing.assert_allclose(actual[1], expected[1], rtol=1e-5)  # variances start at 1e-4


def test_q_equals_the_original_programs(original, relative_error):
  arrays, schedule, x_t = original
  x_0, t = arrays['x0'], arrays['t']
  assert relative_error(q_sample(schedule, x_0, t, arrays['noise']), x_t) < 1e-6
  for key, names, results in (
    (
      'q_mean_variance',
      ('mean', 'variance', 'log_variance'),
      q_mean_variance(schedule, x_0, t),
    ),
    (
      'q_posterior_mean_variance',
      ('mean', 'variance', 'log_variance_clipped'),
      q_posterior_mean_variance(schedule, x_0, x_t, t),
    ),
  ):
    for name, result in zip(names, results, strict=True):
      np.testing.assert_allclose(result, arrays[f'{key}/{name}'], rtol=1e-5, atol=1e-6)


def test_noising_equals_that_of_the_originals_first_class(reference, relative_error):
  arrays = reference('gaussian_v1')
  schedule = make_schedule(arrays['betas'])
  x_t = q_sample(schedule, arrays['x0'], arrays['t'], arrays['noise'])
  assert relative_error(x_t, arrays['q_sample']) < 1e-6
