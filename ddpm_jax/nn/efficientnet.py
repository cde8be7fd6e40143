"""EfficientNet-Lite0, a classifier of ImageNet whose features tell real pictures apart, in Flax.

The network of Tan and Le 2019 (arXiv 1905.11946) without squeeze-and-excitation and with ReLU6, as
TensorFlow's efficientnet/lite has it. Every convolution is followed by a batch norm in inference,
whose affine is folded into the convolution when weights are loaded (see
interop/torch_efficientnet.py). Modules bear the names of the published weights, so
`blocks_3/expand_conv/kernel` here is `_blocks.3._expand_conv.weight` there.

TensorFlow's program cuts the middle out of a picture (87.5% of the shorter side) before it resizes
it, without antialiasing. Features that measure pictures take all of the picture, with antialiasing:
what lies at the edge counts, and a coarser grid of pixels is not taken for detail.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

IMAGE_SIZE = 224
_PRECISION = jax.lax.Precision.HIGHEST  # as inception.py's


class Stage(NamedTuple):
  """Blocks of the same number of channels; the stride is the first one's."""

  num_blocks: int
  kernel_size: int
  stride: int
  expansion: int
  channels: int


LITE0 = (
  Stage(1, 3, 1, 1, 16),
  Stage(2, 3, 2, 6, 24),
  Stage(2, 5, 2, 6, 40),
  Stage(3, 3, 2, 6, 80),
  Stage(3, 5, 1, 6, 112),
  Stage(4, 5, 2, 6, 192),
  Stage(1, 3, 1, 6, 320),
)


def resize_bicubic(images: jax.Array, size: int = IMAGE_SIZE) -> jax.Array:
  """Resizes as Pillow's BICUBIC: pixels have centres, and antialiasing where it makes smaller.

  Args:
    images: uint8 or float [B, H, W, C].
    size: height and width of the output, in pixels.

  Returns:
    float32 [B, size, size, C]; beside edges up to a tenth beyond the range of `images`.
  """
  shape = (images.shape[0], size, size, images.shape[3])
  return jax.image.resize(images.astype(jnp.float32), shape, 'cubic', precision=_PRECISION)


def _conv(x, features, kernel_size, name, *, stride=1):
  return nn.Conv(
    features,
    (kernel_size, kernel_size),
    strides=(stride, stride),
    precision=_PRECISION,
    name=name,
  )(x)


class DepthwiseConv(nn.Module):
  """A convolution of each channel by itself, padded as TensorFlow's SAME, with a bias.

  The sum over the kernel is written out, in products of shifted pictures: on a CPU, XLA's own
  convolution of groups takes two to fourteen times as long.
  """

  kernel_size: int
  stride: int

  @nn.compact
  def __call__(self, x):
    """[B, H, W, C] -> [B, H / stride, W / stride, C], rounded up."""
    size, stride, (batch, *shape, channels) = self.kernel_size, self.stride, x.shape
    kernel = self.param('kernel', nn.initializers.lecun_normal(), (size, size, 1, channels))
    bias = self.param('bias', nn.initializers.zeros, (channels,))
    pads = jax.lax.padtype_to_pads(shape, (size, size), (stride, stride), 'SAME')
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = (stride * ((length - 1) // stride) + 1 for length in shape)
    y = jnp.broadcast_to(bias, (batch, -(-shape[0] // stride), -(-shape[1] // stride), channels))
    for i in range(size):
      for j in range(size):
        shifted = x[:, i : i + rows : stride, j : j + columns : stride]
        y += shifted * kernel[i, j, None, None]
    return y


class Block(nn.Module):
  """An inverted bottleneck: more channels, a convolution of each, fewer channels."""

  kernel_size: int
  stride: int
  expansion: int
  channels: int

  @nn.compact
  def __call__(self, x):
    """[B, H, W, C] -> [B, H / stride, W / stride, channels], rounded up."""
    inner, y = self.expansion * x.shape[-1], x
    if self.expansion != 1:
      y = nn.relu6(_conv(y, inner, 1, 'expand_conv'))
    y = nn.relu6(DepthwiseConv(self.kernel_size, self.stride, name='depthwise_conv')(y))
    y = _conv(y, self.channels, 1, 'project_conv')
    return x + y if y.shape == x.shape else y


class EfficientNetLite(nn.Module):
  """Features and logits of pictures; for inference only. By default that of Lite0."""

  stages: Sequence[Stage] = LITE0
  stem_channels: int = 32
  num_features: int = 1280
  num_classes: int = 1000
  image_size: int = IMAGE_SIZE

  @nn.compact
  def __call__(self, images):
    """Applies the network.

    Args:
      images: uint8 or float [B, H, W, 3] in [0, 255]; any size, resized here.

    Returns:
      dict of features float32 [B, num_features], means over the pixels after the last convolution,
      and logits float32 [B, num_classes].
    """
    x = (resize_bicubic(images, self.image_size) - 127) / 128
    x = nn.relu6(_conv(x, self.stem_channels, 3, 'conv_stem', stride=2))
    number = 0
    for stage in self.stages:
      for index in range(stage.num_blocks):
        stride = stage.stride if index == 0 else 1
        x = Block(
          stage.kernel_size, stride, stage.expansion, stage.channels, name=f'blocks_{number}'
        )(x)
        number += 1
    x = nn.relu6(_conv(x, self.num_features, 1, 'conv_head'))
    features = x.mean((1, 2))
    logits = nn.Dense(self.num_classes, precision=_PRECISION, name='fc')(features)
    return {'features': features, 'logits': logits}
