"""The U-Net of the original program (Appendix B, Ho et al. 2020), channels last, in Flax.

Pictures [B, H, W, C] are the original's; signals [B, L, C] and volumes [B, D, H, W, C] go through
the same code, every kernel being 3 along each spatial axis.

Modules bear the original's variable names, so that `down_0_block_1/conv1/kernel` here is
`down_0/block_1/conv1/W` there (see interop/tf_ddpm.py).

Parameters are float32. With dtype=bfloat16 the convolutions and matrix products compute in
bfloat16; norms, softmax, the timestep embedding and the output stay float32.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.nn import chunks, norms, winograd

NUM_GROUPS = 32  # the original's
NORM_EPSILON = 1e-6  # the default of TF 1's contrib group_norm
MAX_PERIOD = 10_000
ZERO_SCALE = 1e-10  # the original's "zero" initialiser


def timestep_embedding(t: jax.Array, dim: int) -> jax.Array:
  """Sinusoidal embedding [sin | cos] of integer timesteps (Vaswani et al. 2017).

  Follows the original program: frequencies 10000^(-k / (half - 1)), and one column of zeros if dim
  is odd.

  Args:
    t: int [B], not scaled; or float [B].
    dim: at least 4.

  Returns:
    float32 [B, dim].
  """
  half = dim // 2
  frequencies = jnp.exp(-jnp.log(MAX_PERIOD) / (half - 1) * jnp.arange(half, dtype=jnp.float32))
  angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
  embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
  return jnp.pad(embedding, ((0, 0), (0, dim % 2)))


def _kernel_init(scale=1.0):
  return nn.initializers.variance_scaling(scale, 'fan_avg', 'uniform')


def _conv(features, num_axes, *, dtype, name, strides=1, scale=1.0, convolve=None):
  # TF's SAME: with stride 2 on an even size it pads 0 before and 1 after.
  return nn.Conv(
    features,
    (3,) * num_axes,
    strides=(strides,) * num_axes,
    padding='SAME',
    dtype=dtype,
    kernel_init=_kernel_init(scale),
    name=name,
    conv_general_dilated=convolve,
  )


def _cpu_conv(x, kernel, strides, padding, **kwargs):
  """As lax.conv_general_dilated, of what XLA has a fast path for on a CPU: not of volumes.

  Each plane of a volume becomes a picture with the channels of its neighbours, too.
  """
  if x.ndim != 5:
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **kwargs)
  (sides, *_) = jax.lax.padtype_to_pads(x.shape[1:-1], kernel.shape[:-2], strides, padding)
  x = jnp.pad(x, ((0, 0), sides, (0, 0), (0, 0), (0, 0)))
  taps, last = len(kernel), x.shape[1] - len(kernel)
  x = jnp.concatenate(
    [jax.lax.slice_in_dim(x, i, i + last + 1, strides[0], axis=1) for i in range(taps)], axis=-1
  )
  pictures = x.reshape(-1, *x.shape[2:])
  y = jax.lax.conv_general_dilated(
    pictures,
    jnp.moveaxis(kernel, 0, 2).reshape(*kernel.shape[1:3], pictures.shape[-1], -1),
    strides[1:],
    padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  return y.reshape(*x.shape[:2], *y.shape[1:])


def _winograd_conv(x, kernel, *args, **kwargs):
  if not winograd.applies(x.shape, kernel.shape):
    return _cpu_conv(x, kernel, *args, **kwargs)
  return winograd.conv3(x, kernel)


def _winograd_upsample_conv(x, kernel, *args, **kwargs):
  del args, kwargs
  return winograd.upsample_conv3(x, kernel)


def _dense(features, *, dtype, name, scale=1.0):
  return nn.Dense(features, dtype=dtype, kernel_init=_kernel_init(scale), name=name)


def _norm(num_groups, name):
  # Two-pass variance, as in TF: E[x^2] - E[x]^2 loses digits.
  return nn.GroupNorm(
    num_groups, epsilon=NORM_EPSILON, dtype=jnp.float32, use_fast_variance=False, name=name
  )


def _norm_swish(num_groups, name, *, on_cpu):
  if on_cpu:
    return norms.GroupNormSwish(num_groups, NORM_EPSILON, name=name)
  norm = _norm(num_groups, name)
  return lambda x: nn.swish(norm(x))


class ExampleDropout(nn.Module):
  """Dropout whose masks are drawn per example, from the example's row in the global batch.

  So the masks do not depend on how the batch is split over devices.
  """

  rate: float

  @nn.compact
  def __call__(self, x, rows, *, train):
    """x [B, ...]; rows int [B], the key of each example's mask."""
    if not train or self.rate == 0.0:
      return x
    key = self.make_rng('dropout')

    def keep_mask(row):
      return jax.random.bernoulli(jax.random.fold_in(key, row), 1.0 - self.rate, x.shape[1:])

    return jnp.where(jax.vmap(keep_mask)(rows), x / (1.0 - self.rate), 0)


