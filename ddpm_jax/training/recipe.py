"""How parameters are optimised: learning rate, clipping and Adam."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

LearningRate = Callable[[jax.Array], jax.Array]  # step (0-based) -> learning rate


def make_learning_rate(learning_rate: float, warmup_steps: int) -> LearningRate:
  """Linear warm-up from 0 over warmup_steps, then constant: the first step has rate 0.

  Returns:
    step (0-based) -> learning rate.
  """
  if warmup_steps == 0:
    return optax.constant_schedule(learning_rate)
  # Not optax.linear_schedule, which subtracts from the last rate: in float32 the first are off.
  return lambda step: learning_rate * jnp.minimum(step / warmup_steps, 1.0)


def make_optimizer(
  learning_rate_fn: LearningRate,
  *,
  grad_clip: float,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
) -> optax.GradientTransformation:
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


def schedule_count(opt_state: Any) -> jax.Array:
  """How far the optimizer is in its schedule: state.step, but less after an import, which has none.

  Args:
    opt_state: of make_optimizer.
  """

  def of_schedule(path, _):
    return path[-1].tuple_name == 'ScaleByScheduleState'

  return optax.tree_utils.tree_get(opt_state, 'count', filtering=of_schedule)
