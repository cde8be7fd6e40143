"""A folder of pictures.

    data.source='folder:/data/flowers'

All files with one of listing.EXTENSIONS (any case; of a moving picture the first frame) in the
folder and its subfolders, sorted by relative path, hidden ones left out; what is left out is said.
EXIF orientation is applied. Splits: a folder with a subfolder train, test, val, valid or validation
has those as its splits (flowers/train, flowers/test). Any other folder is one set of pictures, the
split 'train'; data.holdout makes a test split of it. 'all' is always the whole tree.

With data.labels='folders' the first folder that a picture lies in, below that of its split, is its
class (flowers/train/rose/1.jpg, flowers/rose/1.jpg). Classes are numbered by their sorted names.
"""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ddpm_jax.data.labels import FOLDERS, Labels
from ddpm_jax.data.listing import (
  EXTENSIONS,
  Listing,
  PictureFile,
  list_files,
  list_pictures,
  some,
  version_of,
)
from ddpm_jax.data.pictures import PictureSource
from ddpm_jax.data.splits import SPLITS, NoSplitError
from ddpm_jax.errors import UserError
from ddpm_jax.paths import expanded


class FolderSource(PictureSource):
  """The pictures of a listing of `root`, in order."""

  def __init__(self, root, listing: Listing, *, name, split, image_size, channels, remarks=()):
    super().__init__(name, split, image_size=image_size, channels=channels, upright=True)
    self.remarks = (*remarks, *listing.remarks(root))
    self._root = root
    self._paths = listing.paths
    self._pictures = listing.pictures

  def __len__(self):
    return len(self._paths)

  def names(self) -> bytes:
    """The relative paths, as bytes."""
    return os.fsencode('\n'.join(self._paths))

  def picture_names(self) -> list[bytes]:
    """The relative path of each picture."""
    return [os.fsencode(path) for path in self._paths]

  def picture_files(self) -> list[PictureFile]:
    """The file of each picture, as it was when the folder was listed."""
    return list(self._pictures)

  def labels(self, choice: str | None) -> Labels | None:
    """The class of each picture, by its folder; None unless that is asked for.

    Raises:
      UserError: another choice, or pictures that lie in no folder of a class.
    """
    return None if choice is None else labels_by_folder(self._paths, self._root, self.split, choice)

  def version(self) -> str:
    """sha256 (hex) of what the system tells of each file: another one if a picture changes."""
    return version_of(self._pictures)

  def _files(self, indices):
    return [self._root / self._paths[i] for i in indices]

  def _picture_name(self, index):
    return str(self._root / self._paths[index])


def existing_folder(path: str, name: str, what: str) -> pathlib.Path:
  """The absolute path of a folder; a UserError, which says what it should have, if it is none."""
  root = expanded(path).absolute()
  if not root.is_dir():
    problem = 'is not a folder' if root.exists() else 'does not exist'
    raise UserError(f'data.source={name!r}: {root} {problem}; give a folder of {what}')
  return root


def files_of_split(
  path: str,
  *,
  name: str,
  split: str,
  extensions: Sequence[str],
  what: str,
  or_else: str = '',
  listed: Callable[[pathlib.Path, Sequence[str], str], Listing] = list_files,
) -> tuple[pathlib.Path, Listing]:
  """(the folder of a split, its files).

  Args:
    path: of the data.
    name: the source as the config names it.
    split: name of the split.
    extensions: of the files.
    what: the files are called.
    or_else: what else the path may be, for errors.
    listed: list_files, or list_pictures for files that Pillow reads.

  Raises:
    UserError: no folder, or no such files in it.
    NoSplitError: no such split.
  """
  folder = split_folder(existing_folder(path, name, what + or_else), split, what)
  listing = listed(folder, extensions, what)
  check_found(listing, folder, name, extensions)
  return folder, listing


