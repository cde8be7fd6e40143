"""Data and a model of which everything is known: levels of Gaussians, and exact predictions.

Each element is nearly the same as three others: what they share is worth sending by the chain. They
lie anywhere, so that the errors of neighbours tell nothing.
"""

import numpy as np

from ddpm_jax.diffusion import make_betas, make_schedule

SCHEDULE = make_schedule(make_betas('linear', 1000))
SHAPE, ALIKE, STD, SHARED, LEVELS = (4, 4, 4), 4, 0.3, 0.99, 256
SIZE = int(np.prod(SHAPE))
PLACES = np.random.default_rng(0).permutation(SIZE)  # of the elements, those alike side by side
# Variances of the mean of those alike, times their number, and of what differs.
OF_MEAN = STD**2 * (1 + (ALIKE - 1) * SHARED)
OF_REST = STD**2 * (1 - SHARED)


def scattered(groups):
  """Examples [N, *SHAPE] of their groups of elements alike [N, SIZE / ALIKE, ALIKE]."""
  found = np.empty((len(groups), SIZE), groups.dtype)
  found[:, PLACES] = groups.reshape(len(groups), -1)
  return found.reshape(-1, *SHAPE)


def examples(count, seed=0, levels=LEVELS):
  """uint8 or uint16 [count, *SHAPE]."""
  rng = np.random.default_rng(seed)
  parts = SIZE // ALIKE, ALIKE
  common, own = rng.normal(size=(count, *parts[:1], 1)), rng.normal(size=(count, *parts))
  values = scattered(STD * (np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * own))
  half = (levels - 1) / 2
  clipped = np.clip(np.rint((values + 1) * half), 0, levels - 1)
  return clipped.astype(np.uint8 if levels <= 256 else np.uint16)


def posterior_variance(t):
  """Of an element of x_0 given x_t."""
  noise_ratio = 1 / SCHEDULE.alphas_cumprod[t] - 1
  shares = (1, OF_MEAN), (ALIKE - 1, OF_REST)
  return sum(n * v * noise_ratio / (v + noise_ratio) for n, v in shares) / ALIKE


def information(t):
  """I(x_0; x_t) in bits."""
  snr = SCHEDULE.alphas_cumprod[t] / (1 - SCHEDULE.alphas_cumprod[t])
  shares = (1, OF_MEAN), (ALIKE - 1, OF_REST)
  return SIZE // ALIKE * sum(0.5 * n * np.log2(1 + snr * v) for n, v in shares)


def predict(x_t, t):
  """E[x_0 | x_t]."""
  a = SCHEDULE.alphas_cumprod[t]
  of_mean, of_rest = (np.sqrt(a) * v / (a * v + 1 - a) for v in (OF_MEAN, OF_REST))
  groups = x_t.reshape(len(x_t), SIZE)[:, PLACES].reshape(len(x_t), -1, ALIKE)
  mean = groups.mean(-1, keepdims=True)
  return scattered((of_mean * mean + of_rest * (groups - mean)).astype(np.float32))


def disturbed(noise, seed=0):
  """predict, as another machine has it: off by up to `noise`."""
  rng = np.random.default_rng(seed)
  return lambda x, t: predict(x, t) + np.float32(noise) * rng.choice([-1, 1], x.shape).astype('f4')
