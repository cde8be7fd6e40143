"""From encoded pictures to uint8 arrays of one size."""

from typing import Any

import numpy as np

from ddpm_jax.errors import UserError

_MODES = {1: 'L', 3: 'RGB'}
_DEEP_MODES = ('I', 'F')  # PIL's modes of more than 8 bits a channel start with these letters


class DamagedDataError(UserError):
  """Data that are there and cannot be read."""


class BrokenPicturesError(DamagedDataError):
  """Some of the pictures read cannot be decoded.

  Args:
    broken: list of (name of the picture, reason), at least one.
    num_read: how many pictures were tried.
  """

  def __init__(self, broken, num_read):
    super().__init__(broken, num_read)  # plain args, so that it survives pickling by a worker
    self.broken = broken
    self.num_read = num_read

  def __str__(self):
    name, reason = self.broken[0]
    others = len(self.broken) - 1
    more = f', and {others} more of the {self.num_read} pictures read with it' if others else ''
    return f'{name} cannot be read as a picture ({reason}){more}: replace or remove it'


def prepare_picture(picture: Any, *, image_size: int, channels: int) -> np.ndarray:
  """Centre crop to a square, resize, convert to grey or colour.

  The crop and the Lanczos filter (antialiased when it shrinks) are those of the preparation that
  the LSUN and CelebA-HQ numbers of Ho et al. 2020 rest on (StyleGAN's dataset_tool.py). A smaller
  picture is enlarged. Transparent pixels are composited on white. A picture that already has the
  size and the mode passes unchanged, bit for bit.

  Args:
    picture: PIL image, 8 bits a channel.
    image_size: side of the result, in pixels.
    channels: 1 (grey) or 3 (RGB).

  Returns:
    uint8 [image_size, image_size, channels] in [0, 255].

  Raises:
    UserError: the picture has more than 8 bits a channel.
  """
  import PIL.Image

  if picture.mode.startswith(_DEEP_MODES):
    raise UserError(f'mode {picture.mode}, more than 8 bits a channel')
  if picture.has_transparency_data:
    picture = picture.convert('RGBA')
    white = PIL.Image.new('RGBA', picture.size, 'white')
    picture = PIL.Image.alpha_composite(white, picture)
  if picture.mode != _MODES[channels]:
    picture = picture.convert(_MODES[channels])
  width, height = picture.size
  side = min(width, height)
  if width != height:
    left, top = (width - side) // 2, (height - side) // 2
    picture = picture.crop((left, top, left + side, top + side))
  if side != image_size:
    picture = picture.resize((image_size, image_size), PIL.Image.Resampling.LANCZOS)
  return np.asarray(picture).reshape(image_size, image_size, channels)


def decode_picture(file: Any, *, image_size: int, channels: int, upright: bool) -> np.ndarray:
  """Reads a path or binary file object; `upright` applies a photograph's EXIF orientation."""
  import PIL.Image
  import PIL.ImageOps

  with PIL.Image.open(file) as picture:
    if upright:
      picture = PIL.ImageOps.exif_transpose(picture)
    return prepare_picture(picture, image_size=image_size, channels=channels)


class PictureSource:
  """Base of the sources that keep encoded pictures and decode what is asked for.

  A subclass defines `__len__`, `_files(indices)` -> paths or binary file objects, and
  `_picture_name(index)` for error messages. It can be pickled.

  Args:
    name: the source as the config names it, such as 'tfds:cifar10'.
    split: name of the split.
    image_size: side of the pictures that `read` returns.
    channels: 1 or 3.
    upright: whether EXIF orientation is applied.
  """

  def __init__(self, name, split, *, image_size, channels, upright=False):
    self.name = name
    self.split = split
    self.image_shape = (image_size, image_size, channels)
    self._upright = upright

  def _files(self, indices):
    raise NotImplementedError

  def _picture_name(self, index):
    raise NotImplementedError

  def read(self, indices: np.ndarray) -> np.ndarray:
    """Returns uint8 [N, H, W, C] for int [N]; raises BrokenPicturesError."""
    import PIL.Image

    size, _, channels = self.image_shape
    images = np.empty((len(indices), *self.image_shape), np.uint8)
    broken = []
    for row, (index, file) in enumerate(zip(indices, self._files(indices), strict=True)):
      try:
        images[row] = decode_picture(
          file, image_size=size, channels=channels, upright=self._upright
        )
      except PIL.UnidentifiedImageError:
        broken.append((self._picture_name(index), 'not a picture'))
      except Exception as error:  # on damaged files, Pillow has raised a dozen kinds of them
        broken.append((self._picture_name(index), ' '.join(str(error).split())))
    if broken:
      raise BrokenPicturesError(broken, len(indices))
    return images
