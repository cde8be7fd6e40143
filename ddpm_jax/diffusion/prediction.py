"""What a network predicts, read once, at its edge.

A network maps (x_t, t) to an output; a Parameterization says what the output means; a Denoiser
maps (x_t, t) to a Prediction of x_0, which is all that samplers, the bound and the figures know.

A new kind of prediction is one entry of MEANS, a new kind of variance one of VARIANCES.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.forward import extract, q_posterior_mean_variance
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.errors import UserError


class Prediction(NamedTuple):
  """What a denoiser makes of x_t.

  Attributes:
    x_0: [B, ..., C].
    log_variance: [B, ..., C] of p(x_{t-1} | x_t), one step of the whole chain, where the network
      has learned it; otherwise None.
    mean: [B, ..., C] of p(x_{t-1} | x_t), where the network gives it and x_0 is derived from it;
      otherwise None.
    x_0_variance: [B, ..., C] of x_0 given x_t, from which the variance of a step of any length
      follows, where it is known; otherwise None.
  """

  x_0: jax.Array
  log_variance: jax.Array | None = None
  mean: jax.Array | None = None
  x_0_variance: jax.Array | None = None


Network = Callable[[jax.Array, jax.Array], jax.Array]  # (input, time) of (x_t, t) -> output
Denoiser = Callable[[jax.Array, jax.Array], Prediction]  # (x_t, t) -> Prediction


SIGMA_DATA = 0.5  # deviation of pictures, as EDM's preconditioning has it
MAX_EDM_SIGMA = 1e6  # sigma is infinite at a last beta of 1, and what a network is given is not


class Mean(NamedTuple):
  """A kind of prediction: how to make its target and how to read x_0 from it.

  With a_t = sqrt(alphas_cumprod) and s_t = sqrt(1 - alphas_cumprod), x_t = a_t x_0 + s_t eps.

  Attributes:
    target: (schedule, x_0, eps, x_t, t) -> what the network is to return.
    x_0: (schedule, output, x_t, t) -> x_0.
    is_step: whether the output is the mean of p(x_{t-1} | x_t) itself: of one step, and no other.
    needs_signal: whether x_0 cannot be read where x_T holds nothing of it (a last beta of 1).
    input_of: (schedule, x_t, t) -> what the network is given for x_t; None for x_t itself.
    time_of: (schedule, t) -> what it is given for t, float [B]; None for t itself.
  """

  target: Callable[..., jax.Array]
  x_0: Callable[..., jax.Array]
  is_step: bool = False
  needs_signal: bool = False
  input_of: Callable[..., jax.Array] | None = None
  time_of: Callable[..., jax.Array] | None = None


def _x_0_of_eps(schedule, eps, x_t, t):
  """x_0 = x_t / a_t - sqrt(1 / alphas_cumprod - 1) eps (Eq. 15)."""
  return (
    extract(schedule.sqrt_recip_alphas_cumprod, t, x_t) * x_t
    - extract(schedule.sqrt_recipm1_alphas_cumprod, t, x_t) * eps
  )


def _x_0_of_previous(schedule, previous, x_t, t):
  """The x_0 whose posterior mean (Eq. 7) is `previous`."""
  coef1 = schedule.posterior_mean_coef1
  return (
    extract(1 / coef1, t, x_t) * previous
    - extract(schedule.posterior_mean_coef2 / coef1, t, x_t) * x_t
  )


def _v(schedule, x_0, eps, x_t, t):
  """v = a_t eps - s_t x_0 (App. D, Salimans & Ho 2022)."""
  return (
    extract(schedule.sqrt_alphas_cumprod, t, x_t) * eps
    - extract(schedule.sqrt_one_minus_alphas_cumprod, t, x_t) * x_0
  )


def _x_0_of_v(schedule, v, x_t, t):
  """x_0 = a_t x_t - s_t v."""
  return (
    extract(schedule.sqrt_alphas_cumprod, t, x_t) * x_t
    - extract(schedule.sqrt_one_minus_alphas_cumprod, t, x_t) * v
  )


def _edm(sigma_data: float) -> Mean:
  """EDM's preconditioning, for data of a deviation (Table 1, Karras et al. 2022)."""

  def levels(schedule, x_t, t):
    """(a_t, s_t, the deviation of x_t)."""
    a = extract(schedule.sqrt_alphas_cumprod, t, x_t)
    s = extract(schedule.sqrt_one_minus_alphas_cumprod, t, x_t)
    return a, s, jnp.sqrt(jnp.square(s) + jnp.square(a * sigma_data))

  def input_of(schedule, x_t, t):
    """c_in x_t / a_t: of deviation 1."""
    return x_t / levels(schedule, x_t, t)[2]

  def time_of(schedule, t):
    """c_noise = log(sigma) / 4."""
    sigma = jnp.asarray(schedule.sqrt_recipm1_alphas_cumprod, jnp.result_type(float))[t]
    return jnp.log(jnp.minimum(sigma, MAX_EDM_SIGMA)) / 4

  def target(schedule, x_0, eps, x_t, t):
    """(x_0 - c_skip x_t / a_t) / c_out, of deviation 1 (Eq. 8)."""
    a, s, deviation = levels(schedule, x_t, t)
    return (s * x_0 - a * sigma_data**2 * eps) / (sigma_data * deviation)

  def x_0(schedule, output, x_t, t):
    """c_skip x_t / a_t + c_out output (Eq. 7)."""
    a, s, deviation = levels(schedule, x_t, t)
    return a * jnp.square(sigma_data / deviation) * x_t + s * sigma_data / deviation * output

  return Mean(target=target, x_0=x_0, input_of=input_of, time_of=time_of)


