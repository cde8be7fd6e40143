"""The forward process q, which adds noise (Eqs. 4, 6 and 7, Ho et al. 2020).

Shapes, here and in all of the mathematics: examples x are [B, ..., C], of any number of spatial
axes; t is int [B] in [0, T-1], and t = 0 means one step of noise (the paper's t = 1). Pictures are
scaled to [-1, 1]. Everything random is an argument.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.gaussians import LEVELS
from ddpm_jax.diffusion.schedules import NoiseSchedule


def scale_levels(values: jax.Array, levels: int | None = LEVELS) -> jax.Array:
  """Whole numbers 0, ..., levels - 1 -> float32 [-1, 1]; with None, x_0 as it is given."""
  if levels is None:
    return values.astype(jnp.float32)
  return values.astype(jnp.float32) / ((levels - 1) / 2) - 1.0


def extract(table: np.ndarray | jax.Array, t: jax.Array, like: jax.Array) -> jax.Array:
  """table[t] in the dtype of `like`, shaped [B, 1, ...] to broadcast against it."""
  values = jnp.asarray(table, like.dtype)[t]
  return values.reshape(t.shape + (1,) * (like.ndim - 1))


def mean_except_batch(x: jax.Array) -> jax.Array:
  """The mean of each example, [B]."""
  return x.reshape(x.shape[0], -1).mean(axis=-1)


def q_mean_variance(
  schedule: NoiseSchedule, x_start: jax.Array, t: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Mean, variance and log-variance of q(x_t | x_0) (Eq. 4).

  Returns:
    mean [B, ..., C]; variance and log_variance [B, 1, ...].
  """
  mean = extract(schedule.sqrt_alphas_cumprod, t, x_start) * x_start
  # Not 1 - alphas_cumprod, which cancels where the schedule's tables are float32 arguments.
  variance = jnp.square(extract(schedule.sqrt_one_minus_alphas_cumprod, t, x_start))
  log_variance = extract(schedule.log_one_minus_alphas_cumprod, t, x_start)
  return mean, variance, log_variance


def q_sample(
  schedule: NoiseSchedule, x_start: jax.Array, t: jax.Array, noise: jax.Array
) -> jax.Array:
  """x_t = sqrt(alphas_cumprod) x_0 + sqrt(1 - alphas_cumprod) noise (Eq. 4); noise ~ N(0, I)."""
  return (
    extract(schedule.sqrt_alphas_cumprod, t, x_start) * x_start
    + extract(schedule.sqrt_one_minus_alphas_cumprod, t, x_start) * noise
  )


def q_posterior_mean_variance(
  schedule: NoiseSchedule, x_start: jax.Array, x_t: jax.Array, t: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Mean, variance and clipped log-variance of q(x_{t-1} | x_t, x_0) (Eqs. 6-7).

  Returns:
    mean [B, ..., C]; variance and log_variance_clipped [B, 1, ...]. At t = 0 the variance is 0 and
    its log that of t = 1, so that it stays finite.
  """
  mean = (
    extract(schedule.posterior_mean_coef1, t, x_t) * x_start
    + extract(schedule.posterior_mean_coef2, t, x_t) * x_t
  )
  variance = extract(schedule.posterior_variance, t, x_t)
  log_variance_clipped = extract(schedule.posterior_log_variance_clipped, t, x_t)
  return mean, variance, log_variance_clipped
