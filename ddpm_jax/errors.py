"""Exceptions that are told in one line. Every other one is a defect, and keeps its traceback."""

from collections.abc import Mapping

import numpy as np


class UserError(ValueError):
  """A mistake of the user: what was given, what is allowed, what to do."""


class DiskError(UserError):
  """The system refuses a file."""

  refused_to_be = 'used'

  def __init__(self, file: object, error: OSError):
    super().__init__(
      f'{file} cannot be {self.refused_to_be} ({error.strerror or error}); mend that, and the same '
      'command goes on'
    )


class WriteError(DiskError):
  """A file could not be written, as on a full disk; what was there before is still there."""

  refused_to_be = 'written'


class DeleteError(DiskError):
  """What is no longer needed could not be deleted."""

  refused_to_be = 'deleted'


class NotFiniteError(FloatingPointError):
  """A step's loss, or another of its metrics, is infinite or no number.

  Attributes:
    step: which.
    metrics: {name: value} of that step.
  """

  def __init__(self, step: int, metrics: Mapping[str, float]):
    self.step, self.metrics = step, metrics
    name, value = next((n, x) for n, x in metrics.items() if not np.isfinite(x))
    super().__init__(
      f'the {name} is {value} at step {step}; the last checkpoint is from before. Lower '
      'optim.learning_rate or lengthen optim.warmup_steps, in another workdir; or go on without '
      'this batch, with train.on_nonfinite=skip'
    )


def check_system(platform: str) -> None:
  """Raises a UserError where the program does not run: sys.platform is neither Linux nor macOS."""
  if platform not in ('linux', 'darwin'):
    raise UserError(f'ddpm_jax runs on Linux and macOS, not on {platform}; on Windows, use WSL')
