"""The lossless end: x_0 given what the network predicts of it, in integers.

A network's prediction differs in its last digits from machine to machine. So it is rounded to whole
levels (or, of fine levels, to multiples of several), after an offset, one for each block of
elements, which keeps every element of the block away from where its rounding turns. From there on
all is integer arithmetic.

Up to 256 levels, an element has the frequencies of a mixture: component k gives level l of an
element predicted as m the share prior[l] shapes[k][l - m + 255], normalised; the prior and the
weights of the components go by the element's class, the weights also by the prediction. Of more
levels, the difference l - m is sent: how long it is and its first digits by frequencies of the
class, and the rest as bits.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ddpm_jax.codec.range_coder import RangeDecoder, RangeEncoder

SMALL = 256  # levels
NUM_CLASSES = 8  # of elements, by how well they are predicted
NUM_ZONES = 8  # of predictions
NUM_OFFSETS = 64
SCALES = (0.15, 0.4, 0.8, 1.5, 3.0, 6.0, 12.0, 25.0, 60.0)  # of logistic components, in levels
MIN_BLOCK, MAX_BLOCK = 8, 256
EXTRA_DIGITS = 2  # of a long difference that have frequencies, beside its first
_SHAPE_ONE, _PRIOR_ONE, _WEIGHT_ONE = 1 << 20, 1 << 16, 1 << 12
_TOTAL = 1 << 16
_EM_STEPS = 10

# 2^16 (5 / 8)^j: offset 0 nearly always does
OFFSET_FREQUENCIES = tuple(max(16, (65536 * 5**j) >> (3 * j)) for j in range(NUM_OFFSETS))


class Rounding:
  """How predictions become whole numbers.

  Attributes:
    levels: of the data.
    unit: predictions are multiples of so many levels.
    block: elements that share an offset.
  """

  def __init__(self, levels: int, margin_bits: int) -> None:
    """For a margin of 2^-margin_bits of x_0."""
    self.levels, self._margin_bits = levels, margin_bits
    self.unit = 1
    while (levels - 1) * 16 > self.unit << margin_bits:
      self.unit *= 2
    share = (self.unit << margin_bits) // (levels - 1)  # of 1, the one that is near a turn
    self.block = min(max(1 << (share.bit_length() - 1), MIN_BLOCK), MAX_BLOCK)

  def _scaled(self, x_0, offset):
    """In units, with an offset, so that rounding is down."""
    levels = (np.clip(np.float64(x_0), -1, 1) + 1) * ((self.levels - 1) / 2)
    return levels / self.unit + (0.5 + ((79 * offset + 64) % 128 - 64) / 128)

  def choose(self, x_0: np.ndarray) -> np.ndarray:
    """The offset of each block, int [blocks], for predictions [d]."""
    margin = 2.0**-self._margin_bits * (self.levels - 1) / 2 / self.unit
    chosen = []
    for first in range(0, len(x_0), self.block):
      scaled = self._scaled(x_0[None, first : first + self.block], np.arange(NUM_OFFSETS)[:, None])
      away = np.abs(scaled - np.rint(scaled)).min(1)
      fitting = np.flatnonzero(away > margin)
      chosen.append(int(fitting[0]) if len(fitting) else int(away.argmax()))
    return np.array(chosen)

  def round(self, x_0: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Predictions [d] as whole levels, int64."""
    offsets = np.repeat(offsets, self.block)[: len(x_0)]
    rounded = np.floor(self._scaled(x_0, offsets)).astype(np.int64) * self.unit
    return np.clip(rounded, 0, self.levels - 1)


def zone_of(predicted: np.ndarray, levels: int) -> np.ndarray:
  """The zone of predictions, 0, ..., NUM_ZONES - 1."""
  return predicted * NUM_ZONES // levels


