"""A small classifier of the embedded digits, whose features stand in for Inception's there.

Its weights are in digits_classifier.npz; scripts/train_digits_classifier.py made them.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.errors import UserError

IMAGE_SHAPE = (8, 8, 1)
NUM_FEATURES = 64
NUM_CLASSES = 10
_PRECISION = jax.lax.Precision.HIGHEST  # as inception.py's


class DigitsClassifier(nn.Module):
  """Three convolutions and a layer of 64 features."""

  @nn.compact
  def __call__(self, images):
    """Classifies.

    Args:
      images: [B, 8, 8, 1] of values 0..255, uint8 or float32.

    Returns:
      dict of features float32 [B, 64] and logits float32 [B, 10].
    """
    if images.shape[1:] != IMAGE_SHAPE:
      raise UserError(f'images are {images.shape[1:]}; the digits classifier takes {IMAGE_SHAPE}')
    x = images.astype(jnp.float32) / 127.5 - 1.0
    for features, strides in ((16, 1), (32, 2), (32, 1)):
      x = nn.swish(nn.Conv(features, (3, 3), strides=(strides, strides), precision=_PRECISION)(x))
    x = x.reshape(x.shape[0], -1)
    features = jnp.tanh(nn.Dense(NUM_FEATURES, precision=_PRECISION)(x))  # no unit can die
    logits = nn.Dense(NUM_CLASSES, precision=_PRECISION)(features)
    return {'features': features, 'logits': logits}
