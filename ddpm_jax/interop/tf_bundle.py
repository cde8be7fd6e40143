"""Reads the tensors of a TensorFlow checkpoint (format V2, a "bundle") without TensorFlow.

  PREFIX.index                  a sorted table from names to BundleEntryProto: dtype, shape, place
  PREFIX.data-00000-of-00001    the elements, in C order; there may be more such shards

The table has LevelDB's form. Its last 48 bytes say where the index block is; that says where the
data blocks are. A block is a row of entries, whose keys share a prefix with the key before, and
ends in a type byte and a checksum. Checksums are CRC-32C, masked (rotated, plus a constant).

Nothing is allocated before its size is found to fit the file, and no two tensors may share bytes.
"""

import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping

import google_crc32c
import ml_dtypes
import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.refusals import raise_refusal

_MAX_INDEX_BYTES = 1 << 24  # the largest published model, with its optimizer, takes 0.1 MB
_MAX_NAME_BYTES = 1 << 10
_MAX_DIMENSIONS = 8
_MAX_SHARDS = 1 << 10
_MAX_BYTES = 1 << 62  # NumPy multiplies the sizes of an array without elements, too
_MAX_REASON = 400
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5  # of a block: type and checksum
_MAGIC = 0xDB4775248B80FB57
_CRC_MASK_DELTA = 0xA282EAD8
_ENDINGS = ('.index', '.data-00000-of-00001')
_ENDING = re.compile(r'\.(index|meta|data-\d{5}-of-\d{5})$')

# Of DataType in TensorFlow's types.proto; strings and the rest are no parameters.
_DTYPES = {
  1: np.dtype('float32'),
  2: np.dtype('float64'),
  3: np.dtype('int32'),
  4: np.dtype('uint8'),
  5: np.dtype('int16'),
  6: np.dtype('int8'),
  9: np.dtype('int64'),
  10: np.dtype('bool'),
  14: np.dtype(ml_dtypes.bfloat16),
  19: np.dtype('float16'),
}


@dataclasses.dataclass(frozen=True)
class _Entry:
  """Where a tensor is; dtype is DataType's number, crc the masked checksum of its bytes."""

  dtype: int = 0
  shape: tuple = ()
  shard: int = 0
  offset: int = 0
  num_bytes: int = 0
  crc: int = 0
  is_sliced: bool = False


def find_bundle(path: pathlib.Path) -> pathlib.Path | None:
  """The prefix of the bundle that a path means.

  Args:
    path: PREFIX, one of its files, or a folder, whose file `checkpoint` names the newest.

  Returns:
    pathlib.Path of the prefix, or None if there is no bundle.
  """
  path = pathlib.Path(path)
  folder, name = path.parent, path.name
  if os.path.isdir(path):
    state = path / 'checkpoint'
    if not state.is_file() or state.stat().st_size > _MAX_INDEX_BYTES:
      return None
    newest = re.search(rb'^model_checkpoint_path: "([^"\n]*)"', state.read_bytes(), re.MULTILINE)
    if newest is None:
      return None
    # Only the last part: written elsewhere, the path before it is often absolute.
    folder, name = path, pathlib.PurePosixPath(newest[1].decode(errors='replace')).name
  name = _ENDING.sub('', name)
  # pathlib's is_file raises an error for names that no file can have.
  found = any(os.path.isfile(folder / f'{name}{ending}') for ending in _ENDINGS)
  return folder / name if name and found else None


def read_bundle(
  prefix: pathlib.Path,
  select: Callable[[Mapping[str, tuple[int, ...]]], Iterable[str]] | None = None,
) -> dict[str, np.ndarray]:
  """Reads tensors of a bundle.

  Args:
    prefix: pathlib.Path, as find_bundle gives it.
    select: {name: shape} of all tensors -> the names to read; None reads all.

  Returns:
    dict of arrays by name.

  Raises:
    UserError: a file that is missing, damaged or cut off, or a tensor of a kind that is not read;
      in one line, which names the file. Also what select raises.
    DiskError: the system fails to read one.
  """
  index = prefix.with_name(f'{prefix.name}.index')
  try:
    num_shards, entries = _read_index(index)
  except (UserError, OSError) as error:
    raise_refusal(index, error)
    raise _named(index, error) from error
  names = list(entries)
  if select is not None:
    names = list(select({name: entry.shape for name, entry in entries.items()}))
  arrays = {}
  for shard in range(num_shards):
    data = prefix.with_name(f'{prefix.name}.data-{shard:05d}-of-{num_shards:05d}')
    here = {name: entries[name] for name in names if entries[name].shard == shard}
    try:
      arrays |= _read_shard(data, here) if here else {}
    except (UserError, OSError) as error:
      raise_refusal(data, error)
      raise _named(data, error) from error
  return {name: arrays[name] for name in names}


