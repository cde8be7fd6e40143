"""Published statistics and reference batches, whole and damaged; and the cache of features."""

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import PIL.Image
import pytest

from ddpm_jax import data, processes
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.metrics.frechet import Statistics, accumulate, frechet_distance
from ddpm_jax.evaluation.references import (
  file_sha256,
  open_cache,
  read_reference,
  source_identity,
)
from ddpm_jax.storage.identity import Identity
from tests.fuzz import SLOW_FACTOR, count_refusals, mutations


@pytest.fixture
def statistics():
  return accumulate([np.random.default_rng(0).standard_normal((40, 6)) + 2])


def pictures(count=4):
  return np.random.default_rng(1).integers(0, 256, (count, 5, 7, 3), np.uint8)


@pytest.mark.parametrize('dtype', [np.float64, np.float32])
@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_published_statistics_are_read(tmp_path, statistics, dtype, save):
  path = tmp_path / 'stats.npz'
  save(path, mu=statistics.mean.astype(dtype), sigma=statistics.covariance.astype(dtype))
  opened = read_reference(path)
  assert isinstance(opened, Statistics)
  assert opened.count is None
  assert opened.mean.dtype == opened.covariance.dtype == np.float64
  tolerance = 1e-10 if dtype is np.float64 else 1e-5
  trace = np.trace(statistics.covariance)
  assert frechet_distance(opened, statistics) < tolerance * trace


def test_statistics_of_few_images_are_read(tmp_path):
  # Singular, and in float32 with eigenvalues that rounding made negative.
  few = accumulate([np.random.default_rng(2).standard_normal((5, 30))])
  covariance = few.covariance.astype(np.float32)
  assert np.linalg.eigvalsh(covariance.astype(np.float64))[0] < -1e-9
  np.savez(tmp_path / 'few.npz', mu=few.mean, sigma=covariance)
  assert read_reference(tmp_path / 'few.npz').mean.shape == (30,)


def test_a_batch_of_images_is_opened(tmp_path):
  np.savez(tmp_path / 'batch.npz', arr_0=pictures())
  images = read_reference(str(tmp_path / 'batch.npz'))
  assert not isinstance(images, Statistics)
  assert len(images) == 4
  np.testing.assert_array_equal(images.read(np.arange(4)), pictures())


def test_images_keep_the_statistics_beside_them(tmp_path, statistics):
  np.savez(
    tmp_path / 'batch.npz', arr_0=pictures(), mu=statistics.mean, sigma=statistics.covariance
  )
  opened = read_reference(tmp_path / 'batch.npz')
  assert opened.image_shape == (5, 7, 3)
  np.testing.assert_array_equal(opened.statistics.mean, statistics.mean)
  np.savez(tmp_path / 'images.npz', arr_0=pictures())
  assert read_reference(tmp_path / 'images.npz').statistics is None


def test_a_pipe_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / 'x.npz')
  with pytest.raises(UserError, match=r'eval\.reference=.*x\.npz is neither a file nor a folder'):
    read_reference(tmp_path / 'x.npz')


def test_a_folder_is_opened(tmp_path):
  for i, picture in enumerate(pictures()):
    PIL.Image.fromarray(picture).save(tmp_path / f'{i}.png')
  np.testing.assert_array_equal(read_reference(tmp_path).read(np.arange(4)), pictures())


def test_sha256_is_that_of_the_file(tmp_path):
  (tmp_path / 'file').write_bytes(b'some bytes')
  assert file_sha256(tmp_path / 'file') == hashlib.sha256(b'some bytes').hexdigest()


MU, SIGMA = np.zeros(3), np.eye(3)
SKEW = np.array([[1, 0.1, 0], [0, 1, 0], [0, 0, 1]])
NOT_FINITE = np.diag([1, np.nan, 1])


@pytest.mark.parametrize(
  ('arrays', 'message'),
  [
    (dict(mu=MU), 'has mu; it must have mu and sigma, or images'),
    (dict(), 'has nothing; it must have'),
    (dict(mu=MU, sigma=np.eye(4)), r'shape \(3,\) and sigma \(4, 4\)'),
    (dict(mu=MU[None], sigma=SIGMA), r'must be \[d\] and \[d, d\]'),
    (dict(mu=MU[:0], sigma=SIGMA[:0, :0]), r'must be \[d\] and \[d, d\]'),
    (dict(mu=MU.astype(int), sigma=SIGMA), 'mu is int64.*must be floats'),
    (dict(mu=MU, sigma=NOT_FINITE), 'not finite'),
    (dict(mu=MU + np.inf, sigma=SIGMA), 'not finite'),
    (dict(mu=MU, sigma=SKEW), 'not symmetric'),
    (dict(mu=MU, sigma=np.diag([1, -0.1, 1])), 'negative eigenvalues'),
    (dict(arr_0=pictures().astype(np.float32)), 'float32.*must be uint8'),
    (dict(arr_0=pictures()[0]), r'uint8\[5, 7, 3\]; it must be uint8 \[N, H, W, C\]'),
    (dict(arr_0=pictures(1)), 'two are needed'),
    (dict(mu=np.array([{}], object), sigma=SIGMA), 'Python objects'),
  ],
)
def test_other_files_are_refused_in_one_line(tmp_path, arrays, message):
  path = tmp_path / 'given.npz'
  np.savez(path, **arrays)
  with pytest.raises(UserError, match=message) as caught:
    read_reference(path)
  assert str(path) in str(caught.value)
  assert '\n' not in str(caught.value)


