"""What both sides know of a model beside its network: how well it predicts, and what to send when.

A table is fitted on training data once, and kept with the model; files name it by its id. All that
the code of a file goes by follows from its integers: which steps there are, which chunks they have,
the frequencies of indices and of levels. The network gives means alone.

A step goes from x_t to x_s, s < t, with SNR = alphas_cumprod / (1 - alphas_cumprod):

  q(x_s | x_t, x_0) = N(take x_0 + keep x_t, v)                 Eq. 7 of Ho et al. 2020, for longer
  p(x_s | x_t)      = N(take x_0_hat + keep x_t, v (1 + (SNR_s - SNR_t) e))     steps

where x_0_hat is the network's prediction of x_0 and e the expected square of its error, for each
element. Their expected KL is log2(1 + (SNR_s - SNR_t) e) / 2 bits. The first step is from nothing:
SNR_t = 0, and x_0_hat and e are the mean and the variance of the training data.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ddpm_jax.codec.candidates import threefry
from ddpm_jax.codec.channel import FAST_BITS, Pieces, kl_of
from ddpm_jax.codec.tail import MAX_FITTED, Rounding, TailModel, fit_tail, is_tail
from ddpm_jax.diffusion.forward import scale_levels
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.errors import UserError

VERSION = 3
GRID = 64  # noise levels at which predictions are measured
MARGIN_BITS = 15  # the margin at which the tail's cost is measured
STEP_BITS = 0.5  # what an evaluation of the network is worth in the plan
OVERHEAD_BITS = 3  # of a chunk, about
ERROR_UNIT = 16  # errors are kept as -16 log2
MEAN_UNIT = 1024
MIN_SECTION_BITS = 8
_SHRINKAGE = 16  # examples' worth of the mean over elements in an element's error
_LEAST_ERROR = 1e-7
_ORDER_KEY = 0xC0DEC
PLAN_NAMES = 'timesteps', 'path', 'piece_counts', 'piece_ends', 'piece_kls'  # of arrays

Predict = Callable[[np.ndarray, int], np.ndarray]  # (x_t float32 [N, ...], t) -> x_0 float32


@dataclasses.dataclass(frozen=True)
class Step:
  """A step, in shuffled elements.

  Attributes:
    number: 0, 1, ....
    timestep: s, where it leads.
    take, keep: of x_0 and of x_t in the mean.
    deviation: float32 [d] of p.
    ratio: float32 [d], the deviation of q over it.
    pieces: of the elements.
    ends_section: whether a section of the file ends after it.
  """

  number: int
  timestep: int
  take: np.float32
  keep: np.float32
  deviation: np.ndarray
  ratio: np.ndarray
  pieces: Pieces
  ends_section: bool

  def shift(self, x_0: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """The mean of q in units of p, as p has its own at 0: float32 [N, d]."""
    return self.take * (x_0 - prediction) / self.deviation

  def kl(self, x_0: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """KL of q and p in bits, of examples: float64 [N].

    Args:
      x_0: float32 [N, d].
      prediction: of the network before the step, likewise.
    """
    return kl_of(self.shift(x_0, prediction), self.ratio) / np.log(2)


@dataclasses.dataclass(frozen=True)
class Table:
  """The integers of a model's table.

  Attributes:
    arrays: by name. timesteps int32 [G], decreasing, of the grid; errors uint16 [G + 1, d], of the
      elements before the first step (row 0) and of a prediction at each timestep; means int16 [d];
      path int32 [S], rows of the grid that the steps lead to; piece_counts int32 [S]; piece_ends
      and piece_kls int32 [all pieces]; levels int32 [1], 0 for values of any kind; and those of
      TailModel, where there are levels.
  """

  arrays: Mapping[str, np.ndarray]

  @property
  def sha256(self) -> bytes:
    """The digest of all arrays, by name."""
    digest = hashlib.sha256(b'ddpm_jax codec table %d' % VERSION)
    for name in sorted(self.arrays):
      array = self.arrays[name]
      words = f'\n{name} {array.dtype.str} {" ".join(map(str, array.shape))}\n'
      digest.update(words.encode() + np.ascontiguousarray(array).tobytes())
    return digest.digest()

  @property
  def size(self) -> int:
    """Elements of an example."""
    return self.arrays['means'].shape[0]

  @property
  def levels(self) -> int | None:
    """Of the data; None for values of any kind."""
    return int(self.arrays['levels'][0]) or None

  @property
  def means(self) -> np.ndarray:
    """float32 [d], of the training data."""
    return (self.arrays['means'] / MEAN_UNIT).astype(np.float32)

  def tail(self, shape: Sequence[int]) -> TailModel | None:
    """The lossless end of examples of a shape; None for values of any kind."""
    return None if self.levels is None else TailModel(self.arrays, self.levels, shape)

  def steps(self, schedule: NoiseSchedule) -> list[Step]:
    """The steps from nothing to where the lossless end begins."""
    order, path = shuffled(self.size), self.arrays['path']
    ends = np.cumsum(self.arrays['piece_counts'])[:-1]
    pieces = [
      Pieces(*x)
      for x in zip(
        *(np.split(self.arrays[name], ends) for name in ('piece_ends', 'piece_kls')), strict=True
      )
    ]
    sent, since, steps = 0, 0, []
    before = -1
    for number, row in enumerate(path.tolist()):
      since += int(pieces[number].kls.sum())
      is_end = since >= max(16 * MIN_SECTION_BITS, sent // 4) or number + 1 == len(path)
      if is_end:
        sent, since = sent + since, 0
      t = None if before < 0 else int(self.arrays['timesteps'][before])
      s = int(self.arrays['timesteps'][row])
      take, keep, variance, gain = step_coefficients(schedule, t, s)
      excess = 1 + gain * errors_of(self.arrays['errors'][before + 1][order])
      steps.append(
        Step(
          number=number,
          timestep=s,
          take=np.float32(take),
          keep=np.float32(keep),
          deviation=np.sqrt(variance * excess).astype(np.float32),
          ratio=(1 / np.sqrt(excess)).astype(np.float32),
          pieces=pieces[number],
          ends_section=is_end,
        )
      )
      before = row
    return steps


def shuffled(size: int) -> np.ndarray:
  """The order of elements in chunks: that of their words of Threefry, int [d]."""
  zeros, key = np.zeros(size, np.uint32), np.uint32([0, _ORDER_KEY])
  words, _ = threefry(np, (key[:1], key[1:]), (np.arange(size, dtype=np.uint32), zeros))
  return np.argsort(words, kind='stable')


def errors_of(codes: np.ndarray) -> np.ndarray:
  """Squares of errors, float64, of a table's uint16."""
  return np.exp2(codes.astype(np.float64) / -ERROR_UNIT)


