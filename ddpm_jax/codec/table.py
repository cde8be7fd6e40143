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
from ddpm_jax.codec.channel import Chunk, kl_of
from ddpm_jax.codec.tail import NUM_CLASSES, NUM_ZONES, Rounding, TailModel, classes_of, fit_tail
from ddpm_jax.diffusion.forward import scale_levels
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.errors import UserError

VERSION = 1
GRID = 64  # noise levels at which predictions are measured
CHUNK_BITS = 13  # of a chunk's expected KL, at most
MARGIN_BITS = 15  # the margin at which the tail's cost is measured
STEP_BITS = 0.5  # what an evaluation of the network is worth in the plan
OVERHEAD_BITS = 2  # of a chunk, about
ERROR_UNIT = 16  # errors are kept as -16 log2
MEAN_UNIT = 1024
MIN_SECTION_BITS = 8
_SHRINKAGE = 16  # examples' worth of the mean over elements in an element's error
_LEAST_ERROR = 1e-7
_ORDER_KEY = 0xC0DEC

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
    chunks: of the elements.
    ends_section: whether a section of the file ends after it.
  """

  number: int
  timestep: int
  take: np.float32
  keep: np.float32
  deviation: np.ndarray
  ratio: np.ndarray
  chunks: tuple[Chunk, ...]
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
      path int32 [S], rows of the grid that the steps lead to; chunk_counts int32 [S]; chunk_ends
      and chunk_kls int32 [all chunks]; levels int32 [1], 0 for values of any kind; and those of
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

  def tail(self) -> TailModel | None:
    """The lossless end; None for values of any kind."""
    return None if self.levels is None else TailModel(self.arrays, self.levels)

  def steps(self, schedule: NoiseSchedule) -> list[Step]:
    """The steps from nothing to where the lossless end begins."""
    order, path = shuffled(self.size), self.arrays['path']
    counts = self.arrays['chunk_counts']
    offsets = np.concatenate([[0], np.cumsum(counts)])
    sent, since, steps = 0, 0, []
    before = -1
    for number, row in enumerate(path.tolist()):
      part = slice(offsets[number], offsets[number + 1])
      ends = self.arrays['chunk_ends'][part].tolist()
      kls = self.arrays['chunk_kls'][part].tolist()
      firsts = [0, *ends[:-1]]
      chunks = tuple(Chunk(i, *c) for i, c in enumerate(zip(firsts, ends, kls, strict=True)))
      since += sum(kls)
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
          chunks=chunks,
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
  tails: list[tuple[dict[str, np.ndarray], float]] = []
  for i, t in enumerate(timesteps.tolist()):
    noise = np.random.default_rng([i, count]).standard_normal(x_0.shape, np.float32)
    a = np.float32(schedule.sqrt_alphas_cumprod[t])
    b = np.float32(schedule.sqrt_one_minus_alphas_cumprod[t])
    prediction = predict(a * x_0 + b * noise, t).reshape(count, -1)
    errors.append(_error_codes(np.square(flat - prediction)))
    if levels is not None:
      rounded = Rounding(levels, MARGIN_BITS).round(
        prediction.ravel(), np.zeros(-(-prediction.size // 8), np.int64)
      )
      classes = classes_of(-errors[-1].astype(np.int64))
      arrays, bits = fit_tail(
        examples.reshape(count, -1).astype(np.int64), rounded.reshape(count, -1), classes, levels
      )
      tails.append(({**arrays, 'classes': classes}, bits))
    progress(i + 1, len(timesteps))
  codes = np.stack(errors)
  path = plan_path(schedule, timesteps, codes, [bits for _, bits in tails] or None)
  arrays = {
    'timesteps': timesteps.astype(np.int32),
    'errors': codes,
    'means': means,
    'levels': np.array([levels or 0], np.int32),
    **plan_chunks(schedule, timesteps, codes, path),
  }
  return Table(arrays | (tails[path[-1]][0] if tails else {}))


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


def plan_path(
  schedule: NoiseSchedule,
  timesteps: np.ndarray,
  codes: np.ndarray,
  tail_bits: Sequence[float] | None,
) -> list[int]:
  """The rows of the grid that steps lead to, by which an example costs least (a shortest path).

  Args:
    schedule: NoiseSchedule.
    timesteps: int [G], decreasing.
    codes: uint16 [G + 1, d], as Table has them.
    tail_bits: what the lossless end costs from each row; None: the path goes to the last row.
  """
  count = len(timesteps)
  best, comes_from = np.full(count, np.inf), np.full(count, -1)
  for i in range(-1, count):
    t = None if i < 0 else int(timesteps[i])
    so_far = 0.0 if i < 0 else best[i]
    for j in range(i + 1, count):
      bits = float(expected_kl(schedule, t, int(timesteps[j]), codes[i + 1]).sum())
      cost = so_far + bits + OVERHEAD_BITS * max(1, np.ceil(bits / CHUNK_BITS)) + STEP_BITS
      if cost < best[j]:
        best[j], comes_from[j] = cost, i
  end = count - 1 if tail_bits is None else int(np.argmin(best + np.asarray(tail_bits)))
  path = [end]
  while comes_from[path[-1]] >= 0:
    path.append(int(comes_from[path[-1]]))
  return path[::-1]


def plan_chunks(
  schedule: NoiseSchedule, timesteps: np.ndarray, codes: np.ndarray, path: Sequence[int]
) -> dict[str, np.ndarray]:
  """The chunks of the steps of a path: as few as have CHUNK_BITS at most, of about equal KLs."""
  order, before = shuffled(codes.shape[1]), -1
  counts, ends, kls = [], [], []
  for row in path:
    t = None if before < 0 else int(timesteps[before])
    bits = expected_kl(schedule, t, int(timesteps[row]), codes[before + 1])[order]
    sums = np.concatenate([[0.0], np.cumsum(bits)])
    count = min(len(order), max(1, int(np.ceil(sums[-1] / CHUNK_BITS))))
    cuts = np.searchsorted(sums, sums[-1] * np.arange(1, count) / count)
    cuts = np.unique(np.clip(cuts, 1, len(order) - 1)).tolist() if count > 1 else []
    cuts = [*cuts, len(order)]
    counts.append(len(cuts))
    ends += cuts
    kls += np.maximum(1, np.rint(16 * np.diff(sums[[0, *cuts]]))).astype(int).tolist()
    before = row
  return {
    'path': np.array(path, np.int32),
    'chunk_counts': np.array(counts, np.int32),
    'chunk_ends': np.array(ends, np.int32),
    'chunk_kls': np.array(kls, np.int32),
  }


def check_arrays(arrays: Mapping[str, np.ndarray], size: int, levels: int | None) -> bool:
  """Whether arrays of a file are those of a table, for examples of so many elements and levels."""
  names = {'timesteps', 'errors', 'means', 'levels', 'path', 'chunk_counts', 'chunk_ends'}
  names |= {'chunk_kls'}
  if levels is not None:
    names |= {'classes', *(('prior', 'shapes', 'weights') if levels <= 256 else ('lengths',))}
  if set(arrays) != names or arrays['means'].shape != (size,):
    return False
  if levels is not None and levels <= 256:
    shape = arrays['shapes'].shape[:1]
    if arrays['weights'].shape != (NUM_CLASSES, NUM_ZONES, *shape):
      return False
  fits = arrays['errors'].shape == (len(arrays['timesteps']) + 1, size)
  return bool(fits and arrays['levels'].tolist() == [levels or 0])
