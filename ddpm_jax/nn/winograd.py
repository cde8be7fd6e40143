"""Convolutions of width 3 by minimal filtering, F(2, 3) along each axis (Winograd 1980).

Of a picture (Lavin & Gray 2016), four outputs cost 16 multiplications a pair of channels instead of
36, and after doubling the image by repetition 9 instead of 36; of a volume, eight outputs cost 64
instead of 216, or 27. The transforms add, subtract, double and halve, so that results
differ from the plain convolution by rounding alone. On a CPU, where convolutions already run at the
speed of matrix products, this is what makes them faster; elsewhere it is not.

Tiles d of 4 x 4 pixels, two apart, and filters g become y = A'((G g G') * (B' d B)) A, the products
being summed over channels; along one axis, or three, it is the same with fewer matrices, or more.
Images go through in chunks that stay in the cache.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ddpm_jax.nn.chunks import divisor, over_chunks, zero_after

CHUNK_BYTES = 2**22  # of transformed images, at a time
MIN_CHANNELS = 32  # below, the transforms cost more than they save
MIN_CHANNELS_OF_VOLUMES = 128  # in and out together; likewise
MIN_POSITIONS_OF_VOLUMES = 512  # of a batch; below, transforming the filters costs too much

_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
_B = np.array([[1, 0, 0, 0], [0, 1, -1, 1], [-1, 1, 1, 0], [0, 0, 0, -1]], np.float32)
_A = np.array([[1, 0], [1, 1], [1, -1], [0, -1]], np.float32)

# In an image doubled by repetition d1 = d2, so that the third of the four points is zero: the other
# three, of a pixel and its two neighbours. And their adjoint, of four pixels of the gradient.
_POINTS = [0, 1, 3]
_B_REPEATED = np.array([[1, 0, 0], [-1, 2, 1], [0, 0, -1]], np.float32)
_B_ADJOINT = np.array([[0, 0, 1], [-1, 2, 0], [0, 2, -1], [1, 0, 0]], np.float32)
_SUM = np.ones((3, 1), np.float32)


def applies(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...]) -> bool:
  """Whether conv3 takes an example [B, ..., C] and a kernel of these shapes, and it pays."""
  batch, *axes, channels = x_shape
  *taps, _, features = kernel_shape
  if tuple(taps) != (3,) * len(axes) or any(length % 2 for length in axes):
    return False
  if len(axes) == 3:
    is_wide = channels + features >= MIN_CHANNELS_OF_VOLUMES
    return is_wide and batch * math.prod(axes) >= MIN_POSITIONS_OF_VOLUMES
  return len(axes) == 2 and min(channels, features) >= MIN_CHANNELS


@jax.custom_vjp
def conv3(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolution of stride 1, with zeros around the image.

  Args:
    x: [B, H, W, C], H and W even, and so for any number of axes.
    kernel: [3, 3, C, K].

  Returns:
    [B, H, W, K].
  """
  return _conv3(x, kernel)


# Under jit, so that what a network repeats is traced once a shape.
@jax.jit
def _conv3(x, kernel):
  return _convolve(x, _filters(kernel, _G), _B, _A, stride=2)


def _conv3_forward(x, kernel):
  return conv3(x, kernel), (x, kernel)


@jax.jit
def _conv3_backward(saved, dy):
  x, kernel = saved
  # Or else XLA transforms the filters of all layers when a step begins, and keeps them until now.
  mirrored = _filters(kernel.swapaxes(-2, -1) + zero_after(dy), _G[:, ::-1])
  dx = _convolve(dy, mirrored, _B, _A, stride=2)
  return dx, _filter_gradient(x, dy, _B, _G, _A, stride=2)


conv3.defvjp(_conv3_forward, _conv3_backward)


