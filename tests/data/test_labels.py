"""Labels: from each source that has them, with the batches, and refused where they are wrong."""

import json

import numpy as np
import PIL.Image
import pytest
from absl import flags

from ddpm_jax import data
from ddpm_jax.data.digits import load_digits
from ddpm_jax.data.labels import listed
from ddpm_jax.errors import UserError
from tests.data.test_pipeline import make, take


def level(class_, number):
  """A grey level that tells the class of a picture and the picture."""
  return 100 * class_ + number


@pytest.fixture
def flowers(tmp_path):
  """A folder with two classes of six pictures, which tell their class, in two batches."""
  for class_, name in enumerate(('rose', 'tulip')):
    for number in range(6):
      file = tmp_path / f'flowers/{name}/{number % 2}/{number}.png'
      file.parent.mkdir(parents=True, exist_ok=True)
      image = np.full((4, 4, 3), level(class_, number), np.uint8)
      PIL.Image.fromarray(image).save(file)
  return tmp_path / 'flowers'


def source(folder, split='train', holdout=None):
  return data.make_source(
    f'folder:{folder}', dir=None, image_size=4, channels=3, split=split, holdout=holdout
  )


def classes_of(images):
  return images[:, 0, 0, 0] // 100


def test_digits_bring_their_labels():
  opened = data.make_source('digits', dir=None, image_size=8, channels=1, split='test')
  labels = data.read_labels(opened)
  assert labels.names == tuple('0123456789')
  np.testing.assert_array_equal(labels.ids, load_digits('test')[1])


def test_folders_are_classes_by_choice(flowers):
  opened = source(flowers)
  labels = data.read_labels(opened, 'folders')
  assert labels.names == ('rose', 'tulip')
  np.testing.assert_array_equal(labels.ids, classes_of(opened.read(np.arange(12))))
  with pytest.raises(UserError, match=r'no labels; data\.labels=folders takes the folder that'):
    data.read_labels(opened)
  with pytest.raises(UserError, match=r'data\.labels=label: a folder of pictures has data'):
    data.read_labels(opened, 'label')


def test_classes_are_the_folders_below_that_of_a_split(flowers):
  for split in ('train', 'test'):
    (flowers.parent / 'split').mkdir(exist_ok=True)
    (flowers.parent / 'split' / split).symlink_to(flowers, target_is_directory=True)
    labels = data.read_labels(source(flowers.parent / 'split', split), 'folders')
    assert (labels.names, len(labels.ids)) == (('rose', 'tulip'), 12)
  assert data.read_labels(source(flowers.parent / 'split', 'all'), 'folders').names == labels.names


@pytest.mark.parametrize('split', ['train', 'test'])
def test_held_out_pictures_keep_their_class(flowers, split):
  part = source(flowers, split, holdout=0.5)
  labels = data.read_labels(part, 'folders')
  assert 0 < len(part) < 12
  np.testing.assert_array_equal(labels.ids, classes_of(part.read(np.arange(len(part)))))


def test_pictures_in_no_folder_are_named(flowers):
  (flowers / 'rose/0/0.png').rename(flowers / 'loose.png')
  with pytest.raises(UserError, match=r'1 pictures of .* lie in no folder .*loose'):
    data.read_labels(source(flowers), 'folders')


def test_tfds_brings_its_label(tmp_path, write_tfds):
  numbers = [1, 0, 1, 1, 0]
  images = np.array([np.full((6, 6, 3), level(c, i)) for i, c in enumerate(numbers)], np.uint8)
  write_tfds(tmp_path, 'tiny', images, labels={'label': (['a', 'b'], numbers)})
  opened = data.make_source('tfds:tiny', dir=tmp_path, image_size=6, channels=3, split='train')
  labels = data.read_labels(opened)
  assert labels.names == ('a', 'b')
  np.testing.assert_array_equal(labels.ids, classes_of(opened.read(np.arange(5))))
  with pytest.raises(UserError, match=r'data\.labels=coarse: tfds:tiny has the labels label'):
    data.read_labels(opened, 'coarse')


def test_one_of_several_labels_of_tfds_is_chosen(tmp_path, pictures, write_tfds):
  labels = {'fine': (['a', 'b'], [0, 1, 0, 1, 1]), 'coarse': (['c'], [0] * 5)}
  write_tfds(tmp_path, 'tiny', pictures, labels=labels)
  opened = data.make_source('tfds:tiny', dir=tmp_path, image_size=6, channels=3, split='train')
  with pytest.raises(UserError, match=r'it has the labels .*; name one, as in data\.labels='):
    data.read_labels(opened)
  assert data.read_labels(opened, 'coarse').names == ('c',)


