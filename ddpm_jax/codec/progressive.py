"""The codec: examples to files that decode further the more of them has arrived, and back.

A file's sections are those of the table's steps (Alg. 3 and 4 of Ho et al. 2020), and at last the
lossless end. Both sides run the same chain; only the encoder knows x_0.
"""

import dataclasses
import hashlib
import re
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from ddpm_jax.codec.channel import Drawn, Pace, Search, decode_step
from ddpm_jax.codec.encoder import encode_step
from ddpm_jax.codec.format import Compressed, Header
from ddpm_jax.codec.range_coder import RangeDecoder, RangeEncoder
from ddpm_jax.codec.table import Predict, Step, Table, errors_of, shuffled, step_coefficients
from ddpm_jax.codec.tail import Rounding, read_offsets, write_offsets
from ddpm_jax.diffusion.forward import scale_levels
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.errors import UserError

COMPLETIONS = ('ancestral', 'flow')
MARGIN_BITS = 15
PICTURE_CHECK_BYTES = 4  # at the end of the last section


@dataclasses.dataclass(frozen=True)
class Goal:
  """What a file is to reach: the exact example, or as much as fits, or a distortion.

  Attributes:
    num_bytes: of the file, at most; None: no limit.
    rmse: of the prediction, in stored units, at most; None: the exact example.
  """

  num_bytes: int | None = None
  rmse: float | None = None

  @property
  def is_lossless(self) -> bool:
    """Whether the exact example is to be reached."""
    return self.num_bytes is None and self.rmse is None


_GOAL = re.compile(r'lossless|(bytes|rmse):([0-9]+(?:\.[0-9]*)?(?:e[+-]?[0-9]+)?|\.[0-9]+)')


def parse_goal(given: str, field: str = 'target') -> Goal:
  """The Goal of 'lossless', 'bytes:400' or 'rmse:12'.

  Raises:
    UserError: none of these.
  """
  match = _GOAL.fullmatch(given) if isinstance(given, str) else None
  if match is not None:
    kind, number = match.groups()
    if kind is None:
      return Goal()
    if kind == 'bytes' and number.isdigit() and int(number) > 0:
      return Goal(num_bytes=int(number))
    if kind == 'rmse' and 0 < float(number) < float('inf'):
      return Goal(rmse=float(number))
  raise UserError(
    f'{field} is {given!r}; it must be lossless, bytes:N such as bytes:400, or rmse:R such as '
    'rmse:12'
  )


@dataclasses.dataclass(frozen=True)
class Decoded:
  """An example, as far as its file had it.

  Attributes:
    x_0: float32 [...], the prediction; the mean of the training data without any section.
    levels: int64 [...], the exact example; None where the file does not have it.
    x_t: float32 [...], the state reached; None without any section.
    row: of the table's grid, of the state; -1 without any.
    note: what was amiss; None if nothing was.
  """

  x_0: np.ndarray
  levels: np.ndarray | None
  x_t: np.ndarray | None
  row: int
  note: str | None


