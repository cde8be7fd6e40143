"""The input pipeline: the batch of step s is a pure function of (seed, s, process).

So a run that resumes at step s sees what it would have seen without the stop, and no state of the
pipeline is saved.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ddpm_jax.data.labels import stand_ins
from ddpm_jax.data.pictures import BrokenPicturesError
from ddpm_jax.errors import UserError

_WORD = 1 << 32
_CHUNK_EXAMPLES = 256  # what one thread decodes at a time
_MAX_THREADS = 16  # more of them only wait for Python's lock
_EARLY_EXAMPLES = 8  # at a time
_EARLY_SECS = 0.8  # before compiling, for pictures that are damaged
_BUFFERED_BATCHES = 4  # read ahead, in all or per worker
_ENDLESS_STEPS = 1 << 40  # grain wants a finite length


@functools.lru_cache(maxsize=2)
def _permutation(seed, epoch, num_examples):
  """The order of one epoch: int64 [num_examples], read-only.

  RandomState, not Generator: its streams are frozen for good (NumPy's NEP 19), so an old run can
  be resumed after an upgrade. The words of the seed go through MT19937's init_by_array.
  """
  words = [seed % _WORD, (seed >> 32) % _WORD, epoch]
  order = np.random.RandomState(words).permutation(num_examples).astype(np.int64)
  order.setflags(write=False)
  return order


def batch_indices(seed: int, step: int, *, global_batch_size: int, num_examples: int) -> np.ndarray:
  """The examples of one step's global batch.

  Epoch after epoch, each in its own random order, is one endless sequence; step s takes positions
  s * global_batch_size onwards. A batch may thus straddle epochs, and no example is dropped.

  Args:
    seed: int in [-2**63, 2**64).
    step: training step, from 0.
    global_batch_size: examples per step over all processes; may exceed num_examples.
    num_examples: size of the data set.

  Returns:
    int64 [global_batch_size] in [0, num_examples).
  """
  start = int(step) * global_batch_size
  stop = start + global_batch_size
  pieces = []
  for epoch in range(start // num_examples, (stop - 1) // num_examples + 1):
    first = epoch * num_examples
    order = _permutation(int(seed), epoch, num_examples)
    pieces.append(order[max(start - first, 0) : stop - first])
  return np.concatenate(pieces)


def batch_of_step(step: int, skipped_batches: Sequence[int]) -> int:
  """The number of the batch that a step takes; without skipped ones, its own."""
  for batch in sorted(skipped_batches):
    step += batch <= step
  return step


@dataclasses.dataclass(frozen=True)
class _HostIndices:
  """step -> this process's rows of the global batch."""

  seed: int
  global_batch_size: int
  num_examples: int
  process_index: int
  process_count: int
  skipped_batches: tuple

  def of_all(self, step):
    """The global batch."""
    return batch_indices(
      self.seed,
      batch_of_step(step, self.skipped_batches),
      global_batch_size=self.global_batch_size,
      num_examples=self.num_examples,
    )

  def __call__(self, step):
    indices = self.of_all(step)
    size = self.global_batch_size // self.process_count
    return indices[self.process_index * size : (self.process_index + 1) * size]


@dataclasses.dataclass(frozen=True)
class _HostBatch:
  """step -> a batch, read from the source; what a worker runs."""

  source: object
  host_indices: _HostIndices
  labels: np.ndarray | None

  def __call__(self, step):
    indices = self.host_indices(step)
    return _batch(self.source, self.source.read(indices), self.labels, indices)


def _batch(source, images, labels, indices):
  """Pictures that were read, with their labels if there are any."""
  if labels is None:
    return images
  return {'images': images, 'labels': labels[stand_ins(source, indices)]}


def dtype_of(source: Any) -> np.dtype:
  """Of what a source's `read` returns."""
  return np.dtype(getattr(source, 'dtype', np.uint8))


def num_bytes(source: Any) -> int:
  """Of all examples of a source, decoded."""
  return len(source) * int(np.prod(source.image_shape)) * dtype_of(source).itemsize


class _Memory:
  """All pictures of a source, which threads decode in the background: no start waits for them.

  Args:
    source: a Source.
    decoded: a decoded.DecodedFile, which has the pictures or gets them; None for none.
  """

  def __init__(self, source, decoded=None):
    self._source, self._decoded = source, decoded
    num_chunks = -(-len(source) // _CHUNK_EXAMPLES)
    found = None if decoded is None else decoded.open(num_chunks)
    if found is None:
      images = np.empty((len(source), *source.image_shape), dtype_of(source))
      found = images, [None] * num_chunks
    self._images, self._digests = found
    self._has_changed = False  # against what is on disk
    self._storing = []
    # One core is left to whoever makes use of the time, such as the compiler.
    num_threads = min(_MAX_THREADS, max(1, os.cpu_count() - 1))
    self._pool = concurrent.futures.ThreadPoolExecutor(num_threads)
    starts = range(0, len(source), _CHUNK_EXAMPLES)
    self._chunks = [self._pool.submit(self._fill, start) for start in starts]

  def read(self, indices):
    """As Source.read, but its BrokenPicturesError counts all pictures that are broken."""
    if all(chunk.done() for chunk in self._chunks):
      return self.all()[indices]
    try:
      return self._source.read(indices)
    except BrokenPicturesError:
      self.all()
      raise

  def all(self):
    """Waits for all of them, with a progress bar after five seconds.

    Returns:
      uint8 [N, H, W, C].

    Raises:
      BrokenPicturesError: after everything was tried, so that it counts all of them.
    """
    if self._chunks:
      import tqdm

      total = len(self._source)
      what = f'reading {self._source.name} {self._source.split}'
      broken = []
      with tqdm.tqdm(desc=what, total=total, delay=5, mininterval=2) as bar:
        for chunk in self._chunks:
          try:
            bar.update(chunk.result())
          except BrokenPicturesError as error:
            bar.update(error.num_read)
            broken.extend(error.broken)
      if broken:
        raise BrokenPicturesError(broken, total)
      self._chunks = []  # nothing to wait for any more
      if self._decoded is not None and self._has_changed:
        self._storing = [self._pool.submit(self._decoded.store, self._images, self._digests)]
    return self._images

  def check_early(self, secs):
    """Waits so long at most for pictures, and raises what is wrong with those that came."""
    done, _ = concurrent.futures.wait(
      self._chunks, secs, return_when=concurrent.futures.FIRST_EXCEPTION
    )
    if any(isinstance(chunk.exception(), UserError) for chunk in done):
      self.all()

  def close(self):
    """Decodes no more, and waits for what is being kept on disk."""
    concurrent.futures.wait(self._storing)
    self._pool.shutdown(cancel_futures=True)

  def _fill(self, start):
    """Decodes a chunk, unless it is there as it was kept; returns how many."""
    stop = min(start + _CHUNK_EXAMPLES, len(self._source))
    images, number = self._images[start:stop], start // _CHUNK_EXAMPLES
    digest = self._digests[number]
    if digest is not None and digest == hashlib.sha256(images.data).hexdigest():
      return stop - start
    images[:] = self._source.read(np.arange(start, stop))
    if self._decoded is not None:
      self._digests[number] = hashlib.sha256(images.data).hexdigest()
      self._has_changed = True
    return stop - start


def _read_some(source, secs):
  """Reads pictures from all over a source for so long; raises the BrokenPicturesError of all."""
  end, broken, num_read = time.monotonic() + secs, [], 0
  order = np.random.RandomState(0).permutation(len(source))
  for first in range(0, len(order), _EARLY_EXAMPLES):
    if time.monotonic() > end:
      break
    indices = order[first : first + _EARLY_EXAMPLES]
    num_read += len(indices)
    try:
      source.read(indices)
    except BrokenPicturesError as error:
      broken += error.broken
  if broken:
    raise BrokenPicturesError(broken, num_read)


class Batches:
  """One process's share of the batches; make it with make_batches."""

  def __init__(self, source, host_indices, *, memory, num_workers, labels=None):
    self.source = source
    self._labels = labels
    self._host_indices = host_indices
    self._memory = memory
    self._num_workers = num_workers
    self._open_iterators = []

  def iterate(self, start_step: int) -> Iterator[Any]:
    """Returns an endless iterator of uint8 [host_batch_size, H, W, C], from start_step's batch.

    With labels, each batch is {'images': these, 'labels': int32 [host_batch_size]}.
    """
    if self._memory is not None:
      return self._from_memory(start_step)
    return self._from_grain(start_step)

  def indices(self, step: int) -> np.ndarray:
    """The examples of this process's batch of a step: int64 [host_batch_size]."""
    return self._host_indices(step)

  def global_indices(self, step: int) -> np.ndarray:
    """The examples of a step's batch over all processes: int64 [global_batch_size]."""
    return self._host_indices.of_all(step)

  @property
  def images(self) -> np.ndarray | None:
    """All images, uint8 [N, H, W, C], if they are held in memory, else None.

    Raises:
      BrokenPicturesError: naming one, and counting all.
    """
    return None if self._memory is None else self._memory.all()

  @property
  def examples(self) -> Any:
    """As images; with labels {'images': these, 'labels': int32 [N]}."""
    images = self.images
    if images is None:
      return None
    return _batch(self.source, images, self._labels, np.arange(len(images)))

  def sha256(self) -> str | None:
    """sha256 (hex) of all images, if they are held in memory, else None."""
    images = self.images
    return None if images is None else hashlib.sha256(images.data).hexdigest()

  def check_early(self, secs: float = _EARLY_SECS) -> None:
    """Looks for damaged pictures, a moment long: before a program is compiled for minutes.

    Raises:
      BrokenPicturesError: naming the first, and counting all.
    """
    if self._memory is not None:
      self._memory.check_early(secs)
    else:
      _read_some(self.source, secs)

  def close(self) -> None:
    """Stops the workers of all iterators, and what is read in the background."""
    while self._open_iterators:
      self._open_iterators.pop().close()
    if self._memory is not None:
      self._memory.close()

  def _from_memory(self, start_step):
    step = start_step
    while True:
      indices = self._host_indices(step)
      yield _batch(self.source, self._memory.read(indices), self._labels, indices)
      step += 1

  def _from_grain(self, start_step):
    import grain
    from absl import flags

    if self._num_workers and not flags.FLAGS.is_parsed():
      raise UserError(
        f'data.num_workers={self._num_workers}: grain reads absl flags; run under absl.app.run, '
        "call absl.flags.FLAGS(['']) first, or set 0"
      )
    steps = grain.MapDataset.range(start_step, start_step + _ENDLESS_STEPS)
    batches = steps.map(_HostBatch(self.source, self._host_indices, self._labels))
    threads = 0 if self._num_workers else min(_BUFFERED_BATCHES, os.cpu_count())
    batches = batches.to_iter_dataset(grain.ReadOptions(threads, _BUFFERED_BATCHES))
    workers = grain.MultiprocessingOptions(self._num_workers, _BUFFERED_BATCHES)
    iterator = iter(batches.mp_prefetch(workers))
    self._open_iterators.append(iterator)
    return iterator


def make_batches(
  source: Any,
  *,
  seed: int,
  global_batch_size: int,
  process_index: int,
  process_count: int,
  memory_limit_bytes: int,
  num_workers: int,
  skipped_batches: Sequence[int] = (),
  labels: np.ndarray | None = None,
  decoded: Any = None,
) -> Batches:
  """Makes the pipeline.

  Args:
    source: a Source.
    seed: int, see batch_indices.
    global_batch_size: examples per step over all processes.
    process_index: which contiguous share of the batch is this process's.
    process_count: number of shares.
    memory_limit_bytes: a source whose decoded pictures fit is decoded once, in the background,
      and held in memory; a larger one is read as it goes. The batches are the same.
    num_workers: processes that read; 0 reads with threads of this process.
    skipped_batches: numbers of batches that no step takes: the next one takes their place.
    labels: int32 [N], the class of each picture, to go with the batches; None for none.
    decoded: source -> its decoded.DecodedFile or None, for a source that is held in memory; None
      to keep nothing on disk.

  Returns:
    Batches.

  Raises:
    UserError: sizes that do not fit together.
  """
  if global_batch_size < 1 or global_batch_size % process_count:
    raise UserError(
      f'global_batch_size={global_batch_size}: must be a positive multiple of the '
      f'{process_count} processes'
    )
  if num_workers < 0:
    raise UserError(f'data.num_workers={num_workers}: must be 0 or more')
  host_indices = _HostIndices(
    seed, global_batch_size, len(source), process_index, process_count, tuple(skipped_batches)
  )
  memory = None
  if num_bytes(source) <= memory_limit_bytes:
    memory = _Memory(source, None if decoded is None else decoded(source))
  return Batches(source, host_indices, memory=memory, num_workers=num_workers, labels=labels)
