"""Clipping: what it does to x_0, and what it leaves alone."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import (
  Parameterization,
  Prediction,
  make_betas,
  make_schedule,
  p_mean_variance,
  q_posterior_mean_variance,
)
from ddpm_jax.diffusion.prediction import MEANS
from ddpm_jax.errors import UserError
from ddpm_jax.sampling import CLIPS, clipped
from ddpm_jax.sampling.clip import clip_x_0
from tests.analytic import predict

SCHEDULE = make_schedule(make_betas('linear', 1000))
T = np.array([0, 1, 10, 500, 999])


def normal(seed, shape=(5, 3, 4, 2)):
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_clipping_brings_images_back_to_their_range():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 20, 20, 1)) * 3, jnp.float32)
  x = x.at[1].set(jnp.clip(x[1], -0.9, 0.9))
  np.testing.assert_array_equal(clip_x_0(x, 'none'), x)
  np.testing.assert_array_equal(clip_x_0(x, 'static'), np.clip(x, -1, 1))
  dynamic = np.asarray(clip_x_0(x, 'dynamic'))
  assert np.abs(dynamic).max() <= 1
  np.testing.assert_array_equal(dynamic[1], x[1])  # within the range, it stays
  limit = np.quantile(np.abs(x[0]), 0.995)
  np.testing.assert_allclose(dynamic[0], np.clip(x[0], -limit, limit) / limit, rtol=1e-5)
  # 0.5% of 400 pixels reach the end of the range, where static clipping has most of them.
  assert (np.abs(dynamic[0]) == 1).sum() <= 3


@pytest.mark.parametrize('clip', ['static', 'dynamic'])
@pytest.mark.parametrize('mean', MEANS)
def test_clipping_bounds_x_0_and_the_mean_that_follows_from_it(mean, clip):
  x_t, output = normal(0), 5 * normal(1)
  choices = dict(mean=mean, variance='fixedsmall')
  prediction = predict(SCHEDULE, output, x_t, T, clip=clip, **choices)
  assert np.abs(prediction.x_0).max() == 1
  free = predict(SCHEDULE, output, x_t, T, **choices)
  np.testing.assert_array_equal(prediction.x_0, clip_x_0(free.x_0, clip))
  assert (np.abs(free.x_0) > 1).any()
  p_mean, _, _ = p_mean_variance(SCHEDULE, prediction, x_t, T, variance='fixedsmall')
  if Parameterization(mean).is_step:
    # The mean is the network's own, as in the original program.
    np.testing.assert_array_equal(prediction.mean, output)
    np.testing.assert_array_equal(p_mean, output)
  else:
    assert prediction.mean is None
    expected, _, _ = q_posterior_mean_variance(SCHEDULE, prediction.x_0, x_t, T)
    np.testing.assert_array_equal(p_mean, expected)


@pytest.mark.parametrize('clip', CLIPS)
def test_clipping_leaves_a_predicted_variance_and_mean_alone(clip):
  x_0, log_variance, mean = (3 * normal(seed) for seed in range(3))
  given = []

  def denoiser(x_t, t):
    given.append((x_t, t))
    return Prediction(x_0, log_variance, mean)

  prediction = clipped(denoiser, clip)('X_T', 'T')
  assert given == [('X_T', 'T')]
  assert prediction.log_variance is log_variance
  assert prediction.mean is mean
  np.testing.assert_array_equal(prediction.x_0, clip_x_0(x_0, clip))


def test_clipping_is_static_unless_asked_otherwise():
  x_0 = 3 * normal(0)
  actual = clipped(lambda x_t, t: Prediction(x_0))(None, None).x_0
  np.testing.assert_array_equal(actual, np.clip(x_0, -1, 1))


def test_an_unknown_clip_is_refused_before_anything_is_denoised():
  message = "sample.clip is 'soft'; it must be one of none, static, dynamic$"
  with pytest.raises(UserError, match=message):
    clipped(lambda x_t, t: pytest.fail('denoised'), 'soft')
  with pytest.raises(UserError, match=message):
    clip_x_0(jnp.zeros((1, 2)), 'soft')
