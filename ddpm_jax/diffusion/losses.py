"""Losses of training (Alg. 1, Ho et al. 2020)."""

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.bound import vb_terms_bpd
from ddpm_jax.diffusion.forward import mean_except_batch, q_sample
from ddpm_jax.diffusion.gaussians import LEVELS
from ddpm_jax.diffusion.prediction import Network, Parameterization, check_choice
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.diffusion.weights import check_weight, output_weight
from ddpm_jax.errors import UserError

LOSS_TYPES = ('mse', 'kl', 'hybrid')
VB_WEIGHT = 1e-3  # of the whole bound in the hybrid loss (Nichol & Dhariwal 2021)


def check_loss(
  parameterization: Parameterization,
  loss_type: str,
  weight: str | None = None,
  weight_number: float | None = None,
) -> None:
  """Raises a UserError for an unknown loss, and for choices that do not go together."""
  check_choice('diffusion.loss_type', loss_type, LOSS_TYPES)
  if loss_type == 'mse' and parameterization.fixed_variance is None:
    raise UserError(
      f'diffusion.loss_type=mse does not train diffusion.var_type={parameterization.variance}; use '
      'loss_type=kl or hybrid'
    )
  if loss_type == 'hybrid' and parameterization.fixed_variance is not None:
    raise UserError(
      f'diffusion.loss_type=hybrid trains a variance, and var_type={parameterization.variance} is '
      'fixed: use learned_range or learned, or loss_type=mse'
    )
  if weight is None:
    if weight_number is not None:
      raise UserError(
        f'train.loss_weight_number is {weight_number}, but there is no train.loss_weight: give one'
      )
    return
  if loss_type == 'kl':
    raise UserError(
      f'train.loss_weight={weight} weights an mse, and diffusion.loss_type=kl has its weight: use '
      'loss_type=mse, or leave the weight out'
    )
  check_weight(parameterization, weight, weight_number)


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
  weight: str | None = None,
  weight_number: float | None = None,
) -> jax.Array:
  """Loss of each example (Alg. 1): L_simple (Eq. 14) for 'mse', one term of the bound for 'kl'.

  For 'hybrid' it is L_simple, which trains the mean, and 0.001 of the bound in bits/dim (T times
  its term), which trains the variance alone (Eq. 16, Nichol & Dhariwal 2021).

  Args:
    schedule: NoiseSchedule.
    network: (x_t, t) -> output, of the parameterization's input and time.
    x_0: [B, ..., C].
    t: int [B].
    noise: ~ N(0, I), [B, ..., C].
    parameterization: what the output means.
    loss_type: 'mse', between the output and its target; 'kl', in bits/dim and unclipped; 'hybrid'.
    levels: as vb_terms_bpd, for 'kl' and 'hybrid'.
    weight: of the squared error of x_0, one of WEIGHTS; None for the output's error as it is.
    weight_number: the weight's parameter; None for its default.

  Returns:
    [B].

  Raises:
    UserError: an unknown choice; 'mse' with a learned variance, which it would leave untrained;
      'hybrid' without one; a weight that means nothing; an output of another shape.
  """
  check_loss(parameterization, loss_type, weight, weight_number)
  x_t = q_sample(schedule, x_0, t, noise)
  output = network(parameterization.input(schedule, x_t, t), parameterization.time(schedule, t))
  if loss_type == 'kl':
    prediction = parameterization.read(schedule, output, x_t, t)
    variance = parameterization.fixed_variance
    return vb_terms_bpd(schedule, prediction, x_0, x_t, t, variance=variance, levels=levels)
  parameterization.check_output(output, x_t)
  predicted = output[..., : x_t.shape[-1]]
  target = parameterization.target(schedule, x_0, noise, x_t, t)
  losses = mean_except_batch(jnp.square(target - predicted))
  if weight is not None:
    losses *= output_weight(schedule, parameterization, t, weight, weight_number)
  if loss_type == 'mse':
    return losses
  variance_alone = output.at[..., : x_t.shape[-1]].set(jax.lax.stop_gradient(predicted))
  prediction = parameterization.read(schedule, variance_alone, x_t, t)
  vb = vb_terms_bpd(schedule, prediction, x_0, x_t, t, variance=None, levels=levels)
  return losses + VB_WEIGHT * schedule.num_timesteps * vb
