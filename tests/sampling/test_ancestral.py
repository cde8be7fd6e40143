"""Ancestral sampling on data whose denoiser is exact; then the original program's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import (
  Parameterization,
  Prediction,
  make_betas,
  make_denoiser,
  make_network,
  make_schedule,
  refined,
  timestep_subsequence,
)
from ddpm_jax.diffusion.prediction import MEANS
from ddpm_jax.diffusion.schedules import respace
from ddpm_jax.errors import UserError
from ddpm_jax.sampling import CLIPS, clipped
from ddpm_jax.sampling.ancestral import ancestral, ancestral_progressive
from tests.analytic import (
  MIXTURE,
  batch_noise_fn,
  gaussian_posterior_variances,
  mixture_network,
  network_from_eps,
  range_channels,
  reference_network,
  true_output,
  with_log_variance,
)
from tests.analytic import ORIGINAL_VARIANCES as VARIANCES

MEAN = np.array([0.5, -0.3])
COVARIANCES = {
  'per_dimension': np.diag([0.04, 0.36]),
  'correlated': np.array([[0.25, 0.15], [0.15, 0.16]]),
}
LINEAR = make_schedule(make_betas('linear', 1000))


def exact_gain(schedule, covariance):
  """[T, 2, 2]: E[eps | x_t] = gain (x_t - sqrt(abar) MEAN), for x_0 ~ N(MEAN, covariance)."""
  abar = schedule.alphas_cumprod[:, None, None]
  return np.sqrt(1 - abar) * np.linalg.inv(abar * covariance + (1 - abar) * np.eye(2))


def exact_denoiser(schedule, covariance):
  gain = jnp.asarray(exact_gain(schedule, covariance), jnp.float32)
  center = jnp.asarray(schedule.sqrt_alphas_cumprod[:, None] * MEAN, jnp.float32)

  def network(x_t, t):
    return jnp.einsum('bij,bj->bi', gain[t], x_t - center[t])

  return make_denoiser(network, Parameterization('eps'), schedule)


def mixture_denoiser(schedule):
  return make_denoiser(mixture_network(schedule, **MIXTURE), Parameterization('eps'), schedule)


def gaussian_denoiser(schedule, parameterization, mean, std):
  """Of the exact network for pixels of N(mean, std^2), with the exact variance of p."""
  network = mixture_network(schedule, [1.0], [mean], [std])
  network = network_from_eps(parameterization.mean, schedule, network)
  if parameterization.fixed_variance is None:
    channels = np.log(gaussian_posterior_variances(schedule, std)[1])
    if parameterization.variance == 'learned_range':
      channels = range_channels(schedule, channels)
    network = with_log_variance(network, channels, parameterization.mean, schedule)
  return make_denoiser(network, parameterization, schedule)


def sample(sampler, schedule, denoiser, x_T, noise_fn, *, variance='fixedlarge', **choices):
  choices |= {'variance': variance}
  return jax.jit(lambda x_T: sampler(schedule, denoiser, x_T, noise_fn, **choices))(x_T)


@pytest.mark.parametrize('name', COVARIANCES)
@pytest.mark.parametrize('variance', ['fixedsmall', 'fixedlarge'])
def test_ancestral_reproduces_gaussian_data(name, variance):
  covariance = COVARIANCES[name]
  count = 4000
  noise_fn = batch_noise_fn((count, 2))
  denoiser = exact_denoiser(LINEAR, covariance)
  x_0 = sample(ancestral, LINEAR, denoiser, noise_fn(1000), noise_fn, variance=variance)
  x_0 = np.asarray(x_0)
  std_error = np.sqrt(np.diag(covariance) / count)
  np.testing.assert_allclose(x_0.mean(axis=0), MEAN, atol=5 * std_error.max())
  # The standard error of a covariance, and 2% for a thousand steps of a fixed variance.
  scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
  error = (5 * np.sqrt(2 / count) + 0.02) * scale
  assert (np.abs(np.cov(x_0.T) - covariance) < error).all()


@pytest.mark.parametrize('variance_type', ['fixedsmall', 'fixedlarge'])
def test_ancestral_is_the_chain_of_gaussians_it_should_be(variance_type):
  # Few steps, so that the chain is far from the data: its own moments are known all the same.
  schedule = make_schedule(make_betas('linear', 5, beta_start=0.05, beta_end=0.7))
  covariance, count = COVARIANCES['correlated'], 40_000
  mean, cov = np.zeros(2), np.eye(2)
  for t in reversed(range(5)):
    beta, abar = schedule.betas[t], schedule.alphas_cumprod[t]
    gain = exact_gain(schedule, covariance)[t]
    slope = (np.eye(2) - beta / np.sqrt(1 - abar) * gain) / np.sqrt(1 - beta)  # Eq. 11
    shift = beta / np.sqrt(1 - abar) * gain @ (np.sqrt(abar) * MEAN) / np.sqrt(1 - beta)
    variance = beta if variance_type == 'fixedlarge' else schedule.posterior_variance[t]
    mean = slope @ mean + shift
    cov = slope @ cov @ slope.T + (variance if t else 0) * np.eye(2)
  noise_fn = batch_noise_fn((count, 2), seed=1)
  denoiser = exact_denoiser(schedule, covariance)
  x_0 = sample(ancestral, schedule, denoiser, noise_fn(5), noise_fn, variance=variance_type)
  std = np.sqrt(np.diag(cov))
  np.testing.assert_allclose(np.mean(x_0, axis=0), mean, atol=5 * std.max() / np.sqrt(count))
  error = 5 * np.sqrt(2 / count) * np.outer(std, std)
  assert (np.abs(np.cov(np.transpose(x_0)) - cov) < error).all()


@pytest.mark.parametrize('clip', CLIPS)
def test_clipping_does_not_change_the_law_of_a_network_that_predicts_the_mean(clip):
  # Many pixels lie beyond 1, and so would x_0; the mean is the network's own all the same.
  schedule = make_schedule(make_betas('linear', 100, beta_end=0.2))
  count, mean, std = 40_000, 0.7, 0.5
  noise_fn = batch_noise_fn((count, 1))
  denoiser = gaussian_denoiser(schedule, Parameterization('xprev', 'learned'), mean, std)
  arguments = noise_fn(100), noise_fn
  free = sample(ancestral, schedule, denoiser, *arguments, variance=None)
  x_0 = sample(ancestral, schedule, clipped(denoiser, clip), *arguments, variance=None)
  np.testing.assert_array_equal(x_0, free)
  # As in test_learned_variance_is_carried_over_to_longer_steps.
  abar, variance = schedule.alphas_cumprod[0], std**2
  expected = abar * variance**2 / (abar * variance + 1 - abar)
  x_0 = np.asarray(x_0)
  assert x_0.mean() == pytest.approx(mean, abs=5 * std / np.sqrt(count) + 1e-3)
  assert x_0.var() == pytest.approx(expected, rel=5 * np.sqrt(2 / count) + 0.01)
  assert (x_0 > 1).mean() > 0.2


@pytest.mark.parametrize('mean', [mean for mean in MEANS if not Parameterization(mean).is_step])
def test_clipping_keeps_samples_of_other_predictions_in_the_range(mean):
  schedule = make_schedule(make_betas('linear', 100, beta_end=0.2))
  noise_fn = batch_noise_fn((1000, 1))
  denoiser = gaussian_denoiser(schedule, Parameterization(mean), 0.7, 0.5)
  arguments = noise_fn(100), noise_fn
  assert np.abs(sample(ancestral, schedule, denoiser, *arguments)).max() > 1.5
  for clip in ('static', 'dynamic'):
    x_0 = sample(ancestral, schedule, clipped(denoiser, clip), *arguments)
    assert np.abs(x_0).max() <= 1 + 1e-5


@pytest.mark.parametrize('parameterization', [Parameterization('v'), Parameterization('xprev')])
@pytest.mark.parametrize('variance', ['fixedsmall', 'fixedlarge'])
def test_data_are_reached_from_a_last_beta_of_1(parameterization, variance):
  schedule = make_schedule(make_betas('jsd', 200))
  count, mean, std = 10_000, 0.3, 0.4
  noise_fn = batch_noise_fn((count, 1))
  # At the end x_t holds nothing of x_0, and E[x_0 | x_t] is its mean.
  abar = schedule.alphas_cumprod
  gain = jnp.asarray(np.sqrt(abar) * std**2 / (abar * std**2 + 1 - abar), jnp.float32)
  alpha = jnp.asarray(np.sqrt(abar), jnp.float32)
  sigma = jnp.asarray(np.sqrt(1 - abar), jnp.float32)

  def network(x_t, t):
    x_0 = mean + gain[t][:, None] * (x_t - alpha[t][:, None] * mean)
    eps = (x_t - alpha[t][:, None] * x_0) / sigma[t][:, None]
    return true_output(parameterization.mean, schedule, x_0, eps, x_t, t)

  denoiser = make_denoiser(network, parameterization, schedule)
  x_0 = np.asarray(
    sample(ancestral, schedule, denoiser, noise_fn(200), noise_fn, variance=variance)
  )
  assert x_0.mean() == pytest.approx(mean, abs=5 * std / np.sqrt(count) + 0.01)
  assert x_0.std() == pytest.approx(std, rel=5 / np.sqrt(2 * count) + 0.03)


@pytest.mark.parametrize('every_steps', [1, 3, 10])
def test_progressive_ends_where_ancestral_does_and_its_slot_zero_holds_the_result(every_steps):
  schedule = make_schedule(make_betas('linear', 10, beta_end=0.5))
  noise_fn = batch_noise_fn((4, 2), seed=2)
  denoiser = clipped(exact_denoiser(schedule, COVARIANCES['correlated']))
  arguments = schedule, denoiser, noise_fn(10), noise_fn
  x_0, predictions = sample(ancestral_progressive, *arguments, every_steps=every_steps)
  expected = sample(ancestral, *arguments)
  np.testing.assert_allclose(x_0, expected, rtol=1e-6, atol=1e-6)
  assert predictions.shape == (4, 10 // every_steps, 2)
  # At t = 0 the mean of the posterior is the prediction, and no noise is added.
  np.testing.assert_allclose(predictions[:, 0], x_0, rtol=1e-6, atol=1e-6)
  assert np.abs(predictions).max() <= 1


def test_progressive_does_not_keep_predictions_every_zero_steps():
  schedule = make_schedule(make_betas('linear', 10))
  arguments = schedule, mixture_denoiser(schedule), jnp.zeros((1, 2)), jnp.zeros
  with pytest.raises(AssertionError):
    ancestral_progressive(*arguments, every_steps=0, variance='fixedlarge')


@pytest.mark.parametrize('num_steps', [4, 10])
def test_a_variance_that_the_denoiser_does_not_give_is_refused(num_steps):
  schedule = make_schedule(make_betas('linear', 10))
  timesteps = timestep_subsequence(schedule, num_steps, 'linspace')
  arguments = schedule, mixture_denoiser(schedule), jnp.zeros((1, 2)), lambda t: jnp.zeros((1, 2))
  with pytest.raises(UserError, match='the prediction carries no variance'):
    ancestral(*arguments, timesteps, variance=None)


@pytest.mark.parametrize('variance', ['learned', 'learned_range'])
@pytest.mark.parametrize('num_steps', [1, 3, 10])
def test_learned_variance_is_carried_over_to_longer_steps(num_steps, variance):
  # With the exact reverse variance, Gaussian data come out exact from however few steps, but for
  # the last, which adds none: x_0 is E[x_0 | x_t] there.
  count, mean, std = 40_000, 0.3, 0.4
  noise_fn = batch_noise_fn((count, 1))
  timesteps = timestep_subsequence(LINEAR, num_steps, 'linspace')
  denoiser = gaussian_denoiser(LINEAR, Parameterization('eps', variance), mean, std)
  x_0 = np.asarray(
    sample(
      ancestral,
      LINEAR,
      denoiser,
      noise_fn(1000),
      noise_fn,
      timesteps=timesteps,
      variance=None,
    )
  )
  abar, variance = LINEAR.alphas_cumprod[timesteps[0]], std**2
  expected = abar * variance**2 / (abar * variance + 1 - abar)
  assert x_0.mean() == pytest.approx(mean, abs=5 * 0.4 / np.sqrt(count) + 1e-3)
  assert x_0.var() == pytest.approx(expected, rel=5 * np.sqrt(2 / count) + 0.01)


@pytest.mark.parametrize('variance', ['fixedsmall', 'fixedlarge'])
def test_ancestral_on_some_timesteps_is_the_chain_of_the_respaced_process(variance):
  timesteps = np.array([3, 200, 500, 990])
  kept = respace(LINEAR, timesteps)
  noise_fn = batch_noise_fn((6, 2))
  network = mixture_network(LINEAR, **MIXTURE)
  x_T = noise_fn(1000)
  actual = sample(
    ancestral,
    LINEAR,
    mixture_denoiser(LINEAR),
    x_T,
    noise_fn,
    timesteps=timesteps,
    variance=variance,
  )
  # The same as the whole chain of a process of four timesteps, whose network knows their old names.
  expected = sample(
    ancestral,
    kept,
    make_denoiser(
      lambda x_t, t: network(x_t, jnp.asarray(timesteps)[t]), Parameterization('eps'), kept
    ),
    x_T,
    lambda t: noise_fn(jnp.asarray(timesteps)[t]),
    variance=variance,
  )
  np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_only_the_last_steps_of_some_timesteps_can_be_taken():
  timesteps = np.array([3, 200, 500, 990])
  noise_fn = batch_noise_fn((6, 2))
  arguments = LINEAR, clipped(mixture_denoiser(LINEAR))
  choices = {'timesteps': timesteps, 'variance': 'fixedlarge'}
  x_0, states = ancestral(*arguments, noise_fn(1000), noise_fn, trajectory=True, **choices)
  for num_steps in (1, 3):
    again = ancestral(
      *arguments, states[:, 3 - num_steps], noise_fn, num_steps=jnp.int32(num_steps), **choices
    )
    np.testing.assert_allclose(again, x_0, atol=1e-6)


def assert_equals_reference_loop(arrays, network, key, relative_error):
  _, betas, mean, variance = key.split('/')
  schedule = make_schedule(arrays[f'betas_{betas}'])
  parameterization = Parameterization(mean, variance)
  step_noise = jnp.asarray(arrays['step_noise'])
  denoiser = clipped(make_denoiser(network, parameterization, schedule))
  arguments = schedule, denoiser, arrays['init_noise'], lambda t: step_noise[t]
  choices = {'variance': parameterization.fixed_variance}
  x_0 = sample(ancestral, *arguments, **choices)
  assert relative_error(x_0, arrays[f'{key}/p_sample_loop']) < 1e-5
  x_0, predictions = sample(ancestral_progressive, *arguments, every_steps=3, **choices)
  assert relative_error(x_0, arrays[f'{key}/progressive/sample']) < 1e-5
  assert relative_error(predictions, arrays[f'{key}/progressive/xstartpreds']) < 1e-5


@pytest.mark.parametrize('variance', VARIANCES)
@pytest.mark.parametrize(
  ('betas', 'mean'), [('lin', 'eps'), ('big', 'eps'), ('big', 'xstart'), ('big', 'xprev')]
)
def test_samples_equal_the_original_programs(reference, relative_error, betas, mean, variance):
  key = f'analytic/{betas}/{mean}/{variance}'
  network = reference_network(variance)
  assert_equals_reference_loop(reference('loops'), network, key, relative_error)


@pytest.mark.parametrize(
  ('betas', 'variance'), [('lin', 'fixedlarge'), ('big', 'fixedlarge'), ('big', 'fixedsmall')]
)
def test_samples_of_the_network_equal_the_original_programs(
  reference, relative_error, unet_small, betas, variance
):
  network, key = make_network(*unet_small), f'unet/{betas}/eps/{variance}'
  assert_equals_reference_loop(reference('loops'), network, key, relative_error)


def test_samples_equal_those_of_the_originals_first_class(reference, relative_error):
  arrays = reference('gaussian_v1')
  step_noise = jnp.asarray(arrays['loop_step_noise'])
  schedule, parameterization = make_schedule(arrays['loop_betas']), Parameterization('eps')
  network = reference_network('fixedsmall')
  x_0 = sample(
    ancestral,
    schedule,
    clipped(make_denoiser(network, parameterization, schedule)),
    arrays['loop_init_noise'],
    lambda t: step_noise[t],
    variance='fixedsmall',
  )
  assert relative_error(x_0, arrays['p_sample_loop']) < 1e-5


def test_all_rows_of_a_refined_schedule_are_a_chain_of_shorter_steps():
  fine = refined(make_schedule(make_betas('linear', 10, beta_start=0.1, beta_end=0.5)), 4)
  kept, x_T = respace(fine, np.arange(37)), np.array([[1.3], [-0.4]], np.float32)

  def denoiser(x, t):
    return Prediction(0.1 * x)

  def run(schedule):
    return ancestral(schedule, denoiser, x_T, lambda t: jnp.ones((2, 1)), variance='fixedsmall')

  np.testing.assert_allclose(run(fine), run(kept), rtol=1e-5)
