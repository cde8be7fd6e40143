"""Linear operators: adjoints, pseudo-inverses, and functions that are none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.sampling import (
  average_pooling,
  blur,
  channel_mean,
  gaussian_kernel,
  linear_operator,
  masking,
)

SHAPE = 4, 4, 3
MASK = np.random.default_rng(0).random((4, 4, 1)) < 0.5
OPERATORS = {
  'masking': lambda: masking(jnp.asarray(MASK)),
  'pooling': lambda: average_pooling(2, SHAPE),
  'pooling_4': lambda: average_pooling(4, SHAPE),
  'grey': lambda: channel_mean(3),
  'blur': lambda: blur(gaussian_kernel(0.5), SHAPE),
  'function': lambda: linear_operator(lambda x: x[:, ::2].sum(-1) - 2 * x[:, 1::2, :, 0], SHAPE),
}


def matrix_of(operator):
  """float64 [m, 48] of an operator on SHAPE."""
  columns = operator.apply(jnp.eye(48).reshape(48, *SHAPE))
  return np.asarray(columns, np.float64).reshape(48, -1).T


@pytest.mark.parametrize('name', OPERATORS)
def test_adjoint_and_pseudo_inverse_are_those_of_the_matrix(name):
  operator = OPERATORS[name]()
  matrix = matrix_of(operator)
  x = jnp.asarray(np.random.default_rng(1).standard_normal((2, *SHAPE)), jnp.float32)
  y = operator.apply(x)
  flat = np.asarray(y, np.float64).reshape(2, -1)
  np.testing.assert_allclose(operator.adjoint(y).reshape(2, -1), flat @ matrix, atol=1e-5)
  exact = flat @ np.linalg.pinv(matrix).T
  np.testing.assert_allclose(operator.pseudo_inverse(y).reshape(2, -1), exact, atol=1e-3)
  damping = np.float32([0.5, 2.0]).reshape(2, *[1] * (y.ndim - 1))
  for row, s in enumerate(damping.ravel()):
    solved = np.linalg.solve(matrix @ matrix.T + s * np.eye(len(matrix)), flat[row])
    damped = operator.pseudo_inverse(y, damping)[row].ravel()
    np.testing.assert_allclose(damped, matrix.T @ solved, atol=1e-4)


def test_an_example_does_not_depend_on_those_beside_it():
  operator = OPERATORS['blur']()
  y = jnp.asarray(np.random.default_rng(2).standard_normal((2, *SHAPE)), jnp.float32)
  alone = operator.pseudo_inverse(y.at[1].set(100.0))[0]
  np.testing.assert_array_equal(operator.pseudo_inverse(y)[0], alone)
  np.testing.assert_array_equal(operator.pseudo_inverse(jnp.zeros_like(y)), 0)


def test_blur_is_the_sum_over_neighbours_and_keeps_a_flat_picture():
  kernel = np.arange(9.0).reshape(3, 3)
  x = np.random.default_rng(3).standard_normal((1, *SHAPE)).astype(np.float32)
  expected = sum(kernel[i, j] * x[0, i : i + 2, j : j + 2] for i in range(3) for j in range(3))
  inner = blur(kernel, SHAPE).apply(jnp.asarray(x))[0, 1:3, 1:3]
  np.testing.assert_allclose(inner, expected, rtol=1e-5)
  flat = blur(gaussian_kernel(1.3), SHAPE).apply(jnp.full((1, *SHAPE), 0.7))
  np.testing.assert_allclose(flat, 0.7, rtol=1e-6)


def test_volumes_are_pooled_along_every_axis():
  x = jnp.arange(64.0).reshape(1, 4, 4, 4, 1)
  operator = average_pooling(2, (4, 4, 4, 1))
  y = operator.apply(x)
  assert y.shape == (1, 2, 2, 2, 1)
  assert float(y[0, 0, 0, 0, 0]) == np.mean([0, 1, 4, 5, 16, 17, 20, 21])
  np.testing.assert_allclose(operator.apply(operator.pseudo_inverse(y)), y)


@pytest.mark.parametrize(
  ('make', 'words'),
  [
    (lambda: average_pooling(3, SHAPE), 'scale is 3; .* divide the 4 x 4 pixels'),
    (lambda: average_pooling(1, SHAPE), 'scale is 1'),
    (lambda: channel_mean(1), 'no colours'),
    (lambda: blur(np.ones((2, 3)), SHAPE), r'kernel is \[2, 3\]; .* odd sizes'),
    (lambda: blur(np.zeros((3, 3)), SHAPE), 'not all 0'),
    (lambda: gaussian_kernel(0.0), 'blur is 0.0 pixels'),
    (lambda: linear_operator(lambda x: x**2, SHAPE), 'not linear'),
    (lambda: linear_operator(lambda x: 2 * x + 1, SHAPE), 'not linear'),
    (lambda: linear_operator(jnp.sum, SHAPE), 'first axis'),
    (lambda: linear_operator(lambda x: (x, x), SHAPE), 'one array'),
    (lambda: linear_operator(lambda x: x, SHAPE, gram=0.0), 'gram is 0.0'),
  ],
)
def test_what_is_no_such_operator_is_refused(make, words):
  with pytest.raises(UserError, match=words):
    make()


def test_operators_go_into_compiled_functions():
  y = jax.jit(lambda x: OPERATORS['function']().apply(x))(jnp.ones((2, *SHAPE)))
  np.testing.assert_array_equal(y, OPERATORS['function']().apply(jnp.ones((2, *SHAPE))))
