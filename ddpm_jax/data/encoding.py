"""What the numbers of a data set are, and how they become x_0 on [-1, 1] and come back.

Whole numbers of some levels, as pictures have, go through training as levels 0, 1, ...; values of
any other kind as x_0 itself, each channel shifted and scaled.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ddpm_jax.data.splits import told
from ddpm_jax.errors import UserError

CONTINUOUS = 'continuous'  # as data.levels: values of any kind
MAX_LEVELS = 1 << 16
STORED_DTYPES = (
  *('bool', 'uint8', 'uint16', 'uint32', 'int8', 'int16', 'int32', 'int64'),
  *('float16', 'float32', 'float64'),
)
CHUNK_VALUES = 1 << 24  # that are looked through at a time


@dataclasses.dataclass(frozen=True)
class Encoding:
  """How stored values become x_0.

  Attributes:
    dtype: of the stored values, such as 'int16'.
    levels: how many there are; None for values of any kind.
    lowest: the first level, as it is stored.
    shift, scale: of values of any kind, x_0 = (value - shift) / scale: one of each a channel.
  """

  dtype: str = 'uint8'
  levels: int | None = 256
  lowest: int = 0
  shift: tuple[float, ...] = ()
  scale: tuple[float, ...] = ()

  @property
  def is_of_pictures(self) -> bool:
    """Whether values are those of pictures, 0 to 255 in uint8."""
    return self == PICTURES

  @property
  def half_range(self) -> float:
    """How many stored units one unit of x_0 is; 1 for values of any kind."""
    return 1.0 if self.levels is None else (self.levels - 1) / 2

  @property
  def encoded_dtype(self) -> np.dtype:
    """Of what `encode` returns."""
    if self.levels is None:
      return np.dtype(np.float32)
    return np.dtype(np.uint8 if self.levels <= 256 else np.uint16)

  def encode(
    self, values: np.ndarray, name: Callable[[int], str] = 'example {}'.format
  ) -> np.ndarray:
    """Levels from 0 on, in uint8 or uint16; or x_0 in float32.

    Args:
      values: [N, ..., C], as they are stored.
      name: row -> what to call an example, for errors.

    Raises:
      UserError: a value that the levels do not hold, or that is not finite.
    """
    if self == PICTURES and values.dtype == np.uint8:
      return values
    if self.levels is not None and values.dtype.kind not in 'iub':
      raise UserError(
        f'{name(0)} has {values.dtype}, and data.levels={self.levels} holds whole numbers: give '
        f'those, or begin a new run with data.levels={CONTINUOUS}'
      )
    if self.levels is None:
      scaled = (np.asarray(values, np.float64) - self.shift) / self.scale
      _check_finite(scaled, name)
      return scaled.astype(np.float32)
    shifted = np.asarray(values, np.int64) - self.lowest
    if len(shifted) and not (shifted.min() >= 0 and shifted.max() < self.levels):
      outside = ((shifted < 0) | (shifted >= self.levels)).reshape(len(shifted), -1)
      row = int(np.argmax(outside.any(1)))
      raise UserError(
        f'{name(row)} has values from {values[row].min()} to {values[row].max()}, and '
        f'data.levels={self.levels} holds {self.lowest} to {self.lowest + self.levels - 1}: give '
        'more levels (data.levels), or another first one (data.lowest)'
      )
    return shifted.astype(self.encoded_dtype)

  def stored(self, encoded: np.ndarray) -> np.ndarray:
    """The values of which `encode` made these."""
    if self.levels is None:
      return self.decode(encoded)
    return (encoded.astype(np.int64) + self.lowest).astype(self.dtype)

  def decode(self, x_0: np.ndarray) -> np.ndarray:
    """x_0 float [..., C] as the data are stored: clipped and rounded to the nearest level."""
    if self.levels is None:
      return (np.asarray(x_0, np.float64) * self.scale + self.shift).astype(self.dtype)
    levels = np.rint(np.clip(x_0, -1.0, 1.0) * self.half_range + self.half_range)
    return (levels + self.lowest).astype(self.dtype) if self.lowest else levels.astype(self.dtype)

  def x_0(self, values: np.ndarray) -> np.ndarray:
    """x_0 float32 of stored values, for people to see."""
    encoded = self.encode(np.asarray(values))
    if self.levels is None:
      return encoded
    return (encoded / self.half_range - 1).astype(np.float32)

  def log_scale(self) -> float:
    """Mean of the logarithm of the scale: what a density of x_0 lacks to one of the values."""
    return float(np.mean(np.log(self.scale))) if self.levels is None else 0.0

  def facts(self) -> dict[str, Any]:
    """The attributes as JSON values."""
    return dataclasses.asdict(self) | {'shift': list(self.shift), 'scale': list(self.scale)}


PICTURES = Encoding()


class Encoded:
  """A source whose values are encoded; all else is the source's."""

  def __init__(self, source: Any, encoding: Encoding):
    self.source, self.encoding = source, encoding
    self.dtype = encoding.encoded_dtype

  def __getattr__(self, name):
    if name == 'source':  # which is not there while it is unpickled
      raise AttributeError(name)
    return getattr(self.source, name)

  def __len__(self):
    return len(self.source)

  def read(self, indices: np.ndarray) -> np.ndarray:
    """As Encoding.encode has them."""
    ids = np.asarray(indices)
    return self.encoding.encode(self.source.read(ids), _named(self.source, ids))


