"""Checkpoints: Orbax writes and reads the arrays; this file adds what Orbax does not promise.

On disk, below the checkpoint directory:

  N/            a finished step: the Orbax items `state` (step, params, opt_state), `ema_params` and
                `config` (JSON), and MANIFEST.json, the size and sha256 of every other file, with
                the step's number and its run
  N.writing*/   a step being saved, or left by a killed run; removed when the next run begins
  N.deleting/   an old step on its way out, likewise
  N.damaged*/   a step that did not verify, moved aside by the run that fell back past it; nothing
                here reads or deletes it

  KEEP.*        names of steps, one a line, that are not to be deleted (see keep_steps)

A step gets its bare name by one rename, after its arrays were read back, its files and then its
manifest are on disk. So a folder named N was finished once, and whatever no longer matches its
manifest is damage. Orbax alone restores flipped bits silently, never falls back to an older step,
casts a wrong dtype, and in a folder called [a] writes what it cannot read.

The directory must be on a POSIX file system (rename is the commit), not a bucket's address.
"""

import errno
import json
import logging
import pathlib
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ddpm_jax import processes
from ddpm_jax.errors import DeleteError, DiskError, UserError, WriteError
from ddpm_jax.refusals import disk_error_behind
from ddpm_jax.storage.files import sync, write_text
from ddpm_jax.storage.manifest import find_fault, read_manifest, write_manifest
from ddpm_jax.storage.run_record import RunRecord
from ddpm_jax.storage.workdir import (
  ENCODING_FIELDS,
  FREE_FIELDS,
  check_path,
  differences,
  differing_fields,
  steps_on_disk,
)

# What must agree between a checkpoint and the program that reads it: sections, or single fields.
MODEL_FIELDS = ('model', 'diffusion', 'data.image_size', 'data.channels', *ENCODING_FIELDS)
# But for these: the parameters are the same, float32, whatever they are computed with.
FREE_MODEL_FIELDS = (*FREE_FIELDS, 'model.dtype')

# In which Orbax's other threads have their say on a save that failed, in tracebacks.
SETTLE_SECS = 1

logger = logging.getLogger(__name__)


class GoneError(UserError):
  """A checkpoint is not there, or was deleted by the run in progress."""