MEANS: Mapping[str, Mean] = {
  'eps': Mean(
    target=lambda schedule, x_0, eps, x_t, t: eps,
    x_0=_x_0_of_eps,
    needs_signal=True,
  ),
  'xstart': Mean(
    target=lambda schedule, x_0, eps, x_t, t: x_0,
    x_0=lambda schedule, output, x_t, t: output,
  ),
  'xprev': Mean(
    target=lambda schedule, x_0, eps, x_t, t: q_posterior_mean_variance(schedule, x_0, x_t, t)[0],
    x_0=_x_0_of_previous,
    is_step=True,
  ),
  'v': Mean(target=_v, x_0=_x_0_of_v),
  'edm': _edm(SIGMA_DATA),
}


def _log_variance_in_range(schedule, channels, x_t, t):
  """log beta_t where the channels are 1, log beta tilde_t where -1 (Eq. 15, Nichol & Dhariwal)."""
  share = (channels + 1) / 2
  least = extract(schedule.posterior_log_variance_clipped, t, x_t)
  return share * jnp.log(extract(schedule.betas, t, x_t)) + (1 - share) * least


# Of variances that the network returns beside its prediction, as further channels:
# (schedule, channels, x_t, t) -> log-variance. The others are tables of the schedule.
VARIANCES: Mapping[str, Callable[..., jax.Array] | None] = {
  'fixedsmall': None,
  'fixedlarge': None,
  'learned': lambda schedule, channels, x_t, t: channels,
  'learned_range': _log_variance_in_range,
}


