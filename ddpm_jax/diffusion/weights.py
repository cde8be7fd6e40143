"""Weights of the loss: of the squared error of x_0, as functions of the signal-to-noise ratio.

Each is the weight of |x_0 - predicted x_0|^2 at t, whatever the network predicts: a loss multiplies
the output's squared error by the weight and by the square of what such an error makes of x_0. So a
weight is one objective for all kinds of predictions; in it t is uniform, however it is drawn
(timesteps.py).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.prediction import SIGMA_DATA, Parameterization, check_choice
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.diffusion.timesteps import lognormal_density
from ddpm_jax.errors import UserError


class Level(NamedTuple):
  """A noise level of the chain, each [B].

  Attributes:
    snr: alphas_cumprod / (1 - alphas_cumprod).
    kl: the weight of the error in L_{t-1}, in nats and with the variance fixedsmall:
      (snr_{t-1} - snr_t) / 2 (Eq. 13, Kingma et al. 2021), and at t = 0 that in the decoder.
    lognormal: the density of EDM's distribution of noise, over that of a uniform t.
    sigma_data: deviation of x_0.
  """

  snr: jax.Array
  kl: jax.Array
  lognormal: jax.Array
  sigma_data: float


class Weight(NamedTuple):
  """A weight of the error of x_0.

  Attributes:
    function: (Level, number) -> [B].
    number: its parameter where none is given; None for a weight without.
    is_positive: whether the parameter must be above 0.
  """

  function: Callable[[Level, float], jax.Array]
  number: float | None = None
  is_positive: bool = False


WEIGHTS: Mapping[str, Weight] = {
  # L_simple of eps (Eq. 14, Ho et al. 2020).
  'simple': Weight(lambda at, _: at.snr),
  'kl': Weight(lambda at, _: at.kl),
  # Hang et al. 2023; its gamma.
  'min_snr': Weight(lambda at, gamma: jnp.minimum(at.snr, gamma), 5.0, is_positive=True),
  # Choi et al. 2022, with k = 1; its gamma.
  'p2': Weight(lambda at, gamma: at.snr / (1 + at.snr) ** gamma, 1.0, is_positive=True),
  # sigmoid(b - log snr) in the weighted bound (Kingma & Gao 2023); its bias b.
  'sigmoid': Weight(lambda at, bias: at.kl * jax.nn.sigmoid(bias - jnp.log(at.snr)), 2.0),
  # Table 1, Karras et al. 2022: 1 / c_out^2, with log-normal noise.
  'edm': Weight(lambda at, _: at.lognormal * (at.snr + 1 / at.sigma_data**2)),
}


def check_weight(parameterization: Parameterization, name: str, number: float | None) -> None:
  """Raises a UserError for an unknown weight, and for one of no use for the prediction."""
  check_choice('train.loss_weight', name, WEIGHTS)
  if parameterization.is_step:
    raise UserError(
      f'train.loss_weight={name} weights the error of x_0, and diffusion.mean_type='
      f'{parameterization.mean} predicts one step: use eps, xstart, v or edm, or leave it out'
    )
  if number is not None and WEIGHTS[name].number is None:
    known = ', '.join(other for other, weight in WEIGHTS.items() if weight.number is not None)
    raise UserError(
      f'train.loss_weight_number is {number}, but train.loss_weight={name} has none; it goes with '
      f'{known}'
    )
  if number is not None and WEIGHTS[name].is_positive and number <= 0:
    raise UserError(
      f'train.loss_weight_number is {number}; gamma of train.loss_weight={name} must be above 0'
    )


def level_at(schedule: NoiseSchedule, t: jax.Array, sigma_data: float = SIGMA_DATA) -> Level:
  """The Level at t, int [B]."""

  def entry(table):
    return jnp.asarray(table, jnp.result_type(float))[t]

  signal, noise = schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod
  variance = jnp.exp(entry(schedule.posterior_log_variance_clipped))
  return Level(
    snr=jnp.square(entry(signal) / entry(noise)),
    kl=jnp.square(entry(schedule.posterior_mean_coef1)) / (2 * variance),
    lognormal=entry(lognormal_density(schedule, sigma_data)),
    sigma_data=sigma_data,
  )


def output_weight(
  schedule: NoiseSchedule,
  parameterization: Parameterization,
  t: jax.Array,
  name: str,
  number: float | None = None,
) -> jax.Array:
  """What a weight of the error of x_0 makes of the squared error of the network's output, [B].

  Args:
    schedule: NoiseSchedule.
    parameterization: what the output means.
    t: int [B].
    name: one of WEIGHTS.
    number: the weight's parameter; None for its default.
  """
  weight = WEIGHTS[name]
  chosen = weight.number if number is None else number
  level = level_at(schedule, t, parameterization.sigma_data)
  of_x_0 = weight.function(level, 0.0 if chosen is None else chosen)
  return of_x_0 * jnp.square(parameterization.x_0_scale(schedule, t))
