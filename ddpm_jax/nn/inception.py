"""InceptionV3 features for FID and IS: the TensorFlow graph of 2015-12-05, NHWC, in Flax.

Every convolution is followed by a batch norm in inference (epsilon 0.001) and ReLU; the norm's
affine is folded into the convolution when weights are loaded (see interop/torch_inception.py).
Modules bear the names of the published weights, so `Mixed_5b/branch1x1/kernel` here is
`Mixed_5b.branch1x1.conv.weight` there.

What this graph has and the later InceptionV3 has not: 1008 logits, average pools that do not count
the padding, a max pool in the last block, and images resized as TensorFlow 1 did.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

IMAGE_SIZE = 299
NUM_LOGITS = 1008
# Features decide about the third digit of an FID: no bfloat16 or TF32 in their products.
_PRECISION = jax.lax.Precision.HIGHEST


def resize_bilinear_tf1(images: jax.Array, size: int = IMAGE_SIZE) -> jax.Array:
  """Resizes as TensorFlow 1: no half-pixel centres, corners not aligned, no antialiasing.

  Row i of the output lies at row i * H / size of the input.

  Args:
    images: uint8 or float [B, H, W, C].
    size: height and width of the output, in pixels.

  Returns:
    float32 [B, size, size, C], in the range of `images`.
  """
  images = images.astype(jnp.float32)
  rows = jnp.asarray(_interpolation_matrix(images.shape[1], size), jnp.float32)
  columns = jnp.asarray(_interpolation_matrix(images.shape[2], size), jnp.float32)
  images = jnp.einsum('ih,bhwc->biwc', rows, images, precision=_PRECISION)
  return jnp.einsum('jw,biwc->bijc', columns, images, precision=_PRECISION)


def _interpolation_matrix(old, new):
  """float64 [new, old]: each row has the weights of the two neighbours, which sum to 1."""
  position = np.arange(new) * (old / new)
  lower = np.floor(position).astype(int)
  upper = np.minimum(lower + 1, old - 1)
  eye = np.eye(old)
  fraction = (position - lower)[:, None]
  return (1 - fraction) * eye[lower] + fraction * eye[upper]


def _conv(x, features, kernel_size, name, *, strides=1, padding='SAME'):
  conv = nn.Conv(
    features,
    kernel_size,
    strides=(strides, strides),
    padding=padding,
    precision=_PRECISION,
    name=name,
  )
  return nn.relu(conv(x))


def _avg_pool(x):
  return nn.avg_pool(x, (3, 3), strides=(1, 1), padding='SAME', count_include_pad=False)


def _max_pool(x, *, strides=2, padding='VALID'):
  return nn.max_pool(x, (3, 3), strides=(strides, strides), padding=padding)


def _concatenate(*branches):
  return jnp.concatenate(branches, axis=-1)


class BlockA(nn.Module):
  """35 x 35 pixels: branches of 1 x 1, 5 x 5 and twice 3 x 3."""

  pool_features: int

  @nn.compact
  def __call__(self, x):
    """[B, 35, 35, C] -> [B, 35, 35, 224 + pool_features]."""
    narrow = _conv(x, 64, (1, 1), 'branch1x1')
    wide = _conv(x, 48, (1, 1), 'branch5x5_1')
    wide = _conv(wide, 64, (5, 5), 'branch5x5_2')
    double = _conv(x, 64, (1, 1), 'branch3x3dbl_1')
    double = _conv(double, 96, (3, 3), 'branch3x3dbl_2')
    double = _conv(double, 96, (3, 3), 'branch3x3dbl_3')
    pool = _conv(_avg_pool(x), self.pool_features, (1, 1), 'branch_pool')
    return _concatenate(narrow, wide, double, pool)


class BlockB(nn.Module):
  """From 35 x 35 to 17 x 17 pixels."""

  @nn.compact
  def __call__(self, x):
    """[B, 35, 35, C] -> [B, 17, 17, 480 + C]."""
    wide = _conv(x, 384, (3, 3), 'branch3x3', strides=2, padding='VALID')
    double = _conv(x, 64, (1, 1), 'branch3x3dbl_1')
    double = _conv(double, 96, (3, 3), 'branch3x3dbl_2')
    double = _conv(double, 96, (3, 3), 'branch3x3dbl_3', strides=2, padding='VALID')
    return _concatenate(wide, double, _max_pool(x))


class BlockC(nn.Module):
  """17 x 17 pixels: 7 x 7 as 1 x 7 and 7 x 1, with `features` channels between them."""

  features: int

  @nn.compact
  def __call__(self, x):
    """[B, 17, 17, C] -> [B, 17, 17, 768]."""
    narrow = _conv(x, 192, (1, 1), 'branch1x1')
    wide = _conv(x, self.features, (1, 1), 'branch7x7_1')
    wide = _conv(wide, self.features, (1, 7), 'branch7x7_2')
    wide = _conv(wide, 192, (7, 1), 'branch7x7_3')
    double = _conv(x, self.features, (1, 1), 'branch7x7dbl_1')
    double = _conv(double, self.features, (7, 1), 'branch7x7dbl_2')
    double = _conv(double, self.features, (1, 7), 'branch7x7dbl_3')
    double = _conv(double, self.features, (7, 1), 'branch7x7dbl_4')
    double = _conv(double, 192, (1, 7), 'branch7x7dbl_5')
    pool = _conv(_avg_pool(x), 192, (1, 1), 'branch_pool')
    return _concatenate(narrow, wide, double, pool)


class BlockD(nn.Module):
  """From 17 x 17 to 8 x 8 pixels."""

  @nn.compact
  def __call__(self, x):
    """[B, 17, 17, C] -> [B, 8, 8, 512 + C]."""
    wide = _conv(x, 192, (1, 1), 'branch3x3_1')
    wide = _conv(wide, 320, (3, 3), 'branch3x3_2', strides=2, padding='VALID')
    widest = _conv(x, 192, (1, 1), 'branch7x7x3_1')
    widest = _conv(widest, 192, (1, 7), 'branch7x7x3_2')
    widest = _conv(widest, 192, (7, 1), 'branch7x7x3_3')
    widest = _conv(widest, 192, (3, 3), 'branch7x7x3_4', strides=2, padding='VALID')
    return _concatenate(wide, widest, _max_pool(x))


class BlockE(nn.Module):
  """8 x 8 pixels: 1 x 3 and 3 x 1 side by side. The last block has a max pool, as in the graph."""

  max_pool: bool

  @nn.compact
  def __call__(self, x):
    """[B, 8, 8, C] -> [B, 8, 8, 2048]."""
    narrow = _conv(x, 320, (1, 1), 'branch1x1')
    wide = _conv(x, 384, (1, 1), 'branch3x3_1')
    wide_a = _conv(wide, 384, (1, 3), 'branch3x3_2a')
    wide_b = _conv(wide, 384, (3, 1), 'branch3x3_2b')
    double = _conv(x, 448, (1, 1), 'branch3x3dbl_1')
    double = _conv(double, 384, (3, 3), 'branch3x3dbl_2')
    double_a = _conv(double, 384, (1, 3), 'branch3x3dbl_3a')
    double_b = _conv(double, 384, (3, 1), 'branch3x3dbl_3b')
    pool = _max_pool(x, strides=1, padding='SAME') if self.max_pool else _avg_pool(x)
    pool = _conv(pool, 192, (1, 1), 'branch_pool')
    return _concatenate(narrow, wide_a, wide_b, double_a, double_b, pool)


class InceptionV3(nn.Module):
  """Features of images, from the early layers to the logits; for inference only."""

  @nn.compact
  def __call__(self, images):
    """Applies the network.

    Args:
      images: uint8 or float [B, H, W, 3] in [0, 255]; any size, resized here.

    Returns:
      A dict of float32 arrays: '64', '192', '768' and '2048' [B, that number], means over the
      pixels after that layer ('2048' is pool_3, of FID and KID); 'logits' [B, 1008]; and
      'logits_unbiased' [B, 1008], the same without the bias (of IS).
    """
    x = resize_bilinear_tf1(images)
    x = (x - 128) / 128
    x = _conv(x, 32, (3, 3), 'Conv2d_1a_3x3', strides=2, padding='VALID')
    x = _conv(x, 32, (3, 3), 'Conv2d_2a_3x3', padding='VALID')
    x = _conv(x, 64, (3, 3), 'Conv2d_2b_3x3')
    x = _max_pool(x)
    features = {'64': x.mean((1, 2))}
    x = _conv(x, 80, (1, 1), 'Conv2d_3b_1x1')
    x = _conv(x, 192, (3, 3), 'Conv2d_4a_3x3', padding='VALID')
    x = _max_pool(x)
    features['192'] = x.mean((1, 2))
    x = BlockA(32, name='Mixed_5b')(x)
    x = BlockA(64, name='Mixed_5c')(x)
    x = BlockA(64, name='Mixed_5d')(x)
    x = BlockB(name='Mixed_6a')(x)
    x = BlockC(128, name='Mixed_6b')(x)
    x = BlockC(160, name='Mixed_6c')(x)
    x = BlockC(160, name='Mixed_6d')(x)
    x = BlockC(192, name='Mixed_6e')(x)
    features['768'] = x.mean((1, 2))
    x = BlockD(name='Mixed_7a')(x)
    x = BlockE(max_pool=False, name='Mixed_7b')(x)
    x = BlockE(max_pool=True, name='Mixed_7c')(x)
    features['2048'] = x.mean((1, 2))
    fc = nn.Dense(NUM_LOGITS, use_bias=False, precision=_PRECISION, name='fc')
    bias = self.param('fc_bias', nn.initializers.zeros, (NUM_LOGITS,))
    features['logits_unbiased'] = fc(features['2048'])
    features['logits'] = features['logits_unbiased'] + bias[None, :]
    return features
