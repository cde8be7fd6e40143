"""Linear measurements y = A x of examples, for sampling/editing.py.

Shapes: x is [B, *shape] of any number of spatial axes, with channels last; y is [B, ...]. A acts on
each example on its own.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UserError

MAX_ITERATIONS = 50  # of conjugate gradients
TOLERANCE = 1e-6  # of their residual, relative to the right-hand side


class LinearOperator(NamedTuple):
  """A measurement y = A x.

  Attributes:
    apply: x [B, *shape] -> A x [B, ...].
    adjoint: y -> A^T y [B, *shape].
    gram: c, where A A^T y = c y for all y = A x; None where there is no such number.
  """

  apply: Callable[[jax.Array], jax.Array]
  adjoint: Callable[[jax.Array], jax.Array]
  gram: float | None = None

  def pseudo_inverse(self, y: jax.Array, damping: float | jax.Array = 0.0) -> jax.Array:
    """A^T (A A^T + damping)^-1 y; without damping A^+ y, of all x with A x = y the smallest.

    In closed form where there is a gram, otherwise by conjugate gradients.

    Args:
      y: [B, ...].
      damping: a number, or [B, 1, ...] of as many axes as y.
    """
    if self.gram is not None:
      return self.adjoint(y / (self.gram + damping))
    solved = _conjugate_gradients(lambda u: self.apply(self.adjoint(u)) + damping * u, y)
    return self.adjoint(solved)


def _conjugate_gradients(matrix, y):
  """u with matrix(u) = y, for a positive semidefinite matrix; each example on its own."""
  axes = tuple(range(1, y.ndim))

  def dot(a, b):
    return jnp.sum(a * b, axis=axes, keepdims=True)

  limit = TOLERANCE**2 * dot(y, y)

  def iterate(_, state):
    u, residual, direction, norm = state
    image = matrix(direction)
    curvature = dot(direction, image)
    goes_on = (norm > limit) & (curvature > 0)
    step = jnp.where(goes_on, norm / jnp.where(goes_on, curvature, 1), 0)
    residual = residual - step * image
    new_norm = dot(residual, residual)
    turn = jnp.where(goes_on, new_norm / jnp.where(goes_on, norm, 1), 0)
    return (
      u + step * direction,
      residual,
      residual + turn * direction,
      jnp.where(goes_on, new_norm, 0),
    )

  count = min(MAX_ITERATIONS, math.prod(y.shape[1:]))
  return jax.lax.fori_loop(0, count, iterate, (jnp.zeros_like(y), y, y, dot(y, y)))[0]


def linear_operator(
  apply: Callable[[jax.Array], jax.Array], shape: tuple[int, ...], *, gram: float | None = None
) -> LinearOperator:
  """An operator of any linear function; its adjoint is derived by JAX.

  Args:
    apply: x [B, *shape] -> y [B, ...], linear, each example on its own.
    shape: of one example.
    gram: as LinearOperator.

  Raises:
    UserError: the function is not linear, or returns no [B, ...].
  """

  def like(x):
    return jax.ShapeDtypeStruct((x.shape[0], *shape), x.dtype)

  def adjoint(y):
    return jax.linear_transpose(apply, like(y))(y)[0]

  operator = LinearOperator(apply, adjoint, gram)
  _check(operator, like(jax.ShapeDtypeStruct((2,), jnp.float32)))
  return operator


def _check(operator, like):
  if operator.gram is not None and not operator.gram > 0:
    raise UserError(f'gram is {operator.gram}; it must be positive, or None')
  y = jax.eval_shape(operator.apply, like)
  if not isinstance(y, jax.ShapeDtypeStruct) or y.ndim < 1 or y.shape[0] != like.shape[0]:
    raise UserError(
      f'the operator makes {getattr(y, "shape", type(y).__name__)} of x {like.shape}; it must '
      'return one array, whose first axis is that of the examples'
    )
  try:
    jax.eval_shape(operator.adjoint, y)
  except Exception as error:  # JAX has several kinds of them for what it cannot transpose
    raise UserError(
      f'the operator is not linear in x, as JAX sees it ({str(error).splitlines()[0]})'
    ) from error
  at_zero = operator.apply(jnp.zeros(like.shape, like.dtype))
  if not isinstance(at_zero, jax.core.Tracer) and np.any(np.asarray(at_zero) != 0):
    raise UserError('the operator is not linear: of x = 0 it does not make 0; leave constants out')


def masking(mask: jax.Array) -> LinearOperator:
  """Inpainting: known pixels stay, unknown ones become 0. A A^T is 1 on such measurements.

  Args:
    mask: bool, broadcasts against x; True where x is known.
  """

  def apply(x):
    return jnp.where(mask, x, 0)

  return LinearOperator(apply, apply, 1.0)


def average_pooling(scale: int, shape: tuple[int, ...]) -> LinearOperator:
  """Super-resolution: the mean of each block of scale pixels along every spatial axis.

  Args:
    scale: at least 2; it divides the spatial sizes.
    shape: of one example, channels last.

  Raises:
    UserError: another scale.
  """
  if scale < 2 or any(size % scale for size in shape[:-1]):
    sizes = ' x '.join(map(str, shape[:-1]))
    raise UserError(
      f'scale is {scale}; it must be 2 or more, and divide the {sizes} pixels of the model'
    )
  spatial = range(1, len(shape))

  def apply(x):
    blocks = [part for size in shape[:-1] for part in (size // scale, scale)]
    x = x.reshape(x.shape[0], *blocks, shape[-1])
    return x.mean(axis=tuple(2 * axis for axis in spatial))

  count = scale ** (len(shape) - 1)

  def adjoint(y):
    for axis in spatial:
      y = jnp.repeat(y, scale, axis=axis)
    return y / count

  return LinearOperator(apply, adjoint, 1 / count)


def channel_mean(channels: int) -> LinearOperator:
  """Colourisation: grey, the mean of the channels.

  Raises:
    UserError: there is one channel, which has no colours.
  """
  if channels < 2:
    raise UserError(f'this model has {channels} channel, so it has no colours to find')

  def adjoint(y):
    return jnp.repeat(y, channels, axis=-1) / channels

  return LinearOperator(lambda x: x.mean(axis=-1, keepdims=True), adjoint, 1 / channels)


def blur(kernel: np.ndarray, shape: tuple[int, ...]) -> LinearOperator:
  """Deblurring: each channel's correlation with a kernel; beyond the border, its pixels go on.

  Args:
    kernel: an axis for each spatial one, of odd sizes.
    shape: of one example, channels last.

  Raises:
    UserError: another kernel.
  """
  kernel, num_axes = np.asarray(kernel, np.float32), len(shape) - 1
  is_odd = all(size % 2 for size in kernel.shape)
  if kernel.ndim != num_axes or not is_odd or not np.isfinite(kernel).all() or not kernel.any():
    raise UserError(
      f'the kernel is {list(kernel.shape)}; it must have {num_axes} axes of odd sizes, and finite '
      'values that are not all 0'
    )
  padding = [(size // 2, size // 2) for size in kernel.shape]

  def apply(x):
    channels = jnp.moveaxis(x, -1, 1).reshape(-1, 1, *x.shape[1:-1])
    padded = jnp.pad(channels, [(0, 0), (0, 0), *padding], mode='edge')
    blurred = jax.lax.conv_general_dilated(
      padded, jnp.asarray(kernel, x.dtype)[None, None], (1,) * num_axes, 'VALID'
    )
    return jnp.moveaxis(blurred.reshape(x.shape[0], x.shape[-1], *x.shape[1:-1]), 1, -1)

  return linear_operator(apply, shape)


def gaussian_kernel(std: float, num_axes: int = 2) -> np.ndarray:
  """A Gaussian kernel of `std` pixels, cut off at 3 std: float64, of sum 1."""
  if not 0 < std < math.inf:
    raise UserError(f'the blur is {std} pixels; it must be a positive number')
  radius = max(1, math.ceil(3 * std))
  line = np.exp(-0.5 * (np.arange(-radius, radius + 1) / std) ** 2)
  kernel = np.ones(())
  for _ in range(num_axes):
    kernel = np.multiply.outer(kernel, line)
  return kernel / kernel.sum()
