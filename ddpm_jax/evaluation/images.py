"""Images of other programs, to be measured as they are: nothing is cropped or resized."""

import hashlib
import os
import pathlib
import struct
import zlib
from typing import Any

import numpy as np

from ddpm_jax.data import PICTURES, Encoding
from ddpm_jax.data.listing import list_pictures
from ddpm_jax.errors import UserError
from ddpm_jax.paths import expanded
from ddpm_jax.refusals import raise_refusal
from ddpm_jax.storage.npz import open_npz

_HASHED = 1024  # images in memory at a time
_MODES = {'L': 1, 'RGB': 3}
_JPEG_FORMATS = ('JPEG', 'MPO')  # several JPEG pictures in one file
_KEYS = ('samples', 'arr_0')  # as this program and as ADM name them
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


class NpzImages:
  """Images of an .npz file: uint8 [N, H, W, C]."""

  jpeg_files = 0
  remarks: tuple[str, ...] = ()
  statistics: Any = None  # of features, where the file has them too

  def __init__(self, path, images):
    self.name = str(path)
    self.image_shape = images.shape[1:]
    self._images = images

  def __len__(self):
    return len(self._images)

  def read(self, indices: np.ndarray) -> np.ndarray:
    """Returns uint8 [n, H, W, C]."""
    return self._images[indices]

  def fingerprint(self) -> str:
    """sha256 (hex) over all images."""
    return _fingerprint(self)


class FolderImages:
  """The picture files of a folder, by name; all of one size and mode, jpeg_files of them JPEG."""

  statistics: Any = None  # as of NpzImages

  def __init__(self, path, field):
    self.name = str(path)
    listing = list_pictures(path)
    self.remarks = listing.remarks(path)
    self._files = [path / name for name in listing.paths]
    self._field = field
    if not self._files:
      why = ''.join(f'; {line}' for line in self.remarks)
      raise UserError(f'{field}={path} has no pictures{why}')
    self.jpeg_files, first = 0, None
    for file in self._files:
      *head, format = self._read_head(file)
      first = first or head
      if head != first:
        raise UserError(
          f'{field}={path}: {self._files[0].relative_to(path)} is {_describe(first)} and '
          f'{file.relative_to(path)} {_describe(head)}; all must be of one size and '
          'mode, as they were made'
        )
      self.jpeg_files += format in _JPEG_FORMATS
    (width, height), mode = first
    if mode not in _MODES:
      raise UserError(
        f'{field}={path}: {self._files[0].name} has mode {mode}; it must be RGB or L (grey)'
      )
    self.image_shape = (height, width, _MODES[mode])

  def __len__(self):
    return len(self._files)

  def read(self, indices: np.ndarray) -> np.ndarray:
    """Returns uint8 [n, H, W, C]."""
    import PIL.Image

    images = np.empty((len(indices), *self.image_shape), np.uint8)
    for row, index in enumerate(indices):
      try:
        with PIL.Image.open(self._files[index]) as picture:
          images[row] = np.asarray(picture).reshape(self.image_shape)
      except (*DECODE_ERRORS, PIL.Image.DecompressionBombError) as error:
        raise_refusal(self._files[index], error)
        raise UserError(f'{self._field}: {self._files[index]} cannot be read ({error})') from error
    return images

  def fingerprint(self) -> str:
    """sha256 (hex) over all images."""
    return _fingerprint(self)

  def _read_head(self, file):
    """((width, height), mode, format), from the head of the file."""
    import PIL.Image

    try:
      with PIL.Image.open(file) as picture:
        return picture.size, picture.mode, picture.format
    except (*DECODE_ERRORS, PIL.Image.DecompressionBombError) as error:
      raise_refusal(file, error)
      raise UserError(f'{self._field}: {file} is not a picture ({error})') from error


def _describe(size_and_mode):
  (width, height), mode = size_and_mode
  return f'{width} x {height} {mode}'


def _fingerprint(images):
  digest = hashlib.sha256(f'{len(images)} {tuple(images.image_shape)}'.encode())
  for first in range(0, len(images), _HASHED):
    block = images.read(np.arange(first, min(first + _HASHED, len(images))))
    digest.update(np.ascontiguousarray(block).tobytes())
  return digest.hexdigest()


def open_images(path: str | os.PathLike[str], field: str) -> NpzImages | FolderImages:
  """Opens a folder of pictures, or an .npz file of images.

  Args:
    path: a folder; or an .npz file with `samples` (as --mode=sample writes it) or `arr_0` (as ADM's
      programs do), uint8 [N, H, W, C], C 1 or 3.
    field: config path to name in errors.

  Returns:
    an object with len(), name, image_shape (H, W, C), read(indices) -> uint8 [n, H, W, C],
    fingerprint(), jpeg_files, the number of files that are JPEG, and remarks, lines on what was
    left out.

  Raises:
    UserError: no such thing, fewer than two images, not uint8, or mixed.
  """
  path = expanded(path)
  if not path.exists():
    raise UserError(f'{field}={path} does not exist')
  check_regular(path, field)
  images = FolderImages(path, field) if path.is_dir() else _open_npz_images(path, field)
  if len(images) < 2:
    raise UserError(f'{field}={path} has {len(images)} image(s); two are needed at least')
  return images


def check_regular(path: pathlib.Path, field: str) -> None:
  """Raises a UserError for a pipe or a device, which would be waited for."""
  if not path.is_dir() and not path.is_file():
    raise UserError(f'{field}={path} is neither a file nor a folder')


def _open_npz_images(path, field):
  arrays = open_npz(path)
  key = next((key for key in _KEYS if key in arrays), None)
  if key is None:
    found = ', '.join(arrays) or 'nothing'
    raise UserError(f'{field}={path} has {found}; images are under {" or ".join(_KEYS)}')
  images = arrays[key]
  fits = images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] in (1, 3)
  if not fits or not all(images.shape[1:]):
    raise UserError(
      f'{field}={path}: {key} is {images.dtype}{list(images.shape)}; '
      'it must be uint8 [N, H, W, C] with 1 or 3 channels'
    )
  return NpzImages(path, images)


def evenly_spaced(count: int, of: int) -> np.ndarray:
  """`count` increasing indices below `of`, which is no less."""
  return np.arange(count) * of // count


class ChosenImages:
  """Some of a set of images, as a set of their own."""

  def __init__(self, images: Any, rows: np.ndarray):
    self._images, self._rows = images, rows

  def read(self, indices: np.ndarray) -> np.ndarray:
    """Returns uint8 [n, H, W, C]."""
    return self._images.read(self._rows[indices])


class ArrayImages:
  """Samples in an array, as images of values 0..255, or as the encoding of other data."""

  def __init__(self, samples: np.ndarray, encoding: Encoding = PICTURES):
    """samples: as the data are stored, [N, ..., C]; of pictures also x_0 in float32."""
    self._samples, self._encoding = samples, encoding

  def read(self, indices: np.ndarray) -> np.ndarray:
    """Returns [n, ..., C]: of pictures uint8, or float32 in [0, 255] and not rounded."""
    samples = self._samples[indices]
    if not self._encoding.is_of_pictures:
      return self._encoding.encode(samples)
    if samples.dtype == np.uint8:
      return samples
    return (np.clip(samples, -1, 1) + 1) * np.float32(127.5)
