"""Samplers: from x_T to x_0, each one compiled loop.

All have one signature, (schedule, denoise_fn, x_T, noise_fn, timesteps, *, mean_type, var_type,
clip, trajectory, ...) -> x_0, explained at `ancestral`. SAMPLERS has them by name.

Noise is drawn per example, from a key of its own, so that image i depends on (seed, i) alone and
not on the batch it was drawn in.

But for the ancestral ones, they are linear in x and in the predictions of x_0 made on the way, with
coefficients that the schedule and the timesteps decide. Each builds a table of them in NumPy
float64, an evaluation of the network a row, and one loop, `_run`, runs any table.
Here alpha = sqrt(alphas_cumprod), sigma = sqrt(1 - alphas_cumprod), lambda = log(alpha / sigma),
h is the difference of lambda over a step and D is the predicted x_0, clipped as asked.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion import p_mean_variance, p_sample
from ddpm_jax.schedules import check_timesteps, respace

CLIPS = ('none', 'static', 'dynamic')
DYNAMIC_QUANTILE = 0.995  # of |x_0| in an image (Sec. 2.3, Saharia et al. 2022)
QUADRATURE_POINTS = 32
FEW_STEPS = 20  # of all samplers but ancestral, unless others are asked for


def make_noise_fn(keys, shape):
  """Noise per example and timestep.

  Args:
    keys: key array [B], one an example.
    shape: of one example.

  Returns:
    t (int scalar, or [B]) -> N(0, I) float32 [B, *shape]; row i is a function of (keys[i], t[i])
    alone.
  """

  def noise_fn(t):
    t = jnp.broadcast_to(t, keys.shape)
    return jax.vmap(lambda key, t: jax.random.normal(jax.random.fold_in(key, t), shape))(keys, t)

  return noise_fn


def _check_clip(clip):
  if clip not in CLIPS:
    raise ValueError(f'sample.clip is {clip!r}; it must be one of {", ".join(CLIPS)}')


def clip_xstart(x, clip):
  """Predicted x_0 brought back to the range of images.

  Args:
    x: [B, ..., C].
    clip: 'none'; 'static', to [-1, 1]; or 'dynamic': each image to [-s, s] and divided by s, where
      s is the 99.5% quantile of its |x_0|, and at least 1 (Saharia et al. 2022).
  """
  _check_clip(clip)
  if clip == 'none':
    return x
  if clip == 'static':
    return jnp.clip(x, -1.0, 1.0)
  axes = tuple(range(1, x.ndim))
  limit = jnp.quantile(jnp.abs(x), DYNAMIC_QUANTILE, axis=axes, keepdims=True)
  limit = jnp.maximum(limit, 1.0)
  return jnp.clip(x, -limit, limit) / limit


def _make_step(schedule, denoise_fn, noise_fn, **choices):
  """(i, x_t) -> (t, x_{t-1}, pred_xstart): the i-th step of the chain, from t = T-1 on."""

  def step(i, x_t):
    t = schedule.num_timesteps - 1 - i
    t_batch = jnp.full(x_t.shape[:1], t, jnp.int32)
    model_output = denoise_fn(x_t, t_batch)
    return t, *p_sample(schedule, model_output, x_t, t_batch, noise_fn(t), **choices)

  return step


def _make_respaced_step(schedule, denoise_fn, noise_fn, timesteps, *, mean_type, var_type, clip):
  """(i, x_t) -> (t, x at the next kept timestep, pred_xstart), as _make_step.

  A learned variance is that of a step of the whole chain. It exceeds the posterior variance by
  posterior_mean_coef1^2 Var(x_0 | x_t), from which the variance of the longer step follows by the
  same formula; Var(x_0 | x_t) lies in [0, 1], as images do in [-1, 1].
  """
  kept = respace(schedule, timesteps)
  num_steps = len(timesteps)

  def longer_log_variance(variance, t, row):
    def entry(table, index):
      return jnp.asarray(table, variance.dtype)[index]

    excess = variance - entry(schedule.posterior_variance, t)
    xstart_variance = jnp.clip(excess / entry(schedule.posterior_mean_coef1, t) ** 2, 0.0, 1.0)
    longer = entry(kept.posterior_mean_coef1, row) ** 2 * xstart_variance
    return jnp.log(entry(kept.posterior_variance, row) + longer)

  def step(i, x_t):
    row = num_steps - 1 - i
    t = jnp.asarray(timesteps, jnp.int32)[row]
    t_batch = jnp.full(x_t.shape[:1], t, jnp.int32)
    p = p_mean_variance(
      schedule,
      denoise_fn(x_t, t_batch),
      x_t,
      t_batch,
      mean_type=mean_type,
      var_type=var_type,
      clip_denoised=False,
    )
    prediction = clip_xstart(p.pred_xstart, clip)
    if var_type == 'learned':
      log_variance = longer_log_variance(p.variance, t, row)
      prediction = jnp.concatenate([prediction, log_variance], axis=-1)
    rows = jnp.full(x_t.shape[:1], row, jnp.int32)
    choices = dict(mean_type='xstart', var_type=var_type, clip_denoised=False)
    return t, *p_sample(kept, prediction, x_t, rows, noise_fn(t), **choices)

  return step


def ancestral(
  schedule,
  denoise_fn,
  x_T,
  noise_fn,
  timesteps=None,
  *,
  mean_type,
  var_type,
  clip='static',
  trajectory=False,
  num_steps=None,
):
  """Ancestral sampling, Alg. 2: x_{t-1} ~ p(x_{t-1} | x_t) for t = T-1, ..., 0.

  On fewer timesteps the chain is that of the betas re-derived for them (schedules.respace). The
  last step adds no noise and, as in the original program, only the predicted x_0 within a step is
  clipped, not the result. One evaluation of the network a step.

  Args:
    schedule: NoiseSchedule, of NumPy tables.
    denoise_fn: (x_t, t) -> model output.
    x_T: [B, ..., C] ~ N(0, I).
    noise_fn: t (int scalar) -> noise ~ N(0, I) [B, ..., C] for the step at time t.
    timesteps: increasing ints [S] to evaluate the network at, such as
      schedules.timestep_subsequence gives; None for all T.
    mean_type, var_type: as diffusion.p_mean_variance.
    clip: of the predicted x_0, as clip_xstart has it.
    trajectory: whether to return all states, too.
    num_steps: n in [0, S], an int or an int scalar array: only the last n steps are taken, and x_T
      is then the state they start from (for all T, x_{n-1}, noised n times: Sec. 4.4). None for all
      of them, as a trajectory needs.

  Returns:
    x_0 [B, ..., C]; or with a trajectory (x_0, states [B, S, ..., C]), the states after each step,
    of which the last is x_0.
  """
  timesteps = _all_if_none(schedule, timesteps)
  total = len(timesteps)
  if total == schedule.num_timesteps and clip != 'dynamic':
    _check_clip(clip)
    choices = dict(mean_type=mean_type, var_type=var_type, clip_denoised=clip == 'static')
    step = _make_step(schedule, denoise_fn, noise_fn, **choices)
  else:
    choices = dict(mean_type=mean_type, var_type=var_type, clip=clip)
    step = _make_respaced_step(schedule, denoise_fn, noise_fn, timesteps, **choices)
  if trajectory:
    assert num_steps is None
    x_0, states = jax.lax.scan(lambda x_t, i: (step(i, x_t)[1],) * 2, x_T, jnp.arange(total))
    return x_0, jnp.moveaxis(states, 0, 1)
  first = 0 if num_steps is None else total - num_steps
  return jax.lax.fori_loop(first, total, lambda i, x_t: step(i, x_t)[1], x_T)


def ancestral_progressive(
  schedule, denoise_fn, x_T, noise_fn, *, every_steps, mean_type, var_type, clip_denoised=True
):
  """Ancestral sampling that also keeps the x_0 predictions (Fig. 6; Sec. 4.3).

  Args: as `ancestral`, and every_steps: k, at least 1; clip_denoised: clip to [-1, 1].

  Returns:
    (x_0 [B, ..., C], predictions [B, T // k, ..., C]); slot j holds the prediction made at t = j k,
    so slot 0 is the last and sharpest.
  """
  if every_steps < 1:
    raise ValueError(f'every_steps is {every_steps}; it must be at least 1')
  num_slots = schedule.num_timesteps // every_steps

  choices = dict(mean_type=mean_type, var_type=var_type, clip_denoised=clip_denoised)
  step = _make_step(schedule, denoise_fn, noise_fn, **choices)

  def step_and_keep(i, carry):
    x_t, predictions = carry
    t, x_prev, pred_xstart = step(i, x_t)
    slot = jnp.where(t % every_steps == 0, t // every_steps, num_slots)  # num_slots: dropped
    return x_prev, predictions.at[:, slot].set(pred_xstart, mode='drop')

  predictions = jnp.zeros((x_T.shape[0], num_slots, *x_T.shape[1:]), x_T.dtype)
  return jax.lax.fori_loop(0, schedule.num_timesteps, step_and_keep, (x_T, predictions))


def _all_if_none(schedule, timesteps):
  """The timesteps as int64 [S], checked; None is all T."""
  if timesteps is None:
    return np.arange(schedule.num_timesteps)
  return check_timesteps(schedule, timesteps)


@dataclasses.dataclass(frozen=True)
class _Levels:
  """The noise levels of S steps, from the noisiest on, and at last that of x_0: float64 [S+1]."""

  timesteps: np.ndarray  # int64 [S]
  alpha: np.ndarray
  sigma: np.ndarray
  lambda_: np.ndarray  # infinite at the last


def _make_levels(schedule, timesteps):
  timesteps = _all_if_none(schedule, timesteps)[::-1]
  alpha = np.append(schedule.sqrt_alphas_cumprod[timesteps], 1.0)
  sigma = np.append(schedule.sqrt_one_minus_alphas_cumprod[timesteps], 0.0)
  with np.errstate(divide='ignore'):
    return _Levels(timesteps, alpha, sigma, np.log(alpha) - np.log(sigma))


def _check_signal(alpha, name):
  """Raises a ValueError where a solver in lambda would start from -inf."""
  if alpha == 0:
    raise ValueError(
      f'sample.sampler={name} steps in the log signal-to-noise ratio, which is -inf at the end of '
      'a schedule with a last beta of 1; use ancestral, ddim or another diffusion.schedule'
    )


class _Table:
  """The coefficients of a solver, an evaluation of the network a row.

  With x_j the point of evaluation j, D_j the x_0 predicted there and y_j the point that the next is
  reached from,

    y_j = keep_j y_{j-1} + take_j x_j + sum_k correct_jk D_{j-k}
    x_{j+1} = scale_j y_j + sum_k predict_jk D_{j-k} + noise_j z_j,    z_j ~ N(0, I).

  Attributes:
    timesteps: int64 [N], of the evaluations.
    keep, take, scale, noise: float64 [N].
    correct, predict: float64 [N, K].
    ends: int64 [S], the rows that end a step.
  """

  def __init__(self, timesteps, num_predictions):
    """A table of zeros in which every row starts from its own point and ends a step."""
    count = len(timesteps)
    self.timesteps = timesteps
    self.keep, self.scale, self.noise = np.zeros((3, count))
    self.take = np.ones(count)
    self.correct, self.predict = np.zeros((2, count, num_predictions))
    self.ends = np.arange(count)


def _run(
  table,
  schedule,
  denoise_fn,
  x_T,
  noise_fn,
  *,
  mean_type,
  var_type,
  clip='static',
  trajectory=False,
):
  """Runs a table of coefficients from x_T; see _Table for the formula, ancestral for the rest."""
  dtype = x_T.dtype
  rows = {
    't': jnp.asarray(table.timesteps, jnp.int32),
    **{
      name: jnp.asarray(getattr(table, name), dtype)
      for name in ('keep', 'take', 'correct', 'scale', 'predict', 'noise')
    },
  }
  is_random = table.noise.any()
  has_memory = table.keep.any() or table.correct.any()

  def combine(weights, predictions):
    return sum(weights[k] * prediction for k, prediction in enumerate(predictions))

  def evaluate(carry, row):
    x, y, predictions = carry
    t = jnp.full(x.shape[:1], row['t'], jnp.int32)
    p = p_mean_variance(
      schedule,
      denoise_fn(x, t),
      x,
      t,
      mean_type=mean_type,
      var_type=var_type,
      clip_denoised=False,
    )
    predictions = (clip_xstart(p.pred_xstart, clip), *predictions[:-1])
    if has_memory:
      y = row['keep'] * y + row['take'] * x + combine(row['correct'], predictions)
    else:
      y = x
    x = row['scale'] * y + combine(row['predict'], predictions)
    if is_random:
      x += row['noise'] * noise_fn(row['t'])
    return (x, y, predictions), x if trajectory else None

  none_yet = (jnp.zeros_like(x_T),) * table.predict.shape[1]
  (x_0, _, _), states = jax.lax.scan(evaluate, (x_T, jnp.zeros_like(x_T), none_yet), rows)
  return (x_0, jnp.moveaxis(states[table.ends], 0, 1)) if trajectory else x_0


def ddim(schedule, denoise_fn, x_T, noise_fn, timesteps=None, *, eta=0.0, **choices):
  """DDIM (Eqs. 12 and 16, Song et al. 2021), of order 1; one evaluation of the network a step.

  eta = 1 is ancestral sampling with var_type fixedsmall. The noise within a step is derived from
  the clipped x_0. var_type says nothing but how many channels the model returns.

  Args: as `ancestral` (choices: mean_type, var_type, clip, trajectory), and eta: in [0, 1], 0 for
    the deterministic sampler.

  Returns:
    as `ancestral`.
  """
  table = _ddim_table(_make_levels(schedule, timesteps), eta)
  return _run(table, schedule, denoise_fn, x_T, noise_fn, **choices)


def _check_eta(eta):
  if not 0 <= eta <= 1:
    raise ValueError(f'sample.eta is {eta}; it must lie in [0, 1]')


def _ddim_table(levels, eta):
  _check_eta(eta)
  alpha, sigma = levels.alpha, levels.sigma
  table = _Table(levels.timesteps, 1)
  posterior_std = sigma[1:] / sigma[:-1] * np.sqrt(1 - (alpha[:-1] / alpha[1:]) ** 2)
  table.noise = eta * posterior_std
  table.scale = np.sqrt(np.maximum(sigma[1:] ** 2 - table.noise**2, 0)) / sigma[:-1]
  table.predict[:, 0] = alpha[1:] - table.scale * alpha[:-1]
  return table


def ddim_encode(schedule, denoise_fn, x_0, timesteps=None, *, mean_type, var_type):
  """DDIM's inversion (Sec. 4.3, Song et al. 2021): the x_T that the deterministic ddim decodes.

  The probability-flow ODE upwards: each step takes the noise predicted where it starts; the first,
  from x_0 itself, at the first of the timesteps. Decoding, with the same timesteps and no clipping,
  returns x_0 up to the error of the steps.

  Args: as `ancestral`, with x_0 [B, ..., C] in place of x_T.

  Returns:
    the state at the last of the timesteps, [B, ..., C].
  """
  levels = _make_levels(schedule, timesteps)
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
    choices = dict(mean_type=mean_type, var_type=var_type, clip_denoised=False)
    p = p_mean_variance(schedule, denoise_fn(x, t), x, t, **choices)
    a, s = (
      jnp.asarray(table, x.dtype)[row['t']]
      for table in (schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod)
    )
    return row['scale'] * x + row['noise'] * (x - a * p.pred_xstart) / s, None

  return jax.lax.scan(step, x_0, rows)[0]


def dpm_solver_pp(
  schedule, denoise_fn, x_T, noise_fn, timesteps=None, *, order=2, sde=False, **choices
):
  """DPM-Solver++ (Lu et al. 2022), multistep; one evaluation of the network a step.

  Order 1 is ddim, with eta = 1 for the SDE. Order 2 is the paper's 2M (Alg. 2) or, for the SDE, its
  SDE-DPM-Solver++(2M). Order 3 integrates the parabola through the last three predictions, where
  the authors' program takes half of its second derivative and so stays of order 2. The first steps,
  for want of predictions, and the last ones, towards the infinite lambda of x_0, are of lower
  order. For the SDE, the moments converge with order 2, and faster by a factor for order 3.

  Args: as `ancestral`, and order: 1, 2 or 3; sde: solve the reverse SDE instead of the ODE.

  Returns:
    as `ancestral`.
  """
  assert order in (1, 2, 3)
  levels = _make_levels(schedule, timesteps)
  _check_signal(levels.alpha[0], f'dpmpp_{order}m{"_sde" if sde else ""}')
  table = _multistep_table(levels, order, speed=2 if sde else 1)
  if sde:
    table.noise = levels.sigma[1:] * np.sqrt(-np.expm1(-2 * np.diff(levels.lambda_)))
  return _run(table, schedule, denoise_fn, x_T, noise_fn, **choices)


def _multistep_table(levels, order, speed):
  """Exponential integrator x' = sigma'/sigma e^{-(c-1) h} x + alpha' sum_k w_k D_k, c the speed."""
  num_steps = len(levels.timesteps)
  table = _Table(levels.timesteps, order)
  ratio = levels.sigma[1:] / levels.sigma[:-1]
  table.scale = ratio * (ratio * levels.alpha[:-1] / levels.alpha[1:]) ** (speed - 1)
  for i in range(num_steps):
    used = min(order, i + 1, num_steps - i)
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


def heun(schedule, denoise_fn, x_T, noise_fn, timesteps=None, **choices):
  """Heun's method on the probability-flow ODE (Alg. 1, Karras et al. 2022), of order 2.

  In x / alpha as a function of sigma / alpha. Two evaluations of the network a step, but one in the
  last, Euler's: 2 S - 1 in all. EDM's discretisation is timestep_subsequence's karras.

  Args: as `ancestral`.

  Returns:
    as `ancestral`.
  """
  levels = _make_levels(schedule, timesteps)
  _check_signal(levels.alpha[0], 'heun')
  table = _heun_table(levels)
  return _run(table, schedule, denoise_fn, x_T, noise_fn, **choices)


def _heun_table(levels):
  """Even rows go to the end of a step as Euler does; odd ones go again, with the mean slope."""
  table = _Table(levels.timesteps.repeat(2)[1:], 2)
  alpha, sigma = levels.alpha, levels.sigma
  ratio = sigma[1:] / sigma[:-1]
  table.scale[0::2] = ratio
  table.predict[0::2, 0] = alpha[1:] - ratio * alpha[:-1]
  s, s_next = (sigma / alpha)[:-2], (sigma / alpha)[1:-1]
  half = 0.5 * alpha[1:-1] * (s_next - s)
  table.keep[1::2], table.take[1::2] = 1, 0
  table.scale[1::2] = ratio[:-1]
  table.predict[1::2] = np.stack([-half / s_next, half * (1 / s_next - 2 / s)], axis=1)
  table.ends = np.append(np.arange(1, len(table.timesteps), 2), len(table.timesteps) - 1)
  return table


def unipc(schedule, denoise_fn, x_T, noise_fn, timesteps=None, *, order=3, **choices):
  """UniPC (Zhao et al. 2023): multistep predictor and corrector, bh2, on predictions of x_0.

  Each step is corrected by the evaluation that the next one starts with, so it costs one evaluation
  and has one order more than its predictor, which is that of dpm_solver_pp.

  Args: as `ancestral`, and order: 2 or 3, of the predictor.

  Returns:
    as `ancestral`.
  """
  assert order in (2, 3)
  levels = _make_levels(schedule, timesteps)
  _check_signal(levels.alpha[0], f'unipc_{order}')
  table = _unipc_table(levels, order)
  return _run(table, schedule, denoise_fn, x_T, noise_fn, **choices)


def _unipc_table(levels, order):
  table = _multistep_table(levels, order, speed=1)
  num_steps = len(levels.timesteps)
  widened = np.zeros((num_steps, order + 1))
  widened[:, :order] = table.predict
  table.predict, table.correct = widened, np.zeros_like(widened)
  for i in range(num_steps - 1):  # the step from i, corrected in row i + 1
    used = min(order, i + 1, num_steps - i)
    table.keep[i + 1], table.take[i + 1] = levels.sigma[i + 1] / levels.sigma[i], 0
    h = levels.lambda_[i + 1] - levels.lambda_[i]
    if used == 1:
      weights = -np.expm1(-h) * np.array([0.5, 0.5])
    else:
      weights = _integral_weights(_nodes(levels.lambda_, i, range(1, -used, -1)), h)
    table.correct[i + 1, : used + 1] = levels.alpha[i + 1] * weights
  return table


SAMPLERS = {
  'ancestral': ancestral,
  'ddim': ddim,
  'dpmpp_2m': functools.partial(dpm_solver_pp, order=2),
  'dpmpp_3m': functools.partial(dpm_solver_pp, order=3),
  'dpmpp_2m_sde': functools.partial(dpm_solver_pp, order=2, sde=True),
  'dpmpp_3m_sde': functools.partial(dpm_solver_pp, order=3, sde=True),
  'heun': heun,
  'unipc_2': functools.partial(unipc, order=2),
  'unipc_3': functools.partial(unipc, order=3),
}


def check_sampler(schedule, name, *, eta, clip):
  """Raises a ValueError for a sampler of SAMPLERS that cannot run as asked.

  Args:
    schedule: NoiseSchedule.
    name: of the sampler.
    eta: ddim's; None for its default, as all others need it.
    clip: as clip_xstart.
  """
  if name not in SAMPLERS:
    raise ValueError(f'sample.sampler is {name!r}; it must be one of {", ".join(SAMPLERS)}')
  _check_clip(clip)
  if name not in ('ancestral', 'ddim'):
    _check_signal(schedule.alphas_cumprod[-1], name)
  if eta is None:
    return
  if name != 'ddim':
    raise ValueError(f'sample.eta is {eta}, but sample.sampler={name} has none; only ddim does')
  _check_eta(eta)


def check_prediction(schedule, name, num_steps, mean_type):
  """Raises a ValueError for a prediction that a sampler of so many steps would make noise of.

  A prediction of x_{t-1} is one of x_0 only after division by the weight that x_0 has in it, about
  1e-4 near T, and so are its errors. The whole ancestral chain takes it as it is.
  """
  if mean_type != 'xprev' or (name == 'ancestral' and num_steps == schedule.num_timesteps):
    return
  raise ValueError(
    f'sample.sampler={name} with {num_steps} of {schedule.num_timesteps} steps cannot use '
    'diffusion.mean_type=xprev, which predicts one step alone: use sample.sampler=ancestral with '
    'all steps'
  )


def default_num_steps(name, num_timesteps):
  """Steps of a sampler of SAMPLERS where no number is asked for."""
  return num_timesteps if name == 'ancestral' else min(FEW_STEPS, num_timesteps)


def num_evaluations(name, num_steps):
  """Evaluations of the network that a sampler of SAMPLERS needs for S steps."""
  return 2 * num_steps - 1 if name == 'heun' else num_steps
