"""Ancestral sampling (Alg. 2, Ho et al. 2020), of the whole chain or of one on fewer timesteps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.prediction import Denoiser, Prediction
from ddpm_jax.diffusion.reverse import p_sample
from ddpm_jax.diffusion.schedules import NoiseSchedule, check_timesteps, respace


class ChainState(NamedTuple):
  """Where a chain stands.

  Attributes:
    x: [B, ..., C], the state; x_0 after the last step.
    predictions: tuple of [B, ..., C], the x_0 predicted by the last evaluations, newest first.
    memory: what else the next step takes.
  """

  x: jax.Array
  predictions: tuple[jax.Array, ...]
  memory: Any = ()


class Chain(NamedTuple):
  """A sampler taken apart, so that a chain can be watched, and left between two steps.

  Attributes:
    num_steps: evaluations of the network, S or, for heun, 2 S - 1.
    timesteps: int64 [num_steps], of the evaluations.
    start: x_T -> ChainState.
    step: (i, ChainState) -> ChainState: evaluation i, from the noisiest on.
  """

  num_steps: int
  timesteps: np.ndarray
  start: Callable[[jax.Array], ChainState]
  step: Callable[[jax.Array, ChainState], ChainState]


def all_if_none(schedule: NoiseSchedule, timesteps: np.ndarray | None) -> np.ndarray:
  """The timesteps as int64 [S], checked; None is all T."""
  if timesteps is None:
    return np.arange(schedule.num_timesteps)
  return check_timesteps(schedule, timesteps)


def _lengthened(schedule, kept, prediction, t, row):
  """A prediction for a step of the respaced chain; row is its timestep, t that of the whole one.

  A learned variance is that of a step of the whole chain. It exceeds the posterior variance by
  posterior_mean_coef1^2 Var(x_0 | x_t), from which the variance of the longer step follows by the
  same formula; Var(x_0 | x_t) lies in [0, 1], as data do in [-1, 1]. A predicted mean is of one
  step alone. t and row are scalars, or [B].
  """
  if prediction.log_variance is None:
    return Prediction(prediction.x_0, x_0_variance=prediction.x_0_variance)
  variance = jnp.exp(prediction.log_variance)

  def entry(table, index):
    values = jnp.asarray(table, variance.dtype)[index]
    return values.reshape(values.shape + (1,) * (variance.ndim - 1)) if values.ndim else values

  excess = variance - entry(schedule.posterior_variance, t)
  x_0_variance = jnp.clip(excess / entry(schedule.posterior_mean_coef1, t) ** 2, 0.0, 1.0)
  longer = entry(kept.posterior_mean_coef1, row) ** 2 * x_0_variance
  return Prediction(prediction.x_0, jnp.log(entry(kept.posterior_variance, row) + longer))


def respaced(
  schedule: NoiseSchedule, denoiser: Denoiser, timesteps: np.ndarray
) -> tuple[NoiseSchedule, Denoiser]:
  """The chain on fewer timesteps, whole in itself: its schedule, and the denoiser of its timesteps.

  The bound of few steps is bpd_loop's of these two.

  Args:
    schedule: NoiseSchedule, of NumPy tables.
    denoiser: Denoiser of the whole chain, which predicts no single step of it.
    timesteps: increasing ints [S].
  """
  timesteps = check_timesteps(schedule, timesteps)
  kept = respace(schedule, timesteps)

  def respaced_denoiser(x_t, rows):
    t = jnp.asarray(timesteps, jnp.int32)[rows]
    return _lengthened(schedule, kept, denoiser(x_t, t), t, rows)

  return kept, respaced_denoiser


def make_reverse_step(
  schedule: NoiseSchedule,
  denoiser: Denoiser,
  noise_fn: Callable[[jax.Array], jax.Array],
  timesteps: np.ndarray,
  variance: str | None,
) -> Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
  """(i, x_t) -> (t, x at the next kept timestep, predicted x_0): step i, from the noisiest on.

  The timesteps 0, ..., n - 1 are steps of the whole chain, of which they are the last.
  """
  is_whole = schedule.times is None and np.array_equal(timesteps, np.arange(len(timesteps)))
  kept = schedule if is_whole else respace(schedule, timesteps)

  def reverse_step(i, x_t):
    row = len(timesteps) - 1 - i
    t = row if is_whole else jnp.asarray(timesteps, jnp.int32)[row]
    prediction = denoiser(x_t, jnp.full(x_t.shape[:1], t, jnp.int32))
    if not is_whole:
      prediction = _lengthened(schedule, kept, prediction, t, row)
    rows = jnp.full(x_t.shape[:1], row, jnp.int32)
    x_prev = p_sample(kept, prediction, x_t, rows, noise_fn(t), variance=variance)
    return t, x_prev, prediction.x_0

  return reverse_step


def ancestral(
  schedule: NoiseSchedule,
  denoiser: Denoiser,
  x_T: jax.Array,
  noise_fn: Callable[[jax.Array], jax.Array],
  timesteps: np.ndarray | None = None,
  *,
  variance: str | None,
  trajectory: bool = False,
  num_steps: int | jax.Array | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
  """Ancestral sampling, Alg. 2: x_{t-1} ~ p(x_{t-1} | x_t) for t = T-1, ..., 0.

  On fewer timesteps the chain is that of the betas re-derived for them (schedules.respace). The
  last step adds no noise, and what it returns is not clipped: with a clipped denoiser, as in the
  original program, the predicted x_0 within a step is. One evaluation of the network a step.

  Args:
    schedule: NoiseSchedule, of NumPy tables.
    denoiser: Denoiser.
    x_T: [B, ..., C] ~ N(0, I).
    noise_fn: t (int scalar) -> noise ~ N(0, I) [B, ..., C] for the step at time t.
    timesteps: increasing ints [S] to evaluate the network at, such as
      schedules.timestep_subsequence gives; None for all T.
    variance: of a step, as p_mean_variance.
    trajectory: whether to return all states, too.
    num_steps: n in [0, S], an int or an int scalar array: only the last n steps are taken, and x_T
      is then the state they start from (for all T, x_{n-1}, noised n times: Sec. 4.4). None for all
      of them, as a trajectory needs.

  Returns:
    x_0 [B, ..., C]; or with a trajectory (x_0, states [B, S, ..., C]), the states after each step,
    of which the last is x_0.
  """
  timesteps = all_if_none(schedule, timesteps)
  total = len(timesteps)
  reverse_step = make_reverse_step(schedule, denoiser, noise_fn, timesteps, variance)
  if trajectory:
    assert num_steps is None
    x_0, states = jax.lax.scan(
      lambda x_t, i: (reverse_step(i, x_t)[1],) * 2, x_T, jnp.arange(total)
    )
    return x_0, jnp.moveaxis(states, 0, 1)
  first = 0 if num_steps is None else total - num_steps
  return jax.lax.fori_loop(first, total, lambda i, x_t: reverse_step(i, x_t)[1], x_T)


def ancestral_chain(
  schedule: NoiseSchedule,
  denoiser: Denoiser,
  noise_fn: Callable[[jax.Array], jax.Array],
  timesteps: np.ndarray | None = None,
  *,
  variance: str | None,
) -> Chain:
  """The Chain of `ancestral`, and Args as there."""
  timesteps = all_if_none(schedule, timesteps)
  reverse_step = make_reverse_step(schedule, denoiser, noise_fn, timesteps, variance)

  def step(i, state):
    _, x, x_0 = reverse_step(i, state.x)
    return ChainState(x, (x_0,))

  return Chain(
    len(timesteps), timesteps[::-1], lambda x_T: ChainState(x_T, (jnp.zeros_like(x_T),)), step
  )


def ancestral_progressive(
  schedule: NoiseSchedule,
  denoiser: Denoiser,
  x_T: jax.Array,
  noise_fn: Callable[[jax.Array], jax.Array],
  *,
  variance: str | None,
  every_steps: int,
) -> tuple[jax.Array, jax.Array]:
  """Ancestral sampling that also keeps the x_0 predictions (Fig. 6; Sec. 4.3).

  Args: as `ancestral`, and every_steps: k, at least 1.

  Returns:
    (x_0 [B, ..., C], predictions [B, T // k, ..., C]); slot j holds the prediction made at t = j k,
    so slot 0 is the last and sharpest.
  """
  chain = progressive_chain(
    schedule, denoiser, noise_fn, variance=variance, every_steps=every_steps
  )
  state = jax.lax.fori_loop(0, chain.num_steps, chain.step, chain.start(x_T))
  return state.x, state.memory


def progressive_chain(
  schedule: NoiseSchedule,
  denoiser: Denoiser,
  noise_fn: Callable[[jax.Array], jax.Array],
  *,
  variance: str | None,
  every_steps: int,
) -> Chain:
  """The Chain of `ancestral_progressive`, and Args as there; its memory is the predictions."""
  assert every_steps >= 1
  num_slots = schedule.num_timesteps // every_steps
  timesteps = all_if_none(schedule, None)
  reverse_step = make_reverse_step(schedule, denoiser, noise_fn, timesteps, variance)

  def start(x_T):
    return ChainState(x_T, (), jnp.zeros((x_T.shape[0], num_slots, *x_T.shape[1:]), x_T.dtype))

  def step(i, state):
    t, x, x_0 = reverse_step(i, state.x)
    slot = jnp.where(t % every_steps == 0, t // every_steps, num_slots)  # num_slots: dropped
    return ChainState(x, (), state.memory.at[:, slot].set(x_0, mode='drop'))

  return Chain(len(timesteps), timesteps[::-1], start, step)