def check_found(
  listing: Listing, folder: pathlib.Path, name: str, extensions: Sequence[str]
) -> None:
  """Raises a UserError for a folder without any file of the kind, with what was left out."""
  if not listing.pictures:
    why = ''.join(f'; {line}' for line in listing.remarks(folder))
    raise UserError(
      f'data.source={name!r}: no {listing.what} in {folder}; looked for {" ".join(extensions)}{why}'
    )


def labels_by_folder(
  paths: Sequence[str], root: pathlib.Path, split: str, choice: str, what: str = 'pictures'
) -> Labels:
  """The class of each file: the first folder that the file lies in, below that of its split.

  Args:
    paths: relative to the folder of the split.
    root: that folder.
    split: its name; of 'all', the folder has those of the splits.
    choice: data.labels.
    what: the files are called, for errors.

  Raises:
    UserError: another choice, or files that lie in no folder of a class.
  """
  if choice != FOLDERS:
    raise UserError(f'data.labels={choice}: a folder of {what} has data.labels={FOLDERS} alone')
  parts = [path.split('/') for path in paths]
  if split == 'all':
    parts = [of[1:] if of[0] in SPLITS and len(of) > 1 else of for of in parts]
  if loose := ['/'.join(of) for of in parts if len(of) < 2]:
    raise UserError(
      f'data.labels={FOLDERS}: {len(loose)} {what} of {root} lie in no folder of a class '
      f'({some(loose)}); move each into that of its class'
    )
  names = sorted({of[0] for of in parts})
  numbers = {name: i for i, name in enumerate(names)}
  return Labels(np.array([numbers[of[0]] for of in parts], np.int32), tuple(names))


def split_folder(root: pathlib.Path, split: str, what: str = 'pictures') -> pathlib.Path:
  """Returns the folder that holds `split`; see the module's docstring for the rule."""
  if split == 'all':
    return root
  if (root / split).is_dir():
    return root / split
  splits = [name for name in SPLITS if (root / name).is_dir()]
  if splits:
    present = sorted(path.name for path in root.iterdir() if path.is_dir())
    raise NoSplitError(
      f'data.split={split!r}: {root} has no such subfolder, only {", ".join(present)}'
    )
  if split != 'train':
    raise NoSplitError(
      f'data.split={split!r}: {root} has no such subfolder, and is one set of {what}, the split '
      "'train'; --config.data.holdout=0.1, given when training begins, holds out a tenth as 'test'"
    )
  return root


def _beside(root, folder):
  """A line on what lies beside the folder of a split, and one on splits of another spelling."""
  subfolders = sorted(path.name for path in root.iterdir() if path.is_dir())
  subfolders = [name for name in subfolders if not name.startswith('.')]
  if folder == root:
    alike = [name for name in subfolders if name.lower() in SPLITS and name not in SPLITS]
    if alike:
      yield (
        f'{root}: {some([f"{name}/" for name in alike])} are read as any other folder; splits are '
        'written in small letters'
      )
  elif folder.name in SPLITS:
    others = [f'{name}/' for name in subfolders if name not in SPLITS and name != folder.name]
    others += sorted(
      path.name for path in root.iterdir() if path.suffix.lower() in EXTENSIONS and path.is_file()
    )
    if others:
      yield (
        f'{root}: {folder.name}/ alone is read; beside it lie {some(others)} ({len(others)} in '
        'all), which data.split=all reads, too'
      )


def make_folder_source(
  path: str, *, name: str, image_size: int | Sequence[int], channels: int, split: str
) -> Any:
  """Opens the pictures in the folder `path`; `name` is the source as the config names it."""
  root = existing_folder(path, name, 'pictures')
  folder = split_folder(root, split)
  listing = list_pictures(folder)
  remarks = tuple(_beside(root, folder))
  check_found(listing, folder, name, EXTENSIONS)
  shape = dict(image_size=image_size, channels=channels)
  return FolderSource(folder, listing, name=name, split=split, remarks=remarks, **shape)
