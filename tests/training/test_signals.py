"""Signals in training: which work they leave, and that none is lost."""

import gc
import os
import signal
import time
import weakref

import pytest

from ddpm_jax import processes
from ddpm_jax.training.signals import Signals


def die(*_):
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(0.01)


def in_destructor():
  class Dying:
    __del__ = die

  return Dying()


def in_finalizer():
  class Dying:
    pass

  dying = Dying()
  weakref.finalize(dying, die)
  return dying


def in_callback_of_reference():
  class Dying:
    pass

  dying = Dying()
  dying.reference = KEPT[0] = weakref.ref(dying, die)
  return dying


def in_garbage_collection():
  gc.callbacks.append(collected)
  return None


def collected(phase, _):
  if phase == 'stop':
    gc.callbacks.remove(collected)
    die()


KEPT = [None]


@pytest.mark.filterwarnings('error::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize(
  'make', [in_destructor, in_finalizer, in_callback_of_reference, in_garbage_collection]
)
def test_a_signal_where_exceptions_are_swallowed_is_heard_a_moment_later(make, capfd):
  def work():
    dying = make()
    del dying
    gc.collect()
    time.sleep(60)

  start = time.monotonic()
  with Signals() as signals:
    signals.leave_at(work)
    signals.leave_at(work)  # not begun
  assert time.monotonic() - start < 30
  assert signals.received == [signal.SIGTERM]
  assert capfd.readouterr().err == ''


def test_several_processes_stop_though_jax_says_it_once(monkeypatch):
  monkeypatch.setattr(processes, 'stop_agreed', lambda count, _: count == 2)
  with Signals() as signals:
    assert [signals.stop_agreed() for _ in range(5)] == [False, False, True, True, True]
