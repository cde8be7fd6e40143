"""The flow's likelihood: against exact densities, and Hutchinson's estimate against the trace."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import (
  Parameterization,
  Prediction,
  make_betas,
  make_denoiser,
  make_schedule,
  refined,
  timestep_subsequence,
)
from ddpm_jax.diffusion.flow import dequantised, flow_terms
from ddpm_jax.errors import UserError
from tests.analytic import MIXTURE, mixture_network

SCHEDULE = make_schedule(make_betas('linear', 1000))
COVARIANCE = np.array([[0.25, 0.15], [0.15, 0.16]])


def run(terms):
  return jax.jit(lambda start: jax.lax.fori_loop(0, terms.num_terms, terms.step, start))(
    terms.start
  )


def even(schedule, num_steps):
  """The timesteps of so many steps, evenly in log-SNR to the end."""
  found = timestep_subsequence(schedule, num_steps + 1, 'logsnr')
  return np.append(found[:-1], schedule.num_timesteps - 1)


def gaussian_denoiser(schedule):
  """Of x_0 ~ N(0, COVARIANCE), two elements."""
  signal = schedule.alphas_cumprod[:, None, None]
  total = signal * COVARIANCE + (1 - signal) * np.eye(2)
  gain = jnp.asarray(np.sqrt(signal) * COVARIANCE @ np.linalg.inv(total))
  return lambda x, t: Prediction(jnp.einsum('bij,bj->bi', gain[t].astype(x.dtype), x))


@pytest.mark.usefixtures('float64')
def test_density_of_gaussian_data_is_exact_with_order_2():
  fine = refined(SCHEDULE, 16)
  x = jnp.asarray(np.random.default_rng(0).multivariate_normal(np.zeros(2), COVARIANCE, 20))
  least = (1 - fine.alphas_cumprod[0]) / fine.alphas_cumprod[0]
  covariance = COVARIANCE + least * np.eye(2)
  squares = np.einsum('bi,ij,bj->b', x, np.linalg.inv(covariance), x)
  log_density = -0.5 * (squares + np.linalg.slogdet(2 * np.pi * covariance)[1])
  errors, counts = [], np.array([25, 50, 100])
  for count in counts:
    terms = flow_terms(fine, gaussian_denoiser(fine), x, even(fine, count), levels=None)
    found = -run(terms)['total_bpd'] * 2 * np.log(2)
    errors.append(np.abs(found - log_density).mean())
  assert errors[-1] < 3e-3
  assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(2, abs=0.4)


@pytest.mark.usefixtures('float64')
def test_density_of_a_mixture_is_exact_and_sums_to_one():
  network = mixture_network(SCHEDULE, **MIXTURE)
  denoiser = make_denoiser(network, Parameterization('eps'), SCHEDULE)
  x = np.linspace(-2.5, 2.0, 91)
  terms = flow_terms(
    SCHEDULE, denoiser, jnp.asarray(x[:, None, None]), even(SCHEDULE, 150), levels=None
  )
  density = 2 ** -np.asarray(run(terms)['total_bpd'])
  variances = np.square(MIXTURE['stds']) + 1e-4
  exact = sum(
    w / np.sqrt(2 * np.pi * v) * np.exp(-((x - m) ** 2) / (2 * v))
    for w, m, v in zip(MIXTURE['weights'], MIXTURE['means'], variances, strict=True)
  )
  np.testing.assert_allclose(density, exact, atol=4e-3)
  assert density.sum() * (x[1] - x[0]) == pytest.approx(1, abs=2e-3)


def test_hutchinsons_estimate_is_unbiased_and_exact_for_what_is_diagonal():
  x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 2)), jnp.float32)
  denoiser, timesteps = gaussian_denoiser(SCHEDULE), even(SCHEDULE, 20)
  exact = run(flow_terms(SCHEDULE, denoiser, x, timesteps, levels=None))
  signs = np.array([[1, 1], [1, -1]], np.float32)  # all there are, up to their sign
  probes = jnp.asarray(np.broadcast_to(signs[:, None], (2, 3, 2)))
  found = run(flow_terms(SCHEDULE, denoiser, x, timesteps, probes, levels=None))
  assert found['traces'].shape == (3, 2)
  assert np.abs(found['traces'][:, 0] - found['traces'][:, 1]).min() > 0.1
  np.testing.assert_allclose(found['traces'].mean(1), exact['traces'][:, 0], rtol=1e-5)
  np.testing.assert_allclose(found['total_bpd'], exact['total_bpd'], rtol=1e-5)


def test_levels_count_by_their_width():
  x = jnp.zeros((1, 2, 1))
  half = jnp.full(x.shape, 0.5)
  np.testing.assert_array_equal(dequantised(x, half, 16), x)
  np.testing.assert_allclose(dequantised(x, half * 0, 16), -1 / 15)
  np.testing.assert_array_equal(dequantised(x, half * 0, None), x)
  network = mixture_network(SCHEDULE, **MIXTURE)
  denoiser = make_denoiser(network, Parameterization('eps'), SCHEDULE)
  timesteps = even(SCHEDULE, 20)
  density, levels = (
    run(flow_terms(SCHEDULE, denoiser, x, timesteps, levels=levels))['total_bpd']
    for levels in (None, 256)
  )
  np.testing.assert_allclose(levels - density, np.log2(255 / 2), rtol=1e-5)


def test_flows_that_cannot_be_are_refused():
  with pytest.raises(UserError, match='two timesteps or more'):
    flow_terms(SCHEDULE, None, jnp.zeros((1, 2)), [0])
  zero = make_schedule(make_betas('linear_zero_snr', 20))
  with pytest.raises(UserError, match='at all of which some signal is left'):
    flow_terms(zero, None, jnp.zeros((1, 2)), [0, 19])