@dataclasses.dataclass(frozen=True)
class Codec:
  """The codec of a model.

  Attributes:
    schedule: NoiseSchedule.
    table: Table.
    predict: (x_t float32 [N, ...], t) -> x_0 float32.
    shape: of an example.
    model_id: 8 bytes.
  """

  schedule: NoiseSchedule
  table: Table
  predict: Predict
  shape: tuple[int, ...]
  model_id: bytes

  @property
  def half_range(self) -> float:
    """Stored units of one unit of x_0."""
    return 1.0 if self.table.levels is None else (self.table.levels - 1) / 2

  def header(self, seed: int, search: Search, margin_bits: int = MARGIN_BITS) -> Header:
    """The header of this model's files."""
    table_id = self.table.sha256[:4]
    levels = self.table.levels
    return Header(self.model_id, table_id, seed, search, margin_bits, self.shape, levels)

  def encode(
    self,
    examples: np.ndarray,
    goal: Goal,
    *,
    seed: int = 0,
    search: Search | None = None,
    margin_bits: int = MARGIN_BITS,
    progress: Callable[[int, int], None] = lambda done, total: None,
  ) -> list[Compressed]:
    """Compresses examples. What a file says depends on its example and the seed.

    Of a goal by error, the last bytes of a file may depend on how far others of the batch go.

    Args:
      examples: [N, ..., C] as scale_levels takes them.
      goal: Goal; the nearest that can be reached is, where it cannot.
      seed: of the codebooks.
      search: Search; None for the fast one.
      margin_bits: predictions may differ by 2^-margin_bits of x_0 where they are decoded.
      progress: told how many of how many steps are done.

    Raises:
      UserError: values of any kind are to be lossless.
    """
    search = Search() if search is None else search
    tail, header = self.table.tail(self.shape), self.header(seed, search, margin_bits)
    if goal.is_lossless and tail is None:
      raise UserError(
        'values of any kind have no lossless end: give a target such as rmse:0.05 or bytes:400'
      )
    order, count = shuffled(self.table.size), len(examples)
    x_0 = np.asarray(scale_levels(examples, self.table.levels)).reshape(count, -1)[:, order]
    encoders = [RangeEncoder() for _ in range(count)]
    privates = [np.random.default_rng(_words(seed, example)) for example in examples]
    paces = [Pace() for _ in range(count)]
    steps = self.table.steps(self.schedule)
    x = np.zeros_like(x_0)
    prediction = np.tile(self.table.means[order], (count, 1))
    rmse = np.full((count, 1), self._rmse(prediction, x_0)[:, None])
    for step in steps:
      mean = step.take * prediction + step.keep * x
      drawn = encode_step(
        encoders,
        step.number,
        step.pieces,
        search,
        paces,
        seed=seed,
        shift=step.shift(x_0, prediction),
        ratio=step.ratio,
        privates=privates,
      )
      x = _next_state(step, mean, drawn, seed)
      prediction = self._predict(x, step.timestep, order)
      progress(step.number + 1, len(steps) + (tail is not None))
      if step.ends_section:
        for encoder in encoders:
          encoder.end_section()
        rmse = np.concatenate([rmse, self._rmse(prediction, x_0)[:, None]], axis=1)
        if _is_reached(goal, rmse, encoders):
          break
    checks: list[bytes] | None = None
    if step is steps[-1] and tail is not None and not _is_reached(goal, rmse, encoders):
      rounding, inverse = Rounding(tail.levels, margin_bits), np.argsort(order)
      for encoder, example, predicted in zip(encoders, examples, prediction, strict=True):
        offsets = rounding.choose(predicted[inverse])
        write_offsets(encoder, offsets)
        rounded = rounding.round(predicted[inverse], offsets)
        tail.write(encoder, example.reshape(-1).astype(np.int64), rounded)
        encoder.end_section()
      rmse = np.concatenate([rmse, np.zeros((count, 1))], axis=1)
      checks = [_picture_check(example) for example in examples]
    files = []
    for row, encoder in enumerate(encoders):
      code, ends = encoder.finish()
      sections = [code[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
      if checks is not None:
        sections[-1] += checks[row]
      files.append(_trimmed(Compressed(header, tuple(sections)), goal, rmse[row]))
    return files

  def decode(
    self,
    files: Sequence[Compressed],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    at_steps: Callable[[np.ndarray], None] = lambda x_0: None,
  ) -> list[Decoded]:
    """Decodes files, each as far as it goes; one evaluation of the network a step.

    Args:
      files: Compressed.
      progress: told how many of how many steps are done.
      at_steps: told the predictions, float32 [N, ...], before the first step and after each.

    Raises:
      UserError: a file of another model, table or shape.
    """
    for file in files:
      self.check(file)
    order, steps = shuffled(self.table.size), self.table.steps(self.schedule)
    inverse, count = np.argsort(order), len(files)
    lossy = self.lossy_sections
    decoders = [RangeDecoder(_code(file, lossy)) for file in files]
    paces = [Pace() for _ in files]
    sections = np.array([min(len(file.sections), lossy) for file in files])
    notes = [_note_on(file) for file in files]
    x = np.zeros((count, len(order)), np.float32)
    prediction = np.tile(self.table.means[order], (count, 1))
    at_steps(prediction[:, inverse].reshape(count, *self.shape))
    rows, section, saved = np.full(count, -1), 0, (x, prediction)
    for step, row in zip(steps, self.table.arrays['path'].tolist(), strict=True):
      active = np.flatnonzero(sections > section)
      if not len(active):
        break
      drawn = []
      for i in active.tolist():
        search = files[i].header.search
        try:
          drawn.append(decode_step([decoders[i]], step.number, step.pieces, search, [paces[i]]))
        except UserError:
          drawn.append(Drawn.none(1, len(order)))
          sections[i], notes[i] = section, f'{files[i].name} is damaged from section {section} on'
      x, prediction = x.copy(), prediction.copy()
      for i, found in zip(active.tolist(), drawn, strict=True):
        mean = step.take * prediction[i : i + 1] + step.keep * x[i : i + 1]
        x[i] = _next_state(step, mean, found, files[i].header.seed)[0]
      prediction[active] = self._predict(x[active], step.timestep, order)
      failed = active[sections[active] <= section]  # which stay where their last section ended
      x[failed], prediction[failed] = saved[0][failed], saved[1][failed]
      progress(step.number + 1, len(steps))
      if step.ends_section:
        section, saved = section + 1, (x, prediction)
        rows[sections >= section] = row
      at_steps(prediction[:, inverse].reshape(count, *self.shape))
    decoded, tail = [], self.table.tail(self.shape)
    for i, file in enumerate(files):
      levels = None
      if sections[i] == lossy < len(file.sections):
        levels, why = self._read_tail(tail, decoders[i], file, prediction[i][inverse])
        notes[i] = notes[i] or why
      shaped = prediction[i][inverse].reshape(self.shape)
      state = None if rows[i] < 0 else x[i][inverse].reshape(self.shape)
      decoded.append(Decoded(shaped, levels, state, int(rows[i]), notes[i]))
    return decoded

  def complete(self, decoded: Sequence[Decoded], kind: str, *, seed: int = 0) -> np.ndarray:
    """Goes on from where files ended to x_0, float32 [N, ...], with what the model expects.

    Args:
      decoded: as decode returns it.
      kind: 'ancestral', random steps; or 'flow', the probability flow's, which are not (DDIM's).
      seed: of the noise.

    Raises:
      UserError: another kind.
    """
    if kind not in COMPLETIONS:
      raise UserError(
        f'decompress.completion is {kind!r}; it must be one of {", ".join(COMPLETIONS)}'
      )
    timesteps = self.table.arrays['timesteps'].tolist()
    x = np.stack([np.zeros(self.shape, np.float32) if d.x_t is None else d.x_t for d in decoded])
    rows = np.array([d.row for d in decoded])
    if (none := np.flatnonzero(rows < 0)).size:
      x[none] = np.random.default_rng([seed, 0]).standard_normal(x[none].shape, np.float32)
      rows[none] = 0
    x_0 = np.zeros_like(x)
    for row, t in enumerate(timesteps):
      active = np.flatnonzero(rows <= row)
      if not len(active):
        continue
      x_0[active] = self.predict(x[active], t)
      if row + 1 == len(timesteps):
        break
      s = timesteps[row + 1]
      if kind == 'ancestral':
        take, keep, variance, gain = step_coefficients(self.schedule, t, s)
        spread = variance * (1 + gain * errors_of(self.table.arrays['errors'][row + 1]))
        noise = np.random.default_rng([seed, row + 1]).standard_normal(x.shape, np.float32)
        noise *= np.sqrt(spread).astype(np.float32).reshape(self.shape)
        x[active] = np.float32(take) * x_0[active] + np.float32(keep) * x[active] + noise[active]
      else:
        a, b = (np.float32(self.schedule.sqrt_alphas_cumprod[i]) for i in (t, s))
        c, d = (np.float32(self.schedule.sqrt_one_minus_alphas_cumprod[i]) for i in (t, s))
        x[active] = b * x_0[active] + d / c * (x[active] - a * x_0[active])
    return x_0

  def kls(self, x_0: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """KLs of the steps, as examples have them: float64 [S, N], in bits.

    Args:
      x_0: float32 [N, ...].
      predictions: [S + 1, N, ...], as decode tells them at_steps.
    """
    order, steps = shuffled(self.table.size), self.table.steps(self.schedule)
    x_0 = x_0.reshape(len(x_0), -1)[:, order]
    before = predictions[:-1].reshape(-1, *x_0.shape)[:, :, order]
    return np.stack([step.kl(x_0, x) for step, x in zip(steps, before, strict=True)])

  @property
  def lossy_sections(self) -> int:
    """How many sections a file has before the lossless end."""
    return sum(step.ends_section for step in self.table.steps(self.schedule))

  def payload_bytes(self, file: Compressed) -> int:
    """Bytes of a file's code, without header, lengths and checksums."""
    return len(_code(file, self.lossy_sections))

  def check(self, file: Compressed) -> None:
    """Raises a UserError for a file of another model, table or kind of examples."""
    expected = self.header(file.header.seed, file.header.search, file.header.margin_bits)
    found = file.header
    if found.shape != expected.shape or found.levels != expected.levels:
      raise UserError(
        f'{file.name} has an example of {list(found.shape)} with {found.levels or "any"} levels; '
        f'this model has {list(expected.shape)} with {expected.levels or "any"}'
      )
    if found.model_id != expected.model_id:
      raise UserError(
        f'{file.name} is of the model {found.model_id.hex()}, and this one is '
        f'{expected.model_id.hex()}: take the model and the step that compressed it'
      )
    if found.table_id != expected.table_id:
      raise UserError(
        f'{file.name} goes with the table {found.table_id.hex()}, and the one kept here is '
        f'{expected.table_id.hex()}: take the codec table of the workdir that compressed it'
      )

  def _read_tail(self, tail, decoder, file, predicted):
    """(levels, None), or (None, a line on what is wrong)."""
    rounding = Rounding(tail.levels, file.header.margin_bits)
    try:
      offsets = read_offsets(decoder, -(-len(predicted) // rounding.block))
      levels = tail.read(decoder, rounding.round(predicted, offsets)).reshape(self.shape)
    except UserError:
      levels = None
    if levels is None or _picture_check(levels) != file.sections[-1][-PICTURE_CHECK_BYTES:]:
      return None, (
        f'{file.name}: its last section does not give the picture that was compressed; either it '
        'is damaged, or this machine predicts other numbers than the one that wrote it by more '
        f'than the margin, 2^-{file.header.margin_bits}: compress with a wider margin, a smaller '
        'compress.margin_bits'
      )
    return levels, None

  def _predict(self, x, t, order):
    """In shuffled elements."""
    shaped = np.empty_like(x)
    shaped[:, order] = x
    found = self.predict(shaped.reshape(len(x), *self.shape), t)
    return found.reshape(len(x), -1)[:, order]

  def _rmse(self, prediction, x_0):
    """[N], in stored units."""
    return self.half_range * np.sqrt(np.square(prediction - x_0).mean(1, dtype=np.float64))


def _next_state(step: Step, mean, drawn, seed):
  return mean + step.deviation * drawn.numbers(seed)


def _code(file, lossy):
  """The code of a file, without the check of its picture."""
  code = b''.join(file.sections)
  return code[:-PICTURE_CHECK_BYTES] if len(file.sections) > lossy else code


def _picture_check(levels):
  """CRC-32 of the levels in two bytes each, the upper one first."""
  return zlib.crc32(np.asarray(levels).astype('>u2').tobytes()).to_bytes(PICTURE_CHECK_BYTES, 'big')


def _words(seed, example):
  """Of an example's private random numbers."""
  digest = hashlib.sha256(np.ascontiguousarray(example).tobytes()).digest()
  return [seed, *np.frombuffer(digest, np.uint32).tolist()]


def _is_reached(goal, rmse, encoders):
  """Whether no file needs a further section."""
  if goal.rmse is not None:
    return bool((rmse.min(1) <= goal.rmse).all())
  return goal.num_bytes is not None and min(x.num_bytes for x in encoders) > goal.num_bytes


def _trimmed(file, goal, rmse):
  """As much of a file as the goal takes; the header alone is the least."""
  if goal.rmse is not None:
    reached = np.flatnonzero(rmse <= goal.rmse)
    return file.first(int(reached[0])) if len(reached) else file
  if goal.num_bytes is not None:
    lengths = [len(file.first(k).to_bytes()) for k in range(len(file.sections) + 1)]
    return file.first(max([k for k, x in enumerate(lengths) if x <= goal.num_bytes], default=0))
  return file


def _note_on(file):
  """What is amiss with a file as it is; None if nothing is."""
  notes = [file.beyond]
  if file.is_cut:
    whole = f'of its sections, {len(file.sections)} are whole'
    notes = [f'{file.name} is cut off or damaged: {whole}', file.beyond]
  return '; '.join(filter(None, notes)) or None
