"""Loops over parts of a batch that stay in the cache of a CPU.

XLA's scheduler sees a loop as one operation. What a loop computes is neither put off nor computed
again where it is used, as XLA does with what it fuses, while arrays that it needs take memory.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

CHUNK_BYTES = 2**21  # of examples


def divisor(n: int, limit: float) -> int:
  """The largest divisor of n up to limit, and at least 1."""
  return next(d for d in range(max(1, min(n, int(limit))), 0, -1) if n % d == 0)


def zero_after(x: jax.Array) -> jax.Array:
  """Zero, of x's type; but XLA computes what it is added to when x is there, and not before."""
  is_damaged = jnp.isnan(x.reshape(-1)[0])
  return (is_damaged.astype(jnp.int32) >> 1).astype(x.dtype)


def over_chunks(
  of_chunk: Callable[[jax.Array], tuple[Any, Any]], num_chunks: int, after: jax.Array
) -> tuple[Any, Any]:
  """Applies a function to the index of each chunk, one after the other.

  Args:
    of_chunk: index int32 -> (what is summed over chunks, what is stacked), trees of arrays.
    num_chunks: a number.
    after: an array that the function needs. The memory of the results is taken once it is there;
      that of plain zeros, which need nothing, could be taken from the beginning of a program.

  Returns:
    (sums, stacks [num_chunks, ...]).
  """
  sums, stacks = jax.eval_shape(of_chunk, jax.ShapeDtypeStruct((), jnp.int32))
  zero = zero_after(after)
  sums = jax.tree.map(lambda x: jnp.full(x.shape, zero, x.dtype), sums)
  stacks = jax.tree.map(lambda x: jnp.full((num_chunks, *x.shape), zero, x.dtype), stacks)

  def add(index, results):
    sums, stacks = results
    to_sums, parts = of_chunk(index)
    return jax.tree.map(jnp.add, sums, to_sums), jax.tree.map(
      lambda stack, part: lax.dynamic_update_index_in_dim(stack, part, index, 0), stacks, parts
    )

  return lax.fori_loop(0, num_chunks, add, (sums, stacks))


def over_examples(of_chunk: Callable[..., tuple[Any, Any]], *arrays: jax.Array) -> tuple[Any, Any]:
  """Applies a function to a few examples of arrays [B, ...] at a time, CHUNK_BYTES of the first.

  Args:
    of_chunk: (array [n, ...], ...) -> (what is summed over chunks, results [n, ...]), trees.
    arrays: the last is what the function waits for, as over_chunks has it.

  Returns:
    (sums, results [B, ...]).
  """
  x, batch = arrays[0], len(arrays[0])
  examples = divisor(batch, CHUNK_BYTES / (x.size // batch * x.dtype.itemsize))

  def at(index):
    return of_chunk(*(lax.dynamic_slice_in_dim(x, index * examples, examples) for x in arrays))

  sums, stacks = over_chunks(at, batch // examples, after=arrays[-1])
  return sums, jax.tree.map(lambda stack: stack.reshape(batch, *stack.shape[2:]), stacks)


@jax.custom_vjp
def concatenate(arrays: list[jax.Array]) -> jax.Array:
  """Joins arrays [B, ..., C] along their last axis.

  The gradient is copied apart at once. Of a part that is used much later, XLA would only keep what
  it is computed from, as a whole.
  """
  return jnp.concatenate(arrays, axis=-1)


def _concatenate_forward(arrays):
  return concatenate(arrays), [x[:0] for x in arrays]  # of the parts, nothing but their widths


@jax.jit
def _concatenate_backward(like, dy):
  *ends, _ = itertools.accumulate(x.shape[-1] for x in like)
  _, parts = over_examples(lambda dy: ((), jnp.split(dy, ends, axis=-1)), dy)
  return (parts,)


concatenate.defvjp(_concatenate_forward, _concatenate_backward)