class ResnetBlock(nn.Module):
  """norm-swish-conv, plus the timestep, norm-swish-dropout-conv, plus the (projected) input."""

  features: int
  dropout: float
  dtype: Any
  on_cpu: bool = False
  num_groups: int = NUM_GROUPS

  @nn.compact
  def __call__(self, x, temb, rows, train):
    """x [B, ..., C], temb [B, D], rows int [B] -> [B, ..., features]."""
    conv = functools.partial(
      _conv,
      self.features,
      x.ndim - 2,
      dtype=self.dtype,
      convolve=_winograd_conv if self.on_cpu else None,
    )
    norm_swish = functools.partial(_norm_swish, self.num_groups, on_cpu=self.on_cpu)
    h = norm_swish('norm1')(x).astype(self.dtype)
    h = conv(name='conv1')(h)
    temb = _dense(self.features, dtype=self.dtype, name='temb_proj')(nn.swish(temb))
    h = h + jnp.expand_dims(temb, range(1, x.ndim - 1))
    h = norm_swish('norm2')(h).astype(self.dtype)
    h = ExampleDropout(self.dropout, name='dropout')(h, rows, train=train)
    h = conv(name='conv2', scale=ZERO_SCALE)(h)
    if x.shape[-1] != self.features:
      x = _dense(self.features, dtype=self.dtype, name='nin_shortcut')(x)
    return x + h


class AttnBlock(nn.Module):
  """Self-attention over all positions, one head, inside a residual connection."""

  dtype: Any
  num_groups: int = NUM_GROUPS

  @nn.compact
  def __call__(self, x):
    """[B, ..., C] -> [B, ..., C]."""
    batch, *axes, channels = x.shape
    h = _norm(self.num_groups, 'norm')(x).astype(self.dtype)
    h = h.reshape(batch, math.prod(axes), channels)
    q = _dense(channels, dtype=self.dtype, name='q')(h)
    k = _dense(channels, dtype=self.dtype, name='k')(h)
    v = _dense(channels, dtype=self.dtype, name='v')(h)
    logits = jnp.einsum('bqc,bkc->bqk', q, k, preferred_element_type=jnp.float32)
    weights = nn.softmax(logits * channels**-0.5, axis=-1).astype(self.dtype)
    h = jnp.einsum('bqk,bkc->bqc', weights, v)
    h = _dense(channels, dtype=self.dtype, name='proj_out', scale=ZERO_SCALE)(h)
    return x + h.reshape(x.shape)


class Downsample(nn.Module):
  """Halves each axis: a convolution of stride 2, or the mean of pairs along each."""

  with_conv: bool
  dtype: Any
  on_cpu: bool = False

  @nn.compact
  def __call__(self, x):
    """[B, H, W, C] -> [B, H/2, W/2, C], and so for any number of axes."""
    if self.with_conv:
      convolve = _cpu_conv if self.on_cpu else None
      conv = functools.partial(_conv, strides=2, convolve=convolve)
      return conv(x.shape[-1], x.ndim - 2, dtype=self.dtype, name='conv')(x)
    pairs = (2,) * (x.ndim - 2)
    return nn.avg_pool(x, pairs, strides=pairs)


class Upsample(nn.Module):
  """Doubles each axis by repeating each value, then convolves if asked to."""

  with_conv: bool
  dtype: Any
  on_cpu: bool = False

  @nn.compact
  def __call__(self, x):
    """[B, H, W, C] -> [B, 2H, 2W, C], and so for any number of axes."""
    conv = functools.partial(_conv, x.shape[-1], x.ndim - 2, dtype=self.dtype, name='conv')
    if self.with_conv and self.on_cpu and x.ndim > 3:
      return conv(convolve=_winograd_upsample_conv)(x)
    for axis in range(1, x.ndim - 1):
      x = x.repeat(2, axis=axis)
    return conv()(x) if self.with_conv else x