class TailModel:
  """The integers of the lossless end, as a table has them.

  Args:
    arrays: classes uint8 [d]; up to 256 levels prior uint32 [classes, levels], shapes uint32
      [K, 511] and weights uint16 [classes, zones, K]; of more, lengths uint32 [classes, symbols].
    levels: of the data.
  """

  def __init__(self, arrays: Mapping[str, np.ndarray], levels: int) -> None:
    """Holds the arrays."""
    self.levels, self._arrays = levels, arrays
    self.classes = arrays['classes'].astype(np.int64)
    self._rows: dict[tuple[int, int], np.ndarray] = {}

  def cumulative(self, class_: int, predicted: int) -> np.ndarray:
    """Of the levels (up to 256), or of the symbols of a difference: int64 [K + 1]."""
    key = class_, predicted if self.levels <= SMALL else 0
    if key not in self._rows:
      if self.levels <= SMALL:
        frequencies = self._frequencies(*key)
      else:
        frequencies = self._arrays['lengths'][class_].astype(np.int64)
      self._rows[key] = np.concatenate([[0], np.cumsum(frequencies)])
    return self._rows[key]

  def _frequencies(self, class_, predicted):
    arrays, levels = self._arrays, self.levels
    place = SMALL - 1 - predicted
    shares = arrays['shapes'][:, place : place + levels].astype(np.int64)
    shares = shares * arrays['prior'][class_].astype(np.int64)
    shares = (shares << 18) // shares.sum(1, keepdims=True)
    weights = arrays['weights'][class_, zone_of(predicted, levels)].astype(np.int64)
    return 1 + ((weights @ shares) * (_TOTAL - levels) >> 30)

  def write(self, encoder: RangeEncoder, values: np.ndarray, predicted: np.ndarray) -> None:
    """Writes levels, int [d], given predictions in levels, int [d]."""
    for class_, value, middle in zip(
      self.classes.tolist(), values.tolist(), predicted.tolist(), strict=True
    ):
      cumulative = self.cumulative(class_, middle)
      symbol, rest, num_bits = value, 0, 0
      if self.levels > SMALL:
        symbol, rest, num_bits = split_difference(value - middle)
      start = int(cumulative[symbol])
      encoder.encode(start, int(cumulative[symbol + 1]) - start, int(cumulative[-1]))
      encoder.encode_bits(rest, num_bits)

  def read(self, decoder: RangeDecoder, predicted: np.ndarray) -> np.ndarray:
    """Reads what `write` wrote: int64 [d]."""
    values = []
    for class_, middle in zip(self.classes.tolist(), predicted.tolist(), strict=True):
      value = decoder.decode(self.cumulative(class_, middle))
      if self.levels > SMALL:
        sign, num_bits, high = parts_of_symbol(value)
        value = middle + sign * ((high << num_bits) + decoder.decode_bits(num_bits))
      values.append(value)
    return np.clip(np.array(values, np.int64), 0, self.levels - 1)


def split_difference(difference: int) -> tuple[int, int, int]:
  """(symbol, rest, bits of the rest) of a difference: its sign, length and first digits, and more.

  Symbol 0 is 0. Magnitudes below 2^(EXTRA_DIGITS + 1) have symbols of their own; a longer one of n
  bits shares its symbol with those of the same first EXTRA_DIGITS + 1 bits.
  """
  magnitude = abs(difference)
  num_bits = max(0, magnitude.bit_length() - (EXTRA_DIGITS + 1))
  high = magnitude >> num_bits
  place = (num_bits << EXTRA_DIGITS) + high  # 0, 1, 2, ... without gaps
  return 2 * place - (difference > 0), magnitude & ((1 << num_bits) - 1), num_bits


def parts_of_symbol(symbol: int) -> tuple[int, int, int]:
  """(sign, bits of the rest, the first digits as an int) of a symbol of split_difference."""
  place = (symbol + 1) // 2
  num_bits = max(0, (place >> EXTRA_DIGITS) - 1)
  return (1 if symbol % 2 else -1), num_bits, place - (num_bits << EXTRA_DIGITS)


def num_symbols(levels: int) -> int:
  """Of differences between so many levels."""
  return max(split_difference(sign * (levels - 1))[0] for sign in (1, -1)) + 1


def classes_of(errors: np.ndarray) -> np.ndarray:
  """The class of each element, uint8 [d]: classes of as many elements by their errors, ints [d]."""
  order = np.argsort(errors, kind='stable')
  classes = np.empty(len(errors), np.uint8)
  classes[order] = np.arange(len(errors)) * NUM_CLASSES // len(errors)
  return classes


