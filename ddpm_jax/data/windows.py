"""Windows of files: what recordings and moving pictures have in common as examples."""

import pathlib
from collections.abc import Sequence

import numpy as np

from ddpm_jax.data.folder import labels_by_folder
from ddpm_jax.data.labels import Labels
from ddpm_jax.data.listing import PictureFile, some, version_of
from ddpm_jax.errors import UserError


class WindowsSource:
  """Base of the sources whose examples are windows of files; none goes over the end of its file.

  A subclass defines `read`.

  Args:
    root: the folder of the split.
    files: below it.
    lengths: of each file, at least that of a window.
    name: the source as the config names it.
    split: name of the split.
    shape: of an example; its first axis is that of the windows.
    stride: from the start of a window to that of the next.
    what: the files are called, for errors.
    remarks: lines for the user on what was read, and what was left out.
  """

  def __init__(
    self,
    root: pathlib.Path,
    files: Sequence[PictureFile],
    lengths: Sequence[int],
    *,
    name: str,
    split: str,
    shape: tuple[int, ...],
    stride: int,
    what: str,
    remarks: tuple[str, ...] = (),
  ):
    self.name, self.split, self.remarks = name, split, remarks
    self.image_shape = shape
    self._root, self._listed, self._what = root, files, what
    counts = [(length - shape[0]) // stride + 1 for length in lengths]
    self._file_of = np.repeat(np.arange(len(files)), counts)
    self._starts = np.concatenate([stride * np.arange(count) for count in counts])

  def __len__(self):
    return len(self._starts)

  def _path(self, number):
    """Of a file."""
    return self._root / self._listed[number].path

  def picture_names(self) -> list[bytes]:
    """The file of each window."""
    return [self._listed[i].path.encode(errors='surrogateescape') for i in self._file_of]

  def picture_files(self) -> list[PictureFile]:
    """The file of each window, as it was when the folder was listed."""
    return [self._listed[i] for i in self._file_of]

  def names(self) -> bytes:
    """The files, and where windows begin."""
    return b'\n'.join([*sorted(set(self.picture_names())), self._starts.astype('<i8').tobytes()])

  def labels(self, choice: str | None) -> Labels | None:
    """The class of each window, by its folder; None unless that is asked for."""
    if choice is None:
      return None
    paths = [file.path for file in self._listed]
    found = labels_by_folder(paths, self._root, self.split, choice, self._what)
    return found._replace(ids=found.ids[self._file_of])

  def version(self) -> str:
    """sha256 (hex) of what the system tells of each file."""
    return version_of(self._listed)


def long_enough(
  files: Sequence[PictureFile],
  lengths: Sequence[int],
  axes: Sequence[int],
  *,
  folder: pathlib.Path,
  what: str,
  unit: str,
) -> tuple[list[int], tuple[str, ...]]:
  """The numbers of the files that have a window, and a line on those that have none.

  Args:
    files: of the folder.
    lengths: of each file.
    axes: data.image_size, the length of a window first.
    folder: of the files, for people.
    what: the files are called.
    unit: of a length, such as 'samples'.

  Raises:
    UserError: no file is as long as a window.
  """
  long = [i for i, length in enumerate(lengths) if length >= axes[0]]
  if not long:
    raise UserError(
      f'data.image_size is {tuple(axes)}, but the longest of the {what} in {folder} has '
      f'{max(lengths)} {unit}: give at most as many'
    )
  if len(long) == len(files):
    return long, ()
  short = [file.path for file, length in zip(files, lengths, strict=True) if length < axes[0]]
  return long, (
    f'{folder}: {len(short)} of the {len(files)} {what} are shorter than {axes[0]} {unit} '
    f'({some(short)}), and left out',
  )
