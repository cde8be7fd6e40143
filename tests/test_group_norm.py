"""Group normalisation: its definition, its invariances, and the gradient in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.group_norm import group_norm

EPSILON = 1e-6


def textbook(x, scale, bias, num_groups, swish):
  grouped = x.reshape(x.shape[0], -1, num_groups, x.shape[-1] // num_groups)
  mean = grouped.mean(axis=(1, 3), keepdims=True)
  variance = ((grouped - mean) ** 2).mean(axis=(1, 3), keepdims=True)
  y = ((grouped - mean) / (variance + EPSILON) ** 0.5).reshape(x.shape) * scale[None, None] + bias[
    None, None
  ]
  return y / (1 + jnp.exp(-y)) if swish else y


def arrays(shape, dtype=np.float32):
  keys = jax.random.split(jax.random.key(0), 4)
  x = 3 + 2 * jax.random.normal(keys[0], shape)
  scale = 1 + 0.3 * jax.random.normal(keys[1], shape[-1:])
  bias = 0.5 * jax.random.normal(keys[2], shape[-1:])
  return x.astype(dtype), scale, bias, jax.random.normal(keys[3], shape)


@pytest.mark.parametrize('swish', [False, True])
@pytest.mark.parametrize(
  ('shape', 'num_groups'), [((3, 64, 12), 4), ((2, 7, 5, 6), 6), ((1, 1, 8), 2), ((2, 24, 32), 1)]
)
def test_value_and_gradients_are_the_textbooks(shape, num_groups, swish, relative_error):
  *inputs, dy = arrays(shape)
  flat_dy = dy.reshape(shape[0], -1, shape[-1])
  y, gradients = jax.vjp(lambda *args: group_norm(*args, num_groups, EPSILON, swish), *inputs)
  with jax.enable_x64(True):
    exact = [jnp.asarray(np.asarray(a, np.float64)) for a in inputs]
    exact[0] = exact[0].reshape(shape[0], -1, shape[-1])
    expected, expected_gradients = jax.vjp(lambda *args: textbook(*args, num_groups, swish), *exact)
    expected = [expected, *expected_gradients(jnp.asarray(np.asarray(flat_dy, np.float64)))]
  actual = [y, *gradients(dy)]
  for ours, theirs in zip(actual, expected, strict=True):
    assert relative_error(np.reshape(ours, theirs.shape), theirs) < 1e-6


def test_large_mean_costs_no_digits(relative_error):
  x, scale, bias, _ = arrays((2, 64, 32))
  shifted = group_norm(x + 1000.0, scale, bias, 8, EPSILON, False)
  # x + 1000 itself is rounded to 6e-5.
  assert relative_error(shifted, group_norm(x, scale, bias, 8, EPSILON, False)) < 1e-4


def test_bfloat16_goes_in_and_its_gradient_out_but_the_computation_is_float32():
  x, scale, bias, dy = arrays((2, 16, 32), jnp.bfloat16)
  y, gradients = jax.vjp(lambda *args: group_norm(*args, 8, EPSILON, True), x, scale, bias)
  wide = group_norm(x.astype(jnp.float32), scale, bias, 8, EPSILON, True)
  np.testing.assert_array_equal(y, wide)
  assert [g.dtype for g in gradients(dy)] == [jnp.bfloat16, jnp.float32, jnp.float32]
