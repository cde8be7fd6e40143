"""The main job on the embedded data set, as `make digits` does it."""

import numpy as np
import pytest

from configs import digits
from ddpm_jax.data.digits import load_digits
from ddpm_jax.modes.sample import sample
from ddpm_jax.modes.train import train


def nearest(images, others):
  """Distance to, and index of, the nearest of others by pixels; an image is not its own nearest."""
  a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (images, others))
  squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
  distances = np.sqrt(np.maximum(squares, 0))
  if images is others:
    np.fill_diagonal(distances, np.inf)
  return distances.min(axis=1), distances.argmin(axis=1)


@pytest.mark.slow
def test_samples_are_digits_of_all_ten_classes(tmp_path):
  config = digits.get_config()
  config.train.sample_every_steps = 0
  train(config, tmp_path)
  sample(config, tmp_path)
  (file,) = tmp_path.glob('samples/step_00001600/ancestral-1000_*/samples.npz')
  samples = np.load(file)['samples']
  assert samples.shape == (100, 8, 8, 1)

  images, labels = load_digits('all')
  distance, neighbour = nearest(samples, images)
  between_real, _ = nearest(images, images)
  assert np.median(distance) < 1.35 * np.median(between_real)  # noise is at 3.5 times
  assert set(labels[neighbour]) == set(range(10))
  assert distance.min() > 0  # none is a copy
