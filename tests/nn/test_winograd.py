"""Winograd's convolutions: what the plain ones are, to rounding, and their gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.nn import winograd

SHAPES = {  # of images, and output channels
  'one chunk': ((3, 8, 8, 32), 64),
  'oblong': ((2, 4, 6, 5), 3),
  'smallest': ((1, 2, 2, 1), 1),
  'one row of tiles': ((1, 2, 20, 40), 32),
  'signals': ((2, 6, 5), 3),
  'volumes': ((2, 4, 6, 2, 5), 3),
}


def plain(x, kernel):
  axes = 'DHW'[5 - x.ndim :]
  numbers = (f'N{axes}C', f'{axes}IO', f'N{axes}C')
  return jax.lax.conv_general_dilated(
    x, kernel, (1,) * len(axes), 'SAME', dimension_numbers=numbers
  )


def plain_upsample(x, kernel):
  for axis in range(1, x.ndim - 1):
    x = x.repeat(2, axis=axis)
  return plain(x, kernel)


PAIRS = {
  'conv': (winograd.conv3, plain, 1),
  'upsample': (winograd.upsample_conv3, plain_upsample, 2),
}


def values_and_gradients(convolve, *arrays):
  @jax.jit
  def run(x, kernel, dy):
    y, gradients = jax.vjp(convolve, x, kernel)
    return [y, *gradients(dy)]

  return jax.device_get(run(*arrays))


@functools.cache
def example(pair, shape):
  """(x, kernel, dy) of a convolution, what the plain one makes of them, and that in float64."""
  _, convolve, scale = PAIRS[pair]
  (batch, *axes, channels), out_channels = SHAPES[shape]
  rng = np.random.default_rng(0)
  arrays = [
    rng.standard_normal(shape, np.float32)
    for shape in (
      (batch, *axes, channels),
      (*(3,) * len(axes), channels, out_channels),
      (batch, *(n * scale for n in axes), out_channels),
    )
  ]
  rounded = values_and_gradients(convolve, *arrays)
  with jax.enable_x64(True):
    exact = values_and_gradients(convolve, *map(np.float64, arrays))
  return arrays, rounded, exact


@pytest.mark.parametrize('chunk_bytes', [winograd.CHUNK_BYTES, 1])  # 1: a row of tiles at a time
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('pair', PAIRS)
def test_equals_the_plain_convolution_to_rounding(
  pair, shape, chunk_bytes, relative_error, monkeypatch
):
  monkeypatch.setattr(winograd, 'CHUNK_BYTES', chunk_bytes)
  arrays, rounding, expected = example(pair, shape)
  actual = values_and_gradients(PAIRS[pair][0], *arrays)
  for output, rounded, truth in zip(actual, rounding, expected, strict=True):
    assert relative_error(output, truth) < max(2 * relative_error(rounded, truth), 6e-7)


def test_images_go_through_in_chunks_of_their_own():
  x = jax.ShapeDtypeStruct((16, 32, 32, 128), np.float32)
  kernel = jax.ShapeDtypeStruct((3, 3, 128, 128), np.float32)
  text = str(jax.make_jaxpr(winograd.conv3)(x, kernel))
  assert 'length=16' in text  # an image of 4 MiB at a time


def test_applies_to_what_it_can_do_and_what_pays():
  assert winograd.applies((1, 8, 8, 32), (3, 3, 32, 64))
  assert winograd.applies((4, 8, 8, 2, 96), (3, 3, 3, 96, 32))
  for x_shape, kernel_shape in [
    ((1, 7, 8, 32), (3, 3, 32, 64)),
    ((1, 8, 7, 32), (3, 3, 32, 64)),
    ((1, 8, 8, 3), (3, 3, 3, 64)),
    ((1, 8, 8, 32), (3, 3, 32, 3)),
    ((1, 8, 8, 32), (1, 1, 32, 64)),
    ((4, 8, 8, 3, 96), (3, 3, 3, 96, 32)),
    ((2, 8, 8, 2, 96), (3, 3, 3, 96, 32)),
    ((4, 8, 8, 2, 32), (3, 3, 3, 32, 64)),
    ((1, 8, 64), (3, 64, 64)),
  ]:
    assert not winograd.applies(x_shape, kernel_shape)


def test_network_is_the_same_with_it(relative_error, unet_small, reference):
  model, params = unet_small
  x, t = reference('unet_small')['x'], reference('unet_small')['t']
  fast = model.clone(on_cpu=True)

  def loss(model, params, x):
    return jnp.sum(jnp.square(model.apply({'params': params}, x, t)))

  run = jax.jit(jax.value_and_grad(loss, argnums=(1, 2)), static_argnums=0)
  plain_value, plain_gradients = run(model, params, x)
  value, gradients = run(fast, params, x)
  assert relative_error(value, plain_value) < 1e-5
  flat, plain_flat = (
    np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    for tree in (gradients, plain_gradients)
  )
  assert relative_error(flat, plain_flat) < 1e-5


@pytest.mark.parametrize('pair', PAIRS)
def test_one_damaged_example_damages_no_other(pair):
  kernel = jnp.ones((3, 3, 2, 3))
  x = jnp.ones((2, 4, 4, 2)).at[0, 0, 0, 0].set(jnp.nan)
  output, backward = jax.vjp(lambda x: PAIRS[pair][0](x, kernel), x)
  for array in (output, *backward(output)):
    assert np.isnan(array).any(axis=(1, 2, 3)).tolist() == [True, False]
