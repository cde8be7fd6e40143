import concurrent.futures
import contextlib
import itertools
import pathlib
import pickle
import threading

import numpy as np
import PIL.Image
import pytest
from absl import flags

from ddpm_jax import data
from ddpm_jax.data import pipeline
from ddpm_jax.data.digits import ArraySource
from ddpm_jax.errors import UserError

SIZE = 5  # examples per step
GOLDEN = [5, 0, 8, 3, 2, 6, 7, 6]  # positions 24..31: the end of epoch 2, the start of epoch 3


@pytest.fixture
def folder(tmp_path):
  """A source of 12 pictures on disk that are all different."""
  images = np.random.RandomState(1).randint(0, 256, (12, 4, 4, 3), np.uint8)
  for i, image in enumerate(images):
    PIL.Image.fromarray(image).save(tmp_path / f'{i:02d}.png')
  return data.make_source(f'folder:{tmp_path}', dir=None, image_size=4, channels=3, split='train')


def make(source, **changes):
  options = dict(
    seed=3,
    global_batch_size=SIZE,
    process_index=0,
    process_count=1,
    memory_limit_bytes=1 << 20,
    num_workers=0,
  )
  return data.make_batches(source, **{**options, **changes})


def take(batches, start_step, count):
  taken = list(itertools.islice(batches.iterate(start_step), count))
  batches.close()
  return taken


@pytest.mark.parametrize('global_batch_size', [1, 5, 12, 30])
def test_every_epoch_holds_every_example_once(global_batch_size):
  steps = 12 * 5  # five epochs' worth for a batch of one
  indices = np.concatenate(
    [
      data.batch_indices(0, step, global_batch_size=global_batch_size, num_examples=12)
      for step in range(steps)
    ]
  )
  epochs = indices.reshape(-1, 12)
  np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(12), (len(epochs), 1)))
  assert len(np.unique(epochs, axis=0)) == len(epochs)  # each epoch in another order


def test_every_position_is_equally_likely():
  orders = np.stack([pipeline._permutation(seed, 0, 4) for seed in range(4_000)])
  counts = np.stack([np.bincount(orders[:, i], minlength=4) for i in range(4)])
  # Binomial(4000, 1/4): mean 1000, standard deviation 27.
  np.testing.assert_allclose(counts, 1_000, atol=5 * 27)


def test_seed_and_epoch_do_not_mix():
  orders = [tuple(pipeline._permutation(s, e, 20)) for s in (0, 1, 2**32, -1) for e in (0, 1, 2)]
  assert len(set(orders)) == len(orders)


def test_order_is_frozen():
  """A change here means that old runs cannot be resumed."""
  indices = data.batch_indices(42, 3, global_batch_size=8, num_examples=10)
  assert indices.dtype == np.int64
  assert indices.tolist() == GOLDEN


def test_order_cannot_be_overwritten():
  with pytest.raises(ValueError, match='read-only'):
    pipeline._permutation(0, 0, 10)[0] = 1


@pytest.mark.parametrize('memory_limit_bytes', [0, 1 << 20])
def test_batch_depends_on_step_alone(folder, memory_limit_bytes):
  whole = take(make(folder, memory_limit_bytes=memory_limit_bytes), 0, 8)
  for start in (1, 7):
    tail = take(make(folder, memory_limit_bytes=memory_limit_bytes), start, 8 - start)
    np.testing.assert_array_equal(tail, whole[start:])


def test_batch_holds_the_pictures_of_its_indices(folder):
  (batch,) = take(make(folder), 4, 1)
  indices = data.batch_indices(3, 4, global_batch_size=SIZE, num_examples=12)
  np.testing.assert_array_equal(batch, folder.read(indices))


@pytest.mark.parametrize('memory_limit_bytes', [0, 1 << 20])
def test_shares_of_the_processes_make_the_global_batch(folder, memory_limit_bytes):
  (whole,) = take(make(folder, global_batch_size=6), 2, 1)
  shares = [
    take(
      make(
        folder,
        global_batch_size=6,
        process_index=i,
        process_count=3,
        memory_limit_bytes=memory_limit_bytes,
      ),
      2,
      1,
    )[0]
    for i in range(3)
  ]
  assert {len(share) for share in shares} == {2}
  np.testing.assert_array_equal(np.concatenate(shares), whole)


@pytest.mark.parametrize('num_workers', [0, 2])
def test_streaming_equals_memory(folder, num_workers):
  flags.FLAGS(['test'])
  expected = take(make(folder), 3, 7)
  streamed = take(make(folder, memory_limit_bytes=0, num_workers=num_workers), 3, 7)
  np.testing.assert_array_equal(streamed, expected)


