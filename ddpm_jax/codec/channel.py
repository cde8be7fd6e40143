"""Reverse channel coding: an index from which the decoder draws what the encoder drew (Alg. 3-4).

A chunk is some elements of one step. The encoder is to draw them from a Gaussian q, the decoder
knows a Gaussian p, and both have a codebook of vectors from p; the encoder sends the number of one
that is distributed as q. With r = q / p and the times T_1 < T_2 < ... of a Poisson process, that is
the one of least T_i / r_i (the Poisson functional representation, Li & El Gamal 2018).
"""

import bisect
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ddpm_jax.codec.candidates import gaussians
from ddpm_jax.codec.range_coder import RangeDecoder, RangeEncoder
from ddpm_jax.errors import UserError

MAX_STEPS = 1 << 10
MAX_CHUNKS = 1 << 14  # of a step
MAX_NODES = 1 << 8  # of a chunk's tree
FAST_BITS, EXACT_BITS = 16, 13  # of a chunk's KL, at most
ROUND = 4  # chunks of a step, between which a pace stays as it is
LEAST_FOLDED = 16  # elements of a chunk whose codebook is folded
MAX_EXPONENT = 30  # an index lies below 2^31
_PRIOR, _LONGEST = 16 * 20, 16 * 160  # a pace's memory at first, and at most: sixteenths of bits
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

  def cut(self, pieces: Pieces, search: Search) -> Iterator[list[Chunk]]:
    """The chunks of a step: of about equal KLs, as few as have search.chunk_bits at most.

    Yields:
      some of them, of which `heed` is to learn before the next.
    """
    sums = [0, *np.cumsum(pieces.kls, dtype=np.int64).tolist()]
    ends = [0, *pieces.ends.tolist()]
    chunks: list[Chunk] = []
    number = place = 0
    while place < len(pieces.kls):
      left = sums[-1] - sums[place]
      count = -(-self.of(left) // (16 * search.chunk_bits))
      wanted = sums[place] + left // count
      last = max(place + 1, bisect.bisect_right(sums, wanted) - 1)
      usual = sums[last] - sums[place]
      kl = self.of(usual)
      # A deviation of 0.4 of the KL at first, then 0.14 or more.
      doubt = 200 * kl * kl // self.usual
      chunks.append(Chunk(number, ends[place], ends[last], kl, usual, doubt))
      number, place = number + 1, last
      if len(chunks) == ROUND or place == len(pieces.kls):
        yield chunks
        chunks = []

  def heed(self, chunks: Sequence[Chunk], found: int) -> None:
    """Learns what some chunks have taken, in sixteenths of a bit as their indices tell it."""
    self.usual += sum(chunk.usual for chunk in chunks)
    self.found = max(1, self.found + found)
    while self.usual > _LONGEST:
      self.usual, self.found = self.usual >> 1, max(1, self.found >> 1)


def codebook_key(search: Search, step: int, chunk: int, node: int) -> int:
  """The number of a codebook, below 2^32: of a step, a chunk, and a node of the chunk's tree.

  A fast search has one for all chunks of a step, so that what is drawn once is compared with all of
  them, of all examples. In an exact one, what is sent of a chunk does not depend on the others.
  """
  if step >= MAX_STEPS or chunk >= MAX_CHUNKS or node >= MAX_NODES:
    raise UserError(
      f'a step of {chunk + 1} chunks, or {step + 1} steps: the codec has at most {MAX_CHUNKS} and '
      f'{MAX_STEPS}; the examples are too large'
    )
  return (step * MAX_CHUNKS + (chunk if search.is_exact else 0)) * MAX_NODES + node


def is_folded(search: Search, size: int) -> bool:
  """Whether the codebook of a chunk is folded from few vectors.

  Those of an exact search have to be independent; a chunk of few elements has too few folds.
  """
  return not search.is_exact and size >= LEAST_FOLDED


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

  All are uint32 [B, d]; sizes are those of chunks whose codebook is folded, else 0.
  """

  keys: np.ndarray
  vectors: np.ndarray
  places: np.ndarray
  sizes: np.ndarray

  @classmethod
  def none(cls, batch: int, size: int) -> 'Drawn':
    """No address yet."""
    return cls(*np.zeros((4, batch, size), np.uint32))

  def put(
    self, row: int, chunk: Chunk, first: int, last: int, key: int, index: int, search: Search
  ) -> None:
    """Elements first, ..., last - 1 of a chunk of an example are those of a vector."""
    self.keys[row, first:last] = key
    self.vectors[row, first:last] = index
    self.places[row, first:last] = np.arange(first - chunk.first, last - chunk.first)
    size = chunk.last - chunk.first
    self.sizes[row, first:last] = size if is_folded(search, size) else 0

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
    for chunks in pace.cut(pieces, search):
      told = sum(_decode_chunk(decoder, step, chunk, search, drawn, row) for chunk in chunks)
      pace.heed(chunks, told)
  return drawn


def _decode_chunk(decoder, step, chunk, search, drawn, row):
  """Reads the addresses of a chunk's numbers into `drawn`; returns the KL that its indices tell."""
  told, nodes = 0, [(1, chunk.first, chunk.last)]
  while nodes:
    node, first, last = nodes.pop()
    depth = node.bit_length() - 1
    frequencies = index_frequencies(chunk.kl, chunk.doubt, search, depth)
    index = read_index(decoder, frequencies, search)
    if index is not None:
      key = codebook_key(search, step, chunk.number, node)
      drawn.put(row, chunk, first, last, key, index, search)
      told += told_by(exponent_of(index), search, depth)
      continue
    if last - first < 2 or 2 * node >= MAX_NODES:
      raise UserError('the code is damaged')
    middle = (first + last) // 2
    nodes += [(2 * node + 1, middle, last), (2 * node, first, middle)]
  return told


def kl_of(shift: np.ndarray, ratio: np.ndarray) -> np.ndarray:
  """KL of q and p, in nats: float64 [...], summed over the elements [..., d]."""
  shift, ratio = np.float64(shift), np.float64(ratio)
  return ((ratio**2 + shift**2 - 1) / 2 - np.log(ratio)).sum(-1)
