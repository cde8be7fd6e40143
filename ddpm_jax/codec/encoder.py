"""The encoder's side of reverse channel coding: the search for the vector whose number is sent.

All vectors are in units of p: z ~ N(0, I) under p, and z ~ N(shift, ratio^2) under q, elementwise,
with 0 < ratio <= 1. The logarithm of r is that of Gaussians:

  L(z) = sum_j z_j shift_j / ratio_j^2 - z_j^2 (1 / ratio_j^2 - 1) / 2 - shift_j^2 / (2 ratio_j^2)
         - log ratio_j
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.codec.candidates import gaussian_pairs
from ddpm_jax.codec.channel import (
  MAX_EXPONENT,
  MAX_NODES,
  Chunk,
  Drawn,
  Pace,
  Pieces,
  Search,
  codebook_key,
  exponent_of,
  index_frequencies,
  kl_of,
  told_by,
  write_index,
)
from ddpm_jax.codec.range_coder import RangeEncoder

BLOCK_NUMBERS = 1 << 20  # that are drawn at once
BEYOND_NATS = 2.0  # above the KL, up to which the fast search counts L
_PRICE = 1.1  # nats of L for a nat of an index's code, at which the fast search looks for a vector
_MAX_PRIVATE_DRAWS = 1 << 14
_MOST_VECTORS = (1 << MAX_EXPONENT + 1) - 1
_SINGLE_BITS = 14  # of the number of vectors that are tried for a single element


def encode_step(
  encoders: Sequence[RangeEncoder],
  step: int,
  pieces: Pieces,
  search: Search,
  paces: Sequence[Pace],
  *,
  seed: int,
  shift: np.ndarray,
  ratio: np.ndarray,
  privates: Sequence[np.random.Generator],
) -> Drawn:
  """Chooses and writes the addresses of a step's numbers, of several examples.

  Args:
    encoders: of each example.
    step: its number.
    pieces: of the step.
    search: Search.
    paces: of each example; they go on.
    seed: of the codebooks.
    shift: float32 [B, d], the mean of q in units of p.
    ratio: float32 [d], its standard deviation likewise.
    privates: the encoder's own random numbers, of each example.
  """
  sender = _Sender(encoders, step, search, seed, _Target(shift, ratio), privates)
  walks = [pace.cut(pieces, search) for pace in paces]
  while chunks := {row: chunk for row, walk in enumerate(walks) if (chunk := next(walk, None))}:
    for row, told in sender.send(chunks).items():
      paces[row].heed(chunks[row], told)
  return sender.drawn


def index_prices(kl: float, chunk: Chunk, search: Search) -> np.ndarray:
  """What a number i with floor(log2 i) = e costs a fast search, in nats of L: float64 [exponents].

  The code is that which suits the chunk's own KL, so that the index tells this one; what the table
  expects says only how many numbers there are.

  Args:
    kl: in nats, of the example at hand.
    chunk: Chunk.
    search: Search.
  """
  sizes = np.array(index_frequencies(max(1, round(16 * kl / np.log(2))), 0, search))
  sizes = sizes[: len(index_frequencies(chunk.kl, chunk.doubt, search))]
  return _PRICE * np.log(2) * (np.arange(len(sizes)) - np.log2(sizes / sizes.sum()))


class _Target:
  """The ratio q / p of a step's elements, of several examples."""

  def __init__(self, shift, ratio):
    shift, ratio = np.float64(shift), np.float64(ratio)
    self.shift, self.ratio = shift, ratio
    self.linear = (shift / ratio**2).astype(np.float32)
    self.square = ((1 / ratio**2 - 1) / 2).astype(np.float32)
    self.constant = -(shift**2) / (2 * ratio**2) - np.log(ratio)

  def kl(self, row, first, last):
    """Of q and p, in nats: the mean of L under q."""
    return float(kl_of(self.shift[row, first:last], self.ratio[first:last]))

  def log_ratio(self, z, row, first, last):
    """L of the elements first, ..., last - 1 of a row, z [..., n]: float64 [...]."""
    part = slice(first, last)
    terms = z * self.linear[row, part] - z * z * self.square[part] + self.constant[row, part]
    return terms.sum(-1, dtype=np.float64)


