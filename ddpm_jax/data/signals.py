"""Recordings in files, in windows: a folder of WAV, FLAC or CSV.

    data.source='signals:/data/motion'   data.image_size=(128,)   data.channels=6   data.stride=32

All files of a kind in the folder and its subfolders, sorted by relative path; splits as those of a
folder of pictures (motion/train, motion/test, or data.holdout, by the file). An example is a window
of data.image_size samples of one file; windows begin every data.stride samples, by default one
after the other. Files shorter than a window are left out, and counted.

Samples of 8 and 16 bits are whole numbers, of 256 and 65,536 levels (data.levels); those of 24 or
32 bits and floating-point ones are values of any kind, of which 1 is full scale. The columns of a
CSV file are channels; a first line of their names is passed over, and that of the first file tells
data.channel_names. With data.labels='folders' the folder that a file lies in is its class.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.data.folder import files_of_split
from ddpm_jax.data.listing import PictureFile
from ddpm_jax.data.pictures import DamagedDataError, check_finite, picture_axes
from ddpm_jax.data.windows import WindowsSource, long_enough
from ddpm_jax.errors import UserError
from ddpm_jax.refusals import raise_refusal

EXTENSIONS = ('.csv', '.flac', '.wav')
_WHAT = 'recordings'
# How samples are kept, by the subtype of the file; those of 8 bits are read as 16.
_DTYPES = {
  'PCM_S8': 'int8',
  'PCM_U8': 'int8',
  'PCM_16': 'int16',
  'PCM_24': 'float32',
  'PCM_32': 'float64',
  'FLOAT': 'float32',
  'DOUBLE': 'float64',
}


class Recording(NamedTuple):
  """What the head of a file says.

  Attributes:
    length: in samples.
    channels: number.
    rate: in samples a second; None if the file does not say it.
    dtype: of the samples, as they are kept.
  """

  length: int
  channels: int
  rate: int | None
  dtype: str


class SignalsSource(WindowsSource):
  """Windows of recordings, [N, samples, C]; `rate` is in samples a second, or None."""

  def __init__(
    self,
    root: pathlib.Path,
    files: Sequence[PictureFile],
    recordings: Sequence[Recording],
    *,
    length: int,
    channel_names: tuple[str, ...] | None = None,
    **choices: Any,
  ):
    first = recordings[0]
    lengths = [recording.length for recording in recordings]
    super().__init__(root, files, lengths, shape=(length, first.channels), what=_WHAT, **choices)
    self.rate, self.channel_names, self._dtype = first.rate, channel_names, first.dtype

  def read(self, indices: np.ndarray) -> np.ndarray:
    """Returns the windows as they are stored, [N, length, C] for int [N].

    Raises:
      DamagedDataError: a file that cannot be read, or a window with a value that is not finite.
    """
    rows, length = np.asarray(indices), self.image_shape[0]
    values = np.empty((len(rows), *self.image_shape), self._dtype)
    for row, index in enumerate(rows):
      path, start = self._path(self._file_of[index]), int(self._starts[index])
      values[row] = _read(path, start, length, self._dtype)
      check_finite(values[row], f'{path}, samples {start} to {start + length - 1}')
    return values


def _soundfile(path):
  try:
    import soundfile
  except ImportError as error:
    raise UserError(
      f'reading {path} needs the package soundfile: pip install soundfile, or the extra signals of '
      'this one'
    ) from error
  return soundfile


def _head(path) -> Recording:
  """Of a file.

  Raises:
    UserError: a file of another kind than its name says.
  """
  if path.suffix.lower() == '.csv':
    values = _read_csv(path, path.stat().st_mtime_ns)
    return Recording(len(values), values.shape[1], None, str(values.dtype))
  soundfile = _soundfile(path)
  try:
    info = soundfile.info(str(path))
  except (RuntimeError, OSError) as error:
    raise_refusal(path, error)
    raise DamagedDataError(f'{path} is no recording, or damaged ({_line(error)})') from error
  if info.subtype not in _DTYPES:
    raise UserError(f'{path} has samples of the kind {info.subtype}; give {", ".join(_DTYPES)}')
  return Recording(info.frames, info.channels, info.samplerate, _DTYPES[info.subtype])


def _read(path, start, length, dtype):
  """Samples of a file, [length, C]."""
  if path.suffix.lower() == '.csv':
    return _read_csv(path, path.stat().st_mtime_ns)[start : start + length]
  soundfile = _soundfile(path)
  try:
    with soundfile.SoundFile(str(path)) as file:
      file.seek(start)
      read_as = 'int16' if dtype == 'int8' else dtype
      values = file.read(length, dtype=read_as, always_2d=True)
  except (RuntimeError, OSError) as error:
    raise_refusal(path, error)
    raise DamagedDataError(f'{path} is damaged ({_line(error)})') from error
  if len(values) != length:
    raise DamagedDataError(f'{path} is cut off: it has no samples {start} to {start + length - 1}')
  return values >> 8 if dtype == 'int8' else values


@functools.lru_cache(maxsize=64)
def _read_csv(path, changed_ns):
  """All values of a file, [length, C]: int32 where all are whole, else float64."""
  del changed_ns  # part of the cache's key
  try:
    lines = path.read_text().splitlines()
    skipped = 0 if _csv_names(lines[:1]) is None else 1
    if not lines[skipped:]:
      return np.zeros((0, 1))
    values = np.loadtxt(lines[skipped:], dtype=np.float64, delimiter=',', ndmin=2)
  except (ValueError, UnicodeDecodeError) as error:
    raise DamagedDataError(f'{path} is no table of numbers with commas ({_line(error)})') from error
  is_whole = '.' not in ''.join(lines[skipped:]) and np.isfinite(values).all()
  if is_whole and np.abs(values).max() < 2**31:
    return values.astype(np.int32)
  return values


def _csv_names(lines: Sequence[str]) -> tuple[str, ...] | None:
  """The names of the columns, which the first line has unless it begins with a number."""
  if not lines or _is_number(lines[0].split(',')[0]):
    return None
  return tuple(name.strip().strip('"') for name in lines[0].split(','))


def _is_number(text):
  try:
    float(text)
  except ValueError:
    return False
  return True


def _line(error):
  return ' '.join(str(error).split())


def _channel_names(path, channels):
  """Of a file: None where it has none, or not one for each channel."""
  if path.suffix.lower() != '.csv':
    return None
  with path.open() as file:
    names = _csv_names(file.readline().splitlines())
  return names if names is not None and len(names) == channels and all(names) else None


def make_signals_source(
  path: str,
  *,
  name: str,
  image_size: int | Sequence[int],
  channels: int,
  split: str,
  stride: int | None = None,
) -> Any:
  """Opens the recordings of a split; see the module's docstring.

  Raises:
    UserError: no folder, no recordings, windows longer than any, or files that do not go together.
    NoSplitError: no such split.
  """
  axes = picture_axes(image_size)
  if len(axes) != 1:
    raise UserError(
      f'data.image_size is {image_size}, but data.source={name} has signals: give the samples of a '
      'window, with a comma, as in --config.data.image_size=128,'
    )
  folder, listing = files_of_split(path, name=name, split=split, extensions=EXTENSIONS, what=_WHAT)
  heads = [_head(folder / file.path) for file in listing.pictures]
  first = heads[0]
  for file, head in zip(listing.pictures, heads, strict=True):
    for what, ours, theirs in (
      ('channels', first.channels, head.channels),
      ('samples a second', first.rate, head.rate),
      ('as the type of samples', first.dtype, head.dtype),
    ):
      if ours != theirs:
        raise UserError(
          f'data.source={name!r}: {listing.pictures[0].path} has {ours} {what}, and {file.path} '
          f'{theirs}; give recordings that are alike, or convert them'
        )
  if first.channels != channels:
    raise UserError(
      f'data.channels is {channels}, but the recordings of data.source={name} have '
      f'{first.channels}: give --config.data.channels={first.channels}'
    )
  lengths = [head.length for head in heads]
  long, left_out = long_enough(
    listing.pictures, lengths, axes, folder=folder, what=_WHAT, unit='samples'
  )
  return SignalsSource(
    folder,
    [listing.pictures[i] for i in long],
    [heads[i] for i in long],
    name=name,
    split=split,
    length=axes[0],
    stride=stride or axes[0],
    channel_names=_channel_names(folder / listing.pictures[long[0]].path, channels),
    remarks=listing.remarks(folder) + left_out,
  )
