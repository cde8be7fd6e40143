"""The loop: what is logged, saved and visited after which step, and what a stop leaves."""

import itertools
import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.errors import NotFiniteError
from ddpm_jax.signals import Signals
from ddpm_jax.storage.logs import RunLog, Terminal
from ddpm_jax.training.loop import Plan, dispatches, run
from ddpm_jax.training.state import TrainState


def make_plan(num_steps, **intervals):
  choices = dict(log_every_steps=1, checkpoint_every_steps=0, sample_every_steps=0)
  choices |= dict(eval_every_steps=0, steps_per_dispatch=1)
  return Plan(num_steps=num_steps, **choices | intervals)


class Numbers:
  """In place of Batches: the images of a batch are the number of its step, eight times."""

  def indices(self, step):
    return np.full(8, step)

  def iterate(self, start_step):
    return (np.full((8, 2), step, np.uint8) for step in itertools.count(start_step))


class Record:
  """The steps that were saved and visited; in place of a Checkpointer."""

  def __init__(self):
    self.saved, self.visited = [], []

  def save(self, step, state):
    assert step == state.step
    self.saved.append(step)

  def visit(self, step, state):
    assert step == state.step
    self.visited.append(step)


def run_plan(plan, record, *, start_step=0, during=lambda step: None, losses=None):
  """Runs a step that only counts, and calls during(number of the step); returns what run does."""

  def train_step(state, block, data, key):
    during(int(state.step) + 1)
    metrics = dict.fromkeys(('loss', 'grad_norm', 'learning_rate'), jnp.float32(1))
    if losses is not None:
      metrics['loss'] = jnp.float32(losses[int(state.step)])
    return state.replace(step=state.step + 1), metrics

  with Signals() as signals:
    return run(
      TrainState(jnp.int32(start_step), params={}, ema_params={}, opt_state={}),
      train_step,
      Numbers(),
      plan=plan,
      data=None,
      key=None,
      log=RunLog(None, start_step=start_step, num_steps=plan.num_steps, images_per_step=8),
      checkpointer=record,
      visit=record.visit,
      signals=signals,
      terminal=Terminal(),
    )


@pytest.fixture
def record():
  return Record()


def test_what_is_due_at_intervals_is_due_at_the_end_too():
  plan = make_plan(7, checkpoint_every_steps=4, sample_every_steps=3)
  steps = range(8)
  assert [step for step in steps if plan.is_due(step, 3)] == [3, 6, 7]
  assert [step for step in steps if plan.is_visited(step)] == [3, 6, 7]
  assert [step for step in steps if plan.is_saved(step)] == [4, 7]
  assert not any(plan.is_due(step, 0) for step in steps)


def test_steps_that_are_measured_are_saved(record):
  plan = make_plan(6, checkpoint_every_steps=6, sample_every_steps=4, eval_every_steps=3)
  assert run_plan(plan, record) == (6, False)
  assert record.saved == [3, 6]
  # What the run before may have left out at its end is made up for at first.
  assert record.visited == [0, 3, 4, 6]


def test_a_run_goes_on_from_its_step(record):
  plan = make_plan(6, checkpoint_every_steps=2)
  assert run_plan(plan, record, start_step=3) == (6, False)
  assert record.saved == [4, 6]
  assert record.visited == [3]


def test_logged_steps_do_not_hold_up_the_next_dispatch(record, monkeypatch):
  events, write = [], RunLog._write

  def recorded(log, step, *args):
    events.append(step)
    write(log, step, *args)

  monkeypatch.setattr(RunLog, '_write', recorded)
  plan = make_plan(3, checkpoint_every_steps=3)
  run_plan(plan, record, during=lambda step: events.append('dispatch'))
  assert events == ['dispatch', 'dispatch', 1, 'dispatch', 2, 3]


def test_a_step_that_is_not_finite_is_neither_saved_nor_visited(record):
  plan = make_plan(4, checkpoint_every_steps=1, sample_every_steps=1)
  with pytest.raises(NotFiniteError, match='the loss is nan at step 3') as raised:
    run_plan(plan, record, losses=[1, 2, np.nan, 3])
  assert raised.value.step == 3
  assert record.saved == [1, 2]
  assert record.visited == [0, 1, 2]


def test_a_signal_ends_the_run_after_the_step_in_hand_and_saves_it(record):
  def interrupted(step):
    if step == 2:
      os.kill(os.getpid(), signal.SIGTERM)

  plan = make_plan(5, checkpoint_every_steps=4)
  assert run_plan(plan, record, during=interrupted) == (2, True)
  assert record.saved == [2]


@pytest.mark.parametrize('gather', [False, True])
def test_dispatches_end_at_multiples_of_their_length(gather):
  plan = make_plan(8, steps_per_dispatch=3)
  found = list(dispatches(Numbers(), 1, plan, gather=gather))
  assert [(step, count) for step, count, _ in found] == [(3, 2), (6, 3), (8, 2)]
  for (_, count, block), steps in zip(found, ([1, 1, 2], [3, 4, 5], [6, 6, 7]), strict=True):
    assert block.count == count
    assert block.batches.shape == (3, 4, 2) + (() if gather else (2,))  # one program does all
    assert block.batches.dtype == (np.int32 if gather else np.uint8)
    for of_step, number in zip(block.batches, steps, strict=True):
      assert (of_step == number).all()


@pytest.mark.parametrize('gather', [False, True])
def test_single_steps_have_no_axis_of_steps(gather):
  found = list(dispatches(Numbers(), 2, make_plan(4), gather=gather))
  assert [(step, count) for step, count, _ in found] == [(3, 1), (4, 1)]
  for step, _, block in found:
    assert block.shape == (4, 2) + (() if gather else (2,))
    assert (block == step - 1).all()