class _Node(NamedTuple):
  """Elements of an example that are to be sent, in a chunk or a part of one.

  Attributes:
    row: of the example.
    chunk: Chunk.
    first, last: first, ..., last - 1 of the step's elements.
    least: L is to be above.
  """

  row: int
  chunk: Chunk
  first: int
  last: int
  least: float = -np.inf

  @property
  def span(self):
    """Its first and last element within the chunk."""
    return self.first - self.chunk.first, self.last - self.chunk.first


class _Times:
  """Logarithms of the times of a Poisson process, which vectors of equal ratios have to beat."""

  def __init__(self, seed, key):
    self._draws, self.so_far = np.random.default_rng([seed, key]), 0.0

  def of_block(self, start, count, rows):
    """[count, 1], of the next vectors."""
    del start, rows
    times = self.so_far + np.cumsum(self._draws.exponential(size=count))
    self.so_far = float(times[-1])
    return np.log(times)[:, None]

  def least(self, start):
    """Of those that follow."""
    del start
    return np.log(max(self.so_far, 1e-9))


class _Prices:
  """What the indices of vectors cost, in nats of L, of chunks of these KLs in nats."""

  def __init__(self, nodes, kls, search):
    self._of_exponents = np.full((MAX_EXPONENT + 2, len(nodes)), np.inf)
    for column, (node, kl) in enumerate(zip(nodes, kls, strict=True)):
      prices = index_prices(kl, node.chunk, search)
      self._of_exponents[: len(prices), column] = prices

  def of_block(self, start, count, rows):
    """[count, n], of the vectors from `start` on, for some nodes."""
    exponents = np.frexp(np.arange(start + 1, start + count + 1))[1] - 1
    return self._of_exponents[exponents[:, None], rows]

  def least(self, start):
    """[n], of the vectors from `start` on."""
    return self._of_exponents[exponent_of(start) :].min(0)


