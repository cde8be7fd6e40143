"""Signals in training: which work they leave, and that none is lost."""

import os
import signal
import time

from ddpm_jax import processes
from ddpm_jax.training.signals import Signals


def test_a_signal_in_a_destructor_is_heard_a_moment_later(capfd):
  """There, an exception would be printed, and lost."""

  class Dying:
    def __del__(self):
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(0.01)

  def work():
    dying = Dying()
    del dying
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
