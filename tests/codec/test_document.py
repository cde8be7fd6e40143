"""A decoder written from docs/codec.md alone, with nothing of the package's codec in it."""

import binascii
import hashlib
import itertools
import math
import zlib

import numpy as np
import pytest

from ddpm_jax.codec import Codec, Goal, Search, Table, fit_table
from ddpm_jax.codec.channel import Pace
from ddpm_jax.codec.table import plan_pieces
from tests.codec import gaussian
from tests.codec.gaussian import SCHEDULE, SHAPE


def predict(x_t, t):
  return np.clip(gaussian.predict(x_t, t), -1, 1)


POWERS = [round(2 ** (16 - j / 16)) for j in range(16)]


class Code:
  """The range coder of the page."""

  def __init__(self, data):
    self.rest, self.width = iter(data), 2**56
    self.offset = 0
    for _ in range(7):
      self.offset = self.offset * 256 + next(self.rest, 0)

  def share(self, start, size, total):
    self.offset -= self.width // total * start
    self.width = self.width // total * size
    while self.width <= 2**48:
      self.offset, self.width = self.offset * 256 + next(self.rest, 0), self.width * 256

  def symbol(self, frequencies):
    total = sum(frequencies)
    place, start = min(self.offset // (self.width // total), total - 1), 0
    for symbol, size in enumerate(frequencies):
      if place < start + size:
        self.share(start, size, total)
        return symbol
      start += size
    raise AssertionError

  def bits(self, count):
    value = 0
    while count:
      taken = min(count, 16)
      place = min(self.offset // (self.width // 2**taken), 2**taken - 1)
      self.share(place, 1, 2**taken)
      value, count = (value << taken) + place, count - taken
    return value


def threefry(key, counter):
  ks = [*key, key[0] ^ key[1] ^ 0x1BD11BDA]
  x, y = ((c + k) % 2**32 for c, k in zip(counter, key, strict=True))
  for i in range(20):
    turn = (13, 15, 26, 6, 17, 29, 16, 24)[i % 8]
    x = (x + y) % 2**32
    y = ((y << turn | y >> (32 - turn)) % 2**32) ^ x
    if i % 4 == 3:
      x = (x + ks[(i // 4 + 1) % 3]) % 2**32
      y = (y + ks[(i // 4 + 2) % 3] + i // 4 + 1) % 2**32
  return x, y


def gaussian_at(seed, key, vector, place):
  a, b = threefry((seed, key), (vector, place // 2))
  r, w = math.sqrt(-2 * math.log((a + 0.5) / 2**32)), 2 * math.pi * b / 2**32
  return r * (math.sin(w) if place % 2 else math.cos(w))


def folded_at(seed, key, vector, place, size):
  """Of a fast chunk of `size` elements."""
  fold, vector = divmod(vector, 4096)
  if fold == 0 or size < 16:
    return gaussian_at(seed, key, 4096 * fold + vector, place)
  shift = threefry((seed, key), (2**31 + fold, 0))[0]
  word = threefry((seed, key), (2**31 + fold, 1 + place // 64))[place % 64 // 32]
  z = gaussian_at(seed, key, vector, (place + shift) % size)
  return -z if word >> place % 32 & 1 else z


def varint(data, place):
  value = shift = 0
  while True:
    value |= (data[place] & 127) << shift
    place, shift = place + 1, shift + 7
    if data[place - 1] < 128:
      return value, place


def parse(data):
  """(seed, is_exact, bits, margin_bits, shape, levels, sections)."""
  assert (data[:4], data[4], data[17]) == (b'DDPC', 4, 1)
  seed, search, margin_bits = int.from_bytes(data[18:22], 'big'), data[22], data[23]
  place, shape = 25, []
  for _ in range(data[24]):
    length, place = varint(data, place)
    shape.append(length)
  levels, place = varint(data, place)
  assert binascii.crc_hqx(data[:place], 0xFFFF) == int.from_bytes(data[place : place + 2], 'big')
  count, place = varint(data, place + 2)
  sections = []
  for _ in range(count):
    length, place = varint(data, place)
    section, check = data[place : place + length], data[place + length : place + length + 2]
    assert binascii.crc_hqx(section, 0xFFFF) == int.from_bytes(check, 'big')
    sections.append(section)
    place += length + 2
  assert place == len(data)
  return seed, search >= 128, search % 128, margin_bits, shape, levels, sections


def index_frequencies(c, doubt, depth, is_exact, bits):
  if depth:
    c, doubt = max(c >> depth, 8 * (bits + 4)), doubt >> 2 * depth
  if is_exact:
    center, spread = c - 19, 180 * c + 3400 + doubt
  else:
    center, spread = c - 26, 15 * c + 900 + doubt
  u = [(16 * e - center) ** 2 * 45 // spread for e in range(60)]
  f = [(POWERS[x % 16] >> (x // 16)) + 16 for x in u]
  if is_exact:
    tail = [(f[e] >> 2 * (e - bits)) + 16 for e in range(bits + 1, 31)]
    return [*f[: bits + 1], *tail, sum(f[bits + 1 :])]
  return f[: min(min(-(-c // 16), 20) + bits, 31)]


def decode(data, table, alphas_cumprod, network):
  """(picture, or None; x_0_hat) of a file."""
  seed, is_exact, bits, margin_bits, shape, levels, sections = parse(data)
  d = math.prod(shape)
  order = sorted(range(d), key=lambda j: threefry((0, 0xC0DEC), (j, 0))[0])
  counts, kls = table['piece_counts'].tolist(), table['piece_kls'].tolist()
  ends_section, before, since, done = [], 0, 0, 0
  for k, count in enumerate(counts):
    since += sum(kls[done : done + count])
    done += count
    ends_section.append(since >= max(128, before // 4) or k == len(counts) - 1)
    if ends_section[-1]:
      before, since = before + since, 0
  is_whole = len(sections) == sum(ends_section) + 1
  joined = b''.join(sections)
  code = Code(joined[:-4] if is_whole else joined)
  x, x_0_hat, done, section = np.zeros(d), table['means'] / 1024, 0, 0
  usual, found = 320, 320

  def expected(kl):
    return max(1, kl * min(max(found, usual // 8), 8 * usual) // usual)

  for k, row in enumerate(table['path'].tolist()):
    if section == len(sections):
      break
    z = np.zeros(d)
    first = chunk = told = 0
    of_step, since = done + counts[k], done
    while done < of_step:
      left = sum(kls[done:of_step])
      wanted = left // math.ceil(expected(left) / (16 * (13 if is_exact else 16)))
      until = done + 1
      while until < of_step and sum(kls[done : until + 1]) <= wanted:
        until += 1
      last, kl = int(table['piece_ends'][until - 1]), sum(kls[done:until])
      c = expected(kl)
      doubt = 200 * c * c // usual
      nodes = [(1, 0, last - first)]
      while nodes:
        node, a, b = nodes.pop(0)
        depth = node.bit_length() - 1
        f = index_frequencies(c, doubt, depth, is_exact, bits)
        e = code.symbol(f)
        if is_exact and e == 31:
          nodes = [(2 * node, a, (a + b) // 2), (2 * node + 1, (a + b) // 2, b), *nodes]
          continue
        told += 16 * e + 26 if not is_exact else max(0, 16 * e - 8) if depth else 16 * e + 20
        vector = 2**e + code.bits(e) - 1
        key = (k * 2**14 + (chunk if is_exact else 0)) * 2**8 + node
        at, size = (gaussian_at, ()) if is_exact else (folded_at, (last - first,))
        for place in range(a, b):
          z[order[first + place]] = at(seed, key, vector, place, *size)
      first, done, chunk = last, until, chunk + 1
      if chunk % 4 == 0 or done == of_step:
        usual, found = usual + sum(kls[since:done]), max(1, found + told)
        while usual > 2560:
          usual, found = usual // 2, max(1, found // 2)
        told, since = 0, done
    s = int(table['timesteps'][row])
    A = alphas_cumprod[s]
    if k == 0:
      take, keep, v, snr, errors = math.sqrt(A), 0, 1 - A, 0, table['errors'][0]
    else:
      previous = int(table['path'][k - 1])
      B = alphas_cumprod[int(table['timesteps'][previous])]
      beta, snr, errors = 1 - B / A, B / (1 - B), table['errors'][previous + 1]
      take, keep = math.sqrt(A) * beta / (1 - B), math.sqrt(B / A) * (1 - A) / (1 - B)
      v = beta * (1 - A) / (1 - B)
    spread = np.sqrt(v * (1 + (A / (1 - A) - snr) * 2.0 ** (-errors.astype(float) / 16)))
    x = take * x_0_hat + keep * x + spread * z
    x_0_hat = np.clip(network(x.reshape(1, *shape), s).ravel(), -1, 1)
    section += ends_section[k]
  if not is_whole:
    return None, x_0_hat.reshape(shape)
  parts, unit = 8 if levels <= 256 else 1, 1
  most = parts * (levels - 1)
  while 64 * most > unit << margin_bits:
    unit *= 2
  block = min(2 ** int(math.log2((unit << margin_bits) // most)), 256)
  f = [max(16, 65536 * 5**j // 8**j) for j in range(64)]
  offsets = [code.symbol(f) for _ in range(-(-d // block))]
  n = len(shape)
  reach = [4 if n == 2 else 2] * (n - 1) + [min(4, shape[-1] - 1)]
  away = [[0]]
  for r in reach:
    away = [[*a, step] for a in away for step in range(-r, r + 1)]
  away = [a[1:] for a in away if a[1:] < [0] * n]
  values, differences, amounts = [], {}, {}
  for i, place in enumerate(itertools.product(*map(range, shape))):
    offset = ((79 * offsets[i // block] + 64) % 128 - 64) / 128
    m = unit * math.floor((x_0_hat[i] + 1) * most / (2 * unit) + 0.5 + offset)
    rounded, c = min(max(m, 0), most), int(table['classes'][i])
    near = [tuple(p + q for p, q in zip(place, a, strict=True)) for a in away]
    weights = table['filter'][place[-1]].tolist()
    total = sum(w * differences.get(p, 0) for w, p in zip(weights, near, strict=True))
    m = min(max(rounded + math.floor((total + 128) / 256), 0), most)
    amount = sum(amounts.get(p, 0) for p in near)
    context = sum(edge <= amount for edge in table['edges'][place[-1]].tolist())
    if levels <= 256:
      mixed = [0] * levels
      for k, weight in enumerate(table['weights'][c, context, m // levels].tolist()):
        g = [
          int(table['shapes'][k][abs(8 * level - m)]) * int(table['prior'][c][level])
          for level in range(levels)
        ]
        total = sum(g)
        mixed = [x + weight * ((y << 18) // total) for x, y in zip(mixed, g, strict=True)]
      values.append(code.symbol([1 + (x * (2**16 - levels) >> 30) for x in mixed]))
    else:
      y = code.symbol(table['lengths'][c, context].tolist())
      p = (y + 1) // 2
      n = max(0, p // 4 - 1)
      difference = ((p - 4 * n) << n) + code.bits(n)
      values.append(m + (difference if y % 2 else -difference))
    value = parts * values[-1]
    differences[place], amounts[place] = value - rounded, abs(value - m)
  picture = np.array(values).reshape(shape)
  assert zlib.crc32(picture.astype('>u2').tobytes()) == int.from_bytes(joined[-4:], 'big')
  return picture, x_0_hat.reshape(shape)


def with_long_steps(table):
  """A table of two steps, of more chunks than a pace stays for, and of chunks of any size."""
  timesteps, codes = table.arrays['timesteps'], table.arrays['errors']
  path = [int(np.abs(timesteps - t).argmin()) for t in (60, 6)]
  pieces = plan_pieces(SCHEDULE, timesteps, codes, path)
  return Table({**table.arrays, 'path': np.array(path, np.int32), **pieces})


@pytest.mark.parametrize(
  ('levels', 'search', 'is_long'),
  [
    (256, Search(), False),
    (256, Search(True, 11), False),
    (1024, Search(False, 2), False),
    (256, Search(False, 5), True),
    (256, Search(True, 11), True),
  ],
)
def test_the_page_suffices_to_decode(levels, search, is_long):
  table = fit_table(SCHEDULE, predict, gaussian.examples(60, levels=levels), levels=levels)
  if is_long:
    table = with_long_steps(table)
    chunks = [list(Pace().cut(step.pieces, search)) for step in table.steps(SCHEDULE)]
    assert len(chunks[-1]) > 1
    if not search.is_exact:
      sizes = [c.last - c.first for step in chunks for some in step for c in some]
      assert min(sizes) < 16 <= max(sizes)
  codec = Codec(SCHEDULE, table, predict, SHAPE, b'gaussian')
  examples = gaussian.examples(2, seed=3, levels=levels)
  for file, example in zip(codec.encode(examples, Goal(), seed=5, search=search), examples,
                           strict=True):  # fmt: skip
    own = table.arrays, SCHEDULE.alphas_cumprod, predict
    picture, _ = decode(file.to_bytes(), *own)
    np.testing.assert_array_equal(picture, example)
    cut = file.first(len(file.sections) // 2)
    (decoded,) = codec.decode([cut])
    np.testing.assert_allclose(decode(cut.to_bytes(), *own)[1], decoded.x_0, atol=2e-5)


def test_the_id_of_a_table_is_what_the_page_says():
  arrays = fit_table(SCHEDULE, predict, gaussian.examples(20), levels=256).arrays
  digest = hashlib.sha256(b'ddpm_jax codec table 3')
  for name in sorted(arrays):
    x = arrays[name]
    digest.update(f'\n{name} {x.dtype.str} {" ".join(map(str, x.shape))}\n'.encode() + x.tobytes())
  codec = Codec(SCHEDULE, fit_table(SCHEDULE, predict, gaussian.examples(20), levels=256), predict,
                SHAPE, b'gaussian')  # fmt: skip
  (file,) = codec.encode(gaussian.examples(1), Goal(rmse=70.0))
  assert file.to_bytes()[13:17] == digest.digest()[:4]
