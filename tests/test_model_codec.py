"""A model's codec in Python, on the model of the package."""

import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.data.digits import load_digits
from ddpm_jax.errors import UserError

DIGITS = load_digits('test')[0][:4].reshape(4, 8, 8, 1)


@pytest.fixture(scope='module')
def model():
  return ddpm_jax.load('digits')


@pytest.fixture(scope='module')
def files(model):
  return model.compress(DIGITS, search_bits=2)


def rmse(found):
  return np.sqrt(np.square(found - DIGITS.astype(np.float64)).mean())


def test_digits_come_back_in_few_bytes(model, files):
  np.testing.assert_array_equal(model.decompress(files), DIGITS)
  assert max(map(len, files)) < 80  # 124 as PNG
  np.testing.assert_array_equal(model.decompress(files[1:3], batch_size=1), DIGITS[1:3])


def test_the_beginning_of_a_file_is_a_coarser_picture(model, files):
  with pytest.warns(UserWarning, match='file 0 is cut off'):
    coarse = model.decompress([file[:36] for file in files])
  with pytest.warns(UserWarning, match='sections, 2 are whole'):
    finer = model.decompress([file[:46] for file in files])
  assert 15 < rmse(finer) < rmse(coarse) < 90
  with pytest.warns(UserWarning, match='cut off'):
    realistic = model.decompress([file[:46] for file in files], realism=1.0)
  assert rmse(finer) < rmse(realistic) < 110


def test_targets_are_kept(model):
  small = model.compress(DIGITS, target='bytes:45', search_bits=1)
  assert max(map(len, small)) <= 45
  near = model.compress(DIGITS, target='rmse:60', search_bits=1)
  found = model.decompress(near).astype(np.float64) - DIGITS
  # The prediction is rounded to levels.
  assert np.sqrt(np.square(found).mean((1, 2, 3))).max() <= 60.5


@pytest.mark.parametrize(
  ('choices', 'words'),
  [
    ({'target': 'all'}, 'must be lossless'),
    ({'search': 'slow'}, 'compress.search'),
    ({'search_bits': 99}, 'compress.search_bits'),
    ({'seed': -1}, 'compress.seed'),
    ({'seed': 1.5}, 'compress.seed is 1.5; it must be an integer'),
    ({'search': 1}, 'compress.search is 1; it must be text'),
    ({'batch_size': 0}, 'batch_size'),
  ],
)
def test_choices_that_are_none_are_refused(model, choices, words):
  with pytest.raises(UserError, match=words):
    model.compress(DIGITS, **choices)


def test_other_examples_and_files_are_refused(model, files):
  with pytest.raises(UserError, match='this model takes uint8'):
    model.compress(np.zeros((1, 9, 9, 1), np.uint8))
  with pytest.raises(UserError, match='files are none'):
    model.decompress([])
  with pytest.raises(UserError, match='file 1 is no compressed example'):
    model.decompress([files[0], b'PNG'])
  with pytest.raises(UserError, match='realism'):
    model.decompress(files, realism=1.5)
  with pytest.raises(UserError, match='realism is None; it must be a number'):
    model.decompress(files, realism=None)
  for given in (files[0], ['file.ddpc'], [5]):
    with pytest.raises(UserError, match='files are no list of bytes: give what compress returned'):
      model.decompress(given)
  for target in (None, 5, b'lossless'):
    with pytest.raises(UserError, match='it must be lossless, bytes:N'):
      model.compress(DIGITS, target=target)
  with pytest.raises(UserError, match=r'search_bits is 1; of compress\.search=exact it must be'):
    model.compress(DIGITS, search='exact', search_bits=1)
