"""The lossless end: every level comes back, at the cost of the model, and rounding is stable."""

import numpy as np
import pytest

from ddpm_jax.codec.range_coder import RangeDecoder, RangeEncoder
from ddpm_jax.codec.tail import (
  NUM_CLASSES,
  Rounding,
  TailModel,
  classes_of,
  fit_tail,
  num_symbols,
  parts_of_symbol,
  read_offsets,
  split_difference,
  write_offsets,
)

SIZE = 40


def data(levels, seed=0, count=3000):
  """(values, predictions) [count, SIZE] whose differences grow with the element."""
  rng = np.random.default_rng(seed)
  values = rng.integers(0, levels, (count, SIZE))
  noise = rng.normal(size=values.shape) * levels / 256 * np.linspace(0.2, 6, SIZE)
  return values, np.clip(np.rint(values + noise), 0, levels - 1).astype(np.int64)


def model_of(levels):
  values, predicted = data(levels)
  classes = classes_of(np.arange(SIZE))
  arrays, bits = fit_tail(values, predicted, classes, levels)
  return TailModel({**arrays, 'classes': classes}, levels), bits


@pytest.mark.parametrize('levels', [2, 17, 256, 257, 4096, 65536])
def test_every_level_comes_back(levels):
  model, bits = model_of(levels)
  values, predicted = data(levels, seed=1, count=30)
  values[0], values[1] = 0, levels - 1  # as far away as can be
  predicted[0], predicted[1] = levels - 1, 0
  encoder = RangeEncoder()
  for value, middle in zip(values, predicted, strict=True):
    model.write(encoder, value, middle)
    encoder.end_section()
  code, ends = encoder.finish()
  decoder = RangeDecoder(code)
  for value, middle in zip(values, predicted, strict=True):
    np.testing.assert_array_equal(model.read(decoder, middle), value)
  sizes = 8 * np.diff(ends)[2:]
  assert abs(sizes.mean() - bits) < 0.03 * bits + 2  # what the fit says


def test_the_cost_is_the_entropy_of_the_differences():
  _, bits = model_of(256)
  deviations = np.linspace(0.2, 6, SIZE)
  # Of a Gaussian of that deviation, rounded; small ones cost less than a bit.
  entropy = np.maximum(0.5 * np.log2(2 * np.pi * np.e * (deviations**2 + 1 / 12)), 0).sum()
  assert entropy * 0.97 < bits < entropy * 1.1


def test_levels_that_are_never_there_cost_little():
  values, predicted = data(17)
  arrays, bits = fit_tail(15 * values, 15 * predicted, classes_of(np.arange(SIZE)), 256)
  _, expected = fit_tail(values, predicted, classes_of(np.arange(SIZE)), 17)
  assert bits < expected + 0.1 * SIZE
  sums = [TailModel({**arrays, 'classes': classes_of(np.arange(SIZE))}, 256).cumulative(0, 60)[-1]]
  assert all(0 < total <= 1 << 16 for total in sums)


@pytest.mark.parametrize('levels', [257, 65536])
def test_differences_have_one_symbol_each(levels):
  seen = set()
  for difference in range(-levels + 1, levels):
    symbol, rest, num_bits = split_difference(difference)
    sign, bits, high = parts_of_symbol(symbol)
    assert (bits, sign * ((high << bits) + rest)) == (num_bits, difference)
    seen.add(symbol)
  assert seen == set(range(num_symbols(levels)))


@pytest.mark.parametrize('levels', [2, 256, 65536])
@pytest.mark.parametrize('margin_bits', [12, 15, 18])
def test_a_prediction_within_the_margin_rounds_alike(levels, margin_bits):
  rng = np.random.default_rng(0)
  rounding = Rounding(levels, margin_bits)
  x_0 = rng.uniform(-1.1, 1.1, 3000).astype(np.float32)
  offsets = rounding.choose(x_0)
  chosen = rounding.round(x_0, offsets)
  for _ in range(20):
    noise = rng.choice([-0.99, 0.99], x_0.shape) * 2.0**-margin_bits
    np.testing.assert_array_equal(rounding.round(x_0 + noise, offsets), chosen)
  half_range = (levels - 1) / 2
  assert np.abs(chosen - (np.clip(x_0, -1, 1) + 1) * half_range).max() <= rounding.unit + 1e-3
  without = rounding.round(x_0 + noise, 0 * offsets) != rounding.round(x_0, 0 * offsets)
  assert without.any() == (levels > 2)  # such noise does turn some


def test_offsets_come_back():
  offsets = np.array([0, 1, 5, 63, 0, 0])
  encoder = RangeEncoder()
  write_offsets(encoder, offsets)
  encoder.end_section()
  code, _ = encoder.finish()
  np.testing.assert_array_equal(read_offsets(RangeDecoder(code), 6), offsets)


def test_classes_have_as_many_elements():
  classes = classes_of(np.arange(80)[::-1])
  assert np.bincount(classes).tolist() == [10] * NUM_CLASSES
  assert classes[0] == NUM_CLASSES - 1
