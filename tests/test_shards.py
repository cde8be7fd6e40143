"""Long jobs: what is there is kept, what is missing is made, the end is the same."""

import errno
import json
import zipfile

import jax
import numpy as np
import pytest

from ddpm_jax import parallel, shards
from ddpm_jax.parallel import BatchSizes

REQUEST = {'seed': 0}


def rows(ids):
  return {'squares': ids**2, 'pairs': np.stack([ids, -ids], axis=1).astype(np.float32)}


class Job:
  """Makes rows, and notes the batches; optionally dies in the n-th."""

  def __init__(self, dies_in=None):
    self.batches = []
    self.dies_in = dies_in

  def __call__(self, ids):
    if len(self.batches) == self.dies_in:
      raise KeyboardInterrupt
    self.batches.append(ids.tolist())
    return rows(ids)


def collect(folder, num_rows, job=None, *, request=REQUEST, batch_size=4):
  sizes = BatchSizes(batch_size, batch_size, 1)
  file = shards.collect(folder, 'rows', request, num_rows, job or Job(), sizes=sizes)
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
  assert sorted(path.name for path in (tmp_path / 'job').iterdir()) == ['request.json', 'rows.npz']


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
    monkeypatch.setattr(parallel, 'barrier', lambda name: None)
    monkeypatch.setattr(shards, '_merge', lambda *args: None)
    job = Job()
    shards.collect(tmp_path, 'rows', REQUEST, 9, job, sizes=BatchSizes(8, 2, 1))
    first = 2 * process
    assert job.batches == [[first, first + 1], [8, 8]]
    written = {file.name for file in (tmp_path / 'shards').iterdir()}
    expected = [f'{i:08d}.npz' for i in (0, 8, 2, 4, 6)]
    assert written == set(expected[: process + 2])
    monkeypatch.setattr(shards, '_prepare', lambda *args: None)
    monkeypatch.setattr(shards, 'load_ids', lambda file: np.zeros(0, np.int64))
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
    with pytest.raises(ValueError, match=r'00000004.npz cannot be written \(No space left'):
      collect(tmp_path, 10)
  assert [path.name for path in (tmp_path / 'shards').iterdir()] == ['00000000.npz']
  assert_complete(collect(tmp_path, 10), 10)


def test_progress_is_told_to_the_end(tmp_path, capsys):
  sizes = BatchSizes(4, 4, 1)
  shards.collect(tmp_path, 'rows', REQUEST, 10, Job(), sizes=sizes, what='rows')
  assert 'rows 10/10  ' in capsys.readouterr().out
