"""What training carries from step to step, and the moving average."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from ddpm_jax.diffusion.timesteps import LossHistory, no_losses


@flax.struct.dataclass
class TrainState:
  """The whole state of a run: with the seed it determines every later step."""

  step: jax.Array  # int32 scalar, steps done
  params: Any
  ema_params: Any
  opt_state: Any
  loss_history: LossHistory | None = None  # of training whose t are drawn by loss


def init_train_state(
  params: Any, optimizer: optax.GradientTransformation, *, timesteps_by_loss: int | None = None
) -> TrainState:
  """The state before the first step; the EMA starts at the initial parameters.

  Args:
    params: the parameters.
    optimizer: optax transformation.
    timesteps_by_loss: T, of training whose t are drawn by loss; None for other training.
  """
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    ema_params=jax.tree.map(jnp.copy, params),  # a buffer of its own: the state is donated
    opt_state=optimizer.init(params),
    loss_history=None if timesteps_by_loss is None else no_losses(timesteps_by_loss),
  )


def apply_gradients(
  state: TrainState, grads: Any, optimizer: optax.GradientTransformation, *, ema_decay: float
) -> TrainState:
  """One optimizer step, then the EMA's: it sees the new parameters, at full decay from step 1 on.

  The original program leaves the order of the two open; this is one of the two it shows.
  """
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  ema_params = jax.tree.map(
    lambda ema, new: ema - (1 - ema_decay) * (ema - new), state.ema_params, params
  )
  return dataclasses.replace(
    state, step=state.step + 1, params=params, ema_params=ema_params, opt_state=opt_state
  )
