"""The bytes of a compressed example, and of an archive of several: docs/codec.md describes them."""

import binascii
import dataclasses
from collections.abc import Sequence

from ddpm_jax.codec.candidates import GENERATOR
from ddpm_jax.codec.channel import Search
from ddpm_jax.errors import UserError

FILE_MAGIC, ARCHIVE_MAGIC = b'DDPC', b'DDPA'
VERSION = 4
MODEL_ID_BYTES, TABLE_ID_BYTES = 8, 4
_MAX_VARINT_BYTES = 5
_CHECK_BYTES = 2
_EXACT = 0x80
_MAX_AXES = 8


@dataclasses.dataclass(frozen=True)
class Header:
  """What all sections go by.

  Attributes:
    model_id: 8 bytes, the head of the sha256 of the parameters.
    table_id: 4 bytes, the head of the table's sha256.
    seed: of the codebooks, in [0, 2^32).
    search: Search.
    margin_bits: the margin of roundings is 2^-margin_bits of x_0.
    shape: of an example.
    levels: of the data; None for values of any kind.
  """

  model_id: bytes
  table_id: bytes
  seed: int
  search: Search
  margin_bits: int
  shape: tuple[int, ...]
  levels: int | None

  def to_bytes(self, magic: bytes) -> bytes:
    """The header with its checksum."""
    search = self.search.bits | (_EXACT if self.search.is_exact else 0)
    body = magic + bytes([VERSION]) + self.model_id + self.table_id
    body += bytes([GENERATOR]) + self.seed.to_bytes(4, 'big') + bytes([search, self.margin_bits])
    body += bytes([len(self.shape)]) + b''.join(map(_varint, self.shape))
    return _checked(body + _varint(self.levels or 0))


@dataclasses.dataclass(frozen=True)
class Compressed:
  """A compressed example, as far as it was there.

  Attributes:
    header: Header.
    sections: bytes of each whole section, parts of one code.
    is_cut: whether more sections are named than are whole.
    name: what to call it in errors.
    beyond: what is amiss behind it in its archive; None if nothing is.
  """

  header: Header
  sections: tuple[bytes, ...]
  is_cut: bool = False
  name: str = 'the file'
  beyond: str | None = None

  def to_bytes(self) -> bytes:
    """The file."""
    return self.header.to_bytes(FILE_MAGIC) + self.body()

  def body(self) -> bytes:
    """The file without its header."""
    framed = (_varint(len(x)) + _checked(x) for x in self.sections)
    return _varint(len(self.sections)) + b''.join(framed)

  def first(self, count: int) -> 'Compressed':
    """The first sections alone."""
    return dataclasses.replace(self, sections=self.sections[:count])


def read_file(data: bytes, name: str = 'the file') -> Compressed:
  """Reads a compressed example: all its whole sections, up to the first that is cut or damaged.

  Args:
    data: the file.
    name: what to call it in errors.

  Raises:
    UserError: another kind of file, another version, or a damaged header.
  """
  reader = _Reader(bytes(data), name)
  header = _read_header(reader, FILE_MAGIC)
  return _read_body(reader, header, name)


def write_archive(files: Sequence[Compressed]) -> bytes:
  """Several examples of one header, which stands there once.

  Raises:
    UserError: none, or examples of several headers.
  """
  if not files or any(file.header != files[0].header for file in files):
    raise UserError('an archive takes examples of one model, table, seed and search')
  bodies = [file.body() for file in files]
  count = _checked(_varint(len(files)))
  return (
    files[0].header.to_bytes(ARCHIVE_MAGIC)
    + count
    + b''.join(_checked(_varint(len(body))) + body for body in bodies)
  )


