"""WORKDIR/run.json: which run this is, and whether it has saved a step.

The name of the run, drawn at random, stands in the seal of each of its steps: a step that was
copied here from another run is noticed. And where steps were saved but none is there, as when a
disk is not mounted, a run must not begin anew over what it logged.
"""

import json
import pathlib
import uuid

from ddpm_jax.errors import UserError
from ddpm_jax.storage.files import read_json, write_text
from ddpm_jax.storage.manifest import read_manifest
from ddpm_jax.storage.workdir import steps_on_disk

RUN_FILE = 'run.json'


class RunRecord:
  """The file, as this process knows it.

  Attributes:
    file: pathlib.Path.
    run: the name of the run; None to a reader of a workdir without one, as of earlier versions.
  """

  def __init__(self, file: pathlib.Path, checkpoints: pathlib.Path, *, owned: bool):
    """Reads the file; `owned` makes one where there is none.

    Args:
      file: pathlib.Path.
      checkpoints: the folder of the run's steps.
      owned: whether this process writes to the workdir.

    Raises:
      UserError: the file is damaged.
    """
    self.file, self._checkpoints = file, checkpoints
    self.run, self._has_saved = _read(file)
    if owned and self.run is None:
      self.run = _run_of_newest(checkpoints) or uuid.uuid4().hex
      # Earlier versions had no such file, but made the folder before the first step.
      is_gone = not checkpoints.exists() and _has_results(file.parent)
      self._has_saved = is_gone or bool(steps_on_disk(checkpoints))
      self._write()

  def note_saved(self) -> None:
    """Notes that a step was saved."""
    if not self._has_saved:
      self._has_saved = True
      self._write()

  def are_lost(self) -> bool:
    """Whether steps were saved, and none is there."""
    return self._has_saved and not steps_on_disk(self._checkpoints)

  def _write(self):
    content = {'run': self.run, 'has_saved': self._has_saved}
    write_text(self.file, json.dumps(content) + '\n')


def _read(file):
  """(run, whether it has saved a step); (None, False) where there is no file."""
  if not file.is_file():
    return None, False
  content = read_json(file)
  if not isinstance(content, dict) or not isinstance(content.get('run'), str):
    raise UserError(f'{file} is damaged: put back what it had, or delete it')
  return content['run'], bool(content.get('has_saved'))


def _has_results(workdir):
  """Whether a workdir has logged steps, samples or reports."""
  log = workdir / 'metrics.jsonl'
  is_logged = log.is_file() and log.stat().st_size > 0
  return is_logged or any(any((workdir / name).glob('step_*')) for name in ('samples', 'eval'))


def _run_of_newest(checkpoints):
  """The run of the newest step, as of checkpoints that were put into another workdir."""
  for step in reversed(steps_on_disk(checkpoints)):
    try:
      return read_manifest(checkpoints / str(step)).get('run')
    except UserError:
      continue
  return None
