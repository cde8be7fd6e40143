"""What training carries from step to step, and the moving average."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from ddpm_jax.diffusion.timesteps import LossHistory, no_losses
from ddpm_jax.training.averages import Rate, averaged, decay_rate, start_of

NO_RATES: Mapping[str, Rate] = types.MappingProxyType({})


@flax.struct.dataclass
class TrainState:
  """The whole state of a run: with the seed it determines every later step."""

  step: jax.Array  # int32 scalar, steps done
  params: Any
  ema_params: Any
  opt_state: Any
  loss_history: LossHistory | None = None  # of training whose t are drawn by loss
  averages: dict[str, Any] | None = None  # of the parameters, beside ema_params, by name


def init_train_state(
  params: Any,
  optimizer: optax.GradientTransformation,
  *,
  timesteps_by_loss: int | None = None,
  rates: Mapping[str, Rate] = NO_RATES,
) -> TrainState:
  """The state before the first step; the EMA starts at the initial parameters.

  Args:
    params: the parameters.
    optimizer: optax transformation.
    timesteps_by_loss: T, of training whose t are drawn by loss; None for other training.
    rates: of further averages, by name.
  """
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    ema_params=jax.tree.map(jnp.copy, params),  # a buffer of its own: the state is donated
    opt_state=optimizer.init(params),
    loss_history=None if timesteps_by_loss is None else no_losses(timesteps_by_loss),
    averages=start_of(rates, params),
  )


def apply_gradients(
  state: TrainState,
  grads: Any,
  optimizer: optax.GradientTransformation,
  *,
  ema_decay: float,
  ema_warmup: float | None = None,
  rates: Mapping[str, Rate] = NO_RATES,
) -> TrainState:
  """One optimizer step, then the EMA's: it sees the new parameters.

  The original program leaves the order of the two open; this is one of the two it shows. Without a
  warm-up the decay is full from step 1 on.

  Args:
    state: TrainState.
    grads: of its parameters.
    optimizer: optax transformation.
    ema_decay: of ema_params.
    ema_warmup: as averages.decay_rate; None for none.
    rates: of the state's further averages, by name.
  """
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  count = (state.step + 1).astype(jnp.float32)
  ema_params = averaged(state.ema_params, params, decay_rate(ema_decay, ema_warmup)(count))
  averages = state.averages
  if averages is not None:
    averages = {
      name: averaged(average, params, rates[name](count)) for name, average in averages.items()
    }
  return dataclasses.replace(
    state,
    step=state.step + 1,
    params=params,
    ema_params=ema_params,
    opt_state=opt_state,
    averages=averages,
  )
