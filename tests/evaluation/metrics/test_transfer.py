"""Train on one set, test on another: classes that can be told, and those that cannot."""

import jax
import numpy as np
import pytest

from ddpm_jax.evaluation.metrics.transfer import accuracy, train_classifier


def tones(num, *, seed, noise=0.1):
  """Signals of two classes, slow and fast."""
  rng = np.random.default_rng(seed)
  classes = np.arange(num) % 2
  rate = np.where(classes == 0, 0.1, 0.3)[:, None]
  x = np.sin(2 * np.pi * (rate * np.arange(32) + rng.random((num, 1))))
  return (0.05 * (x + noise * rng.standard_normal(x.shape)))[..., None], classes


def test_classes_that_can_be_told_are_learned_from_few_examples():
  params = train_classifier(*tones(40, seed=0), 2, num_steps=60)
  assert accuracy(params, *tones(200, seed=1), 2) > 0.98


def test_labels_without_a_meaning_teach_nothing():
  x_0, classes = tones(60, seed=0)
  shuffled = np.random.default_rng(2).permutation(classes)
  params = train_classifier(x_0, shuffled, 2, num_steps=60)
  assert accuracy(params, *tones(200, seed=1), 2) == pytest.approx(0.5, abs=0.25)


def test_a_seed_is_a_classifier():
  runs = [train_classifier(*tones(40, seed=0), 2, seed=seed, num_steps=3) for seed in (0, 0, 1)]
  same, other = (
    [bool((a == b).all()) for a, b in zip(*map(jax.tree.leaves, (runs[0], run)), strict=True)]
    for run in runs[1:]
  )
  assert all(same)
  assert not all(other)


def test_units_of_the_values_do_not_matter():
  x_0, classes = tones(40, seed=0)
  test, of_test = tones(50, seed=1)
  found = [
    accuracy(train_classifier(c * x_0 + d, classes, 2, num_steps=40), c * test + d, of_test, 2)
    for c, d in ((1, 0), (0.01, 0.5))
  ]
  assert found[0] == pytest.approx(found[1], abs=0.05)
