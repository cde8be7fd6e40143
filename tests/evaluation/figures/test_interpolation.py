"""Interpolation in the latent space, at its ends and without noise."""

import jax
import numpy as np

from ddpm_jax import devices
from ddpm_jax.diffusion.forward import scale_levels
from ddpm_jax.evaluation import stepwise
from ddpm_jax.evaluation.figures.interpolation import interpolate_batch, make_interpolate_fn
from ddpm_jax.storage.shards import Pauses
from tests.tiny import SCHEDULE, denoiser_of, live_params


def test_interpolation_at_the_ends_is_a_reconstruction_and_without_steps_the_mean():
  step = stepwise.compiled(make_interpolate_fn(denoiser_of, SCHEDULE, variance='fixedlarge'))
  params, key = devices.replicate((live_params(), jax.random.key(0)))
  images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1), np.uint8)
  weights = np.float32([0, 0.5, 1, 1])  # four: as many as a suite's devices

  def interpolate(first, second, num_steps):
    batch = {
      'images': np.repeat(images[[first]], 4, axis=0),
      'other_images': np.repeat(images[[second]], 4, axis=0),
      'weights': weights,
      'ids': np.zeros(4, np.int32),
    }
    return interpolate_batch(step, params, batch, key, num_steps, Pauses())[:3]

  mixed = interpolate(0, 1, 0)
  expected = scale_levels(images)
  np.testing.assert_allclose(mixed[[0, 2]], expected, atol=1e-6)
  np.testing.assert_allclose(mixed[1], expected.mean(axis=0), atol=1e-6)
  for num_steps in (1, 5, 10):
    there = interpolate(0, 1, num_steps)
    np.testing.assert_allclose(there, interpolate(1, 0, num_steps)[::-1], atol=1e-5)
    # The noise is the same for both images: mixing an image with itself changes nothing.
    alone = interpolate(0, 0, num_steps)
    np.testing.assert_allclose(alone, np.repeat(there[:1], 3, axis=0), atol=1e-5)
  # After one step of little noise, an image comes back nearly as it was; after all, it does not.
  errors = [np.abs(interpolate(0, 1, n)[0] - expected[0]).mean() for n in (1, 10)]
  assert errors[0] < errors[1]