@dataclasses.dataclass(frozen=True)
class Parameterization:
  """What a network's output means.

  Attributes:
    mean: 'eps', the noise; 'xstart', x_0; 'xprev', the mean of p(x_{t-1} | x_t) itself; 'v', a
      mixture of noise and x_0; 'edm', one with the preconditioning of Karras et al. 2022: the names
      of MEANS.
    variance: of p(x_{t-1} | x_t): 'fixedsmall', the posterior's; 'fixedlarge', beta_t; 'learned',
      whose logarithm the network returns in channels of its own; 'learned_range', which it returns
      as a place between the two fixed ones: the names of VARIANCES.
    sigma_data: deviation of x_0, which 'edm' goes by.

  Raises:
    UserError: an unknown name.
  """

  mean: str = 'eps'
  variance: str = 'fixedlarge'
  sigma_data: float = SIGMA_DATA

  def __post_init__(self):
    check_choice('diffusion.mean_type', self.mean, MEANS)
    check_choice('diffusion.var_type', self.variance, VARIANCES)

  @property
  def _kind(self) -> Mean:
    return _edm(self.sigma_data) if self.mean == 'edm' else MEANS[self.mean]

  @property
  def fixed_variance(self) -> str | None:
    """The name of a variance that the schedule decides; None where the prediction carries it."""
    return self.variance if VARIANCES[self.variance] is None else None

  @property
  def is_step(self) -> bool:
    """Whether the network predicts one step of the whole chain, and no other."""
    return self._kind.is_step

  @property
  def needs_signal(self) -> bool:
    """Whether x_0 cannot be read at a last beta of 1."""
    return self._kind.needs_signal

  def channels(self, channels: int) -> int:
    """Channels of the network's output for examples with so many."""
    return channels if self.fixed_variance else 2 * channels

  def input(self, schedule: NoiseSchedule, x_t: jax.Array, t: jax.Array) -> jax.Array:
    """What the network is given for x_t: x_t itself, but for 'edm'."""
    of_kind = self._kind.input_of
    return x_t if of_kind is None else of_kind(schedule, x_t, t)

  def time(self, schedule: NoiseSchedule, t: jax.Array) -> jax.Array:
    """What the network is given for t int [B]: the time of row t, but for 'edm'."""
    if (of_kind := self._kind.time_of) is not None:
      return of_kind(schedule, t)
    return t if schedule.times is None else jnp.asarray(schedule.times, jnp.result_type(float))[t]

  def target(
    self, schedule: NoiseSchedule, x_0: jax.Array, eps: jax.Array, x_t: jax.Array, t: jax.Array
  ) -> jax.Array:
    """What the first C channels of the output are trained towards, [B, ..., C]."""
    return self._kind.target(schedule, x_0, eps, x_t, t)

  def x_0_scale(self, schedule: NoiseSchedule, t: jax.Array) -> jax.Array:
    """What an error of 1 in the output makes of x_0, with its sign, [B]: x_0 is linear in both.

    Args:
      schedule: NoiseSchedule.
      t: int [B].
    """
    zero = jnp.zeros(t.shape, jnp.result_type(float))
    return self._kind.x_0(schedule, zero + 1, zero, t)

  def check_output(self, output: jax.Array, x_t: jax.Array) -> None:
    """Raises a UserError for an output of another shape than [B, ..., channels(C)]."""
    channels = self.channels(x_t.shape[-1])
    if output.shape != (*x_t.shape[:-1], channels):
      raise UserError(
        f'the network returned {output.shape} for x_t of {x_t.shape}; '
        f'diffusion.var_type={self.variance} needs {channels} channels'
      )

  def read(
    self, schedule: NoiseSchedule, output: jax.Array, x_t: jax.Array, t: jax.Array
  ) -> Prediction:
    """What the output says of x_0.

    Args:
      schedule: NoiseSchedule.
      output: [B, ..., channels(C)] of the network for input(schedule, x_t, t).
      x_t: [B, ..., C].
      t: int [B].

    Raises:
      UserError: an output of another shape.
    """
    self.check_output(output, x_t)
    log_variance = None
    if (log_variance_of := VARIANCES[self.variance]) is not None:
      output, channels = jnp.split(output, 2, axis=-1)
      log_variance = log_variance_of(schedule, channels, x_t, t)
    x_0 = self._kind.x_0(schedule, output, x_t, t)
    return Prediction(x_0, log_variance, mean=output if self.is_step else None)


def check_sigma_data(parameterization: Parameterization) -> None:
  """Raises a UserError for a deviation of the data that is given to other predictions than edm."""
  if parameterization.mean != 'edm':
    raise UserError(
      f'diffusion.sigma_data is {parameterization.sigma_data}, which goes with '
      f'diffusion.mean_type=edm alone, and it is {parameterization.mean}: leave it out'
    )


def check_choice(field: str, value: object, choices: Any) -> None:
  """Raises a UserError, naming the config path, for a value that is none of the choices."""
  if value not in choices:
    allowed = ', '.join(str(choice) for choice in choices)
    raise UserError(f'{field} is {value!r}; it must be one of {allowed}')


def make_network(
  model: Any,
  params: Any,
  *,
  labels: jax.Array | None = None,
  train: bool = False,
  rngs: Mapping[str, jax.Array] | None = None,
  rows: jax.Array | None = None,
) -> Network:
  """The model with its parameters: the one place that applies a model.

  Args:
    model: has apply({'params': params}, x_t, t, ...), as flax modules do.
    params: its parameters.
    labels: int [B], the class of each example, for a model that takes labels.
    train: whether to apply dropout.
    rngs: keys of dropout, for train.
    rows: int [B], each example's row in the global batch, for train; see nn.UNet.
  """
  choices: dict[str, Any] = {'train': True, 'rngs': rngs, 'rows': rows} if train else {}
  if labels is not None:
    choices['labels'] = labels
  return lambda x_t, t: model.apply({'params': params}, x_t, t, **choices)


def make_denoiser(
  network: Network, parameterization: Parameterization, schedule: NoiseSchedule
) -> Denoiser:
  """The network, its output read."""

  def denoiser(x_t, t):
    output = network(parameterization.input(schedule, x_t, t), parameterization.time(schedule, t))
    return parameterization.read(schedule, output, x_t, t)

  return denoiser
