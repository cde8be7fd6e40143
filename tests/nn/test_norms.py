"""Group norm with swish on a CPU: Flax's, to rounding, and its gradients."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.nn import chunks, norms

SHAPES = {  # and number of groups
  'pictures': ((4, 6, 4, 12), 3),
  'one example': ((1, 4, 4, 8), 4),
  'signals': ((3, 10, 6), 6),
  'volumes': ((2, 2, 4, 6, 8), 2),
  'a position': ((5, 1, 1, 8), 2),
}


def flax_norm(x, scale, bias, num_groups, epsilon):
  norm = nn.GroupNorm(num_groups, epsilon=epsilon, use_fast_variance=False)
  return nn.swish(norm.apply({'params': {'scale': scale, 'bias': bias}}, x))


def values_and_gradients(function, num_groups, weights, *args):
  def loss(*args):
    output = function(*args, num_groups, 1e-6)
    return (output * weights).sum(), output

  return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*args)


# And of how many examples more: what is traced for a shape stays so.
CHUNKS = [(chunks.CHUNK_BYTES, 0), (1000, 1), (1, 2)]


@pytest.mark.parametrize(('chunk_bytes', 'more'), CHUNKS)
@pytest.mark.parametrize('name', SHAPES)
def test_equals_flax_in_float64(monkeypatch, relative_error, name, chunk_bytes, more):
  monkeypatch.setattr(chunks, 'CHUNK_BYTES', chunk_bytes)
  (batch, *rest), num_groups = SHAPES[name]
  shape = batch + more, *rest
  rng = np.random.default_rng(0)
  x, weights = 3 + 2 * rng.normal(size=(2, *shape))
  scale, bias = rng.normal(size=(2, shape[-1]))
  with jax.enable_x64(True):
    arguments = jax.tree.map(jnp.asarray, (weights, x, scale, bias))
    expected = values_and_gradients(flax_norm, num_groups, *arguments)
  arguments = jax.tree.map(np.float32, (weights, x, scale, bias))
  found = values_and_gradients(norms.group_norm_swish, num_groups, *arguments)
  for actual, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    assert actual.dtype == np.float32
    # Of one position, nothing but rounding is left of what the mean and the variance are for.
    assert relative_error(actual, wanted) < 5e-6


def test_loses_no_digits_to_a_large_mean(relative_error):
  x = (1000 + np.random.default_rng(0).normal(size=(2, 8, 8, 4))).astype(np.float32)
  with jax.enable_x64(True):
    expected = flax_norm(np.float64(x), np.ones(4), np.zeros(4), 2, 1e-6)
  found = norms.group_norm_swish(x, jnp.ones(4), jnp.zeros(4), 2, 1e-6)
  assert relative_error(found, expected) < 1e-4  # half a unit of 1000 in float32 is 3e-5


def test_module_has_the_parameters_of_flax():
  x = jnp.zeros((1, 4, 4, 8))
  found, expected = (
    module.init(jax.random.key(0), x) for module in (norms.GroupNormSwish(4, 1e-6), nn.GroupNorm(4))
  )
  assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, expected)
  assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))


@pytest.mark.parametrize('place', [(0, 0, 0, 0), (1, 2, 3, 1)])
def test_one_damaged_example_damages_no_other(place):
  x = jnp.ones((2, 4, 4, 4)).at[place].set(jnp.nan)
  output, backward = jax.vjp(lambda x: norms.group_norm_swish(x, *jnp.ones((2, 4)), 2, 1e-6), x)
  (gradient,) = backward(output)
  for array in (output, gradient):
    damaged = np.isnan(array).any(axis=(1, 2, 3))
    assert damaged.tolist() == [place[0] == 0, place[0] == 1]


@pytest.mark.parametrize(('chunk_bytes', 'more'), CHUNKS)
def test_concatenate_and_its_gradient(monkeypatch, chunk_bytes, more):
  monkeypatch.setattr(chunks, 'CHUNK_BYTES', chunk_bytes)
  rng = np.random.default_rng(0)
  shape = 4 + more, 3, 2
  arrays = [rng.normal(size=(*shape, width)).astype(np.float32) for width in (5, 1, 2)]
  weights = rng.normal(size=(*shape, 8)).astype(np.float32)

  def loss(join, arrays):
    return (weights * jnp.square(join(arrays))).sum()

  found = jax.grad(functools.partial(loss, chunks.concatenate))(arrays)
  expected = jax.grad(functools.partial(loss, lambda arrays: jnp.concatenate(arrays, -1)))(arrays)
  assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))
  assert np.array_equal(chunks.concatenate(arrays), np.concatenate(arrays, -1))
