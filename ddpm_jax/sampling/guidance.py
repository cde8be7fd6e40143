"""Guidance: functions around Denoisers, so that every sampler goes with each of them.

  classifier-free    guided(conditional, unconditional, scale): Ho & Salimans 2022, with
                     in_one_batch for both evaluations at once
  autoguidance       guided(denoiser, of a lesser model, scale): Karras et al. 2024
  by a classifier    classifier_guided(denoiser, log_prob, labels, scale): Dhariwal & Nichol 2021

A scale of 1 is the denoiser itself, and 0 the other one. x_0 is affine in the noise and in the
score given x_t: to guide it is to guide them. Clipping comes last: clipped(guided(...)).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.forward import extract
from ddpm_jax.diffusion.prediction import Denoiser, Prediction
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.errors import UserError

Both = Callable[[jax.Array, jax.Array], tuple[Prediction, Prediction]]
LogProb = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (x_t, t, labels) -> [B]

_LEAST_DEVIATION = 1e-12


def noise_levels(schedule: NoiseSchedule) -> np.ndarray:
  """sigma of each timestep, sqrt((1 - alphas_cumprod) / alphas_cumprod), float64 [T]."""
  return np.sqrt((1 - schedule.alphas_cumprod) / schedule.alphas_cumprod)


def check_interval(interval: tuple[float, float], field: str = 'sample.guidance_interval') -> None:
  """Raises a UserError for what is no interval of noise levels."""
  if len(interval) != 2 or not 0 <= interval[0] < interval[1]:
    raise UserError(
      f'{field} is {tuple(interval)}; it must be two noise levels, the lower one '
      'first, such as (0.3, 5.0)'
    )


def in_one_batch(
  denoiser_of: Callable[[jax.Array], Denoiser], labels: jax.Array, others: jax.Array
) -> Both:
  """(x_t, t) -> the predictions for two sets of labels, by one evaluation of twice the batch.

  Args:
    denoiser_of: labels int [B] -> Denoiser.
    labels, others: int [B].
  """
  denoiser = denoiser_of(jnp.concatenate([labels, others]))

  def both(x_t, t):
    predictions = denoiser(jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]))
    size = x_t.shape[0]
    first = jax.tree.map(lambda x: x[:size], predictions)
    return first, jax.tree.map(lambda x: x[size:], predictions)

  return both


def guided(
  denoiser: Denoiser,
  unconditional: Denoiser,
  scale: float | jax.Array,
  *,
  both: Both | None = None,
  schedule: NoiseSchedule | None = None,
  interval: tuple[float, float] | None = None,
  rescale: float = 0.0,
) -> Denoiser:
  """x_0 of one denoiser led away from that of another: u + scale (x_0 - u).

  A predicted mean is led alike, and a learned variance is the denoiser's own.

  Args:
    denoiser: such as of labels.
    unconditional: without labels, or of a lesser model.
    scale: 1 is the denoiser itself, and more leads further.
    both: (x_t, t) -> the predictions of the two, such as in_one_batch gives it; None to evaluate
      one after the other.
    schedule: NoiseSchedule, for an interval.
    interval: (low, high], noise levels sigma that are guided (Kynkaanniemi et al. 2024); at others
      the denoiser alone is evaluated. None for all.
    rescale: phi in [0, 1], how far the standard deviation of each example's x_0 is brought back to
      that of the denoiser's (Eqs. 15 and 16, Lin et al. 2023, who rescale the network's output).

  Raises:
    UserError: no interval; or a rescaled mean of a prediction of one step.
  """

  def evaluate(x_t, t):
    prediction, other = both(x_t, t) if both else (denoiser(x_t, t), unconditional(x_t, t))
    x_0 = _led(other.x_0, prediction.x_0, scale)
    if rescale:
      if prediction.mean is not None:
        raise UserError(
          'sample.guidance_rescale changes the predicted x_0, which a prediction of one step alone '
          'does not go through: leave it out'
        )
      ratio = _deviation(prediction.x_0) / jnp.maximum(_deviation(x_0), _LEAST_DEVIATION)
      x_0 = x_0 * (rescale * ratio + (1 - rescale))
    mean = None if prediction.mean is None else _led(other.mean, prediction.mean, scale)
    return prediction, prediction._replace(x_0=x_0, mean=mean)

  if interval is None:
    return lambda x_t, t: evaluate(x_t, t)[1]
  check_interval(interval)
  assert schedule is not None, 'an interval of noise levels needs the schedule'
  levels = noise_levels(schedule)
  is_guided = (interval[0] < levels) & (levels <= interval[1])

  def guided_denoiser(x_t, t):
    inside = jnp.asarray(is_guided)[t]

    def lead(_):
      prediction, led = evaluate(x_t, t)

      def choose(x, y):
        return jnp.where(inside.reshape(-1, *[1] * (x.ndim - 1)), x, y)

      return jax.tree.map(choose, led, prediction)

    # A chain has one t for all rows: one of the two is computed.
    return jax.lax.cond(inside.any(), lead, lambda _: denoiser(x_t, t), None)

  return guided_denoiser


def _led(away_from, x, scale):
  return away_from + scale * (x - away_from)


def _deviation(x):
  return jnp.std(x, axis=tuple(range(1, x.ndim)), keepdims=True)


def classifier_guided(
  denoiser: Denoiser,
  log_prob: LogProb,
  labels: jax.Array,
  scale: float | jax.Array,
  *,
  schedule: NoiseSchedule,
) -> Denoiser:
  """x_0 moved by the gradient of a classifier of noisy examples (Alg. 2, Dhariwal & Nichol 2021).

  The score of p(x_t) p(y | x_t)^scale: x_0 + scale (1 - alphas_cumprod) / sqrt(alphas_cumprod)
  times the gradient of log p(y | x_t) to x_t. A predicted mean is the posterior mean of that x_0.

  Args:
    denoiser: without labels, or with them.
    log_prob: (x_t, t, labels) -> log p(label | x_t) [B], row by row.
    labels: int [B].
    scale: 1 is Bayes' rule.
    schedule: NoiseSchedule.
  """
  alphas_cumprod = np.asarray(schedule.alphas_cumprod)
  steps = (1 - alphas_cumprod) / np.sqrt(alphas_cumprod)

  def guided_denoiser(x_t, t):
    gradient = jax.grad(lambda x: log_prob(x, t, labels).sum())(x_t)
    prediction = denoiser(x_t, t)
    step = scale * extract(steps, t, x_t) * gradient
    mean = prediction.mean
    if mean is not None:
      mean += extract(schedule.posterior_mean_coef1, t, x_t) * step
    return prediction._replace(x_0=prediction.x_0 + step, mean=mean)

  return guided_denoiser