def test_memory_limit_is_inclusive(folder):
  size_bytes = 12 * 4 * 4 * 3
  assert make(folder, memory_limit_bytes=size_bytes - 1).images is None
  np.testing.assert_array_equal(
    make(folder, memory_limit_bytes=size_bytes).images, folder.read(np.arange(12))
  )
  levels = np.arange(12, dtype=np.int16).reshape(3, 4, 1)
  encoded = data.Encoded(ArraySource('x', 'train', levels), data.Encoding('int16', 4096, 0))
  assert make(encoded, memory_limit_bytes=2 * 12 - 1).images is None
  np.testing.assert_array_equal(make(encoded, memory_limit_bytes=2 * 12).images, levels)


def test_images_in_memory_keep_their_order():
  images = np.arange(700 * 3, dtype=np.uint8).reshape(700, 1, 1, 3)  # more than two chunks
  np.testing.assert_array_equal(make(ArraySource('a', 'train', images)).images, images)


class SlowSource:
  """Pictures that are their indices. Threads but this one wait for `go`, from index `slow_from`."""

  def __init__(self, slow_from=0, broken=()):
    self.name, self.split, self.image_shape = 'slow', 'train', (1, 1, 1)
    self.go = threading.Event()
    self.main_reads = 0
    self._main = threading.current_thread()
    self._slow_from, self._broken = slow_from, broken

  def __len__(self):
    return 600  # more than two chunks

  def read(self, indices):
    if threading.current_thread() is self._main:
      self.main_reads += 1
    elif max(indices) >= self._slow_from:
      assert self.go.wait(60)
    if broken := [(str(i), 'broken') for i in indices if i in self._broken]:
      raise data.BrokenPicturesError(broken, len(indices))
    return (np.asarray(indices) % 251).astype(np.uint8).reshape(-1, 1, 1, 1)


def test_no_batch_waits_for_what_is_read_in_the_background():
  source = SlowSource()
  with contextlib.closing(make(source)) as batches:
    iterator = batches.iterate(0)
    first = next(iterator)
    assert source.main_reads == 1
    source.go.set()
    assert len(batches.images) == 600
    second = next(iterator)
  assert source.main_reads == 1
  for step, batch in enumerate((first, second)):
    np.testing.assert_array_equal(batch.ravel(), batches.indices(step) % 251)


def test_a_broken_picture_spoils_no_other_while_the_rest_is_being_read():
  source = SlowSource(slow_from=256, broken=(100, 500))
  with contextlib.closing(make(source, global_batch_size=1)) as batches:
    concurrent.futures.wait(batches._memory._chunks[:1])
    for step in range(len(source)):
      index = batches.indices(step)[0]
      if index in (100, 500):
        step_of_broken = step
        continue
      assert next(batches.iterate(step)).ravel() == index % 251
    threading.Timer(0.2, source.go.set).start()
    with pytest.raises(data.BrokenPicturesError, match=r'100 cannot be read .*1 more of the 600'):
      next(batches.iterate(step_of_broken))


@pytest.mark.parametrize('memory_limit_bytes', [0, 1 << 20])
def test_damaged_pictures_are_found_before_anything_is_compiled(folder, memory_limit_bytes):
  with contextlib.closing(make(folder, memory_limit_bytes=memory_limit_bytes)) as batches:
    batches.check_early(60)
  for index in (2, 9):
    break_file(folder, index)
  message = r'1 more of the 12 .*on_damage=skip$'
  with (
    contextlib.closing(make(folder, memory_limit_bytes=memory_limit_bytes)) as batches,
    pytest.raises(data.BrokenPicturesError, match=message) as e,
  ):
    batches.check_early(60)
  assert sorted(pathlib.Path(name).name for name, _ in e.value.broken) == ['02.png', '09.png']


@pytest.mark.parametrize('memory_limit_bytes', [0, 1 << 20])
def test_values_that_the_levels_do_not_hold_are_found_then_too(memory_limit_bytes):
  levels = np.arange(12, dtype=np.int16).reshape(3, 4, 1)
  encoded = data.Encoded(ArraySource('x', 'train', levels), data.Encoding('int16', 8, 0))
  with (
    contextlib.closing(make(encoded, memory_limit_bytes=memory_limit_bytes)) as batches,
    pytest.raises(UserError, match=r'example [12] has values from .* data\.levels=8 holds 0 to 7'),
  ):
    batches.check_early(60)