def _named(path, error):
  reason = ' '.join(str(error).split())
  return UserError(f'{path}: {reason[:_MAX_REASON]}')


def _read_shard(path, entries):
  """The arrays of the entries, which are all of this shard and do not overlap."""
  if not path.is_file():
    raise UserError('no such file')
  file_bytes = path.stat().st_size
  arrays = {}
  with open(path, 'rb') as file:
    for name, entry in entries.items():
      dtype = _checked_dtype(name, entry)
      if entry.offset + entry.num_bytes > file_bytes:
        raise UserError(
          f'{name} is at bytes {entry.offset} to {entry.offset + entry.num_bytes} of a file of '
          f'{file_bytes}: it is cut off'
        )
      file.seek(entry.offset)
      content = file.read(entry.num_bytes)
      if _masked_crc(content) != entry.crc:
        raise UserError(f'{name} has another checksum than the index says: the file is damaged')
      arrays[name] = np.frombuffer(content, dtype).reshape(entry.shape)
  return arrays


def _checked_dtype(name, entry):
  if entry.is_sliced:
    raise UserError(f'{name} is stored in slices (a partitioned variable), which are not read')
  if entry.dtype not in _DTYPES:
    raise UserError(f'{name} has data type {entry.dtype}, which is no number type known here')
  dtype = _DTYPES[entry.dtype]
  if math.prod(max(size, 1) for size in entry.shape) * dtype.itemsize > _MAX_BYTES:
    raise UserError(f'{name} has shape {entry.shape}, larger than any array')
  if math.prod(entry.shape) * dtype.itemsize != entry.num_bytes:
    raise UserError(
      f'{name} of shape {entry.shape} and type {dtype} has {entry.num_bytes} bytes in the index'
    )
  return dtype


def _read_index(path):
  """(number of shards, {name: _Entry})."""
  if not path.is_file():
    raise UserError('no such file')
  if path.stat().st_size > _MAX_INDEX_BYTES:
    raise UserError(f'an index of more than {_MAX_INDEX_BYTES} bytes')
  content = path.read_bytes()
  num_shards, entries = None, {}
  previous = None
  for key, value in _table_items(content):
    if previous is not None and key <= previous:
      raise UserError('its names are not in order')
    if previous is None:
      if key:
        raise UserError('it has no header')
      num_shards = _parse_header(value)
    else:
      entries[_parse_name(key)] = _parse_entry(value)
    previous = key
  if num_shards is None:
    raise UserError('it is empty')
  _check_places(num_shards, entries)
  return num_shards, entries


def _check_places(num_shards, entries):
  ends = [0] * num_shards
  for name, entry in sorted(entries.items(), key=lambda item: item[1].offset):
    if entry.shard >= num_shards:
      raise UserError(f'{name} is in shard {entry.shard} of {num_shards}')
    if entry.offset < ends[entry.shard]:
      raise UserError(f'{name} overlaps the tensor before it')
    ends[entry.shard] = entry.offset + entry.num_bytes


def _table_items(content):
  """Yields (key, value) of the table, in its order."""
  if len(content) < _FOOTER_BYTES:
    raise UserError(f'a file of {len(content)} bytes is no index of a checkpoint')
  footer = content[-_FOOTER_BYTES:]
  if int.from_bytes(footer[-8:], 'little') != _MAGIC:
    raise UserError('not an index of a checkpoint (or its end is cut off)')
  _, position = _parse_handle(footer, 0)  # of a block of statistics, which is empty
  handle, _ = _parse_handle(footer, position)
  end = 0  # of the blocks read so far: each byte is read once
  for _, value in _block_items(_block(content, handle)):
    (offset, size), _ = _parse_handle(value, 0)
    if offset < end:
      raise UserError('its blocks overlap')
    end = offset + size
    yield from _block_items(_block(content, (offset, size)))


