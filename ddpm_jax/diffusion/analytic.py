"""The analytic variance of a step, estimated from a model that predicts none (Bao et al. 2022).

The best variance of one number for all pixels follows from E[|eps|^2] of the predicted noise: the
less of the noise a model finds in x_t, the more is open of x_0. It costs no training.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.forward import extract, mean_except_batch, q_sample
from ddpm_jax.diffusion.prediction import Denoiser
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.errors import UserError

MIN_VARIANCE = 1e-12  # of x_0; that of an estimate may be below 0


def mean_square_eps(
  schedule: NoiseSchedule,
  denoiser: Denoiser,
  x_0: jax.Array,
  noise_fn: Callable[[jax.Array], jax.Array],
) -> jax.Array:
  """The mean square of the noise that is predicted from x_t, an example and a t each.

  Args:
    schedule: NoiseSchedule.
    denoiser: Denoiser, not clipped.
    x_0: [B, ..., C].
    noise_fn: t (int scalar) -> noise ~ N(0, I), [B, ..., C].

  Returns:
    [B, T].
  """

  def at(t):
    steps = jnp.full(x_0.shape[:1], t, jnp.int32)
    x_t = q_sample(schedule, x_0, steps, noise_fn(t))
    signal = extract(schedule.sqrt_alphas_cumprod, steps, x_t)
    noise = extract(schedule.sqrt_one_minus_alphas_cumprod, steps, x_t)
    return mean_except_batch(jnp.square((x_t - signal * denoiser(x_t, steps).x_0) / noise))

  return jax.lax.map(at, jnp.arange(schedule.num_timesteps)).T


def x_0_variances(schedule: NoiseSchedule, mean_squares: np.ndarray) -> np.ndarray:
  """The mean variance of a pixel of x_0 given x_t: (1 / alphas_cumprod - 1) (1 - E[eps^2]).

  Theorem 1, Bao et al. 2022, in which it is bounded as here: data in [-1, 1] have at most 1.

  Args:
    schedule: NoiseSchedule, of NumPy tables.
    mean_squares: [T], the mean over the data of mean_square_eps.

  Returns:
    float64 [T].

  Raises:
    UserError: other timesteps than the schedule's.
  """
  mean_squares = np.asarray(mean_squares, np.float64)
  if mean_squares.shape != (schedule.num_timesteps,):
    raise UserError(
      f'the analytic variance has the shape {mean_squares.shape}, and the schedule '
      f'{schedule.num_timesteps} timesteps: estimate it for this schedule'
    )
  with np.errstate(divide='ignore', invalid='ignore'):
    variances = np.square(schedule.sqrt_recipm1_alphas_cumprod) * (1 - mean_squares)
  return np.clip(np.nan_to_num(variances, nan=1.0), MIN_VARIANCE, 1.0)


def with_analytic_variance(denoiser: Denoiser, variances: np.ndarray) -> Denoiser:
  """The denoiser with the analytic variance of x_0; that of a step of any length follows from it.

  With it, the variance of p(x_{t-1} | x_t) is None for the bound and for ancestral sampling.

  Args:
    denoiser: Denoiser, of a prediction of x_0.
    variances: [T], as x_0_variances.
  """

  def with_variance(x_t, t):
    of_x_0 = jnp.broadcast_to(extract(variances, t, x_t), x_t.shape)
    return denoiser(x_t, t)._replace(log_variance=None, x_0_variance=of_x_0)

  return with_variance
