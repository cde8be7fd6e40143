"""Gaussian terms of the variational bound, elementwise and in nats."""

import math

import jax
import jax.numpy as jnp

LEVELS = 256  # of pictures, and where nothing else is said
MIN_PROBABILITY = 1e-12
CDF_SLOPE = math.sqrt(2 / math.pi)
CDF_CUBE = 0.044715
CDF_RANGE = 10.0
LEAST_DIFFERENCE = 1e-30  # its logarithm is finite, and far below the floor


def normal_kl(
  mean1: jax.Array, logvar1: jax.Array, mean2: jax.Array | float, logvar2: jax.Array | float
) -> jax.Array:
  """KL(N(mean1, exp(logvar1)) || N(mean2, exp(logvar2))), elementwise, in nats.

  Args:
    mean1, logvar1, mean2, logvar2: arrays or scalars of shapes that broadcast together.

  Returns:
    The divergence, of the common shape.
  """
  return 0.5 * (
    -1.0
    + logvar2
    - logvar1
    + jnp.exp(logvar1 - logvar2)
    + jnp.square(mean1 - mean2) * jnp.exp(-logvar2)
  )


def levels_of(given: int | str | None) -> int | None:
  """What data.levels says: a number, LEVELS where it is None; None for values of any kind."""
  return LEVELS if given is None else given if isinstance(given, int) else None


def normal_log_density(x: jax.Array, *, means: jax.Array, log_scales: jax.Array) -> jax.Array:
  """Logarithm of the density of a Gaussian at x, elementwise, in nats.

  Args:
    x, means, log_scales: as discretized_gaussian_log_likelihood, x of any values.
  """
  z = (x - means) * jnp.exp(-log_scales)
  return -0.5 * (jnp.square(z) + math.log(2 * math.pi)) - log_scales


def _tanh_argument(x):
  """z of the tanh approximation of the standard normal CDF, (1 + tanh z) / 2."""
  return CDF_SLOPE * (x + CDF_CUBE * x * x * x)


def _clip_to_range(x):
  # Beyond it the CDF is 0 or 1 to the last bit; clipping keeps the cube, and with it the gradient,
  # from overflowing.
  return jnp.clip(x, -CDF_RANGE, CDF_RANGE)


def approx_standard_normal_log_cdf(x: jax.Array) -> jax.Array:
  """Logarithm of the tanh approximation of the standard normal CDF, the original program's."""
  return jax.nn.log_sigmoid(2 * _tanh_argument(_clip_to_range(x)))


def discretized_gaussian_log_likelihood(
  x: jax.Array, *, means: jax.Array, log_scales: jax.Array, levels: int = LEVELS
) -> jax.Array:
  """Log-likelihood of pixels under a Gaussian integrated over each pixel's bin (Eq. 13).

  Bins are 2/(levels - 1) wide around x; those of -1 and 1 extend to infinity. The normal CDF is
  the original program's tanh approximation, and probabilities are floored at 1e-12 as there. The
  original subtracts two CDFs, which cancel where a pixel is improbable; here the same difference is
  (tanh a - tanh b) / 2 = sinh(a - b) / (2 cosh a cosh b), whose logarithm is taken factor by
  factor.

  Args:
    x: values in [-1, 1], each one of the levels, which are evenly spaced.
    means: the Gaussian's means, of a shape that broadcasts with x.
    log_scales: logarithm of its standard deviations (half its log-variance), likewise.
    levels: how many there are, at least 2.

  Returns:
    Log-probabilities, elementwise, in nats.
  """
  half_bin = 1 / (levels - 1)
  centered = x - means
  inv_stdv = jnp.exp(-log_scales)
  upper = inv_stdv * (centered + half_bin)
  lower = inv_stdv * (centered - half_bin)
  upper_in, lower_in = _clip_to_range(upper), _clip_to_range(lower)
  is_inside = (jnp.abs(upper) < CDF_RANGE) & (jnp.abs(lower) < CDF_RANGE)
  width = jnp.where(is_inside, 2 * half_bin * inv_stdv, upper_in - lower_in)
  a, b = _tanh_argument(upper_in), _tanh_argument(lower_in)
  # a - b, without the difference of the cubes.
  squares = upper_in * upper_in + upper_in * lower_in + lower_in * lower_in
  difference = jnp.maximum(CDF_SLOPE * width * (1 + CDF_CUBE * squares), LEAST_DIFFERENCE)
  log_probability = (
    -2 * jnp.maximum(jnp.maximum(b, -a), 0)
    + jnp.log(-jnp.expm1(-2 * difference))
    - jnp.log1p(jnp.exp(-2 * jnp.abs(a)))
    - jnp.log1p(jnp.exp(-2 * jnp.abs(b)))
  )
  log_probability = jnp.where(
    x < half_bin - 1,  # the first level
    approx_standard_normal_log_cdf(upper),
    jnp.where(x > 1 - half_bin, approx_standard_normal_log_cdf(-lower), log_probability),
  )
  return jnp.maximum(log_probability, math.log(MIN_PROBABILITY))
