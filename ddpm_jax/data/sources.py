"""The sources of pictures, by the name that `data.source` gives.

digits                                the embedded 8x8 handwritten digits   digits.py
tfds:NAME, tfds:NAME/CONFIG           TensorFlow Datasets                   tfds.py
cifar10                               TFDS or the official archive          cifar10.py
folder:PATH                           a folder of pictures                  folder.py
celebahq256                           TFDS or a folder                      celebahq.py
lsun_bedroom, lsun_church, lsun_cat   LSUN's lmdb or a folder               lsun.py
"""

import hashlib
from typing import Protocol

import numpy as np

from ddpm_jax.data import celebahq, cifar10, digits, folder, lsun, tfds

_FORMS = 'digits, tfds:NAME, tfds:NAME/CONFIG, cifar10, folder:PATH, celebahq256, ' + ', '.join(
  lsun.NAMES
)


class Source(Protocol):
  """Random access to pictures of one size; can be pickled, for workers.

  Attributes:
    name: the source as the config names it.
    split: name of the split.
    image_shape: (H, W, C).
  """

  name: str
  split: str
  image_shape: tuple[int, int, int]

  def __len__(self) -> int:
    """Returns the number of pictures."""

  def read(self, indices: np.ndarray) -> np.ndarray:
    """Returns uint8 [N, H, W, C] in [0, 255] for int [N]."""

  # Optional: names() -> bytes, the names of all pictures in their order, where they are known.


def make_source(source, *, dir, image_size, channels, split):
  """Opens a data set.

  Args:
    source: one of the forms above (config: data.source).
    dir: folder of the data set, or None for TFDS's default folder (data.dir).
    image_size: side of the pictures in pixels; others are cropped and resized (data.image_size).
    channels: 1 (grey) or 3 (RGB) (data.channels).
    split: 'train', 'test', ...; each source has its own (data.split).

  Returns:
    A Source with at least one picture.

  Raises:
    ValueError: a name, split or folder that is not there, in one line.
  """
  if image_size < 1:
    raise ValueError(f'data.image_size={image_size}: must be at least 1')
  if channels not in (1, 3):
    raise ValueError(f'data.channels={channels}: must be 1 (grey) or 3 (RGB)')
  opened = _open(source, dir, dict(image_size=image_size, channels=channels, split=split))
  if not len(opened):
    raise ValueError(f'data.source={source!r}, data.split={split!r}: holds no pictures')
  return opened


FINGERPRINT_IMAGES = 64


def fingerprint(source):
  """sha256 (hex) over 64 images, evenly spaced, and the number and the names of all.

  It tells a re-encoded data set from the original where the name is the same. Sets that differ in
  few images can have the same; Batches.sha256 is of all.
  """
  ids = np.unique(np.linspace(0, len(source) - 1, FINGERPRINT_IMAGES).astype(int))
  digest = hashlib.sha256(f'{len(source)} {source.image_shape}'.encode())
  digest.update(np.ascontiguousarray(source.read(ids)).tobytes())
  if hasattr(source, 'names'):
    digest.update(source.names())
  return digest.hexdigest()


def _open(source, dir, shape):
  form, _, rest = source.partition(':')
  dataset = rest if form == 'tfds' else source
  if source == 'digits':
    return digits.make_digits_source(**shape)
  if dataset in cifar10.NAMES:
    return cifar10.make_cifar10_source(dataset, dir=dir, **shape)
  if form == 'tfds' and rest:
    return tfds.make_tfds_source(rest, dir=dir, **shape)
  if form == 'folder' and rest:
    return folder.make_folder_source(rest, name=source, **shape)
  if source == celebahq.NAME:
    return celebahq.make_celebahq256_source(dir=dir, **shape)
  if source in lsun.NAMES:
    return lsun.make_lsun_source(source, dir=dir, **shape)
  raise ValueError(f'data.source={source!r}: must be one of {_FORMS}')
