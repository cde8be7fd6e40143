"""How stored values become x_0 and come back."""

import pickle

import numpy as np
import pytest

from ddpm_jax import data
from ddpm_jax.data.digits import ArraySource
from ddpm_jax.data.encoding import CONTINUOUS, PICTURES, Encoded, Encoding, find_encoding
from ddpm_jax.diffusion.forward import scale_levels
from ddpm_jax.errors import UserError

RNG = np.random.default_rng(0)


def source(values, split='train'):
  return ArraySource('array:x.npy', split, values)


@pytest.mark.parametrize(
  ('dtype', 'levels', 'lowest', 'expected'),
  [
    ('uint8', None, None, PICTURES),
    ('uint8', 16, None, Encoding('uint8', 16, 0)),
    ('bool', None, None, Encoding('bool', 2, 0)),
    ('int8', None, None, Encoding('int8', 256, -128)),
    ('int16', 4096, None, Encoding('int16', 4096, -2048)),
    ('int16', 4096, -100, Encoding('int16', 4096, -100)),
    ('uint16', 2048, None, Encoding('uint16', 2048, 0)),
    ('uint16', 65536, None, Encoding('uint16', 65536, 0)),
  ],
)
def test_whole_numbers_become_levels_and_come_back(dtype, levels, lowest, expected):
  encoding = find_encoding(source(np.zeros((3, 4, 2), dtype)), levels, lowest, 2)
  assert encoding == expected
  first, last = encoding.lowest, encoding.lowest + encoding.levels - 1
  values = RNG.integers(first, last + 1, (50, 4, 2)).astype(dtype)
  values[0, :2, 0] = first, last
  encoded = encoding.encode(values)
  assert (
    encoded.dtype
    == encoding.encoded_dtype
    == (np.uint8 if levels != 4096 and ((levels or 256) <= 256) else np.uint16)
  )
  assert (encoded.min(), encoded.max()) == (0, encoding.levels - 1)
  x_0 = np.asarray(scale_levels(encoded, encoding.levels))
  assert (x_0.min(), x_0.max()) == (-1, 1)
  np.testing.assert_allclose(encoding.x_0(values), x_0, atol=1e-6)
  for back in (encoding.decode(x_0), encoding.stored(encoded)):
    np.testing.assert_array_equal(back, values)
    assert back.dtype == values.dtype
  beyond = encoding.decode(3 * x_0)  # clipped
  assert (beyond.min(), beyond.max()) == (first, last)


@pytest.mark.parametrize(
  ('dtype', 'levels'), [('float32', None), ('float64', None), ('int32', CONTINUOUS)]
)
def test_other_values_fill_the_range_channel_by_channel(dtype, levels):
  values = (RNG.normal(size=(40, 8, 2)) * [3, 200] + [1, -5]).astype(dtype)
  encoding = find_encoding(source(values), levels, None, 2)
  assert encoding.levels is None
  x_0 = encoding.encode(values)
  assert x_0.dtype == np.float32
  np.testing.assert_allclose(x_0.min((0, 1)), -1, atol=1e-6)
  np.testing.assert_allclose(x_0.max((0, 1)), 1, atol=1e-6)
  back = encoding.decode(x_0)
  assert back.dtype == (np.float32 if dtype == 'int32' else dtype)
  np.testing.assert_allclose(back, values, rtol=1e-5, atol=1e-4)
  assert encoding.decode(2 * x_0).max() > values.max()  # not clipped
  expected = np.log((values.max((0, 1)) - values.min((0, 1))) / 2).mean()
  assert encoding.log_scale() == pytest.approx(expected)


def test_a_channel_that_never_changes_is_at_0():
  values = np.full((5, 4, 1), 7.0)
  encoding = find_encoding(source(values), None, None, 1)
  np.testing.assert_array_equal(encoding.encode(values), 0)
  np.testing.assert_array_equal(encoding.decode(np.zeros((5, 4, 1))), 7)