def test_the_look_for_damage_takes_no_longer_than_it_may():
  source = SlowSource(broken=(500,))
  with contextlib.closing(make(source)) as batches:
    batches.check_early(0)
    source.go.set()


def test_closing_ends_what_is_read_in_the_background():
  source = SlowSource()
  batches = make(source)
  closing = threading.Thread(target=batches.close)
  closing.start()
  closing.join(0.2)
  source.go.set()
  closing.join(60)
  assert not closing.is_alive()
  with pytest.raises(concurrent.futures.CancelledError):
    _ = batches.images


def break_file(source, index):
  path = source._root / source._paths[index]
  path.write_bytes(path.read_bytes()[:50])


def test_all_broken_pictures_are_counted(folder, monkeypatch):
  monkeypatch.setattr(pipeline, '_CHUNK_EXAMPLES', 4)
  break_file(folder, 2)
  break_file(folder, 9)
  message = r'02\.png cannot be read .*1 more of the 12 pictures'
  with pytest.raises(UserError, match=message):
    _ = make(folder).images
  with pytest.raises(UserError, match=message):
    take(make(folder), 0, 3)  # 15 positions: all 12 examples


@pytest.mark.parametrize('num_workers', [0, 1])
def test_streaming_names_the_broken_picture(folder, num_workers):
  flags.FLAGS(['test'])
  break_file(folder, 2)
  batches = make(folder, memory_limit_bytes=0, num_workers=num_workers)
  with pytest.raises(UserError, match=r'02\.png cannot be read as a picture'):
    take(batches, 0, 3)  # 15 positions: all 12 examples
  batches.close()


def test_broken_pictures_survive_pickling():
  error = data.BrokenPicturesError([('a.png', 'no picture'), ('b.png', 'cut')], 9)
  assert str(pickle.loads(pickle.dumps(error))) == str(error)
  assert '1 more of the 9' in str(error)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(global_batch_size=0), 'global_batch_size=0'),
    (dict(global_batch_size=5, process_count=2), 'multiple of the 2 processes'),
    (dict(num_workers=-1), r'data\.num_workers=-1'),
  ],
)
def test_bad_arguments(folder, changes, message):
  with pytest.raises(UserError, match=message):
    make(folder, **changes)


def test_workers_without_parsed_flags(folder, monkeypatch):
  monkeypatch.setattr(flags, 'FLAGS', flags.FlagValues())
  with pytest.raises(UserError, match=r'data\.num_workers=1: grain reads absl flags'):
    make(folder, memory_limit_bytes=0, num_workers=1).iterate(0)


def test_sha256_is_of_every_image():
  images = np.zeros((300, 2, 2, 1), np.uint8)

  def sha256(**changes):
    return make(ArraySource('a', 'train', images), **changes).sha256()

  assert sha256(memory_limit_bytes=0) is None
  same = sha256()
  images[123, 1, 1] = 1
  assert sha256() != same
  images[123, 1, 1] = 0
  assert sha256() == same


def test_skipped_batches_are_taken_by_no_step(folder):
  numbers = [data.batch_of_step(step, (4, 0, 2)) for step in range(5)]
  assert numbers == [1, 3, 5, 6, 7]
  plain, skipping = make(folder), make(folder, skipped_batches=[0, 2])
  assert [skipping.indices(step).tolist() for step in range(3)] == [
    plain.indices(batch).tolist() for batch in (1, 3, 4)
  ]
  np.testing.assert_array_equal(take(skipping, 1, 1)[0], take(plain, 3, 1)[0])


def test_the_global_batch_is_that_of_all_processes(folder):
  shares = [make(folder, global_batch_size=6, process_index=i, process_count=2) for i in (0, 1)]
  whole = np.concatenate([share.indices(5) for share in shares])
  for share in shares:
    np.testing.assert_array_equal(share.global_indices(5), whole)


@pytest.mark.parametrize('num_workers', [0, 1])
def test_a_file_damaged_in_the_middle_of_an_epoch_can_be_skipped(folder, num_workers):
  flags.FLAGS(['test'])
  options = dict(memory_limit_bytes=0, num_workers=num_workers)
  batches = make(data.Substitutes(folder), **options)
  whole = take(make(folder, **options), 0, 3)
  break_file(folder, 2)
  taken = take(batches, 0, 3)
  order = np.concatenate([batches.indices(step) for step in range(3)])
  others = order != 2
  np.testing.assert_array_equal(np.concatenate(taken)[others], np.concatenate(whole)[others])
  third = np.concatenate(whole)[order == 3][0]
  for image in np.concatenate(taken)[~others]:
    np.testing.assert_array_equal(image, third)
