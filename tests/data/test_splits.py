"""Splits by their names, and a test split that is held out."""

import numpy as np
import PIL.Image
import pytest

from ddpm_jax import data
from ddpm_jax.data.splits import base_names
from ddpm_jax.errors import UserError

FRACTION = 0.3


@pytest.fixture
def folder(tmp_path):
  """A folder of 60 pictures that are all different."""
  images = np.random.RandomState(0).randint(0, 256, (60, 4, 4, 3), np.uint8)
  (tmp_path / 'a').mkdir()
  for i, image in enumerate(images):
    PIL.Image.fromarray(image).save(tmp_path / f'a/{i:02d}.png')
  return tmp_path / 'a'


def source(folder, split, holdout=FRACTION, name='folder:'):
  return data.make_source(
    f'{name}{folder}', dir=None, image_size=4, channels=3, split=split, holdout=holdout
  )


def contents(opened):
  return {image.tobytes() for image in opened.read(np.arange(len(opened)))}


def test_the_two_sides_share_no_picture_and_are_all_of_them(folder):
  train, test, whole = (source(folder, split) for split in ('train', 'test', 'all'))
  assert 5 < len(test) < 31
  assert contents(train) | contents(test) == contents(whole)
  assert not contents(train) & contents(test)
  assert (train.split, test.split) == ('train', 'test')
  assert data.fingerprint(train) != data.fingerprint(test)
  assert train.remarks == test.remarks
  assert f'data.holdout=0.3: {len(test)} of the 60 pictures of folder:' in train.remarks[0]


def test_a_picture_stays_on_its_side(folder):
  names = set(source(folder, 'test').picture_names())
  for i in range(0, 60, 2):
    (folder / f'{i:02d}.png').unlink()
  moved = folder.rename(folder.with_name('moved'))
  (moved / 'new').mkdir()
  PIL.Image.new('RGB', (4, 4)).save(moved / 'new/x.png')
  left = {b'%02d.png' % i for i in range(1, 60, 2)}
  assert set(source(moved, 'test').picture_names()) - {b'new/x.png'} == names & left
  more = set(source(moved, 'test', 0.5).picture_names())
  assert more >= names & left  # a smaller part lies in a larger one


def test_damaged_pictures_are_replaced_on_their_own_side(folder):
  train = source(folder, 'train')
  first = train.picture_names()[0].decode()
  (folder / first).write_bytes(b'')
  opened = data.Substitutes(train)
  np.testing.assert_array_equal(opened.read([0]), train.read([1]))
  assert opened.picture_names() == train.picture_names()
  assert opened.remarks == train.remarks


@pytest.mark.parametrize('fraction', [0, 1, -0.1, 1.5, float('nan')])
def test_no_part_of_the_data_is_refused(folder, fraction):
  with pytest.raises(UserError, match=r'data\.holdout is .*; it must lie between 0 and 1'):
    source(folder, 'train', fraction)


def test_an_empty_side_is_refused(folder):
  with pytest.raises(UserError, match=r'data\.holdout=1e-09 holds out 0 of the 60 pictures'):
    source(folder, 'train', 1e-9)


def test_data_with_a_test_split_are_refused(folder):
  for i, name in enumerate(('train', 'test')):
    (folder / name).mkdir()
    (folder / f'{i:02d}.png').rename(folder / name / 'x.png')
  with pytest.raises(UserError, match='has a test split of its own: leave it out'):
    source(folder, 'train')
  with pytest.raises(UserError, match='digits has a test split of its own'):
    source('', 'train', name='digits')


def test_base_names():
  assert base_names('train[:90%]+test') == {'train', 'test'}


@pytest.mark.parametrize(
  ('one', 'other', 'share'),
  [
    ('train', 'test', False),
    ('train', 'train', True),
    ('all', 'test', True),
    ('train+test', 'test[:10%]', True),
    ('train[:90%]', 'val', False),
  ],
)
def test_splits_that_share_pictures(one, other, share):
  assert data.share_pictures(one, other) == share
  assert data.share_pictures(other, one) == share


@pytest.mark.parametrize(
  ('split', 'held_out'), [('train', False), ('val', True), ('test[:5]', True), ('cars', False)]
)
def test_held_out_by_name(split, held_out):
  assert data.is_held_out(split) == held_out
