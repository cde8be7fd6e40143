"""Long computations on a batch, run in pieces of about a second, between which they can be left."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax import devices
from ddpm_jax.storage.shards import Pauses

PIECE_SECS = 1.0


class Stepwise(NamedTuple):
  """A computation on a batch, step by step; row i depends on the parameters and row i alone.

  Attributes:
    num_steps: of the whole.
    start: (batch, key) -> state, a tree of arrays [B, ...].
    advance: (params, state, batch, key, first, last) -> state after the steps first, ..., last - 1.
      The result is the same, bit for bit, in whichever pieces the steps are made.
  """

  num_steps: int
  start: Callable[..., Any]
  advance: Callable[..., Any]


def compiled(work: Stepwise) -> Stepwise:
  """The same for all devices: batches and states are [D, B, ...], keys replicated."""
  return Stepwise(
    work.num_steps,
    devices.compile_batch_fn(work.start, in_axes=(0, None)),
    devices.compile_batch_fn(work.advance, in_axes=(None, 0, 0, None, None, None)),
  )


def advance(
  work: Stepwise, params: Any, state: Any, batch: Any, key: Any, first: int, last: int
) -> Any:
  """The state after the steps first, ..., last - 1 of a compiled computation."""
  bounds = devices.replicate((np.int32(first), np.int32(last)))
  return work.advance(params, state, batch, key, *bounds)


def run(
  work: Stepwise,
  params: Any,
  batch: Any,
  key: Any,
  *,
  first: int = 0,
  pauses: Pauses | None = None,
) -> Any:
  """The state after all steps, as NumPy arrays [D * B, ...].

  Args:
    work: Stepwise, compiled.
    params: replicated.
    batch: tree of arrays [D * B, ...].
    key: replicated.
    first: the step to begin with.
    pauses: told between two pieces how far this is; it may have kept the state of an earlier run.
  """
  pauses = pauses or Pauses()
  batch = devices.split_over_devices(batch)
  state, step, length = work.start(batch, key), first, 1

  def leaves():
    return devices.gather_from_devices(jax.tree.leaves(state))

  if kept := pauses.kept(leaves):
    step, found = kept
    start, tree = jax.tree.flatten(state)
    state = tree.unflatten(devices.place_like(devices.split_over_devices(found), start))
  is_first = True
  while step < work.num_steps:
    pauses.pause(step, work.num_steps, leaves)
    last = min(step + length, work.num_steps)
    begin = time.perf_counter()
    state = jax.block_until_ready(advance(work, params, state, batch, key, step, last))
    secs = time.perf_counter() - begin
    # The first piece compiles: its time says nothing.
    length = 2 if is_first else max(1, min(2 * length, round(length * PIECE_SECS / secs)))
    step, is_first = last, False
  return devices.gather_from_devices(state)
