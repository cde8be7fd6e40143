"""Signals in training: which work they leave, and where."""

import fcntl
import os
import signal
import threading
import time

import pytest

from ddpm_jax import processes
from ddpm_jax import signals as signals_module
from ddpm_jax.heeding import heed, sleep
from ddpm_jax.signals import Signals, Stops, interruptible
from ddpm_jax.storage.files import file_lock


def send(number=signal.SIGTERM):
  signal.raise_signal(number)  # of this thread: another one might take it, and later
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
  assert capsys.readouterr().out.startswith('waits for another\nstopping: ')


def test_several_processes_stop_though_jax_says_it_once(monkeypatch):
  monkeypatch.setattr(processes, 'stop_agreed', lambda count, _: count == 2)
  with Signals() as signals:
    assert [signals.stop_agreed() for _ in range(5)] == [False, False, True, True, True]


class EndedAtOnce(threading.Event):
  """In place of processes.end_now, which does not return."""

  def __init__(self, monkeypatch):
    super().__init__()
    self.words = []
    monkeypatch.setattr(processes, 'end_now', self._end)

  def _end(self, words):
    self.words.append(words)
    self.set()


def wait_in_a_computation(ended):
  """Python's handlers wait too: the main thread is in C, as in a computation."""
  assert ended.wait(30)


def handling():
  """(the handler of Ctrl-C, the file that signals wake)."""
  signal.set_wakeup_fd(file := signal.set_wakeup_fd(-1))
  return signal.getsignal(signal.SIGINT), file


def test_ctrl_c_is_answered_at_once_and_leaves_the_work(capsys):
  done, before = [], handling()

  @interruptible()
  def work():
    for i in range(3):
      heed()
      if i == 1:
        send(signal.SIGINT)
      done.append(i)

  with pytest.raises(KeyboardInterrupt):
    work()
  assert done == [0, 1]
  assert capsys.readouterr().out.startswith('stopping: what is computed is kept')
  heed()  # nothing is left behind
  assert handling() == before


def test_work_that_is_done_when_ctrl_c_comes_is_done():
  with interruptible():
    send(signal.SIGINT)


def test_a_second_ctrl_c_ends_at_once(monkeypatch):
  ended = EndedAtOnce(monkeypatch)
  for manager in (interruptible(), Signals()):
    with manager:
      for _ in range(2):
        assert not ended.words
        send(signal.SIGINT)
      wait_in_a_computation(ended)
    assert len(ended.words) == 1
    ended.words.clear()
    ended.clear()


def test_two_sigterms_end_no_training_at_once(monkeypatch):
  ended = EndedAtOnce(monkeypatch)
  with Signals() as signals:
    send()
    send()
  assert signals.received == [signal.SIGTERM] * 2
  assert not ended.words


def test_work_that_heeds_nothing_is_ended_some_seconds_later(monkeypatch):
  ended = EndedAtOnce(monkeypatch)
  monkeypatch.setattr(signals_module, 'PATIENCE_SECS', 0.05)
  with interruptible():
    send(signal.SIGINT)
    wait_in_a_computation(ended)
  assert ended.words == ['interrupted; the same command goes on where it stopped']


def test_sleep_is_left():
  threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
  with pytest.raises(KeyboardInterrupt):
    interruptible()(sleep)(60)