class Checkpointer:
  """Saves and restores a TrainState; use it as a context manager, or call close().

  One run writes to a directory at a time. Any number of readers (`read_only=True`) may look on:
  a reader never creates, renames or deletes anything.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    config: Mapping[str, Any],
    *,
    keep_last: int = 3,
    keep_every_steps: int | None = None,
    read_only: bool = False,
    is_primary: bool = True,
    record: pathlib.Path | None = None,
  ):
    """Prepares the directory: created where missing, rid of what a killed run left unfinished.

    Args:
      directory: the folder that holds the steps; on a file system all processes share.
      config: the whole config as a dict that JSON can hold; saved with each step.
      keep_last: how many of the newest steps to keep, at least 1.
      keep_every_steps: also keep each step divisible by this, for ever; None keeps no others.
      read_only: True for sampling and evaluation, which must not disturb a run in progress.
      is_primary: whether this process writes manifests, renames and deletes; one process does.
      record: a file outside of the directory, see run_record.py: steps of another run count as
        damaged, and to write where all steps are gone is an error.
    """
    if '://' in str(directory):
      raise UserError(f'checkpoint directory {directory}: must be a local path, not an address')
    check_path(directory, writes=not read_only)
    if keep_last < 1 or (keep_every_steps is not None and keep_every_steps < 1):
      raise UserError(
        f'keep_last {keep_last}, keep_every_steps {keep_every_steps}: '
        'must be at least 1 (or None for keep_every_steps)'
      )
    self._directory = pathlib.Path(directory).absolute()
    self._config = json.loads(json.dumps(config))
    self._keep_last = keep_last
    self._keep_every_steps = keep_every_steps
    self._read_only = read_only
    self._owns_files = is_primary and not read_only
    self._orbax = ocp.AsyncCheckpointer(
      ocp.CompositeCheckpointHandler(
        handler_registry=ocp.handlers.create_default_handler_registry(
          state=ocp.StandardCheckpointHandler(),
          ema_params=ocp.StandardCheckpointHandler(),
          config=ocp.JsonCheckpointHandler(),
        )
      )
    )
    self._thread = futures.ThreadPoolExecutor(max_workers=1)
    self._pending = None  # (step, future) of the save under way
    self._last_step = None  # the step this run last saved or restored
    self._record = record and RunRecord(record, self._directory, owned=self._owns_files)
    if self._owns_files:
      if self._record and self._record.are_lost():
        raise GoneError(
          f'no checkpoint in {self._directory}, where this run has saved some: put them back, or '
          f'mount their disk; to begin anew, delete {record} or give another workdir'
        )
      self._directory.mkdir(parents=True, exist_ok=True)
      self._remove_unfinished()
    if not read_only:
      processes.barrier('checkpoints prepared')

  def __enter__(self):
    return self

  def __exit__(self, *exc_info):
    self.close()

  def all_steps(self) -> list[int]:
    """Returns the finished steps on disk, ascending; damaged ones among them until a restore."""
    return json.loads(processes.from_primary(json.dumps(steps_on_disk(self._directory))))

  def save(self, step: int, state: Any) -> bool:
    """Begins to save and returns while the files are written; the arrays may be donated at once.

    They are copied by then, or on the CPU held by views that make JAX leave the buffers alone.
    Waits for the save before this one, and raises what went wrong there.

    Args:
      step: the number of finished training steps, equal to state.step.
      state: a TrainState of jax.Arrays; with several processes, of global arrays.

    Returns:
      True, or False where this run already saved or restored this very step: nothing to do then.

    Raises:
      UserError: the step is on disk, but from a run that this one did not restore.
      WriteError, RuntimeError: the save before this one failed in the background.
    """
    assert not self._read_only, 'save() on a read-only Checkpointer'
    self.wait()
    if step == self._last_step:
      return False
    if self._folder(step).exists():
      raise UserError(
        f'checkpoint {step} in {self._directory} is from another run: '
        'restore the newest step first, or choose another workdir'
      )
    writing = self._directory / f'{step}.writing'
    items = _items(state)
    try:
      # force: a leftover of this name can only be from a save that failed.
      self._orbax.save(
        writing,
        force=True,
        args=ocp.args.Composite(
          config=ocp.args.JsonSave(self._config),
          **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
        ),
      )
    except Exception as error:
      self._raise_failed(step, error)
    self._last_step = step
    copies = jax.device_get(items) if self._owns_files else None
    self._pending = step, self._thread.submit(self._commit, writing, step, copies)
    return True

  def restore_latest(self, state_like: Any) -> Any:
    """Restores the newest step that verifies; newer ones that do not are moved to N.damaged.

    Args:
      state_like: a TrainState of arrays or ShapeDtypeStructs: shapes, dtypes, and shardings where
        it has them (otherwise the arrays come back on the first local device).

    Returns:
      The TrainState, bit for bit as saved, or None where the directory holds no step.

    Raises:
      UserError: there are steps but none verifies; or the newest intact one is of another model.
    """
    items = _items(state_like)
    found = self._restore_newest(lambda step: self._read(step, items))
    if found is None:
      return None
    self._last_step, restored = found
    if self._owns_files:
      self._delete_old_steps()  # what a run that ended by an error may have left
    return state_like.replace(ema_params=restored['ema_params'], **restored['state'])

  def restore_ema(self, params_like: Any, step: int | None = None) -> tuple[int, Any, str]:
    """Restores the EMA parameters alone, for sampling and evaluation; moves nothing aside.

    Args:
      params_like: the parameters' pytree, as in restore_latest.
      step: which step to read; None takes the newest that verifies.

    Returns:
      (step, ema_params, checksum): checksum is the sha256 (hex) over the step's manifest, and so
      names these very bytes.

    Raises:
      UserError: no such step, or damaged, or of another model.
    """

    step, restored, checksum = self._restore({'ema_params': params_like}, step)
    return step, restored['ema_params'], checksum

  def restore_state(self, state_like: Any, step: int | None = None) -> tuple[int, Any, str]:
    """As restore_ema, for the whole TrainState: (step, state, checksum)."""
    step, restored, checksum = self._restore(_items(state_like), step)
    state = state_like.replace(ema_params=restored['ema_params'], **restored['state'])
    return step, state, checksum

  def _restore(self, items, step):
    """(step, {item: tree}, checksum) of a step, or of the newest that verifies; moves nothing."""

    def read(step):
      return self._read(step, items), read_manifest(self._folder(step))['checksum']

    if step is None:
      found = self._restore_newest(read, set_aside=False)
      if found is None:
        raise GoneError(f'no checkpoint in {self._directory}: train first, or check the workdir')
      step, (restored, checksum) = found
      return step, restored, checksum
    self.wait()
    if step not in self.all_steps():
      raise GoneError(f'no checkpoint {step} in {self._directory}: it has {self.all_steps()}')
    fault, restored = self._try_read(step, read)
    if not self._is_there(step):
      raise GoneError(
        f'checkpoint {step} in {self._directory} was deleted by the run in progress while it was '
        f'read: choose one of {self.all_steps()}'
      )
    if fault is not None:
      raise UserError(
        f'checkpoint {step} in {self._directory} is damaged ({fault}): '
        'choose another step, or none for the newest intact one'
      )
    return step, *restored

  def wait(self) -> None:
    """Waits until the save under way is on disk with its manifest; raises what went wrong there."""
    if self._pending is None:
      return
    step, future = self._pending
    error = future.exception()
    self._pending = None
    if isinstance(error, DiskError):  # of what came after: the step is saved
      raise error
    if error is not None:
      self._last_step = None  # so that saving the step again is tried, not skipped
      self._raise_failed(step, error)

  def _raise_failed(self, step, error):
    where = f'checkpoint {step} in {self._directory}'
    cause = disk_error_behind(error)
    if cause is not None:
      time.sleep(SETTLE_SECS)
      raise WriteError(where, cause) from error
    raise RuntimeError(f'saving {where} failed: {error!r}') from error

  def close(self) -> None:
    """Waits as wait() does, then frees the threads."""
    try:
      self.wait()
    finally:
      self._thread.shutdown()
      self._orbax.close()

  def _folder(self, step):
    return self._directory / str(step)

  def _commit(self, writing, step, copies):
    """In the background: Orbax's end, a look at what it wrote, the manifest, the rename that makes
    the step, retention."""
    self._orbax.wait_until_finished()
    if not self._owns_files:
      return
    _read_back(writing, copies)
    write_manifest(writing, self._facts(step))
    writing.rename(self._folder(step))
    sync(self._directory)
    if self._record:
      self._record.note_saved()
    self._delete_old_steps()

  def _facts(self, step):
    """What a seal says of its step."""
    run = self._record and self._record.run
    return {'step': step} | ({'run': run} if run else {})

  def _is_there(self, step):
    """Whether the first process sees the step."""
    return bool(processes.from_primary('yes' if self._folder(step).is_dir() else ''))

  def _fault(self, step):
    """As find_fault; the first process reads for all."""
    is_primary = processes.is_primary()
    found = find_fault(self._folder(step), self._facts(step)) if is_primary else None
    return processes.from_primary(found or '') or None

  def _delete_old_steps(self):
    steps = steps_on_disk(self._directory)
    kept = set(steps[-self._keep_last :])
    if self._keep_every_steps is not None:
      kept |= {step for step in steps if step % self._keep_every_steps == 0}
    for file in self._directory.glob('KEEP.*'):
      try:
        kept |= {int(line) for line in file.read_text().split()}
      except ValueError:
        print(f'{file} is damaged: no checkpoint is deleted until it is put back, or deleted')
        return
    for step in set(steps) - kept:
      # Renamed first: a kill half-way must not leave what looks like a damaged step, and a reader
      # that still finds the name after reading knows that it read a whole step.
      try:
        doomed = self._folder(step).rename(self._directory / f'{step}.deleting')
        shutil.rmtree(doomed)
      except OSError as error:
        raise DeleteError(f'old checkpoint {step} in {self._directory}', error) from error

  def _remove_unfinished(self):
    for path in self._directory.iterdir():
      if re.fullmatch(r'[0-9]+\.(writing|deleting|orbax-checkpoint-tmp).*', path.name):
        shutil.rmtree(path)

  def _restore_newest(self, read, *, set_aside=True):
    """Returns (step, read(step)) for the newest step that verifies; None where there is none."""
    self.wait()
    faults = {}
    for step in reversed(self.all_steps()):
      fault, restored = self._try_read(step, read)
      if not self._is_there(step):  # deleted by the run in progress: look again
        return self._restore_newest(read, set_aside=set_aside)
      if fault is None:
        for damaged, fault_of_it in faults.items():
          self._pass_over(damaged, fault_of_it, step, set_aside=set_aside and self._owns_files)
        return step, restored
      faults[step] = fault
    if faults:
      raise UserError(
        f'no checkpoint in {self._directory} is intact: '
        + '; '.join(f'{step} ({fault})' for step, fault in faults.items())
        + '. Put back a good copy, or choose another workdir'
      )
    return None

  def _try_read(self, step, read):
    """Returns (fault, read(step)); of no account where the step is gone afterwards."""
    fault, restored = self._fault(step), None
    if fault is None:
      try:
        restored = read(step)
      except Exception as error:
        if self._folder(step).is_dir():
          cause = None if isinstance(error, UserError) else disk_error_behind(error)
          if cause is None:
            raise
          raise DiskError(self._folder(step), cause) from error
    return fault, restored

  def _pass_over(self, step, fault, used_step, *, set_aside):
    """Says that a step is damaged; set_aside renames it, so that its number can be saved again."""
    moved = ''
    if set_aside:
      target = self._directory / f'{step}.damaged'
      while target.exists():
        target = target.with_name(f'{target.name}+')
      self._folder(step).rename(target)
      moved = f'; moved to {target.name}'
    logger.warning(
      'checkpoint %d in %s is damaged (%s): using checkpoint %d instead%s',
      step,
      self._directory,
      fault,
      used_step,
      moved,
    )

  def _read(self, step, items):
    """Reads the named items after checking config, shapes and dtypes; {name: pytree of arrays}."""
    folder = self._folder(step)
    stored = self._orbax.restore(folder, args=ocp.args.Composite(config=ocp.args.JsonRestore()))
    differences = differing_fields(
      stored['config'],
      self._config,
      MODEL_FIELDS,
      stored_name='checkpoint',
      free=FREE_MODEL_FIELDS,
    )
    if not differences:
      handler = ocp.StandardCheckpointHandler()  # of the items asked for: of all takes its time
      differences = [
        line
        for name, tree in items.items()
        for line in _array_differences(name, handler.metadata(folder / name).tree, tree)
      ]
    if differences:
      more = f'; and {len(differences) - 8} more' if len(differences) > 8 else ''
      raise UserError(
        f'checkpoint {step} in {self._directory} is of another model: '
        + '; '.join(differences[:8])
        + f'{more}. Use its config, or another workdir'
      )
    return self._orbax.restore(
      folder,
      args=ocp.args.Composite(
        **{
          name: ocp.args.StandardRestore(jax.tree.map(_template, tree))
          for name, tree in items.items()
        }
      ),
    )


def keep_steps(directory: pathlib.Path, reason: str, steps: Sequence[int]) -> None:
  """Keeps steps from being deleted by the run in progress, until called again with others.

  Args:
    directory: pathlib.Path of the checkpoints.
    reason: a word, such as 'best'; each has its own steps.
    steps: ints.
  """
  write_text(directory / f'KEEP.{reason}', ''.join(f'{step}\n' for step in steps))


def _items(state):
  """Splits a TrainState into the items on disk; the EMA alone, as sampling reads nothing else."""
  carried = {'step': state.step, 'params': state.params, 'opt_state': state.opt_state}
  for name in ('loss_history', 'averages'):
    if (more := getattr(state, name)) is not None:
      carried[name] = more
  return {
    'state': carried,
    'ema_params': state.ema_params,
  }


def _read_back(folder, copies):
  """Raises an OSError unless a restore from this very folder gives the arrays that were saved."""
  for name, tree in copies.items():
    # Arrays as the template: they are not read into, but come back as arrays of NumPy.
    read = ocp.StandardCheckpointHandler().restore(
      folder / name, args=ocp.args.StandardRestore(tree)
    )
    found, expected = named_leaves(read), named_leaves(tree)
    if found.keys() != expected.keys() or not all(
      _same_bits(found[leaf], expected[leaf]) for leaf in found
    ):
      raise OSError(errno.EIO, 'what was read back is not what was written')


def _same_bits(one, other):
  one, other = np.asarray(one), np.asarray(other)
  same_kind = one.dtype == other.dtype and one.shape == other.shape
  return same_kind and np.array_equal(*(x.reshape(-1).view(np.uint8) for x in (one, other)))


def _template(x):
  sharding = getattr(x, 'sharding', None)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _array_differences(item, stored, asked):
  """Returns a line for each array that is missing on either side or has another shape or dtype.

  Orbax itself would cast a wrong dtype silently, and name a wrong shape without its array.
  """

  def shapes(tree):
    return {f'{item}.{name}': f'{x.dtype}{list(x.shape)}' for name, x in named_leaves(tree).items()}

  return differences(shapes(stored), shapes(asked), ('checkpoint', 'program'))


def named_leaves(tree: Any) -> dict[str, Any]:
  """{'conv_in.kernel': array} of a tree."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): x
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }
