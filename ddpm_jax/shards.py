"""Long jobs in shards, so that the same command goes on after an interruption.

A job makes N rows, row i being a function of i and of a request (what was asked: parameters, seed,
choices). Its folder holds

  request.json     the request
  shards/*.npz     rows made so far, each file with a run of ids and named by the first
  NAME.npz         all rows, in place of the shards, once they are complete

Rows of the same request are kept and completed, and more than are asked for are left as they are;
those of another request are moved to FOLDER.earlier1, ...
Each batch is a fixed run of ids, whatever was there before: the results of an interrupted job are
those of an undisturbed one, bit for bit.
"""

import hashlib
import json
import zipfile

import numpy as np

from ddpm_jax import logs, parallel
from ddpm_jax.files import write_text, written_whole


def collect(folder, name, request, num_rows, compute, *, sizes, what=None):
  """Makes what is missing of rows 0, ..., num_rows - 1.

  Args:
    folder: pathlib.Path of the job.
    name: of the finished file.
    request: dict of JSON values that says what the rows are.
    num_rows: N.
    compute: ids int64 [sizes.host] -> dict of arrays: the rows of this process's share of a batch.
      Ids beyond N - 1 are N - 1 again, to fill the last batch.
    sizes: parallel.BatchSizes.
    what: word for the progress; None for silence.

  Returns:
    path of the finished NAME.npz, with `ids` and each array of compute: N rows, or more if they
    were there.

  Raises:
    ValueError: a file cannot be written.
  """
  finished = folder / f'{name}.npz'
  shards = folder / 'shards'
  if parallel.is_primary():
    _prepare(folder, finished, request, num_rows)
  parallel.barrier(f'{folder} prepared')
  if not shards.exists():
    return finished

  done = np.concatenate([load_ids(shard) for shard in _files(shards)] or [np.zeros(0, np.int64)])
  num_rows = max([num_rows, *(done + 1)])
  missing = np.isin(np.arange(num_rows), done, invert=True)
  parallel.barrier(f'{folder} missing rows known')
  tell = what is not None and parallel.is_primary()
  progress = logs.Progress(what, num_rows, done=len(done)) if tell else None
  for first in range(0, num_rows, sizes.global_):
    count = np.count_nonzero(missing[first : first + sizes.global_])
    if not count:
      continue
    ids = np.arange(first, first + sizes.global_)[parallel.host_share(sizes)]
    arrays = compute(np.minimum(ids, num_rows - 1))
    for run in _runs([i for i in ids if i < num_rows and missing[i]]):
      wanted = run - ids[0]
      save(shards / f'{run[0]:08d}.npz', run, {key: x[wanted] for key, x in arrays.items()})
    if tell:
      progress.add(count)
  if tell:
    progress.close()
  parallel.barrier(f'{folder} rows made')
  if parallel.is_primary():
    _merge(shards, finished)
  parallel.barrier(f'{folder} merged')
  return finished


def request_key(request):
  """A short name for a request: the head of its sha256."""
  return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:12]


def _files(shards):
  """The shards in the order of their ids."""
  return sorted(shards.glob('*.npz'))


def _runs(ids):
  """Cuts increasing ids into arrays without a gap."""
  return np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1) if len(ids) else []


def load_ids(file):
  """The ids of a shard, or of a finished file; empty if it cannot be read."""
  try:
    with np.load(file) as arrays:
      return arrays['ids']
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    return np.zeros(0, np.int64)


def save(file, ids, arrays):
  """Writes a shard, as files.written_whole says."""
  with written_whole(file) as partial, open(partial, 'wb') as stream:
    np.savez(stream, ids=ids, **arrays)


def _prepare(folder, finished, request, num_rows):
  """Leaves folder/shards with what can be used, or no such folder if nothing is left to do."""
  shards = folder / 'shards'
  request_file = folder / 'request.json'
  if folder.exists():
    same = request_file.exists() and json.loads(request_file.read_text()) == request
    there = len(load_ids(finished)) if finished.exists() else 0
    if same and not shards.exists() and there >= num_rows:
      return
    if not same:
      _move_aside(folder)
  shards.mkdir(parents=True, exist_ok=True)
  write_text(request_file, json.dumps(request, indent=2) + '\n')
  if finished.exists():
    finished.rename(shards / f'{0:08d}.npz')  # of the same form as a shard
  for shard in shards.iterdir():
    if shard.suffix != '.npz' or not _is_intact(shard):
      print(f'{shard} is incomplete: its rows are made anew')
      shard.unlink()


def _move_aside(folder):
  number = 1
  while (target := folder.with_name(f'{folder.name}.earlier{number}')).exists():
    number += 1
  folder.rename(target)
  print(f'{folder} held results of another request: now {target}')


def _is_intact(shard):
  """Whether every array can be read (the checksums of zip are verified on the way)."""
  try:
    with np.load(shard) as arrays:
      ids = arrays['ids']
      return all(len(arrays[name]) == len(ids) for name in arrays.files)
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    return False


def _merge(shards, finished):
  """Makes NAME.npz of the shards, one of them in memory at a time."""
  files = _files(shards)
  with np.load(files[0]) as arrays:
    names = arrays.files
  with written_whole(finished) as partial, zipfile.ZipFile(partial, 'w') as archive:
    for name in names:
      member = zipfile.ZipInfo(f'{name}.npy')  # dated 1980: the same rows are the same bytes
      with archive.open(member, 'w', force_zip64=True) as stream:
        _write_concatenated(stream, files, name)
  for file in files:
    file.unlink()
  shards.rmdir()


def _write_concatenated(stream, files, name):
  """Writes one array of all shards in the .npy format."""
  num_rows = sum(len(load_ids(file)) for file in files)
  for file in files:
    with np.load(file) as arrays:
      rows = np.ascontiguousarray(arrays[name])
    if file == files[0]:
      header = np.lib.format.header_data_from_array_1_0(rows)
      np.lib.format.write_array_header_1_0(stream, header | {'shape': (num_rows, *rows.shape[1:])})
    stream.write(rows.tobytes())
