"""The sources of examples, by the name that `data.source` gives.

digits                                the embedded 8x8 handwritten digits   digits.py
tfds:NAME, tfds:NAME/CONFIG           TensorFlow Datasets                   tfds.py
cifar10                               TFDS or the official archive          cifar10.py
folder:PATH                           a folder of pictures                  folder.py
watch                                 the embedded motion of a smartwatch   watch.py
brain_blocks                          embedded blocks of an averaged brain  brain_blocks.py
signals:PATH                          recordings, WAV, FLAC or CSV          signals.py
volumes:PATH                          NIfTI files, or MedMNIST's .npz       volumes.py
array:PATH                            examples of any shape in an array     arrays.py
frames:PATH                           moving pictures, GIF, APNG or WebP    frames.py
celebahq256                           TFDS or a folder                      celebahq.py
lsun_bedroom, lsun_church, lsun_cat   LSUN's lmdb or a folder               lsun.py
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ddpm_jax.data import (
  arrays,
  brain_blocks,
  celebahq,
  cifar10,
  digits,
  folder,
  frames,
  lsun,
  signals,
  tfds,
  volumes,
  watch,
)
from ddpm_jax.data.pictures import picture_axes
from ddpm_jax.data.splits import NoSplitError, check_holdout, hold_out, told
from ddpm_jax.errors import UserError

OF_ANY_SHAPE = (
  'array',
  'watch',
  'brain_blocks',
  'signals',
  'volumes',
  'frames',
  'tfds',
)  # what names begin with of sources that have more than pictures
WITH_WINDOWS = ('signals:', 'frames:')


class Source(Protocol):
  """Random access to examples of one shape; can be pickled, for workers.

  Attributes:
    name: the source as the config names it.
    split: name of the split.
    image_shape: of an example, (H, W, C) of a picture.
  """

  name: str
  split: str
  image_shape: tuple[int, ...]

  def __len__(self) -> int:
    """Returns the number of pictures."""

  def read(self, indices: np.ndarray) -> np.ndarray:
    """Returns the examples as they are stored, uint8 [N, H, W, C] of pictures, for int [N]."""

  # Optional, for more to be said and checked:
  # dtype: of what `read` returns, if it is not uint8;
  # rate: samples or frames a second, None where that is not known;
  # channel_names: None likewise;
  # decodes: whether `read` decodes pictures, so that its results are worth keeping;
  # remarks: lines for the user on what was read, and what was left out;
  # names() -> bytes, the names of all pictures in their order;
  # picture_names() -> list of bytes, which data.holdout goes by;
  # picture_files() -> list of listing.PictureFile;
  # version() -> str, which changes when pictures may have changed;
  # labels(choice) -> labels.Labels, the class of each picture, or None; data.labels is the choice.


def make_source(
  source: str,
  *,
  dir: str | None,
  image_size: int | Sequence[int],
  channels: int,
  split: str,
  holdout: float | None = None,
  stride: int | None = None,
  feature: str | None = None,
) -> Source:
  """Opens a data set.

  Args:
    source: one of the forms above (config: data.source).
    dir: folder of the data set, or None for TFDS's default folder (data.dir).
    image_size: side of the pictures in pixels, or height and width; others are cropped and resized
      (data.image_size).
    channels: 1 (grey) or 3 (RGB) (data.channels).
    split: 'train', 'test', ...; each source has its own (data.split).
    holdout: part of the pictures of 'train' that is the split 'test' instead, where the source has
      none of its own (data.holdout).
    stride: samples between windows of signals, or frames (data.stride).
    feature: of the examples of TFDS, where several fit (data.feature).

  Returns:
    A Source with at least one picture.

  Raises:
    UserError: a name or folder that is not there, in one line.
    NoSplitError: a split that is not there, likewise.
  """
  if min(picture_axes(image_size)) < 1:
    raise UserError(f'data.image_size={image_size}: must be at least 1')
  if takes_pictures(source) and channels not in (1, 3):
    raise UserError(f'data.channels={channels}: must be 1 (grey) or 3 (RGB)')
  check_holdout(holdout)
  shape: dict[str, Any] = dict(image_size=image_size, channels=channels)
  if stride is not None:
    if not source.startswith(WITH_WINDOWS):
      raise UserError(
        f'data.stride is {stride}, which goes with data.source=signals:PATH or frames:PATH alone'
      )
    shape['stride'] = stride
  if feature is not None:
    if not source.startswith('tfds:') or source.removeprefix('tfds:') in cifar10.NAMES:
      raise UserError(f'data.feature is {feature}, which goes with data.source=tfds:NAME alone')
    shape['feature'] = feature
  if holdout is not None and split in ('train', 'test'):
    _check_no_test(source, dir, shape)
    return hold_out(_open(source, dir, shape | {'split': 'train'}), split, holdout)
  opened = _open(source, dir, shape | {'split': split})
  if not len(opened):
    raise UserError(f'data.source={source!r}, data.split={split!r}: holds no pictures')
  return opened


def takes_pictures(source: str) -> bool:
  """Whether a source of this name has pictures, in grey or colour."""
  return source.partition(':')[0] not in OF_ANY_SHAPE


def _check_no_test(source, dir, shape):
  """Raises a UserError for a source that has a test split of its own."""
  try:
    _open(source, dir, shape | {'split': 'test'})
  except NoSplitError:
    return
  raise UserError(f'data.holdout is given, but {source} has a test split of its own: leave it out')


FINGERPRINT_IMAGES = 64


def fingerprint(source: Source) -> str:
  """sha256 (hex) over 64 images, evenly spaced, and the number and the names of all.

  It tells a re-encoded data set from the original where the name is the same. Sets that differ in
  few images can have the same; Batches.sha256 is of all.
  """
  ids = np.unique(np.linspace(0, len(source) - 1, FINGERPRINT_IMAGES).astype(int))
  digest = hashlib.sha256(f'{len(source)} {source.image_shape}'.encode())
  digest.update(np.ascontiguousarray(source.read(ids)).tobytes())
  digest.update(told(source, 'names') or b'')
  return digest.hexdigest()


def _open_tfds(source, name, **shape):
  if name in cifar10.NAMES:
    return cifar10.make_cifar10_source(name, **shape)
  return tfds.make_tfds_source(name, **shape)


def _open(source, dir, shape):
  form, _, rest = source.partition(':')
  for name, open_source in SOURCES.items():
    takes_name = name.partition(':')[2].isupper()
    if (rest and name.startswith(f'{form}:')) if takes_name else name == source:
      return open_source(source, rest, dir=dir, **shape)
  raise UserError(f'data.source={source!r}: must be one of {", ".join(SOURCES)}')


# By name, or by what stands before a colon: (source, what follows the colon, *, dir, image_size,
# channels, split) -> Source. A new source is a function and its entry here.
SOURCES: Mapping[str, Callable[..., Any]] = {
  'digits': lambda source, name, dir, **shape: digits.make_digits_source(**shape),
  **dict.fromkeys(
    cifar10.NAMES, lambda source, name, **shape: cifar10.make_cifar10_source(source, **shape)
  ),
  'tfds:NAME[/CONFIG]': _open_tfds,
  'folder:PATH': lambda source, name, dir, **shape: folder.make_folder_source(
    name, name=source, **shape
  ),
  celebahq.NAME: lambda source, name, **shape: celebahq.make_celebahq256_source(**shape),
  **dict.fromkeys(lsun.NAMES, lambda source, name, **shape: lsun.make_lsun_source(source, **shape)),
  'watch': lambda source, name, dir, **shape: watch.make_watch_source(**shape),
  'brain_blocks': lambda source, name, dir, **shape: brain_blocks.make_brain_blocks_source(**shape),
  'signals:PATH': lambda source, name, dir, **shape: signals.make_signals_source(
    name, name=source, **shape
  ),
  'volumes:PATH': lambda source, name, dir, **shape: volumes.make_volumes_source(
    name, name=source, **shape
  ),
  'array:PATH': lambda source, name, dir, **shape: arrays.make_array_source(
    name, name=source, **shape
  ),
  'frames:PATH': lambda source, name, dir, **shape: frames.make_frames_source(
    name, name=source, **shape
  ),
}
