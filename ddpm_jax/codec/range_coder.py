"""A range coder of integers (Martin 1979), whose code can be cut between two sections.

A code is a binary fraction in [0, 1), written as bytes, that lies in an interval; each symbol
narrows the interval to its share. All of it is integer arithmetic, so that it is the same
everywhere. docs/codec.md has the format.
"""

from collections.abc import Sequence

import numpy as np

from ddpm_jax.errors import UserError

STATE_BITS = 56  # of the interval: a width in [2^48, 2^56]
_TOP = 1 << STATE_BITS
_BOTTOM = _TOP >> 8
MAX_TOTAL = 1 << 24  # of frequencies: what is lost of a width is less than 2^-24 of it


class RangeEncoder:
  """Writes symbols, and says after how many bytes each section is whole."""

  def __init__(self) -> None:
    """Begins with no symbol."""
    self._bytes, self._low, self._width = bytearray(), 0, _TOP
    self._ends: list[bytes] = []

  def encode(self, start: int, size: int, total: int) -> None:
    """Narrows the interval to the share [start, start + size) of total.

    Args:
      start, size, total: ints, 0 <= start < start + size <= total <= MAX_TOTAL.
    """
    assert 0 <= start < start + size <= total <= MAX_TOTAL
    unit = self._width // total
    self._low += unit * start
    self._width = unit * size
    if self._low >= _TOP:
      self._low -= _TOP
      self._carry()
    while self._width <= _BOTTOM:
      self._bytes.append(self._low >> (STATE_BITS - 8))
      self._low = (self._low << 8) & (_TOP - 1)
      self._width <<= 8

  def encode_bits(self, value: int, num_bits: int) -> None:
    """Writes an int of so many bits, all alike."""
    while num_bits > 0:
      taken = min(num_bits, 16)
      num_bits -= taken
      self.encode((value >> num_bits) & ((1 << taken) - 1), 1, 1 << taken)

  @property
  def num_bytes(self) -> int:
    """How many bytes are settled."""
    return len(self._bytes)

  def _carry(self):
    i = len(self._bytes) - 1
    while self._bytes[i] == 255:
      self._bytes[i] = 0
      i -= 1
    self._bytes[i] += 1

  def end_section(self) -> None:
    """Ends a section."""
    self._ends.append(bytes(self._bytes) + self._low.to_bytes(STATE_BITS // 8, 'big'))

  def finish(self) -> tuple[bytes, list[int]]:
    """The whole code, and where it can be cut.

    Returns:
      (code, ends): the symbols of section k can be read of the first ends[k] bytes alone.
    """
    code = self._whole()
    ends: list[int] = []
    for low in self._ends:
      # What is cut off reads as zeros, which must not fall below the section's interval.
      length = ends[-1] if ends else 0
      while code[:length].ljust(len(low), b'\0') < low:
        length += 1
      ends.append(length)
    return code[: ends[-1]] if ends else b'', ends

  def _whole(self):
    """The shortest code in the interval."""
    for num_bytes in range(STATE_BITS // 8 + 1):
      mask = (_TOP - 1) >> (8 * num_bytes)
      value = (self._low + mask) & ~mask
      if value < self._low + self._width:
        break
    if value >= _TOP:
      value -= _TOP
      self._carry()
    tail = value.to_bytes(STATE_BITS // 8, 'big')[:num_bytes]
    return bytes(self._bytes) + tail


class RangeDecoder:
  """Reads the symbols of a RangeEncoder's code; beyond its end there are zeros."""

  def __init__(self, code: bytes) -> None:
    """Begins at the first symbol."""
    self._code, self._next = code, STATE_BITS // 8
    self._offset = int.from_bytes(code[: self._next].ljust(self._next, b'\0'), 'big')
    self._width = _TOP

  def peek(self, total: int) -> int:
    """The place in [0, total) that the next symbol's share has in it."""
    return min(self._offset // (self._width // total), total - 1)

  def take(self, start: int, size: int, total: int) -> None:
    """Goes past the symbol of the share [start, start + size)."""
    unit = self._width // total
    self._offset -= unit * start
    self._width = unit * size
    if not 0 <= self._offset < self._width:  # no encoder writes this
      raise UserError('the code is damaged')
    while self._width <= _BOTTOM:
      following = self._code[self._next] if self._next < len(self._code) else 0
      self._offset = (self._offset << 8) | following
      self._next += 1
      self._width <<= 8

  def decode(self, cumulative: Sequence[int] | np.ndarray) -> int:
    """Reads a symbol.

    Args:
      cumulative: ints [K + 1] from 0 on: symbol k has the share [cumulative[k], cumulative[k + 1]).
    """
    total = int(cumulative[-1])
    symbol = int(np.searchsorted(cumulative, self.peek(total), side='right')) - 1
    start = int(cumulative[symbol])
    self.take(start, int(cumulative[symbol + 1]) - start, total)
    return symbol

  def decode_bits(self, num_bits: int) -> int:
    """Reads an int of so many bits, as encode_bits wrote it."""
    value = 0
    while num_bits > 0:
      taken = min(num_bits, 16)
      num_bits -= taken
      place = self.peek(1 << taken)
      self.take(place, 1, 1 << taken)
      value = (value << taken) | place
    return value
