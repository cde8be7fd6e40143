"""A folder of pictures.

    data.source='folder:/data/flowers'

All .bmp .gif .jpeg .jpg .png .webp files (any case; of a moving picture the first frame) in the
folder and its subfolders, sorted by relative path, hidden ones left out. EXIF orientation is
applied. Splits: where the folder has a subfolder named like the split (flowers/train,
flowers/test), that one is read; a folder without train/ and test/ has no splits, and every split
is the whole of it. 'all' is always the whole tree.
"""

import os
import pathlib
from typing import Any

from ddpm_jax.data.pictures import PictureSource
from ddpm_jax.errors import UserError

EXTENSIONS = ('.bmp', '.gif', '.jpeg', '.jpg', '.png', '.webp')


class FolderSource(PictureSource):
  """The pictures under `root`; `paths` are relative to it, in order."""

  def __init__(self, root, paths, *, name, split, image_size, channels):
    super().__init__(name, split, image_size=image_size, channels=channels, upright=True)
    self._root = root
    self._paths = paths

  def __len__(self):
    return len(self._paths)

  def names(self) -> bytes:
    """The relative paths, as bytes."""
    return os.fsencode('\n'.join(self._paths))

  def _files(self, indices):
    return [self._root / self._paths[i] for i in indices]

  def _picture_name(self, index):
    return str(self._root / self._paths[index])


def list_pictures(root: pathlib.Path) -> list[str]:
  """Returns the pictures' paths relative to `root`, as sorted POSIX strings."""
  found = []
  for folder, subfolders, files in os.walk(root, followlinks=True):
    subfolders[:] = [name for name in subfolders if not name.startswith('.')]
    for file in files:
      if file.lower().endswith(EXTENSIONS) and not file.startswith('.'):
        found.append((pathlib.Path(folder) / file).relative_to(root).as_posix())
  return sorted(found)


def split_folder(root: pathlib.Path, split: str) -> pathlib.Path:
  """Returns the folder that holds `split`; see the module's docstring for the rule."""
  if split == 'all':
    return root
  if (root / split).is_dir():
    return root / split
  if (root / 'train').is_dir() or (root / 'test').is_dir():
    present = sorted(path.name for path in root.iterdir() if path.is_dir())
    raise UserError(
      f'data.split={split!r}: {root} has no such subfolder, only {", ".join(present)}'
    )
  return root


def make_folder_source(path: str, *, name: str, image_size: int, channels: int, split: str) -> Any:
  """Opens the pictures in the folder `path`; `name` is the source as the config names it."""
  root = pathlib.Path(path).expanduser().absolute()
  if not root.is_dir():
    problem = 'is not a folder' if root.exists() else 'does not exist'
    raise UserError(f'data.source={name!r}: {root} {problem}; give a folder of pictures')
  root = split_folder(root, split)
  paths = list_pictures(root)
  if not paths:
    raise UserError(
      f'data.source={name!r}: no pictures in {root}; looked for {" ".join(EXTENSIONS)}'
    )
  return FolderSource(root, paths, name=name, split=split, image_size=image_size, channels=channels)
