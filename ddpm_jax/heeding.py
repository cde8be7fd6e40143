"""Long work that can be left between two of its pieces. Imports no jax: picture readers use it."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

_received: ContextVar[Sequence[int]] = ContextVar('received', default=())


class Interrupted(BaseException):
  """A signal came during work that may be left."""


@contextlib.contextmanager
def may_be_left(received: Sequence[int]) -> Iterator[None]:
  """Work in a block of code that is left once there is a signal in `received`."""
  token = _received.set(received)
  try:
    yield
  finally:
    _received.reset(token)


def is_left() -> bool:
  """Whether a signal came during the work that may be left."""
  return bool(_received.get())


def heed() -> None:
  """Leaves the work that may be left, once a signal came; called between two of its pieces."""
  if is_left():
    raise Interrupted


def sleep(secs: float) -> None:
  """Waits so long, or until a signal came."""
  end = time.monotonic() + secs
  while (left := end - time.monotonic()) > 0:
    heed()
    time.sleep(min(left, 0.2))
