"""JAX's cache of compiled programs, each entry with its sha256.

JAX runs what it finds in its cache. Of a changed bit, or of an entry that a kill or a full disk cut
off, its format tells nothing where zstandard compresses it; the process may end, at every start.
JAX reaches its cache by the paths of etils, and those that begin with SCHEME are of the class here:
an entry that is not what was written is not there, so its program is compiled anew.

The seal is behind the entry, where other programs that read it by JAX alone pass over it.
"""

import contextlib
import hashlib
import os
import pathlib
import sys
import uuid
from typing import Any

from etils import epath

SCHEME = 'sealed://'
SEAL_BYTES = 32

_LocalPath: Any = type(epath.Path('/'))


def _of_parts(parts):
  return [part.removeprefix(SCHEME) if isinstance(part, str) else part for part in parts]


@epath.register_path_cls(SCHEME)
class SealedPath(_LocalPath):
  """The path of an entry, or of their folder: as much of pathlib.Path as JAX's cache uses."""

  if sys.version_info < (3, 12):

    def __new__(cls, *parts):
      """Strips the scheme."""
      return super().__new__(cls, *_of_parts(parts))

  else:

    def __init__(self, *parts):
      """Strips the scheme."""
      super().__init__(*_of_parts(parts))

  def exists(self) -> bool:
    """Whether an entry is there as it was written."""
    return self._content() is not None

  def read_bytes(self) -> bytes:
    """The entry; FileNotFoundError if it is not there as it was written."""
    content = self._content()
    if content is None:
      raise FileNotFoundError(f'{self} is no intact entry')
    return content

  def write_bytes(self, data: bytes) -> int:
    """Writes an entry and its seal, at once."""
    partial = pathlib.Path(f'{self}.{uuid.uuid4().hex}.partial')
    try:
      partial.write_bytes(data + _seal(data))
      os.replace(partial, self)
    except OSError:
      with contextlib.suppress(OSError):
        partial.unlink()
      raise
    return len(data)

  def _content(self):
    try:
      data = pathlib.Path(self).read_bytes()
    except OSError:
      return None
    content, seal = data[:-SEAL_BYTES], data[-SEAL_BYTES:]
    return content if seal == _seal(content) else None


def _seal(data):
  return hashlib.sha256(data).digest()
