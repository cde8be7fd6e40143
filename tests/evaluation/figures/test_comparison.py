"""Rows of the comparison, on examples of which the answer is known."""

import sys
import types

import numpy as np
import pytest

from ddpm_jax.data import Encoding
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.figures import comparison
from ddpm_jax.evaluation.metrics import transfer

MODULE = sys.modules[comparison.__module__]  # whose name in its package is that of the figure
LEVELS = 4_096
ENCODING = Encoding('int16', LEVELS, -LEVELS // 2)


class Source:
  """Sines in noise, of two rates."""

  name, split, image_shape, dtype = 'sines', 'train', (16, 2), np.dtype(np.uint16)

  def __init__(self, num, seed):
    rng = np.random.default_rng(seed)
    self.classes = np.arange(num) // 2 % 2
    rate = np.where(self.classes == 0, 0.4, 1.2)[:, None, None]
    phase = rng.uniform(0, 6, (num, 1, 2))
    x = 0.3 * np.sin(rate * np.arange(16)[:, None] + phase) + 0.02 * rng.standard_normal(
      (num, 16, 2)
    )
    self.levels = ENCODING.encode(ENCODING.decode(x))

  def __len__(self):
    return len(self.levels)

  def read(self, ids):
    return self.levels[ids]


TRAIN, TEST = Source(400, 0), Source(60, 1)
RUN = types.SimpleNamespace(encoding=ENCODING, image_shape=Source.image_shape)


def examples(source, rows):
  return MODULE.Examples(ENCODING.x_0(ENCODING.stored(source.read(rows))), source.classes[rows])


def columns(samples):
  return {
    'samples': samples,
    'test': examples(TEST, np.arange(60)),
    'half of training': examples(TRAIN, np.arange(1, 121, 2)),
  }


def rows_of(rows):
  return {row.name: row.values for row in rows}


def test_copies_are_found():
  copied, new = (examples(source, np.arange(60)) for source in (TRAIN, Source(60, 2)))
  for samples, share in ((copied, 1.0), (new, 0.0)):
    rows = rows_of(MODULE._of_copies(RUN, TRAIN, columns(samples), 'test'))
    nearer = rows['share nearer to one than 99% of test']
    assert nearer['samples'] == pytest.approx(share, abs=0.06)
    assert nearer['test'] == pytest.approx(0.01, abs=0.01)
  distances = rows['RMS distance to the nearest training example, median']
  assert distances['samples'] == pytest.approx(distances['test'], rel=0.25)
  assert 'half of training' not in distances


def test_distance_to_the_nearest_is_in_the_units_of_the_data():
  first = ENCODING.stored(TRAIN.read(np.arange(30)))
  shifted = MODULE.Examples(ENCODING.x_0(first + 40), None)  # by 40 in each dimension
  rows = rows_of(MODULE._of_copies(RUN, TRAIN, columns(shifted), 'test'))
  found = rows['RMS distance to the nearest training example, median']['samples']
  assert found == pytest.approx(40, rel=1e-3)


def test_real_columns_are_like_the_reference_in_structure_and_noise_is_not():
  noise = np.random.default_rng(3).normal(0, 0.2, (60, 16, 2)).astype(np.float32)
  reference = examples(TRAIN, np.arange(0, 400, 2))
  rows = rows_of(MODULE._of_structure(reference, columns(MODULE.Examples(noise, None))))
  assert len(rows) == 4
  for name in ('spectra apart, dB', 'autocorrelations apart'):
    assert rows[name]['samples'] > 3 * max(rows[name]['test'], rows[name]['half of training'])


@pytest.mark.slow
def test_labels_that_mean_something_teach_about_real_examples(monkeypatch):
  train = transfer.train_classifier
  monkeypatch.setattr(transfer, 'train_classifier', lambda *args: train(*args, num_steps=60))
  x_0, classes = examples(TRAIN, np.arange(60))
  unlabelled = np.where(np.arange(60) < 10, 2, classes)  # some samples are of no class
  reference = examples(TRAIN, np.arange(0, 400, 2))
  both = columns(MODULE.Examples(x_0, unlabelled)) | {'swapped': MODULE.Examples(x_0, 1 - classes)}
  there, back = (row.values for row in MODULE._of_transfer(reference, both, 2, 'test'))
  assert there['samples'] > 0.9 > 0.1 > there['swapped']
  assert back['samples'] > 0.9 > 0.1 > back['swapped']
  assert 'test' not in there
  assert back['test'] > 0.9


def test_too_few_examples_are_named():
  run = types.SimpleNamespace(num_samples=4, split=TEST, open_training=lambda: TRAIN)
  with pytest.raises(
    UserError, match=r'comparison needs 8 examples a column.* they have 4, 60 and'
  ):
    comparison(run)
