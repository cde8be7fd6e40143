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

import dataclasses
import functools
from collections.abc import Sequence
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
MAX_EXPONENT = 30  # an index lies below 2^31
BLOCK_NUMBERS = 1 << 20  # that the encoder draws at once
_MAX_PRIVATE_DRAWS = 1 << 14
# L has the mean KL under q; the first vector beyond a limit is about this much beyond it.
_SLACK_NATS = 1.0
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
    is_exact: whether what is sent is distributed as q, exactly. If not, the first vector is sent
      that is as typical of q, which takes less time and fewer bits.
    bits: exact: ratios above 2^bits are not searched for: the chunk is split in two. Otherwise a
      chunk of a KL of k bits has 2^(ceil(k) + bits) - 1 vectors; the best is sent if none will do.
  """

  is_exact: bool = False
  bits: int = 4


class Chunk(NamedTuple):
  """A part of a step's elements.

  Attributes:
    number: 0, 1, ... within the step.
    first, last: its elements are first, ..., last - 1 of the shuffled ones.
    kl: expected KL, in sixteenths of a bit: an int.
  """

  number: int
  first: int
  last: int
  kl: int


def codebook_key(step: int, chunk: int, node: int) -> int:
  """The number of a codebook, below 2^32: of a step, a chunk, and a node of the chunk's tree."""
  if step >= MAX_STEPS or chunk >= MAX_CHUNKS or node >= MAX_NODES:
    raise UserError(
      f'a step of {chunk + 1} chunks, or {step + 1} steps: the codec has at most {MAX_CHUNKS} and '
      f'{MAX_STEPS}; the examples are too large'
    )
  return (step * MAX_CHUNKS + chunk) * MAX_NODES + node