def step_coefficients(
  schedule: NoiseSchedule, t: int | None, s: int
) -> tuple[float, float, float, float]:
  """Of a step from x_t to x_s, or from nothing: (take, keep, variance, SNR_s - SNR_t)."""
  signal = float(schedule.alphas_cumprod[s])
  if t is None:
    return signal**0.5, 0.0, 1 - signal, signal / (1 - signal)
  before = float(schedule.alphas_cumprod[t])
  noise, noise_before = 1 - signal, 1 - before
  beta = 1 - before / signal
  take = signal**0.5 * beta / noise_before
  keep = (before / signal) ** 0.5 * noise / noise_before
  return take, keep, beta * noise / noise_before, signal / noise - before / noise_before


def grid(schedule: NoiseSchedule) -> np.ndarray:
  """Timesteps evenly in log-SNR, decreasing, int64 [G]."""
  noise = np.log(schedule.alphas_cumprod) - np.log1p(-schedule.alphas_cumprod)
  wanted = np.linspace(noise[-1], noise[0], GRID)
  nearest = np.abs(noise[None] - wanted[:, None]).argmin(1)
  return np.unique(nearest)[::-1].astype(np.int64)


def fit_table(
  schedule: NoiseSchedule,
  predict: Predict,
  examples: np.ndarray,
  *,
  levels: int | None,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> Table:
  """Fits a table on training data.

  Args:
    schedule: NoiseSchedule.
    predict: of the model.
    examples: [N, ..., C] as scale_levels takes them.
    levels: of the data; None for values of any kind, which have no lossless end.
    progress: told how many of how many noise levels are done.

  Raises:
    UserError: too few examples.
  """
  if len(examples) < 2:
    raise UserError(f'{len(examples)} training example(s): a table of the codec needs two at least')
  x_0 = np.asarray(scale_levels(examples, levels))
  count = len(x_0)
  flat = x_0.reshape(count, -1)
  timesteps = grid(schedule)
  means = np.clip(np.rint(flat.mean(0) * MEAN_UNIT), -(2**15), 2**15 - 1).astype(np.int16)
  errors = [_error_codes(np.square(flat - means / MEAN_UNIT))]
  fitted = slice(max(1, MAX_FITTED // flat.shape[1]))  # of the examples, for the tail
  rounded = []
  for i, t in enumerate(timesteps.tolist()):
    noise = np.random.default_rng([i, count]).standard_normal(x_0.shape, np.float32)
    a = np.float32(schedule.sqrt_alphas_cumprod[t])
    b = np.float32(schedule.sqrt_one_minus_alphas_cumprod[t])
    prediction = predict(a * x_0 + b * noise, t).reshape(count, -1)
    errors.append(_error_codes(np.square(flat - prediction)))
    if levels is not None:
      part = prediction[fitted]
      without = np.zeros(-(-part.size // 8), np.int64)
      whole = Rounding(levels, MARGIN_BITS).round(part.ravel(), without)
      rounded.append(whole.reshape(part.shape).astype(np.uint16))
    progress(i + 1, len(timesteps))
  codes = np.stack(errors)
  costs, comes_from = plan_paths(schedule, timesteps, codes)
  end, tail = len(timesteps) - 1, {}
  if levels is not None:
    values = examples[fitted].reshape(-1, flat.shape[1]).astype(np.int64)
    end, tail = _cheapest_tail(costs, values, rounded, levels, x_0.shape[1:])
  path = _path_to(end, comes_from)
  arrays = {
    'timesteps': timesteps.astype(np.int32),
    'errors': codes,
    'means': means,
    'levels': np.array([levels or 0], np.int32),
    **plan_pieces(schedule, timesteps, codes, path),
  }
  return Table(arrays | tail)


def _cheapest_tail(costs, values, rounded, levels, shape):
  """(row, arrays of the tail): where the chain up to there and the tail cost least together."""
  least, found = np.inf, (len(costs) - 1, {})
  for row in reversed(range(len(costs))):
    arrays, bits = fit_tail(values, rounded[row].astype(np.int64), levels, shape)
    if costs[row] + bits < least:
      least, found = costs[row] + bits, (row, arrays)
    elif bits >= least:  # and with more noise all the more
      break
  return found


def _error_codes(squares):
  """uint16 [d] of squares of errors [N, d]; few examples are helped by the mean of the elements."""
  share = len(squares) / (len(squares) + _SHRINKAGE)
  of_elements = share * squares.mean(0, dtype=np.float64) + (1 - share) * squares.mean()
  codes = np.rint(-ERROR_UNIT * np.log2(np.maximum(of_elements, _LEAST_ERROR)))
  return np.clip(codes, 0, 2**16 - 1).astype(np.uint16)


def expected_kl(schedule: NoiseSchedule, t: int | None, s: int, codes: np.ndarray) -> np.ndarray:
  """Bits of each element of a step from x_t to x_s, given the table's errors at t."""
  gain = step_coefficients(schedule, t, s)[3]
  return 0.5 * np.log2(1 + gain * errors_of(codes))


def plan_paths(
  schedule: NoiseSchedule, timesteps: np.ndarray, codes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The steps by which an example gets to each row of the grid for the least bits.

  Args:
    schedule: NoiseSchedule.
    timesteps: int [G], decreasing.
    codes: uint16 [G + 1, d], as Table has them.

  Returns:
    (bits to each row, float64 [G]; the row before it, int [G], -1 for none): shortest paths.
  """
  count = len(timesteps)
  best, comes_from = np.full(count, np.inf), np.full(count, -1)
  for i in range(-1, count):
    t = None if i < 0 else int(timesteps[i])
    so_far = 0.0 if i < 0 else best[i]
    for j in range(i + 1, count):
      bits = float(expected_kl(schedule, t, int(timesteps[j]), codes[i + 1]).sum())
      cost = so_far + bits + OVERHEAD_BITS * max(1, np.ceil(bits / FAST_BITS)) + STEP_BITS
      if cost < best[j]:
        best[j], comes_from[j] = cost, i
  return best, comes_from


def _path_to(end, comes_from):
  path = [end]
  while comes_from[path[-1]] >= 0:
    path.append(int(comes_from[path[-1]]))
  return path[::-1]


def plan_pieces(
  schedule: NoiseSchedule, timesteps: np.ndarray, codes: np.ndarray, path: Sequence[int]
) -> dict[str, np.ndarray]:
  """The pieces of the steps of a path: of about a bit, but whole elements."""
  order, before = shuffled(codes.shape[1]), -1
  counts, ends, kls = [], [], []
  for row in path:
    t = None if before < 0 else int(timesteps[before])
    bits = expected_kl(schedule, t, int(timesteps[row]), codes[before + 1])[order]
    sums = np.concatenate([[0.0], np.cumsum(bits)])
    cuts = np.searchsorted(sums, np.arange(1, int(sums[-1])), side='left')
    cuts = np.unique([*np.clip(cuts, 1, len(order)), len(order)])
    counts.append(len(cuts))
    ends.append(cuts)
    kls.append(np.diff(np.rint(16 * sums[[0, *cuts]])))
    before = row
  return {
    'path': np.array(path, np.int32),
    'piece_counts': np.array(counts, np.int32),
    'piece_ends': np.concatenate(ends).astype(np.int32),
    'piece_kls': np.concatenate(kls).astype(np.int32),
  }


def check_arrays(
  arrays: Mapping[str, np.ndarray], shape: Sequence[int], levels: int | None
) -> bool:
  """Whether arrays of a file are those of a table, for examples of a shape and so many levels."""
  names, size = {*PLAN_NAMES, 'errors', 'means', 'levels'}, int(np.prod(shape))
  rest = {name: x for name, x in arrays.items() if name not in names}
  if not names <= set(arrays) or not (is_tail(rest, levels, shape) if levels else not rest):
    return False
  fits = arrays['errors'].shape == (len(arrays['timesteps']) + 1, size)
  return bool(
    fits and arrays['means'].shape == (size,) and arrays['levels'].tolist() == [levels or 0]
  )
