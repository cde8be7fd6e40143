"""How the t of training is drawn, each way unbiased for a loss that is the mean over all t.

A t drawn with probability p_t counts 1 / (T p_t) times, so that the objective is that of a uniform
t: what changes is the variance of the gradient.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from ddpm_jax.diffusion.schedules import NoiseSchedule

# Of log sigma, for data of deviation 0.5 (Table 1, Karras et al. 2022).
LOGNORMAL_MEAN, LOGNORMAL_STD = -1.2, 1.2
LOGNORMAL_UNIFORM = 0.1  # part of the draws that are uniform: none counts more than 10 times
HISTORY = 10  # losses kept of each t (Nichol & Dhariwal 2021)
LOSS_UNIFORM = 1e-3  # part of the draws that are uniform, likewise

# How t is drawn.
DRAWS = ('uniform', 'stratified', 'loss', 'lognormal')


def lognormal_density(schedule: NoiseSchedule, sigma_data: float = 0.5) -> jax.Array:
  """T times the probability of each t where log sigma is normal (Table 1, Karras et al. 2022).

  Each t has the stretch of log sigma halfway to its neighbours, and those at the ends the tails.

  Args:
    schedule: NoiseSchedule.
    sigma_data: deviation of x_0, with which the noise grows.

  Returns:
    [T], of mean 1.
  """
  dtype = jnp.result_type(float)
  signal, noise = (
    jnp.asarray(table, dtype)
    for table in (schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod)
  )
  log_sigma = jnp.log(noise) - jnp.log(signal)  # infinite at a last beta of 1
  end = jnp.full(1, jnp.inf, dtype)
  edges = jnp.concatenate([-end, (log_sigma[1:] + log_sigma[:-1]) / 2, end])
  mean = LOGNORMAL_MEAN + math.log(sigma_data / 0.5)
  return schedule.num_timesteps * jnp.diff(norm.cdf((edges - mean) / LOGNORMAL_STD))


def lognormal_chances(schedule: NoiseSchedule, sigma_data: float = 0.5) -> jax.Array:
  """The probability of each t where log sigma is normal, mixed with a few uniform draws: [T]."""
  density = (1 - LOGNORMAL_UNIFORM) * lognormal_density(schedule, sigma_data) + LOGNORMAL_UNIFORM
  return density / schedule.num_timesteps


def stratified(
  uniforms: jax.Array, rows: jax.Array, batch_size: int, num_timesteps: int
) -> jax.Array:
  """One t of each of as many equal parts of [0, T) as the batch has rows; the batch is unbiased.

  Args:
    uniforms: U(0, 1) [B].
    rows: int [B], of the examples in the whole batch.
    batch_size: rows of the whole batch.
    num_timesteps: T.

  Returns:
    t int32 [B].
  """
  t = (rows + uniforms) / batch_size * num_timesteps
  return jnp.minimum(t.astype(jnp.int32), num_timesteps - 1)


def drawn(chances: jax.Array, uniforms: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Draws t with given probabilities.

  Args:
    chances: [T], of sum 1.
    uniforms: U(0, 1) [B].

  Returns:
    (t int32 [B], how often each loss counts, 1 / (T p_t), [B]).
  """
  below = jnp.cumsum(chances)
  t = jnp.searchsorted(below, uniforms * below[-1], side='right')
  t = jnp.minimum(t, len(chances) - 1).astype(jnp.int32)
  return t, 1 / (len(chances) * chances[t])


class LossHistory(NamedTuple):
  """The squares of the last losses at each t, of improved DDPM's sampling by loss.

  Attributes:
    squares: float32 [T, HISTORY], in no order.
    counts: int32 [T], losses seen.
  """

  squares: jax.Array
  counts: jax.Array


def no_losses(num_timesteps: int) -> LossHistory:
  """The LossHistory before training."""
  return LossHistory(
    jnp.zeros((num_timesteps, HISTORY), jnp.float32), jnp.zeros(num_timesteps, jnp.int32)
  )


def loss_chances(history: LossHistory) -> jax.Array:
  """p_t ~ sqrt(E[L_t^2]) over the last losses (Eq. 18, Nichol & Dhariwal 2021), [T].

  Uniform until each t has had HISTORY losses, and mixed with a few uniform draws.
  """
  num_timesteps = len(history.counts)
  size = jnp.sqrt(history.squares.mean(axis=1))
  is_full = (history.counts >= HISTORY).all() & (size.sum() > 0)
  chances = jnp.where(is_full, size / jnp.where(is_full, size.sum(), 1.0), 1 / num_timesteps)
  return (1 - LOSS_UNIFORM) * chances + LOSS_UNIFORM / num_timesteps


def with_losses(history: LossHistory, t: jax.Array, losses: jax.Array) -> LossHistory:
  """The history with the losses of a batch, which take the place of the oldest.

  Args:
    history: LossHistory.
    t: int [B].
    losses: [B], before they are weighted by 1 / (T p_t).
  """
  rows = jnp.arange(len(t))
  same = t[:, None] == t[None]
  earlier = (same & (rows[:, None] > rows[None])).sum(axis=1)
  later = (same & (rows[:, None] < rows[None])).sum(axis=1)
  # Of more than HISTORY losses at one t, the last count: places that are written are all different.
  place = jnp.where(later < HISTORY, (history.counts[t] + earlier) % HISTORY, HISTORY)
  return LossHistory(
    history.squares.at[t, place].set(jnp.square(losses).astype(jnp.float32), mode='drop'),
    history.counts.at[t].add(1),
  )
