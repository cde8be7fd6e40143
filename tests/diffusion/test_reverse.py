"""The reverse process p: its mean and variance by formula, then the original program's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import (
  Parameterization,
  Prediction,
  make_schedule,
  p_mean_variance,
  p_sample,
  q_posterior_mean_variance,
)
from ddpm_jax.diffusion.prediction import MEANS
from ddpm_jax.errors import UserError
from tests.analytic import ORIGINAL_VARIANCES as VARIANCES
from tests.analytic import predict, true_output

ORIGINAL_MEANS = ('eps', 'xstart', 'xprev')


def column(values, like):
  return values.reshape(-1, *[1] * (like.ndim - 1))


def p_of(schedule, output, x_t, t, *, mean='eps', variance, clip='none', noise=None):
  """p_mean_variance of a network that returns `output`; with noise, p_sample."""
  prediction = predict(schedule, output, x_t, t, mean=mean, variance=variance, clip=clip)
  choices = dict(variance=Parameterization(mean, variance).fixed_variance)
  if noise is not None:
    return p_sample(schedule, prediction, x_t, t, noise, **choices)
  return p_mean_variance(schedule, prediction, x_t, t, **choices)


@pytest.mark.parametrize('mean_type', MEANS)
def test_the_true_prediction_gives_the_posterior(linear, example, mean_type):
  x_0, noise, t, x_t = example
  output = true_output(mean_type, linear, x_0, noise, x_t, t)
  actual = p_of(linear, output, x_t, t, mean=mean_type, variance='fixedsmall')
  mean, variance, log_variance = q_posterior_mean_variance(linear, x_0, x_t, t)
  np.testing.assert_allclose(actual[0], mean, atol=2e-6)
  np.testing.assert_array_equal(actual[1], np.broadcast_to(variance, x_t.shape))
  np.testing.assert_array_equal(actual[2], np.broadcast_to(log_variance, x_t.shape))


def test_eps_prediction_gives_the_mean_of_eq_11(linear, example):
  _, noise, t, x_t = example
  eps = noise + 0.3
  mean, variance, _ = p_of(linear, eps, x_t, t, variance='fixedlarge')
  beta, abar = column(linear.betas[t], x_t), column(linear.alphas_cumprod[t], x_t)
  expected = (x_t - beta / np.sqrt(1 - abar) * eps) / np.sqrt(1 - beta)
  np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(variance, np.broadcast_to(beta, x_t.shape), rtol=1e-6)


def test_fixed_variances_are_the_ends_of_the_range_of_sec_3_2(linear, example):
  _, noise, t, x_t = example
  small, large = (
    p_of(linear, noise, x_t, t, variance=variance, clip='static')
    for variance in ('fixedsmall', 'fixedlarge')
  )
  np.testing.assert_array_equal(small[0], large[0])
  assert (small[1] < large[1]).all()


@pytest.mark.parametrize('variance', VARIANCES)
@pytest.mark.parametrize('mean_type', MEANS)
def test_p_sample_adds_noise_of_its_variance_but_at_the_first_step(
  linear, example, mean_type, variance
):
  _, noise, t, x_t = example
  output = np.concatenate([noise] * (2 if variance == 'learned' else 1), axis=-1)
  choices = dict(mean=mean_type, variance=variance, clip='static')
  mean, _, log_variance = p_of(linear, output, x_t, t, **choices)
  sample = p_of(linear, output, x_t, t, noise=2 * noise, **choices)
  std = np.exp(0.5 * np.asarray(log_variance))
  np.testing.assert_allclose(sample[1:], (mean + std * 2 * noise)[1:], rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(sample[0], mean[0])


@pytest.mark.parametrize('variance', VARIANCES)
@pytest.mark.parametrize('mean_type', MEANS)
def test_schedule_may_be_an_argument_of_a_compiled_function(linear, example, mean_type, variance):
  x_0, noise, t, x_t = example
  output = true_output(mean_type, linear, x_0, noise, x_t, t) + 0.1 * noise[::-1]
  if variance == 'learned':
    output = np.concatenate([output, -5 + noise], -1)

  def everything(schedule, x_t, t):
    choices = dict(mean=mean_type, variance=variance, clip='static')
    return (
      p_of(schedule, output, x_t, t, **choices),
      predict(schedule, output, x_t, t, **choices).x_0,
    )

  actual, expected = jax.jit(everything)(linear, x_t, t), everything(linear, x_t, t)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected
  )


def test_a_mean_that_is_predicted_is_taken_whatever_x_0_says(linear, example):
  x_0, noise, t, x_t = example
  prediction = Prediction(x_0, mean=noise)
  mean, _, _ = p_mean_variance(linear, prediction, x_t, t, variance='fixedsmall')
  np.testing.assert_array_equal(mean, noise)


def test_a_predicted_variance_is_taken_unless_a_fixed_one_is_asked_for(linear, example):
  x_0, noise, t, x_t = example
  prediction = Prediction(x_0, log_variance=noise)
  mean, variance, log_variance = p_mean_variance(linear, prediction, x_t, t, variance=None)
  np.testing.assert_array_equal(log_variance, noise)
  np.testing.assert_allclose(variance, np.exp(noise), rtol=1e-6)
  for fixed in ('fixedsmall', 'fixedlarge'):
    actual = p_mean_variance(linear, prediction, x_t, t, variance=fixed)
    expected = p_mean_variance(linear, Prediction(x_0), x_t, t, variance=fixed)
    np.testing.assert_array_equal(actual[0], mean)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize('function', [p_mean_variance, p_sample])
@pytest.mark.parametrize(
  ('variance', 'message'),
  [
    (None, '^the prediction carries no variance; it must be one of fixedsmall, fixedlarge$'),
    ('fixed', "^variance is 'fixed'; it must be one of fixedsmall, fixedlarge, or None$"),
    # What a network learns is None here: the prediction carries it.
    ('learned', "^variance is 'learned'; it must be one of fixedsmall, fixedlarge, or None$"),
  ],
)
def test_a_variance_that_nothing_gives_is_refused(linear, example, function, variance, message):
  x_0, noise, t, x_t = example
  more = (noise,) if function is p_sample else ()
  with pytest.raises(UserError, match=message):
    function(linear, Prediction(jnp.asarray(x_0)), x_t, t, *more, variance=variance)


@pytest.mark.parametrize('clip', ['none', 'static'])
@pytest.mark.parametrize('variance', VARIANCES)
@pytest.mark.parametrize('mean_type', ORIGINAL_MEANS)
def test_p_equals_the_original_programs(original, relative_error, mean_type, variance, clip):
  arrays, schedule, x_t = original
  output = arrays['model_output'][..., : 6 if variance == 'learned' else 3]
  choices = dict(mean=mean_type, variance=variance, clip=clip)
  key = f'{mean_type}/{variance}/clip{clip == "static":d}'
  results = p_of(schedule, output, x_t, arrays['t'], **choices)
  for name, result in zip(('mean', 'variance', 'log_variance'), results, strict=True):
    assert relative_error(result, arrays[f'p_mean_variance/{key}/{name}']) < 1e-5, name
  sample = p_of(schedule, output, x_t, arrays['t'], noise=arrays['p_sample_noise'], **choices)
  assert relative_error(sample, arrays[f'p_sample/{key}/sample']) < 1e-5


@pytest.mark.parametrize('clip', ['none', 'static'])
def test_fixedsmall_noise_prediction_equals_the_originals_first_class(
  reference, relative_error, clip
):
  # Its log-variance at t = 0 is log 1e-20, ours that of t = 1; no sample depends on it.
  arrays = reference('gaussian_v1')
  schedule, x_t, t = make_schedule(arrays['betas']), arrays['q_sample'], arrays['t']
  choices = dict(variance='fixedsmall', clip=clip)
  mean, *variances = p_of(schedule, arrays['model_output'], x_t, t, **choices)
  key = f'clip{clip == "static":d}'
  assert relative_error(mean, arrays[f'p_mean_variance/{key}/mean']) < 1e-5
  for name, result in zip(('variance', 'log_variance'), variances, strict=True):
    expected = arrays[f'p_mean_variance/{key}/{name}'][1:]
    np.testing.assert_allclose(result[1:, :1, :1, :1], expected, rtol=1e-5)
  noise = arrays['p_sample_noise']
  sample = p_of(schedule, arrays['model_output'], x_t, t, noise=noise, **choices)
  assert relative_error(sample, arrays[f'p_sample/{key}']) < 1e-5
