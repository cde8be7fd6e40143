"""Arrays of an .npz file without reading them: stored members are mapped into memory."""

import os
import pathlib
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax.errors import UserError, WriteError
from ddpm_jax.refusals import raise_refusal
from ddpm_jax.storage.files import written_whole

_LOCAL_HEADER_BYTES = 30
_MOST_INFLATION = 1100  # deflate reaches 1032
_IN_MEMORY_BYTES = 1 << 28  # a larger member that is compressed goes to a temporary file
_MOST_INFLATION_OF_LARGE = 100  # pictures and features inflate by a few times
_BLOCK_BYTES = 1 << 20
# Everything zipfile and numpy are known to raise on a damaged file (RuntimeError: a member that is
# marked as encrypted, or of an unknown compression; TypeError and OverflowError: odd shapes).
_READ_ERRORS = (
  OSError,
  EOFError,
  KeyError,
  MemoryError,
  ValueError,
  TypeError,
  OverflowError,
  RuntimeError,
  SyntaxError,
  tokenize.TokenError,
  zipfile.BadZipFile,
  zlib.error,
)


def open_npz(path: str | os.PathLike[str], *, verify: bool = False) -> dict[str, np.ndarray]:
  """Opens all arrays of an .npz file.

  Args:
    path: of the file.
    verify: whether to hold each member against its checksum, which reads the file once.

  Returns:
    dict of name -> array: mapped read-only where its member is stored as it is, as np.savez and
    this program do; read whole where it is compressed, or mapped from a temporary file if it is
    large. Without verify, members that are stored are not held against their checksums.

  Raises:
    UserError: not an .npz file, damaged, or with Python objects in it; or a large member that
      inflates as no pictures do.
    DiskError: the system fails to read it, which says nothing on what it has.
    WriteError: there is no room for the temporary file.
  """
  try:
    with zipfile.ZipFile(path) as archive, open(path, 'rb') as file:
      if verify and (damaged := archive.testzip()):
        raise UserError(f'{damaged} has another checksum')
      return {
        member.filename.removesuffix('.npy'): _open_member(path, archive, file, member)
        for member in archive.infolist()
      }
  except _READ_ERRORS as error:
    raise_refusal(path, error)
    raise UserError(
      f'{path} is not an intact .npz file of arrays ({" ".join(str(error).split())})'
    ) from error


def write_npz(file: pathlib.Path, arrays: Mapping[str, Any]) -> None:
  """Writes arrays, whole or not at all."""
  with written_whole(file) as partial, open(partial, 'wb') as stream:
    np.savez(stream, **arrays)


def _open_member(path, archive, file, member):
  if member.compress_type != zipfile.ZIP_STORED:
    if member.file_size > _MOST_INFLATION * member.compress_size:
      raise UserError(f'{member.filename} says that it has {member.file_size} bytes')
    with archive.open(member) as stream:
      shape, order, dtype, size = _read_header(stream, member)
      if member.file_size > _IN_MEMORY_BYTES:
        return np.memmap(_inflate(stream, member), dtype, 'r', 0, shape, order)
      return np.ndarray(shape, dtype, stream.read(size), order=order)
  file.seek(member.header_offset)
  header = file.read(_LOCAL_HEADER_BYTES)
  name_bytes, extra_bytes = (int.from_bytes(header[i : i + 2], 'little') for i in (26, 28))
  file.seek(name_bytes + extra_bytes, 1)
  start = file.tell()
  shape, order, dtype, size = _read_header(file, member)
  if start + member.file_size > os.fstat(file.fileno()).st_size:
    raise UserError(f'{member.filename} is cut off')
  if size == 0:
    return np.zeros(shape, dtype, order)
  return np.memmap(path, dtype, 'r', file.tell(), shape, order)


def _inflate(stream, member):
  """The rest of a large member as a temporary file, which goes with the last use of it."""
  if member.file_size > _MOST_INFLATION_OF_LARGE * member.compress_size:
    raise UserError(
      f'{member.filename} has {member.compress_size} bytes that inflate to {member.file_size}, as '
      'pictures do not; np.savez writes it without compression'
    )
  file = tempfile.TemporaryFile()  # noqa: SIM115
  while block := stream.read(_BLOCK_BYTES):
    try:
      file.write(block)
      file.flush()
    except OSError as error:
      raise WriteError(f'{tempfile.gettempdir()} ({member.filename}, inflated)', error) from error
  return file


def _read_header(stream, member):
  """(shape, 'C' or 'F', dtype, bytes) of the array that follows; it has to be the whole member."""
  start = stream.tell()
  version = np.lib.format.read_magic(stream)
  read_header = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }[version]
  shape, fortran_order, dtype = read_header(stream)
  if dtype.hasobject:
    raise UserError(f'{member.filename} holds Python objects')
  size = int(np.prod(shape, dtype=object)) * dtype.itemsize
  if min(shape, default=0) < 0 or stream.tell() - start + size != member.file_size:
    raise UserError(f'{member.filename} has {member.file_size} bytes, which do not fit its header')
  return shape, 'F' if fortran_order else 'C', dtype, size
