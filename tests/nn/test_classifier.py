"""The small classifier: any number of axes, its units, and the shipped weights of watch."""

import hashlib

import jax
import numpy as np
import pytest

from ddpm_jax.data.encoding import Encoding
from ddpm_jax.data.watch import NUM_LEVELS, make_watch_source
from ddpm_jax.diffusion.forward import scale_levels
from ddpm_jax.evaluation.features import (
  NUM_EXERCISES,
  WATCH_FILE,
  flat_names,
  random_network,
  watch_network,
)
from ddpm_jax.nn.classifier import WIDTHS, Classifier, random_params


@pytest.mark.parametrize('shape', [(20, 2), (9, 7, 3), (5, 4, 6, 1)])
def test_shapes(shape):
  x_0 = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
  network = Classifier(5, levels=None, kernel_size=3)
  output = network.apply({'params': random_params(network, x_0)}, x_0)
  assert {name: x.shape for name, x in output.items()} == {
    'pooled': (3, sum(WIDTHS)),
    'features': (3, 64),
    'logits': (3, 5),
  }


def test_levels_and_x_0_give_the_same_features():
  levels = np.random.default_rng(0).integers(0, 4_096, (4, 16, 2)).astype(np.uint16)
  x_0 = np.asarray(scale_levels(levels, 4_096))
  params = random_params(Classifier(2, 4_096), x_0)
  of_levels, of_x_0 = (
    Classifier(2, kind).apply({'params': params}, x) for kind, x in ((4_096, levels), (None, x_0))
  )
  np.testing.assert_allclose(of_levels['pooled'], of_x_0['pooled'], rtol=1e-6)


def test_units_of_the_training_examples_do_not_matter():
  x_0 = np.random.default_rng(0).standard_normal((6, 16, 2)).astype(np.float32)
  scaled = x_0 * np.float32([0.01, 3]) + np.float32([0.5, -1])
  network = Classifier(1, None)
  pooled = [
    network.apply({'params': random_params(network, x)}, x)['pooled'] for x in (x_0, scaled)
  ]
  np.testing.assert_allclose(*pooled, rtol=1e-3, atol=1e-4)


def test_a_constant_channel_is_no_division_by_zero():
  x_0 = np.zeros((3, 8, 1), np.float32)
  network = Classifier(1, None)
  assert np.isfinite(network.apply({'params': random_params(network, x_0)}, x_0)['pooled']).all()


def test_random_network_is_the_same_each_time_and_knows_its_data():
  x_0 = np.random.default_rng(0).standard_normal((4, 8, 2)).astype(np.float32)
  first, again, other = (random_network(None, x) for x in (x_0, x_0, 2 * x_0))
  assert first.sha256 == again.sha256 != other.sha256
  assert first.name == 'random convolutions'
  assert not first.published
  assert not first.has_classes
  assert first.num_features((8, 2)) == sum(WIDTHS)


def test_shipped_classifier_knows_the_exercises_of_people_it_has_not_seen():
  source = make_watch_source(image_size=(128,), channels=6, split='test')
  encoding = Encoding('int16', NUM_LEVELS, -NUM_LEVELS // 2)
  levels = encoding.encode(source.read(np.arange(len(source))))
  with np.load(WATCH_FILE) as arrays:
    params = dict(arrays)
  network = Classifier(NUM_EXERCISES, NUM_LEVELS)
  like = jax.eval_shape(network.init, jax.random.key(0), levels[:1])['params']
  params = jax.tree.unflatten(jax.tree.structure(like), [params[name] for name in flat_names(like)])
  found = np.argmax(network.apply({'params': params}, levels)['logits'], axis=1)
  assert (found == source.labels(None).ids).mean() > 0.85
  assert WATCH_FILE.stat().st_size < 200_000


def test_watch_network_says_which_weights_it_has():
  about = watch_network(NUM_LEVELS).about()
  assert about['name'] == 'classifier of exercises'
  assert not about['published']
  assert about['sha256'] == hashlib.sha256(WATCH_FILE.read_bytes()).hexdigest()
