"""SIGTERM and SIGINT in training: the step in hand is finished, and the state saved."""

import signal
from collections.abc import Callable

from ddpm_jax import processes

LEAVE_AGAIN_SECS = 0.2
SWALLOWERS = ('__del__', '_xla_gc_callback')  # functions whose exceptions Python only prints


class Interrupted(BaseException):
  """A signal came during Signals.leave_at."""


class Signals:
  """Notes SIGTERM and SIGINT instead of ending the process; a context manager.

  Of several processes, none may stop alone: SIGTERM is left to JAX, which tells all of them.
  """

  def __enter__(self):
    self.received = []
    self._leaving = False
    self._asked, self._stops = 0, False
    handlers = dict.fromkeys((signal.SIGTERM, signal.SIGINT), self._note)
    handlers[signal.SIGALRM] = self._leave
    if processes.count() > 1:
      handlers = {signal.SIGINT: lambda *_: signal.raise_signal(signal.SIGTERM)}
    self._previous = {number: signal.signal(number, new) for number, new in handlers.items()}
    return self

  def __exit__(self, *exc_info):
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

  def _note(self, number, frame):
    self.received.append(number)
    self._leave(number, frame)

  def _leave(self, _, frame):
    """Leaves the work; where an exception would be swallowed, a moment later."""
    if not self._leaving:
      return
    signal.setitimer(signal.ITIMER_REAL, LEAVE_AGAIN_SECS)
    while frame is not None:
      if frame.f_code.co_name in SWALLOWERS:
        return
      frame = frame.f_back
    raise Interrupted
