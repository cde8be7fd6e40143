"""Long jobs in shards, so that the same command goes on after an interruption.

A job makes N rows, row i being a function of i and of a request (what was asked: parameters, seed,
choices). Its folder holds

  request.json     the request
  NAME.npz         rows 0, ..., n - 1, once they are complete
  shards/*.npz     rows made since, each file with a run of ids and named by the first
  seconds.txt      the seconds that each batch took, one a line
  unfinished.npz   the batch in hand, as it was when a signal came, or a minute ago

Rows of the same request are kept and completed, and more than are asked for are left as they are;
those of another request are moved to FOLDER.earlier1, ...
Each batch is a fixed run of ids, whatever was there before: the results of an interrupted job are
those of an undisturbed one, bit for bit. NAME.npz is there from its first to its last day: a longer
one takes its place at once, and only then do the shards go that it was made of.
One run at a time works in a folder (.FOLDER.lock beside it); another one waits for the rows that it
asks for.
"""

import contextlib
import json
import math
import pathlib
import time
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from ddpm_jax import processes
from ddpm_jax.errors import DiskError, UserError, WriteError
from ddpm_jax.heeding import heed, is_left
from ddpm_jax.storage import logs
from ddpm_jax.storage.files import file_lock, read_json, write_text, written_whole
from ddpm_jax.storage.npz import open_npz

BLOCK = 64  # rows copied at a time
KEEP_EVERY_SECS = 60  # of a batch in hand
KEPT_NAMES = ('shards', 'seconds.txt', 'grid.png')  # of version 1, beside NAME.npz


class Pauses:
  """What is done between two pieces of a batch; by default nothing."""

  def kept(self, start: Callable[[], list[np.ndarray]]) -> tuple[int, list[np.ndarray]] | None:
    """(steps done, state) of an earlier run's batch; None if there is none.

    Args:
      start: () -> the state before the first step, arrays in a fixed order.
    """

  def pause(self, step: int, num_steps: int, state: Callable[[], list[np.ndarray]]) -> None:
    """Between two pieces of work; may raise, to leave it.

    Args:
      step: steps done.
      num_steps: of the batch.
      state: () -> the state after them.
    """


class _Batch(Pauses):
  """A batch of a job: shows how far it is, and keeps its state in a file.

  Of several processes none keeps a state: they might not go on from the same step.
  """

  def __init__(self, file, ids, count, progress):
    self._file = file if processes.count() == 1 else None
    self._ids, self._count, self._progress = ids, count, progress
    self._start = self._last_write = time.perf_counter()
    self._secs_before = 0.0

  @property
  def secs(self):
    return self._secs_before + time.perf_counter() - self._start

  def kept(self, start):
    if not self._file or not self._file.exists():
      return None
    try:
      arrays = open_npz(self._file, verify=True)
      like = [(x.shape, x.dtype) for x in start()]
      state = [np.array(arrays[f'state_{i}']) for i in range(len(like))]
      if like == [(x.shape, x.dtype) for x in state] and np.array_equal(arrays['ids'], self._ids):
        self._secs_before = float(arrays['secs'])
        return int(arrays['step']), state
    except DiskError:
      raise
    except (UserError, KeyError):
      print(f'{self._file} is damaged: its batch is made anew')
    return None

  def pause(self, step, num_steps, state):
    if self._progress:
      self._progress.reach(self._count * step / num_steps)
    is_due = time.perf_counter() - self._last_write > KEEP_EVERY_SECS
    if self._file and step and (is_due or is_left()):
      arrays = {f'state_{i}': array for i, array in enumerate(state())}
      save(self._file, self._ids, arrays | {'step': np.array(step), 'secs': np.array(self.secs)})
      self._last_write = time.perf_counter()
    heed()

  def close(self):
    if self._file:
      self._file.unlink(missing_ok=True)


class Sizes(Protocol):
  """Sizes of a batch: over all devices, and of this process's share."""

  @property
  def global_(self) -> int:
    """Rows over all processes."""

  @property
  def host(self) -> int:
    """Rows of this process."""


