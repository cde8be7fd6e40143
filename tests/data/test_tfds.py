import json
import pickle

import numpy as np
import pytest

from ddpm_jax import data
from ddpm_jax.data import tfds as tfds_source
from ddpm_jax.errors import UserError


def source(name, root, split='train'):
  return data.make_source(f'tfds:{name}', dir=root, image_size=6, channels=3, split=split)


def read(opened):
  return opened.read(np.arange(len(opened)))


def test_reads_the_pictures(tmp_path, pictures, write_tfds, sorted_rows):
  write_tfds(tmp_path, 'tiny', pictures)
  opened = source('tiny', tmp_path)
  assert (opened.name, opened.split, opened.image_shape) == ('tfds:tiny', 'train', (6, 6, 3))
  images = read(opened)
  assert sorted_rows(images) == sorted_rows(pictures)
  np.testing.assert_array_equal(opened.read(np.array([3, 0, 3])), images[[3, 0, 3]])


def test_slices_of_splits(tmp_path, pictures, write_tfds):
  write_tfds(tmp_path, 'tiny', pictures)
  images = read(source('tiny', tmp_path))
  np.testing.assert_array_equal(read(source('tiny', tmp_path, 'train[2:4]')), images[2:4])
  assert len(source('tiny', tmp_path, 'train[:40%]')) == 2
  assert len(source('tiny', tmp_path, 'all')) == 5


def test_pickles(tmp_path, pictures, write_tfds):
  write_tfds(tmp_path, 'tiny', pictures)
  opened = source('tiny', tmp_path)
  again = pickle.loads(pickle.dumps(opened))
  np.testing.assert_array_equal(read(again), read(opened))


def test_newest_version_unless_one_is_named(tmp_path, pictures, write_tfds):
  write_tfds(tmp_path, 'tiny', pictures[:3], version='9.0.0')
  write_tfds(tmp_path, 'tiny', pictures[:2], version='10.0.0')
  assert len(source('tiny', tmp_path)) == 2
  assert len(source('tiny:9.0.0', tmp_path)) == 3


def test_configs(tmp_path, pictures, write_tfds):
  write_tfds(tmp_path, 'tiny', pictures, config='small')
  assert len(source('tiny/small', tmp_path)) == 5
  assert len(source('tiny/small:1.0.0', tmp_path)) == 5
  with pytest.raises(UserError, match='has the configs small; write tfds:tiny/small'):
    source('tiny', tmp_path)


def test_other_feature_names(tmp_path, pictures, write_tfds):
  write_tfds(tmp_path, 'tiny', pictures, feature='photo')
  assert len(read(source('tiny', tmp_path))) == 5


def test_no_image_feature(tmp_path, pictures, write_tfds):
  write_tfds(tmp_path, 'tiny', pictures, feature=None)
  with pytest.raises(UserError, match=r"data\.source='tfds:tiny': no image .* index"):
    source('tiny', tmp_path)


@pytest.mark.parametrize('split', ['val', 'train[', 'train[:x%]', ''])
def test_bad_split(tmp_path, pictures, write_tfds, split):
  write_tfds(tmp_path, 'tiny', pictures)
  with pytest.raises(UserError, match=r'data\.split=.*: unknown; tfds:tiny has train'):
    source('tiny', tmp_path, split)


@pytest.mark.parametrize('split', ['train[:0]', 'train[4:1]'])
def test_empty_split(tmp_path, pictures, write_tfds, split):
  write_tfds(tmp_path, 'tiny', pictures)
  with pytest.raises(UserError, match=r'data\.split=.*holds no pictures; tfds:tiny has train'):
    source('tiny', tmp_path, split)


def test_damaged_records(tmp_path, pictures, write_tfds):
  write_tfds(tmp_path, 'tiny', pictures)
  opened = source('tiny', tmp_path)
  (records,) = (tmp_path / 'tiny/1.0.0').glob('*.array_record*')
  records.write_bytes(records.read_bytes()[:-1000])
  with pytest.raises(UserError, match=r'tiny/1\.0\.0 is damaged .*delete it'):
    read(opened)


@pytest.mark.parametrize('name', ['dataset_info.json', 'features.json'])
def test_damaged_description(tmp_path, pictures, write_tfds, name):
  write_tfds(tmp_path, 'tiny', pictures)
  (tmp_path / 'tiny/1.0.0' / name).write_text('{')
  with pytest.raises(UserError, match=r'tiny/1\.0\.0 is damaged'):
    source('tiny', tmp_path)


def test_tfrecord_cannot_be_read(tmp_path, pictures, write_tfds):
  write_tfds(tmp_path, 'tiny', pictures)
  info_file = tmp_path / 'tiny/1.0.0/dataset_info.json'
  info = json.loads(info_file.read_text())
  info_file.write_text(json.dumps({**info, 'fileFormat': 'tfrecord'}))
  (records,) = info_file.parent.glob('*.array_record*')
  records.rename(str(records).replace('array_record', 'tfrecord'))
  with pytest.raises(UserError, match=r'stored as tfrecord, which only TensorFlow reads'):
    source('tiny', tmp_path)


def test_unknown_data_set(tmp_path):
  with pytest.raises(UserError, match=r'not prepared in .*DatasetNotFoundError') as raised:
    source('no_such_data', tmp_path)
  assert '\n' not in str(raised.value)
  assert f'tfds build no_such_data --file_format=array_record --data_dir={tmp_path}' in str(
    raised.value
  )


def test_data_set_that_cannot_be_downloaded_with_no_network(tmp_path, monkeypatch):
  def unresolved(host, port):
    raise OSError(-2, 'Name or service not known')

  monkeypatch.setattr(tfds_source.socket, 'getaddrinfo', unresolved)
  with pytest.raises(UserError, match=r'not prepared in .*no network: .*: Name or service'):
    source('mnist', tmp_path)


@pytest.mark.parametrize('name', ['a b', 'a/b/c', 'a:1', '/a'])
def test_malformed_name(tmp_path, name):
  with pytest.raises(UserError, match='write tfds:NAME'):
    source(name, tmp_path)


def test_default_folder(tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  assert tfds_source.data_dir(None) == tmp_path
  assert tfds_source.data_dir(tmp_path / 'given') == tmp_path / 'given'
  monkeypatch.delenv('TFDS_DATA_DIR')
  monkeypatch.setenv('HOME', str(tmp_path))
  assert tfds_source.data_dir(None) == tmp_path / 'tensorflow_datasets'


def test_broken_record_is_named(tmp_path, pictures, write_tfds, monkeypatch):
  write_tfds(tmp_path, 'tiny', pictures)
  opened = source('tiny', tmp_path)
  records = [{'image': b'no picture'}] * 5

  class Records:
    def __getitems__(self, indices):
      return [records[i] for i in indices]

  monkeypatch.setattr(opened, '_records', Records())
  with pytest.raises(UserError, match=r"1\.0\.0: example 4 of split 'train' cannot be read"):
    opened.read(np.array([4]))
