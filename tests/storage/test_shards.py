"""Long jobs: what is there is kept, what is missing is made, the end is the same."""

import errno
import json
import os
import threading
import zipfile

import jax
import numpy as np
import pytest

from ddpm_jax import processes
from ddpm_jax.devices import BatchSizes
from ddpm_jax.errors import DiskError, WriteError
from ddpm_jax.storage import shards
from ddpm_jax.storage.files import file_lock

REQUEST = {'seed': 0}
EARLIER = {'noise_seed': 0}  # the same request, in the words of version 1


def rows(ids):
  return {'squares': ids**2, 'pairs': np.stack([ids, -ids], axis=1).astype(np.float32)}


class Job:
  """Makes rows, and notes the batches; optionally dies in the n-th."""

  def __init__(self, dies_in=None):
    self.batches = []
    self.dies_in = dies_in

  def __call__(self, ids, _=None):
    if len(self.batches) == self.dies_in:
      raise KeyboardInterrupt
    self.batches.append(ids.tolist())
    return rows(ids)


def collect(folder, num_rows, job=None, *, request=REQUEST, batch_size=4, earlier=None):
  sizes = BatchSizes(batch_size, batch_size, 1)
  file = shards.collect(
    folder, 'rows', request, num_rows, job or Job(), sizes=sizes, earlier=earlier
  )
  with np.load(file) as arrays:
    return dict(arrays)


def assert_complete(arrays, num_rows):
  ids = np.arange(num_rows)
  np.testing.assert_array_equal(arrays['ids'], ids)
  for name, expected in rows(ids).items():
    np.testing.assert_array_equal(arrays[name], expected)
    assert arrays[name].dtype == expected.dtype


def test_makes_all_rows_in_fixed_batches(tmp_path):
  job = Job()
  assert_complete(collect(tmp_path / 'job', 10, job), 10)
  assert job.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 9, 9]]
  names = sorted(path.name for path in (tmp_path / 'job').iterdir())
  assert names == ['request.json', 'rows.npz', 'seconds.txt']


def test_complete_rows_are_not_made_again_nor_cut(tmp_path):
  collect(tmp_path, 10)
  for asked in (10, 3):
    job = Job()
    assert_complete(collect(tmp_path, asked, job), 10)
    assert job.batches == []


def test_more_rows_complete_those_that_are_there(tmp_path):
  collect(tmp_path, 6)
  job = Job()
  assert_complete(collect(tmp_path, 9, job), 9)
  assert job.batches == [[4, 5, 6, 7], [8, 8, 8, 8]]


