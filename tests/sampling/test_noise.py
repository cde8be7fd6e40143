"""Noise of an example: a function of its own key and of the timestep."""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.sampling import fold_rows, make_noise_fn


def test_noise_of_a_row_does_not_depend_on_the_batch():
  keys = jax.random.split(jax.random.key(0), 6)
  noise = make_noise_fn(keys, (3, 2))(7)
  assert noise.shape == (6, 3, 2)
  subset = jnp.array([4, 1])
  np.testing.assert_array_equal(make_noise_fn(keys[subset], (3, 2))(7), noise[subset])


def test_noise_is_standard_normal_and_independent_of_row_and_timestep():
  noise_fn = make_noise_fn(jax.random.split(jax.random.key(0), 2), (100_000,))
  rows = np.concatenate([noise_fn(0), noise_fn(1)])
  np.testing.assert_allclose(rows.mean(axis=1), 0, atol=5 / np.sqrt(100_000))
  np.testing.assert_allclose(np.cov(rows), np.eye(4), atol=5 * np.sqrt(2 / 100_000))


def test_each_row_has_a_timestep_of_its_own_where_many_are_given():
  noise_fn = make_noise_fn(jax.random.split(jax.random.key(0), 3), (4,))
  noise = noise_fn(jnp.array([5, 0, 5]))
  np.testing.assert_array_equal(noise[0], noise_fn(5)[0])
  np.testing.assert_array_equal(noise[1], noise_fn(0)[1])
  np.testing.assert_array_equal(noise[2], noise_fn(5)[2])


def test_the_key_of_a_row_is_its_own_wherever_it_stands():
  key = jax.random.key(3)
  keys = fold_rows(key, jnp.array([7, 0, 7]))
  assert keys.shape == (3,)
  for actual, row in zip(keys, (7, 0, 7), strict=True):
    expected = jax.random.fold_in(key, row)
    np.testing.assert_array_equal(jax.random.key_data(actual), jax.random.key_data(expected))
