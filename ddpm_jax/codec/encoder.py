"""The encoder's side of reverse channel coding: the search for the vector whose number is sent."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

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
  is_folded,
  kl_of,
  told_by,
  write_index,
)
from ddpm_jax.codec.range_coder import RangeEncoder
from ddpm_jax.codec.search import (
  DRAWING,
  NUM_PRICES,
  Targets,
  best_of,
  block_size,
  draw,
  fast_search,
  padded,
  padded_rows,
)

BEYOND_NATS = 2.0  # above the KL, up to which the fast search counts L
_MAX_PRIVATE_DRAWS = 1 << 14
_MOST_VECTORS = (1 << MAX_EXPONENT + 1) - 1
_RARE_NATS = 3.0  # by which a search may be longer than one up to the greatest ratio
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
  while any(chunks := [next(walk, []) for walk in walks]):
    told = sender.send(chunks)
    for pace, of_row, of_them in zip(paces, chunks, told, strict=True):
      pace.heed(of_row, of_them)
  return sender.drawn


def index_prices(kl: float, chunk: Chunk, search: Search) -> np.ndarray:
  """What a number i with floor(log2 i) = e costs a fast search, in nats: float64 [exponents].

  The code is that which suits the chunk's own KL, so that the index tells this one; what the table
  expects says only how many numbers there are.

  Args:
    kl: in nats, of the example at hand.
    chunk: Chunk.
    search: Search.
  """
  sizes = np.array(index_frequencies(max(1, round(16 * kl / np.log(2))), 0, search))
  sizes = sizes[: len(index_frequencies(chunk.kl, chunk.doubt, search))]
  return np.log(2) * (np.arange(len(sizes)) - np.log2(sizes / sizes.sum()))


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
    self._draws, self._so_far = np.random.default_rng([seed, key]), 0.0

  def of_next(self, count):
    """[count], of the next vectors."""
    times = self._so_far + np.cumsum(self._draws.exponential(size=count))
    self._so_far = float(times[-1])
    return np.log(times)

  def least(self):
    """Of those that follow."""
    return np.log(max(self._so_far, 1e-9))


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
    self._told = []

  def send(self, chunks):
    """Sends chunks of each row; returns the KL that the indices of each row tell."""
    self._told = [0] * len(chunks)
    nodes = [_Node(row, x, x.first, x.last) for row, of_row in enumerate(chunks) for x in of_row]
    if self.search.is_exact:  # one codebook after another
      for number in sorted({x.chunk.number for x in nodes}):
        self._send_exactly(1, [x for x in nodes if x.chunk.number == number])
      return self._told
    found, kinds = np.zeros(len(nodes), np.int64), collections.defaultdict(list)
    for place, node in enumerate(nodes):
      size = node.last - node.first
      kinds[2 * padded((size + 1) // 2, 2), is_folded(self.search, size)].append(place)
    for (width, folded), places in kinds.items():
      found[places] = self._find_fast([nodes[i] for i in places], width, folded)
    for node, index in zip(nodes, found.tolist(), strict=True):
      self._write(1, node, index)
    return self._told

  def _write(self, number, node, index):
    row, chunk = node.row, node.chunk
    depth = number.bit_length() - 1
    frequencies = index_frequencies(chunk.kl, chunk.doubt, self.search, depth)
    write_index(self.encoders[row], index, frequencies)
    if index is not None:
      key = self._key(node, number)
      self.drawn.put(row, chunk, node.first, node.last, key, index, self.search)
      self._told[row] += told_by(exponent_of(index), self.search, depth)

  def _key(self, node, number):
    return codebook_key(self.search, self.step, node.chunk.number, number)

  def _send_exactly(self, number, nodes):
    """Sends nodes of one number, drawn from q where L > least; returns L [n].

    A private draw decides whether it is a vector of r up to 2^bits (the share of q that min(r,
    2^bits) has), which is searched for until none that follows can be better; or beyond, where two
    halves are sent, each given what the other must have at least. Halves are sent as well where L >
    least is so rare that the search would not end: how many draws it took tells nothing of the one
    that was taken.
    """
    most, found = self.search.bits * np.log(2), np.zeros(len(nodes))
    draws = [self._draw(node) for node in nodes]
    own = [z for z, _ in draws]
    single, sent, split, beyond = [], [], [], []
    for place, (node, (z, count)) in enumerate(zip(nodes, draws, strict=True)):
      of_own = self.target.log_ratio(z, node.row, node.first, node.last)
      limit = most + self.privates[node.row].exponential()
      is_rare = node.least + np.log(count) > most + _RARE_NATS
      if node.last - node.first < 2 or 2 * number + 1 >= MAX_NODES:
        single.append(place)
      elif is_rare:
        split.append(place)
        beyond.append(node.least)
      elif of_own <= limit and node.least < most:
        sent.append(place)
      else:
        split.append(place)
        beyond.append(max(limit, node.least))
    few = 1 << max(self.search.bits, _SINGLE_BITS)
    for places, count in ((single, few), (sent, _MOST_VECTORS)):
      if places:
        searched, tops = [nodes[i] for i in places], np.full(len(places), most)
        indices, found[places] = self._find_exactly(number, searched, tops, count=count)
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
    """(z [n] from q where L > least, how many draws it took)."""
    row, part = node.row, slice(node.first, node.last)
    shift, ratio = self.target.shift[row, part], self.target.ratio[part]
    count, drawn = 1, 0
    best = None
    while True:
      z = shift + ratio * self.privates[row].standard_normal((count, len(ratio)))
      values = self.target.log_ratio(z, row, node.first, node.last)
      above = np.flatnonzero(values > node.least)
      if len(above):
        return z[above[0]], drawn + int(above[0]) + 1
      top = int(values.argmax())
      if best is None or values[top] > best[0]:
        best = values[top], z[top]
      drawn, count = drawn + count, min(2 * count, 1024)
      if drawn > _MAX_PRIVATE_DRAWS:
        return best[1], drawn

  def _find_exactly(self, number, nodes, most, count):
    """The vectors of greatest min(L, most) - log time where L > least, of nodes of one codebook.

    Returns:
      (indices int64 [n] below count, their L float64 [n]).
    """
    key = self._key(nodes[0], number)
    times, best = _Times(self.seed, key), np.zeros(len(nodes), np.int64)
    score, ratios = np.full((2, len(nodes)), -np.inf)
    start, shape = 0, None
    while start < count:
      left = np.flatnonzero(score < most - times.least())
      if not len(left):
        break
      of_left = [nodes[i] for i in left]
      needed = _shape_of(of_left)
      if shape is None or _is_worth(needed, shape):
        rows, shape = left, needed
        pair = min(x.span[0] for x in of_left) // 2
        targets = self._targets(of_left, *shape, most[left], 2 * pair)
      block = min(1 << self.search.bits + 2, block_size(shape[1], shape[0]))
      taken = min(block, count - start)
      prices = np.full((block, 1), np.inf, np.float32)
      prices[:taken, 0] = times.of_next(taken)
      z = draw(np.uint32([self.seed, key, start, pair]), block, shape[1] // 2)
      result = best_of(z, targets, prices, np.arange(block, dtype=np.int32))
      indices, scores, values = (np.asarray(x)[: len(rows)] for x in result)
      is_better = scores > score[rows]
      better = rows[is_better]
      best[better] = start + indices[is_better]
      score[better], ratios[better] = scores[is_better], values[is_better]
      start += taken
    if (none := np.flatnonzero(np.isneginf(score))).size:  # single elements far out: not split
      free = [nodes[i]._replace(least=-np.inf) for i in none]
      best[none], ratios[none] = self._find_exactly(number, free, most[none], count)
    return best, ratios

  def _find_fast(self, nodes, width, folded):
    """The vectors of greatest min(L, KL + a little) - price, of whole chunks: int64 [n]."""
    kls = np.array([self.target.kl(x.row, x.first, x.last) for x in nodes])
    prices = np.full((NUM_PRICES, len(nodes)), np.inf, np.float32)
    for column, (node, kl) in enumerate(zip(nodes, kls, strict=True)):
      known = index_prices(kl, node.chunk, self.search)
      prices[: len(known), column] = known
    targets = self._targets(nodes, len(nodes), width, kls + BEYOND_NATS)
    sizes = np.array([x.last - x.first for x in nodes])
    key = self._key(nodes[0], 1)
    return fast_search(self.seed, key, targets, sizes, prices, is_folded=folded)

  def _targets(self, nodes, rows, width, most, origin=0):
    """The Targets of nodes, padded, from the place `origin` of their chunks on."""
    found = Targets.zeros(rows, width)
    found.most[: len(nodes)] = most
    for i, node in enumerate(nodes):
      first, last = node.span
      place, part = slice(first - origin, last - origin), slice(node.first, node.last)
      found.linear[i, place] = self.target.linear[node.row, part]
      found.square[i, place] = self.target.square[part]
      found.constant[i] = self.target.constant[node.row, part].sum()
      found.least[i] = node.least
    return found


def _shape_of(nodes):
  """(rows, width) that nodes are padded to."""
  first, last = min(x.span[0] for x in nodes), max(x.span[1] for x in nodes)
  return padded_rows(len(nodes)), 2 * padded((last + 1) // 2 - first // 2, 3)


def _is_worth(shape, packed):
  """Whether another shape takes so much less time that it may be compiled."""

  def cost(shape):
    return (DRAWING + shape[0]) * shape[1]

  return cost(shape) < 0.6 * cost(packed)