@pytest.mark.parametrize('dies_in', [0, 1, 2])
def test_interrupted_job_goes_on_and_ends_the_same(tmp_path, dies_in):
  with pytest.raises(KeyboardInterrupt):
    collect(tmp_path / 'killed', 10, Job(dies_in))
  job = Job()
  assert_complete(collect(tmp_path / 'killed', 10, job), 10)
  assert len(job.batches) == 3 - dies_in
  collect(tmp_path / 'whole', 10)
  killed, whole = (tmp_path / name / 'rows.npz' for name in ('killed', 'whole'))
  assert killed.read_bytes() == whole.read_bytes()
  with zipfile.ZipFile(whole) as archive:  # which the time of day would tell apart
    assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_interrupted_job_goes_on_with_another_batch_size(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    collect(tmp_path, 20, Job(3), batch_size=3)
  (tmp_path / 'shards' / '00000003.npz').unlink()
  job = Job(2)
  with pytest.raises(KeyboardInterrupt):
    collect(tmp_path, 20, job, batch_size=5)  # makes 3, 4 and, without a gap, 5; then 9, ...
  assert_complete(collect(tmp_path, 20, batch_size=7), 20)


@pytest.mark.parametrize('keep', [0, 10, 200, -10])
def test_damaged_shard_is_made_anew(tmp_path, keep, capsys):
  with pytest.raises(KeyboardInterrupt):
    collect(tmp_path, 10, Job(2))
  shard = tmp_path / 'shards' / '00000004.npz'
  shard.write_bytes(shard.read_bytes()[:keep])
  job = Job()
  assert_complete(collect(tmp_path, 10, job), 10)
  assert job.batches[0] == [4, 5, 6, 7]
  assert 'is incomplete' in capsys.readouterr().out


@pytest.mark.parametrize('name', ['shards/00000004.npz', 'rows.npz'])
def test_rows_that_the_system_fails_to_read_stay_where_they_are(tmp_path, fail_reads, name):
  if name == 'rows.npz':
    collect(tmp_path, 10)
  else:
    with pytest.raises(KeyboardInterrupt):
      collect(tmp_path, 10, Job(2))
  before = {file: file.read_bytes() for file in tmp_path.rglob('*.npz')}
  fail_reads(tmp_path / name, errno.EIO)
  job = Job()
  with pytest.raises(DiskError, match=rf'{name} cannot be used \(Input/output error\)'):
    collect(tmp_path, 12, job)
  assert job.batches == []
  assert before.keys() == set(tmp_path.rglob('*.npz'))


def test_a_flipped_bit_in_a_shard_is_noticed(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    collect(tmp_path, 10, Job(2))
  shard = tmp_path / 'shards' / '00000004.npz'
  damaged = bytearray(shard.read_bytes())
  damaged[damaged.index(np.int64(25).tobytes())] ^= 1  # 5^2
  shard.write_bytes(damaged)
  assert_complete(collect(tmp_path, 10), 10)


def test_rows_of_another_request_are_moved_aside(tmp_path, capsys):
  collect(tmp_path / 'job', 5)
  job = Job()
  assert_complete(collect(tmp_path / 'job', 5, job, request={'seed': 1}), 5)
  assert len(job.batches) == 2
  assert json.loads((tmp_path / 'job.earlier1' / 'request.json').read_text()) == REQUEST
  assert 'of another request' in capsys.readouterr().out


def test_each_process_writes_its_share_and_the_first_what_fills_the_last_batch(
  tmp_path, monkeypatch
):
  for process in range(4):
    monkeypatch.setattr(jax, 'process_index', lambda: process)  # noqa: B023
    monkeypatch.setattr(processes, 'barrier', lambda name: None)
    monkeypatch.setattr(shards, '_merge', lambda *args: None)
    monkeypatch.setattr(shards, '_files', lambda shards: [])  # all of them look at the same time
    job = Job()
    shards.collect(tmp_path, 'rows', REQUEST, 9, job, sizes=BatchSizes(8, 2, 1))
    first = 2 * process
    assert job.batches == [[first, first + 1], [8, 8]]
    written = {file.name for file in (tmp_path / 'shards').iterdir()}
    expected = [f'{i:08d}.npz' for i in (0, 8, 2, 4, 6)]
    assert written == set(expected[: process + 2])
  monkeypatch.undo()
  assert_complete(collect(tmp_path, 9), 9)


def test_full_disk_is_answered_by_one_line_and_the_job_goes_on(tmp_path, monkeypatch):
  savez, calls = np.savez, []

  def full_disk(stream, **arrays):
    calls.append(stream)
    if len(calls) == 2:
      stream.write(b'half')
      raise OSError(errno.ENOSPC, 'No space left on device')
    savez(stream, **arrays)

  with monkeypatch.context() as patch:
    patch.setattr(np, 'savez', full_disk)
    with pytest.raises(WriteError, match=r'00000004.npz cannot be written \(No space left'):
      collect(tmp_path, 10)
  assert [path.name for path in (tmp_path / 'shards').iterdir()] == ['00000000.npz']
  assert_complete(collect(tmp_path, 10), 10)


def test_progress_is_told_to_the_end(tmp_path, capsys):
  sizes = BatchSizes(4, 4, 1)
  shards.collect(tmp_path, 'rows', REQUEST, 10, Job(), sizes=sizes, what='rows')
  assert 'rows 10/10  ' in capsys.readouterr().out


class DiesAt:
  """Ends the work before the n-th change of the file system; n may be None."""

  CHANGES = ('mkdir', 'rename', 'replace', 'unlink', 'rmdir', 'fsync')

  def __init__(self, patch, n=None):
    self.count, self._n = 0, n
    for name in self.CHANGES:
      change = (lambda *args: None) if name == 'fsync' else getattr(os, name)
      patch.setattr(os, name, lambda *args, change=change, **kwargs: self(change, *args, **kwargs))

  def __call__(self, change, *args, **kwargs):
    if self.count == self._n:
      raise KeyboardInterrupt
    self.count += 1
    return change(*args, **kwargs)


def test_a_job_that_dies_at_any_change_of_a_file_ends_the_same(tmp_path, monkeypatch):
  def work(folder):
    return [collect(folder, n) and (folder / 'rows.npz').read_bytes() for n in (6, 12, 16)]

  with monkeypatch.context() as patch:
    counter = DiesAt(patch)
    whole = work(tmp_path / 'whole')
  assert counter.count > 40
  for n in range(counter.count):
    folder = tmp_path / f'{n}'
    with monkeypatch.context() as patch:
      DiesAt(patch, n)
      with pytest.raises(KeyboardInterrupt):
        work(folder)
    if (folder / 'rows.npz').exists():  # then it is one of the whole ones
      assert (folder / 'rows.npz').read_bytes() in whole
    with monkeypatch.context() as patch:
      DiesAt(patch)
      assert work(folder)[-1] == whole[-1], n
    names = sorted(path.name for path in folder.iterdir() if path.suffix != '.partial')
    assert names == ['request.json', 'rows.npz', 'seconds.txt']
    assert not list(tmp_path.glob('*.earlier*'))


def test_rows_that_are_there_twice_are_made_anew(tmp_path, capsys):
  collect(tmp_path, 12)
  ids = np.array([*range(12), *range(4, 12)])
  np.savez(tmp_path / 'rows.npz', ids=ids, **rows(ids))
  assert_complete(collect(tmp_path, 16), 16)
  assert 'rows.npz is damaged: now rows.damaged.npz' in capsys.readouterr().out


def test_shards_of_a_larger_job_wait_for_it(tmp_path):
  collect(tmp_path, 4)
  with pytest.raises(KeyboardInterrupt):
    collect(tmp_path, 20, Job(2))
  assert_complete(collect(tmp_path, 4, Job(0)), 4)
  job = Job()
  assert_complete(collect(tmp_path, 20, job), 20)
  assert job.batches[0] == [12, 13, 14, 15]


@pytest.mark.parametrize('name', ['shards/00000004.npz', 'rows.npz'])
def test_a_flipped_bit_anywhere_ends_in_the_same_rows(tmp_path, name):
  collect(tmp_path, 4)
  with pytest.raises(KeyboardInterrupt):
    collect(tmp_path, 12, Job(1))
  file = tmp_path / name
  content = file.read_bytes()
  for place in np.random.default_rng(0).integers(0, len(content), 25):
    damaged = bytearray(content)
    damaged[place] ^= 16
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(damaged)
    assert_complete(collect(tmp_path, 8), 8)


def test_damaged_request_is_another_one(tmp_path):
  collect(tmp_path / 'job', 4)
  (tmp_path / 'job' / 'request.json').write_text('{"seed"')
  assert_complete(collect(tmp_path / 'job', 4), 4)
  assert (tmp_path / 'job.earlier1' / 'rows.npz').exists()


def test_two_runs_in_one_folder_take_turns(tmp_path, capsys):
  waits, results = threading.Event(), {}
  jobs = {8: Job(), 12: Job()}

  def first(ids, _):
    second.start()
    assert not waits.wait(0.2)
    return jobs[8](ids, _)

  def run(num_rows, compute):
    sizes = BatchSizes(8, 8, 1)
    with np.load(shards.collect(tmp_path, 'rows', REQUEST, num_rows, compute, sizes=sizes)) as file:
      results[num_rows] = dict(file)

  def other(ids, _):
    waits.set()
    return jobs[12](ids, _)

  second = threading.Thread(target=run, args=(12, other))
  run(8, first)
  second.join()
  assert jobs[8].batches == [list(range(8))]
  assert jobs[12].batches == [[8, 9, 10, 11, 11, 11, 11, 11]]
  assert_complete(results[8], 8)
  assert_complete(results[12], 12)
  assert f'waits for another process that works in {tmp_path}' in capsys.readouterr().out


def test_rows_that_are_there_are_not_waited_for(tmp_path, capsys):
  collect(tmp_path / 'job', 8)
  job = Job()
  with file_lock(tmp_path / '.job.lock', waiting_for='none'):  # as another run that makes more
    assert_complete(collect(tmp_path / 'job', 6, job), 8)
    assert_complete(collect(tmp_path / 'job', 8, job), 8)
  assert job.batches == []
  assert 'waits' not in capsys.readouterr().out


def test_rows_are_waited_for_no_longer_than_until_they_are_there(tmp_path, capsys):
  collect(tmp_path / 'other', 8)
  (tmp_path / 'job').mkdir()
  job, results = Job(), []
  with file_lock(tmp_path / '.job.lock', waiting_for='none'):
    waiting = threading.Thread(target=lambda: results.append(collect(tmp_path / 'job', 8, job)))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    for name in ('request.json', 'rows.npz'):
      os.replace(tmp_path / 'other' / name, tmp_path / 'job' / name)
    waiting.join(10)
    assert_complete(results[0], 8)
  assert job.batches == []
  assert f'waits for another process that works in {tmp_path}' in capsys.readouterr().out


def test_seconds_are_those_of_all_runs(tmp_path, monkeypatch):
  assert shards.seconds(tmp_path) is None
  clock = iter(range(100))
  monkeypatch.setattr(shards.time, 'perf_counter', lambda: next(clock))
  with pytest.raises(KeyboardInterrupt):
    collect(tmp_path, 12, Job(2))
  assert shards.seconds(tmp_path) == 2
  collect(tmp_path, 12)
  collect(tmp_path, 12)
  assert shards.seconds(tmp_path) == 3


def write_version_1(folder, num_finished, num_in_shards=0, request=EARLIER):
  """What version 1 leaves of a job of rows: finished ones, and those of an interrupted run."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'request.json').write_text(json.dumps(request))
  (folder / 'seconds.txt').write_text('1.000\n2.500\n')
  (folder / 'grid.png').write_bytes(b'a picture')
  if num_finished:
    ids = np.arange(num_finished)
    shards.save(folder / 'rows.npz', ids, rows(ids))
  if num_in_shards:
    ids = np.arange(num_finished, num_finished + num_in_shards)
    (folder / 'shards').mkdir()
    shards.save(folder / f'shards/{ids[0]:08d}.npz', ids, rows(ids))


def contents(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob('*')
    if path.is_file() and path.suffix != '.lock'
  }


@pytest.mark.parametrize(('num_finished', 'num_in_shards'), [(10, 0), (6, 4), (0, 10)])
@pytest.mark.parametrize('beside', [False, True])
def test_rows_of_version_1_are_taken_over_and_completed(
  tmp_path, num_finished, num_in_shards, beside
):
  earlier = tmp_path / 'old' if beside else tmp_path  # samples lay in today's parent
  write_version_1(earlier, num_finished, num_in_shards)
  job = Job(0)
  assert_complete(collect(tmp_path / 'new', 10, job, earlier=(earlier, EARLIER)), 10)
  assert sorted(contents(tmp_path)) == [
    f'new/{name}' for name in ('grid.png', 'request.json', 'rows.npz', 'seconds.txt')
  ]
  assert json.loads((tmp_path / 'new/request.json').read_text()) == REQUEST
  assert shards.seconds(tmp_path / 'new') == 3.5
  assert (tmp_path / 'new/grid.png').read_bytes() == b'a picture'
  assert not (tmp_path / 'old').exists()
  job = Job()
  assert_complete(collect(tmp_path / 'new', 14, job, earlier=(earlier, EARLIER)), 14)
  assert job.batches == [[8, 9, 10, 11], [12, 13, 13, 13]]


@pytest.mark.parametrize('request_text', ['{"noise_seed": 1}', '{"noise_seed": 0, "more": 1}', '{'])
def test_rows_of_version_1_of_another_request_stay_as_they_are(tmp_path, request_text):
  write_version_1(tmp_path, 6, 2)
  (tmp_path / 'request.json').write_text(request_text)
  before = contents(tmp_path)
  job = Job()
  assert_complete(collect(tmp_path / 'new', 8, job, earlier=(tmp_path, EARLIER)), 8)
  assert job.batches == [[0, 1, 2, 3], [4, 5, 6, 7]]
  after = contents(tmp_path)
  assert {name: after[name] for name in after if not name.startswith('new/')} == before


def test_rows_of_version_1_do_not_replace_those_that_are_there(tmp_path):
  collect(tmp_path / 'new', 4)
  write_version_1(tmp_path, 8)
  before = contents(tmp_path)
  collect(tmp_path / 'new', 4, Job(0), earlier=(tmp_path, EARLIER))
  assert contents(tmp_path) == before


def test_shards_of_both_versions_are_made_into_one(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    collect(tmp_path / 'new', 12, Job(1))
  write_version_1(tmp_path, 0, 8)
  job = Job()
  assert_complete(collect(tmp_path / 'new', 12, job, earlier=(tmp_path, EARLIER)), 12)
  assert job.batches == [[4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize(('num_finished', 'num_in_shards'), [(10, 0), (6, 4), (0, 10)])
def test_a_move_that_dies_at_any_change_of_a_file_loses_nothing(
  tmp_path, monkeypatch, num_finished, num_in_shards
):
  def work(folder, job):
    collect(folder / 'new', 16, job, earlier=(folder, EARLIER))
    return contents(folder / 'new')

  write_version_1(tmp_path / 'whole', num_finished, num_in_shards)
  with monkeypatch.context() as patch:
    counter = DiesAt(patch)
    whole = work(tmp_path / 'whole', Job())
  assert counter.count > 15
  for n in range(counter.count):
    folder, job = tmp_path / f'{n}', Job()
    write_version_1(folder, num_finished, num_in_shards)
    with monkeypatch.context() as patch:
      DiesAt(patch, n)
      with pytest.raises(KeyboardInterrupt):
        work(folder, job)
    with monkeypatch.context() as patch:
      DiesAt(patch)
      again = work(folder, job)
    # The seconds of a batch differ from run to run.
    assert {**again, 'seconds.txt': b''} == {**whole, 'seconds.txt': b''}, n
    assert again['seconds.txt'].startswith(b'1.000\n2.500\n'), n
    made = {i for batch in job.batches for i in batch}
    assert made <= {8, 9, 10, 11, 12, 13, 14, 15}, n  # the batches that have rows to make