@jax.custom_vjp
def upsample_conv3(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """The convolution of the image doubled by repeating each pixel.

  Args:
    x: [B, H, W, C], and so for any number of axes.
    kernel: [3, 3, C, K].

  Returns:
    [B, 2 H, 2 W, K].
  """
  return _upsample_conv3(x, kernel)


@jax.jit
def _upsample_conv3(x, kernel):
  return _convolve(x, _filters(kernel, _G[_POINTS]), _B_REPEATED, _A[_POINTS], stride=1)


def _upsample_conv3_forward(x, kernel):
  return upsample_conv3(x, kernel), (x, kernel)


@jax.jit
def _upsample_conv3_backward(saved, dy):
  x, kernel = saved
  filters = _filters(kernel.swapaxes(-2, -1) + zero_after(dy), _G[_POINTS])
  dx = _convolve(dy, filters, _B_ADJOINT, _SUM, stride=2)
  return dx, _filter_gradient(x, dy, _B_REPEATED, _G[_POINTS], _A[_POINTS], stride=1)


upsample_conv3.defvjp(_upsample_conv3_forward, _upsample_conv3_backward)


def _filters(kernel, g):
  """G g G' of all channels: [3, 3, C, K] -> [P * P, C, K], for P points an axis."""
  *taps, channels, features = kernel.shape
  filters = jnp.dot(_for_each_axis(g, len(taps)), kernel.reshape(math.prod(taps), -1))
  return filters.reshape(-1, channels, features)


def _for_each_axis(matrix, num_axes):
  return functools.reduce(np.kron, [matrix] * num_axes)


def _combine(matrix, arrays):
  """The combinations of arrays that the matrix's columns name."""
  for column in matrix.T:
    terms = [a if c == 1 else c * a for c, a in zip(column, arrays, strict=True) if c]
    yield sum(terms[1:], terms[0])


def _transform(x, matrix, stride):
  """Tiles to points, along one axis after another: [n, H, W, C] -> [P * P, tiles, C]."""

  def along(x, axis, stack_axis):
    size, taps = x.shape[axis], len(matrix)
    last = size - taps
    parts = [lax.slice_in_dim(x, i, i + last + 1, stride, axis=axis) for i in range(taps)]
    return jnp.stack(list(_combine(matrix, parts)), axis=stack_axis)

  num_axes, points = x.ndim - 2, x
  for i in range(num_axes):  # behind the axes of the points so far
    points = along(points, 2 * i + 1, i)
  return points.reshape(math.prod(points.shape[:num_axes]), -1, x.shape[-1])


def _transform_back(points, matrix, shape):
  """Points to outputs: [P * P, tiles, K] -> [n, rows, r, columns, r, K] for shape (n, rows,
  columns) of the tiles, r outputs a tile along each axis."""
  num_axes = len(shape) - 1
  points = points.reshape(*(len(matrix),) * num_axes, *shape, -1)
  for i in range(num_axes):  # the points' first axis goes, and one behind the tiles' comes
    points = jnp.stack(list(_combine(matrix, points)), axis=num_axes + 1 + i)
  return points


class _Tiles:
  """The tiles of a batch of images, cut into chunks: some images, or a band of rows of one."""

  def __init__(self, x, out_channels, stride):
    self.batch, *axes, channels = x.shape
    self.rows, *self.rest = (length // stride for length in axes)
    row_points = 4 ** len(axes) * math.prod(self.rest)
    row_bytes = row_points * (channels + out_channels) * x.dtype.itemsize
    self.images = divisor(self.batch, CHUNK_BYTES / (self.rows * row_bytes))
    self.band = self.rows if self.images > 1 else divisor(self.rows, CHUNK_BYTES / row_bytes)
    self.bands = self.rows // self.band
    self.num_chunks = self.batch // self.images * self.bands

  @property
  def shape(self):
    """(images, rows, columns) of a chunk."""
    return self.images, self.band, *self.rest

  def chunk(self, x, index, pixels, *, border):
    """The part of an array [B, pixels * rows, ...] that belongs to a chunk.

    With border, a pixel more on each side, which is zero around the image.
    """
    images = lax.dynamic_slice_in_dim(x, index // self.bands * self.images, self.images)
    if border:  # after the images were chosen, so that the padding is part of the transform
      images = jnp.pad(images, ((0, 0), *((1, 1),) * (x.ndim - 2), (0, 0)))
    height = self.band * pixels + 2 * border
    return lax.dynamic_slice_in_dim(images, index % self.bands * self.band * pixels, height, axis=1)


def _convolve(x, filters, b, a, *, stride):
  """Transforms tiles `stride` apart, multiplies them by filters, and transforms back."""
  out_channels = filters.shape[2]
  tiles = _Tiles(x, out_channels, stride)

  def convolve_chunk(index):
    points = _transform(tiles.chunk(x, index, stride, border=True), b, stride)
    products = lax.dot_general(points, filters, (((2,), (1,)), ((0,), (0,))))
    return (), _transform_back(products, a, tiles.shape)

  _, y = over_chunks(convolve_chunk, tiles.num_chunks, after=x)
  axes = [length * a.shape[1] for length in (tiles.rows, *tiles.rest)]
  return y.reshape(tiles.batch, *axes, out_channels)


def _filter_gradient(x, dy, b, g, a, *, stride):
  """The gradient of the kernel [3, 3, C, K], from the images and the gradient of the outputs."""
  tiles = _Tiles(x, dy.shape[-1], stride)

  def of_chunk(index):
    points = _transform(tiles.chunk(x, index, stride, border=True), b, stride)
    gradients = _transform(tiles.chunk(dy, index, 2, border=False), a.T, 2)
    return lax.dot_general(points, gradients, (((1,), (1,)), ((0,), (0,)))), ()

  total, _ = over_chunks(of_chunk, tiles.num_chunks, after=dy)
  num_axes, channels = x.ndim - 2, (x.shape[-1], dy.shape[-1])
  gradient = jnp.dot(_for_each_axis(g, num_axes).T, total.reshape(len(total), -1))
  return gradient.reshape(*(3,) * num_axes, *channels)