def find_encoding(
  source: Any, levels: int | str | None, lowest: int | None, channels: int
) -> Encoding:
  """The encoding of a source's values, of the training split.

  Args:
    source: a Source.
    levels: data.levels: their number; CONTINUOUS; None for 256 of bytes, and for values of any kind
      where they are floating-point numbers.
    lowest: the first of them; None for 0, or for minus half of the levels where numbers have a
      sign.
    channels: of an example.

  Raises:
    UserError: levels that do not go with the values; or values that are not finite, with the
      example.
  """
  dtype = source.read(np.arange(1)).dtype.newbyteorder('=')
  kind = {'b': 'u'}.get(dtype.kind, dtype.kind)
  if str(dtype) not in STORED_DTYPES:
    raise UserError(
      f'data.source={source.name} has {dtype}; it must have numbers of {", ".join(STORED_DTYPES)}'
    )
  if levels == CONTINUOUS or (levels is None and kind == 'f'):
    least, most = _range(source, channels)
    scale = np.where(most > least, (most - least) / 2, 1.0)
    stored = str(dtype) if kind == 'f' else 'float32'
    return Encoding(stored, None, 0, tuple(((least + most) / 2).tolist()), tuple(scale.tolist()))
  if kind == 'f':
    raise UserError(
      f'data.levels is {levels}, but data.source={source.name} has {dtype}, values of any kind: '
      f'give data.levels={CONTINUOUS}, or whole numbers'
    )
  if levels is None:
    if dtype.itemsize > 1:
      least, most = (int(x) for x in _range_of_all(source, channels))
      needed = max(most + 1, 1) if least >= 0 else 2 * max(-least, most + 1)
      needed = 1 << max(1, (needed - 1).bit_length())
      raise UserError(
        f'data.levels is not given, and data.source={source.name} has {dtype} from {least} to '
        f'{most}: give data.levels={needed}, which holds them, or data.levels={CONTINUOUS}'
      )
    levels = 2 if dtype.kind == 'b' else 256
  assert isinstance(levels, int)
  if lowest is None:
    lowest = -(levels // 2) if kind == 'i' else 0
  info = np.iinfo(np.uint8 if dtype.kind == 'b' else dtype)
  if lowest < info.min or lowest + levels - 1 > info.max:
    raise UserError(
      f'data.levels={levels} from {lowest} on are more than {dtype} has, which is what '
      f'data.source={source.name} holds: give data.levels={min(MAX_LEVELS, info.max - lowest + 1)}'
    )
  encoding = Encoding(str(dtype), levels, lowest)
  if (lowest, lowest + levels - 1) != (info.min, info.max):  # otherwise they hold any value
    for ids, values in _chunks(source):
      encoding.encode(values, _named(source, ids))
  return encoding


def _named(source, ids) -> Callable[[int], str]:
  """row -> what to call the example of that row."""

  def name(row):
    names = told(source, 'picture_names')  # of all examples: not before one of them is to be named
    number = ids[row] if names is None else names[ids[row]].decode(errors='replace')
    return f'data.source={source.name} ({source.split}): example {number}'

  return name


def _chunks(source) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """(ids, values) of some examples after the others."""
  count = max(1, CHUNK_VALUES // int(np.prod(source.image_shape)))
  for first in range(0, len(source), count):
    ids = np.arange(first, min(first + count, len(source)))
    yield ids, source.read(ids)


def _range(source, channels):
  """(least, most), float64 [C] each, over the split."""
  least, most = np.full(channels, np.inf), np.full(channels, -np.inf)
  for ids, values in _chunks(source):
    _check_finite(values, _named(source, ids))
    flat = np.asarray(values, np.float64).reshape(-1, channels)
    least, most = np.minimum(least, flat.min(0)), np.maximum(most, flat.max(0))
  return least, most


def _range_of_all(source, channels):
  least, most = _range(source, channels)
  return least.min(), most.max()


def _check_finite(values, name):
  if values.dtype.kind == 'f' and not np.isfinite(values).all():
    row = int(np.argmin(np.isfinite(values).reshape(len(values), -1).all(1)))
    raise UserError(f'{name(row)} has a value that is not finite: mend it, or leave it out')
