"""The training loop: step, log, save, visit."""

import concurrent.futures
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from ddpm_jax import devices
from ddpm_jax.data import Batches
from ddpm_jax.signals import Stops
from ddpm_jax.storage.checkpoints import Checkpointer
from ddpm_jax.storage.logs import RunLog, Terminal
from ddpm_jax.training.state import TrainState
from ddpm_jax.training.step import TrainStep


@dataclasses.dataclass(frozen=True)
class Plan:
  """How long a run is, and what it does on the way; 0 is never."""

  num_steps: int
  log_every_steps: int
  checkpoint_every_steps: int
  sample_every_steps: int
  eval_every_steps: int
  steps_per_dispatch: int  # divides all intervals

  def is_due(self, step: int, every_steps: int) -> bool:
    """Whether what happens every so many steps, and at the end, happens after a step."""
    return bool(every_steps and step and (step % every_steps == 0 or step == self.num_steps))

  def next_count(self, step: int) -> int:
    """Steps of the dispatch that follows a step."""
    several = self.steps_per_dispatch
    return min(several - step % several, self.num_steps - step)

  def is_visited(self, step: int) -> bool:
    """Whether samples are drawn or measured after a step."""
    return self.is_due(step, self.sample_every_steps) or self.is_due(step, self.eval_every_steps)

  def is_saved(self, step: int) -> bool:
    """Whether a step is saved: those that are measured are."""
    intervals = self.checkpoint_every_steps, self.eval_every_steps
    return any(self.is_due(step, every_steps) for every_steps in intervals)


def run(
  state: TrainState,
  train_step: TrainStep,
  batches: Batches,
  *,
  plan: Plan,
  data: Any,
  key: Any,
  log: RunLog,
  checkpointer: Checkpointer,
  visit: Callable[[int, TrainState], None],
  signals: Stops,
  terminal: Terminal,
  compiling: concurrent.futures.Future[object] | None = None,
) -> tuple[int, bool]:
  """Trains from state.step to plan.num_steps.

  Args:
    state: TrainState on all devices.
    train_step: as devices.compile_train_step returns it.
    batches: Batches.
    plan: Plan.
    data: all images on the devices, which then gather the batches, or None.
    key: replicated.
    log: RunLog.
    checkpointer: Checkpointer.
    visit: (step, state) -> None: draws and measures what is due, but not what is there already.
    signals: Stops.
    terminal: Terminal, which shows that the first dispatch compiles.
    compiling: train_step's program, if it is compiled in the background.

  Returns:
    (steps done, whether a signal ended the run).

  Raises:
    NotFiniteError: a step's metrics are not finite.
    WriteError: a file cannot be written.
  """
  step = int(state.step)
  signals.leave_at(lambda: visit(step, state))  # the run before may have been stopped there
  # A signal during that stops the run here: after another step, nobody would make up for it.
  stops = signals.stop_agreed()
  waiting = terminal.waiting('compiles the training step')
  blocks = [] if stops else dispatches(batches, step, plan, gather=data is not None)
  for step, count, block in blocks:
    with waiting:
      if compiling is not None:
        compiling.result()
      state, metrics = train_step(state, block, data, key)
    waiting = contextlib.nullcontext()
    log.add(step, metrics, count=count, write=plan.is_due(step, plan.log_every_steps))
    if plan.is_saved(step):
      save(checkpointer, log, step, state)
    if plan.is_visited(step):
      log.check()  # before the time that a visit takes
      signals.leave_at(lambda: visit(step, state))  # noqa: B023
    stops = signals.stop_agreed()
    if stops:
      break
  log.check()
  if stops:
    save(checkpointer, log, step, state)
  return step, stops


def dispatches(
  batches: Batches, start_step: int, plan: Plan, *, gather: bool
) -> Iterator[tuple[int, int, Any]]:
  """Yields what each dispatch takes, from start_step to plan.num_steps.

  Args:
    batches: Batches.
    start_step: steps done.
    plan: Plan.
    gather: whether the devices have the data, and take indices.

  Yields:
    (step after it, number of its steps, batch [D, B, ...] of images, with labels if there are any,
    or of indices); where plan.steps_per_dispatch is more than one, so many batches, as Steps. Fewer
    of them count where the run starts between its multiples, and at the end.
  """
  step = start_step
  images = None if gather else batches.iterate(start_step)
  while step < plan.num_steps:
    count = plan.next_count(step)
    if images is None:
      block = [batches.indices(s).astype(np.int32) for s in range(step, step + count)]
    else:
      block = [next(images) for _ in range(count)]
    step += count
    if plan.steps_per_dispatch == 1:
      yield step, count, devices.split_over_devices(block[0])
    else:
      block = [block[0]] * (plan.steps_per_dispatch - count) + block
      stacked = jax.tree.map(lambda *of: np.stack(of), *block)
      steps = devices.Steps(devices.split_over_devices(stacked, axis=1), np.int32(count))
      yield step, count, steps


def save(checkpointer: Checkpointer, log: RunLog, step: int, state: TrainState) -> None:
  """Saves the state, unless its step failed."""
  log.check()
  checkpointer.save(step, devices.as_global(state))
