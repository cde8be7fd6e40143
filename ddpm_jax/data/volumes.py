"""Volumes in files: a folder of NIfTI, or MedMNIST's .npz.

    data.source='volumes:/data/scans'   data.image_size=(64, 64, 32)   data.channels=1

All .nii and .nii.gz files in the folder and its subfolders, sorted by relative path; splits as
those of a folder of pictures (scans/train, scans/test, or data.holdout, by the file). A file is an
example; a fourth axis has its channels. Whole numbers are kept exactly, unless the file scales
them: then they are values of any kind (data.levels=continuous). With data.labels='folders' the
folder that a file lies in is its class. An .npz file is read as array:PATH reads it.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ddpm_jax.data.arrays import make_array_source
from ddpm_jax.data.folder import files_of_split, labels_by_folder
from ddpm_jax.data.labels import Labels
from ddpm_jax.data.listing import PictureFile, version_of
from ddpm_jax.data.pictures import DamagedDataError, check_finite, picture_axes
from ddpm_jax.errors import UserError
from ddpm_jax.refusals import raise_refusal

EXTENSIONS = ('.nii', '.nii.gz')


class VolumesSource:
  """The volumes of a folder."""

  def __init__(
    self,
    root: pathlib.Path,
    files: Sequence[PictureFile],
    *,
    name: str,
    split: str,
    shape: tuple[int, ...],
    dtype: str,
    remarks: tuple[str, ...] = (),
  ):
    self.name, self.split, self.remarks = name, split, remarks
    self.image_shape = shape
    self._root, self._scanned, self._dtype = root, files, dtype

  def __len__(self):
    return len(self._scanned)

  def read(self, indices: np.ndarray) -> np.ndarray:
    """Returns the volumes as they are stored, [N, D, H, W, C] for int [N].

    Raises:
      DamagedDataError: a file that cannot be read, or a volume with a value that is not finite.
    """
    rows = np.asarray(indices)
    values = np.empty((len(rows), *self.image_shape), self._dtype)
    for row, index in enumerate(rows):
      path = self._root / self._scanned[index].path
      values[row] = _values(path).reshape(self.image_shape)
      check_finite(values[row], str(path))
    return values

  def picture_names(self) -> list[bytes]:
    """The file of each volume."""
    return [file.path.encode(errors='surrogateescape') for file in self._scanned]

  def picture_files(self) -> list[PictureFile]:
    """The file of each volume, as it was when the folder was listed."""
    return list(self._scanned)

  def names(self) -> bytes:
    """The relative paths."""
    return b'\n'.join(self.picture_names())

  def labels(self, choice: str | None) -> Labels | None:
    """The class of each volume, by its folder; None unless that is asked for."""
    if choice is None:
      return None
    paths = [file.path for file in self._scanned]
    return labels_by_folder(paths, self._root, self.split, choice, 'volumes')

  def version(self) -> str:
    """sha256 (hex) of what the system tells of each file."""
    return version_of(self._scanned)


def _open(path) -> Any:
  try:
    import nibabel
  except ImportError as error:
    raise UserError(
      f'reading {path} needs the package nibabel: pip install nibabel, or the extra volumes of '
      'this one'
    ) from error
  try:
    return nibabel.load(path)
  except Exception as error:  # nibabel has raised a dozen kinds of them
    raise _damaged(path, error) from error


def _damaged(path, error):
  raise_refusal(path, error)
  return DamagedDataError(f'{path} is no NIfTI file, or damaged ({" ".join(str(error).split())})')


def _head(path) -> tuple[tuple[int, ...], str]:
  """(shape with its channels, dtype as values are kept) of a file."""
  image = _open(path)
  shape = (*image.shape, 1) if len(image.shape) == 3 else tuple(image.shape)
  is_scaled = image.dataobj.slope != 1 or image.dataobj.inter != 0
  return shape, 'float32' if is_scaled else str(np.dtype(image.get_data_dtype()).newbyteorder('='))


def _values(path):
  """Of a file, as they are kept."""
  image = _open(path)
  try:
    proxy = image.dataobj
    is_scaled = proxy.slope != 1 or proxy.inter != 0
    return np.asarray(proxy if is_scaled else proxy.get_unscaled())
  except Exception as error:
    raise _damaged(path, error) from error


def make_volumes_source(
  path: str, *, name: str, image_size: int | Sequence[int], channels: int, split: str
) -> Any:
  """Opens the volumes of a split; see the module's docstring.

  Raises:
    UserError: no folder, no volumes, or volumes of another shape.
    NoSplitError: no such split.
  """
  if pathlib.Path(path).suffix == '.npz':
    return make_array_source(path, name=name, image_size=image_size, channels=channels, split=split)
  folder, listing = files_of_split(
    path,
    name=name,
    split=split,
    extensions=EXTENSIONS,
    what='volumes',
    or_else=', or an .npz',
  )
  expected = (*picture_axes(image_size), channels)
  dtypes = {}
  for file in listing.pictures:
    shape, dtype = _head(folder / file.path)
    dtypes.setdefault(dtype, file.path)
    if shape != expected:
      axes = str(shape[:-1]).replace(' ', '')
      raise UserError(
        f'data.source={name!r}: {file.path} is {list(shape)}, and data.image_size={image_size} '
        f'with data.channels={channels} says {list(expected)}: give '
        f'--config.data.image_size={axes} and --config.data.channels={shape[-1]}, or volumes of '
        'one shape'
      )
  if len(dtypes) > 1:
    told = ', '.join(f'{dtype} ({file})' for dtype, file in dtypes.items())
    raise UserError(
      f'data.source={name!r}: the volumes are of several types: {told}; give volumes of one'
    )
  return VolumesSource(
    folder,
    listing.pictures,
    name=name,
    split=split,
    shape=expected,
    dtype=next(iter(dtypes)),
    remarks=listing.remarks(folder),
  )
