"""From encoded pictures to uint8 arrays of one size."""

import errno
from collections.abc import Sequence
from typing import Any

import numpy as np

from ddpm_jax.errors import UserError

_MODES = {1: 'L', 3: 'RGB'}
_DEEP_MODES = ('I', 'F')  # PIL's modes of more than 8 bits a channel start with these letters
_DEEP_GREY = ('PNG', 'PPM')  # whose grey of 16 bits comes in mode I
_NAMED = 5  # damaged pictures
# Not the picture's fault: the disk's, the network's, or the process's.
_OF_THE_SYSTEM = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE)


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
    (name, reason), *others = self.broken
    more = ''
    if others:
      named = '; '.join(f'{name} ({reason})' for name, reason in others[: _NAMED - 1])
      named += ', ...' if len(others) >= _NAMED else ''
      more = f', and {len(others)} more of the {self.num_read} pictures read with it: {named}'
    return (
      f'{name} cannot be read as a picture ({reason}){more}. Replace or remove '
      f'{"them" if others else "it"}, or go on with --config.data.on_damage=skip'
    )


def check_finite(values: np.ndarray, name: str) -> None:
  """Raises a DamagedDataError for an example with a value that is not finite; `name` names it."""
  if values.dtype.kind == 'f' and not np.isfinite(values).all():
    raise DamagedDataError(
      f'{name}: a value is not finite. Mend the file, or go on with --config.data.on_damage=skip'
    )


def picture_axes(image_size: int | Sequence[int]) -> tuple[int, ...]:
  """(height, width) of data.image_size: of a square, or as it says."""
  return (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)


def check_picture_size(image_size: int | Sequence[int], name: str) -> None:
  """Raises a UserError for a data.image_size that is none of pictures, which `name` has."""
  if len(picture_axes(image_size)) != 2:
    raise UserError(
      f'data.image_size is {tuple(picture_axes(image_size))}, but data.source={name} has pictures: '
      'give their side, or height and width, such as (48, 64)'
    )


def prepare_picture(picture: Any, *, image_size: int | Sequence[int], channels: int) -> np.ndarray:
  """Centre crop to the form of the result, resize, convert to grey or colour.

  The crop and the Lanczos filter (antialiased when it shrinks) are those of the preparation that
  the LSUN and CelebA-HQ numbers of Ho et al. 2020 rest on (StyleGAN's dataset_tool.py). A smaller
  picture is enlarged. Transparent pixels are composited on white. A picture that already has the
  size and the mode passes unchanged, bit for bit. Of 16 bits a channel, the upper 8 are taken, as
  Pillow itself does for colour.

  Args:
    picture: PIL image, of 8 or 16 bits a channel.
    image_size: side of the result, in pixels; or its height and width.
    channels: 1 (grey) or 3 (RGB).

  Returns:
    uint8 [height, width, channels] in [0, 255].

  Raises:
    UserError: the picture has more than 16 bits a channel.
  """
  import PIL.Image

  if picture.mode.startswith('I;16') or (picture.mode == 'I' and picture.format in _DEEP_GREY):
    picture = _to_8_bits(picture)
  if picture.mode.startswith(_DEEP_MODES):
    raise UserError(f'mode {picture.mode}, more than 16 bits a channel')
  if picture.has_transparency_data:
    picture = picture.convert('RGBA')
    white = PIL.Image.new('RGBA', picture.size, 'white')
    picture = PIL.Image.alpha_composite(white, picture)
  if picture.mode != _MODES[channels]:
    picture = picture.convert(_MODES[channels])
  height, width = picture_axes(image_size)
  right, bottom = picture.size
  # The largest part of that form.
  cut_width = min(right, max(1, round(bottom * width / height)))
  cut_height = min(bottom, max(1, round(right * height / width)))
  if (cut_width, cut_height) != picture.size:
    left, top = (right - cut_width) // 2, (bottom - cut_height) // 2
    picture = picture.crop((left, top, left + cut_width, top + cut_height))
  if picture.size != (width, height):
    picture = picture.resize((width, height), PIL.Image.Resampling.LANCZOS)
  return np.asarray(picture).reshape(height, width, channels)


def _to_8_bits(picture):
  """Grey of 16 bits as grey of 8; a grey level that is transparent stays so."""
  import PIL.Image

  values = np.asarray(picture).astype(np.int64)
  grey = PIL.Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8))
  transparent = picture.info.get('transparency')
  if transparent is None:
    return grey
  alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
  return PIL.Image.merge('LA', (grey, PIL.Image.fromarray(alpha)))


def decode_picture(
  file: Any, *, image_size: int | Sequence[int], channels: int, upright: bool
) -> np.ndarray:
  """Reads a path or binary file object; `upright` applies a photograph's EXIF orientation."""
  import PIL.Image
  import PIL.ImageOps

  with PIL.Image.open(file) as picture:
    if upright:
      form, picture = picture.format, PIL.ImageOps.exif_transpose(picture)
      picture.format = form
    return prepare_picture(picture, image_size=image_size, channels=channels)


def _in_one_line(error):
  return ' '.join(str(error).split())


class PictureSource:
  """Base of the sources that keep encoded pictures and decode what is asked for.

  A subclass defines `__len__`, `_files(indices)` -> paths or binary file objects, and
  `_picture_name(index)` for error messages. It can be pickled.

  Args:
    name: the source as the config names it, such as 'tfds:cifar10'.
    split: name of the split.
    image_size: side of the pictures that `read` returns, or their height and width.
    channels: 1 or 3.
    upright: whether EXIF orientation is applied.
  """

  remarks: tuple[str, ...] = ()  # lines for the user on what was read, and what was not
  decodes = True  # so that what was read is worth keeping

  def __init__(self, name, split, *, image_size, channels, upright=False):
    self.name = name
    self.split = split
    check_picture_size(image_size, name)
    self.image_shape = (*picture_axes(image_size), channels)
    self._upright = upright

  def _files(self, indices):
    raise NotImplementedError

  def _picture_name(self, index):
    raise NotImplementedError

  def read(self, indices: np.ndarray) -> np.ndarray:
    """Returns uint8 [N, H, W, C] for int [N]; raises BrokenPicturesError."""
    import PIL.Image

    *size, channels = self.image_shape
    images = np.empty((len(indices), *self.image_shape), np.uint8)
    broken = []
    for row, (index, file) in enumerate(zip(indices, self._files(indices), strict=True)):
      try:
        images[row] = decode_picture(
          file, image_size=size, channels=channels, upright=self._upright
        )
      except PIL.UnidentifiedImageError:
        broken.append((self._picture_name(index), 'not a picture'))
      except OSError as error:
        if error.errno in _OF_THE_SYSTEM:
          raise OSError(error.errno, error.strerror, self._picture_name(index)) from error
        broken.append((self._picture_name(index), error.strerror or _in_one_line(error)))
      except MemoryError:  # of the host, not of the picture
        raise
      except Exception as error:  # on damaged files, Pillow has raised a dozen kinds of them
        broken.append((self._picture_name(index), _in_one_line(error)))
    if broken:
      raise BrokenPicturesError(broken, len(indices))
    return images
