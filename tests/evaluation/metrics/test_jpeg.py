"""JPEG leaves its mark, and nothing else does."""

import io

import numpy as np
import PIL.Image
import pytest

from ddpm_jax.evaluation.metrics.jpeg import LIMIT, blockiness


@pytest.fixture(scope='module')
def smooth_images():
  """Random pictures of soft shapes, uint8 [300, 32, 32, 3]."""
  noise = np.random.default_rng(0).normal(size=(300, 64, 64, 3))
  spectrum = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))[None, :, :, None]
  images = np.fft.ifft2(np.fft.fft2(noise, axes=(1, 2)) / (spectrum + 0.02), axes=(1, 2)).real
  images = images[:, 5:37, 3:35]  # no period
  images = 128 + 50 * (images - images.mean()) / images.std()
  return np.clip(np.rint(images), 0, 255).astype(np.uint8)


def through_jpeg(images, quality):
  def encode(image):
    stream = io.BytesIO()
    PIL.Image.fromarray(image).save(stream, 'JPEG', quality=quality)
    return np.asarray(PIL.Image.open(stream))

  return np.stack([encode(image) for image in images])


def test_untouched_images_are_within_the_limit(smooth_images):
  assert blockiness(smooth_images) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize('quality', [50, 75])
def test_jpeg_is_beyond_the_limit(smooth_images, quality):
  assert blockiness(through_jpeg(smooth_images, quality)) > LIMIT


def test_blocks_elsewhere_are_not_taken_for_jpeg(smooth_images):
  images = through_jpeg(smooth_images, 50)
  assert blockiness(images[:, 3:, 3:]) < LIMIT


def test_images_that_cannot_tell_give_nan():
  assert np.isnan(blockiness(np.zeros((2, 32, 32, 3), np.uint8)))
  assert np.isnan(blockiness(np.ones((2, 8, 8, 1), np.uint8)))
