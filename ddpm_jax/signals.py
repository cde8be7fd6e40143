"""Signals: the piece of work in hand is finished, and what is done is kept.

Nothing is raised out of a signal handler. Such an exception comes anywhere: in a destructor, where
Python swallows it, or in the midst of another library between the start of a computation and its
result. Long work calls heeding.heed() between its pieces instead. A handler runs between two
operations of Python only, so a thread hears Ctrl-C while the main thread is in a computation.
"""

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator

from ddpm_jax import processes
from ddpm_jax.heeding import Interrupted, heed, may_be_left

PATIENCE_SECS = 4.0  # after which nothing more is finished: by then Ctrl-C has ended the program


@contextlib.contextmanager
def _answered(words: str, last_words: str, patience_secs: float | None) -> Iterator[None]:
  """Answers the first signal at once with `words`; a second Ctrl-C ends the program.

  Args:
    words: what is done now.
    last_words: of a program that ends at once.
    patience_secs: until the program ends after the first Ctrl-C; None for no limit.
  """
  reading, writing = socket.socketpair()
  writing.setblocking(False)
  previous = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)

  def listen():
    heard = []
    try:
      while number := reading.recv(1):
        heard += number
        if heard.count(signal.SIGINT) == 2:
          return processes.end_now(last_words)
        if len(heard) == 1:
          print(words, flush=True)
          reading.settimeout(patience_secs)
    except TimeoutError:
      return processes.end_now(last_words)

  thread = threading.Thread(target=listen, daemon=True)
  thread.start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(previous)
    writing.close()
    thread.join()
    reading.close()


class Stops:
  """Whether a run is asked to stop. It has no handlers: `received` is filled from outside.

  Attributes:
    received: the signals that came.
  """

  def __init__(self):
    self.received = []

  def __enter__(self):
    return self

  def __exit__(self, *exc_info):
    pass

  def stop_agreed(self) -> bool:
    """Whether the run stops now, and does not go on."""
    return bool(self.received)

  def leave_at(self, work: Callable[[], None]) -> None:
    """Calls work(), unless a signal came; one that comes meanwhile is heard where it heeds it."""
    with contextlib.suppress(Interrupted), may_be_left(self.received):
      heed()
      work()


class Signals(Stops):
  """Notes SIGTERM and SIGINT instead of ending the process; a context manager.

  Of several processes, none may stop alone: SIGTERM is left to JAX, which tells all of them.
  """

  def __enter__(self):
    self._asked, self._stops = 0, False
    note = dict.fromkeys((signal.SIGTERM, signal.SIGINT), self._note)
    if processes.count() > 1:
      note = {signal.SIGINT: lambda *_: signal.raise_signal(signal.SIGTERM)}
    self._stack = contextlib.ExitStack()
    self._stack.enter_context(_handled(note))
    words = 'stopping: the step in hand is finished and saved; Ctrl-C again ends at once'
    last_words = 'ended at once: the same command goes on from the newest checkpoint'
    self._stack.enter_context(_answered(words, last_words, None))
    return self

  def __exit__(self, *exc_info):
    self._stack.close()

  def stop_agreed(self) -> bool:
    """Whether the run stops now, and does not go on; all processes ask, equally often."""
    # JAX says it once only, at one count.
    self._stops |= processes.stop_agreed(self._asked, bool(self.received))
    self._asked += 1
    return self._stops

  def _note(self, number, _):
    self.received.append(number)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
  """Work that Ctrl-C leaves where it heeds signals, or wherever it is some seconds later.

  Raises:
    KeyboardInterrupt: Ctrl-C left the work.
  """
  received: list[int] = []
  words = 'stopping: what is computed is kept; Ctrl-C again ends at once'
  try:
    with (
      _handled({signal.SIGINT: lambda number, _: received.append(number)}),
      _answered(words, processes.INTERRUPTED_WORDS, PATIENCE_SECS),
      may_be_left(received),
    ):
      yield
  except Interrupted:
    raise KeyboardInterrupt from None


@contextlib.contextmanager
def _handled(handlers):
  previous = {number: signal.signal(number, new) for number, new in handlers.items()}
  try:
    yield
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
