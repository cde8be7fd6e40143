"""How parameters are optimised: learning rate, clipping and Adam."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ddpm_jax.diffusion.prediction import check_choice
from ddpm_jax.errors import UserError

LearningRate = Callable[[jax.Array], jax.Array]  # step (0-based) -> learning rate


def make_learning_rate(
  learning_rate: float,
  warmup_steps: int,
  *,
  decay: str | None = None,
  decay_steps: int | None = None,
) -> LearningRate:
  """Linear warm-up from 0 over warmup_steps, then constant: the first step has rate 0.

  Args:
    learning_rate: the highest.
    warmup_steps: 0 for no warm-up.
    decay: 'cosine', half a cosine from the end of the warm-up to 0 at decay_steps;
      'inverse_sqrt', which from decay_steps on falls as 1 / sqrt(step) (Karras et al. 2024); None
      for a constant rate.
    decay_steps: a number of steps.

  Returns:
    step (0-based) -> learning rate.
  """
  if decay is not None:
    assert decay_steps is not None
    falls = DECAYS[decay]
    return lambda step: (
      learning_rate
      * (jnp.minimum(step / warmup_steps, 1.0) if warmup_steps else 1.0)
      * falls(step, warmup_steps, decay_steps)
    )
  if warmup_steps == 0:
    return optax.constant_schedule(learning_rate)
  # Not optax.linear_schedule, which subtracts from the last rate: in float32 the first are off.
  return lambda step: learning_rate * jnp.minimum(step / warmup_steps, 1.0)


def _cosine(step, warmup_steps, decay_steps):
  share = jnp.clip((step - warmup_steps) / (decay_steps - warmup_steps), 0.0, 1.0)
  return 0.5 * (1 + jnp.cos(jnp.pi * share))


def _inverse_sqrt(step, warmup_steps, decay_steps):
  del warmup_steps
  return 1 / jnp.sqrt(jnp.maximum(step / decay_steps, 1.0))


# What the rate is multiplied by: (step, warmup_steps, decay_steps) -> at most 1.
DECAYS: Mapping[str, Callable[..., jax.Array]] = {
  'cosine': _cosine,
  'inverse_sqrt': _inverse_sqrt,
}


def check_decay(decay: str | None, decay_steps: int | None, warmup_steps: int) -> None:
  """Raises a UserError for an unknown decay, and for one without its steps."""
  check_choice('optim.decay', decay, (None, *DECAYS))
  if (decay is None) != (decay_steps is None):
    raise UserError(
      f'optim.decay is {decay}, and optim.decay_steps {decay_steps}: give both, such as '
      'optim.decay=cosine and optim.decay_steps=train.num_steps, or neither'
    )
  if decay_steps is not None and decay_steps <= warmup_steps:
    raise UserError(
      f'optim.decay_steps is {decay_steps}; it must be more than the optim.warmup_steps, '
      f'{warmup_steps}'
    )


def make_optimizer(
  learning_rate_fn: LearningRate,
  *,
  grad_clip: float,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float | None = None,
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
    weight_decay: AdamW's (Loshchilov & Hutter 2019), of all parameters: each step takes the
      learning rate times so much of them away. None for Adam.
  """
  clip = optax.clip_by_global_norm(grad_clip) if grad_clip else optax.identity()
  if weight_decay is None:
    return optax.chain(clip, optax.adam(learning_rate_fn, b1=b1, b2=b2, eps=eps))
  adamw = optax.adamw(learning_rate_fn, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
  return optax.chain(clip, adamw)


def schedule_count(opt_state: Any) -> jax.Array:
  """How far the optimizer is in its schedule: state.step, but less after an import, which has none.

  Args:
    opt_state: of make_optimizer.
  """

  def of_schedule(path, _):
    return path[-1].tuple_name == 'ScaleByScheduleState'

  return optax.tree_utils.tree_get(opt_state, 'count', filtering=of_schedule)
