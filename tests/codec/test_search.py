"""The search of a codebook, next to one that draws each vector and tries it."""

import numpy as np
import pytest

from ddpm_jax.codec.candidates import FOLD, fold, gaussians
from ddpm_jax.codec.search import NUM_PRICES, Targets, fast_search, padded

SEED, KEY = 3, 77


def targets_of(sizes, seed=0):
  """Random ones, and (shift, ratio) of each."""
  width = 2 * padded((max(sizes) + 1) // 2, 2)
  targets, rng, known = Targets.zeros(len(sizes), width), np.random.default_rng(seed), []
  for i, size in enumerate(sizes):
    shift, ratio = rng.standard_normal(size) * np.sqrt(12 / size), rng.uniform(0.8, 1, size)
    targets.linear[i, :size] = shift / ratio**2
    targets.square[i, :size] = (1 / ratio**2 - 1) / 2
    targets.constant[i] = -(shift**2 / (2 * ratio**2) + np.log(ratio)).sum()
    targets.most[i] = 8 + i
    known.append((shift, ratio))
  return targets, known


def prices_of(exponents):
  """Half a nat more for each exponent, as far as there are vectors."""
  prices = np.full((NUM_PRICES, len(exponents)), np.inf, np.float32)
  for column, count in enumerate(exponents):
    prices[:count, column] = 0.5 * np.arange(count)
  return prices


@pytest.mark.parametrize(
  ('sizes', 'exponents', 'is_folded'),
  [
    ([20, 17, 24, 16], [15, 14, 12, 3], True),
    ([20, 17, 24, 16], [15, 14, 12, 3], False),
    ([520, 560], [12, 13], True),  # in several blocks
  ],
)
def test_the_best_of_all_vectors_is_found(sizes, exponents, is_folded):
  targets, known = targets_of(sizes, seed=4)
  prices = prices_of(exponents)
  found = fast_search(SEED, KEY, targets, np.array(sizes), prices, is_folded=is_folded)
  for i, (size, (shift, ratio)) in enumerate(zip(sizes, known, strict=True)):
    vectors = np.arange((1 << exponents[i]) - 1)
    of_size = size if is_folded else 0
    z = gaussians(SEED, KEY, vectors[:, None], np.arange(size)[None], of_size).astype(np.float64)
    # The logarithm of N(z; shift, ratio^2) over N(z; 0, 1).
    values = (z**2 / 2 - ((z - shift) / ratio) ** 2 / 2 - np.log(ratio)).sum(1)
    scores = np.minimum(values, targets.most[i]) - 0.5 * (np.frexp(vectors + 1.0)[1] - 1)
    assert scores[found[i]] == pytest.approx(scores.max(), abs=1e-4)


def test_what_is_found_does_not_depend_on_what_else_is_sought():
  sizes, exponents = [40, 48, 33], [14, 13, 14]
  targets, _ = targets_of(sizes)
  prices = prices_of(exponents)
  together = fast_search(SEED, KEY, targets, np.array(sizes), prices, is_folded=True)
  for i, size in enumerate(sizes):
    one = Targets(*(x[i : i + 1] for x in targets))
    found = fast_search(SEED, KEY, one, np.array([size]), prices[:, i : i + 1], is_folded=True)
    assert found[0] == together[i]


def test_folds_are_signs_and_shifts_of_the_first_vectors():
  size, places = 70, np.arange(70)
  first = gaussians(SEED, KEY, 5, places, size)
  np.testing.assert_array_equal(first, gaussians(SEED, KEY, 5, places))
  key, numbers = (np.uint32(SEED), np.uint32(KEY)), np.arange(201, dtype=np.uint32)[:, None]
  signs, taken = fold(np, key, numbers, np.uint32(places), np.uint32(size))
  folded = gaussians(SEED, KEY, numbers * FOLD + 5, places, size)
  np.testing.assert_array_equal(folded, signs * first[taken])
  assert (np.sort(taken) == places).all()  # all elements, each once
  assert len(np.unique(taken[1:, 0])) > 50
  assert set(signs[1:].ravel().tolist()) == {-1, 1}
  many = signs[1:]
  assert np.abs(np.corrcoef(many.T) - np.eye(size)).max() < 0.35


def test_folded_vectors_are_gaussian_and_all_but_independent():
  size = 24
  z = gaussians(SEED, KEY, np.arange(16 * FOLD)[:, None], np.arange(size)[None], size)
  assert abs(z.mean()) < 2e-3
  assert abs(z.std() - 1) < 2e-3
  assert np.abs(np.corrcoef(z.T) - np.eye(size)).max() < 0.02
  # Of the projections, the greatest are as great as those of as many vectors of one's own.
  directions = np.random.default_rng(0).standard_normal((200, size)).astype(np.float32)
  directions /= np.linalg.norm(directions, axis=1, keepdims=True)
  own = gaussians(SEED, KEY, np.arange(16 * FOLD)[:, None], np.arange(size)[None])
  greatest = [(x @ directions.T).max(0).mean() for x in (z, own)]
  assert greatest[0] == pytest.approx(greatest[1], abs=0.06)