def fit_tail(
  values: np.ndarray, predicted: np.ndarray, classes: np.ndarray, levels: int
) -> tuple[dict[str, np.ndarray], float]:
  """Fits the arrays of a TailModel, and says what they cost.

  Args:
    values: levels int [N, d].
    predicted: in levels, int [N, d].
    classes: uint8 [d].
    levels: of the data.

  Returns:
    (arrays, bits of an example).
  """
  if levels > SMALL:
    return _fit_lengths(values, predicted, classes, levels)
  kinds, counts = _joint_counts(values, predicted, classes, levels)
  prior = np.bincount(
    (classes.astype(np.int64) * levels + values).ravel(), minlength=NUM_CLASSES * levels
  ).reshape(NUM_CLASSES, levels)
  prior = prior + 0.25
  prior = 1 + np.rint(prior / prior.sum(1, keepdims=True) * (_PRIOR_ONE - levels))
  shapes = np.stack([_logistic(scale) for scale in SCALES])
  shapes = 1 + np.rint(shapes * (_SHAPE_ONE - shapes.shape[1]))
  class_, zone, middle, value = kinds.T
  # [K, pairs]: what each component gives to the levels that are there.
  given = np.empty((len(SCALES), len(kinds)))
  places = np.arange(levels)[None] - np.arange(levels)[:, None] + SMALL - 1
  for k, shape in enumerate(shapes):
    of_pairs = shape[places]
    # Not a matrix product, whose threads wait for each other where the cores are busy.
    normaliser = np.einsum('cl,ml->cm', prior, of_pairs)  # [classes, predictions]
    given[k] = shape[value - middle + SMALL - 1] * prior[class_, value] / normaliser[class_, middle]
  weights = np.full((NUM_CLASSES, NUM_ZONES, len(SCALES)), 1 / len(SCALES))
  place = class_ * NUM_ZONES + zone
  for _ in range(_EM_STEPS):
    shares = weights[class_, zone].T * given
    shares = shares / shares.sum(0) * counts
    of_places = [np.bincount(place, share, NUM_CLASSES * NUM_ZONES) for share in shares]
    sums = np.stack(of_places, -1).reshape(weights.shape)
    # Where there are few examples, the weights are those of the class.
    sums = sums + 4 * (sums.sum(1, keepdims=True) + 1) / (sums.sum((1, 2), keepdims=True) + 9)
    weights = sums / sums.sum(2, keepdims=True)
  mixed = (weights[class_, zone].T * given).sum(0)
  bits = -(counts * np.log2(np.maximum(mixed, 1e-6))).sum() / len(values)
  arrays = {
    'prior': prior.astype(np.uint32),
    'shapes': shapes.astype(np.uint32),
    'weights': _whole(weights, _WEIGHT_ONE).astype(np.uint16),
  }
  return arrays, float(bits)


def _joint_counts(values, predicted, classes, levels):
  """(distinct (class, zone, prediction, level) [n, 4], how often each is there [n])."""
  codes = (classes.astype(np.int64) * levels + predicted) * levels + values
  found, counts = np.unique(codes.ravel(), return_counts=True)
  class_, middle, value = found // levels**2, found // levels % levels, found % levels
  return np.stack([class_, zone_of(middle, levels), middle, value], 1), counts


def _logistic(scale):
  """Shares of the differences -255, ..., 255 under a logistic distribution, and a floor."""
  edges = (np.arange(2 * SMALL) - SMALL + 0.5) / scale
  return np.diff(0.5 * (1 + np.tanh(edges / 2))) + 1e-9


def _whole(shares, one):
  """Shares as ints whose sum is `one`, the last axis."""
  floors = np.floor(shares * one)
  floors[..., 0] += one - floors.sum(-1)
  return floors


def _fit_lengths(values, predicted, classes, levels):
  count = num_symbols(levels)
  symbols = _symbols(values.astype(np.int64) - predicted)
  codes = classes.astype(np.int64) * count + symbols
  found = np.bincount(codes.ravel(), minlength=NUM_CLASSES * count).reshape(NUM_CLASSES, count)
  smooth = found + 0.5
  frequencies = 1 + np.rint(smooth / smooth.sum(1, keepdims=True) * (_TOTAL - count))
  rest = np.array([parts_of_symbol(symbol)[1] for symbol in range(count)])
  costs = rest - np.log2(frequencies / frequencies.sum(1, keepdims=True))
  return {'lengths': frequencies.astype(np.uint32)}, float((found * costs).sum() / len(values))


def _symbols(differences):
  """split_difference's symbols of an array."""
  unique, inverse = np.unique(differences, return_inverse=True)
  symbols = np.array([split_difference(int(x))[0] for x in unique])
  return symbols[inverse].reshape(differences.shape)


def write_offsets(encoder: RangeEncoder, offsets: Sequence[int] | np.ndarray) -> None:
  """Writes the offsets of the blocks."""
  cumulative = offset_cumulative()
  for offset in offsets:
    start = cumulative[offset]
    encoder.encode(start, cumulative[offset + 1] - start, cumulative[-1])


def read_offsets(decoder: RangeDecoder, count: int) -> np.ndarray:
  """Reads the offsets of so many blocks."""
  return np.array([decoder.decode(offset_cumulative()) for _ in range(count)], np.int64)


@functools.cache
def offset_cumulative() -> tuple[int, ...]:
  """Of the offsets."""
  sums: list[Any] = [0]
  for frequency in OFFSET_FREQUENCIES:
    sums.append(sums[-1] + frequency)
  return tuple(sums)
