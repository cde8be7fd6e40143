"""The range coder: what is written is read, at the cost of its entropy, from any whole section."""

import numpy as np
import pytest

from ddpm_jax.codec.range_coder import MAX_TOTAL, RangeDecoder, RangeEncoder
from ddpm_jax.errors import UserError


def random_symbols(rng, count):
  """[(cumulative, symbol)] of random alphabets."""
  found = []
  for _ in range(count):
    frequencies = rng.integers(1, 2 ** rng.integers(1, 16), rng.integers(1, 9))
    cumulative = np.concatenate([[0], np.cumsum(frequencies)])
    found.append((cumulative, int(rng.choice(len(frequencies), p=frequencies / cumulative[-1]))))
  return found


def put(encoder, cumulative, symbol):
  start, end = int(cumulative[symbol]), int(cumulative[symbol + 1])
  encoder.encode(start, end - start, int(cumulative[-1]))


@pytest.mark.parametrize('seed', range(20))
def test_each_section_is_read_of_its_bytes_whatever_follows(seed):
  rng = np.random.default_rng(seed)
  sections = [random_symbols(rng, rng.integers(0, 30)) for _ in range(8)]
  encoder = RangeEncoder()
  for section in sections:
    for cumulative, symbol in section:
      put(encoder, cumulative, symbol)
    encoder.end_section()
  code, ends = encoder.finish()
  assert len(code) == ends[-1]
  for k, end in enumerate(ends):
    decoder = RangeDecoder(code[:end])
    for section in sections[: k + 1]:
      for cumulative, symbol in section:
        assert decoder.decode(cumulative) == symbol


def test_a_code_is_as_long_as_the_information():
  rng = np.random.default_rng(0)
  symbols = random_symbols(rng, 4000)
  encoder, bits = RangeEncoder(), 0.0
  for cumulative, symbol in symbols:
    put(encoder, cumulative, symbol)
    bits -= np.log2((cumulative[symbol + 1] - cumulative[symbol]) / cumulative[-1])
  encoder.end_section()
  code, _ = encoder.finish()
  assert bits - 8 <= 8 * len(code) <= bits + 8


def test_carries_go_through_runs_of_full_bytes():
  encoder = RangeEncoder()
  for _ in range(40):
    encoder.encode(MAX_TOTAL - 1, 1, MAX_TOTAL)  # the uppermost share: bytes of 255
  encoder.encode(1, 1, 2)
  encoder.encode_bits(0x12345, 20)
  encoder.end_section()
  code, _ = encoder.finish()
  decoder = RangeDecoder(code)
  for _ in range(40):
    assert decoder.peek(MAX_TOTAL) == MAX_TOTAL - 1
    decoder.take(MAX_TOTAL - 1, 1, MAX_TOTAL)
  assert decoder.decode([0, 1, 2]) == 1
  assert decoder.decode_bits(20) == 0x12345


def test_nothing_takes_no_bytes():
  encoder = RangeEncoder()
  encoder.end_section()
  encoder.encode(0, 5, 5)
  encoder.end_section()
  assert encoder.finish() == (b'', [0, 0])


def test_any_bytes_are_read_as_symbols_or_refused():
  rng = np.random.default_rng(1)
  for _ in range(200):
    decoder = RangeDecoder(rng.bytes(rng.integers(0, 20)))
    try:
      for _ in range(50):
        assert 0 <= decoder.decode([0, 3, 4, 11]) < 3
        assert 0 <= decoder.decode_bits(17) < 1 << 17
    except UserError:
      pass
