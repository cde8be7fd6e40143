import contextlib
import json
import os

import numpy as np
import PIL.Image
import pytest

from ddpm_jax import data
from ddpm_jax.data import pipeline
from ddpm_jax.data.digits import ArraySource

COUNT = 20


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  monkeypatch.setattr(pipeline, '_CHUNK_EXAMPLES', 8)


@pytest.fixture
def images():
  return np.random.RandomState(1).randint(0, 256, (COUNT, 4, 4, 3), np.uint8)


@pytest.fixture(params=['folder', 'tfds'])
def make_source(request, tmp_path, images, write_tfds):
  """() -> the source of the pictures on disk; its `write` is (images) -> None."""
  place = tmp_path / 'pictures'
  place.mkdir()

  def write(images):
    if request.param == 'tfds':
      write_tfds(place, 'tiny', images)
    else:
      for i, image in enumerate(images):
        PIL.Image.fromarray(image).save(place / f'{i:02d}.png')

  def make():
    name, dir = (f'folder:{place}', None) if request.param == 'folder' else ('tfds:tiny', place)
    return data.make_source(name, dir=dir, image_size=4, channels=3, split='train')

  write(images)
  make.write, make.place = write, place
  return make


class Reads:
  """All pictures of a source by the pipeline: `decoded` counts those that were not on disk."""

  def __init__(self, folder):
    self.folder, self.lines = folder, []

  def __call__(self, source):
    self.decoded = 0

    class Counting(data.Substitutes):
      def read(_, indices):  # noqa: N805
        self.decoded += len(indices)
        return source.read(indices)

    counting = Counting(source)
    file = data.decoded_file(self.folder, counting, self.lines.append)
    self.decoded = 0  # without the fingerprint's
    options = dict(seed=0, global_batch_size=4, process_index=0, process_count=1, num_workers=0)
    batches = data.make_batches(
      counting, memory_limit_bytes=1 << 20, decoded=lambda _: file, **options
    )
    with contextlib.closing(batches):
      return np.array(batches.images)


@pytest.fixture
def read_all(tmp_path):
  return Reads(tmp_path / 'decoded')


def files_of(reads):
  return {path.suffix: path for path in reads.folder.iterdir()}


def test_second_start_decodes_nothing(make_source, read_all):
  source = make_source()
  expected = source.read(np.arange(COUNT))
  np.testing.assert_array_equal(read_all(source), expected)
  assert read_all.decoded == COUNT
  np.testing.assert_array_equal(read_all(make_source()), expected)
  assert read_all.decoded == 0
  assert read_all.lines == []


def test_data_that_changed_are_decoded_anew(make_source, read_all, images):
  read_all(make_source())
  if make_source.place.joinpath('tiny').exists():
    for file in sorted(make_source.place.rglob('*'), reverse=True):
      file.rmdir() if file.is_dir() else file.unlink()
  make_source.write(255 - images)
  found = read_all(make_source())
  assert read_all.decoded == COUNT
  assert sorted(map(bytes, found)) == sorted(map(bytes, 255 - images))
  assert read_all.lines == []


def test_one_picture_that_changed_is_enough(tmp_path, read_all, images):
  """Even where size and time of its file are as they were, and the fingerprint misses it."""
  for i in range(COUNT * 8):
    PIL.Image.fromarray(images[i % COUNT]).save(tmp_path / f'{i:03d}.bmp')
  name, shape = f'folder:{tmp_path}', dict(dir=None, image_size=4, channels=3, split='train')
  before = data.make_source(name, **shape)
  read_all(before)
  file = tmp_path / '001.bmp'
  status = file.stat()
  PIL.Image.fromarray(255 - images[1]).save(file)
  os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
  now = data.make_source(name, **shape)
  assert data.fingerprint(now) == data.fingerprint(before)
  np.testing.assert_array_equal(read_all(now)[1], 255 - images[1])


def test_damage_costs_one_chunk(make_source, read_all):
  expected = read_all(make_source())
  file = files_of(read_all)['.npy']
  content = bytearray(file.read_bytes())
  content[-1] ^= 1
  file.write_bytes(content)
  np.testing.assert_array_equal(read_all(make_source()), expected)
  assert read_all.decoded == COUNT % 8
  read_all(make_source())
  assert read_all.decoded == 0  # it is mended


def cut_array(files):
  os.truncate(files['.npy'], 200)


def spoil_about(files):
  files['.json'].write_text('{"facts":')


def spoil_chunks(files):
  about = json.loads(files['.json'].read_text())
  files['.json'].write_text(json.dumps(about | {'chunks': [1]}))


def give_other_array(files):
  np.save(files['.npy'], np.zeros((COUNT, 4, 4, 1), np.uint8))


def give_objects(files):
  np.save(files['.npy'], np.array([{}]))


@pytest.mark.parametrize(
  'spoil', [cut_array, spoil_about, spoil_chunks, give_other_array, give_objects]
)
def test_files_that_cannot_be_used_cost_time_and_a_line(make_source, read_all, spoil):
  expected = read_all(make_source())
  spoil(files_of(read_all))
  np.testing.assert_array_equal(read_all(make_source()), expected)
  assert read_all.decoded == COUNT
  (line,) = read_all.lines
  assert 'anew' in line
  assert '\n' not in line
  read_all(make_source())
  assert read_all.decoded == 0


def test_files_of_another_version_are_written_anew(make_source, read_all, monkeypatch):
  read_all(make_source())
  monkeypatch.setattr('ddpm_jax.data.decoded._FORMAT', 2)
  read_all(make_source())
  assert read_all.decoded == COUNT
  assert read_all.lines == []


def test_folder_that_is_none_costs_a_line(make_source, read_all):
  read_all.folder.write_text('a file')
  np.testing.assert_array_equal(read_all(make_source()), make_source().read(np.arange(COUNT)))
  assert all('\n' not in line for line in read_all.lines)
  assert any('not kept' in line for line in read_all.lines)


def test_full_disk_costs_a_line(make_source, read_all, monkeypatch):
  def save(*_):
    raise OSError(28, os.strerror(28))

  monkeypatch.setattr(np, 'save', save)
  read_all(make_source())
  (line,) = read_all.lines
  assert os.strerror(28) in line
  assert '.npy' not in files_of(read_all)


def test_stand_ins_of_damaged_pictures_are_not_kept(tmp_path, read_all, images):
  place = tmp_path / 'some'
  place.mkdir()
  for i in range(200):
    PIL.Image.fromarray(images[i % COUNT]).save(place / f'{i:03d}.png')
  (place / '001.png').write_bytes(b'')
  source = data.make_source(f'folder:{place}', dir=None, image_size=4, channels=3, split='train')
  substitutes = data.Substitutes(source)
  options = dict(seed=0, global_batch_size=4, process_index=0, process_count=1, num_workers=0)
  file = data.decoded_file(read_all.folder, substitutes, read_all.lines.append)
  with contextlib.closing(
    data.make_batches(substitutes, memory_limit_bytes=1 << 20, decoded=lambda _: file, **options)
  ) as batches:
    np.testing.assert_array_equal(batches.images[1], images[2])
  assert not read_all.folder.exists()
  assert data.decoded_file(read_all.folder, source, print) is not None


def test_arrays_are_not_kept(tmp_path, images):
  assert data.decoded_file(tmp_path, ArraySource('array', 'train', images), print) is None
