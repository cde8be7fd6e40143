"""Arrays in files: examples of any number of axes, of whole numbers or of others.

    data.source='array:/data/recordings.npy'   data.image_size=(128,)   data.channels=6

PATH is a .npy file of examples [N, ..., C], which is mapped into memory; or an .npz file of one
such array (called images, samples, data, x or arr_0) and, if there are any, `labels` or `y`, int
[N]. Examples without an axis of channels have one channel. All are the split 'train', of which
data.holdout makes a test split. PATH can also be a folder of train.npy, test.npy, ... (or .npz);
and an .npz file may have its splits in it, as those of MedMNIST do: train_images, train_labels,
test_images.
"""

import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ddpm_jax.data.labels import Labels
from ddpm_jax.data.pictures import check_finite, picture_axes
from ddpm_jax.data.splits import SPLITS, NoSplitError
from ddpm_jax.errors import UserError
from ddpm_jax.paths import expanded
from ddpm_jax.refusals import raise_refusal
from ddpm_jax.storage.npz import open_npz

FORMS = ('.npy', '.npz')
KEYS = ('images', 'samples', 'data', 'x', 'arr_0')
_LABEL_KEYS = ('labels', 'y')


class ArrayFileSource:
  """Examples of an array, mapped from its file."""

  def __init__(self, name, split, file, key, values, labels):
    self.name, self.split = name, split
    self.image_shape = values.shape[1:]
    self._file, self._key, self._labels = file, key, labels
    self._values, self._length = values, len(values)
    self._opened = self.version()

  def __len__(self):
    return self._length

  def __getstate__(self):
    return self.__dict__ | {'_values': None}  # a worker maps the file anew

  def read(self, indices: np.ndarray) -> np.ndarray:
    """The examples as they are stored, [N, ..., C] for int [N].

    Raises:
      DamagedDataError: an example with a value that is not finite.
      UserError: the file is not the one that was opened any more.
    """
    if self.version() != self._opened:  # a file that is mapped and cut off would kill the process
      raise UserError(
        f'data.source={self.name!r}: {self._file} has changed since it was opened: start again'
      )
    if self._values is None:
      self._values = read_arrays(self._file)[self._key]
    rows = np.asarray(indices)
    values = np.asarray(self._values[rows]).reshape(len(rows), *self.image_shape)
    if values.dtype.kind == 'f':
      for index, value in zip(rows, values, strict=True):
        check_finite(value, f'{self._file}, example {index}')
    return values

  def picture_names(self) -> list[bytes]:
    """The number of each example."""
    return [b'%d' % i for i in range(len(self))]

  def labels(self, choice: str | None) -> Labels | None:
    """The classes of the examples, of which there is no choice."""
    return self._labels if choice is None else None

  def version(self) -> str:
    """sha256 (hex) of the size and the time of the file; empty if the file is gone."""
    try:
      status = self._file.stat()
    except FileNotFoundError:
      return ''
    return hashlib.sha256(b'%d %d' % (status.st_size, status.st_mtime_ns)).hexdigest()


def make_array_source(
  path: str, *, name: str, image_size: int | Sequence[int], channels: int, split: str
) -> ArrayFileSource:
  """Opens the examples of a split; see the module's docstring.

  Raises:
    UserError: no such file, no array in it, or examples of another shape.
    NoSplitError: no such split.
  """
  root = expanded(path).absolute()
  if not root.exists():
    raise UserError(f'data.source={name!r}: {root} does not exist; give a .npy or .npz file')
  file = _file_of(root, name, split) if root.is_dir() else root
  arrays = read_arrays(file)
  present = [word for word in SPLITS if f'{word}_images' in arrays]
  key, labels_key = f'{split}_images', f'{split}_labels'
  if not present:
    if not root.is_dir() and split not in ('train', 'all'):
      raise NoSplitError(
        f"data.split={split!r}: {file} is one set of examples, the split 'train'; "
        "--config.data.holdout=0.1, given when training begins, holds out a tenth as 'test'"
      )
    key = next((key for key in KEYS if key in arrays), '')
    labels_key = next((key for key in _LABEL_KEYS if key in arrays), '')
  elif split not in present:
    raise NoSplitError(f'data.split={split!r}: {file} has the splits {", ".join(present)}')
  if key not in arrays:
    raise UserError(
      f'data.source={name!r}: {file} has {", ".join(arrays) or "nothing"}; examples are under '
      f'{", ".join(KEYS)}'
    )
  shape = (*picture_axes(image_size), channels)
  values = arrays[key]
  if channels == 1 and values.ndim == len(shape):  # without an axis of channels
    values = values[..., None]
  if values.shape[1:] != shape:
    raise UserError(
      f'data.source={name!r}: the examples are {values.dtype}{list(values.shape[1:])}; '
      f'data.image_size={image_size} and data.channels={channels} say {list(shape)}: give '
      f'{_fields(values.shape[1:])}'
    )
  if not len(values):
    raise UserError(f'data.source={name!r}, data.split={split!r}: holds no examples')
  labels = _labels(arrays.get(labels_key), values, file)
  return ArrayFileSource(name, split, file, key, values, labels)


def _file_of(folder, name, split):
  """The file of a split in a folder."""
  found = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in FORMS}
  if split not in found:
    if not found:
      raise UserError(f'data.source={name!r}: no .npy or .npz files in {folder}')
    raise NoSplitError(f'data.split={split!r}: {folder} has {", ".join(found)}')
  return found[split]


def read_arrays(file: pathlib.Path) -> dict[str, Any]:
  """{name: array}, of a .npy file under 'data'; a UserError for a file that is damaged."""
  if file.suffix == '.npz':
    return open_npz(file)
  try:
    return {'data': np.load(file, mmap_mode='r', allow_pickle=False)}
  except (OSError, ValueError, EOFError) as error:
    raise_refusal(file, error)
    reason = ' '.join(str(error).split())
    raise UserError(f'{file} is not an intact .npy file of numbers ({reason})') from error


def _labels(given, values, file):
  if given is None:
    return None
  ids = np.asarray(given).reshape(-1)
  if ids.dtype.kind not in 'iu' or ids.shape != values.shape[:1] or ids.min() < 0:
    raise UserError(
      f'{file}: its labels are {ids.dtype}{list(given.shape)}; they must be int [{len(values)}], a '
      'class 0, 1, ... for each example'
    )
  return Labels(ids.astype(np.int32), tuple(str(i) for i in range(int(ids.max()) + 1)))


def _fields(shape):
  axes = str(tuple(shape[:-1])).replace(' ', '')
  return f'--config.data.image_size={axes} and --config.data.channels={shape[-1] if shape else 1}'
