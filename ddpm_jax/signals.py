"""SIGTERM and SIGINT in training: the step in hand is finished, and the state saved.

Nothing is raised out of a signal handler. Such an exception comes anywhere: in a destructor, where
Python swallows it, or in the midst of another library between the start of a computation and its
result. Long work calls heed() between its pieces instead.
"""

import signal
from collections.abc import Callable, Sequence
from contextvars import ContextVar

from ddpm_jax import processes

_received: ContextVar[Sequence[int]] = ContextVar('received', default=())


class Interrupted(BaseException):
  """A signal came during Stops.leave_at."""


def heed() -> None:
  """Leaves the work of the Stops.leave_at around, once a signal came; between two of its pieces."""
  if _received.get():
    raise Interrupted


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
    token = _received.set(self.received)
    try:
      heed()
      work()
    except Interrupted:
      pass
    finally:
      _received.reset(token)


class Signals(Stops):
  """Notes SIGTERM and SIGINT instead of ending the process; a context manager.

  Of several processes, none may stop alone: SIGTERM is left to JAX, which tells all of them.
  """

  def __enter__(self):
    self._asked, self._stops = 0, False
    handlers = dict.fromkeys(
      (signal.SIGTERM, signal.SIGINT), lambda number, _: self.received.append(number)
    )
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
