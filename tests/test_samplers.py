"""Samplers on Gaussian data, whose denoiser is known; then the original program's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import VAR_TYPES
from ddpm_jax.samplers import ancestral, ancestral_progressive, make_noise_fn
from ddpm_jax.schedules import make_betas, make_schedule
from tests.analytic import analytic

MEAN = np.array([0.5, -0.3])
COVARIANCES = {
  'per_dimension': np.diag([0.04, 0.36]),
  'correlated': np.array([[0.25, 0.15], [0.15, 0.16]]),
}


def exact_gain(schedule, covariance):
  """[T, 2, 2]: E[eps | x_t] = gain (x_t - sqrt(abar) MEAN), for x_0 ~ N(MEAN, covariance)."""
  abar = schedule.alphas_cumprod[:, None, None]
  return np.sqrt(1 - abar) * np.linalg.inv(abar * covariance + (1 - abar) * np.eye(2))


def exact_denoise_fn(schedule, covariance):
  gain = jnp.asarray(exact_gain(schedule, covariance), jnp.float32)
  center = jnp.asarray(schedule.sqrt_alphas_cumprod[:, None] * MEAN, jnp.float32)
  return lambda x_t, t: jnp.einsum('bij,bj->bi', gain[t], x_t - center[t])


def batch_noise_fn(seed, shape):
  key = jax.random.key(seed)
  return lambda t: jax.random.normal(jax.random.fold_in(key, t), shape)


def sample(sampler, schedule, denoise_fn, x_T, noise_fn, **kwargs):
  return jax.jit(lambda x_T: sampler(schedule, denoise_fn, x_T, noise_fn, **kwargs))(x_T)


@pytest.mark.parametrize('name', COVARIANCES)
@pytest.mark.parametrize('var_type', ['fixedsmall', 'fixedlarge'])
def test_ancestral_reproduces_gaussian_data(name, var_type):
  covariance = COVARIANCES[name]
  schedule = make_schedule(make_betas('linear', 1000))
  count = 4000
  noise_fn = batch_noise_fn(0, (count, 2))
  x_0 = np.asarray(
    sample(
      ancestral,
      schedule,
      exact_denoise_fn(schedule, covariance),
      noise_fn(1000),
      noise_fn,
      mean_type='eps',
      var_type=var_type,
      clip='none',
    )
  )
  std_error = np.sqrt(np.diag(covariance) / count)
  np.testing.assert_allclose(x_0.mean(axis=0), MEAN, atol=5 * std_error.max())
  # The standard error of a covariance, and 2% for a thousand steps of a fixed variance.
  scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
  error = (5 * np.sqrt(2 / count) + 0.02) * scale
  assert (np.abs(np.cov(x_0.T) - covariance) < error).all()


@pytest.mark.parametrize('var_type', ['fixedsmall', 'fixedlarge'])
def test_ancestral_is_the_chain_of_gaussians_it_should_be(var_type):
  # Few steps, so that the chain is far from the data: its own moments are known all the same.
  schedule = make_schedule(make_betas('linear', 5, beta_start=0.05, beta_end=0.7))
  covariance, count = COVARIANCES['correlated'], 40_000
  mean, cov = np.zeros(2), np.eye(2)
  for t in reversed(range(5)):
    beta, abar = schedule.betas[t], schedule.alphas_cumprod[t]
    gain = exact_gain(schedule, covariance)[t]
    slope = (np.eye(2) - beta / np.sqrt(1 - abar) * gain) / np.sqrt(1 - beta)  # Eq. 11
    shift = beta / np.sqrt(1 - abar) * gain @ (np.sqrt(abar) * MEAN) / np.sqrt(1 - beta)
    variance = beta if var_type == 'fixedlarge' else schedule.posterior_variance[t]
    mean = slope @ mean + shift
    cov = slope @ cov @ slope.T + (variance if t else 0) * np.eye(2)
  noise_fn = batch_noise_fn(1, (count, 2))
  x_0 = sample(
    ancestral,
    schedule,
    exact_denoise_fn(schedule, covariance),
    noise_fn(5),
    noise_fn,
    mean_type='eps',
    var_type=var_type,
    clip='none',
  )
  std = np.sqrt(np.diag(cov))
  np.testing.assert_allclose(np.mean(x_0, axis=0), mean, atol=5 * std.max() / np.sqrt(count))
  error = 5 * np.sqrt(2 / count) * np.outer(std, std)
  assert (np.abs(np.cov(np.transpose(x_0)) - cov) < error).all()


def test_noise_of_a_row_does_not_depend_on_the_batch():
  keys = jax.random.split(jax.random.key(0), 6)
  noise = make_noise_fn(keys, (3, 2))(7)
  assert noise.shape == (6, 3, 2)
  subset = jnp.array([4, 1])
  np.testing.assert_array_equal(make_noise_fn(keys[subset], (3, 2))(7), noise[subset])


def test_noise_is_standard_normal_and_independent_of_row_and_timestep():
  noise_fn = make_noise_fn(jax.random.split(jax.random.key(0), 2), (100_000,))
  rows = np.concatenate([noise_fn(0), noise_fn(1)])
  np.testing.assert_allclose(rows.mean(axis=1), 0, atol=5 / np.sqrt(100_000))
  np.testing.assert_allclose(np.cov(rows), np.eye(4), atol=5 * np.sqrt(2 / 100_000))


@pytest.mark.parametrize('every_steps', [1, 3, 10])
def test_progressive_ends_where_ancestral_does_and_its_slot_zero_holds_the_result(every_steps):
  schedule = make_schedule(make_betas('linear', 10, beta_end=0.5))
  noise_fn = batch_noise_fn(2, (4, 2))
  arguments = (schedule, exact_denoise_fn(schedule, COVARIANCES['correlated']), noise_fn(10))
  kwargs = {'mean_type': 'eps', 'var_type': 'fixedlarge'}
  x_0, predictions = sample(
    ancestral_progressive, *arguments, noise_fn, every_steps=every_steps, **kwargs
  )
  expected = sample(ancestral, *arguments, noise_fn, **kwargs)
  np.testing.assert_allclose(x_0, expected, rtol=1e-6, atol=1e-6)
  assert predictions.shape == (4, 10 // every_steps, 2)
  # At t = 0 the mean of the posterior is the prediction, and no noise is added.
  np.testing.assert_allclose(predictions[:, 0], x_0, rtol=1e-6, atol=1e-6)
  assert np.abs(predictions).max() <= 1


def test_progressive_refuses_to_keep_predictions_every_zero_steps():
  schedule = make_schedule(make_betas('linear', 10))
  with pytest.raises(ValueError, match='every_steps is 0'):
    ancestral_progressive(
      schedule,
      lambda x_t, t: x_t,
      jnp.zeros((1, 2)),
      jnp.zeros,
      every_steps=0,
      mean_type='eps',
      var_type='fixedlarge',
    )


def assert_equals_reference_loop(arrays, denoise_fn, key, relative_error):
  _, betas, mean_type, var_type = key.split('/')
  schedule = make_schedule(arrays[f'betas_{betas}'])
  step_noise = jnp.asarray(arrays['step_noise'])
  arguments = (schedule, denoise_fn, arrays['init_noise'], lambda t: step_noise[t])
  kwargs = {'mean_type': mean_type, 'var_type': var_type}
  x_0 = sample(ancestral, *arguments, **kwargs)
  assert relative_error(x_0, arrays[f'{key}/p_sample_loop']) < 1e-5
  x_0, predictions = sample(ancestral_progressive, *arguments, every_steps=3, **kwargs)
  assert relative_error(x_0, arrays[f'{key}/progressive/sample']) < 1e-5
  assert relative_error(predictions, arrays[f'{key}/progressive/xstartpreds']) < 1e-5


@pytest.mark.parametrize('var_type', VAR_TYPES)
@pytest.mark.parametrize(
  ('betas', 'mean_type'), [('lin', 'eps'), ('big', 'eps'), ('big', 'xstart'), ('big', 'xprev')]
)
def test_samples_equal_the_original_programs(reference, relative_error, betas, mean_type, var_type):
  key = f'analytic/{betas}/{mean_type}/{var_type}'
  assert_equals_reference_loop(reference('loops'), analytic(var_type), key, relative_error)


@pytest.mark.parametrize(
  ('betas', 'var_type'), [('lin', 'fixedlarge'), ('big', 'fixedlarge'), ('big', 'fixedsmall')]
)
def test_samples_of_the_network_equal_the_original_programs(
  reference, relative_error, unet_small, betas, var_type
):
  model, params = unet_small
  assert_equals_reference_loop(
    reference('loops'),
    lambda x_t, t: model.apply({'params': params}, x_t, t),
    f'unet/{betas}/eps/{var_type}',
    relative_error,
  )


def test_samples_equal_those_of_the_originals_first_class(reference, relative_error):
  arrays = reference('gaussian_v1')
  step_noise = jnp.asarray(arrays['loop_step_noise'])
  x_0 = sample(
    ancestral,
    make_schedule(arrays['loop_betas']),
    analytic('fixedsmall'),
    arrays['loop_init_noise'],
    lambda t: step_noise[t],
    mean_type='eps',
    var_type='fixedsmall',
  )
  assert relative_error(x_0, arrays['p_sample_loop']) < 1e-5
