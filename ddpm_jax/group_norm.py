"""Group normalisation and swish in one, with the gradient in closed form.

Left to automatic differentiation, the two keep six arrays of the size of the image for the
backward pass, and read and write each. This keeps the input alone and computes the rest again.
"""

import functools
import math

import jax
import jax.numpy as jnp

_PARTS = 8  # of the positions, summed elementwise: such a sum fuses with what computes its terms


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def group_norm(x, scale, bias, num_groups, epsilon, swish):
  """y = (x - mean) / sqrt(variance + epsilon) * scale + bias; with swish, y * sigmoid(y).

  Mean and variance are those of an example's group of channels, over all positions. The variance
  takes a second pass: E[x^2] - E[x]^2 loses digits.

  Args:
    x: [B, ..., C], of any float type; the computation and the result are float32.
    scale, bias: float32 [C].
    num_groups: divides C.
    epsilon: added to the variance.
    swish: whether to go on with y * sigmoid(y) (Ramachandran et al. 2017).

  Returns:
    float32 [B, ..., C].
  """
  return _forward(x, scale, bias, num_groups, epsilon, swish)[0]


def _positions_in_a_row(x):
  return x.reshape(x.shape[0], -1, x.shape[-1]).astype(jnp.float32)


def _sums(terms, *arrays):
  """Sums over positions of what `terms` makes of arrays [B, S, C]: a list of [B, C]."""
  num_positions = arrays[0].shape[1]
  size = num_positions // math.gcd(_PARTS, num_positions)
  starts = range(0, num_positions, size)
  parts = [terms(*(x[:, start : start + size] for x in arrays)) for start in starts]
  return [sum(part[1:], part[0]).sum(axis=1) for part in zip(*parts, strict=True)]


def _group_means(sums, num_groups, num_positions):
  """From sums [B, C] to the mean over each channel's group, [B, 1, C]."""
  batch, channels = sums.shape
  size = channels // num_groups
  means = sums.reshape(batch, num_groups, size).sum(axis=2, keepdims=True) / (size * num_positions)
  return jnp.broadcast_to(means, (batch, num_groups, size)).reshape(batch, 1, channels)


def _forward(x, scale, bias, num_groups, epsilon, swish):
  h = _positions_in_a_row(x)
  mean = _group_means(h.sum(axis=1), num_groups, h.shape[1])
  (squares,) = _sums(lambda h: [jnp.square(h - mean)], h)
  inverse_std = jax.lax.rsqrt(_group_means(squares, num_groups, h.shape[1]) + epsilon)
  y = (h - mean) * (inverse_std * scale[None, None]) + bias[None, None]
  if swish:
    y = y * jax.nn.sigmoid(y)
  return y.reshape(x.shape), (x, scale, bias, mean, inverse_std)


def _backward(num_groups, epsilon, swish, saved, dy):
  del epsilon
  x, scale, bias, mean, inverse_std = saved
  scale, bias = scale[None, None], bias[None, None]
  h, dy = _positions_in_a_row(x), _positions_in_a_row(dy)

  def normalized_and_gradient(h, dy):
    """(x - mean) / std, and the gradient of what is scaled and shifted."""
    normalized = (h - mean) * inverse_std
    if swish:
      y = normalized * scale + bias
      sigmoid = jax.nn.sigmoid(y)
      dy = dy * (sigmoid * (1 + y * (1 - sigmoid)))
    return normalized, dy

  def terms(h, dy):
    normalized, dy = normalized_and_gradient(h, dy)
    return [dy, dy * normalized]

  along_bias, along_scale = _sums(terms, h, dy)
  shift = _group_means(along_bias * scale[0], num_groups, h.shape[1])
  slope = _group_means(along_scale * scale[0], num_groups, h.shape[1])
  normalized, dy = normalized_and_gradient(h, dy)
  dx = inverse_std * (dy * scale - shift - normalized * slope)
  return dx.reshape(x.shape).astype(x.dtype), along_scale.sum(axis=0), along_bias.sum(axis=0)


group_norm.defvjp(_forward, _backward)