def test_damaged_and_missing_files_are_refused(tmp_path, statistics):
  path = tmp_path / 'stats.npz'
  np.savez(path, mu=statistics.mean, sigma=statistics.covariance)
  whole = path.read_bytes()
  for damaged in (whole[: len(whole) // 2], b'', b'neither zip nor npz'):
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r'not an intact .npz file'):
      read_reference(path)
  with pytest.raises(UserError, match='does not exist'):
    read_reference(tmp_path / 'absent.npz')


@pytest.mark.parametrize('factor', [1, pytest.param(SLOW_FACTOR, marks=pytest.mark.slow)])
@pytest.mark.parametrize('kind', ['statistics', 'images'])
def test_mutations_are_refused_or_valid(tmp_path, kind, factor):
  path = tmp_path / 'x.npz'
  images = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 1)
  arrays = {
    'statistics': dict(mu=np.arange(3.0), sigma=np.eye(3)),
    'images': dict(arr_0=images),
  }
  np.savez_compressed(path, **arrays[kind])
  whole = path.read_bytes()

  def read(content):
    path.write_bytes(content)
    opened = read_reference(path)
    return opened if kind == 'statistics' else opened.read(np.arange(len(opened)))

  def judge(read):
    if kind == 'statistics':
      assert np.isfinite(read.mean).all()
      assert read.covariance.shape == (len(read.mean), len(read.mean))
    else:
      assert read.dtype == np.uint8
      assert len(read) >= 2

  assert count_refusals(read, judge, mutations(whole, 300 * factor)) > 100 * factor


@pytest.fixture
def as_processes(monkeypatch):
  """Returns (work, arguments) -> results, one thread a process, which may meet."""
  own, texts = threading.local(), {}

  def meet(name=None):
    own.barrier.wait(10)

  def texts_of_all(text):
    meet()
    texts[own.index] = text
    meet()
    gathered = [texts[i] for i in sorted(texts)]
    meet()
    return gathered

  def run(work, arguments):
    barrier = threading.Barrier(len(arguments))

    def one(index):
      own.index, own.barrier = index, barrier
      try:
        return work(arguments[index])
      except ValueError as error:
        return str(error)

    with monkeypatch.context() as patch, ThreadPoolExecutor(len(arguments)) as pool:
      patch.setattr(jax, 'process_count', lambda: len(arguments))
      patch.setattr(processes, 'is_primary', lambda: own.index == 0)
      patch.setattr(processes, 'barrier', meet)
      patch.setattr(processes, 'texts_of_all', texts_of_all)
      return list(pool.map(one, range(len(arguments))))

  return run


def test_a_cache_that_processes_share_is_used(tmp_path, as_processes):
  (tmp_path / 'mount').symlink_to(tmp_path / 'a')  # the same, by another path
  folders = [tmp_path / 'a', tmp_path / 'mount', tmp_path / 'a']
  (tmp_path / 'a').mkdir()
  assert as_processes(open_cache, folders) == [folder / 'reference' for folder in folders]
  assert not list((tmp_path / 'a/reference').iterdir())
  assert open_cache(tmp_path / 'b') == tmp_path / 'b/reference'  # one process shares it with none


def test_caches_of_each_machine_are_refused_on_every_process(tmp_path, as_processes):
  folders = [tmp_path / 'a', tmp_path / 'a', tmp_path / 'b']
  for message, folder in zip(as_processes(open_cache, folders), folders, strict=True):
    assert message == (
      f'eval.cache_dir={folder} of process 2 is not the folder of process 0: give one on a file '
      'system that all processes share, such as --config.eval.cache_dir=WORKDIR/cache'
    )


def test_a_cache_that_cannot_be_written_is_answered_by_one_line(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match=r'cache_dir=.*/file/x cannot be written \(Not a directory'):
    open_cache(tmp_path / 'file/x')


def test_a_picture_that_changes_in_place_changes_what_the_data_are(tmp_path):
  for i, picture in enumerate(pictures(100)):
    PIL.Image.fromarray(picture).save(tmp_path / f'{i:02d}.bmp')

  def identity():
    opened = data.make_source(
      f'folder:{tmp_path}', dir=None, image_size=5, channels=3, split='train'
    )
    return source_identity(opened)

  first = identity()
  assert identity() == first
  file = tmp_path / '02.bmp'  # none of those that the fingerprint is of
  status = file.stat()
  PIL.Image.fromarray(pictures(1)[0]).save(file)
  os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # its time set back
  second = identity()
  assert file.stat().st_size == status.st_size
  assert second['sha256'] == first['sha256']
  assert Identity(data=second).key() != Identity(data=first).key()
