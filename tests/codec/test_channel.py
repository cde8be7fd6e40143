"""Reverse channel coding: the law of what is sent, and what it costs."""

import numpy as np
import pytest
from scipy import stats

from ddpm_jax.codec import encoder
from ddpm_jax.codec.channel import (
  ROUND,
  Pace,
  Pieces,
  Search,
  codebook_key,
  decode_step,
  index_frequencies,
)
from ddpm_jax.codec.encoder import encode_step
from ddpm_jax.codec.range_coder import RangeDecoder, RangeEncoder
from ddpm_jax.codec.search import padded
from ddpm_jax.errors import UserError

SIZE, RATIO = 6, 0.8


class Meter(RangeEncoder):
  """Adds up the information."""

  bits = 0.0

  def encode(self, start, size, total):
    self.bits += np.log2(total / size)
    super().encode(start, size, total)


def kl_of(shift, ratio):
  """Bits."""
  nats = -np.log(ratio) + (ratio**2 + np.square(shift) - 1) / 2
  return nats.sum() / np.log(2)


def target(kl, size=SIZE, ratio=RATIO, seed=0):
  """(shift, ratio) of this KL in bits."""
  ratio = np.full(size, ratio, np.float32)
  direction = np.random.default_rng(seed).standard_normal(size)
  needed = 2 * np.log(2) * (kl - kl_of(0 * direction, ratio))
  shift = direction / np.linalg.norm(direction) * np.sqrt(needed)
  return shift.astype(np.float32), ratio


def pieces(ends, kls):
  """Pieces of expected bits."""
  return Pieces(np.array(ends), np.array([round(16 * kl) for kl in kls]))


def paces(count):
  return [Pace() for _ in range(count)]


def send(shift, ratio, parts, search, *, seed=0, step=0):
  """(z [B, d], bits [B]) of a step, sent and read."""
  meters, count = [Meter() for _ in shift], len(shift)
  sent, read_by = paces(count), paces(count)
  privates = [np.random.default_rng([seed, i]) for i in range(count)]
  drawn = encode_step(
    meters, step, parts, search, sent, seed=seed, shift=shift, ratio=ratio, privates=privates
  )
  codes = []
  for meter in meters:
    meter.end_section()
    codes.append(meter.finish()[0])
  read = decode_step([RangeDecoder(code) for code in codes], step, parts, search, read_by)
  np.testing.assert_array_equal(read, drawn)
  assert read_by == sent
  return read.numbers(seed), np.array([meter.bits for meter in meters])


def many(kl, search, count, **choices):
  """(z - shift) / ratio [count, SIZE] and bits [count], each by a codebook of its own."""
  shift, ratio = target(kl)
  parts = pieces([SIZE], [kl])
  sent = [send(shift[None], ratio, parts, search, seed=seed, **choices) for seed in range(count)]
  z, bits = np.concatenate([x for x, _ in sent]), np.concatenate([x for _, x in sent])
  return (z - shift) / ratio, bits, shift


@pytest.mark.parametrize(('kl', 'bits', 'rare'), [(2, 12, 3), (4, 4, 3), (4, 4, -2)])
def test_what_is_sent_exactly_has_the_law_of_q(kl, bits, rare, monkeypatch):
  # With 4 bits, one chunk in three is split; and halves again where what they must have is rare.
  monkeypatch.setattr(encoder, '_RARE_NATS', rare)
  white, spent, shift = many(kl, Search(True, bits), 1000)
  along = white @ shift / np.linalg.norm(shift)
  for values in (*white.T, along):
    assert stats.kstest(values, 'norm').pvalue > 1e-3
  assert stats.kstest(np.square(white).sum(1), stats.chi2(SIZE).cdf).pvalue > 1e-3
  assert kl < spent.mean() < kl + np.log2(kl + 1) + 5 + (0 if bits == 12 else 6 if rare > 0 else 9)


def test_what_is_sent_fast_is_as_near_to_q_as_its_number_of_vectors_allows():
  white, spent, shift = many(8, Search(False, 5), 200)
  direction = shift / np.linalg.norm(shift)
  along = white @ direction
  assert -0.5 < along.mean() < 0.1
  assert along.std() < 0.8
  across = white - along[:, None] * direction
  assert 0.9 < across.std() * np.sqrt(SIZE / (SIZE - 1)) < 1 / RATIO
  assert spent.mean() < 8 + 3.5
  few, cheaper, _ = many(8, Search(False, 0), 200)
  assert (few @ direction).mean() < -0.4
  assert cheaper.mean() < spent.mean()


def test_searches_are_of_few_shapes_that_waste_little():
  sizes = {count: padded(count, 3) for count in range(4, 5000)}
  assert all(count <= size < 1.25 * count for count, size in sizes.items())
  assert len(set(sizes.values())) < 50


