"""Reverse channel coding: an index from which the decoder draws what the encoder drew (Alg. 3-4).

A chunk is some elements of one step. The encoder is to draw them from a Gaussian q, the decoder
knows a Gaussian p, and both have a codebook of vectors from p; the encoder sends the number of one
that is distributed as q. With r = q / p and the times T_1 < T_2 < ... of a Poisson process, that is
the one of least T_i / r_i (the Poisson functional representation, Li & El Gamal 2018).

All vectors are in units of p: z ~ N(0, I) under p, and z ~ N(shift, ratio^2) under q, elementwise,
with 0 < ratio <= 1. The logarithm of r is that of Gaussians:

  L(z) = sum_j z_j shift_j / ratio_j^2 - z_j^2 (1 / ratio_j^2 - 1) / 2 - shift_j^2 / (2 ratio_j^2)
         - log ratio_j
"""

import bisect
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.codec.candidates import gaussian_pairs, gaussians
from ddpm_jax.codec.range_coder import RangeDecoder, RangeEncoder
from ddpm_jax.errors import UserError

MAX_STEPS = 1 << 10
MAX_CHUNKS = 1 << 14  # of a step
MAX_NODES = 1 << 8  # of a chunk's tree
FAST_BITS, EXACT_BITS = 14, 13  # of a chunk's KL, at most
MAX_EXPONENT = 30  # an index lies below 2^31
BLOCK_NUMBERS = 1 << 20  # that the encoder draws at once
_MAX_PRIVATE_DRAWS = 1 << 14
_MOST_VECTORS = (1 << MAX_EXPONENT + 1) - 1
_PRIOR, _LONGEST = 16 * 20, 16 * 160  # a pace's memory at first, and at most: sixteenths of bits
_PRICE = 1.1  # nats of L for a nat of an index's code, at which the fast search looks for a vector
BEYOND_NATS = 2.0  # above the KL, up to which that search counts L
_SINGLE_BITS = 14  # of the number of vectors that are tried for a single element
# round(2^16 2^(-j / 16)), j = 0, ..., 15
_POWERS = (
  *(65536, 62757, 60097, 57549, 55109, 52773, 50535, 48393),
  *(46341, 44376, 42495, 40693, 38968, 37316, 35734, 34219),
)


@dataclasses.dataclass(frozen=True)
class Search:
  """How the encoder searches; it stands in the file, for the code of the indices goes by it.

  Attributes:
    is_exact: whether what is sent is distributed as q, exactly. If not, it is the vector of the
      largest L, up to a little more than q has, for what its index costs: fewer bits, less time.
    bits: exact: ratios above 2^bits are not searched for: the chunk is split in two. Otherwise a
      chunk of a KL of k bits has 2^(ceil(k) + bits) - 1 vectors.
  """

  is_exact: bool = False
  bits: int = 4

  @property
  def chunk_bits(self) -> int:
    """The KL of a chunk, at most."""
    return EXACT_BITS if self.is_exact else FAST_BITS


class Pieces(NamedTuple):
  """What the elements of a step are cut into, of about a bit each; chunks are some of them in turn.

  Attributes:
    ends: int [n], increasing: a piece goes up to before this shuffled element.
    kls: int [n], what the table expects, in sixteenths of a bit.
  """

  ends: np.ndarray
  kls: np.ndarray

  @property
  def bits(self) -> float:
    """The KL of the step, as the table expects it."""
    return int(self.kls.sum()) / 16


class Chunk(NamedTuple):
  """A part of a step's elements.

  Attributes:
    number: 0, 1, ... within the step.
    first, last: its elements are first, ..., last - 1 of the shuffled ones.
    kl: what is expected of the example at hand, in sixteenths of a bit: an int.
    usual: what the table expects, likewise.
    doubt: the variance of what is expected, in thousandths of bits^2.
  """

  number: int
  first: int
  last: int
  kl: int
  usual: int
  doubt: int


