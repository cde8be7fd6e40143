"""Noise schedules: the betas, every table derived from them, and the timesteps of few steps.

Tables are built in NumPy float64. t is 0-based throughout: t = 0 means one step of noise (the
paper's t = 1).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ddpm_jax.diffusion.gaussians import LEVELS
from ddpm_jax.errors import UserError

COSINE_OFFSET = 0.008  # s of Nichol & Dhariwal 2021: keeps beta_0 from vanishing
MAX_BETA = 0.999  # of cosine, sigmoid and linear_scaled
KARRAS_RHO = 7  # Karras et al. 2022, Table 1
END_SIGNAL = 4e-5  # alphas_cumprod[T-1] of logsnr; the paper's
BETA_START, BETA_END = 1e-4, 0.02  # the paper's
CONTINUOUS_BETA_START = 1e-6
SIGMOID_START, SIGMOID_END, SIGMOID_TAU = -3, 3, 1  # Chen 2023
MIN_BETA = 1e-10  # below it, 1 - beta has lost the digits of beta
MAX_SIGMA = 80.0  # likewise: beyond it x_T is noise as it is


def _warmup(fraction):
  def betas(num_timesteps, beta_start, beta_end):
    warmup_steps = int(num_timesteps * fraction)
    table = np.full(num_timesteps, beta_end, np.float64)
    table[:warmup_steps] = np.linspace(beta_start, beta_end, warmup_steps, dtype=np.float64)
    return table

  return betas


def _linear(num_timesteps, beta_start, beta_end):
  return np.linspace(beta_start, beta_end, num_timesteps, dtype=np.float64)


def _quad(num_timesteps, beta_start, beta_end):
  return np.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, dtype=np.float64) ** 2


def _const(num_timesteps, beta_start, beta_end):
  del beta_start
  return np.full(num_timesteps, beta_end, np.float64)


def _jsd(num_timesteps, beta_start, beta_end):
  del beta_start, beta_end
  return 1.0 / np.linspace(num_timesteps, 1, num_timesteps, dtype=np.float64)


def _cosine(num_timesteps, beta_start, beta_end):
  del beta_start, beta_end
  u = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
  alphas_cumprod = np.cos((u + COSINE_OFFSET) / (1 + COSINE_OFFSET) * np.pi / 2) ** 2
  return np.minimum(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], MAX_BETA)


def _logsnr(num_timesteps, beta_start, beta_end, end_signal=END_SIGNAL):
  del beta_end
  first, last = (np.log(signal / (1 - signal)) for signal in (1 - beta_start, end_signal))
  # 1 - alphas_cumprod, which would lose its digits next to 1.
  noise = 1 / (1 + np.exp(np.linspace(first, last, num_timesteps, dtype=np.float64)))
  before = np.append(0.0, noise[:-1])
  return (noise - before) / (1 - before)


def _linear_scaled(num_timesteps, beta_start, beta_end):
  scale = 1000 / num_timesteps
  betas = np.linspace(scale * beta_start, scale * beta_end, num_timesteps, dtype=np.float64)
  return np.minimum(betas, MAX_BETA)


def _sigmoid(num_timesteps, beta_start, beta_end):
  del beta_start, beta_end
  u = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
  places = (SIGMOID_START + u * (SIGMOID_END - SIGMOID_START)) / SIGMOID_TAU
  falls = 1 / (1 + np.exp(places))
  alphas_cumprod = (falls - falls[-1]) / (falls[0] - falls[-1])
  return np.minimum(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], MAX_BETA)


def _zero_snr(name):
  """A schedule whose sqrt(alphas_cumprod) is shifted and scaled, so that it ends at 0."""

  def betas(num_timesteps, beta_start, beta_end):
    alphas = 1 - SCHEDULES[name](num_timesteps, beta_start, beta_end)
    if num_timesteps == 1:
      return np.ones(1)
    signal = np.sqrt(np.cumprod(alphas))
    signal -= signal[-1]  # and scaled to begin as before, which the ratios do not see
    return 1 - np.append(alphas[0], (signal[1:] / signal[:-1]) ** 2)

  return betas


SCHEDULES = {
  'linear': _linear,
  'quad': _quad,
  'const': _const,
  'jsd': _jsd,
  'warmup10': _warmup(0.1),
  'warmup50': _warmup(0.5),
  'cosine': _cosine,
  'logsnr': _logsnr,
  'linear_scaled': _linear_scaled,
  'sigmoid': _sigmoid,
}
# Of zero signal at the end (Algorithm 1, Lin et al. 2023).
SCHEDULES |= {
  f'{name}_zero_snr': _zero_snr(name)
  for name in ('linear', 'quad', 'cosine', 'linear_scaled', 'sigmoid')
}


def with_defaults(fields: Mapping[str, Any], levels: int | None) -> dict[str, Any]:
  """The fields of config.diffusion, with a schedule and a beta_start where they have None.

  Args:
    fields: of config.diffusion.
    levels: of the data; None for values of any kind.
  """
  name = default_choices(levels)[0] if fields['schedule'] is None else fields['schedule']
  given = fields['beta_start']
  return {
    **fields,
    'schedule': name,
    'beta_start': _first_beta(name, levels) if given is None else given,
  }


def default_choices(levels: int | None) -> tuple[str, float]:
  """(name of a schedule, beta_start) for data of so many levels; None for values of any kind.

  The paper's begins at a standard deviation of 0.01, somewhat more than the width of one of 256
  levels. Where levels are narrower, the decoder would have to tell them apart by itself, for a bit
  each time that the width halves; so the first noise is as wide as a level there, and the levels of
  noise lie evenly in log-SNR from it on.
  """
  name = 'linear' if levels is not None and levels <= LEVELS else 'logsnr'
  return name, _first_beta(name, levels)


def _first_beta(name, levels):
  if name != 'logsnr':
    return BETA_START
  return CONTINUOUS_BETA_START if levels is None else (2 / (levels - 1)) ** 2


def make_betas(
  name: str,
  num_timesteps: int,
  *,
  beta_start: float = BETA_START,
  beta_end: float = BETA_END,
  end_signal: float = END_SIGNAL,
) -> np.ndarray:
  """The betas of a named schedule.

  Args:
    name: linear, quad, const, jsd, warmup10 or warmup50 (the original program's); cosine (Eq. 17,
      Nichol & Dhariwal 2021); or logsnr, evenly in the logarithm of the signal-to-noise ratio.
      const reads beta_end only; jsd, which is 1/T, 1/(T-1), ..., 1, and cosine read neither end;
      logsnr goes from beta_start to end_signal. linear_scaled is
      linear with both ends times 1000 / T, the betas capped below 1; sigmoid (Chen 2023) has
      alphas_cumprod fall as a sigmoid, and reads neither end. linear_zero_snr, quad_zero_snr,
      cosine_zero_snr, linear_scaled_zero_snr and sigmoid_zero_snr are those schedules with
      sqrt(alphas_cumprod) shifted and scaled to end at 0 (Algorithm 1, Lin et al. 2023).
    num_timesteps: T, at least 1.
    beta_start: first beta, in [1e-10, 1].
    beta_end: last beta, in [1e-10, 1].
    end_signal: alphas_cumprod[T-1] of logsnr; the paper's is 4e-5.

  Returns:
    float64 [T].

  Raises:
    UserError: an unknown name, T below 1, a beta outside [1e-10, 1].
  """
  if name not in SCHEDULES:
    raise UserError(f'diffusion.schedule is {name!r}; it must be one of {", ".join(SCHEDULES)}')
  if num_timesteps < 1:
    raise UserError(f'diffusion.num_timesteps is {num_timesteps}; it must be at least 1')
  for field, beta in (('beta_start', beta_start), ('beta_end', beta_end)):
    if not MIN_BETA <= beta <= 1:
      raise UserError(f'diffusion.{field} is {beta}; a beta must lie in [{MIN_BETA}, 1]')
  if name == 'logsnr':
    return _logsnr(num_timesteps, beta_start, beta_end, end_signal)
  return SCHEDULES[name](num_timesteps, beta_start, beta_end)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
  """The tables of a diffusion process, each float64 [T], cast where they are used.

  With alpha_t = 1 - beta_t and alphas_cumprod_t = prod_{s <= t} alpha_s (the paper's alpha bar).
  """

  betas: np.ndarray
  alphas_cumprod: np.ndarray
  alphas_cumprod_prev: np.ndarray  # shifted by one; 1 at t = 0
  sqrt_alphas_cumprod: np.ndarray
  sqrt_one_minus_alphas_cumprod: np.ndarray
  log_one_minus_alphas_cumprod: np.ndarray
  sqrt_recip_alphas_cumprod: np.ndarray  # sqrt(1 / alphas_cumprod)
  sqrt_recipm1_alphas_cumprod: np.ndarray  # sqrt(1 / alphas_cumprod - 1)
  posterior_variance: np.ndarray  # beta tilde, Eq. 7; 0 at t = 0
  posterior_log_variance_clipped: np.ndarray  # its log, with entry 1 in place of 0's log 0
  posterior_mean_coef1: np.ndarray  # of x_0, Eq. 7
  posterior_mean_coef2: np.ndarray  # of x_t, Eq. 7
  fixedlarge_log_variance: np.ndarray  # log beta_t, with log posterior_variance[1] at t = 0
  times: np.ndarray | None = None  # what a network is told, of `refined`; None for t itself

  @property
  def num_timesteps(self) -> int:
    """T."""
    return self.betas.shape[0]


def make_schedule(betas: np.ndarray, *, decoder_variance: float | None = None) -> NoiseSchedule:
  """Builds every table from the betas (Eqs. 4 and 7, Ho et al. 2020).

  At t = 0 the posterior is a point, and the original program takes posterior_variance[1] for the
  logarithm of its variance and of fixedlarge's, which are the decoder's (Eq. 13). With T = 1 there
  is no such entry: betas[0] stands in. A last beta of 1 (jsd) makes the two sqrt_recip tables
  infinite there, by definition.

  Args:
    betas: [T], each in (0, 1].
    decoder_variance: of the decoder; None for the original's. Where the second beta is far below
      the first, as logsnr has it, the original's is too narrow: take the first beta.

  Returns:
    A NoiseSchedule.

  Raises:
    UserError: no betas, or one outside (0, 1].
  """
  betas = np.asarray(betas, np.float64)
  if betas.ndim != 1 or betas.size < 1:
    raise UserError(f'betas have shape {betas.shape}; a schedule needs [T] with T at least 1')
  alphas = 1 - betas
  if not ((betas > 0) & (betas <= 1) & (alphas < 1)).all():  # alpha is 1 of a beta below 1e-16
    raise UserError(f'betas lie in [{betas.min()}, {betas.max()}]; each must lie in (0, 1]')

  alphas_cumprod = np.cumprod(alphas)
  alphas_cumprod_prev = np.append(1.0, alphas_cumprod[:-1])
  if decoder_variance is None:
    decoder_variance = betas[0]
    if betas.size > 1:
      decoder_variance = betas[1] * (1 - alphas_cumprod[0]) / (1 - alphas_cumprod[1])
  return _tables(betas, alphas_cumprod, alphas_cumprod_prev, decoder_variance)


def _tables(betas, alphas_cumprod, alphas_cumprod_prev, first_variance, times=None):
  """The NoiseSchedule whose row i is a step from alphas_cumprod_prev[i] to alphas_cumprod[i]."""
  alphas = 1 - betas
  posterior_variance = betas * (1 - alphas_cumprod_prev) / (1 - alphas_cumprod)
  with np.errstate(divide='ignore'):
    recip_alphas_cumprod = 1 / alphas_cumprod
  return NoiseSchedule(
    betas=betas,
    alphas_cumprod=alphas_cumprod,
    alphas_cumprod_prev=alphas_cumprod_prev,
    sqrt_alphas_cumprod=np.sqrt(alphas_cumprod),
    sqrt_one_minus_alphas_cumprod=np.sqrt(1 - alphas_cumprod),
    log_one_minus_alphas_cumprod=np.log(1 - alphas_cumprod),
    sqrt_recip_alphas_cumprod=np.sqrt(recip_alphas_cumprod),
    sqrt_recipm1_alphas_cumprod=np.sqrt(recip_alphas_cumprod - 1),
    posterior_variance=posterior_variance,
    posterior_log_variance_clipped=np.log(np.append(first_variance, posterior_variance[1:])),
    posterior_mean_coef1=betas * np.sqrt(alphas_cumprod_prev) / (1 - alphas_cumprod),
    posterior_mean_coef2=(1 - alphas_cumprod_prev) * np.sqrt(alphas) / (1 - alphas_cumprod),
    fixedlarge_log_variance=np.log(np.append(first_variance, betas[1:])),
    times=times,
  )


def prior_bpd_range(schedule: NoiseSchedule) -> tuple[float, float]:
  """The least and the greatest L_T of a pixel in [-1, 1], in bits/dim: bound.prior_bpd has its own.

  A pixel x has 0.5 (a (x^2 - 1) - log(1 - a)) nats, with a the last of alphas_cumprod.
  """
  a = float(schedule.alphas_cumprod[-1])
  log_noise = float(schedule.log_one_minus_alphas_cumprod[-1])
  least, greatest = (0.5 * (a * (x**2 - 1) - log_noise) / np.log(2) for x in (0.0, 1.0))
  return float(least), float(greatest)


def respace(schedule: NoiseSchedule, timesteps: np.ndarray) -> NoiseSchedule:
  """The process seen at some of its timesteps only: betas re-derived from the kept alphas_cumprod.

  The new timestep i is the old timesteps[i], with the same alphas_cumprod (Sec. 4 and Eq. 19,
  Nichol & Dhariwal 2021).

  Args:
    schedule: NoiseSchedule, of NumPy tables.
    timesteps: increasing ints [S] in [0, T-1].

  Returns:
    A NoiseSchedule with S timesteps.
  """
  timesteps = check_timesteps(schedule, timesteps)
  kept = schedule.alphas_cumprod[timesteps]
  return make_schedule(1 - kept / np.append(1.0, kept[:-1]))


def refined(schedule: NoiseSchedule, parts: int) -> NoiseSchedule:
  """The tables at real times between the timesteps, for samplers whose steps lie there.

  Row i is one step of the whole chain, from time i / parts - 1 to i / parts: what a network has
  learned of a timestep holds of it. Between two timesteps the log signal-to-noise ratio is linear
  in time. A chain on some of the rows is that of `respace`.

  Args:
    schedule: NoiseSchedule, of NumPy tables.
    parts: rows a timestep, at least 1.

  Returns:
    A NoiseSchedule of (T - 1) * parts + 1 rows, with their times; every parts-th row has the
    entries of the schedule.

  Raises:
    UserError: parts below 1, or a schedule that ends without signal.
  """
  if parts < 1:
    raise UserError(f'sample.timestep_parts is {parts}; it must be at least 1')
  if not schedule.alphas_cumprod[-1]:
    raise UserError(
      'sample.timestep_parts goes by the log signal-to-noise ratio, which is -inf at the end of a '
      'schedule with a last beta of 1: leave it out, or take another diffusion.schedule'
    )
  log_snr = np.log(schedule.alphas_cumprod) - schedule.log_one_minus_alphas_cumprod
  whole = np.arange(schedule.num_timesteps, dtype=np.float64)
  times = np.arange((schedule.num_timesteps - 1) * parts + 1) / parts
  before = times - 1
  signal = 1 / (1 + np.exp(-np.interp(times, whole, log_snr)))
  # Before t = 0 there is no ratio: the noise is in proportion to the time since x_0.
  noise = np.where(
    before < 0,
    (before + 1) * (1 - schedule.alphas_cumprod[0]),
    1 / (1 + np.exp(np.interp(before, whole, log_snr))),
  )
  signal[::parts] = schedule.alphas_cumprod
  signal_prev = 1 - noise
  signal_prev[::parts] = schedule.alphas_cumprod_prev
  betas = 1 - signal / signal_prev
  betas[::parts] = schedule.betas
  first = float(np.exp(schedule.posterior_log_variance_clipped[0]))
  return _tables(betas, signal, signal_prev, first, times)


def check_timesteps(schedule: NoiseSchedule, timesteps: np.ndarray) -> np.ndarray:
  """The timesteps as int64 [S], if they can be those of a sampler.

  Raises:
    UserError: none, not ints, not strictly increasing, or outside [0, T-1].
  """
  array = np.asarray(timesteps)
  if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.integer):
    raise UserError(f'timesteps are {timesteps!r}; they must be ints [S] with S at least 1')
  if (np.diff(array) <= 0).any() or array[0] < 0 or array[-1] >= schedule.num_timesteps:
    raise UserError(
      f'timesteps are {array.tolist()}; they must increase strictly and lie in '
      f'[0, {schedule.num_timesteps - 1}]'
    )
  return array.astype(np.int64)


def sigmas(schedule: NoiseSchedule) -> np.ndarray:
  """sqrt(1 / alphas_cumprod - 1) [T]: the noise of x_t / sqrt(alphas_cumprod), EDM's sigma."""
  return np.asarray(schedule.sqrt_recipm1_alphas_cumprod, np.float64)


def _space_by_sigma(schedule, num_steps, warp, unwarp):
  """Evenly in warp(sigma), from the least sigma to the greatest, or to MAX_SIGMA."""
  table = sigmas(schedule)
  if not np.isfinite(table[-1]):
    raise UserError(
      'sample.spacing by noise level needs a schedule that keeps some signal; this one ends at '
      'beta 1: use linspace, leading, trailing or quad'
    )
  ends = warp(table[0]), warp(max(min(table[-1], MAX_SIGMA), table[0]))
  expected = unwarp(np.linspace(*ends, num_steps))
  return np.interp(np.log(expected), np.log(table), np.arange(len(table)))


def _space_linspace(schedule, num_steps):
  return np.linspace(0, schedule.num_timesteps - 1, num_steps)


def _space_leading(schedule, num_steps):
  return np.arange(num_steps) * (schedule.num_timesteps / num_steps)


def _space_trailing(schedule, num_steps):
  return np.arange(1, num_steps + 1) * (schedule.num_timesteps / num_steps) - 1


def _space_quad(schedule, num_steps):
  return np.linspace(0, np.sqrt(schedule.num_timesteps - 1), num_steps) ** 2


def _space_logsnr(schedule, num_steps):
  return _space_by_sigma(schedule, num_steps, np.log, np.exp)


def _space_karras(schedule, num_steps):
  return _space_by_sigma(
    schedule, num_steps, lambda x: x ** (1 / KARRAS_RHO), lambda x: x**KARRAS_RHO
  )


SPACINGS = {
  'linspace': _space_linspace,
  'leading': _space_leading,
  'trailing': _space_trailing,
  'quad': _space_quad,
  'logsnr': _space_logsnr,
  'karras': _space_karras,
}


def timestep_subsequence(schedule: NoiseSchedule, num_steps: int, spacing: str) -> np.ndarray:
  """The S timesteps at which a sampler of few steps evaluates the network.

  Args:
    schedule: NoiseSchedule.
    num_steps: S, in [1, T].
    spacing: where they lie, rounded to integers and moved apart where two would be one:
      linspace: evenly from 0 to T-1.
      leading: 0, k, 2k, ... with k = T / S, DDIM's 'uniform'; the last lies at T-k, where x_T is
        not quite noise.
      trailing: T-1, T-1-k, ... with k = T / S (Lin et al. 2023); the first lies at k-1.
      quad: evenly in sqrt(t), from 0 to T-1; DDIM's ends at 0.8 T.
      logsnr: evenly in log(alphas_cumprod / (1 - alphas_cumprod)) (Lu et al. 2022).
      karras: evenly in sigma^(1/7), with sigma as `sigmas` (Eq. 5, Karras et al. 2022).
      These two go from 0 to where sigma is 80, or to T-1 if it never is. A single step is taken at
      T-1, but for leading, which has it at 0.

  Returns:
    int64 [S], strictly increasing; all T of them for S = T.

  Raises:
    UserError: an unknown spacing, S outside [1, T], or a spacing that the schedule does not admit.
  """
  if spacing not in SPACINGS:
    raise UserError(f'sample.spacing is {spacing!r}; it must be one of {", ".join(SPACINGS)}')
  total = schedule.num_timesteps
  if not 1 <= num_steps <= total:
    raise UserError(
      f'sample.num_steps is {num_steps}; it must lie in [1, {total}], the diffusion.num_timesteps'
    )
  if num_steps == 1 and spacing != 'leading':
    return np.array([total - 1])
  order = np.arange(num_steps)
  rounded = np.rint(SPACINGS[spacing](schedule, num_steps)).astype(np.int64)
  # The t_i are distinct and in range exactly if t_i - i never decreases and lies in [0, T - S].
  return order + np.clip(np.maximum.accumulate(rounded - order), 0, total - num_steps)
