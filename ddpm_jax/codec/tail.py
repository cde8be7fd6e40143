"""The lossless end: x_0 given what the network predicts of it, in integers.

A network's prediction differs in its last digits from machine to machine. So it is rounded, to
multiples of a unit, after an offset, one for each block of elements, which keeps every element of
the block away from where its rounding turns. A finer unit says more, and its blocks are smaller and
need more offsets. From there on all is integer arithmetic, in eighths of a level up to 256 levels,
and in whole levels of more.

Neighbours err alike. So what an element's neighbours before it differ by from their predictions is
known on both sides, and corrects its own: a sum of their differences, with weights that least
squares give. And how far corrected neighbours were off, summed, is the element's context.

Up to 256 levels, an element has the frequencies of a mixture: component k gives level l of an
element predicted as m eighths the share prior[l] shapes[k][|8 l - m|], normalised; the prior and
the weights of the components go by the element's class, the weights also by its context and the
prediction. Of more levels, the difference l - m is sent: how long it is and its first digits by
frequencies of class and context, and the rest as bits.
"""

import bisect
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ddpm_jax.codec.range_coder import RangeDecoder, RangeEncoder

SMALL = 256  # levels
PARTS = 8  # of a level, up to SMALL of them
NUM_CLASSES = 8  # of elements, by how well they are predicted
NUM_ZONES = 8  # of predictions
NUM_CONTEXTS = 8  # of elements, by how far their neighbours were off
FILTER_BITS = 8  # of the weights of neighbours
_REACH, _REACH_OF_SIGNALS, _REACH_OF_CHANNELS = 2, 4, 4
_RIDGE = 1e-4
NUM_OFFSETS = 64
MAX_FITTED = 1 << 20  # elements of examples that a fit need not exceed
SCALES = (0.15, 0.4, 0.8, 1.5, 3.0, 6.0, 12.0, 25.0, 60.0)  # of logistic components, in levels
MIN_BLOCK, MAX_BLOCK = 64, 256
EXTRA_DIGITS = 2  # of a long difference that have frequencies, beside its first
_SHAPE_ONE, _PRIOR_ONE, _WEIGHT_ONE = 1 << 20, 1 << 16, 1 << 12
_TOTAL = 1 << 16
_EM_STEPS = 10
_KEPT_ROWS = 1 << 14

# 2^16 (5 / 8)^j: offset 0 nearly always does
OFFSET_FREQUENCIES = tuple(max(16, (65536 * 5**j) >> (3 * j)) for j in range(NUM_OFFSETS))


class Rounding:
  """How predictions become whole numbers.

  Attributes:
    greatest: of a prediction, in parts of a level.
    unit: predictions are multiples of so many parts.
    block: elements that share an offset.
  """

  def __init__(self, levels: int, margin_bits: int) -> None:
    """For a margin of 2^-margin_bits of x_0."""
    self.greatest, self._margin_bits = parts_of(levels) * (levels - 1), margin_bits
    self.unit = 1
    while self.greatest * MIN_BLOCK > self.unit << margin_bits:
      self.unit *= 2
    share = (self.unit << margin_bits) // self.greatest  # of 1, the one that is near a turn
    self.block = min(1 << (share.bit_length() - 1), MAX_BLOCK)

  def _scaled(self, x_0, offset):
    """In units, with an offset, so that rounding is down."""
    parts = (np.clip(np.float64(x_0), -1, 1) + 1) * (self.greatest / 2)
    return parts / self.unit + (0.5 + ((79 * offset + 64) % 128 - 64) / 128)

  def choose(self, x_0: np.ndarray) -> np.ndarray:
    """The offset of each block, int [blocks], for predictions [d]."""
    margin = 2.0**-self._margin_bits * self.greatest / 2 / self.unit
    chosen = []
    for first in range(0, len(x_0), self.block):
      scaled = self._scaled(x_0[None, first : first + self.block], np.arange(NUM_OFFSETS)[:, None])
      away = np.abs(scaled - np.rint(scaled)).min(1)
      fitting = np.flatnonzero(away > margin)
      chosen.append(int(fitting[0]) if len(fitting) else int(away.argmax()))
    return np.array(chosen)

  def round(self, x_0: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Predictions [d] in parts of a level, int64."""
    offsets = np.repeat(offsets, self.block)[: len(x_0)]
    rounded = np.floor(self._scaled(x_0, offsets)).astype(np.int64) * self.unit
    return np.clip(rounded, 0, self.greatest)


def parts_of(levels: int) -> int:
  """In how many parts of a level predictions are counted."""
  return PARTS if levels <= SMALL else 1


def zone_of(predicted: np.ndarray, levels: int) -> np.ndarray:
  """The zone of predictions in parts of a level, 0, ..., NUM_ZONES - 1."""
  return predicted * NUM_ZONES // (parts_of(levels) * levels)


class Neighbours:
  """The neighbours of an example's elements that come before them, in memory's order.

  Their places differ by up to 2 along each axis (4 where there is one), and by up to 4 channels.
  Beyond the borders the example goes on with zeros.

  Attributes:
    places: of the elements in a flat array with borders, int [d].
    offsets: of the neighbours from there, negative ints.
    size: of the array with borders.
  """

  def __init__(self, shape: Sequence[int]) -> None:
    """For examples of a shape, channels last."""
    axes = len(shape) - 1
    reach = [_REACH_OF_SIGNALS if axes == 1 else _REACH] * axes
    reach.append(min(_REACH_OF_CHANNELS, shape[-1] - 1))
    bordered = [length + 2 * r for length, r in zip(shape, reach, strict=True)]
    strides = np.cumprod([1, *bordered[:0:-1]])[::-1]
    inside = tuple(slice(r, r + length) for r, length in zip(reach, shape, strict=True))
    self.size = int(np.prod(bordered))
    self.places = np.arange(self.size).reshape(bordered)[inside].ravel()
    away = itertools.product(*(range(-r, r + 1) for r in reach))
    self.offsets = [int(np.dot(a, strides)) for a in away if a < (0,) * len(shape)]

  def of(self, values: np.ndarray) -> Iterator[np.ndarray]:
    """What values [N, d] are at each neighbour: [N, d], one after the other."""
    bordered = np.zeros((len(values), self.size), values.dtype)
    bordered[:, self.places] = values
    return (bordered[:, self.places + offset] for offset in self.offsets)


class TailModel:
  """The integers of the lossless end, as a table has them.

  Args:
    arrays: classes uint8 [d]; filter int16 [C, neighbours] and edges uint32 [C, contexts - 1]; up
      to 256 levels prior uint32 [classes, levels], shapes uint32 [K, 8 (levels - 1) + 1] and
      weights uint16 [classes, contexts, zones, K]; of more, lengths uint32 [classes, contexts,
      symbols].
    levels: of the data.
    shape: of an example.
  """

  def __init__(self, arrays: Mapping[str, np.ndarray], levels: int, shape: Sequence[int]) -> None:
    """Holds the arrays."""
    self.levels, self._parts, self._arrays = levels, parts_of(levels), arrays
    self.classes = arrays['classes'].astype(np.int64)
    self._neighbours = Neighbours(shape)
    self._rows: dict[tuple[int, int, int], np.ndarray] = {}
    if levels <= SMALL:
      # shapes[k][|PARTS a + p|] at [p, k, a + levels - 1]: those of all levels lie side by side.
      away = np.abs(np.arange(PARTS)[:, None] + PARTS * np.arange(1 - levels, levels))
      away = np.minimum(away, PARTS * (levels - 1))  # the last, where p > 0, are not used
      self._shapes = np.int64(arrays['shapes'][:, away].transpose(1, 0, 2))

  def cumulative(self, class_: int, context: int, predicted: int) -> np.ndarray:
    """Of the levels (up to 256), or of the symbols of a difference: int64 [K + 1].

    Args:
      class_: of the element.
      context: of the element.
      predicted: in parts of a level.
    """
    key = class_, context, predicted if self.levels <= SMALL else 0
    if key not in self._rows:
      if len(self._rows) == _KEPT_ROWS:
        self._rows.clear()
      if self.levels <= SMALL:
        frequencies = self._frequencies(*key)
      else:
        frequencies = self._arrays['lengths'][class_, context].astype(np.int64)
      self._rows[key] = np.concatenate([[0], np.cumsum(frequencies)])
    return self._rows[key]

  def _frequencies(self, class_, context, predicted):
    arrays, levels = self._arrays, self.levels
    first, phase = divmod(PARTS * (levels - 1) - predicted, PARTS)
    prior = arrays['prior'][class_].astype(np.int64)
    shares = self._shapes[phase, :, first : first + levels] * prior
    shares = (shares << 18) // shares.sum(1, keepdims=True)
    weights = arrays['weights'][class_, context, zone_of(predicted, levels)].astype(np.int64)
    # Four times as fast as a matrix product, which NumPy has for floats.
    return 1 + (np.einsum('k,kl->l', weights, shares) * (_TOTAL - levels) >> 30)

  def write(self, encoder: RangeEncoder, values: np.ndarray, predicted: np.ndarray) -> None:
    """Writes levels, int [d], given predictions in parts of a level, int [d]."""
    known = self._neighbours, values[None], predicted[None], self.levels
    middles = corrected(*known, self._arrays['filter'])
    away = self._parts * values[None] - middles
    contexts = contexts_of(self._neighbours, away, self._arrays['edges'])
    of_elements = self.classes, contexts[0], values, middles[0]
    for class_, context, value, middle in zip(*(x.tolist() for x in of_elements), strict=True):
      cumulative = self.cumulative(class_, context, middle)
      symbol, rest, num_bits = value, 0, 0
      if self.levels > SMALL:
        symbol, rest, num_bits = split_difference(value - middle)
      start = int(cumulative[symbol])
      encoder.encode(start, int(cumulative[symbol + 1]) - start, int(cumulative[-1]))
      encoder.encode_bits(rest, num_bits)

  def read(self, decoder: RangeDecoder, predicted: np.ndarray) -> np.ndarray:
    """Reads what `write` wrote: int64 [d]."""
    weights, edges = self._arrays['filter'].astype(np.int64), self._arrays['edges'].tolist()
    offsets, num_channels, values = np.array(self._neighbours.offsets), len(weights), []
    # What elements differ by from their predictions, and from their corrected ones, absolutely.
    differences, away = np.zeros((2, self._neighbours.size), np.int64)
    parts = self._parts
    of_elements = self.classes, predicted, self._neighbours.places
    for i, (class_, expected, place) in enumerate(
      zip(*(x.tolist() for x in of_elements), strict=True)
    ):
      channel, near = i % num_channels, place + offsets
      total = int(weights[channel] @ differences[near])
      middle = expected + (total + (1 << FILTER_BITS - 1) >> FILTER_BITS)
      middle = min(max(middle, 0), parts * (self.levels - 1))
      context = bisect.bisect_right(edges[channel], int(away[near].sum()))
      value = decoder.decode(self.cumulative(class_, context, middle))
      if self.levels > SMALL:
        sign, num_bits, high = parts_of_symbol(value)
        value = middle + sign * ((high << num_bits) + decoder.decode_bits(num_bits))
        value = min(max(value, 0), self.levels - 1)  # of a damaged file
      differences[place], away[place] = parts * value - expected, abs(parts * value - middle)
      values.append(value)
    return np.array(values, np.int64)


def corrected(
  neighbours: Neighbours,
  values: np.ndarray,
  predicted: np.ndarray,
  levels: int,
  weights: np.ndarray,
) -> np.ndarray:
  """Predictions [N, d] corrected by what neighbours differ by from theirs, all in parts, int64."""
  differences = (parts_of(levels) * values - predicted).astype(np.int64)
  repeats = values.shape[1] // len(weights)
  total = np.full(values.shape, 1 << FILTER_BITS - 1)
  for weight, of_neighbour in zip(weights.T, neighbours.of(differences), strict=True):
    total += np.tile(weight.astype(np.int64), repeats) * of_neighbour
  return np.clip(predicted + (total >> FILTER_BITS), 0, parts_of(levels) * (levels - 1))


def contexts_of(neighbours: Neighbours, away: np.ndarray, edges: np.ndarray) -> np.ndarray:
  """Contexts, int [N, d], of elements whose corrected predictions are so far off, int [N, d]."""
  total, found = sum(neighbours.of(np.abs(away))), np.empty(away.shape, np.int64)
  for channel, of_channel in enumerate(edges):
    part = slice(channel, None, len(edges))
    found[:, part] = np.searchsorted(of_channel, total[:, part], side='right')
  return found


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
  """The class of each element, uint8 [d]: classes of as many elements by their errors [d]."""
  order = np.argsort(errors, kind='stable')
  classes = np.empty(len(errors), np.uint8)
  classes[order] = np.arange(len(errors)) * NUM_CLASSES // len(errors)
  return classes


def is_tail(arrays: Mapping[str, np.ndarray], levels: int, shape: Sequence[int]) -> bool:
  """Whether arrays are those of a TailModel, by their names and shapes."""
  found = {name: x.shape for name, x in arrays.items()}
  num_shapes, channels = found.get('shapes', (0,))[0], shape[-1]
  expected: dict[str, tuple[int, ...]] = {
    'classes': (int(np.prod(shape)),),
    'filter': (channels, len(Neighbours(shape).offsets)),
    'edges': (channels, NUM_CONTEXTS - 1),
  }
  if levels <= SMALL:
    expected['prior'] = NUM_CLASSES, levels
    expected['shapes'] = num_shapes, PARTS * (levels - 1) + 1
    expected['weights'] = NUM_CLASSES, NUM_CONTEXTS, NUM_ZONES, num_shapes
  else:
    expected['lengths'] = NUM_CLASSES, NUM_CONTEXTS, num_symbols(levels)
  return found == expected


def fit_tail(
  values: np.ndarray, predicted: np.ndarray, levels: int, shape: Sequence[int]
) -> tuple[dict[str, np.ndarray], float]:
  """Fits the arrays of a TailModel, and says what they cost.

  Args:
    values: levels int [N, d].
    predicted: in parts of a level, int [N, d].
    levels: of the data.
    shape: of an example.

  Returns:
    (arrays, bits of an example).
  """
  neighbours, parts = Neighbours(shape), parts_of(levels)
  weights = _fit_filter(neighbours, parts * values - predicted, shape[-1])
  middles = corrected(neighbours, values, predicted, levels, weights)
  away = parts * values - middles
  classes = classes_of(np.square(away).mean(0))
  edges = _fit_edges(neighbours, away, shape[-1])
  cells = classes.astype(np.int64) * NUM_CONTEXTS + contexts_of(neighbours, away, edges)
  fit = _fit_lengths if levels > SMALL else _fit_mixture
  arrays, bits = fit(values, middles, cells, levels)
  return {'classes': classes, 'filter': weights, 'edges': edges, **arrays}, bits


def _fit_filter(neighbours, differences, num_channels):
  """Weights of the neighbours of each channel, int16 [C, n], by least squares."""
  count = len(neighbours.offsets)
  products, targets = np.zeros((num_channels, count, count)), np.zeros((num_channels, count))
  for of_example in np.float64(differences)[:, None]:  # as many examples as memory has
    near = np.stack(list(neighbours.of(of_example))).reshape(count, -1, num_channels)
    near = np.ascontiguousarray(near.transpose(2, 0, 1))
    products += near @ near.transpose(0, 2, 1)
    targets += np.einsum('cip,pc->ci', near, of_example.reshape(-1, num_channels))
  scale = np.maximum(np.einsum('cii->c', products) / max(count, 1), 1)
  ridge = _RIDGE * scale[:, None, None] * np.eye(count)
  weights = np.linalg.solve(products + ridge, targets[..., None])[..., 0]
  return np.clip(np.rint(weights * (1 << FILTER_BITS)), -(2**15), 2**15 - 1).astype(np.int16)


def _fit_edges(neighbours, away, num_channels):
  """Where contexts begin, of each channel, uint32 [C, contexts - 1]: all have as many elements."""
  total = sum(neighbours.of(np.abs(away))).reshape(-1, num_channels)
  shares = np.arange(1, NUM_CONTEXTS) / NUM_CONTEXTS
  return np.quantile(total, shares, axis=0, method='nearest').T.astype(np.uint32)


def _fit_mixture(values, predicted, cells, levels):
  """The mixtures of classes and contexts, whose numbers are cells [N, d]."""
  kinds, counts = _joint_counts(values, predicted, cells, levels)
  cell, zone, middle, value = kinds.T
  class_ = cell // NUM_CONTEXTS
  prior = np.bincount(class_ * levels + value, counts, NUM_CLASSES * levels)
  prior = prior.reshape(NUM_CLASSES, levels) + 0.25
  prior = 1 + np.rint(prior / prior.sum(1, keepdims=True) * (_PRIOR_ONE - levels))
  shapes = np.stack([_logistic(scale, levels) for scale in SCALES])
  shapes = 1 + np.rint(shapes * _SHAPE_ONE)
  # [K, pairs]: what each component gives to the levels that are there.
  given = np.empty((len(SCALES), len(kinds)))
  places = np.abs(PARTS * np.arange(levels)[None] - np.arange(shapes.shape[1])[:, None])
  for k, shape in enumerate(shapes):
    of_pairs = shape[places]
    # Not a matrix product, whose threads wait for each other where the cores are busy.
    normaliser = np.einsum('cl,ml->cm', prior, of_pairs)  # [classes, predictions]
    share = shape[np.abs(PARTS * value - middle)] * prior[class_, value]
    given[k] = share / normaliser[class_, middle]
  num_places = NUM_CLASSES * NUM_CONTEXTS * NUM_ZONES
  weights = np.full((num_places, len(SCALES)), 1 / len(SCALES))
  place = cell * NUM_ZONES + zone
  for _ in range(_EM_STEPS):
    shares = weights[place].T * given
    shares = shares / shares.sum(0) * counts
    sums = np.stack([np.bincount(place, share, num_places) for share in shares], -1)
    sums = sums.reshape(NUM_CLASSES, NUM_CONTEXTS, NUM_ZONES, len(SCALES))
    # Where there are few examples, the weights are those of the context, or of the class.
    of_contexts = sums.sum(2, keepdims=True) + _pseudo_counts(sums.sum((1, 2), keepdims=True))
    sums = sums + _pseudo_counts(of_contexts)
    weights = (sums / sums.sum(-1, keepdims=True)).reshape(num_places, -1)
  mixed = (weights[place].T * given).sum(0)
  bits = -(counts * np.log2(np.maximum(mixed, 1e-6))).sum() / len(values)
  arrays = {
    'prior': prior.astype(np.uint32),
    'shapes': shapes.astype(np.uint32),
    'weights': _whole(weights, _WEIGHT_ONE).astype(np.uint16).reshape(sums.shape),
  }
  return arrays, float(bits)


def _pseudo_counts(sums):
  """Four, distributed as sums are."""
  return 4 * (sums + 1) / (sums + 1).sum(-1, keepdims=True)


def _joint_counts(values, predicted, cells, levels):
  """(distinct (cell, zone, prediction, level) [n, 4], how often each is there [n])."""
  num_middles = PARTS * (levels - 1) + 1
  codes = (cells * num_middles + predicted) * levels + values
  found, counts = np.unique(codes.ravel(), return_counts=True)
  rest, value = np.divmod(found, levels)
  cell, middle = np.divmod(rest, num_middles)
  return np.stack([cell, zone_of(middle, levels), middle, value], 1), counts


def _logistic(scale, levels):
  """Shares of levels under a logistic distribution, by their distance in parts, and a floor."""
  away = np.arange(PARTS * (levels - 1) + 1) / PARTS
  below, above = (0.5 * (1 + np.tanh((away + side) / (2 * scale))) for side in (-0.5, 0.5))
  return above - below + 1e-9


def _whole(shares, one):
  """Shares as ints whose sum is `one`, the last axis."""
  floors = np.floor(shares * one)
  floors[..., 0] += one - floors.sum(-1)
  return floors


def _fit_lengths(values, predicted, cells, levels):
  count, num_cells = num_symbols(levels), NUM_CLASSES * NUM_CONTEXTS
  symbols = _symbols(values.astype(np.int64) - predicted)
  found = np.bincount((cells * count + symbols).ravel(), minlength=num_cells * count)
  found = found.reshape(NUM_CLASSES, NUM_CONTEXTS, count)
  # Where there are few examples, the frequencies are those of the class.
  of_class = found.sum(1, keepdims=True) + 0.5
  smooth = found + 16 * of_class / of_class.sum(-1, keepdims=True)
  frequencies = 1 + np.rint(smooth / smooth.sum(-1, keepdims=True) * (_TOTAL - count))
  rest = np.array([parts_of_symbol(symbol)[1] for symbol in range(count)])
  costs = rest - np.log2(frequencies / frequencies.sum(-1, keepdims=True))
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
