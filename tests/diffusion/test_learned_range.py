"""A variance learned between the two fixed ones, and the hybrid loss that trains it alone."""

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
  training_losses,
)
from ddpm_jax.diffusion.prediction import MEANS
from tests.analytic import (
  gaussian_posterior_variances,
  mixture_network,
  network_from_eps,
  range_channels,
  true_output,
  with_log_variance,
)

MEAN, SCALE = 0.1, 0.25
SCHEDULE = make_schedule(make_betas('linear', 100, beta_end=0.2))


def exact_network(mean, variance):
  """Of Gaussian data, with the exact variance."""
  network = mixture_network(SCHEDULE, [1.0], [MEAN], [SCALE])
  log_variances = np.log(gaussian_posterior_variances(SCHEDULE, SCALE)[1])
  if variance == 'learned_range':
    log_variances = range_channels(SCHEDULE, log_variances)
  network = network_from_eps(mean, SCHEDULE, network)
  return with_log_variance(network, log_variances, mean, SCHEDULE)


def test_the_range_lies_between_the_fixed_variances(linear, example):
  _, noise, t, x_t = example
  parameterization = Parameterization('eps', 'learned_range')
  assert parameterization.fixed_variance is None
  small, middle, large = (
    np.asarray(
      parameterization.read(
        linear, np.concatenate([noise, np.full_like(noise, place)], -1), x_t, t
      ).log_variance
    )[:, 0, 0, 0]
    for place in (-1, 0, 1)
  )
  np.testing.assert_allclose(small, linear.posterior_log_variance_clipped[t], rtol=1e-6)
  np.testing.assert_allclose(large, np.log(linear.betas[t]), rtol=1e-6)
  np.testing.assert_allclose(middle, (small + large) / 2, rtol=1e-6)


@pytest.mark.parametrize('mean', MEANS)
def test_the_bound_is_that_of_the_same_variance_learned_as_it_is(mean):
  x_0 = jnp.clip(MEAN + SCALE * jax.random.normal(jax.random.key(0), (64, 16)), -1, 1)
  x_0 = jnp.round((x_0 + 1) * 127.5) / 127.5 - 1

  def noise_fn(t):
    return jax.random.normal(jax.random.fold_in(jax.random.key(1), t), x_0.shape)

  def bound(variance):
    network = exact_network(mean, variance)
    denoiser = make_denoiser(network, Parameterization(mean, variance), SCHEDULE)
    return jax.jit(lambda x: bpd_loop(SCHEDULE, denoiser, x, noise_fn, variance=None))(x_0)

  in_range, as_it_is = bound('learned_range'), bound('learned')
  np.testing.assert_allclose(in_range['vb'], as_it_is['vb'], rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(in_range['total_bpd'], as_it_is['total_bpd'], rtol=1e-4)


def gradient(example, parameterization, loss_type, weight=None):
  """Of the losses, by the network's output."""
  x_0, noise, t, x_t = example
  mean = true_output(parameterization.mean, LINEAR, x_0, noise, x_t, t) + 0.1
  output = jnp.concatenate([mean, jnp.full_like(mean, 0.3)], axis=-1)
  if loss_type == 'mse':  # which the variance has no part in
    parameterization = Parameterization(parameterization.mean)

  def loss(output):
    return training_losses(
      LINEAR,
      lambda x_t, t: output[..., : parameterization.channels(x_t.shape[-1])],
      x_0,
      t,
      noise,
      parameterization=parameterization,
      loss_type=loss_type,
      weight=weight,
    ).sum()

  return np.asarray(jax.grad(loss)(output))


LINEAR = make_schedule(make_betas('linear', 1000))


@pytest.mark.parametrize('variance', ['learned', 'learned_range'])
@pytest.mark.parametrize('mean', MEANS)
def test_the_hybrid_loss_trains_the_mean_as_mse_and_the_variance_as_the_bound(
  example, mean, variance
):
  parameterization = Parameterization(mean, variance)
  hybrid = gradient(example, parameterization, 'hybrid')
  channels = example[0].shape[-1]
  mse = gradient(example, parameterization, 'mse')
  np.testing.assert_array_equal(hybrid[..., :channels], mse[..., :channels])
  assert (mse[..., channels:] == 0).all()
  bound = gradient(example, parameterization, 'kl')[..., channels:]
  assert (np.abs(bound[1:]).max(axis=(1, 2, 3)) > 0).all()
  np.testing.assert_allclose(hybrid[..., channels:], 1e-3 * 1000 * bound, rtol=1e-5)


def test_a_weight_of_the_hybrid_loss_is_of_its_mse(example):
  parameterization, channels = Parameterization('eps', 'learned_range'), example[0].shape[-1]
  weighted, plain = (gradient(example, parameterization, 'hybrid', w) for w in ('min_snr', None))
  mse = gradient(example, parameterization, 'mse', 'min_snr')
  np.testing.assert_array_equal(weighted[..., :channels], mse[..., :channels])
  np.testing.assert_array_equal(weighted[..., channels:], plain[..., channels:])


def test_the_hybrid_loss_has_the_exact_variance_for_its_minimum():
  rng, count = np.random.default_rng(0), 40_000
  x_0 = np.float32(MEAN + SCALE * rng.standard_normal((count, 1)))
  t, noise = rng.integers(1, 100, count), np.float32(rng.standard_normal((count, 1)))
  exact = exact_network('eps', 'learned_range')
  # At large t a place in the range says little of the variance: places are weighted by its width.
  least, most = SCHEDULE.posterior_log_variance_clipped[1:], np.log(SCHEDULE.betas)[1:]
  width = jnp.asarray(np.append(0, most - least), jnp.float32)

  def losses(offset):
    def network(x_t, t):
      return exact(x_t, t) + jnp.array([[0.0, 1.0]]) * offset / width[t][:, None]

    choices = dict(parameterization=Parameterization('eps', 'learned_range'), loss_type='hybrid')
    return training_losses(SCHEDULE, network, x_0, t, noise, **choices)

  for at, is_minimum in ((0.0, True), (0.2, False), (-0.2, False)):
    slopes = np.asarray(jax.jvp(losses, (at,), (1.0,))[1], np.float64)
    assert (abs(slopes.mean()) < 5 * slopes.std() / np.sqrt(count)) == is_minimum, at
