"""SIGTERM and SIGINT in training: the step in hand is finished, and the state saved."""

import signal
import sys
from collections.abc import Callable

from ddpm_jax import processes

LEAVE_AGAIN_SECS = 0.2


class Interrupted(BaseException):
  """A signal came during Signals.leave_at."""


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
    """Calls work()."""
    if not self.received:
      work()


class Signals(Stops):
  """Notes SIGTERM and SIGINT instead of ending the process; a context manager.

  Of several processes, none may stop alone: SIGTERM is left to JAX, which tells all of them.
  """

  def __enter__(self):
    self._leaving = False
    self._asked, self._stops = 0, False
    handlers = dict.fromkeys((signal.SIGTERM, signal.SIGINT), self._note)
    handlers[signal.SIGALRM] = self._leave
    if processes.count() > 1:
      handlers = {signal.SIGINT: lambda *_: signal.raise_signal(signal.SIGTERM)}
    self._previous = {number: signal.signal(number, new) for number, new in handlers.items()}
    self._previous_hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
    return self

  def __exit__(self, *exc_info):
    sys.unraisablehook = self._previous_hook
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def stop_agreed(self) -> bool:
    """Whether the run stops now, and does not go on; all processes ask, equally often."""
    # JAX says it once only, at one count.
    self._stops |= processes.stop_agreed(self._asked, bool(self.received))
    self._asked += 1
    return self._stops

  def leave_at(self, work: Callable[[], None]) -> None:
    """Calls work(), which a signal may leave at any point."""
    try:
      self._leaving = True
      if not self.received:
        work()
    except Interrupted:
      pass
    finally:
      self._leaving = False
      signal.setitimer(signal.ITIMER_REAL, 0)

  def _note(self, number, _):
    self.received.append(number)
    self._leave()

  def _leave(self, *_):
    """Leaves the work; and again a moment later, where the exception was swallowed."""
    if self._leaving:
      signal.setitimer(signal.ITIMER_REAL, LEAVE_AGAIN_SECS)
      raise Interrupted

  def _unraisable(self, unraisable):
    """Says nothing of an Interrupted that came in a destructor or in a callback of one."""
    if unraisable.exc_type is not Interrupted:
      self._previous_hook(unraisable)