def read_archive(data: bytes, name: str = 'the archive') -> list[Compressed]:
  """Reads an archive: the examples that are there, of which the last says how many are not.

  Raises:
    UserError: as read_file, or where no example is left.
  """
  reader = _Reader(bytes(data), name)
  header = _read_header(reader, ARCHIVE_MAGIC)
  count, found = reader.checked_varint(), []
  if count is None:
    raise UserError(f'{name} is damaged: its header cannot be read')
  for i in range(count):
    length = reader.checked_varint()
    if length is None:
      break
    body = reader.take(min(length, reader.left))
    inner = _Reader(body, f'{name}, example {i}')
    found.append(_read_body(inner, header, inner.name))
  if not found:
    raise UserError(f'{name} is cut off: it has no example')
  beyond = None
  if lost := count - len(found):
    beyond = f'{name} is cut off or damaged: {lost} of its {count} examples are not there'
  elif reader.left > 0:
    beyond = f'{name} is damaged: {reader.left} bytes follow its end'
  found[-1] = dataclasses.replace(found[-1], beyond=beyond)
  return found


def is_archive(data: bytes) -> bool:
  """Whether a file is an archive, by its first bytes."""
  return data[:4] == ARCHIVE_MAGIC


class _Reader:
  """Goes through bytes; None where they end."""

  def __init__(self, data, name):
    self._data, self._place, self.name = data, 0, name

  @property
  def left(self):
    return len(self._data) - self._place

  def take(self, count):
    taken = self._data[self._place : self._place + count]
    self._place += count
    return taken if len(taken) == count else None

  def varint(self):
    value = 0
    for i in range(_MAX_VARINT_BYTES):
      byte = self.take(1)
      if byte is None:
        return None
      value |= (byte[0] & 0x7F) << (7 * i)
      if byte[0] < 0x80:
        return value
    return None

  def checked_varint(self):
    first = self._place
    value = self.varint()
    return value if value is not None and self.is_intact(first) else None

  def is_intact(self, first):
    """Whether the checksum that follows is that of the bytes from `first` on."""
    checked = self._data[first : self._place]
    return self.take(_CHECK_BYTES) == checksum(checked)


def _read_header(reader, magic):
  found = reader.take(4)
  if found != magic:
    kinds = {FILE_MAGIC: 'a compressed example', ARCHIVE_MAGIC: 'an archive'}
    what = f'{kinds[found]}, not {kinds[magic]}' if found in kinds else 'no compressed example'
    raise UserError(f'{reader.name} is {what}: give a file of --mode=compress')
  version = reader.take(1)
  if version is not None and version[0] != VERSION:
    raise UserError(
      f'{reader.name} has version {version[0]} of the format, and this program knows {VERSION}: '
      'use the program that wrote it'
    )
  model_id, table_id = reader.take(MODEL_ID_BYTES), reader.take(TABLE_ID_BYTES)
  rest, axes = reader.take(7), reader.take(1)
  shape = None
  if axes is not None and axes[0] <= _MAX_AXES:
    shape = [reader.varint() for _ in range(axes[0])]
  levels = reader.varint()
  if shape is None or None in shape or levels is None or not reader.is_intact(0):
    raise UserError(f'{reader.name} is cut off or damaged: its header cannot be read')
  if rest[0] != GENERATOR:
    raise UserError(f'{reader.name} has random numbers of generator {rest[0]}, not {GENERATOR}')
  search = Search(bool(rest[5] & _EXACT), rest[5] & ~_EXACT)
  seed = int.from_bytes(rest[1:5], 'big')
  return Header(model_id, table_id, seed, search, rest[6], tuple(shape), levels or None)


def _read_body(reader, header, name):
  count, sections = reader.varint(), []
  while count is not None and len(sections) < count:
    length = reader.varint()
    section = None if length is None or length > reader.left else reader.take(length)
    if section is None or reader.take(_CHECK_BYTES) != checksum(section):
      break
    sections.append(section)
  is_cut = count is None or len(sections) < count or reader.left > 0
  return Compressed(header, tuple(sections), is_cut, name)


def _varint(value):
  """7 bits a byte, the lowest first; the uppermost bit says that more follow."""
  found = bytearray()
  while value >= 0x80:
    found.append(value & 0x7F | 0x80)
    value >>= 7
  return bytes([*found, value])


def _checked(body):
  return body + checksum(body)


def checksum(body: bytes) -> bytes:
  """CRC-16 of CCITT, begun at 0xFFFF."""
  return binascii.crc_hqx(body, 0xFFFF).to_bytes(_CHECK_BYTES, 'big')
