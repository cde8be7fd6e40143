"""The decoder's likelihood (Eq. 13) as the original program has it, and how exact that is."""

import numpy as np

# The original subtracts two float32 CDFs near 1: its probabilities are exact to some units of 1,
# and their logarithms, where pixels are improbable, are wrong by up to 11 nats.
ORIGINAL_ERROR = 5e-7
FLOOR = np.longdouble(1e-12)


def pixel_probabilities(x, means, log_scales, levels=256):
  """The original's formula in 64 bits of mantissa, where its difference can be taken."""
  x, means, log_scales = (np.asarray(array, np.longdouble) for array in (x, means, log_scales))
  half_bin, inv_stdv = np.longdouble(1) / (levels - 1), np.exp(-log_scales)

  def cdf(z):
    return (1 + np.tanh(np.sqrt(2 / np.longdouble(np.pi)) * (z + 0.044715 * z**3))) / 2

  upper, lower = (cdf(inv_stdv * (x - means + shift)) for shift in (half_bin, -half_bin))
  return np.where(x < half_bin - 1, upper, np.where(x > 1 - half_bin, 1 - lower, upper - lower))


def log_likelihood(x, means, log_scales, levels=256):
  """Its logarithm, floored, float64."""
  mass = pixel_probabilities(x, means, log_scales, levels)
  return np.log(np.maximum(mass, FLOOR)).astype(np.float64)


def assert_decoder_bpd(bpd, original, x, means, log_scales):
  """Holds bits/dim [B] to the exact formula, and the original's to where its error can put it."""
  mass = pixel_probabilities(x, means, log_scales).reshape(len(x), -1)

  def mean_bpd(mass):
    return -np.log2(np.maximum(mass, FLOOR)).mean(axis=1).astype(np.float64)

  np.testing.assert_allclose(bpd, mean_bpd(mass), rtol=1e-5)
  assert (original > mean_bpd(mass + ORIGINAL_ERROR) * (1 - 1e-5)).all()
  assert (original < mean_bpd(mass - ORIGINAL_ERROR) * (1 + 1e-5)).all()
