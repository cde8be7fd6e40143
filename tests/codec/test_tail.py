"""The lossless end: every level comes back, at the cost of the model, and rounding is stable."""

import numpy as np
import pytest
import scipy.stats

from ddpm_jax.codec.range_coder import RangeDecoder, RangeEncoder
from ddpm_jax.codec.tail import (
  NUM_CLASSES,
  NUM_CONTEXTS,
  Neighbours,
  Rounding,
  TailModel,
  classes_of,
  fit_tail,
  is_tail,
  num_symbols,
  parts_of,
  parts_of_symbol,
  read_offsets,
  split_difference,
  write_offsets,
)

SHAPE = 5, 4, 2
SIZE = 40
DEVIATIONS = np.random.default_rng(7).permutation(np.linspace(0.2, 6, SIZE))


def data(levels, seed=0, count=3000):
  """(values, predictions in parts) [count, SIZE] whose differences have DEVIATIONS."""
  rng = np.random.default_rng(seed)
  values = rng.integers(0, levels, (count, SIZE))
  noise = rng.normal(size=values.shape) * levels / 256 * DEVIATIONS
  parts = parts_of(levels)
  predicted = np.rint(parts * (values + noise))
  return values, np.clip(predicted, 0, parts * (levels - 1)).astype(np.int64)


def model_of(levels):
  values, predicted = data(levels)
  arrays, bits = fit_tail(values, predicted, levels, SHAPE)
  assert is_tail(arrays, levels, SHAPE)
  return TailModel(arrays, levels, SHAPE), bits


@pytest.mark.parametrize('levels', [2, 17, 256, 257, 4096, 65536])
def test_every_level_comes_back(levels):
  model, bits = model_of(levels)
  values, predicted = data(levels, seed=1, count=30)
  values[0], values[1] = 0, levels - 1  # as far away as can be
  predicted[0], predicted[1] = parts_of(levels) * (levels - 1), 0
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
  # Of a Gaussian of that deviation about a prediction, rounded; small ones cost less than a bit.
  entropy = sum(entropy_of_levels(deviation) for deviation in DEVIATIONS)
  assert entropy * 0.97 < bits < entropy * 1.03


def entropy_of_levels(deviation):
  """Of a Gaussian rounded to whole numbers, in the mean over where it lies between them."""
  middles = np.linspace(0, 1, 8, endpoint=False)
  edges = (np.arange(-60, 61)[:, None] - 0.5 - middles) / deviation
  shares = np.diff(scipy.stats.norm.cdf(edges), axis=0)
  return -(shares * np.log2(np.maximum(shares, 1e-300))).sum(0).mean()


def test_levels_that_are_never_there_cost_little():
  values, predicted = data(17)
  arrays, bits = fit_tail(15 * values, 15 * predicted, 256, SHAPE)
  _, expected = fit_tail(values, predicted, 17, SHAPE)
  assert bits < expected + 0.1 * SIZE
  sums = [TailModel(arrays, 256, SHAPE).cumulative(0, 3, 60)[-1]]
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
  half_range = parts_of(levels) * (levels - 1) / 2
  assert np.abs(chosen - (np.clip(x_0, -1, 1) + 1) * half_range).max() <= rounding.unit + 1e-3
  without = rounding.round(x_0 + noise, 0 * offsets) != rounding.round(x_0, 0 * offsets)
  assert without.any() or levels == 2  # such noise does turn some


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


@pytest.mark.parametrize('shape', [(3, 1), (9, 2), (4, 5, 3), (3, 2, 4, 1), (2, 3, 12)])
def test_neighbours_come_before_and_are_as_near_as_can_be(shape):
  neighbours = Neighbours(shape)
  reach = [4 if len(shape) == 2 else 2] * (len(shape) - 1) + [min(4, shape[-1] - 1)]
  numbers = np.arange(1, np.prod(shape) + 1).reshape(1, *shape)
  found = np.stack(list(neighbours.of(numbers.reshape(1, -1))))[:, 0]
  bordered = np.pad(numbers[0], [(r, r) for r in reach])
  for i, place in enumerate(np.ndindex(*shape)):
    part = tuple(slice(p, p + 2 * r + 1) for p, r in zip(place, reach, strict=True))
    around = bordered[part].ravel()
    assert found[:, i].tolist() == around[: len(around) // 2].tolist()
    assert found[:, i].max(initial=0) < i + 1


def alike(levels, count=600, seed=0):
  """Values and predictions whose errors neighbours share in part, more in some examples."""
  rng = np.random.default_rng(seed)
  parts = parts_of(levels)
  predicted = rng.integers(parts * levels // 4, 3 * parts * levels // 4, (count, SIZE))
  noise = rng.normal(size=(count, *SHAPE)) * rng.uniform(1, 6, (count, 1, 1, 1)) * levels / 256
  shared = np.cumsum(np.cumsum(noise, axis=1), axis=2)
  values = np.rint(predicted / parts + shared.reshape(count, -1))
  return np.clip(values, 0, levels - 1).astype(int), predicted


@pytest.mark.parametrize('levels', [256, 4096])
def test_what_neighbours_are_off_by_saves_what_it_tells(levels):
  """x - x_left - x_above + x_left_above is the noise, whose deviation the context tells."""
  values, predicted = alike(levels)
  arrays, bits = fit_tail(values, predicted, levels, SHAPE)
  weights = arrays['filter'][0] / 256  # by (row, column, channel) away
  away = [a for a in np.ndindex(5, 5, 3) if a < (2, 2, 1)]
  expected = {(1, 1, 1): -1, (1, 2, 1): 1, (2, 1, 1): 1}
  assert weights == pytest.approx([expected.get(a, 0) for a in away], abs=0.1)
  noise = np.random.default_rng(0).uniform(1, 6, 10_000) * levels / 256
  entropy = SIZE * np.mean(0.5 * np.log2(2 * np.pi * np.e * (noise**2 + 1 / 12)))
  assert bits < 1.06 * entropy + 0.1 * SIZE
  name = 'weights' if levels == 256 else 'lengths'
  middle = arrays[name][:, [NUM_CONTEXTS // 2]]
  without = arrays | {
    'filter': np.zeros_like(arrays['filter']),
    name: np.broadcast_to(middle, arrays[name].shape),
  }
  assert is_tail(without, levels, SHAPE)
  sizes = []
  for model in (TailModel(x, levels, SHAPE) for x in (arrays, without)):
    encoder = RangeEncoder()
    for value, middle in zip(values[:50], predicted, strict=False):
      model.write(encoder, value, middle)
    encoder.end_section()
    code, _ = encoder.finish()
    decoder = RangeDecoder(code)
    for value, middle in zip(values[:50], predicted, strict=False):
      np.testing.assert_array_equal(model.read(decoder, middle), value)
    sizes.append(8 * len(code) / 50)
  assert sizes[0] == pytest.approx(bits, rel=0.05)
  assert sizes[0] < 0.8 * sizes[1]


def test_arrays_of_another_shape_are_no_tail():
  arrays, _ = fit_tail(*data(17, count=9), 17, SHAPE)
  assert not is_tail(arrays, 18, SHAPE)
  assert not is_tail(arrays, 17, (*SHAPE[:2], 1))
  for name in arrays:
    assert not is_tail({other: x for other, x in arrays.items() if other != name}, 17, SHAPE)
    assert not is_tail(arrays | {name: arrays[name][..., :1, None]}, 17, SHAPE)