def collect(
  folder: pathlib.Path,
  name: str,
  request: Mapping[str, Any],
  num_rows: int,
  compute: Callable[[np.ndarray, Pauses], dict[str, np.ndarray]],
  *,
  sizes: Sizes,
  what: str | None = None,
  finish: Callable[[pathlib.Path], None] | None = None,
  earlier: tuple[pathlib.Path, Mapping[str, Any]] | None = None,
) -> pathlib.Path:
  """Computes the rows 0, ..., num_rows - 1 that the folder lacks.

  Args:
    folder: pathlib.Path of the job.
    name: of the finished file.
    request: dict of JSON values that says what the rows are: an identity's facts.
    num_rows: N.
    compute: (ids int64 [sizes.host], pauses) -> dict of arrays: the rows of this process's share of
      a batch. Ids beyond N - 1 are N - 1 again, to fill the last batch. A batch of more than a
      second calls `pauses` between its pieces.
    sizes: of a batch, as devices.BatchSizes.
    what: word for the progress; None for silence.
    finish: path of NAME.npz -> None: called by the first process before another run may go on;
      not where another run is at work, whose part it is.
    earlier: (folder, request) where version 1 of the program has such rows; see earlier.py.

  Returns:
    path of the finished NAME.npz, with `ids` and each array of compute: N rows, or more if they
    were there.

  Raises:
    UserError: a file cannot be written.
  """
  finished = folder / f'{name}.npz'

  def has_rows():
    with contextlib.suppress(UserError):  # it is damaged: the other process makes it anew
      return _is_of(folder / 'request.json', request) and len(load_ids(finished)) >= num_rows
    return False

  with contextlib.ExitStack() as stack:
    works = False
    if processes.is_primary():
      lock = folder.with_name(f'.{folder.name}.lock')
      what_else = f'another process that works in {folder}'
      # Another process may be at more rows than are asked for here.
      works = stack.enter_context(file_lock(lock, waiting_for=what_else, unless=has_rows))
    if works:
      if earlier and not finished.exists():
        _take_over(folder, request, *earlier)
      _prepare(folder, finished, request)
    processes.barrier(f'{folder.name} prepared')
    if len(load_ids(finished)) < num_rows:
      _complete(folder, finished, num_rows, compute, sizes, what)
    if finish and works:
      finish(finished)
  return finished


def _take_over(folder, request, earlier_folder, earlier_request):
  """Moves the rows of version 1, if they are of this request, to their folder of today."""
  if not _is_of(earlier_folder / 'request.json', earlier_request):
    return
  folder.mkdir(parents=True, exist_ok=True)
  write_text(folder / 'request.json', json.dumps(request, indent=2) + '\n')
  # NAME.npz is the last to move: killed before, the same command goes on with this.
  for file in sorted(earlier_folder.iterdir(), key=lambda file: (file.suffix == '.npz', file.name)):
    is_kept = file.name in KEPT_NAMES or file.suffix == '.npz'
    if is_kept and not (folder / file.name).exists():
      file.rename(folder / file.name)
  (earlier_folder / 'request.json').unlink()
  if not any(earlier_folder.iterdir()):
    earlier_folder.rmdir()


def _complete(folder, finished, num_rows, compute, sizes, what):
  """Makes what neither the finished file nor the shards have, and one file of all."""
  shards = folder / 'shards'
  done = np.concatenate([load_ids(file) for file in [finished, *_files(shards)]])
  num_rows = max(num_rows, int(done.max(initial=-1)) + 1)
  missing = np.isin(np.arange(num_rows), done, invert=True)
  shards.mkdir(exist_ok=True)
  processes.barrier(f'{folder.name} missing rows known')
  progress = None
  if what is not None and processes.is_primary():
    progress = logs.Progress(what, num_rows, done=len(done))
  for first in range(0, num_rows, sizes.global_):
    count = np.count_nonzero(missing[first : first + sizes.global_])
    if not count:
      continue
    heed()
    own = first + processes.index() * sizes.host
    ids = np.arange(own, own + sizes.host)
    clipped_ids = np.minimum(ids, num_rows - 1)
    batch = _Batch(folder / 'unfinished.npz', clipped_ids, count, progress)
    arrays = compute(clipped_ids, batch)
    for run in _runs([i for i in ids if i < num_rows and missing[i]]):
      rows = run - ids[0]
      save(shards / f'{run[0]:08d}.npz', run, {key: x[rows] for key, x in arrays.items()})
    if processes.is_primary():
      _note_seconds(folder, batch.secs)
    batch.close()
    if progress:
      progress.add(count)
  if progress:
    progress.close()
  processes.barrier(f'{folder.name} rows made')
  if processes.is_primary():
    _merge(shards, finished)
  processes.barrier(f'{folder.name} merged')


