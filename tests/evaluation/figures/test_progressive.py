"""The predictions of x_0 on the way of a chain."""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.evaluation.figures.progressive import make_progressive_fn
from tests.tiny import SCHEDULE, SHAPE, denoiser_of, draw_samples, in_one_piece, live_params


def test_progressive_predictions_end_in_the_sample():
  step = in_one_piece(
    make_progressive_fn(denoiser_of, SCHEDULE, SHAPE, every_steps=2, variance='fixedlarge')
  )
  predictions = np.asarray(step(live_params(), jnp.arange(3), jax.random.key(0)).memory)
  assert predictions.shape == (3, 5, 4, 4, 1)
  # The last step's mean is its prediction, clipped.
  samples = np.clip(draw_samples([0, 1, 2]), -1, 1)
  np.testing.assert_allclose(predictions[:, 0], samples, atol=1e-5)
  changes = np.abs(np.diff(predictions, axis=1)).max(axis=(0, 2, 3, 4))
  assert (changes > 1e-3).all()
