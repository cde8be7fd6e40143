"""The system's refusals of files, found behind the exceptions of libraries."""

import errno
import os

from ddpm_jax.errors import DiskError, UserError

# By which the system refuses a file. Any other OSError that nothing expects is a defect.
REFUSALS = (
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EFBIG,
  errno.EROFS,
  errno.EACCES,
  errno.EPERM,
  errno.ENOTDIR,
  errno.EIO,
  errno.ESTALE,
)


def disk_error(error: BaseException) -> OSError | None:
  """The OSError that an exception is; or puts into words only, as Rust and C++ do; or None."""
  if isinstance(error, OSError):
    return error
  for number in REFUSALS:
    if os.strerror(number) in str(error):
      return OSError(number, os.strerror(number))
  return None


def disk_error_behind(error: BaseException) -> OSError | None:
  """The first disk_error of an exception and of those that it was raised from; or None."""
  return next((cause for e in _chain(error) if (cause := disk_error(e)) is not None), None)


def refusal_behind(error: BaseException) -> OSError | None:
  """As disk_error_behind, of the REFUSALS alone; a UserError's own words do not count."""
  for e in _chain(error):
    cause = None if isinstance(e, UserError) else disk_error(e)
    if cause is not None and cause.errno in REFUSALS:
      return cause
  return None


def raise_refusal(file: object, error: BaseException) -> None:
  """Raises a DiskError where the system's refusal is behind an exception, and no damage.

  Args:
    file: the one that was read.
    error: of whoever read it, such as zipfile's "not a zip file".
  """
  if isinstance(error, DiskError):
    raise error
  cause = refusal_behind(error)
  if cause is not None:
    raise DiskError(file, cause) from error


def _chain(error):
  while error is not None:
    yield error
    error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
