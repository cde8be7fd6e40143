"""Blocks of one averaged brain: whole blocks, and a slab that is held out with a gap."""

import numpy as np
import pytest

from ddpm_jax.data import NoSplitError, make_source
from ddpm_jax.data.brain_blocks import GAP, LEAST_BRAIN, TEST_SLAB, _load
from ddpm_jax.errors import UserError


def open_blocks(split, axes=(16, 16, 16)):
  return make_source('brain_blocks', dir=None, image_size=axes, channels=1, split=split)


@pytest.mark.parametrize('axes', [(16, 16, 16), (8, 16, 4)])
@pytest.mark.parametrize('split', ['train', 'test', 'all'])
def test_blocks_are_those_of_the_volume_that_lie_in_the_brain(split, axes):
  source, volume = open_blocks(split, axes), _load()
  rows = np.random.default_rng(0).integers(0, len(source), 20)
  blocks = source.read(rows)
  assert (blocks.shape, blocks.dtype) == ((20, *axes, 1), np.uint8)
  for block, (x, y, z) in zip(blocks, source._corners[rows], strict=True):
    expected = volume[x : x + axes[0], y : y + axes[1], z : z + axes[2]]
    np.testing.assert_array_equal(block[..., 0], expected)
    assert (expected > 0).mean() >= LEAST_BRAIN


def test_no_voxel_of_the_test_slab_is_trained_on():
  train, test = open_blocks('train')._corners, open_blocks('test')._corners
  first, last = test[:, 1].min(), test[:, 1].max() + 16
  assert (first, last) == TEST_SLAB
  assert ((train[:, 1] + 16 <= first - GAP) | (train[:, 1] >= last + GAP)).all()
  assert {bool(x) for x in (train[:, 1] < first)} == {True, False}  # on both sides


def test_blocks_of_the_test_split_do_not_overlap():
  corners = open_blocks('test')._corners
  assert len(corners) > 50
  apart = np.abs(corners[:, None] - corners[None]).max(-1)
  assert (apart[~np.eye(len(corners), dtype=bool)] >= 16).all()
  assert len(open_blocks('train')) > 5_000  # these do


def test_there_is_one_hemisphere():
  volume = _load()
  assert volume.shape == (73, 181, 155)
  assert (volume[-1] > 0).any()  # the middle
  assert (volume[0] > 0).any()  # the outermost voxels: the box is tight


def test_another_size_is_another_version():
  assert open_blocks('train').version() != open_blocks('train', (8, 8, 8)).version()


@pytest.mark.parametrize(
  ('choices', 'error', 'message'),
  [
    ({'split': 'val'}, NoSplitError, "data.split='val': brain_blocks has the splits train, test"),
    ({'image_size': 16}, UserError, r'has volumes of one channel: .*image_size=16,16,16'),
    ({'channels': 3}, UserError, 'has volumes of one channel'),
    ({'image_size': (16, 64, 16), 'split': 'test'}, UserError, 'no such block of the split test'),
  ],
)
def test_what_it_has_not_is_named(choices, error, message):
  usual = dict(dir=None, image_size=(16, 16, 16), channels=1, split='train')
  with pytest.raises(error, match=message):
    make_source('brain_blocks', **(usual | choices))
