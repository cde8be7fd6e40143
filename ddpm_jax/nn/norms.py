"""Group norm (Wu & He 2018) and swish on a CPU, a few examples at a time, which stay in the cache.

Equal to Flax's to rounding, and twice as fast. Sums over positions come first, channel by channel,
and are joined to groups after that: a group's few channels alone are too short for vectors. The
backward pass needs nothing but the input, and computes the rest again.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ddpm_jax.nn.chunks import over_examples


class GroupNormSwish(nn.Module):
  """swish(group norm(x)), with the parameters of Flax's GroupNorm."""

  num_groups: int
  epsilon: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, ..., C] -> [B, ..., C]."""
    scale = self.param('scale', nn.initializers.ones, x.shape[-1:])
    bias = self.param('bias', nn.initializers.zeros, x.shape[-1:])
    return group_norm_swish(x, scale, bias, self.num_groups, self.epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def group_norm_swish(
  x: jax.Array, scale: jax.Array, bias: jax.Array, num_groups: int, epsilon: float
) -> jax.Array:
  """y * sigmoid(y), y = (x - mean) / sqrt(variance + epsilon) * scale + bias.

  Args:
    x: [B, ..., C].
    scale, bias: [C].
    num_groups: of channels; mean and variance are those of a group, over all positions.
    epsilon: a number.

  Returns:
    [B, ..., C].
  """
  return _forward(x, scale, bias, num_groups, epsilon)


# Under jit, so that what a network repeats is traced once a shape.
@functools.partial(jax.jit, static_argnums=(3, 4))
def _forward(x, scale, bias, num_groups, epsilon):
  scale, bias = _channels(x, scale, bias)

  def of_chunk(x):
    normed, _ = _normed(x, num_groups, epsilon)
    y = normed * scale + bias
    return (), y * nn.sigmoid(y)

  return over_examples(of_chunk, x)[1]


def _group_norm_swish_forward(x, scale, bias, num_groups, epsilon):
  return group_norm_swish(x, scale, bias, num_groups, epsilon), (x, scale, bias)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _backward(num_groups, epsilon, saved, dout):
  x, *parameters = saved
  scale, bias = _channels(x, *parameters)

  def of_chunk(x, dout):
    normed, inverse = _normed(x, num_groups, epsilon)
    y = normed * scale + bias
    sigmoid = nn.sigmoid(y)
    dy = dout * (sigmoid * (1 + y * (1 - sigmoid)))
    dbias, dscale = _sum(dy), _sum(dy * normed)
    through_mean = _group_mean(dbias * scale, x, num_groups)
    through_variance = _group_mean(dscale * scale, x, num_groups)
    dx = inverse * (dy * scale - through_mean - normed * through_variance)
    return tuple(total.sum(axis=tuple(range(x.ndim - 1))) for total in (dscale, dbias)), dx

  (dscale, dbias), dx = over_examples(of_chunk, x, dout)
  return dx, dscale, dbias


group_norm_swish.defvjp(_group_norm_swish_forward, _backward)


def _channels(x, *parameters):
  """[C] -> [1, ..., C], each."""
  return [jnp.expand_dims(p, range(x.ndim - 1)) for p in parameters]


def _sum(x):
  """Over all positions: [B, ..., C] -> [B, 1, ..., C]."""
  return x.sum(axis=tuple(range(1, x.ndim - 1)), keepdims=True)


def _group_mean(sums, x, num_groups):
  """Of each channel's group, from sums over positions: [B, 1, ..., C] -> [B, 1, ..., C]."""
  width = x.shape[-1] // num_groups
  groups = sums.reshape(len(sums), num_groups, width).sum(axis=-1, keepdims=True)
  means = groups / (math.prod(x.shape[1:-1]) * width)
  return jnp.repeat(means, width, axis=-1).reshape(sums.shape)


def _normed(x, num_groups, epsilon):
  """((x - mean) / sqrt(variance + epsilon), 1 / sqrt(variance + epsilon))."""
  centred = x - _group_mean(_sum(x), x, num_groups)
  # Two passes: E[x^2] - E[x]^2 loses digits.
  inverse = lax.rsqrt(_group_mean(_sum(jnp.square(centred)), x, num_groups) + epsilon)
  return centred * inverse, inverse