@functools.cache
def index_frequencies(kl: int, search: Search, depth: int = 0) -> tuple[int, ...]:
  """Frequencies of floor(log2 i) for the number i = 1, 2, ... of a vector; at last, of a split.

  They are those of a Gaussian about the KL, in integers: exact, as log r is distributed; otherwise,
  as the KLs of examples differ.

  Args:
    kl: of the chunk, in sixteenths of a bit.
    search: Search.
    depth: of the node: 0 for the chunk, 1 for its halves, ....
  """
  kl >>= depth
  if search.is_exact:
    center, variance = kl - 19, 180 * kl + 3400 + (1000 * kl * kl >> 12)
  else:
    center, variance = kl + 5, 3400 + (360 * kl * kl >> 10)  # in thousandths of bits^2
  weights = []
  for exponent in range(2 * MAX_EXPONENT):
    away = (16 * exponent - center) ** 2 * 45 // variance  # sixteenths of bits of improbability
    weights.append((_POWERS[away % 16] >> (away // 16)) + 16)
  if search.is_exact:
    return (*weights[: MAX_EXPONENT + 1], sum(weights[search.bits :]))
  weights = weights[: -(-kl // 16) + search.bits]
  weights[-1] += sum(weights) >> 3  # where none was good enough, and the best may be anywhere
  return tuple(weights)


def write_index(encoder: RangeEncoder, index: int | None, frequencies: Sequence[int]) -> None:
  """Writes the number of a vector, from 0 on; None is a split."""
  exponent = len(frequencies) - 1 if index is None else (index + 1).bit_length() - 1
  encoder.encode(sum(frequencies[:exponent]), frequencies[exponent], sum(frequencies))
  if index is not None:
    encoder.encode_bits(index + 1 - (1 << exponent), exponent)


def read_index(decoder: RangeDecoder, frequencies: Sequence[int], search: Search) -> int | None:
  """Reads what write_index wrote."""
  exponent = decoder.decode(np.concatenate([[0], np.cumsum(frequencies)]))
  if search.is_exact and exponent == len(frequencies) - 1:
    return None
  return (1 << exponent) + decoder.decode_bits(exponent) - 1


class Drawn(NamedTuple):
  """The addresses of a step's numbers: each element its codebook and vector, [B, d] uint32."""

  keys: np.ndarray
  vectors: np.ndarray

  @classmethod
  def none(cls, batch: int, size: int) -> 'Drawn':
    """No address yet."""
    return cls(*np.zeros((2, batch, size), np.uint32))

  def put(self, row: int, first: int, last: int, key: int, index: int) -> None:
    """Elements first, ..., last - 1 of an example are those of a vector."""
    self.keys[row, first:last] = key
    self.vectors[row, first:last] = index

  def numbers(self, seed: int, firsts: np.ndarray) -> np.ndarray:
    """z float32 [B, d]; firsts: int [d], of each element the first of its chunk."""
    places = np.arange(self.keys.shape[1]) - firsts
    return gaussians(seed, self.keys, self.vectors, places[None])


def firsts_of(chunks: Sequence[Chunk]) -> np.ndarray:
  """int [d]: of each element the first one of its chunk."""
  return np.repeat([c.first for c in chunks], [c.last - c.first for c in chunks])


def decode_step(
  decoders: Sequence[RangeDecoder], step: int, chunks: Sequence[Chunk], search: Search
) -> Drawn:
  """Reads the addresses of a step's numbers, of several examples."""
  drawn = Drawn.none(len(decoders), chunks[-1].last)
  for row, decoder in enumerate(decoders):
    for chunk in chunks:
      nodes = [(1, chunk.first, chunk.last)]
      while nodes:
        node, first, last = nodes.pop()
        frequencies = index_frequencies(chunk.kl, search, node.bit_length() - 1)
        index = read_index(decoder, frequencies, search)
        if index is not None:
          drawn.put(row, first, last, codebook_key(step, chunk.number, node), index)
          continue
        if last - first < 2 or 2 * node >= MAX_NODES:
          raise UserError('the code is damaged')
        middle = (first + last) // 2
        nodes += [(2 * node + 1, middle, last), (2 * node, first, middle)]
  return drawn


def encode_step(
  encoders: Sequence[RangeEncoder],
  step: int,
  chunks: Sequence[Chunk],
  search: Search,
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
    chunks: of the step.
    search: Search.
    seed: of the codebooks.
    shift: float32 [B, d], the mean of q in units of p.
    ratio: float32 [d], its standard deviation likewise.
    privates: the encoder's own random numbers, of each example.
  """
  drawn = Drawn.none(len(encoders), chunks[-1].last)
  for chunk in chunks:
    target = _Target(shift[:, chunk.first : chunk.last], ratio[chunk.first : chunk.last])
    coder = _ChunkCoder(encoders, step, chunk, search, seed, target, privates, drawn)
    if search.is_exact:
      coder.send_exactly(1, 0, chunk.last - chunk.first, np.arange(len(encoders)), None)
    else:
      coder.send_first()
  return drawn


def kl_of(shift: np.ndarray, ratio: np.ndarray) -> np.ndarray:
  """KL of q and p, in nats: float64 [...], summed over the elements [..., d]."""
  shift, ratio = np.float64(shift), np.float64(ratio)
  return ((ratio**2 + shift**2 - 1) / 2 - np.log(ratio)).sum(-1)


class _Target:
  """The ratio q / p of a chunk, of several examples."""

  def __init__(self, shift, ratio):
    shift, ratio = np.float64(shift), np.float64(ratio)
    self.shift, self.ratio = shift, ratio
    self.linear = (shift / ratio**2).astype(np.float32)
    self.square = ((1 / ratio**2 - 1) / 2).astype(np.float32)
    self.constant = -(shift**2) / (2 * ratio**2) - np.log(ratio)

  def kl(self):
    """Of q and p, in nats: float64 [B], the mean of L under q."""
    return kl_of(self.shift, self.ratio)

  def log_ratio(self, z, rows, first, last):
    """Of the elements first, ..., last - 1 of z [..., n] for some rows: float64 [...]."""
    part = slice(first, last)
    terms = z * self.linear[rows, part] - z * z * self.square[part] + self.constant[rows, part]
    return terms.sum(-1, dtype=np.float64)


@dataclasses.dataclass
class _ChunkCoder:
  """Sends a chunk of several examples."""

  encoders: Sequence[RangeEncoder]
  step: int
  chunk: Chunk
  search: Search
  seed: int
  target: _Target
  privates: Sequence[np.random.Generator]
  drawn: Drawn

  def _send(self, row, node, first, last, index):
    frequencies = index_frequencies(self.chunk.kl, self.search, node.bit_length() - 1)
    write_index(self.encoders[row], index, frequencies)
    if index is not None:
      key = codebook_key(self.step, self.chunk.number, node)
      self.drawn.put(row, self.chunk.first + first, self.chunk.first + last, key, index)

  def send_first(self):
    """Sends the first vector of L up to nearly the KL, or the best of a fixed number of them."""
    size = self.chunk.last - self.chunk.first
    rows = np.arange(len(self.encoders))
    count = (1 << len(index_frequencies(self.chunk.kl, self.search))) - 1
    found, _ = self._find(1, 0, size, rows, count, most=self.target.kl() - _SLACK_NATS)
    for row in rows:
      self._send(row, 1, 0, size, int(found[row]))

  def send_exactly(self, node, first, last, rows, least):
    """Sends elements first, ..., last - 1 of rows, drawn from q where L > least; returns L [n].

    A private draw decides whether it is a vector of r up to 2^bits (the share of q that min(r,
    2^bits) has), which is searched for until none that follows can be better; or beyond, where two
    halves are sent, each given what the other must have at least.
    """
    if not len(rows):
      return np.zeros(0)
    most = self.search.bits * np.log(2)
    is_single = last - first < 2 or 2 * node + 1 >= MAX_NODES
    least = np.full(len(rows), -np.inf) if least is None else least
    own = np.stack(
      [self._draw(row, first, last, limit) for row, limit in zip(rows, least, strict=True)]
    )
    of_own = self.target.log_ratio(own, rows, first, last)
    slack = np.array([self.privates[row].exponential() for row in rows])
    is_sent = (of_own <= most + slack) & (least < most) | is_single
    found = np.zeros(len(rows))
    sent, limits = rows[is_sent], least[is_sent]
    if len(sent):
      count = 1 << (max(self.search.bits, _SINGLE_BITS) if is_single else MAX_EXPONENT)
      best, found[is_sent] = self._find(node, first, last, sent, count, least=limits, most=most)
      for row, index in zip(sent, best, strict=True):
        self._send(row, node, first, last, int(index))
    split = np.flatnonzero(~is_sent)
    for row in rows[split]:
      self._send(row, node, first, last, None)
    if len(split):
      middle, parts = (first + last) // 2, rows[split]
      total = np.maximum(most + slack[split], least[split])
      of_second = self.target.log_ratio(own[split][:, middle - first :], parts, middle, last)
      of_first = self.send_exactly(2 * node, first, middle, parts, total - of_second)
      of_second = self.send_exactly(2 * node + 1, middle, last, parts, total - of_first)
      found[split] = of_first + of_second
    return found

  def _draw(self, row, first, last, least):
    """z [n] from q where L > least, of one row."""
    part = slice(first, last)
    shift, ratio = self.target.shift[row, part], self.target.ratio[part]
    count, drawn = 1, 0
    best = None
    while True:
      z = shift + ratio * self.privates[row].standard_normal((count, last - first))
      values = self.target.log_ratio(z, row, first, last)
      above = np.flatnonzero(values > least)
      if len(above):
        return z[above[0]]
      top = int(values.argmax())
      if best is None or values[top] > best[0]:
        best = values[top], z[top]
      drawn, count = drawn + count, min(2 * count, 1024)
      if drawn > _MAX_PRIVATE_DRAWS:
        return best[1]

  def _find(self, node, first, last, rows, count, *, most, least=None):
    """The vectors of greatest min(L, most) - log T where L > least, of at most `count` ones.

    T are the times of a Poisson process, exact; otherwise 1, and of equals the first is found.

    Returns:
      (indices int64 [n], their L float64 [n]).
    """
    key = codebook_key(self.step, self.chunk.number, node)
    times, is_exact = np.random.default_rng([self.seed, key]), self.search.is_exact
    # Padded to few shapes, each of which compiles once.
    pair = first // 2
    num_pairs = _padded((last + 1) // 2 - pair)
    num_rows = 1 << (len(rows) - 1).bit_length()
    linear = np.zeros((num_rows, 2 * num_pairs), np.float32)
    square = np.zeros(2 * num_pairs, np.float32)
    place = slice(first - 2 * pair, last - 2 * pair)
    linear[: len(rows), place] = self.target.linear[rows, first:last]
    square[place] = self.target.square[first:last]
    constant, limits, tops = np.zeros((3, num_rows), np.float32)
    constant[: len(rows)] = self.target.constant[rows, first:last].sum(-1)
    limits[: len(rows)] = -np.inf if least is None else least
    tops[: len(rows)] = most
    likely = self.search.bits + 2 if is_exact else (self.chunk.kl + 15) // 16
    block = max(64, min(1 << likely, BLOCK_NUMBERS // (2 * num_pairs)))
    best = np.zeros(len(rows), np.int64)
    score, ratios = np.full((2, len(rows)), -np.inf)
    start, time = 0, 0.0 if is_exact else 1.0
    while start < count and not (score >= tops[: len(rows)] - np.log(max(time, 1e-9))).all():
      taken = min(block, count - start)
      log_times = np.full(block, np.inf, np.float32)
      log_times[:taken] = 0
      if is_exact:
        arrivals = time + np.cumsum(times.exponential(size=taken))
        log_times[:taken], time = np.log(arrivals), float(arrivals[-1])
      address = np.uint32([self.seed, key, start, pair])
      found = _best_of_block(address, linear, square, constant, limits, tops, log_times)
      indices, scores, values = (np.asarray(x)[: len(rows)] for x in found)
      is_better = scores > score
      best[is_better] = start + indices[is_better]
      score[is_better], ratios[is_better] = scores[is_better], values[is_better]
      start += taken
    if (none := np.isneginf(score)).any():  # of a single element far out, which is not split
      best[none], ratios[none] = self._find(node, first, last, rows[none], count, most=most)
    return best, ratios


def _padded(count):
  """The next number of three binary digits before its zeros, from 4 on."""
  unit = 1 << max(0, (count - 1).bit_length() - 3)
  return max(4, -(-count // unit) * unit)


@jax.jit
def _best_of_block(address, linear, square, constant, least, most, log_times):
  """The best of some vectors, for each row.

  Args:
    address: uint32 [4]: seed, codebook, first vector, first pair of elements.
    linear [B, 2 n], square [2 n], constant [B]: of L.
    least: [B]; vectors of L up to it are none.
    most: [B]; L counts up to it.
    log_times: [N].

  Returns:
    (places in the block [B], scores [B], L [B]).
  """
  vectors = address[2] + jnp.arange(log_times.shape[0], dtype=jnp.uint32)
  pairs = address[3] + jnp.arange(square.shape[0] // 2, dtype=jnp.uint32)
  z = gaussian_pairs(jnp, (address[0], address[1]), vectors[:, None], pairs[None])
  of_ratio = sum(
    jnp.matmul(x, linear[:, i::2].T, precision='highest') - (x * x @ square[i::2])[:, None]
    for i, x in enumerate(z)
  )
  of_ratio = of_ratio + constant[None]
  counted = jnp.where(of_ratio > least[None], jnp.minimum(of_ratio, most[None]), -jnp.inf)
  scores = counted - log_times[:, None]
  best = scores.argmax(0)
  rows = jnp.arange(scores.shape[1])
  return best, scores[best, rows], of_ratio[best, rows]
