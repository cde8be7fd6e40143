"""Data and a model of which everything is known: levels of Gaussians, and exact predictions.

The four channels of a pixel are nearly the same: what they share is worth sending by the chain.
"""

import numpy as np

from ddpm_jax.diffusion import make_betas, make_schedule

SCHEDULE = make_schedule(make_betas('linear', 1000))
SHAPE, STD, SHARED, LEVELS = (4, 4, 4), 0.3, 0.99, 256
# Variances of a pixel's mean over channels, times their number, and of what differs.
OF_MEAN = STD**2 * (1 + (SHAPE[-1] - 1) * SHARED)
OF_REST = STD**2 * (1 - SHARED)


def examples(count, seed=0, levels=LEVELS):
  """uint8 or uint16 [count, *SHAPE]."""
  rng = np.random.default_rng(seed)
  common, own = rng.normal(size=(count, *SHAPE[:-1], 1)), rng.normal(size=(count, *SHAPE))
  values = STD * (np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * own)
  half = (levels - 1) / 2
  clipped = np.clip(np.rint((values + 1) * half), 0, levels - 1)
  return clipped.astype(np.uint8 if levels <= 256 else np.uint16)


def posterior_variance(t):
  """Of an element of x_0 given x_t."""
  noise_ratio = 1 / SCHEDULE.alphas_cumprod[t] - 1
  shares = (1, OF_MEAN), (SHAPE[-1] - 1, OF_REST)
  return sum(n * v * noise_ratio / (v + noise_ratio) for n, v in shares) / SHAPE[-1]


def information(t):
  """I(x_0; x_t) in bits."""
  snr = SCHEDULE.alphas_cumprod[t] / (1 - SCHEDULE.alphas_cumprod[t])
  shares = (1, OF_MEAN), (SHAPE[-1] - 1, OF_REST)
  return np.prod(SHAPE[:-1]) * sum(0.5 * n * np.log2(1 + snr * v) for n, v in shares)


def predict(x_t, t):
  """E[x_0 | x_t]."""
  a = SCHEDULE.alphas_cumprod[t]
  of_mean, of_rest = (np.sqrt(a) * v / (a * v + 1 - a) for v in (OF_MEAN, OF_REST))
  mean = x_t.mean(-1, keepdims=True)
  return (of_mean * mean + of_rest * (x_t - mean)).astype(np.float32)


def disturbed(noise, seed=0):
  """predict, as another machine has it: off by up to `noise`."""
  rng = np.random.default_rng(seed)
  return lambda x, t: predict(x, t) + np.float32(noise) * rng.choice([-1, 1], x.shape).astype('f4')
