"""Losses of training (Alg. 1, Ho et al. 2020)."""

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.bound import vb_terms_bpd
from ddpm_jax.diffusion.forward import mean_except_batch, q_sample
from ddpm_jax.diffusion.gaussians import LEVELS
from ddpm_jax.diffusion.prediction import Network, Parameterization, check_choice
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.errors import UserError

LOSS_TYPES = ('mse', 'kl')


def check_loss(parameterization: Parameterization, loss_type: str) -> None:
  """Raises a UserError for an unknown loss, and for 'mse' with a learned variance."""
  check_choice('diffusion.loss_type', loss_type, LOSS_TYPES)
  if loss_type == 'mse' and parameterization.fixed_variance is None:
    raise UserError(
      f'diffusion.loss_type=mse does not train diffusion.var_type={parameterization.variance}; use '
      'loss_type=kl'
    )


def training_losses(
  schedule: NoiseSchedule,
  network: Network,
  x_0: jax.Array,
  t: jax.Array,
  noise: jax.Array,
  *,
  parameterization: Parameterization,
  loss_type: str,
  levels: int | None = LEVELS,
) -> jax.Array:
  """Loss of each example (Alg. 1): L_simple (Eq. 14) for 'mse', one term of the bound for 'kl'.

  Args:
    schedule: NoiseSchedule.
    network: (x_t, t) -> output.
    x_0: [B, ..., C].
    t: int [B].
    noise: ~ N(0, I), [B, ..., C].
    parameterization: what the output means.
    loss_type: 'mse', between the output and its target, or 'kl', in bits/dim and unclipped.
    levels: as vb_terms_bpd, for 'kl'.

  Returns:
    [B].

  Raises:
    UserError: an unknown choice; 'mse' with a learned variance, which it would leave untrained; an
      output of another shape.
  """
  check_loss(parameterization, loss_type)
  x_t = q_sample(schedule, x_0, t, noise)
  output = network(parameterization.input(schedule, x_t, t), t)
  if loss_type == 'kl':
    prediction = parameterization.read(schedule, output, x_t, t)
    variance = parameterization.fixed_variance
    return vb_terms_bpd(schedule, prediction, x_0, x_t, t, variance=variance, levels=levels)
  parameterization.check_output(output, x_t)
  target = parameterization.target(schedule, x_0, noise, x_t, t)
  return mean_except_batch(jnp.square(target - output))