def test_tfds_without_a_label(tmp_path, pictures, write_tfds):
  write_tfds(tmp_path, 'tiny', pictures)
  opened = data.make_source('tfds:tiny', dir=tmp_path, image_size=6, channels=3, split='train')
  with pytest.raises(UserError, match=r'tfds:tiny: its pictures have no labels; leave out mod'):
    data.read_labels(opened)


@pytest.mark.parametrize('memory_limit_bytes', [0, 1 << 20])
@pytest.mark.parametrize('start', [0, 2])
def test_each_batch_has_the_labels_of_its_pictures(flowers, memory_limit_bytes, start):
  flags.FLAGS(['test'])
  opened = source(flowers)
  labels = data.read_labels(opened, 'folders').ids
  options = dict(memory_limit_bytes=memory_limit_bytes)
  plain = take(make(opened, **options), start, 4)
  for batch, images in zip(
    take(make(opened, labels=labels, **options), start, 4), plain, strict=True
  ):
    np.testing.assert_array_equal(batch['images'], images)
    np.testing.assert_array_equal(batch['labels'], classes_of(images))
  if memory_limit_bytes:
    examples = make(opened, labels=labels).examples
    np.testing.assert_array_equal(examples['labels'], classes_of(examples['images']))


@pytest.mark.parametrize('memory_limit_bytes', [0, 1 << 20])
def test_a_picture_that_takes_a_damaged_ones_place_has_its_own_label(flowers, memory_limit_bytes):
  flags.FLAGS(['test'])
  (flowers / 'rose/1/5.png').write_bytes(b'')  # the last of the first class
  opened = data.Substitutes(source(flowers))
  labels = data.read_labels(opened, 'folders').ids
  assert labels.tolist() == [0] * 6 + [1] * 6
  batches = make(opened, labels=labels, memory_limit_bytes=memory_limit_bytes)
  for batch in take(batches, 0, 6):
    np.testing.assert_array_equal(batch['labels'], classes_of(batch['images']))
  if memory_limit_bytes:
    examples = make(opened, labels=labels).examples
    assert examples['labels'].sum() == 7
    np.testing.assert_array_equal(examples['labels'], classes_of(examples['images']))


def test_classes_of_another_split_go_by_their_names():
  labels = data.Labels(np.array([1, 0, 1], np.int32), ('cat', 'dog'))
  renumbered = data.renumbered(labels, ('ant', 'dog', 'cat'))
  assert renumbered.ids.tolist() == [1, 2, 1]
  with pytest.raises(UserError, match=r'have the class dog, .*; it has 0 ant, 1 cat'):
    data.renumbered(labels, ('ant', 'cat'))


def test_a_class_of_one_picture_is_named():
  labels = data.Labels(np.array([0, 0, 1], np.int32), ('cat', 'dog', 'eel'))
  with pytest.raises(UserError, match=r'too few pictures of dog \(1\), eel \(0\); give 2 classes'):
    data.check_classes(labels, 'folder:a')
  with pytest.raises(UserError, match='has the class cat alone'):
    data.check_classes(data.Labels(labels.ids[:2], ('cat',)), 'folder:a')
  data.check_classes(data.Labels(labels.ids[[0, 0, 2, 2]], ('cat', 'dog')), 'folder:a')


def keep(workdir, opened, choice=None, has_begun=True):
  labels = data.read_labels(opened, choice)
  data.keep_record(workdir, opened, has_begun=has_begun, say=lambda line: None, labels=labels)


def test_names_are_kept_and_other_classes_refused(flowers, tmp_path):
  keep(tmp_path, source(flowers), 'folders', has_begun=False)
  assert json.loads((tmp_path / 'classes.json').read_text()) == ['rose', 'tulip']
  keep(tmp_path, source(flowers), 'folders')
  (flowers / 'rose').rename(flowers / 'violet')
  with pytest.raises(UserError, match='classes 0 tulip, 1 violet, but this run was begun'):
    keep(tmp_path, source(flowers), 'folders')
  assert data.read_class_names(tmp_path) == ('rose', 'tulip')


def test_many_classes_are_listed_in_part():
  assert listed(['a', '1']) == '0 a, 1'
  assert listed([str(i) for i in range(30)]).endswith('19, ... (30 in all)')


@pytest.mark.parametrize('content', ['[]', '{}', '[1]', '"a"', '[', ''])
def test_names_that_are_damaged_are_one_line(content, tmp_path):
  (tmp_path / 'classes.json').write_text(content)
  with pytest.raises(UserError, match=r'classes\.json'):
    data.read_class_names(tmp_path)