def _block(content, handle):
  offset, size = handle
  end = offset + size + _TRAILER_BYTES
  if end > len(content) - _FOOTER_BYTES:
    raise UserError('it has a block outside the file')
  stored = int.from_bytes(content[end - 4 : end], 'little')
  if _masked_crc(content[offset : end - 4]) != stored:
    raise UserError('a block has another checksum than stored: the file is damaged')
  if content[offset + size] != 0:
    raise UserError('its blocks are compressed, which TensorFlow does not do')
  return content[offset : offset + size]


def _block_items(block):
  """Yields (key, value) of a block, whose end is the list of entries that share no prefix."""
  if len(block) < 4:
    raise UserError('a block without an end')
  end = len(block) - 4 - 4 * int.from_bytes(block[-4:], 'little')
  position, key = 0, b''
  while position < end:
    shared, position = _parse_varint(block, position)
    own, position = _parse_varint(block, position)
    size, position = _parse_varint(block, position)
    if shared > len(key) or shared + own > _MAX_NAME_BYTES or position + own + size > end:
      raise UserError('a block with an entry that does not fit')
    key = key[:shared] + block[position : position + own]
    position += own
    yield key, block[position : position + size]
    position += size
  if position != end:
    raise UserError('a block whose entries do not fit')


def _masked_crc(content):
  crc = google_crc32c.value(content)
  return ((crc >> 15 | crc << 17) + _CRC_MASK_DELTA) & 0xFFFFFFFF


def _parse_handle(content, position):
  """((offset, size), position after it)."""
  offset, position = _parse_varint(content, position)
  size, position = _parse_varint(content, position)
  return (offset, size), position


def _parse_varint(content, position):
  """(number of at most 64 bits, position after it)."""
  number = 0
  for shift in range(0, 70, 7):
    if position >= len(content):
      break
    byte = content[position]
    position += 1
    number |= (byte & 0x7F) << shift
    if byte < 0x80:
      if number >= 1 << 64:
        break
      return number, position
  raise UserError('a number that does not end')


def _parse_fields(message):
  """Yields (number, value) of a protocol buffer; value is an int, or bytes."""
  position = 0
  while position < len(message):
    tag, position = _parse_varint(message, position)
    match tag & 7:
      case 0:
        value, position = _parse_varint(message, position)
      case 1 | 5 as wire:
        size = 8 if wire == 1 else 4
        value = int.from_bytes(message[position : position + size], 'little')
        position += size
      case 2:
        size, position = _parse_varint(message, position)
        value = message[position : position + size]
        position += size
      case wire:
        raise UserError(f'an entry with a field of wire type {wire}')
    if position > len(message):
      raise UserError('an entry that is cut off')
    yield tag >> 3, value


def _parse_name(key):
  try:
    return key.decode()
  except UnicodeDecodeError as error:
    raise UserError(f'a name that is no text ({error})') from error


def _parse_header(message):
  """BundleHeaderProto -> number of shards."""
  fields = dict(_parse_fields(message))
  if fields.get(2, 0) != 0:
    raise UserError('it is of a big-endian machine, which is not read')
  num_shards = fields.get(1, 0)
  if not isinstance(num_shards, int) or not 1 <= num_shards <= _MAX_SHARDS:
    raise UserError(f'its number of shards is not in [1, {_MAX_SHARDS}]')
  return num_shards


def _parse_entry(message):
  """BundleEntryProto -> _Entry."""
  entry = {}
  for number, value in _parse_fields(message):
    match number, value:
      case 1, int():
        entry['dtype'] = value
      case 2, bytes():
        entry['shape'] = _parse_shape(value)
      case 3, int() if value < _MAX_SHARDS:
        entry['shard'] = value
      case 4, int() if value < 1 << 62:
        entry['offset'] = value
      case 5, int() if value < 1 << 62:
        entry['num_bytes'] = value
      case 6, int():
        entry['crc'] = value
      case 7, bytes():
        entry['is_sliced'] = True
      case _:
        raise UserError(f'an entry whose field {number} is damaged or unknown')
  return _Entry(**entry)


def _parse_shape(message):
  """TensorShapeProto -> tuple of sizes."""
  sizes = []
  for number, dim in _parse_fields(message):
    if number != 2 or not isinstance(dim, bytes):
      raise UserError('a tensor of unknown shape')
    size = dict(_parse_fields(dim)).get(1, 0)
    if not isinstance(size, int) or size >= 1 << 48 or len(sizes) == _MAX_DIMENSIONS:
      raise UserError(f'a tensor with a size of {size}, or over {_MAX_DIMENSIONS} dimensions')
    sizes.append(size)
  return tuple(sizes)
