"""KL and the discretised Gaussian against integrals, sums and the original program's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from ddpm_jax.diffusion import discretized_gaussian_log_likelihood, normal_kl
from ddpm_jax.diffusion.forward import scale_levels
from ddpm_jax.diffusion.gaussians import approx_standard_normal_log_cdf, normal_log_density
from tests.decoder import ORIGINAL_ERROR, log_likelihood

PIXELS = (np.arange(256) / 127.5 - 1).astype(np.float32)


@pytest.mark.parametrize(
  ('mean1', 'logvar1', 'mean2', 'logvar2'),
  [(0.0, 0.0, 0.0, 0.0), (0.3, -1.0, -0.5, 0.7), (0.0, 1.0, 0.2, -1.0), (2.0, -4.0, 2.0, 0.0)],
)
def test_normal_kl_is_the_integral_of_the_log_ratio(mean1, logvar1, mean2, logvar2):
  scale1, scale2 = np.exp(0.5 * logvar1), np.exp(0.5 * logvar2)
  z, dz = np.linspace(-12, 12, 100_001, retstep=True)
  x = mean1 + scale1 * z
  density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
  log_ratio = -0.5 * z**2 - 0.5 * logvar1 + 0.5 * ((x - mean2) / scale2) ** 2 + 0.5 * logvar2
  integral = np.sum(density * log_ratio) * dz
  assert normal_kl(mean1, logvar1, mean2, logvar2) == pytest.approx(integral, rel=1e-5, abs=1e-6)


def test_normal_kl_is_zero_only_for_equal_arguments():
  mean, logvar = jnp.meshgrid(jnp.linspace(-3, 3, 7), jnp.linspace(-9, 9, 7))
  np.testing.assert_array_equal(normal_kl(mean, logvar, mean, logvar), 0)
  assert (normal_kl(mean, logvar, mean + 0.1, logvar) > 0).all()
  assert (normal_kl(mean, logvar, mean, logvar + 0.1) > 0).all()


def test_normal_kl_equals_the_original_programs(reference, relative_error):
  arrays = reference('gaussian')
  inputs = (arrays[f'normal_kl/{name}'] for name in ('mean1', 'logvar1', 'mean2', 'logvar2'))
  assert relative_error(normal_kl(*inputs), arrays['normal_kl/kl']) < 1e-6


@pytest.mark.parametrize('log_scale', [-5.0, -3.0, -1.0, 0.0, 3.0])
@pytest.mark.parametrize('mean', [-3.0, -1.0, -0.3, 0.004, 1.0])
def test_discretized_likelihood_sums_to_one(mean, log_scale):
  # The bins' edges telescope, whatever the approximation of the CDF; the floor adds 256e-12.
  log_probs = discretized_gaussian_log_likelihood(PIXELS, means=mean, log_scales=log_scale)
  assert np.exp(np.asarray(log_probs, np.float64)).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize('log_scale', [-12.0, -7.0, -2.0, 1.0])
@pytest.mark.parametrize('mean', [-1.0, 0.004, 0.7])
@pytest.mark.parametrize('levels', [2, 16, 256, 4096, 65536])
def test_discretized_likelihood_of_any_levels_sums_to_one(levels, mean, log_scale):
  x = np.asarray(scale_levels(np.arange(levels), levels))
  log_probs = discretized_gaussian_log_likelihood(
    x, means=mean, log_scales=log_scale, levels=levels
  )
  assert np.exp(np.asarray(log_probs, np.float64)).sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize('levels', [2, 16, 4096, 65536])
def test_discretized_likelihood_of_any_levels_is_exact(levels):
  random = np.random.default_rng(0)
  x = np.asarray(scale_levels(random.integers(0, levels, 100_000), levels))
  log_scales = random.uniform(-11, 2, x.shape).astype(np.float32)
  means = (x + np.exp(log_scales) * random.uniform(-8, 8, x.shape)).astype(np.float32)
  actual = discretized_gaussian_log_likelihood(x, means=means, log_scales=log_scales, levels=levels)
  np.testing.assert_allclose(
    actual, log_likelihood(x, means, log_scales, levels), rtol=1e-5, atol=1e-6
  )


def test_density_is_the_normals():
  x, means = np.float32([-3, 0.2, 1.5]), np.float32([0.5, 0.1, -1])
  log_scales = np.float32([-2, 0, 3])
  np.testing.assert_allclose(
    normal_log_density(x, means=means, log_scales=log_scales),
    norm.logpdf(x, means, np.exp(log_scales)),
    rtol=1e-5,
  )


@pytest.mark.parametrize('log_scale', [-4.0, -2.0, 0.0])
def test_discretized_likelihood_is_the_mass_of_each_pixels_bin(log_scale):
  edges = np.concatenate([[-np.inf], (PIXELS[1:] + PIXELS[:-1]) / 2, [np.inf]])
  mass = np.diff(norm.cdf(edges, 0.1, np.exp(log_scale)))
  log_probs = discretized_gaussian_log_likelihood(PIXELS, means=0.1, log_scales=log_scale)
  slope_error = 3e-3  # of the approximate CDF, in units of the density at the mean
  np.testing.assert_allclose(np.exp(log_probs)[1:-1], mass[1:-1], atol=slope_error * mass.max())
  np.testing.assert_allclose(np.exp(log_probs)[[0, -1]], mass[[0, -1]], atol=5e-4)


def test_discretized_likelihood_is_exact_where_pixels_are_improbable():
  # Two float32 CDFs cancel there: their difference is wrong by up to 11 nats, and depends on the
  # order in which a compiler computes them.
  random = np.random.default_rng(0)
  x = PIXELS[random.integers(0, 256, 200_000)]
  log_scales = random.uniform(-7, 2, x.shape).astype(np.float32)
  means = (x + np.exp(log_scales) * random.uniform(-8, 8, x.shape)).astype(np.float32)
  actual = discretized_gaussian_log_likelihood(x, means=means, log_scales=log_scales)
  expected = log_likelihood(x, means, log_scales)
  assert (expected < -20).sum() > 10_000
  assert (expected > -1).sum() > 10_000
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_discretized_likelihood_is_floored():
  log_probs = discretized_gaussian_log_likelihood(PIXELS, means=1.0, log_scales=-6.0)
  assert log_probs.min() == pytest.approx(np.log(1e-12), rel=1e-6)


def test_discretized_likelihood_equals_the_original_programs(reference, relative_error):
  arrays = reference('gaussian')
  log_probs = discretized_gaussian_log_likelihood(
    arrays['dgll/x'], means=arrays['dgll/means'], log_scales=arrays['dgll/log_scales']
  )
  # Probabilities are differences of float32 numbers up to 1: good to a few of its units, and their
  # logarithms only where they are not small.
  expected = np.exp(arrays['dgll/log_probs'])
  np.testing.assert_allclose(np.exp(log_probs), expected, atol=ORIGINAL_ERROR)
  likely = expected > 1e-3
  assert relative_error(log_probs[likely], arrays['dgll/log_probs'][likely]) < 1e-5


@pytest.mark.parametrize('log_scale', [-50.0, -30.0, -7.0, 0.0, 30.0, 50.0])
def test_discretized_likelihood_has_a_finite_gradient(log_scale):
  def total(means, log_scales):
    return discretized_gaussian_log_likelihood(PIXELS, means=means, log_scales=log_scales).sum()

  for mean in (-1.0, 0.1, 2.0, float(PIXELS[100])):
    gradients = jax.grad(total, (0, 1))(jnp.full(256, mean), jnp.full(256, log_scale))
    assert jnp.isfinite(jnp.stack(gradients)).all()


def _approximate_cdf(x):
  return np.exp(np.asarray(approx_standard_normal_log_cdf(x), np.float64))


def test_approximate_cdf_is_near_the_normal_cdf():
  x = jnp.linspace(-20, 20, 4001)
  cdf = _approximate_cdf(x)
  np.testing.assert_allclose(cdf, norm.cdf(x), atol=3e-4)
  np.testing.assert_allclose(cdf + cdf[::-1], 1, atol=3e-6)
  assert cdf[0] < 1e-37
  assert cdf[-1] == 1


def test_approximate_cdf_equals_the_original_programs(reference, relative_error):
  arrays = reference('gaussian')
  cdf = _approximate_cdf(arrays['approx_cdf/x'])
  assert relative_error(cdf, arrays['approx_cdf/y']) < 1e-6
