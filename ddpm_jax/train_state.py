"""What training carries from step to step, the optimizer, and the moving average."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
  """The whole state of a run: with the seed it determines every later step."""

  step: jax.Array  # int32 scalar, steps done
  params: Any
  ema_params: Any
  opt_state: Any


def make_learning_rate(learning_rate, warmup_steps):
  """Linear warm-up from 0 over warmup_steps, then constant: the first step has rate 0.

  Returns:
    step (0-based) -> learning rate.
  """
  if warmup_steps == 0:
    return optax.constant_schedule(learning_rate)
  # Not optax.linear_schedule, which subtracts from the last rate: in float32 the first are off.
  return lambda step: learning_rate * jnp.minimum(step / warmup_steps, 1.0)


def make_optimizer(learning_rate_fn, *, grad_clip, b1=0.9, b2=0.999, eps=1e-8):
  """Clipping by global norm, then Adam.

  Two differences from the original program, both on purpose. It clips on each of its 8 replicas
  before averaging; here the averaged gradient is clipped, so that the result does not depend on the
  number of devices. And its Adam (TF 1's) adds epsilon to the uncorrected sqrt(v), optax to the
  bias-corrected one: visible only for gradients near epsilon.

  Args:
    learning_rate_fn: step -> learning rate.
    grad_clip: largest global norm, or 0 for no clipping.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: Adam's epsilon.
  """
  clip = optax.clip_by_global_norm(grad_clip) if grad_clip else optax.identity()
  return optax.chain(clip, optax.adam(learning_rate_fn, b1=b1, b2=b2, eps=eps))


def schedule_count(opt_state):
  """How far the optimizer is in its schedule: state.step, but less after an import, which has none.

  Args:
    opt_state: of make_optimizer.
  """

  def of_schedule(path, _):
    return path[-1].tuple_name == 'ScaleByScheduleState'

  return optax.tree_utils.tree_get(opt_state, 'count', filtering=of_schedule)


def init_train_state(params, optimizer):
  """The state before the first step; the EMA starts at the initial parameters."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    ema_params=jax.tree.map(jnp.copy, params),  # a buffer of its own: the state is donated
    opt_state=optimizer.init(params),
  )


def apply_gradients(state, grads, optimizer, *, ema_decay):
  """One optimizer step, then the EMA's: it sees the new parameters, at full decay from step 1 on.

  The original program leaves the order of the two open; this is one of the two it shows.
  """
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  ema_params = jax.tree.map(
    lambda ema, new: ema - (1 - ema_decay) * (ema - new), state.ema_params, params
  )
  return TrainState(state.step + 1, params, ema_params, opt_state)
