"""A damaged picture is named and counted, and the next intact one takes its place."""

import numpy as np
import pytest

from ddpm_jax.data import BrokenPicturesError, DamagedDataError, Substitutes


class Source:
  """Pictures of their own number, some of them damaged."""

  name, split, image_shape = 'numbers', 'train', (1, 1, 1)

  def __init__(self, size, damaged):
    self._size, self._damaged = size, damaged

  def __len__(self):
    return self._size

  def read(self, indices):
    broken = [(f'{i}.png', 'cut') for i in indices if i in self._damaged]
    if broken:
      raise BrokenPicturesError(broken, len(indices))
    return np.asarray(indices, np.uint8).reshape(-1, 1, 1, 1)


def test_intact_pictures_pass(capsys):
  source = Substitutes(Source(9, {}))
  assert (len(source), source.name, source.split, source.image_shape) == (
    9,
    'numbers',
    'train',
    (1, 1, 1),
  )
  assert source.read([4, 2]).ravel().tolist() == [4, 2]
  assert capsys.readouterr().err == ''


def test_the_next_intact_one_takes_the_place_and_each_is_counted_once(capsys):
  source = Substitutes(Source(250, {3, 249}))
  for _ in range(2):
    assert source.read([1, 3, 249, 4]).ravel().tolist() == [1, 4, 0, 4]
  first, second = capsys.readouterr().err.splitlines()
  assert first.startswith('damaged picture 1 of 250, another takes its place: 3.png cannot be read')
  assert second.startswith('damaged picture 2 of 250, another takes its place: 249.png')


def test_too_many_are_another_data_set():
  source = Substitutes(Source(200, {1, 2, 3}))
  with pytest.raises(DamagedDataError, match='numbers train: 3 of 200 pictures are damaged, more'):
    source.read(np.arange(10))
