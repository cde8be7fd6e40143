"""Noise per example, from a key of its own, so that no example depends on its batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def fold_rows(key: jax.Array, rows: jax.Array) -> jax.Array:
  """A key for each row: key array [B]."""
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)


def make_noise_fn(keys: jax.Array, shape: tuple[int, ...]) -> Callable[[jax.Array], jax.Array]:
  """Noise per example and timestep.

  Args:
    keys: key array [B], one an example.
    shape: of one example.

  Returns:
    t (int scalar, or [B]) -> N(0, I) float32 [B, *shape]; row i is a function of (keys[i], t[i])
    alone.
  """

  def noise_fn(t):
    t = jnp.broadcast_to(t, keys.shape)
    return jax.vmap(lambda key, t: jax.random.normal(jax.random.fold_in(key, t), shape))(keys, t)

  return noise_fn