class UNet(nn.Module):
  """Predicts, from x_t and t, the noise (or what its Parameterization says), [B, ..., out_ch].

  Attributes:
    ch: base width; every level has a multiple of it. All widths are multiples of num_groups.
    ch_mult: width of each level over ch; the number of levels is its length.
    num_res_blocks: residual blocks a level on the way down, and one more on the way up.
    attn_resolutions: lengths of the first axis at which each residual block is followed by
      attention. The middle has one attention block whatever they are.
    out_ch: channels of the output.
    dropout: rate, in training.
    resamp_with_conv: resample with a convolution.
    dtype: of the computation; parameters are float32.
    remat: keep the input of each block alone for the backward pass: less memory, more time.
    on_cpu: convolve as winograd.py does, and norm as norms.py: faster on a CPU, equal to rounding.
    num_groups: of channels, which a norm takes together.
    num_classes: of the labels; None for a network without. The embedding of a label is added to
      that of the timestep. Its table has one row more, of examples without a label.
  """

  ch: int
  ch_mult: tuple[int, ...]
  num_res_blocks: int
  attn_resolutions: tuple[int, ...]
  out_ch: int
  dropout: float = 0.0
  resamp_with_conv: bool = True
  dtype: Any = jnp.float32
  remat: bool = False
  on_cpu: bool = False
  num_groups: int = NUM_GROUPS
  num_classes: int | None = None

  @nn.compact
  def __call__(self, x, t, train=False, rows=None, labels=None):
    """Applies the network.

    Args:
      x: float [B, ..., C], of one, two or three spatial axes, whose lengths 2^(levels - 1) divides.
      t: int [B].
      train: apply dropout, from rngs={'dropout': key}.
      rows: int [B], each example's row in the global batch, which keys its dropout masks; by
        default 0, ..., B-1.
      labels: int [B], the class of each example, in [0, num_classes), or num_classes for none; by
        default none for all.

    Returns:
      float32 [B, ..., out_ch].
    """
    if rows is None:
      rows = jnp.arange(x.shape[0])

    # With remat, what a block computes is computed again in the backward pass, and not kept.
    resnet_block = nn.remat(ResnetBlock, static_argnums=(4,)) if self.remat else ResnetBlock
    attn_block = nn.remat(AttnBlock) if self.remat else AttnBlock

    def block(features, name):
      module = resnet_block(
        features, self.dropout, self.dtype, self.on_cpu, self.num_groups, name=name
      )
      return lambda h: module(h, temb, rows, train)

    def attend(h, name):
      if h.shape[1] not in self.attn_resolutions:
        return h
      return attn_block(self.dtype, self.num_groups, name=name)(h)

    join = chunks.concatenate if self.on_cpu else functools.partial(jnp.concatenate, axis=-1)
    temb = timestep_embedding(t, self.ch)
    temb = _dense(4 * self.ch, dtype=self.dtype, name='temb_dense0')(temb)
    temb = _dense(4 * self.ch, dtype=self.dtype, name='temb_dense1')(nn.swish(temb))
    if self.num_classes is not None:
      if labels is None:
        labels = jnp.full(x.shape[:1], self.num_classes)
      temb += nn.Embed(
        self.num_classes + 1,
        4 * self.ch,
        dtype=self.dtype,
        embedding_init=nn.initializers.normal(1.0),
        name='class_embedding',
      )(labels)

    conv = functools.partial(_conv, convolve=_cpu_conv if self.on_cpu else None)
    h = conv(self.ch, x.ndim - 2, dtype=self.dtype, name='conv_in')(x)
    skips = [h]
    last_level = len(self.ch_mult) - 1
    for level, mult in enumerate(self.ch_mult):
      for i in range(self.num_res_blocks):
        h = block(self.ch * mult, f'down_{level}_block_{i}')(h)
        h = attend(h, f'down_{level}_attn_{i}')
        skips.append(h)
      if level != last_level:
        name = f'down_{level}_downsample'
        h = Downsample(self.resamp_with_conv, self.dtype, self.on_cpu, name=name)(h)
        skips.append(h)

    h = block(h.shape[-1], 'mid_block_1')(h)
    h = attn_block(self.dtype, self.num_groups, name='mid_attn_1')(h)
    h = block(h.shape[-1], 'mid_block_2')(h)

    for level, mult in reversed(list(enumerate(self.ch_mult))):
      for i in range(self.num_res_blocks + 1):
        h = join([h, skips.pop()])
        h = block(self.ch * mult, f'up_{level}_block_{i}')(h)
        h = attend(h, f'up_{level}_attn_{i}')
      if level != 0:
        name = f'up_{level}_upsample'
        h = Upsample(self.resamp_with_conv, self.dtype, self.on_cpu, name=name)(h)

    h = _norm_swish(self.num_groups, 'norm_out', on_cpu=self.on_cpu)(h)
    return conv(self.out_ch, h.ndim - 2, dtype=jnp.float32, name='conv_out', scale=ZERO_SCALE)(h)
