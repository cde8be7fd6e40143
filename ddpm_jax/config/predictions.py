"""A model's predictions on some of its training data, for what is fitted to it."""

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import devices
from ddpm_jax.codec.table import Predict
from ddpm_jax.config import build
from ddpm_jax.diffusion import NoiseSchedule
from ddpm_jax.evaluation.weights import Weights
from ddpm_jax.nn.own import OwnNetwork

SMALL_EXAMPLE = 1024  # elements
NUM_EXAMPLES = {True: 512, False: 128}  # of training data, for small examples and for others


def predict_of(
  config: ConfigDict,
  weights: Weights,
  network: OwnNetwork | None = None,
  *,
  clip: str = 'static',
  noise: NoiseSchedule | None = None,
) -> Predict:
  """(x_t float32 [N, ...], t) -> x_0, in batches of config.sample.batch_size.

  Args:
    config: ConfigDict.
    weights: Weights.
    network: one's own, in place of the U-Net.
    clip: one of CLIPS.
    noise: whose rows t are; None for the model's schedule.
  """
  denoiser_of = build.denoiser_of(config, clip, network, noise)

  def x_0(params, x_t, t):
    return denoiser_of(params)(x_t, t).x_0

  step = devices.compile_batch_fn(x_0, in_axes=(None, 0, 0))

  def predict(x_t, t):
    rows, found = len(x_t), []
    # One of few sizes, each of which compiles once.
    needed = min(config.sample.batch_size, 1 << (rows - 1).bit_length())
    size = devices.fitting_batch_sizes(needed, needed).host
    for first in range(0, rows, size):
      part = x_t[first : first + size]
      padded = np.concatenate([part, np.zeros((size - len(part), *x_t.shape[1:]), np.float32)])
      batch = devices.split_over_devices((padded, np.full(size, t, np.int32)))
      found.append(devices.gather_from_devices(step(weights.params, *batch))[: len(part)])
    return np.concatenate(found)

  return predict


def training_examples(config: ConfigDict) -> np.ndarray:
  """Some of the training data [N, ..., C], from all parts of it, as sources read them."""
  source = build.source(config)
  is_small = np.prod(build.image_shape(config)) <= SMALL_EXAMPLE
  count = min(len(source), NUM_EXAMPLES[bool(is_small)])
  return source.read(np.arange(count) * len(source) // count)
