"""A small convolutional classifier of examples with any number of spatial axes.

Trained, its features stand in for Inception's; untrained, its convolutions are a network of
features for data without labels.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.forward import scale_levels

WIDTHS = (32, 64, 64)  # of the convolutions, each at half of the positions of the one before
NUM_FEATURES = 64
_PRECISION = jax.lax.Precision.HIGHEST  # as inception.py's


class Classifier(nn.Module):
  """Convolutions of stride 2, their means and maxima over all positions, a layer of features.

  Attributes:
    num_classes: of the logits.
    levels: of the examples' values, as scale_levels takes them.
    kernel_size: along each axis.
  """

  num_classes: int
  levels: int | None
  kernel_size: int = 5

  @nn.compact
  def __call__(self, examples):
    """Classifies.

    Args:
      examples: [B, ..., C], levels from 0 on; or x_0, of values of any kind.

    Returns:
      dict of pooled float32 [B, sum of WIDTHS], the means of each layer's units over all positions;
      features float32 [B, 64]; and logits float32 [B, num_classes].
    """
    channels, num_axes = examples.shape[-1], examples.ndim - 2
    mean = self.param('mean', nn.initializers.zeros, (channels,))
    deviation = self.param('deviation', nn.initializers.ones, (channels,))
    mean, deviation = (jnp.expand_dims(x, range(num_axes + 1)) for x in (mean, deviation))
    x = (scale_levels(examples, self.levels) - mean) / deviation
    positions, pooled = tuple(range(1, num_axes + 1)), []
    for width in WIDTHS:
      convolution = nn.Conv(
        width, (self.kernel_size,) * num_axes, strides=(2,) * num_axes, precision=_PRECISION
      )
      x = nn.relu(convolution(x))
      pooled.append(x.mean(axis=positions))
    summary = jnp.concatenate([pooled[-1], x.max(axis=positions)], axis=-1)
    features = jnp.tanh(nn.Dense(NUM_FEATURES, precision=_PRECISION)(summary))  # no unit can die
    logits = nn.Dense(self.num_classes, precision=_PRECISION)(features)
    return {
      'pooled': jnp.concatenate(pooled, axis=-1),
      'features': features,
      'logits': logits,
    }


def random_params(network: Classifier, x_0: np.ndarray) -> dict[str, Any]:
  """He's normal weights and no biases, the same on every platform.

  Args:
    network: Classifier.
    x_0: float [N, ..., C], examples whose mean and deviation in each channel inputs are freed of.
  """
  rng = np.random.default_rng(0)
  params: dict[str, Any] = jax.eval_shape(network.init, jax.random.key(0), x_0[:1])['params']

  def draw(leaf):
    if leaf.ndim == 1:
      return np.zeros(leaf.shape, np.float32)
    std = np.sqrt(2 / np.prod(leaf.shape[:-1]))
    return (std * rng.standard_normal(leaf.shape)).astype(np.float32)

  return jax.tree.map(draw, params) | standardisation(x_0)


def standardisation(x_0: np.ndarray) -> dict[str, np.ndarray]:
  """The parameters mean and deviation, float32 [C], of examples float [N, ..., C]."""
  values = np.asarray(x_0, np.float64).reshape(-1, x_0.shape[-1])
  deviation = values.std(axis=0)
  deviation[deviation == 0] = 1.0
  moments = {'mean': values.mean(axis=0), 'deviation': deviation}
  return {name: np.asarray(moment, np.float32) for name, moment in moments.items()}
