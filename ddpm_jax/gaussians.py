"""Gaussian terms of the variational bound, elementwise and in nats."""

import jax.numpy as jnp

HALF_BIN = 1 / 255  # pixels are 2/255 apart in [-1, 1]
EDGE = 0.999  # beyond it lie the pixels 0 and 255, whose bins reach to infinity
MIN_PROBABILITY = 1e-12


def normal_kl(mean1, logvar1, mean2, logvar2):
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


def approx_standard_normal_cdf(x):
  """tanh approximation of the standard normal CDF, as the original program has it.

  Beyond 10 it is 0 or 1 to the last bit; clipping there keeps the cube, and with it the gradient,
  from overflowing.
  """
  x = jnp.clip(x, -10.0, 10.0)
  return 0.5 * (1.0 + jnp.tanh((2 / jnp.pi) ** 0.5 * (x + 0.044715 * x * x * x)))


def discretized_gaussian_log_likelihood(x, *, means, log_scales):
  """Log-likelihood of pixels under a Gaussian integrated over each pixel's bin (Eq. 13).

  Bins are 2/255 wide around x; those of the pixels -1 and 1 extend to infinity. Probabilities are
  floored at 1e-12, as in the original program.

  Args:
    x: pixels in [-1, 1], of the 256 levels.
    means: the Gaussian's means, of a shape that broadcasts with x.
    log_scales: logarithm of its standard deviations (half its log-variance), likewise.

  Returns:
    Log-probabilities, elementwise, in nats.
  """
  centered = x - means
  inv_stdv = jnp.exp(-log_scales)
  cdf_plus = approx_standard_normal_cdf(inv_stdv * (centered + HALF_BIN))
  cdf_min = approx_standard_normal_cdf(inv_stdv * (centered - HALF_BIN))
  probability = jnp.where(
    x < -EDGE, cdf_plus, jnp.where(x > EDGE, 1.0 - cdf_min, cdf_plus - cdf_min)
  )
  return jnp.log(jnp.maximum(probability, MIN_PROBABILITY))
