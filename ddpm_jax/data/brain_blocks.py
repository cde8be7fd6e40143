"""Blocks of one averaged brain, embedded: volumes for tests and first steps.

A hemisphere of the MNI template (see brain_blocks.LICENSE.md), uint8 at 1 mm: an average of the
heads of 152 people, so there is one brain here, and not 152. It is an exact mirror of the other
hemisphere, which is left out: a mirrored block would be one of the training blocks again.
`brain_blocks.npz` was made by scripts/make_brain_blocks.py of the copy in the package nilearn.

An example is a block of data.image_size voxels, at least half of which lie in the brain. Splits go
by the place from back to front: 'test' is a slab of 48 mm, in blocks beside one another; 'train'
what lies before and behind it, but for a gap of 8 mm, in blocks every quarter of a block, so that
they overlap; 'all' the whole, in blocks beside one another.
"""

import functools
import hashlib
import itertools
import pathlib
from collections.abc import Sequence

import numpy as np

from ddpm_jax.data.pictures import picture_axes
from ddpm_jax.data.splits import NoSplitError
from ddpm_jax.errors import UserError

SPLITS = ('train', 'test', 'all')
TEST_SLAB = (96, 144)  # voxels from the back
GAP = 8  # voxels, on both sides of it
LEAST_BRAIN = 0.5  # of a block
_FILE = pathlib.Path(__file__).with_name('brain_blocks.npz')


class BrainBlocksSource:
  """Blocks of a split."""

  def __init__(self, split: str, axes: tuple[int, ...]):
    self.name, self.split = 'brain_blocks', split
    self.image_shape = (*axes, 1)
    self._volume = _load()
    whole = (0, self._volume.shape[1])
    first, last = TEST_SLAB
    slabs = {
      'train': [(whole[0], first - GAP), (last + GAP, whole[1])],
      'test': [TEST_SLAB],
      'all': [whole],
    }[split]
    strides = [max(1, n // 4) if split == 'train' else n for n in axes]
    self._corners = np.concatenate(
      [_corners(self._volume, slab, axes, strides) for slab in slabs]
    ).astype(np.int64)

  def __len__(self):
    return len(self._corners)

  def read(self, indices: np.ndarray) -> np.ndarray:
    """Returns uint8 [N, D, H, W, 1] for int [N]: left to right, back to front, bottom to top."""
    corners = self._corners[np.asarray(indices)]
    grids = np.ix_(*map(np.arange, self.image_shape[:3]))
    x, y, z = (corners[:, i, None, None, None] + grids[i] for i in range(3))
    return self._volume[x, y, z][..., None]

  def version(self) -> str:
    """sha256 (hex) of the volume and of where blocks begin."""
    digest = hashlib.sha256(np.ascontiguousarray(self._volume).data)
    digest.update(self._corners.astype('<i8').tobytes())
    return digest.hexdigest()


@functools.lru_cache(maxsize=1)
def _load():
  with np.load(_FILE) as arrays:
    return arrays['volume']


def _corners(volume, slab, axes, strides):
  """int [n, 3], where the blocks of a slab begin that lie in the brain."""
  low, high = (0, slab[0], 0), (volume.shape[0], slab[1], volume.shape[2])
  places = [
    range(start, stop - length + 1, stride)
    for start, stop, length, stride in zip(low, high, axes, strides, strict=True)
  ]
  # Sums over all that lies before a corner give those of any block.
  sums = np.pad((volume > 0).astype(np.int64), ((1, 0),) * 3).cumsum(0).cumsum(1).cumsum(2)
  corners = np.array(list(itertools.product(*places)), np.int64).reshape(-1, 3)
  count = np.zeros(len(corners), np.int64)
  for ends in itertools.product((0, 1), repeat=3):
    at = corners + np.multiply(ends, axes)
    count += (-1) ** (3 - sum(ends)) * sums[tuple(at.T)]
  return corners[count >= LEAST_BRAIN * np.prod(axes)]


def make_brain_blocks_source(
  *, image_size: int | Sequence[int], channels: int, split: str
) -> BrainBlocksSource:
  """Blocks of data.image_size voxels, such as (16, 16, 16).

  Raises:
    UserError: another number of axes or channels, or blocks that do not fit in the test slab.
    NoSplitError: no such split.
  """
  if split not in SPLITS:
    raise NoSplitError(f'data.split={split!r}: brain_blocks has the splits {", ".join(SPLITS)}')
  axes = picture_axes(image_size)
  if len(axes) != 3 or channels != 1:
    raise UserError(
      'data.source=brain_blocks has volumes of one channel: give --config.data.image_size=16,16,16 '
      'and --config.data.channels=1'
    )
  source = BrainBlocksSource(split, axes)
  if not len(source):
    raise UserError(
      f'data.image_size is {axes}: no such block of the split {split} lies in the brain by half; '
      'give a smaller one'
    )
  return source
