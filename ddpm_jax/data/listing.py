"""The files of a kind in a folder, each once, and a word on what is left out."""

import dataclasses
import errno
import hashlib
import os
import pathlib
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ddpm_jax.errors import DiskError

# What Pillow reads of itself. Its other formats are stubs, run other programs, or are no pictures.
EXTENSIONS = (
  '.apng', '.avif', '.bmp', '.dib', '.gif', '.j2k', '.jfif', '.jp2', '.jpe', '.jpeg', '.jpg',
  '.pbm', '.pgm', '.png', '.pnm', '.ppm', '.qoi', '.tga', '.tif', '.tiff', '.webp',
)  # fmt: skip
_OPTIONAL = ('.apng', '.avif', '.j2k', '.jp2', '.qoi')  # not in each build of Pillow
_SHOWN = 3  # names


class PictureFile(NamedTuple):
  """The file of a picture.

  Attributes:
    path: relative to the folder, a POSIX string.
    size: in bytes.
    changed_ns: when its content was written.
    touched_ns: when the system last noted a change of any kind, which nobody can set back.
    device, inode: which file it is, by whatever names.
  """

  path: str
  size: int
  changed_ns: int
  touched_ns: int
  device: int
  inode: int


@dataclasses.dataclass(frozen=True)
class Listing:
  """The pictures below a folder, sorted by their paths, and {reason: paths} of what is left out.

  `what` is what they are called, for people.
  """

  pictures: Sequence[PictureFile]
  left_out: Mapping[str, Sequence[str]]
  what: str = 'pictures'

  @property
  def paths(self) -> list[str]:
    """Relative to the folder."""
    return [picture.path for picture in self.pictures]

  def remarks(self, root: pathlib.Path) -> tuple[str, ...]:
    """A line on what was left out, if anything was."""
    if not self.left_out:
      return ()
    count = sum(map(len, self.left_out.values()))
    reasons = '; '.join(
      f'{len(paths)} {reason} ({some(paths)})' for reason, paths in self.left_out.items()
    )
    return (f'{root}: {len(self.pictures)} {self.what}; left out are {count}: {reasons}',)


def version_of(files: Sequence[PictureFile]) -> str:
  """sha256 (hex) of what the system tells of each file: another one if a file changes."""
  digest = hashlib.sha256()
  for file in files:
    digest.update(b'%d %d %d\n' % (file.size, file.changed_ns, file.touched_ns))
  return digest.hexdigest()


def some(names: Sequence[str]) -> str:
  """The first few of some names."""
  return ', '.join(names[:_SHOWN]) + (', ...' if len(names) > _SHOWN else '')


def list_pictures(
  root: pathlib.Path, extensions: Sequence[str] = EXTENSIONS, what: str = 'pictures'
) -> Listing:
  """As list_files, of the pictures that Pillow reads here."""
  listing = list_files(root, extensions, what)
  missing = _missing_formats({_extension(path) for path in listing.paths})
  kept = [picture for picture in listing.pictures if _extension(picture.path) not in missing]
  left_out = [(reason, path) for reason, paths in listing.left_out.items() for path in paths]
  left_out += [
    (f'{_extension(path)}, which Pillow here does not read', path)
    for path in listing.paths
    if _extension(path) in missing
  ]
  return Listing(kept, _by_reason(left_out), what)


def list_files(root: pathlib.Path, extensions: Sequence[str], what: str) -> Listing:
  """Lists the files below a folder, at any depth, whose names end in one of some extensions.

  A file that has several names, by links, is read by the first of them. Links are followed; a
  folder that they lead to a second time is left out.

  Raises:
    DiskError: the system fails to read a folder.
  """
  found, left_out = _walk(root, tuple(extensions))
  kept = {}
  # Of several names of a file, a link's is the last to be taken.
  for path, _, status in sorted(found, key=lambda entry: (entry[1], entry[0])):
    if kept.setdefault((status.st_dev, status.st_ino), (path, status))[0] != path:
      left_out.append(('links to files that are read already', path))
  files = [
    PictureFile(
      path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_dev, status.st_ino
    )
    for path, status in kept.values()
  ]
  return Listing(sorted(files), _by_reason(left_out), what)


def _by_reason(left_out):
  """{reason: sorted paths}, the greatest group first."""
  counts = Counter(reason for reason, _ in left_out)
  return {
    reason: sorted(path for other, path in left_out if other == reason)
    for reason, _ in counts.most_common()
  }


def _walk(root, extensions):
  """([(relative path, whether it goes by a link, stat) of a file], [(reason, path)] of others).

  Folders come before those that links lead to, so that a folder has its own name.
  """
  found, left_out, visited = [], [], set()
  folders, linked = [(root, '', False)], []
  while folders or linked:
    folder, prefix, is_linked = (folders or linked).pop(0)
    try:
      status = os.stat(folder)
      entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except PermissionError:
      left_out.append(('folders without permission to read', prefix or '.'))
      continue
    except OSError as error:
      raise DiskError(folder, error) from error
    if (status.st_dev, status.st_ino) in visited:
      left_out.append(('links to folders that are read already', prefix))
      continue
    visited.add((status.st_dev, status.st_ino))
    for entry in entries:
      path = f'{prefix}/{entry.name}' if prefix else entry.name
      if entry.name.startswith('.'):
        left_out.append(('hidden', path))
        continue
      try:
        status = entry.stat()
      except FileNotFoundError:
        left_out.append(('links to nothing', path))
        continue
      except OSError as error:
        if error.errno == errno.ELOOP:
          left_out.append(('links to nothing', path))
          continue
        raise DiskError(entry.path, error) from error
      is_link = is_linked or entry.is_symlink()
      if stat.S_ISDIR(status.st_mode):
        (linked if is_link else folders).append((entry.path, path, is_link))
      elif not stat.S_ISREG(status.st_mode):
        left_out.append(('no regular files', path))
      elif entry.name.lower().endswith(extensions):
        found.append((path, is_link, status))
      else:
        left_out.append((f'{_extension(entry.name) or "without an extension"}', path))
  return found, left_out


def _extension(name):
  return pathlib.PurePosixPath(name).suffix.lower()


def _missing_formats(extensions):
  """Those of _OPTIONAL among the extensions that this Pillow does not read."""
  asked = extensions & set(_OPTIONAL)
  if not asked:
    return set()
  import PIL.Image

  PIL.Image.init()
  formats = PIL.Image.registered_extensions()
  return {extension for extension in asked if formats.get(extension) not in PIL.Image.OPEN}
