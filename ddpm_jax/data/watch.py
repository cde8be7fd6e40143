"""Motion of a smartwatch, embedded: 140 recordings of ten people, for tests and first steps.

Seven shoulder exercises with each arm, by D. M. Burns (2018), BSD 3-Clause (see watch.LICENSE.md).
Six channels at 25 samples a second, in whole numbers: acceleration along three axes in thousandths
of g, and rotation about them in 0.0025 rad/s. `watch.npz` was made by scripts/make_watch.py of the
copy in the package seglearn.

An example is a window of data.image_size samples, within one recording. Splits go by the person:
'test' is people 9 and 10, in windows one after the other; 'train' the other eight, in windows that
begin every quarter of a window, so that they overlap; 'all' both, as train. The labels are the
exercises.
"""

import functools
import hashlib
import pathlib
from collections.abc import Sequence

import numpy as np

from ddpm_jax.data.labels import Labels
from ddpm_jax.data.pictures import picture_axes
from ddpm_jax.data.splits import NoSplitError
from ddpm_jax.errors import UserError

RATE = 25  # samples a second
NUM_LEVELS = 1 << 14  # from -8,192 on, which hold all values
CHANNELS = ('ax', 'ay', 'az', 'wx', 'wy', 'wz')
TEST_PEOPLE = (9, 10)
SPLITS = ('train', 'test', 'all')
_FILE = pathlib.Path(__file__).with_name('watch.npz')


class WatchSource:
  """Windows of the recordings of a split."""

  def __init__(self, split: str, length: int):
    self.name, self.split = 'watch', split
    self.image_shape = (length, len(CHANNELS))
    self.rate, self.channel_names = RATE, CHANNELS
    recordings = _load()
    in_test = np.isin(recordings['people'], TEST_PEOPLE)
    chosen = {'train': ~in_test, 'test': in_test, 'all': np.ones_like(in_test)}[split]
    stride = length if split == 'test' else max(1, length // 4)
    ends = np.cumsum(recordings['lengths'])
    starts, classes = [], []
    for i in np.flatnonzero(chosen):
      of_one = np.arange(ends[i] - recordings['lengths'][i], ends[i] - length + 1, stride)
      starts.append(of_one)
      classes.append(np.full(len(of_one), recordings['labels'][i], np.int32))
    self._values, self._starts = recordings['values'], np.concatenate(starts)
    self._labels = Labels(np.concatenate(classes), tuple(recordings['names'].tolist()))

  def __len__(self):
    return len(self._starts)

  def read(self, indices: np.ndarray) -> np.ndarray:
    """Returns int16 [N, length, 6] for int [N]."""
    rows = self._starts[np.asarray(indices)][:, None] + np.arange(self.image_shape[0])
    return self._values[rows]

  def labels(self, choice: str | None) -> Labels | None:
    """The exercise of each window, of which there is no choice."""
    return self._labels if choice is None else None

  def version(self) -> str:
    """sha256 (hex) of the recordings and of where windows begin."""
    digest = hashlib.sha256(np.ascontiguousarray(self._values).data)
    digest.update(self._starts.astype('<i8').tobytes())
    return digest.hexdigest()


@functools.lru_cache(maxsize=1)
def _load():
  with np.load(_FILE) as arrays:
    return dict(arrays)


def make_watch_source(*, image_size: int | Sequence[int], channels: int, split: str) -> WatchSource:
  """Windows of data.image_size=(length,) samples.

  Raises:
    UserError: another number of axes or channels, or windows longer than the shortest recording.
    NoSplitError: no such split.
  """
  if split not in SPLITS:
    raise NoSplitError(f'data.split={split!r}: watch has the splits {", ".join(SPLITS)}')
  axes = picture_axes(image_size)
  if len(axes) != 1 or channels != len(CHANNELS):
    raise UserError(
      f'data.source=watch has signals of {len(CHANNELS)} channels: give --config.data.image_size='
      f'128, (samples, with the comma) and --config.data.channels={len(CHANNELS)}'
    )
  shortest = int(_load()['lengths'].min())
  if not 1 <= axes[0] <= shortest:
    raise UserError(
      f'data.image_size is {axes}, but the shortest recording of watch has {shortest} samples: '
      'give at most as many'
    )
  return WatchSource(split, axes[0])
