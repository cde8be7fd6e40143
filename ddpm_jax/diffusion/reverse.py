"""The reverse process p(x_{t-1} | x_t), from what a denoiser predicts."""

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.forward import extract, q_posterior_mean_variance
from ddpm_jax.diffusion.prediction import Prediction
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.errors import UserError


def p_mean_variance(
  schedule: NoiseSchedule,
  prediction: Prediction,
  x_t: jax.Array,
  t: jax.Array,
  *,
  variance: str | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """p(x_{t-1} | x_t): the posterior (Eq. 7) of the predicted x_0, or the mean that is predicted.

  Args:
    schedule: NoiseSchedule.
    prediction: Prediction; its mean, where it has one, stays as it is, whatever was done to x_0.
    x_t: [B, ..., C].
    t: int [B].
    variance: 'fixedsmall' (posterior variance), 'fixedlarge' (beta_t; log posterior_variance[1] at
      t = 0, as in the original program), or None for the one that the prediction carries, or that
      follows from the variance of x_0 which it carries.

  Returns:
    (mean, variance, log_variance), each [B, ..., C].

  Raises:
    UserError: another variance, or None where the prediction carries none.
  """
  mean = prediction.mean
  if mean is None:
    mean, _, _ = q_posterior_mean_variance(schedule, prediction.x_0, x_t, t)
  if variance is None and prediction.x_0_variance is not None:
    # The law of total variance: of x_{t-1} given x_t and x_0, and of its mean.
    of_mean = jnp.square(extract(schedule.posterior_mean_coef1, t, x_t)) * prediction.x_0_variance
    total = extract(schedule.posterior_variance, t, x_t) + of_mean
    return mean, total, jnp.log(total)
  if variance is None:
    if prediction.log_variance is None:
      raise UserError(
        'the prediction carries no variance; it must be one of fixedsmall, fixedlarge'
      )
    return mean, jnp.exp(prediction.log_variance), prediction.log_variance
  tables = {
    'fixedsmall': (schedule.posterior_variance, schedule.posterior_log_variance_clipped),
    'fixedlarge': (schedule.betas, schedule.fixedlarge_log_variance),
  }
  if variance not in tables:
    raise UserError(f'variance is {variance!r}; it must be one of {", ".join(tables)}, or None')
  values, log_values = (
    jnp.broadcast_to(extract(table, t, x_t), x_t.shape) for table in tables[variance]
  )
  return mean, values, log_values


def p_sample(
  schedule: NoiseSchedule,
  prediction: Prediction,
  x_t: jax.Array,
  t: jax.Array,
  noise: jax.Array,
  *,
  variance: str | None,
) -> jax.Array:
  """One ancestral step, x_{t-1} ~ p(x_{t-1} | x_t) (Alg. 2, lines 3-4); no noise is added at t = 0.

  Args: as p_mean_variance, and noise ~ N(0, I) [B, ..., C].

  Returns:
    x_{t-1} [B, ..., C].
  """
  mean, _, log_variance = p_mean_variance(schedule, prediction, x_t, t, variance=variance)
  nonzero = (t != 0).astype(x_t.dtype).reshape(t.shape + (1,) * (x_t.ndim - 1))
  return mean + nonzero * jnp.exp(0.5 * log_variance) * noise
