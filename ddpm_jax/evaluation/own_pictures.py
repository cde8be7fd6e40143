"""One's own pictures, and other examples, as they are: nothing is cropped or resized."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.data.arrays import FORMS, KEYS, read_arrays
from ddpm_jax.data.listing import list_pictures
from ddpm_jax.data.pictures import prepare_picture
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.images import DECODE_ERRORS, check_regular
from ddpm_jax.paths import expanded
from ddpm_jax.refusals import raise_refusal

_OPAQUE = 255
_MODES_OF_8_BITS = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA')
_WHITE = 128  # and above, in a mask


class OwnPictures(NamedTuple):
  """Pictures of one size.

  Attributes:
    names: of their files, without the ending, each once.
    images: uint8 [N, H, W, C].
    opaque: bool [N, H, W], False where a picture is transparent; None where none is.
    remarks: lines on files that were left out.
    converted: files of which the images have less: colour, transparency, or more than 8 bits.
  """

  names: list[str]
  images: np.ndarray
  opaque: np.ndarray | None
  remarks: tuple[str, ...]
  converted: list[pathlib.Path]


def read_pictures(
  given: str, field: str, *, sizes: Sequence[tuple[int, int]], channels: int, what: str
) -> OwnPictures:
  """Reads a picture, several with commas between them, or those of a folder.

  Args:
    given: their path or paths.
    field: config path to name in errors.
    sizes: (height, width) of the pictures that are taken.
    channels: 1 (grey) or 3 (RGB), to which the pictures are converted.
    what: is done to them, for errors.

  Raises:
    UserError: no pictures, mixed sizes, or sizes that are not taken.
  """
  files, remarks = _find(given, field)
  opened = [_open(file, field) for file in files]
  first = opened[0].size
  for file, picture in zip(files, opened, strict=True):
    if picture.size != first:
      raise UserError(
        f'{field}: {files[0]} is {_size(first)} and {file} {_size(picture.size)}; pictures that '
        'are edited together must be of one size'
      )
  if first[::-1] not in sizes:
    taken = ' or '.join(_size(size[::-1]) for size in sizes)
    raise UserError(
      f'{field}: {files[0]} is {_size(first)} pixels; for {what}, this model takes {taken}: crop '
      'and resize the picture first'
    )
  opaque = np.stack([_opaque(picture) for picture in opened])
  images, converted = [], []
  for file, picture in zip(files, opened, strict=True):
    try:
      images.append(prepare_picture(picture, image_size=first[::-1], channels=channels))
    except UserError as error:
      raise UserError(f'{field}: {file} is of {error}: give a picture of 8 or 16') from error
    if not _is_kept(picture, images[-1]):
      converted.append(file)
  names = [file.stem for file in files]
  if len({*names}) < len(names):  # in folders of their own
    names = [f'{i:04d}-{name}' for i, name in enumerate(names)]
  of_clear = None if opaque.all() else opaque
  return OwnPictures(names, np.stack(images), of_clear, remarks, converted)


def read_masks(given: str, field: str, *, size: tuple[int, int], count: int) -> np.ndarray:
  """Reads a mask for all pictures, of size (height, width), or one for each.

  Returns:
    bool [count, *size]: white is known, black is to be found.

  Raises:
    UserError: another size, or another number of masks.
  """
  files, _ = _find(given, field)
  if len(files) not in (1, count):
    raise UserError(
      f'{field} has {len(files)} masks for {count} pictures; give one for all, or one for each'
    )
  masks = []
  for file in files:
    picture = _open(file, field)
    if picture.size != size[::-1]:
      raise UserError(
        f'{field}: {file} is {_size(picture.size)} pixels and the pictures are '
        f'{_size(size[::-1])}; a mask must have their size'
      )
    masks.append(np.asarray(picture.convert('L')) >= _WHITE)
  return np.broadcast_to(np.stack(masks), (count, *size))


def read_examples(
  given: str, field: str, *, shape: tuple[int, ...]
) -> tuple[list[str], np.ndarray]:
  """Reads examples of any kind from a .npy file, or from an .npz such as --mode=sample writes.

  Args:
    given: its path.
    field: config path to name in errors.
    shape: of an example, which may lack an axis of one channel in the file.

  Returns:
    (their names, the examples as they are stored, [N, *shape]).

  Raises:
    UserError: no such file, nothing in it, or examples of another shape.
  """
  path = expanded(given)
  if not path.exists():
    raise UserError(f'{field}={path} does not exist; give a .npy or .npz file of examples')
  if not path.is_file() or path.suffix not in FORMS:
    raise UserError(f'{field}={path} is no .npy or .npz file, which these data are given in')
  arrays = read_arrays(path)
  values = next((arrays[key] for key in KEYS if key in arrays), None)
  if values is None:
    raise UserError(f'{field}={path} has {", ".join(arrays)}; examples are under {", ".join(KEYS)}')
  if shape[-1] == 1 and values.ndim == len(shape):
    values = values[..., None]
  if values.shape[1:] != shape or not len(values):
    raise UserError(
      f'{field}={path} has {values.dtype}{list(values.shape)}; this model takes {["N", *shape]}'
    )
  return [f'{path.stem}-{i:05d}' for i in range(len(values))], np.asarray(values)


def _find(given, field) -> tuple[list[pathlib.Path], tuple[str, ...]]:
  """(files, remarks)."""
  paths = [expanded(given)]
  if not paths[0].exists():
    paths = [expanded(part.strip()) for part in given.split(',') if part.strip()]
  files, remarks = [], []
  for path in paths:
    if not path.exists():
      raise UserError(f'{field}={path} does not exist; give a picture, several, or a folder')
    check_regular(path, field)
    if not path.is_dir():
      files.append(path)
      continue
    listing = list_pictures(path)
    remarks += listing.remarks(path)
    if not listing.pictures:
      raise UserError(f'{field}={path} has no pictures')
    files += [path / name for name in listing.paths]
  if not files:
    raise UserError(f'{field}={given!r} names no picture')
  return files, tuple(remarks)


def _open(file, field) -> Any:
  """The picture, upright."""
  import PIL.Image
  import PIL.ImageOps

  try:
    with PIL.Image.open(file) as picture:
      picture.load()
      upright = PIL.ImageOps.exif_transpose(picture)
      upright.format = picture.format
      return upright
  except (*DECODE_ERRORS, PIL.Image.DecompressionBombError) as error:
    raise_refusal(file, error)
    raise UserError(f'{field}: {file} cannot be read as a picture ({error})') from error


def _is_kept(picture, image):
  """Whether an image [H, W, C] has all that is in a picture."""
  if picture.mode not in _MODES_OF_8_BITS:
    return False
  whole = np.asarray(picture.convert('RGBA'))
  return bool((whole[..., :3] == image).all() and (whole[..., 3] == _OPAQUE).all())


def _opaque(picture):
  """bool [H, W]."""
  if not picture.has_transparency_data:
    return np.ones(picture.size[::-1], bool)
  return np.asarray(picture.convert('RGBA'))[..., 3] == _OPAQUE


def _size(size):
  return f'{size[0]} x {size[1]}'