@pytest.mark.parametrize('search', [Search(False, 2), Search(True, 6)])
def test_examples_do_not_depend_on_their_batch(search):
  shifts = np.stack([target(kl, size=20, seed=i)[0] for i, kl in enumerate((14, 16, 18))])
  ratio = target(14, size=20)[1]
  parts = pieces([5, 9, 14, 20], [5, 7, 5, 7])
  z, _ = send(shifts, ratio, parts, search, seed=4, step=2)
  for i in range(3):
    meters = [RangeEncoder()]
    drawn = encode_step(
      meters, 2, parts, search, paces(1), seed=4, shift=shifts[i : i + 1], ratio=ratio,
      privates=[np.random.default_rng([4, i])],
    )  # fmt: skip
    np.testing.assert_array_equal(drawn.numbers(4)[0], z[i])


def test_what_is_far_from_all_that_is_expected_still_comes_near():
  shift = np.full((1, 8), 6, np.float32)  # 200 bits, of which the table says 5
  parts = pieces([8], [5])
  z, bits = send(shift, np.full(8, 0.9, np.float32), parts, Search(True, 10))
  assert z.mean() > 2.5
  assert bits[0] < 400
  assert np.linalg.norm(send(shift, np.full(8, 0.9, np.float32), parts, Search(False, 3))[0]) > 2


@pytest.mark.parametrize('search', [Search(False, 3), Search(True, 10)])
@pytest.mark.parametrize('share', [0.25, 1.0, 1.7])
def test_chunks_go_by_what_an_example_has_taken(search, share):
  """The table expects a bit a piece; an example that has less or more gets chunks to suit."""
  size, parts = 240, pieces(range(2, 241, 2), [1] * 120)
  shift = np.full((1, size), np.sqrt(2 * np.log(2) * share / 2), np.float32)
  pace = Pace()
  (meter,), ratio = [Meter()], np.ones(size, np.float32)
  known = {'seed': 3, 'shift': shift, 'ratio': ratio, 'privates': [np.random.default_rng(0)]}
  for step in range(2):  # in the first it gets known
    meter.bits = 0
    drawn = encode_step([meter], step, parts, search, [pace], **known)
  assert abs(np.log(pace.found / pace.usual / share)) < (0.5 if search.is_exact else 0.3)
  chunks = [chunk for some in pace.cut(parts, search) for chunk in some]
  assert [c.first for c in chunks] == [0, *(c.last for c in chunks[:-1])]
  assert chunks[-1].last == size
  assert all(c.kl <= 16 * search.chunk_bits for c in chunks)
  assert len(chunks) < 1.5 * share * 120 / search.chunk_bits + 1
  kl = kl_of(shift, ratio)
  assert meter.bits < (2.8 if search.is_exact else 1.35) * kl
  z = drawn.numbers(3)[0]
  square = shift[0] @ shift[0]  # of a vector of q, z @ shift has this mean and variance
  most = 3 / np.sqrt(square) if search.is_exact else 0.25
  assert abs(z @ shift[0] / square - 1) < most


@pytest.mark.parametrize('told', [0, 1, 10**6])
def test_a_pace_stays_within_eight_times_what_is_usual(told):
  parts, pace = pieces(range(5, 101, 5), [2] * 20), Pace()
  for _ in range(50):
    chunks = []
    for some in pace.cut(parts, Search()):
      assert len(some) <= ROUND
      chunks += some
      pace.heed(some, told * len(some))
    assert chunks[-1].last == 100
    assert all(1 <= c.kl <= 16 * (Search().chunk_bits + 16) for c in chunks)
  assert pace.of(800) == {0: 100, 1: 100, 10**6: 6400}[told]


def test_codebooks_have_numbers_of_their_own():
  keys = {
    codebook_key(Search(True), s, c, n)
    for s in (0, 1, 1023)
    for c in (0, 1, 16383)
    for n in (1, 2, 255)
  }
  assert len(keys) == 27
  assert max(keys) < 2**32
  assert len({codebook_key(Search(), 5, c, 1) for c in range(9)}) == 1  # of all chunks of a step
  with pytest.raises(UserError, match='too large'):
    codebook_key(Search(), 0, 16384, 1)


@pytest.mark.parametrize('search', [Search(False, 3), Search(True, 14)])
def test_frequencies_lie_about_the_kl(search):
  frequencies = index_frequencies(16 * 13, 4000, search)
  assert all(x > 0 for x in frequencies)
  assert sum(frequencies) < 1 << 24
  if search.is_exact:
    assert 10 <= int(np.argmax(frequencies[:-1])) <= 13
  else:
    assert len(frequencies) == 16  # exponents below 13 + 3
    assert int(np.argmax(frequencies)) == 11
    wider = index_frequencies(16 * 13, 12000, search)
    assert frequencies[5] / sum(frequencies) < wider[5] / sum(wider)
