"""The embedded data set: 1,797 handwritten digits of 8x8 pixels, for tests and first steps.

Optical Recognition of Handwritten Digits, E. Alpaydin, C. Kaynak, 1998, UCI Machine Learning
Repository, CC BY 4.0 (see digits.LICENSE.md). `digits.npz` was made from scikit-learn's copy by

    digits = sklearn.datasets.load_digits()
    images = np.floor(digits.images[..., None] * 255 / 16 + 0.5).astype(np.uint8)
    np.savez_compressed('digits.npz', images=images, labels=digits.target.astype(np.uint8))

Splits: 'test' is every sixth picture from the first (300), 'train' the rest (1,497), 'all' both.
"""

import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ddpm_jax.data.labels import Labels
from ddpm_jax.data.pictures import check_picture_size, picture_axes, prepare_picture
from ddpm_jax.data.splits import NoSplitError

_FILE = pathlib.Path(__file__).with_name('digits.npz')
SPLITS = ('train', 'test', 'all')


class ArraySource:
  """A source whose pictures are an array: uint8 [N, H, W, C]; with Labels, where they have any."""

  def __init__(self, name, split, images, labels=None):
    self.name = name
    self.split = split
    self.image_shape = images.shape[1:]
    self._images, self._labels = images, labels

  def __len__(self):
    return len(self._images)

  def read(self, indices: np.ndarray) -> np.ndarray:
    """Returns uint8 [N, H, W, C] for int [N]."""
    return self._images[indices]

  def labels(self, choice: str | None) -> Labels | None:
    """The classes of all pictures, of which there is no choice."""
    return self._labels if choice is None else None

  def version(self) -> str:
    """sha256 (hex) of all pictures."""
    return hashlib.sha256(np.ascontiguousarray(self._images).data).hexdigest()


def load_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns (images uint8 [N, 8, 8, 1], labels uint8 [N]) of a split of SPLITS."""
  if split not in SPLITS:
    raise NoSplitError(f'data.split={split!r}: digits has the splits {", ".join(SPLITS)}')
  with np.load(_FILE) as arrays:
    images, labels = arrays['images'], arrays['labels']
  in_test = np.arange(len(images)) % 6 == 0
  chosen = {'train': ~in_test, 'test': in_test, 'all': np.ones_like(in_test)}[split]
  return images[chosen], labels[chosen]


def make_digits_source(
  *, image_size: int | Sequence[int], channels: int, split: str
) -> ArraySource:
  """The digits as an ArraySource; a size other than 8 resizes them, 3 channels repeat the grey."""
  images, numbers = load_digits(split)
  check_picture_size(image_size, 'digits')
  if images.shape[1:] != (*picture_axes(image_size), channels):
    import PIL.Image

    pictures = [PIL.Image.fromarray(image[..., 0]) for image in images]
    shape: dict[str, Any] = dict(image_size=image_size, channels=channels)
    images = np.stack([prepare_picture(picture, **shape) for picture in pictures])
  labels = Labels(numbers.astype(np.int32), tuple(map(str, range(10))))
  return ArraySource('digits', split, images, labels)