@dataclasses.dataclass
class _Sender:
  """Sends the chunks of a step, of several examples."""

  encoders: Sequence[RangeEncoder]
  step: int
  search: Search
  seed: int
  target: _Target
  privates: Sequence[np.random.Generator]

  def __post_init__(self):
    self.drawn = Drawn.none(*self.target.shift.shape)
    self._told = {}

  def send(self, chunks):
    """Sends a chunk of each row {row: chunk}, all of one number; returns {row: the KL it told}."""
    self._told = dict.fromkeys(chunks, 0)
    nodes = [_Node(row, chunk, chunk.first, chunk.last) for row, chunk in chunks.items()]
    if self.search.is_exact:
      self._send_exactly(1, nodes)
    else:
      kls = np.array([self.target.kl(x.row, x.first, x.last) for x in nodes])
      found, _ = self._find(1, nodes, kls + BEYOND_NATS, _Prices(nodes, kls, self.search))
      for node, index in zip(nodes, found.tolist(), strict=True):
        self._write(1, node, index)
    return self._told

  def _write(self, number, node, index):
    row, chunk = node.row, node.chunk
    depth = number.bit_length() - 1
    frequencies = index_frequencies(chunk.kl, chunk.doubt, self.search, depth)
    write_index(self.encoders[row], index, frequencies)
    if index is not None:
      key = codebook_key(self.step, chunk.number, number)
      self.drawn.put(row, chunk, node.first, node.last, key, index)
      self._told[row] += told_by(exponent_of(index), self.search, depth)

  def _send_exactly(self, number, nodes):
    """Sends nodes of one number, drawn from q where L > least; returns L [n].

    A private draw decides whether it is a vector of r up to 2^bits (the share of q that min(r,
    2^bits) has), which is searched for until none that follows can be better; or beyond, where two
    halves are sent, each given what the other must have at least.
    """
    most, found = self.search.bits * np.log(2), np.zeros(len(nodes))
    own = [self._draw(node) for node in nodes]
    single, sent, split, beyond = [], [], [], []
    for place, (node, z) in enumerate(zip(nodes, own, strict=True)):
      of_own = self.target.log_ratio(z, node.row, node.first, node.last)
      limit = most + self.privates[node.row].exponential()
      if node.last - node.first < 2 or 2 * number + 1 >= MAX_NODES:
        single.append(place)
      elif of_own <= limit and node.least < most:
        sent.append(place)
      else:
        split.append(place)
        beyond.append(max(limit, node.least))
    few = 1 << max(self.search.bits, _SINGLE_BITS)
    for places, count in ((single, few), (sent, _MOST_VECTORS)):
      if places:
        searched, tops = [nodes[i] for i in places], np.full(len(places), most)
        indices, found[places] = self._find(number, searched, tops, count=count)
        for node, index in zip(searched, indices.tolist(), strict=True):
          self._write(number, node, index)
    if split:
      firsts, seconds = [], []
      for i, limit in zip(split, beyond, strict=True):
        node = nodes[i]
        self._write(number, node, None)
        middle = (node.first + node.last) // 2
        second = node._replace(first=middle)
        of_second = self.target.log_ratio(
          own[i][middle - node.first :], node.row, middle, node.last
        )
        firsts.append(node._replace(last=middle, least=limit - of_second))
        seconds.append(second)
      found[split] = self._send_exactly(2 * number, firsts)
      limits = (np.array(beyond) - found[split]).tolist()
      seconds = [x._replace(least=limit) for x, limit in zip(seconds, limits, strict=True)]
      found[split] += self._send_exactly(2 * number + 1, seconds)
    return found

  def _draw(self, node):
    """z [n] from q where L > least."""
    row, part = node.row, slice(node.first, node.last)
    shift, ratio = self.target.shift[row, part], self.target.ratio[part]
    count, drawn = 1, 0
    best = None
    while True:
      z = shift + ratio * self.privates[row].standard_normal((count, len(ratio)))
      values = self.target.log_ratio(z, row, node.first, node.last)
      above = np.flatnonzero(values > node.least)
      if len(above):
        return z[above[0]]
      top = int(values.argmax())
      if best is None or values[top] > best[0]:
        best = values[top], z[top]
      drawn, count = drawn + count, min(2 * count, 1024)
      if drawn > _MAX_PRIVATE_DRAWS:
        return best[1]

  def _find(self, number, nodes, most, prices=None, count=_MOST_VECTORS):
    """The vectors of greatest min(L, most) - price where L > least, of nodes of one number.

    Among the first `count`. Without prices they are those of the times, by which it is exact.

    Returns:
      (indices int64 [n], their L float64 [n]).
    """
    key = codebook_key(self.step, nodes[0].chunk.number, number)
    prices = prices or _Times(self.seed, key)
    best = np.zeros(len(nodes), np.int64)
    score, ratios = np.full((2, len(nodes)), -np.inf)
    start, packed = 0, None
    while start < count:
      left = np.flatnonzero(score < most - prices.least(start))
      if not len(left):
        break
      if packed is None or _is_worth(_shape_of([nodes[i] for i in left]), packed.shape):
        packed = self._pack([nodes[i] for i in left], most[left])
        rows = left
      block = max(64, min(1 << self._likely_bits(), BLOCK_NUMBERS // (2 * packed.shape[1])))
      taken = min(block, count - start)
      priced = np.full((block, packed.shape[0]), np.inf, np.float32)
      priced[:taken, : len(rows)] = prices.of_block(start, taken, rows)
      address = np.uint32([self.seed, key, start, packed.pair])
      result = _best_of_block(address, *packed.of_ratio, priced)
      indices, scores, values = (np.asarray(x)[: len(rows)] for x in result)
      is_better = scores > score[rows]
      better = rows[is_better]
      best[better] = start + indices[is_better]
      score[better], ratios[better] = scores[is_better], values[is_better]
      start += taken
    if (none := np.flatnonzero(np.isneginf(score))).size:  # single elements far out: not split
      free = [nodes[i]._replace(least=-np.inf) for i in none]
      best[none], ratios[none] = self._find(number, free, most[none], count=count)
    return best, ratios

  def _likely_bits(self):
    return self.search.bits + 2 if self.search.is_exact else self.search.chunk_bits

  def _pack(self, nodes, most):
    """What _best_of_block takes of nodes, padded to few shapes, each of which compiles once."""
    spans, shape = [x.span for x in nodes], _shape_of(nodes)
    pair = min(first for first, _ in spans) // 2
    linear, square = np.zeros((2, shape[0], 2 * shape[1]), np.float32)
    constant, least, tops = np.zeros((3, shape[0]), np.float32)
    for i, (node, (first, last)) in enumerate(zip(nodes, spans, strict=True)):
      place, part = slice(first - 2 * pair, last - 2 * pair), slice(node.first, node.last)
      linear[i, place] = self.target.linear[node.row, part]
      square[i, place] = self.target.square[part]
      constant[i] = self.target.constant[node.row, part].sum()
      least[i], tops[i] = node.least, most[i]
    return _Packed(shape, pair, (linear, square, constant, least, tops))


class _Packed(NamedTuple):
  """Nodes as arrays: their padded (rows, pairs of elements), the first pair, and L's arrays."""

  shape: tuple[int, int]
  pair: int
  of_ratio: tuple[np.ndarray, ...]


def _shape_of(nodes):
  """(rows, pairs of elements) that nodes are padded to."""
  first, last = min(x.span[0] for x in nodes), max(x.span[1] for x in nodes)
  rows = 1 << 2 * (((len(nodes) - 1).bit_length() + 1) // 2)  # a power of four
  return rows, _padded((last + 1) // 2 - first // 2)


def _is_worth(shape, packed):
  """Whether another shape is so much smaller that it may be compiled."""
  return shape[0] < packed[0] or 2 * shape[1] <= packed[1]


def _padded(count):
  """The next number of three binary digits before its zeros, from 4 on."""
  unit = 1 << max(0, (count - 1).bit_length() - 3)
  return max(4, -(-count // unit) * unit)


@jax.jit
def _best_of_block(address, linear, square, constant, least, most, prices):
  """The best of some vectors, for each row.

  Args:
    address: uint32 [4]: seed, codebook, first vector, first pair of elements.
    linear [B, 2 n], square [B, 2 n], constant [B]: of L.
    least: [B]; vectors of L up to it are none.
    most: [B]; L counts up to it.
    prices: [N, B].

  Returns:
    (places in the block [B], scores [B], L [B]).
  """
  vectors = address[2] + jnp.arange(prices.shape[0], dtype=jnp.uint32)
  pairs = address[3] + jnp.arange(square.shape[1] // 2, dtype=jnp.uint32)
  z = gaussian_pairs(jnp, (address[0], address[1]), vectors[:, None], pairs[None])
  of_ratio = sum(
    jnp.matmul(x, linear[:, i::2].T, precision='highest')
    - jnp.matmul(x * x, square[:, i::2].T, precision='highest')
    for i, x in enumerate(z)
  )
  of_ratio = of_ratio + constant[None]
  counted = jnp.where(of_ratio > least[None], jnp.minimum(of_ratio, most[None]), -jnp.inf)
  scores = counted - prices
  best = scores.argmax(0)
  rows = jnp.arange(scores.shape[1])
  return best, scores[best, rows], of_ratio[best, rows]