def not_finite(value):
  values = np.zeros((40, 4, 1))
  values[17, 2, 0] = value
  return values


@pytest.mark.parametrize(
  ('values', 'levels', 'lowest', 'message'),
  [
    (not_finite(np.nan), None, None, r'x\.npy \(train\): example 17 has a value .*not finite'),
    (not_finite(-np.inf), None, None, r'example 17 has a value that is not finite'),
    (np.zeros((3, 4, 1)), 256, None, 'data.levels is 256, but .* float64, values of any kind'),
    (np.int16([[[-7], [1700]]]), None, None, r'has int16 from -7 to 1700: give data.levels=4096,'),
    (np.uint16([[[5], [1700]]]), None, None, r'has uint16 from 5 to 1700: give data.levels=2048,'),
    (np.uint8([[[3], [16]]]), 16, None, 'example 0 has values from 3 to 16, .*=16 holds 0 to 15'),
    (np.int16([[[-9], [3]]]), 16, None, 'from -9 to 3, and data.levels=16 holds -8 to 7: give'),
    (np.int16([[[0], [3]]]), 16, 1, 'data.levels=16 holds 1 to 16: .* or another first one'),
    (np.uint8([[[0], [3]]]), 512, None, 'are more than uint8 has, .* give data.levels=256'),
    (np.array([[['a'], ['b']]]), None, None, 'has <U1; it must have numbers of bool, uint8'),
  ],
)  # fmt: skip
def test_values_that_do_not_fit_are_named(values, levels, lowest, message):
  with pytest.raises(UserError, match=message) as error:
    find_encoding(source(values), levels, lowest, 1)
  assert '\n' not in str(error.value)


def test_whole_numbers_alone_are_levels():
  encoding = Encoding('int16', 4096, -2048)
  with pytest.raises(UserError, match=r'example 2 has float32, and data\.levels=4096 holds whole'):
    Encoded(source(np.zeros((5, 4, 1), np.float32)), encoding).read(np.array([2]))
  with pytest.raises(UserError, match=r'example 0 has values from 0 to 300, and data\.levels=256'):
    PICTURES.encode(np.int16([[[0], [300]]]))
  kept = PICTURES.encode(np.int16([[[0], [255]]]))
  assert (kept.dtype, kept.max()) == (np.uint8, 255)


@pytest.mark.parametrize(
  ('dtype', 'levels', 'is_read'),
  [('uint8', None, False), ('int8', None, False), ('int16', 65536, False), ('int16', 4096, True),
   ('uint8', 128, True)],
)  # fmt: skip
def test_levels_that_hold_any_value_need_no_search(dtype, levels, is_read):
  plain, read = source(np.zeros((9, 4, 1), dtype)), []
  keep = plain.read
  plain.read = lambda ids: read.extend(ids) or keep(ids)
  find_encoding(plain, levels, None, 1)
  assert read == [0, *range(9)] if is_read else [0]


def test_a_source_is_encoded_and_stays_what_it_was():
  values = RNG.integers(-8, 8, (20, 4, 1)).astype(np.int16)
  plain = source(values)
  encoded = Encoded(plain, Encoding('int16', 16, -8))
  assert (len(encoded), encoded.name, encoded.split, encoded.image_shape) == (
    20, 'array:x.npy', 'train', (4, 1),
  )  # fmt: skip
  assert encoded.version() == plain.version()
  assert data.told(encoded, 'picture_names') is None
  rows = np.array([3, 0])
  np.testing.assert_array_equal(encoded.read(rows), values[rows] + 8)
  again = pickle.loads(pickle.dumps(encoded))
  np.testing.assert_array_equal(again.read(rows), values[rows] + 8)
  other = Encoded(source(values + 5, 'test'), encoded.encoding)
  with pytest.raises(UserError, match=r'\(test\): example [0-9]+ has values from'):
    other.read(np.arange(20))
