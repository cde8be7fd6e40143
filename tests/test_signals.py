"""Signals in training: which work they leave, and where."""

import fcntl
import os
import signal
import threading
import time

import pytest

from ddpm_jax import processes
from ddpm_jax.signals import Signals, Stops, heed
from ddpm_jax.storage.files import file_lock


def send(number=signal.SIGTERM):
  os.kill(os.getpid(), number)
  time.sleep(0.01)


class Dying:
  def __del__(self):
    send()  # where Python swallows an exception


@pytest.mark.filterwarnings('error::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_work_between_two_pieces_of_it(number):
  done = []

  def work():
    for i in range(3):
      heed()
      if i == 1:
        send(number)
      done.append(i)

  with Signals() as signals:
    signals.leave_at(work)
    assert done == [0, 1]  # the piece in hand is whole
    assert signals.received == [number]
    signals.leave_at(work)  # not begun
    assert done == [0, 1]
    assert signals.stop_agreed()
    heed()  # around this there is no work that may be left


@pytest.mark.filterwarnings('error::pytest.PytestUnraisableExceptionWarning')
def test_a_signal_in_a_destructor_is_not_lost():
  def work():
    dying = Dying()
    del dying
    heed()
    raise AssertionError('the work goes on')

  with Signals() as signals:
    signals.leave_at(work)
  assert signals.received == [signal.SIGTERM]


def test_work_is_left_in_the_thread_that_does_it():
  stops, seen = Stops(), []

  def work():
    stops.received.append(signal.SIGINT)
    seen.append('begun')
    heed()
    seen.append('gone on')

  thread = threading.Thread(target=stops.leave_at, args=(work,))
  thread.start()
  thread.join()
  assert seen == ['begun']
  heed()


def test_an_error_of_the_work_is_its_own():
  with Signals() as signals:
    with pytest.raises(ZeroDivisionError):
      signals.leave_at(lambda: 1 / 0)
    signals.received.append(signal.SIGTERM)
    heed()


def test_waiting_for_another_process_is_left(tmp_path, capsys):
  file = tmp_path / 'lock'

  def work():
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with file_lock(file, waiting_for='another'):
      raise AssertionError('nobody gave the lock up')

  with open(file, 'w') as other, Signals() as signals:
    fcntl.flock(other, fcntl.LOCK_EX)
    signals.leave_at(work)
  assert signals.received == [signal.SIGTERM]
  assert capsys.readouterr().out == 'waits for another\n'


def test_several_processes_stop_though_jax_says_it_once(monkeypatch):
  monkeypatch.setattr(processes, 'stop_agreed', lambda count, _: count == 2)
  with Signals() as signals:
    assert [signals.stop_agreed() for _ in range(5)] == [False, False, True, True, True]
