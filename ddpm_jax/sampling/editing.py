"""Pictures that are partly known, by a model that was trained on whole ones.

`ddnm` and `pigdm` are functions around a Denoiser, which go with every sampler; RePaint is a chain
of its own, and `depth_timesteps` are those of SDEdit, of any sampler.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.forward import extract, q_sample
from ddpm_jax.diffusion.prediction import Denoiser, check_choice
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.errors import UserError
from ddpm_jax.sampling.ancestral import Chain, ChainState, all_if_none, make_reverse_step
from ddpm_jax.sampling.clip import clipped
from ddpm_jax.sampling.operators import LinearOperator

JUMP_LENGTH, RESAMPLINGS = 10, 10  # RePaint's, on 250 timesteps (Sec. 4.2, Lugmayr et al. 2022)
REPAINT_STEPS = 250


def ddnm(
  denoiser: Denoiser,
  operator: LinearOperator,
  measurement: jax.Array,
  *,
  noise_std: float = 0.0,
) -> Denoiser:
  """DDNM (Wang et al. 2022, Eq. 13): the predicted x_0 moved to where A x_0 is the measurement.

  x_0 + A^+ (y - A x_0): the null space of A is left to the denoiser. Exact where the parts of x_0
  in the null space and beside it are independent; otherwise, samples fit the measurement, but the
  denoiser learns of it by x_t alone. docs/editing.md has the bias.

  Args:
    denoiser: Denoiser, clipped.
    operator: LinearOperator, A.
    measurement: y = A x_0 [B, ...].
    noise_std: of the measurement's noise, by which A^+ is damped; 0 for exact measurements.
  """

  def projected(x_t, t):
    prediction = denoiser(x_t, t)
    residual = measurement - operator.apply(prediction.x_0)
    x_0 = prediction.x_0 + operator.pseudo_inverse(residual, noise_std**2)
    return prediction._replace(x_0=x_0, mean=None)

  return projected


def pigdm(
  denoiser: Denoiser,
  schedule: NoiseSchedule,
  operator: LinearOperator,
  measurement: jax.Array,
  *,
  noise_std: float = 0.0,
  data_variance: float = 1.0,
) -> Denoiser:
  """PiGDM (Song et al. 2023): the predicted x_0 corrected by the score of the measurement.

  With x_0 given x_t taken for N(x_0(x_t), r^2 I), the score of y given x_t is
  J^T A^T (r^2 A A^T + noise_std^2)^-1 (y - A x_0(x_t)), J the Jacobian of x_0(x_t) (Eq. 7 there);
  by Tweedie's formula x_0 gains sigma^2 / alpha times as much. Here r^2 = v sigma^2 / (v alpha^2 +
  sigma^2) with v the data_variance: exact for independent Gaussian data of that variance. The
  paper's Alg. 1 adds the correction at each step in a weight of its own, for 100 steps; this one is
  the score's, whatever the sampler and its steps.

  One evaluation of the network and its derivative a step: about three times the cost.

  Args:
    denoiser: Denoiser, not clipped: clip the result.
    schedule: NoiseSchedule.
    operator: LinearOperator, A.
    measurement: y = A x_0 + noise [B, ...].
    noise_std: of the measurement's noise.
    data_variance: v, of a pixel of the data; the paper's is 1.
  """

  alpha, sigma = schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod
  ratio = alpha**2 + sigma**2 / data_variance  # sigma^2 / r^2
  damping = noise_std**2 * ratio / sigma**2
  # Where x_t holds nothing of x_0, J is 0.
  gain = np.divide(ratio, alpha, out=np.zeros_like(alpha), where=alpha > 0)

  def corrected(x_t, t):
    def predict(x_t):
      prediction = denoiser(x_t, t)
      return prediction.x_0, prediction

    x_0, pull, prediction = jax.vjp(predict, x_t, has_aux=True)
    residual = measurement - operator.apply(x_0)
    (gradient,) = pull(operator.pseudo_inverse(residual, extract(damping, t, residual)))
    x_0 += extract(gain, t, x_t) * gradient
    return prediction._replace(x_0=x_0, mean=None)

  return corrected


def _clipped_ddnm(schedule, denoiser, operator, measurement, *, clip, noise_std):
  del schedule
  return ddnm(clipped(denoiser, clip), operator, measurement, noise_std=noise_std)


def _clipped_pigdm(schedule, denoiser, operator, measurement, *, clip, noise_std):
  return clipped(pigdm(denoiser, schedule, operator, measurement, noise_std=noise_std), clip)


# Methods around a Denoiser, with the clipping where it belongs:
# (schedule, denoiser, operator, measurement, *, clip, noise_std) -> Denoiser.
CONDITIONINGS: Mapping[str, Callable[..., Denoiser]] = {
  'ddnm': _clipped_ddnm,
  'pigdm': _clipped_pigdm,
}
METHODS = (*CONDITIONINGS, 'repaint')  # of the last a chain, of masks alone


def conditioned(
  schedule: NoiseSchedule,
  denoiser: Denoiser,
  operator: LinearOperator,
  measurement: jax.Array,
  *,
  method: str,
  clip: str = 'static',
  noise_std: float = 0.0,
) -> Denoiser:
  """The denoiser of x_0 given x_t and a measurement, for any sampler.

  Args:
    schedule: NoiseSchedule.
    denoiser: Denoiser, not clipped.
    operator: LinearOperator, A.
    measurement: y [B, ...].
    method: one of CONDITIONINGS.
    clip: one of CLIPS, of the predicted x_0.
    noise_std: of the measurement's noise.

  Raises:
    UserError: an unknown name.
  """
  check_choice('edit.method', method, CONDITIONINGS)
  make = CONDITIONINGS[method]
  return make(schedule, denoiser, operator, measurement, clip=clip, noise_std=noise_std)


def repaint_rows(num_steps: int, jump_length: int, resamplings: int) -> np.ndarray:
  """The rows of RePaint's evaluations, int64 [N]: S - 1 is the noisiest timestep, 0 the last.

  From row r an evaluation leads to r - 1. At each multiple of the jump length, noise leads back by
  that length, resamplings - 1 times (Alg. 1 with the jumps of App. B, Lugmayr et al. 2022).
  """
  left = dict.fromkeys(range(0, num_steps - jump_length, jump_length), resamplings - 1)
  rows, row = [], num_steps - 1
  while row >= 0:
    rows.append(row)
    row -= 1
    if left.get(row):
      left[row] -= 1
      row += jump_length
  return np.array(rows)


def check_repaint(jump_length: int, resamplings: int) -> None:
  """Raises a UserError for jumps that are none."""
  for name, value in (('jump_length', jump_length), ('resamplings', resamplings)):
    if value < 1:
      raise UserError(f'{name} is {value}; it must be at least 1')


def repaint_chain(
  schedule: NoiseSchedule,
  denoiser: Denoiser,
  noise_fn: Callable[[jax.Array], jax.Array],
  timesteps: np.ndarray | None = None,
  *,
  variance: str | None,
  known: jax.Array,
  mask: jax.Array,
  jump_length: int = JUMP_LENGTH,
  resamplings: int = RESAMPLINGS,
) -> Chain:
  """RePaint (Alg. 1, Lugmayr et al. 2022): ancestral sampling in which known pixels are replaced.

  After each step the known pixels are those of q(x_t | x_0). Without resampling (resamplings=1),
  the unknown ones hear of them a step late, and samples are biased; jumps back, by noise, let both
  mix. A jump and the evaluation after it are one step of the Chain.

  Args:
    schedule, denoiser, noise_fn, timesteps, variance: as `ancestral`; the noise_fn is asked for any
      int from 0 on, T excepted.
    known: x_0 [B, ..., C]; unknown pixels are of no account.
    mask: bool, broadcasts against x; True where x_0 is known.
    jump_length: timesteps back, of those that are taken.
    resamplings: how often each stretch of that length is gone through.

  Raises:
    UserError: a jump length or a number of resamplings below 1.
  """
  check_repaint(jump_length, resamplings)
  timesteps = all_if_none(schedule, timesteps)
  rows = repaint_rows(len(timesteps), jump_length, resamplings)
  alphas_cumprod = np.append(schedule.alphas_cumprod[timesteps], 1.0)  # of row -1, x_0, the last
  arrived = np.append(rows[0], rows[:-1] - 1)  # the row before each jump, or none
  is_jump = arrived < rows
  kept_signal = np.where(is_jump, alphas_cumprod[rows], 1) / np.where(
    is_jump, alphas_cumprod[arrived], 1
  )
  # The noise of each visit is another; the first visit's is that of ancestral sampling.
  visits = np.array([np.count_nonzero(rows[:i] == row) for i, row in enumerate(rows)])
  draws = timesteps[rows] + 2 * visits * (schedule.num_timesteps + 1)

  def step(i, state):
    def entry(table):
      return jnp.asarray(table, state.x.dtype)[i]

    draw = jnp.asarray(draws, jnp.int32)[i]
    x = state.x
    if is_jump.any():  # to their noise: q(x_t+j | x_t)
      noise = noise_fn(draw + schedule.num_timesteps + 1)
      x = entry(np.sqrt(kept_signal)) * x + entry(np.sqrt(1 - kept_signal)) * noise
    noise = noise_fn(draw)
    reverse_step = make_reverse_step(schedule, denoiser, lambda _: noise, timesteps, variance)
    row = jnp.asarray(rows, jnp.int32)[i]
    _, x, x_0 = reverse_step(len(timesteps) - 1 - row, x)
    reached = alphas_cumprod[rows - 1]
    x_known = entry(np.sqrt(reached)) * known + entry(np.sqrt(1 - reached)) * noise
    return ChainState(jnp.where(mask, x_known, x), (x_0,))

  return Chain(
    len(rows), timesteps[rows], lambda x_T: ChainState(x_T, (jnp.zeros_like(x_T),)), step
  )


def depth_timesteps(
  schedule: NoiseSchedule, timesteps: np.ndarray | None, depth: float
) -> np.ndarray:
  """SDEdit's timesteps (Meng et al. 2022): of a sampler's, those up to a depth.

  A picture noised to the last of them (`noised`), and a sampler with them, make another picture
  like it: the deeper, the freer.

  Args:
    schedule: NoiseSchedule.
    timesteps: int [S] of the whole chain; None for all T.
    depth: in (0, 1], the share of the T timesteps that is gone through again.

  Returns:
    int64 [n], at least the first of them.

  Raises:
    UserError: another depth.
  """
  if not 0 < depth <= 1:
    raise UserError(f'depth is {depth}; it must lie in (0, 1]: the share of the noise steps')
  timesteps = all_if_none(schedule, timesteps)
  count = np.count_nonzero(timesteps + 1 <= round(depth * schedule.num_timesteps))
  return timesteps[: max(count, 1)]


def noised(
  schedule: NoiseSchedule, x_0: jax.Array, timesteps: np.ndarray, noise: jax.Array
) -> jax.Array:
  """x_t [B, ..., C] at the last of some timesteps, q_sample's."""
  t = jnp.full(x_0.shape[:1], int(timesteps[-1]), jnp.int32)
  return q_sample(schedule, x_0, t, noise)
