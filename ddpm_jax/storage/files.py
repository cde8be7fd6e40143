"""Files that are whole or absent, and locks that last as long as their process."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

from ddpm_jax.errors import DiskError, UserError, WriteError
from ddpm_jax.heeding import heed
from ddpm_jax.refusals import disk_error

WAIT_SECS = 0.2  # between two looks at a lock


@contextlib.contextmanager
def written_whole(file: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields the path to write to; `file` has all of it afterwards, or is as it was.

  That holds for a loss of power too: content and name are on disk when this ends.

  Args:
    file: pathlib.Path, of a file or of a folder that is not there.

  Raises:
    WriteError: it cannot.
  """
  partial = file.with_name(f'.{file.name}.partial')
  _remove(partial)
  try:
    yield partial
    (sync_below if partial.is_dir() else sync)(partial)
    partial.replace(file)
    sync(file.parent)
  except Exception as error:
    _remove(partial)
    cause = disk_error(error)
    if cause is None or isinstance(error, DiskError):
      raise
    raise WriteError(file, cause) from error


def _remove(partial):
  with contextlib.suppress(OSError):
    (shutil.rmtree if partial.is_dir() else os.remove)(partial)


def make_writable(folder: pathlib.Path) -> None:
  """Makes a folder where there is none; raises an OSError if nothing can be written there."""
  folder.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryFile(dir=folder):
    pass


def sync(path: pathlib.Path) -> None:
  """Waits until a file's content, or a folder's names, are on disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  except OSError as error:
    if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not every file system can, for folders
      raise
  finally:
    os.close(descriptor)


def sync_below(folder: pathlib.Path) -> None:
  """As sync, for a folder and all that is in it, at any depth."""
  for parent, _, names in os.walk(folder, topdown=False):
    for name in names:
      sync(pathlib.Path(parent, name))
    sync(pathlib.Path(parent))


def read_json(file: pathlib.Path) -> Any:
  """What a JSON file has.

  Args:
    file: pathlib.Path.

  Raises:
    FileNotFoundError: there is none.
    UserError: it is not JSON, as after damage.
  """
  try:
    return json.loads(file.read_text())
  except (ValueError, RecursionError) as error:
    raise damaged(file, str(error)) from error


def read_object(file: pathlib.Path) -> dict[str, Any]:
  """As read_json, of a file that has an object: a dict."""
  found = read_json(file)
  if not isinstance(found, dict):
    raise damaged(file, f'a {type(found).__name__} where an object is due')
  return found


def damaged(file: pathlib.Path, reason: str) -> UserError:
  """The error of a file of ours whose content is another's."""
  return UserError(f'{file} is damaged ({reason}): put back what it had, or delete it')


def write_text(file: pathlib.Path, text: str) -> None:
  """Writes a text file, as written_whole says."""
  with written_whole(file) as partial:
    partial.write_text(text)


@contextlib.contextmanager
def file_lock(
  file: pathlib.Path, *, waiting_for: str, unless: Callable[[], bool] = lambda: False
) -> Iterator[bool]:
  """Holds a lock file, once no other process does.

  Args:
    file: pathlib.Path; its folder is made.
    waiting_for: what to say that one waits for, if one has to.
    unless: whether one need not wait, asked again and again.

  Yields:
    whether the lock is held: always, but for `unless`.
  """
  file.parent.mkdir(parents=True, exist_ok=True)
  with open(file, 'a') as stream:
    is_held = try_lock(stream)
    if not is_held and not unless():
      print(f'waits for {waiting_for}', flush=True)
      while not (is_held := try_lock(stream)) and not unless():
        heed()
        time.sleep(WAIT_SECS)
    yield is_held


def try_lock(stream: IO[Any]) -> bool:
  """Locks an open file until it is closed; False if another process holds it."""
  try:
    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  return True


def default_cache_dir() -> pathlib.Path:
  """$XDG_CACHE_HOME/ddpm_jax, by default ~/.cache/ddpm_jax."""
  # A relative or empty value is to be ignored, says the XDG specification.
  cache = pathlib.Path(os.environ.get('XDG_CACHE_HOME', ''))
  return (cache if cache.is_absolute() else pathlib.Path.home() / '.cache') / 'ddpm_jax'
