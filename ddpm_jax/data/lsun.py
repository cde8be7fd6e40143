"""LSUN bedroom, church and cat, from LSUN's own lmdb export or a folder of pictures.

    data.source='lsun_bedroom' data.dir=DIR        (also lsun_church, lsun_cat)

Obtaining: the download.py of https://github.com/fyu/lsun fetches bedroom and church_outdoor as
CATEGORY_SPLIT_lmdb.zip; cat.zip is among the objects at http://dl.yf.io/lsun/objects/. Unzip in
DIR, so that it holds what is wanted of

    bedroom_train_lmdb/data.mdb          3,033,042 pictures    (bedroom_val_lmdb: 300)
    church_outdoor_train_lmdb/data.mdb     126,227 pictures    (church_outdoor_val_lmdb: 300)
    cat/data.mdb                         1,657,266 pictures    (no other split)

or give a folder of extracted pictures (see folder.py). data.split: 'train', or 'val' where there is
one. Reading lmdb needs the optional package: pip install lmdb. The keys are listed once, in about a
minute for bedroom, and kept in $XDG_CACHE_HOME/ddpm_jax (by default ~/.cache/ddpm_jax).
"""

import contextlib
import functools
import hashlib
import io
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from ddpm_jax.data.folder import make_folder_source
from ddpm_jax.data.pictures import DamagedDataError, PictureSource
from ddpm_jax.data.splits import NoSplitError
from ddpm_jax.errors import UserError
from ddpm_jax.paths import expanded
from ddpm_jax.refusals import raise_refusal

# Where LSUN's archives put a category; {split} is 'train' or 'val'.
_FOLDERS = {
  'lsun_bedroom': ('bedroom_{split}_lmdb',),
  'lsun_church': ('church_outdoor_{split}_lmdb',),
  'lsun_cat': ('cat_{split}_lmdb', 'cat'),
}
NAMES = tuple(_FOLDERS)
_KEY_END = b'.'  # NumPy strips NUL bytes at the end of a bytes string; keys may have them


class LmdbSource(PictureSource):
  """The encoded pictures of one lmdb, in the order of their keys."""

  def __init__(self, folder, *, name, split, image_size, channels):
    super().__init__(name, split, image_size=image_size, channels=channels)
    self._folder = folder
    self._keys = _keys(folder)
    self._length = len(self._keys)

  def __len__(self):
    return self._length

  def __getstate__(self):
    return {**self.__dict__, '_keys': None}

  def names(self) -> bytes:
    """The keys, as bytes."""
    return self._keys.tobytes()

  def picture_names(self) -> list[bytes]:
    """The key of each picture."""
    return [key.removesuffix(_KEY_END) for key in self._keys.tolist()]

  def version(self) -> str:
    """The size and the time of the file."""
    status = (self._folder / 'data.mdb').stat()
    return f'{status.st_size} bytes, {status.st_mtime_ns} ns'

  def _files(self, indices):
    if self._keys is None:
      self._keys = _keys(self._folder)
    keys = [self._keys[i].removesuffix(_KEY_END) for i in indices]
    with _reading(self._folder) as transaction:
      return [io.BytesIO(transaction.get(key)) for key in keys]

  def _picture_name(self, index):
    return f'{self._folder}: key {self._keys[index].removesuffix(_KEY_END)!r}'


def make_lsun_source(
  name: str, *, dir: str | None, image_size: int | Sequence[int], channels: int, split: str
) -> Any:
  """Opens the lmdb of category `name` in `dir`, or else `dir` as a folder of pictures."""
  if dir is None:
    raise UserError(f'data.source={name!r}: set data.dir to the folder that holds the lmdb folder')
  shape: dict[str, Any] = dict(image_size=image_size, channels=channels, split=split)
  root = expanded(dir).absolute()
  candidates = [root / pattern.format(split=split) for pattern in _FOLDERS[name]]
  for folder in candidates:
    if (folder / 'data.mdb').is_file() and (split == 'train' or folder.name != 'cat'):
      return LmdbSource(folder, name=name, **shape)
  present = sorted(path.parent.name for path in root.glob('*/data.mdb'))
  if present:
    raise NoSplitError(
      f'data.source={name!r}, data.split={split!r}: no {candidates[0].name} in {root}, which has '
      f'{", ".join(present)}'
    )
  return make_folder_source(dir, name=name, **shape)


@functools.lru_cache(maxsize=8)
def _environment(folder, process_id):
  """Opens an lmdb, once a process: a second handle is an error, and one does not survive a fork."""
  del process_id  # part of the cache's key only
  try:
    import lmdb
  except ImportError as error:
    raise UserError(f'reading {folder} needs the package lmdb: pip install lmdb') from error
  try:
    opened = lmdb.open(str(folder), readonly=True, lock=False, readahead=False, meminit=False)
  except lmdb.Error as error:
    raise_refusal(folder, error)
    raise UserError(f'{folder} cannot be read as an lmdb ({error})') from error
  num_bytes = (folder / 'data.mdb').stat().st_size
  needed = (opened.info()['last_pgno'] + 1) * opened.stat()['psize']
  if num_bytes < needed:  # it is mapped into memory: reading beyond its end would kill the process
    opened.close()
    raise UserError(
      f'{folder}/data.mdb is cut off: it has {num_bytes} bytes of {needed} at least; replace it'
    )
  return opened


@contextlib.contextmanager
def _reading(folder):
  """Yields a transaction; what lmdb finds damaged is named."""
  environment = _environment(folder, os.getpid())
  import lmdb

  try:
    with environment.begin() as transaction:
      yield transaction
  except lmdb.Error as error:
    raise_refusal(folder, error)
    raise DamagedDataError(f'{folder} is damaged ({error}): replace it') from error


def _keys(folder):
  """Returns bytes [N], each key followed by _KEY_END; from the cache where it is there."""
  status = (folder / 'data.mdb').stat()
  identity = f'{folder}|{status.st_size}|{status.st_mtime_ns}'
  home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  cache = expanded(home) / 'ddpm_jax'
  file = cache / f'lmdb_keys_{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npy'
  with contextlib.suppress(OSError, ValueError, EOFError):  # it is not there, or damaged
    return np.load(file, mmap_mode='r')
  with _reading(folder) as transaction:
    keys = [key + _KEY_END for key in transaction.cursor().iternext(values=False)]
  keys = np.array(keys, dtype=np.bytes_) if keys else np.empty(0, 'S1')
  _save(file, keys)
  return keys


def _save(file, keys):
  """Writes the cache file in one step; a cache that cannot be written is done without."""
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as temporary:
      np.save(temporary, keys)
    os.replace(temporary.name, file)
  except OSError:
    pass
