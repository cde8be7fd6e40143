import numpy as np
import pytest

from ddpm_jax import data
from ddpm_jax.data.digits import load_digits
from ddpm_jax.errors import UserError


def source(split, image_size=8, channels=1):
  return data.make_source('digits', dir=None, image_size=image_size, channels=channels, split=split)


def test_splits_share_out_the_whole():
  whole, labels = load_digits('all')
  assert whole.shape == (1797, 8, 8, 1)
  parts = [load_digits(split)[0] for split in ('train', 'test')]
  assert [len(part) for part in parts] == [1497, 300]
  rows = sorted(image.tobytes() for part in parts for image in part)
  assert rows == sorted(image.tobytes() for image in whole)
  assert labels.dtype == whole.dtype == np.uint8


def test_every_sixth_is_for_testing():
  """A change here means that old numbers cannot be compared."""
  np.testing.assert_array_equal(load_digits('test')[0], load_digits('all')[0][::6])


@pytest.mark.parametrize('split', ['train', 'test'])
def test_every_class_has_its_tenth(split):
  _, labels = load_digits(split)
  share = np.bincount(labels, minlength=10) / len(labels)
  np.testing.assert_allclose(share, 0.1, atol=0.02)


def test_grey_levels_are_equally_spaced():
  levels = np.unique(load_digits('all')[0])
  assert len(levels) == 17
  np.testing.assert_allclose(levels, np.linspace(0, 255, 17), atol=0.5)


def test_equals_scikit_learn():
  digits = pytest.importorskip('sklearn.datasets').load_digits()
  images, labels = load_digits('all')
  np.testing.assert_allclose(images[..., 0] * (16 / 255), digits.images, atol=0.04)
  np.testing.assert_array_equal(labels, digits.target)


def test_source_reads_the_split():
  digits = source('test')
  assert (digits.name, digits.split, digits.image_shape) == ('digits', 'test', (8, 8, 1))
  images, _ = load_digits('test')
  np.testing.assert_array_equal(digits.read(np.array([299, 0])), images[[299, 0]])


def test_other_sizes_and_colour():
  digits = source('test', image_size=16, channels=3)
  batch = digits.read(np.arange(300))
  assert batch.shape == (300, 16, 16, 3)
  assert (batch[..., :1] == batch).all()
  # Halving the enlarged pictures by averaging comes back close to the originals.
  halved = batch[..., 0].reshape(300, 8, 2, 8, 2).mean((2, 4))
  assert np.abs(halved - load_digits('test')[0][..., 0]).mean() < 15


def test_unknown_split():
  with pytest.raises(UserError, match=r"data\.split='val'.*train, test, all"):
    source('val')
