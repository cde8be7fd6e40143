"""The nearest of many vectors, against all distances."""

import sys

import numpy as np

from ddpm_jax.data.digits import load_digits, make_digits_source
from ddpm_jax.evaluation.figures.neighbours import PixelRows, nearest

MODULE = sys.modules[nearest.__module__]  # whose name in its package is that of the figure


def test_nearest_is_found_across_blocks(monkeypatch):
  monkeypatch.setattr(MODULE, 'BLOCK', 7)
  rng = np.random.default_rng(0)
  others = rng.normal(size=(50, 3))
  distances, indices = nearest(others[[30, 3]], others, 4)
  assert indices[:, 0].tolist() == [30, 3]
  np.testing.assert_allclose(distances[:, 0], 0, atol=1e-7)
  brute = np.linalg.norm(others[[30, 3], None] - others[None], axis=-1)
  np.testing.assert_array_equal(indices, np.argsort(brute, axis=1)[:, :4])
  np.testing.assert_allclose(distances, np.sort(brute, axis=1)[:, :4], atol=1e-7)


def test_the_first_of_equals_is_the_nearest(monkeypatch):
  monkeypatch.setattr(MODULE, 'BLOCK', 3)
  others = np.zeros((10, 2), np.float32)
  distances, indices = nearest(np.ones((1, 2), np.float32), others, 10)
  assert indices.tolist() == [list(range(10))]
  np.testing.assert_allclose(distances, np.full((1, 10), np.sqrt(2)))


def test_pixels_of_a_source_are_its_images_as_vectors():
  rows = PixelRows(make_digits_source(image_size=8, channels=1, split='test'))
  images, _ = load_digits('test')
  assert len(rows) == len(images)
  np.testing.assert_array_equal(rows[290:400], images[290:].reshape(10, 64))