def seconds(folder: pathlib.Path) -> float | None:
  """The seconds that the rows of a job took, over all runs; None where they are not known."""
  file = folder / 'seconds.txt'
  try:
    total = sum(map(float, file.read_text().split())) if file.exists() else math.nan
  except ValueError:  # damaged: no result depends on it
    total = math.nan
  return round(total, 1) if math.isfinite(total) else None


def _note_seconds(folder, secs):
  file = folder / 'seconds.txt'
  try:
    with open(file, 'a') as stream:
      stream.write(f'{secs:.3f}\n')
  except OSError as error:
    raise WriteError(file, error) from error


def _files(shards):
  """The shards in the order of their ids."""
  return sorted(shards.glob('*.npz'))


def _runs(ids):
  """Cuts increasing ids into arrays without a gap."""
  return np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1) if len(ids) else []


def load_ids(file: pathlib.Path) -> np.ndarray:
  """The ids of a shard, or of a finished file; none if it is not there."""
  return np.array(open_npz(file)['ids'] if file.exists() else [], np.int64)


def save(file: pathlib.Path, ids: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes a shard, as files.written_whole says."""
  with written_whole(file) as partial, open(partial, 'wb') as stream:
    np.savez(stream, **{'ids': ids, **arrays})  # type: ignore[arg-type]


def _prepare(folder, finished, request):
  """Leaves what can be used: a finished file, and in folder/shards rows that it has not."""
  shards = folder / 'shards'
  if not _is_of(folder / 'request.json', request):
    if finished.exists() or shards.exists():
      _move_aside(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / 'request.json', json.dumps(request, indent=2) + '\n')
  done = np.zeros(0, np.int64)
  if finished.exists():
    done = _intact_ids(finished)
    if not np.array_equal(done, np.arange(max(1, len(done)))):
      done = np.zeros(0, np.int64)
      damaged = finished.replace(finished.with_name(f'{finished.stem}.damaged.npz'))
      print(f'{finished} is damaged: now {damaged.name}, and its rows are made anew')
  for shard in sorted(shards.iterdir()) if shards.exists() else ():
    ids = _intact_ids(shard) if shard.suffix == '.npz' else done[:0]
    if not len(ids):
      print(f'{shard} is incomplete: its rows are made anew')
    if not len(ids) or np.isin(ids, done).any():  # or it was merged already
      shard.unlink()
    else:
      done = np.concatenate([done, ids])
  if shards.exists() and not _files(shards):
    shards.rmdir()


def _is_of(request_file, request):
  """Whether a job's folder has rows of this request; a damaged file says that it has not."""
  try:
    return request_file.exists() and read_json(request_file) == request
  except UserError:
    return False


def _move_aside(folder):
  number = 1
  while (target := folder.with_name(f'{folder.name}.earlier{number}')).exists():
    number += 1
  folder.rename(target)
  print(f'{folder} held results of another request: now {target}')


def _intact_ids(file):
  """The ids, if every array is there and has its checksum; none otherwise."""
  try:
    arrays = open_npz(file, verify=True)
  except DiskError:
    raise
  except UserError:
    return np.zeros(0, np.int64)
  ids = np.array(arrays.get('ids', []), np.int64)
  return ids if all(array.shape[:1] == ids.shape for array in arrays.values()) else ids[:0]


def _merge(shards, finished):
  """Makes NAME.npz of itself and the shards, some rows in memory at a time."""
  files = [file for file in (finished, *_files(shards)) if file.exists()]
  ids = np.concatenate([load_ids(file) for file in files])
  if not np.array_equal(ids, np.arange(len(ids))):
    raise UserError(f'{shards} lacks rows that were made: run the same command again')
  names = list(open_npz(files[0]))
  with written_whole(finished) as partial, zipfile.ZipFile(partial, 'w') as archive:
    for name in names:
      member = zipfile.ZipInfo(f'{name}.npy')  # dated 1980: the same rows are the same bytes
      with archive.open(member, 'w', force_zip64=True) as stream:
        _write_concatenated(stream, files, name, len(ids))
  for shard in _files(shards):
    shard.unlink()
  shards.rmdir()


def _write_concatenated(stream, files, name, num_rows):
  """Writes one array of all files in the .npy format."""
  for file in files:
    rows = open_npz(file)[name]
    if file == files[0]:
      header = np.lib.format.header_data_from_array_1_0(rows)
      shape = num_rows, *rows.shape[1:]
      header |= {'shape': shape, 'fortran_order': False}
      np.lib.format.write_array_header_1_0(stream, header)
    for first in range(0, len(rows), BLOCK):
      stream.write(rows[first : first + BLOCK].tobytes())
