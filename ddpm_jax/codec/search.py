"""The search for the best vector of a codebook, for several targets at once.

In units of p, z ~ N(0, I) under p and N(shift, ratio^2) under q, elementwise, with 0 < ratio <= 1.
With r = q / p, the logarithm of r is that of Gaussians:

  L(z) = sum_j z_j shift_j / ratio_j^2 - z_j^2 (1 / ratio_j^2 - 1) / 2 - shift_j^2 / (2 ratio_j^2)
         - log ratio_j

so that L of many vectors and many targets is two matrix products. To draw a vector takes as long as
to compare it with some 80 targets; and so a folded codebook is searched by folding the targets.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.codec.candidates import FOLD, fold, gaussian_pairs
from ddpm_jax.codec.channel import MAX_EXPONENT, exponent_of

BLOCK_NUMBERS = 1 << 20  # that are drawn at once
DRAWING = 80  # targets whose comparison with a vector takes as long as the vector itself
_MOST_ROWS, _MOST_NUMBERS = 256, 1 << 22  # of targets that are compared at once
_KEPT_NUMBERS = 1 << 24  # of a codebook
NUM_PRICES = MAX_EXPONENT + 4  # more than there are, since a wave may go two beyond


class Targets(NamedTuple):
  """What L takes, of B targets, padded with zeros to a width W.

  Attributes:
    linear, square: float32 [B, W].
    constant: float32 [B].
    most: float32 [B]; L counts up to it.
    least: float32 [B]; vectors of L up to it are none.
  """

  linear: np.ndarray
  square: np.ndarray
  constant: np.ndarray
  most: np.ndarray
  least: np.ndarray

  @classmethod
  def zeros(cls, count: int, width: int) -> 'Targets':
    """Of nothing, which any vector suits alike."""
    linear, square = np.zeros((2, count, width), np.float32)
    constant, most = np.zeros((2, count), np.float32)
    return cls(linear, square, constant, most, np.full(count, -np.inf, np.float32))


def padded(count: int, digits: int) -> int:
  """The next number of so many binary digits before its zeros, from 2^(digits - 1) on."""
  unit = 1 << max(0, (count - 1).bit_length() - digits)
  return max(1 << digits - 1, -(-count // unit) * unit)


def padded_rows(count: int) -> int:
  """The next power of four, from 4 on."""
  return max(4, 1 << 2 * (((count - 1).bit_length() + 1) // 2))


def block_size(width: int, rows: int) -> int:
  """How many vectors of a width are drawn and compared with so many targets at once."""
  return max(64, 1 << (BLOCK_NUMBERS // max(width, rows)).bit_length() - 1)


@functools.partial(jax.jit, static_argnums=(1, 2))
def draw(address: jax.Array, count: int, num_pairs: int) -> tuple[jax.Array, jax.Array]:
  """The elements 2 p and 2 p + 1 of vectors, each float32 [N, n].

  Args:
    address: uint32 [4]: seed, codebook, first vector, first pair of elements.
    count: N.
    num_pairs: n.
  """
  vectors = address[2] + jnp.arange(count, dtype=jnp.uint32)
  pairs = address[3] + jnp.arange(num_pairs, dtype=jnp.uint32)
  return gaussian_pairs(jnp, (address[0], address[1]), vectors[:, None], pairs[None])


@jax.jit
def best_of(
  z: tuple[jax.Array, jax.Array], targets: Targets, prices: jax.Array, numbers: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The vectors of greatest min(L, most) - price where L > least, for each target.

  Args:
    z: of N vectors, as draw has them.
    targets: Targets.
    prices: [E, B] or [E, 1].
    numbers: int32 [N], of each vector its row of the prices.

  Returns:
    (places among the N [B], scores [B], L [B]).
  """
  of_ratio = sum(
    jnp.matmul(x, targets.linear[:, i::2].T, precision='highest')
    - jnp.matmul(x * x, targets.square[:, i::2].T, precision='highest')
    for i, x in enumerate(z)
  )
  of_ratio = of_ratio + targets.constant[None]
  counted = jnp.minimum(of_ratio, targets.most[None])
  scores = jnp.where(of_ratio > targets.least[None], counted, -jnp.inf) - prices[numbers]
  best = scores.argmax(0)
  rows = jnp.arange(scores.shape[1])
  return best, scores[best, rows], of_ratio[best, rows]


