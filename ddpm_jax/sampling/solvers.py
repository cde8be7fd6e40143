"""Solvers of few steps, and the table of all samplers.

All samplers have one signature, (schedule, denoiser, x_T, noise_fn, timesteps, *, variance,
trajectory, ...) -> x_0, explained at `ancestral`. SAMPLERS has them by name; a new one is a
function, or a table, and its entry there.

But for the ancestral one, they are linear in x and in the predictions made on the way, of x_0 or of
the noise, with coefficients that the schedule and the timesteps decide. Each is a table of them in
NumPy float64, an evaluation of the network a row, and one loop, Solver's, runs any table.
Here alpha = sqrt(alphas_cumprod), sigma = sqrt(1 - alphas_cumprod), lambda = log(alpha / sigma),
h is the difference of lambda over a step and D is the predicted x_0.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.prediction import Denoiser, check_choice
from ddpm_jax.diffusion.schedules import NoiseSchedule, sigmas
from ddpm_jax.errors import UserError
from ddpm_jax.sampling.ancestral import (
  Chain,
  ChainState,
  all_if_none,
  ancestral,
  ancestral_chain,
)
from ddpm_jax.sampling.guidance import check_interval

QUADRATURE_POINTS = 32
FEW_STEPS = 20  # of all samplers but ancestral and bespoke, unless others are asked for
BESPOKE_STEPS = 10  # likewise; the cost of a fit grows with their cube
MAX_HEUN_RATIO = 100  # of sigma over heun's first step, whose slopes say nothing of a longer one

# x_0; or with a trajectory (x_0, states)
Result: TypeAlias = jax.Array | tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Levels:
  """The noise levels of S steps, from the noisiest on, and at last where they end: float64 [S+1].

  They end at x_0; or at t = 0, the least noise that the network has seen.
  """

  timesteps: np.ndarray  # int64 [S]
  alpha: np.ndarray
  sigma: np.ndarray
  lambda_: np.ndarray  # infinite at x_0
  ratios: np.ndarray  # sigma / alpha of the whole chain, float64 [T]

  @property
  def end_at_x_0(self) -> bool:
    """Whether the last step goes to x_0, which no interpolation in lambda reaches."""
    return bool(self.sigma[-1] == 0)


def make_levels(
  schedule: NoiseSchedule, timesteps: np.ndarray | None, *, stops_early: bool = False
) -> Levels:
  """The Levels of some timesteps, None of all T; stops_early as Solver has it."""
  timesteps = all_if_none(schedule, timesteps)[::-1]
  end = 1.0, 0.0
  if stops_early:
    timesteps = timesteps[timesteps > 0]
    end = schedule.sqrt_alphas_cumprod[0], schedule.sqrt_one_minus_alphas_cumprod[0]
    if not len(timesteps):
      raise UserError(
        'sample.stops_early ends at t = 0, and there is no step that leads there: take more steps'
      )
  alpha = np.append(schedule.sqrt_alphas_cumprod[timesteps], end[0])
  sigma = np.append(schedule.sqrt_one_minus_alphas_cumprod[timesteps], end[1])
  with np.errstate(divide='ignore'):
    return Levels(timesteps, alpha, sigma, np.log(alpha) - np.log(sigma), sigmas(schedule))


class Table:
  """The coefficients of a solver, an evaluation of the network a row.

  With x_j the point of evaluation j, D_j the x_0 predicted there, or the noise, and y_j the point
  that the next is reached from,

    y_j = keep_j y_{j-1} + take_j x_j + sum_k correct_jk D_{j-k}
    x_{j+1} = scale_j y_j + sum_k predict_jk D_{j-k} + noise_j z_j,    z_j ~ N(0, I).

  Attributes:
    timesteps: int64 [N], of the evaluations.
    keep, take, scale, noise: float64 [N].
    correct, predict: float64 [N, K].
    ends: int64 [S], the rows that end a step.
    of_noise: (alpha, sigma) of the evaluations, each float64 [N], where D_j is the noise; or None.
  """

  def __init__(self, timesteps, num_predictions, of_noise=None):
    """A table of zeros in which every row starts from its own point and ends a step."""
    count = len(timesteps)
    self.timesteps = timesteps
    self.keep, self.scale, self.noise = np.zeros((3, count))
    self.take = np.ones(count)
    self.correct, self.predict = np.zeros((2, count, num_predictions))
    self.ends = np.arange(count)
    self.of_noise = of_noise


@dataclasses.dataclass(frozen=True)
class Solver:
  """A sampler that runs a table of coefficients.

  Attributes:
    make_table: (levels, **choices) -> table.
    in_lambda: whether it steps in lambda, which is -inf at the end of a schedule with a last beta
      of 1.
  """

  make_table: Callable[..., Table]
  in_lambda: bool = True

  def __call__(
    self,
    schedule: NoiseSchedule,
    denoiser: Denoiser,
    x_T: jax.Array,
    noise_fn: Callable[[jax.Array], jax.Array],
    timesteps: np.ndarray | None = None,
    *,
    variance: str | None = None,
    trajectory: bool = False,
    stops_early: bool = False,
    **choices: Any,
  ) -> Result:
    """From x_T to x_0; Args and Returns as `ancestral`, and stops_early.

    With stops_early, the chain ends at the noise level of t = 0 (EDM's sigma_min), in place of the
    x_0 predicted at the last of the timesteps, and returns x_t / sqrt(alphas_cumprod) there; the
    timestep 0 is no evaluation then.

    The noise within a step is derived from the predicted x_0; `variance`, of a step of ancestral
    sampling, changes nothing here. The choices are the table's, such as ddim's eta.
    """
    choices = {'stops_early': stops_early, **choices}
    chain = self.chain(schedule, denoiser, noise_fn, timesteps, variance=variance, **choices)

    def step(state, i):
      state = chain.step(i, state)
      return state, state.x if trajectory else None

    end, states = jax.lax.scan(step, chain.start(x_T), jnp.arange(chain.num_steps))
    if not trajectory:
      return end.x
    ends = self._table(schedule, timesteps, **choices).ends
    return end.x, jnp.moveaxis(states[ends], 0, 1)

  def _table(self, schedule, timesteps, *, stops_early=False, **choices):
    levels = make_levels(schedule, timesteps, stops_early=stops_early)
    self.check_signal(float(levels.alpha[0]))
    table = self.make_table(levels, **choices)
    for coefficients in (table.scale, table.predict, table.noise):
      coefficients[-1] /= levels.alpha[-1]
    return table

  def chain(
    self,
    schedule: NoiseSchedule,
    denoiser: Denoiser,
    noise_fn: Callable[[jax.Array], jax.Array],
    timesteps: np.ndarray | None = None,
    *,
    variance: str | None = None,
    **choices: Any,
  ) -> Chain:
    """The Chain of this sampler; Args as there."""
    del variance
    table = self._table(schedule, timesteps, **choices)
    is_random = table.noise.any()
    has_memory = table.keep.any() or table.correct.any()
    of_noise = table.of_noise

    def combine(weights, predictions):
      return sum(weights[k] * prediction for k, prediction in enumerate(predictions))

    def start(x_T):
      none_yet = (jnp.zeros_like(x_T),) * table.predict.shape[1]
      if of_noise is not None:
        return ChainState(x_T, none_yet[:1], none_yet)
      return ChainState(x_T, none_yet, jnp.zeros_like(x_T) if has_memory else ())

    def noises(x, x_0, earlier, i):
      """The noise predicted at x, and before."""
      alpha, sigma = (jnp.asarray(level, x.dtype)[i] for level in of_noise)
      return ((x - alpha * x_0) / sigma, *earlier[:-1])

    def step(i, state):
      x, predictions, y = state
      row = {
        name: jnp.asarray(getattr(table, name), x.dtype)[i]
        for name in ('keep', 'take', 'correct', 'scale', 'predict', 'noise')
      }
      time = jnp.asarray(table.timesteps, jnp.int32)[i]
      t = jnp.full(x.shape[:1], time, jnp.int32)
      x_0 = denoiser(x, t).x_0
      if of_noise is not None:
        memory = noises(x, x_0, y, i)
        x = row['scale'] * x + combine(row['predict'], memory)
        return ChainState(x, (x_0,), memory)
      predictions = (x_0, *predictions[:-1])
      reached = x
      if has_memory:
        y = row['keep'] * y + row['take'] * x + combine(row['correct'], predictions)
        reached = y
      x = row['scale'] * reached + combine(row['predict'], predictions)
      if is_random:
        x += row['noise'] * noise_fn(time)
      return ChainState(x, predictions, y)

    return Chain(len(table.timesteps), table.timesteps, start, step)

  def check_signal(self, alpha: float, name: str = 'this one') -> None:
    """Raises a UserError, with the sampler's name, where it would start from a lambda of -inf."""
    if self.in_lambda and alpha == 0:
      raise UserError(
        f'sample.sampler={name} steps in the log signal-to-noise ratio, which is -inf at the end '
        'of a schedule with a last beta of 1; use ancestral, ddim or another diffusion.schedule'
      )


def _check_eta(eta):
  if not 0 <= eta <= 1:
    raise UserError(f'sample.eta is {eta}; it must lie in [0, 1]')


def ddim_table(levels: Levels, eta: float = 0.0) -> Table:
  """DDIM (Eqs. 12 and 16, Song et al. 2021), of order 1; one evaluation of the network a step.

  eta = 1 is ancestral sampling with the variance fixedsmall; 0 is deterministic.
  """
  _check_eta(eta)
  alpha, sigma = levels.alpha, levels.sigma
  table = Table(levels.timesteps, 1)
  posterior_std = sigma[1:] / sigma[:-1] * np.sqrt(1 - (alpha[:-1] / alpha[1:]) ** 2)
  table.noise = eta * posterior_std
  table.scale = np.sqrt(np.maximum(sigma[1:] ** 2 - table.noise**2, 0)) / sigma[:-1]
  table.predict[:, 0] = alpha[1:] - table.scale * alpha[:-1]
  return table


def dpm_table(levels: Levels, order: int, sde: bool = False) -> Table:
  """DPM-Solver++ (Lu et al. 2022), multistep; one evaluation of the network a step.

  Order 1 is ddim, with eta = 1 for the SDE. Order 2 is the paper's 2M (Alg. 2) or, for the SDE, its
  SDE-DPM-Solver++(2M). Order 3 integrates the parabola through the last three predictions, where
  the authors' program takes half of its second derivative and so stays of order 2. The first steps,
  for want of predictions, and the last ones, towards the infinite lambda of x_0, are of lower
  order. For the SDE, the moments converge with order 2, and faster by a factor for order 3.

  """
  assert order in (1, 2, 3)
  table = _multistep_table(levels, order, speed=2 if sde else 1)
  if sde:
    table.noise = levels.sigma[1:] * np.sqrt(-np.expm1(-2 * np.diff(levels.lambda_)))
  return table


def _multistep_table(levels, order, speed):
  """Exponential integrator x' = sigma'/sigma e^{-(c-1) h} x + alpha' sum_k w_k D_k, c the speed."""
  num_steps = len(levels.timesteps)
  table = Table(levels.timesteps, order)
  ratio = levels.sigma[1:] / levels.sigma[:-1]
  table.scale = ratio * (ratio * levels.alpha[:-1] / levels.alpha[1:]) ** (speed - 1)
  for i in range(num_steps):
    used = min(order, i + 1, num_steps - i if levels.end_at_x_0 else order)
    weights = _predictor_weights(levels.lambda_, i, used, speed)
    table.predict[i, :used] = levels.alpha[i + 1] * weights
  return table


def _nodes(lambda_, i, offsets):
  """The levels i + offsets on the scale where step i goes from 0 to 1."""
  return np.array([lambda_[i + k] - lambda_[i] for k in offsets]) / (lambda_[i + 1] - lambda_[i])


def _predictor_weights(lambda_, i, order, speed):
  """The weights of the predictions i, i-1, ... in step i, [order].

  Order 2 takes the midpoint's value (1 - e^{-ch}) / 2 for the moment of the slope, which keeps the
  order and is what 'midpoint' (Lu et al. 2022) and 'bh2' (Zhao et al. 2023) stand for.
  """
  whole = -np.expm1(-speed * (lambda_[i + 1] - lambda_[i]))
  if order == 1:
    return np.array([whole])
  nodes = _nodes(lambda_, i, range(0, -order, -1))
  if order == 2:
    return whole * np.array([1 - 0.5 / nodes[1], 0.5 / nodes[1]])
  return _integral_weights(nodes, speed * (lambda_[i + 1] - lambda_[i]))


def _integral_weights(nodes, rate):
  """Weights w with sum_k w_k f(nodes_k) = int_0^1 rate e^{-rate (1 - u)} f(u) du for polynomials f.

  Moments by Gauss and Legendre: the closed form cancels where a step is short.
  """
  points, lengths = np.polynomial.legendre.leggauss(QUADRATURE_POINTS)
  points, lengths = (points + 1) / 2, lengths / 2
  powers = np.arange(len(nodes))[:, None]
  moments = points**powers @ (lengths * rate * np.exp(-rate * (1 - points)))
  return np.linalg.solve(nodes**powers, moments)


def heun_table(
  levels: Levels,
  churn: float = 0.0,
  churn_interval: tuple[float, float] = (0.0, np.inf),
  churn_noise: float = 1.0,
) -> Table:
  """Heun's method on the probability-flow ODE (Alg. 1, Karras et al. 2022), of order 2.

  In x / alpha as a function of sigma / alpha. Two evaluations of the network a step, but one in the
  last, Euler's: 2 S - 1 in all. EDM's discretisation is timestep_subsequence's karras. Even rows go
  to the end of a step as Euler does; odd ones go again, with the mean slope.

  Args:
    levels: Levels.
    churn: S_churn of the stochastic sampler (Alg. 2): before each step but the first, noise is
      added that raises sigma / alpha by min(churn / S, sqrt(2) - 1) of it, to the nearest timestep.
    churn_interval: (S_tmin, S_tmax), the sigma / alpha between which it is.
    churn_noise: S_noise, the deviation of that noise.
  """
  table = Table(levels.timesteps.repeat(2)[1:], 2)
  alpha, sigma = levels.alpha, levels.sigma
  raised, raised_alpha, raised_sigma = _raised(levels, churn, churn_interval)
  table.timesteps[0::2] = raised
  ratio = sigma[1:] / raised_sigma
  table.scale[0::2] = ratio
  table.predict[0::2, 0] = alpha[1:] - ratio * raised_alpha
  s, s_next = (raised_sigma / raised_alpha)[:-1], (sigma / alpha)[1:-1]
  half = 0.5 * alpha[1:-1] * (s_next - s)
  table.keep[1::2], table.take[1::2] = 1, 0
  table.scale[1::2] = ratio[:-1]
  table.predict[1::2] = np.stack([-half / s_next, half * (1 / s_next - 2 / s)], axis=1)
  if churn:
    reached = (raised_sigma / raised_alpha)[1:]
    table.scale[1::2] *= raised_alpha[1:] / alpha[1:-1]
    table.predict[1::2] *= (raised_alpha[1:] / alpha[1:-1])[:, None]
    added = np.sqrt(np.maximum(reached**2 - s_next**2, 0))
    table.noise[1:-1:2] = raised_alpha[1:] * added * churn_noise
  table.ends = np.append(np.arange(1, len(table.timesteps), 2), len(table.timesteps) - 1)
  return table


def _raised(levels, churn, interval):
  """(timesteps, alpha, sigma) that the steps of heun go out from, each [S]."""
  gamma = min(churn / len(levels.timesteps), np.sqrt(2) - 1)
  raised = levels.timesteps.copy()
  alpha, sigma = levels.alpha[:-1].copy(), levels.sigma[:-1].copy()
  for i, t in enumerate(levels.timesteps):
    if i == 0 or not gamma or not interval[0] <= levels.ratios[t] <= interval[1]:
      continue
    above = np.log(levels.ratios[t:])
    raised[i] += np.abs(above - above[0] - np.log1p(gamma)).argmin()
    if raised[i] > t:
      ratio = levels.ratios[raised[i]]
      alpha[i] = 1 / np.sqrt(1 + ratio**2)
      sigma[i] = ratio * alpha[i]
  return raised, alpha, sigma


def unipc_table(levels: Levels, order: int) -> Table:
  """UniPC (Zhao et al. 2023): multistep predictor and corrector, bh2, on predictions of x_0.

  Each step is corrected by the evaluation that the next one starts with, so it costs one evaluation
  and has one order more than its predictor, which is that of dpm_table. The states of a trajectory
  are those predicted, where the network is evaluated: the corrected ones are known a step later.
  """
  table = _multistep_table(levels, order, speed=1)
  num_steps = len(levels.timesteps)
  widened = np.zeros((num_steps, order + 1))
  widened[:, :order] = table.predict
  table.predict, table.correct = widened, np.zeros_like(widened)
  for i in range(num_steps - 1):  # the step from i, corrected in row i + 1
    used = min(order, i + 1, num_steps - i if levels.end_at_x_0 else order)
    table.keep[i + 1], table.take[i + 1] = levels.sigma[i + 1] / levels.sigma[i], 0
    h = levels.lambda_[i + 1] - levels.lambda_[i]
    if used == 1:
      weights = -np.expm1(-h) * np.array([0.5, 0.5])
    else:
      weights = _integral_weights(_nodes(levels.lambda_, i, range(1, -used, -1)), h)
    table.correct[i + 1, : used + 1] = levels.alpha[i + 1] * weights
  return table


def bespoke_table(levels: Levels, coefficients: np.ndarray | None = None) -> Table:
  """Any coefficients, such as those fitted to a model (Shaul et al. 2024); see sampling.bespoke.

  Args:
    levels: Levels of S steps.
    coefficients: float64 [S, S + 1], of x_i and of the predictions at i, i - 1, ..., 0 in step i;
      None for those of DPM-Solver++(2M), from which a fit starts.
  """
  num_steps = len(levels.timesteps)
  table = Table(levels.timesteps, num_steps)
  if coefficients is None:
    start = dpm_table(levels, order=2)
    used = min(2, num_steps)
    table.scale, table.predict[:, :used] = start.scale, start.predict[:, :used]
  else:
    table.scale, table.predict = coefficients[:, 0].copy(), coefficients[:, 1:].copy()
  return table


def _noise_table(levels, used_at, weights_of):
  """x / alpha as a function of r = sigma / alpha, whose slope is the noise: a step adds to it the
  integral of the noises that are predicted, [used] weights each.

  The step to x_0 has order 1, and ends in what is predicted there, as all samplers' do.
  """
  if levels.end_at_x_0:
    used_at[-1] = 1
  alpha, sigma = levels.alpha, levels.sigma
  table = Table(levels.timesteps, max(used_at), (alpha[:-1], sigma[:-1]))
  table.scale = alpha[1:] / alpha[:-1]
  for i, used in enumerate(used_at):
    table.predict[i, :used] = alpha[i + 1] * weights_of(i, used)
  return table


ADAMS_BASHFORTH = {  # of equal steps
  1: (1,),
  2: (3 / 2, -1 / 2),
  3: (23 / 12, -16 / 12, 5 / 12),
  4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def ipndm_table(levels: Levels, order: int) -> Table:
  """iPNDM (Zhang & Chen 2023; Liu et al. 2022): Adams and Bashforth's weights, as of equal steps.

  Where steps are equal in sigma / alpha, these have the order; but the first steps, for want of
  predictions, are of lower ones, the very first of order 1, and so the whole is of order 2.
  """
  assert order in ADAMS_BASHFORTH
  ratio = levels.sigma / levels.alpha

  def weights(i, used):
    return (ratio[i + 1] - ratio[i]) * np.array(ADAMS_BASHFORTH[used])

  return _noise_table(levels, [min(order, i + 1) for i in range(len(levels.timesteps))], weights)


def deis_table(levels: Levels, degree: int) -> Table:
  """DEIS (Zhang & Chen 2023), tAB: the polynomial in t through the last noises, integrated.

  The integral of sigma / alpha goes over the chain's own timesteps, by the trapezoidal rule. First
  steps are of lower degree, as those of iPNDM.
  """

  def weights(i, used):
    if used == 1:
      return np.diff(levels.sigma[i : i + 2] / levels.alpha[i : i + 2])
    start, end = np.append(levels.timesteps, 0)[i : i + 2]
    t, ratio = np.arange(start, end - 1, -1), levels.ratios[end : start + 1][::-1]
    nodes = levels.timesteps[i - used + 1 : i + 1][::-1].astype(np.float64)
    found = []
    for k, node in enumerate(nodes):
      others = np.delete(nodes, k)
      lagrange = np.prod((t[:, None] - others) / (node - others), axis=1)
      found.append((np.diff(ratio) * (lagrange[1:] + lagrange[:-1]) / 2).sum())
    return np.array(found)

  return _noise_table(levels, [min(degree, i) + 1 for i in range(len(levels.timesteps))], weights)


def ddim_encode(
  schedule: NoiseSchedule,
  denoiser: Denoiser,
  x_0: jax.Array,
  timesteps: np.ndarray | None = None,
) -> jax.Array:
  """DDIM's inversion (Sec. 4.3, Song et al. 2021): the x_T that the deterministic ddim decodes.

  The probability-flow ODE upwards: each step takes the noise predicted where it starts; the first,
  from x_0 itself, at the first of the timesteps. Decoding, with the same timesteps and a denoiser
  that is not clipped, returns x_0 up to the error of the steps.

  Args: as `ancestral`, with x_0 [B, ..., C] in place of x_T.

  Returns:
    the state at the last of the timesteps, [B, ..., C].
  """
  levels = make_levels(schedule, timesteps)
  alpha, sigma = levels.alpha[::-1], levels.sigma[::-1]
  times = levels.timesteps[::-1]
  scale = alpha[1:] / alpha[:-1]
  rows = {
    't': jnp.asarray(np.append(times[0], times[:-1]), jnp.int32),
    'scale': jnp.asarray(scale, x_0.dtype),
    'noise': jnp.asarray(sigma[1:] - scale * sigma[:-1], x_0.dtype),
  }

  def step(x, row):
    t = jnp.full(x.shape[:1], row['t'], jnp.int32)
    a, s = (
      jnp.asarray(table, x.dtype)[row['t']]
      for table in (schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod)
    )
    return row['scale'] * x + row['noise'] * (x - a * denoiser(x, t).x_0) / s, None

  return jax.lax.scan(step, x_0, rows)[0]


SAMPLERS: Mapping[str, Callable[..., Result]] = {
  'ancestral': ancestral,
  'ddim': Solver(ddim_table, in_lambda=False),
  'dpmpp_2m': Solver(functools.partial(dpm_table, order=2)),
  'dpmpp_3m': Solver(functools.partial(dpm_table, order=3)),
  'dpmpp_2m_sde': Solver(functools.partial(dpm_table, order=2, sde=True)),
  'dpmpp_3m_sde': Solver(functools.partial(dpm_table, order=3, sde=True)),
  'heun': Solver(heun_table),
  'unipc_2': Solver(functools.partial(unipc_table, order=2)),
  'unipc_3': Solver(functools.partial(unipc_table, order=3)),
  'ipndm': Solver(functools.partial(ipndm_table, order=4)),
  'deis_2': Solver(functools.partial(deis_table, degree=2)),
  'deis_3': Solver(functools.partial(deis_table, degree=3)),
  'bespoke': Solver(bespoke_table),
}


# The samplers taken apart: (schedule, denoiser, noise_fn, timesteps, *, variance, ...) -> Chain.
CHAINS: Mapping[str, Callable[..., Chain]] = {
  name: sampler.chain if isinstance(sampler, Solver) else ancestral_chain
  for name, sampler in SAMPLERS.items()
}


def check_sampler(
  schedule: NoiseSchedule,
  name: str,
  num_steps: int,
  *,
  eta: float | None,
  is_step: bool,
  churn: float | None = None,
  churn_choices: Mapping[str, Any] | None = None,
) -> None:
  """Raises a UserError for a sampler of SAMPLERS that cannot run as asked.

  A prediction of x_{t-1} is one of x_0 only after division by the weight that x_0 has in it, about
  1e-4 near T, and so are its errors. The whole ancestral chain takes it as it is.

  Args:
    schedule: NoiseSchedule.
    name: of the sampler.
    num_steps: S.
    eta: ddim's; None for its default, as all others need it.
    is_step: whether the network predicts one step of the whole chain, as Parameterization says.
    churn: heun's; None for its default, as all others need it.
    churn_choices: heun's churn_interval and churn_noise, each None where it is not given.
  """
  check_choice('sample.sampler', name, SAMPLERS)
  sampler = SAMPLERS[name]
  if isinstance(sampler, Solver):
    sampler.check_signal(float(schedule.alphas_cumprod[-1]), name)
  if eta is not None:
    if name != 'ddim':
      raise UserError(f'sample.eta is {eta}, but sample.sampler={name} has none; only ddim does')
    _check_eta(eta)
  if churn is not None and name != 'heun':
    raise UserError(
      f'sample.churn is {churn}, but sample.sampler={name} has none; only heun does'
      f'{"; ddim has eta" if name == "ddim" else ""}'
    )
  for field, given in (churn_choices or {}).items():
    if given is not None and not churn:
      raise UserError(f'sample.{field} is {given}, but nothing is churned: give sample.churn, too')
    if field == 'churn_interval' and given is not None:
      check_interval(tuple(given), 'sample.churn_interval')
  if is_step and (name != 'ancestral' or num_steps < schedule.num_timesteps):
    raise UserError(
      f'sample.sampler={name} with {num_steps} of {schedule.num_timesteps} steps cannot use a '
      'prediction of one step alone (diffusion.mean_type): use sample.sampler=ancestral with all '
      'steps'
    )


def default_num_steps(name: str, num_timesteps: int) -> int:
  """Steps of a sampler of SAMPLERS where no number is asked for."""
  counts = {'ancestral': num_timesteps, 'bespoke': BESPOKE_STEPS}
  return min(counts.get(name, FEW_STEPS), num_timesteps)


def default_spacing(name: str) -> str:
  """The spacing of a sampler of SAMPLERS where none is asked for.

  Heun's method steps in sigma, which is 2e4 at the end of the cosine schedule: spaced evenly in t,
  its first step leaves an error of 0.4 to 0.5 at 5 to 20 steps, where karras leaves 0.06 to 0.3.
  """
  return 'karras' if name == 'heun' else 'trailing'


def heun_ratio(schedule: NoiseSchedule, timesteps: np.ndarray) -> float:
  """The ratio of sigma over the first step."""
  chosen = sigmas(schedule)[timesteps[-2:]]
  with np.errstate(invalid='ignore'):  # of a single step, without signal
    return float(chosen[-1] / chosen[0])


def num_evaluations(name: str, num_steps: int) -> int:
  """Evaluations of the network that a sampler of SAMPLERS needs for S steps."""
  return 2 * num_steps - 1 if name == 'heun' else num_steps