@dataclasses.dataclass
class Pace:
  """How many bits an example takes for each that the table expects, as its indices have told.

  Both sides keep it, in integers, and cut the chunks of an example by it: those of a picture of
  many details are of fewer elements than those of an even one, and have about the same KL.

  Attributes:
    usual: what the table expected of the chunks so far, in sixteenths of a bit.
    found: what they have taken.
  """

  usual: int = _PRIOR
  found: int = _PRIOR

  def of(self, kl: int) -> int:
    """What is to be expected where the table expects this."""
    return max(1, kl * min(max(self.found, self.usual >> 3), self.usual << 3) // self.usual)

  def cut(self, pieces: Pieces, search: Search) -> Iterator[Chunk]:
    """The chunks of a step, each to be told to `heed` before the next: of about equal KLs, as few
    as have search.chunk_bits at most."""
    sums = [0, *np.cumsum(pieces.kls, dtype=np.int64).tolist()]
    ends = [0, *pieces.ends.tolist()]
    number = place = 0
    while place < len(pieces.kls):
      left = sums[-1] - sums[place]
      count = -(-self.of(left) // (16 * search.chunk_bits))
      wanted = sums[place] + left // count
      last = max(place + 1, bisect.bisect_right(sums, wanted) - 1)
      usual = sums[last] - sums[place]
      kl = self.of(usual)
      doubt = (
        200 * kl * kl // self.usual
      )  # a deviation of 0.4 of the KL at first, then 0.14 or more
      yield Chunk(number, ends[place], ends[last], kl, usual, doubt)
      number, place = number + 1, last

  def heed(self, chunk: Chunk, found: int) -> None:
    """Learns what a chunk has taken, in sixteenths of a bit as its indices tell it."""
    self.usual += chunk.usual
    self.found = max(1, self.found + found)
    while self.usual > _LONGEST:
      self.usual, self.found = self.usual >> 1, max(1, self.found >> 1)


def codebook_key(step: int, chunk: int, node: int) -> int:
  """The number of a codebook, below 2^32: of a step, a chunk, and a node of the chunk's tree."""
  if step >= MAX_STEPS or chunk >= MAX_CHUNKS or node >= MAX_NODES:
    raise UserError(
      f'a step of {chunk + 1} chunks, or {step + 1} steps: the codec has at most {MAX_CHUNKS} and '
      f'{MAX_STEPS}; the examples are too large'
    )
  return (step * MAX_CHUNKS + chunk) * MAX_NODES + node


@functools.lru_cache(1 << 12)
def index_frequencies(kl: int, doubt: int, search: Search, depth: int = 0) -> tuple[int, ...]:
  """Frequencies of floor(log2 i) for the number i = 1, 2, ... of a vector; at last, of a split.

  They are those of a Gaussian about the KL, in integers, of the variance of the search and of what
  is not known of the KL.

  Args:
    kl, doubt: as Chunk has them.
    search: Search.
    depth: of the node: 0 for the chunk, 1 for its halves, ....
  """
  bits, doubt = min(search.bits, MAX_EXPONENT), doubt >> 2 * depth
  if depth:  # a half of what was split, as it has more than the search takes
    kl = max(kl >> depth, 8 * (bits + 4))
  if search.is_exact:
    center, variance = kl - 19, 180 * kl + 3400 + doubt
  else:
    center, variance = kl - 26, 15 * kl + 900 + doubt  # in thousandths of bits^2
  weights = []
  for exponent in range(2 * MAX_EXPONENT):
    away = (16 * exponent - center) ** 2 * 45 // variance  # sixteenths of bits of improbability
    weights.append((_POWERS[away % 16] >> (away // 16)) + 16)
  if search.is_exact:  # what has more than the search takes is split
    few = [(weights[bits + n] >> 2 * n) + 16 for n in range(1, MAX_EXPONENT + 1 - bits)]
    return (*weights[: bits + 1], *few, sum(weights[bits + 1 :]))
  count = min(-(-kl // 16), search.chunk_bits + 4) + bits
  return tuple(weights[: min(count, MAX_EXPONENT + 1)])


def exponent_of(index: int) -> int:
  """floor(log2 i) of the number i = index + 1 of a vector."""
  return (index + 1).bit_length() - 1


def write_index(encoder: RangeEncoder, index: int | None, frequencies: Sequence[int]) -> None:
  """Writes the number of a vector, from 0 on; None is a split."""
  exponent = len(frequencies) - 1 if index is None else exponent_of(index)
  encoder.encode(sum(frequencies[:exponent]), frequencies[exponent], sum(frequencies))
  if index is not None:
    encoder.encode_bits(index + 1 - (1 << exponent), exponent)


def read_index(decoder: RangeDecoder, frequencies: Sequence[int], search: Search) -> int | None:
  """Reads what write_index wrote."""
  exponent = decoder.decode(np.concatenate([[0], np.cumsum(frequencies)]))
  if search.is_exact and exponent == len(frequencies) - 1:
    return None
  return (1 << exponent) + decoder.decode_bits(exponent) - 1


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


def told_by(exponent: int, search: Search, depth: int = 0) -> int:
  """The KL that an index tells, in sixteenths of a bit.

  Args:
    exponent: floor(log2 i) of the number i = 1, 2, ....
    search: Search.
    depth: of the node: 0 for the chunk, 1 for its halves, ....
  """
  if search.is_exact:
    return max(0, 16 * exponent + (20 if depth == 0 else -8))
  return 16 * exponent + 26


class Drawn(NamedTuple):
  """The addresses of a step's numbers: of each element its codebook, and vector and place there.

  All are uint32 [B, d].
  """

  keys: np.ndarray
  vectors: np.ndarray
  places: np.ndarray

  @classmethod
  def none(cls, batch: int, size: int) -> 'Drawn':
    """No address yet."""
    return cls(*np.zeros((3, batch, size), np.uint32))

  def put(self, row: int, chunk: Chunk, first: int, last: int, key: int, index: int) -> None:
    """Elements first, ..., last - 1 of a chunk of an example are those of a vector."""
    self.keys[row, first:last] = key
    self.vectors[row, first:last] = index
    self.places[row, first:last] = np.arange(first - chunk.first, last - chunk.first)

  def numbers(self, seed: int) -> np.ndarray:
    """z float32 [B, d]."""
    return gaussians(seed, *self)


def decode_step(
  decoders: Sequence[RangeDecoder],
  step: int,
  pieces: Pieces,
  search: Search,
  paces: Sequence[Pace],
) -> Drawn:
  """Reads the addresses of a step's numbers, of several examples; their paces go on."""
  drawn = Drawn.none(len(decoders), int(pieces.ends[-1]))
  for row, (decoder, pace) in enumerate(zip(decoders, paces, strict=True)):
    for chunk in pace.cut(pieces, search):
      told = 0
      nodes = [(1, chunk.first, chunk.last)]
      while nodes:
        node, first, last = nodes.pop()
        depth = node.bit_length() - 1
        frequencies = index_frequencies(chunk.kl, chunk.doubt, search, depth)
        index = read_index(decoder, frequencies, search)
        if index is not None:
          drawn.put(row, chunk, first, last, codebook_key(step, chunk.number, node), index)
          told += told_by(exponent_of(index), search, depth)
          continue
        if last - first < 2 or 2 * node >= MAX_NODES:
          raise UserError('the code is damaged')
        middle = (first + last) // 2
        nodes += [(2 * node + 1, middle, last), (2 * node, first, middle)]
      pace.heed(chunk, told)
  return drawn


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


def kl_of(shift: np.ndarray, ratio: np.ndarray) -> np.ndarray:
  """KL of q and p, in nats: float64 [...], summed over the elements [..., d]."""
  shift, ratio = np.float64(shift), np.float64(ratio)
  return ((ratio**2 + shift**2 - 1) / 2 - np.log(ratio)).sum(-1)


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