def fast_search(
  seed: int, key: int, targets: Targets, sizes: np.ndarray, prices: np.ndarray, *, is_folded: bool
) -> np.ndarray:
  """The vectors of greatest min(L, most) - price: int64 [B].

  They are tried in waves, each of three times as many as all before, until what is left costs more
  than it can bring.

  Args:
    seed: of the codebooks.
    key: of this one.
    targets: Targets.
    sizes: int [B], of the targets before they were padded.
    prices: float32 [NUM_PRICES, B], of a vector by floor(log2 i) of its number i = 1, 2, ...;
      infinite where there is none.
    is_folded: whether the codebook is.
  """
  found = np.zeros(len(sizes), np.int64)
  score = np.full(len(sizes), -np.inf, np.float32)
  codebook = _Codebook(seed, key, targets.linear.shape[1])
  first, last = 0, FOLD
  while True:
    left = np.flatnonzero(score < targets.most - prices[exponent_of(first) :].min(0))
    if not len(left):
      return found
    folds = np.arange(first // FOLD, last // FOLD) if is_folded else np.zeros(1, np.int64)
    within = (0, FOLD) if is_folded else (first, last)
    rows = np.repeat(folds, len(left)), np.tile(left, len(folds))
    most_rows = max(4, min(_MOST_ROWS, _MOST_NUMBERS // codebook.width))
    for start in range(0, len(rows[0]), most_rows):
      of_fold, of_target = (x[start : start + most_rows] for x in rows)
      folded = codebook.fold(targets, sizes, of_fold, of_target)
      indices, scores = codebook.compare(folded, of_fold, prices[:, of_target], *within)
      for i, index, value in zip(of_target, indices, scores, strict=True):
        if value > score[i]:
          found[i], score[i] = index, value
    first, last = last, 4 * last


class _Codebook:
  """Vectors of one key, drawn in blocks, which are kept if they are few."""

  def __init__(self, seed, key, width):
    self._seed, self._key, self.width = seed, key, width
    self._kept = {} if FOLD * width <= _KEPT_NUMBERS else None

  def fold(self, targets, sizes, of_fold, of_target):
    """Targets that have of vectors what the given ones have of the folded vectors."""
    rows = padded_rows(len(of_fold))
    found = Targets.zeros(rows, self.width)
    key = np.uint32(self._seed), np.uint32(self._key)
    places, size = np.arange(self.width, dtype=np.uint32), np.uint32(sizes[of_target])[:, None]
    with np.errstate(over='ignore'):
      signs, taken = fold(np, key, np.uint32(of_fold)[:, None], places, size)
    taken = np.where(places < size, taken, places).astype(np.int64)
    for given, filled, by in zip(targets[:2], found[:2], (signs, 1), strict=True):
      # What the fold takes of place `taken` of a vector, it compares with this place.
      np.put_along_axis(filled[: len(of_fold)], taken, given[of_target] * by, 1)
    for given, filled in zip(targets[2:], found[2:], strict=True):
      filled[: len(of_fold)] = given[of_target]
    return found

  def compare(self, targets, of_fold, prices, first, last):
    """(indices, scores) of the best of the vectors first, ..., last - 1, in the folds."""
    count, rows = len(of_fold), len(targets.constant)
    block = min(block_size(self.width, _MOST_ROWS), last - first)
    priced = np.full((NUM_PRICES, rows), np.inf, np.float32)
    if of_fold[0]:
      # In a fold all numbers have one exponent, but for the last, which may have the next.
      ends = [FOLD * of_fold + x for x in (1, FOLD)]
      for row, numbers in enumerate(ends):
        priced[row, :count] = prices[np.frexp(numbers)[1] - 1, np.arange(count)]
    else:
      priced[:, :count] = prices
    targets, priced, results = Targets(*map(jnp.asarray, targets)), jnp.asarray(priced), []
    starts = np.arange(first, last, block)
    for start in starts.tolist():
      vectors = np.arange(start, start + block)
      numbers = np.int32(vectors == FOLD - 1) if of_fold[0] else np.frexp(vectors + 1.0)[1] - 1
      results.append(best_of(self._block(start, block), targets, priced, np.int32(numbers)))
    places, scores = (np.stack(x)[:, :count] for x in list(zip(*results, strict=True))[:2])
    top = scores.argmax(0), np.arange(count)
    return FOLD * of_fold + starts[top[0]] + places[top], scores[top]

  def _block(self, start, count):
    if self._kept is not None and (start, count) in self._kept:
      return self._kept[start, count]
    z = draw(np.uint32([self._seed, self._key, start, 0]), count, self.width // 2)
    if self._kept is not None and start < FOLD:
      self._kept[start, count] = z
    return z
