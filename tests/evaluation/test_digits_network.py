"""The shipped weights of the digits classifier, and the distances and scores they give."""

import hashlib

import jax
import numpy as np
import pytest

from ddpm_jax import devices
from ddpm_jax.data.digits import load_digits
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.features import (
  DIGITS_FILE,
  digits_network,
  flat_names,
  load_digits_classifier,
)
from ddpm_jax.evaluation.metrics.frechet import accumulate, frechet_distance
from ddpm_jax.evaluation.metrics.inception_score import inception_score
from ddpm_jax.nn.digits_classifier import DigitsClassifier


@pytest.fixture(scope='module')
def classify():
  """Returns images -> outputs, of the shipped network."""
  params, _ = load_digits_classifier()
  apply = jax.jit(DigitsClassifier().apply)
  return lambda images: jax.tree.map(np.asarray, apply({'params': params}, images))


@pytest.fixture(scope='module')
def distance_to_train(classify):
  """Returns images -> their Frechet distance to the training digits."""

  def statistics(images):
    return accumulate([classify(images)['features']])

  train = statistics(load_digits('train')[0])
  return lambda images: frechet_distance(train, statistics(images))


@pytest.fixture(scope='module')
def score(classify):
  """Returns images -> their score, in one part."""
  return lambda images: inception_score(classify(images)['logits'], num_splits=1)[0]


def noisy(level):
  """The training digits with the same noise, scaled to this standard deviation, of 255."""
  images = load_digits('train')[0]
  noise = np.random.RandomState(0).standard_normal(images.shape)
  return np.clip(images + level * noise, 0, 255).astype(np.float32)


def uniform_noise():
  return np.random.RandomState(0).randint(0, 256, (1497, 8, 8, 1), np.uint8)


def test_file_is_small():
  assert DIGITS_FILE.stat().st_size < 300_000


def test_hash_is_that_of_the_file():
  _, sha256 = load_digits_classifier()
  assert sha256 == hashlib.sha256(DIGITS_FILE.read_bytes()).hexdigest()


def test_flat_names_are_those_of_the_file():
  params, _ = load_digits_classifier()
  with np.load(DIGITS_FILE, allow_pickle=False) as arrays:
    expected = dict(arrays)
  actual = flat_names(params)
  assert actual.keys() == expected.keys()
  for name, array in actual.items():
    np.testing.assert_array_equal(array, expected[name], err_msg=name)


@pytest.mark.parametrize('change', ['missing', 'unknown', 'shape'])
def test_weights_of_another_network_are_refused(tmp_path, change):
  arrays = flat_names(load_digits_classifier()[0])
  name = min(arrays)
  if change == 'missing':
    del arrays[name]
  elif change == 'unknown':
    arrays['Conv_9/bias'] = arrays[name]
  else:
    arrays[name] = arrays[name][..., None]
  np.savez(tmp_path / 'other.npz', **arrays)
  with pytest.raises(UserError, match='is of another network') as error:
    load_digits_classifier(tmp_path / 'other.npz')
  assert '\n' not in str(error.value)


def test_python_objects_are_not_unpickled(tmp_path):
  arrays = flat_names(load_digits_classifier()[0])
  arrays[min(arrays)] = np.array([{}], dtype=object)
  np.savez(tmp_path / 'objects.npz', **arrays)
  with pytest.raises(ValueError, match='allow_pickle=False'):
    load_digits_classifier(tmp_path / 'objects.npz')


def test_network_has_these_weights_and_says_so(classify):
  network = digits_network()
  assert network.about() == {
    'name': 'digits classifier',
    'published': False,
    'sha256': hashlib.sha256(DIGITS_FILE.read_bytes()).hexdigest(),
    'preprocessing': '8 x 8 pixels, as they are',
  }
  assert network.num_features((8, 8, 1)) == 64
  images = load_digits('test')[0][:8]
  outputs = network.extract(network.params, devices.split_over_devices(images))
  expected = classify(images)
  assert outputs.keys() == expected.keys()
  for name, array in outputs.items():
    gathered = devices.gather_from_devices(array)
    np.testing.assert_allclose(gathered, expected[name], rtol=0, atol=1e-5)


def test_accuracy_on_digits_it_was_not_trained_on(classify):
  images, labels = load_digits('test')
  assert len(images) == 300
  assert (classify(images)['logits'].argmax(axis=1) == labels).mean() >= 0.98  # 0.993


def test_no_feature_is_dead_and_their_covariance_is_regular(classify):
  features = classify(load_digits('all')[0])['features'].astype(np.float64)
  assert np.isfinite(features).all()
  assert (features.std(axis=0) > 0.1).all()  # the least is 0.77
  assert np.linalg.cond(np.cov(features.T)) < 1e4  # 804


def test_distance_grows_with_noise(distance_to_train):
  distances = [distance_to_train(noisy(level)) for level in (0, 8, 16, 32, 64, 96, 128, 192)]
  assert distances[0] == pytest.approx(0, abs=1e-4)
  assert (np.diff(distances) > 0).all(), distances


def test_held_out_digits_are_near_and_broken_ones_far(distance_to_train):
  images, labels = load_digits('train')
  random = np.random.RandomState(0)
  shuffled = np.stack([random.permutation(image.ravel()) for image in images])
  held_out = distance_to_train(load_digits('test')[0])  # 0.73
  assert distance_to_train(noisy(96)) > 5 * held_out
  assert distance_to_train(uniform_noise()) > 15 * held_out
  assert distance_to_train(shuffled.reshape(images.shape)) > 15 * held_out
  for label in range(10):
    assert distance_to_train(images[labels == label]) > 40 * held_out, label


def test_score_counts_the_classes(score):
  images, labels = load_digits('train')
  assert 9.5 < score(images) <= 10.0
  assert 9.3 < score(load_digits('test')[0]) <= 10.0
  assert score(images[labels < 5]) == pytest.approx(5, abs=0.2)
  assert score(images[labels == 3]) < 1.2


def test_score_of_noise_is_low(score):
  assert score(uniform_noise()) < 5
  assert score(noisy(192)) < 6
  assert score(np.full((100, 8, 8, 1), 128, np.uint8)) == pytest.approx(1, abs=1e-3)
