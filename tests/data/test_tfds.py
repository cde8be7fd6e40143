import json
import pickle

import numpy as np
import PIL.Image
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


RNG = np.random.default_rng(0)
TENSORS = {
  'signals': RNG.integers(-(2**15), 2**15, (5, 8, 2)).astype(np.int16),
  'grey': RNG.integers(0, 2**16, (5, 4, 6)).astype(np.uint16),
  'pictures': RNG.normal(size=(5, 4, 6, 3)).astype(np.float32),
  'volumes': RNG.integers(0, 256, (5, 2, 4, 6, 1)).astype(np.uint8),
}


def tensor(values, shape=None, **choices):
  import tensorflow_datasets as tfds

  shape = values.shape[1:] if shape is None else shape
  return tfds.features.Tensor(shape=shape, dtype=values.dtype.type, **choices), values


def image(values, shape, dtype=np.uint8):
  """An Image feature, and its pictures as PNGs."""
  import tensorflow_datasets as tfds

  return tfds.features.Image(shape=shape, dtype=dtype), [PIL.Image.fromarray(x) for x in values]


def open_tfds(root, image_size, channels, split='train', **choices):
  shape = dict(image_size=image_size, channels=channels)
  return data.make_source('tfds:tiny', dir=root, split=split, **shape, **choices)


def assert_same_set(read, expected, sorted_rows):
  assert (read.dtype, read.shape) == (expected.dtype, expected.shape)
  assert sorted_rows(read) == sorted_rows(expected)


@pytest.mark.parametrize('kind', TENSORS)
@pytest.mark.parametrize('is_open', [False, True])
def test_tensors_are_read_as_they_are_stored(tmp_path, write_features, sorted_rows, kind, is_open):
  values = TENSORS[kind]
  shape = tuple(None for _ in values.shape[1:]) if is_open else None
  write_features(tmp_path, x=tensor(values, shape, encoding='zlib' if is_open else 'none'))
  expected = values[..., None] if kind == 'grey' else values
  source = open_tfds(tmp_path, expected.shape[1:-1], expected.shape[-1])
  assert (len(source), source.image_shape, source.remarks) == (5, expected.shape[1:], ())
  read = source.read(np.arange(5))
  assert_same_set(read, expected, sorted_rows)
  again = pickle.loads(pickle.dumps(source))
  np.testing.assert_array_equal(again.read(np.array([3, 0])), read[[3, 0]])
  assert len(open_tfds(tmp_path, expected.shape[1:-1], expected.shape[-1], 'train[:40%]')) == 2
  levels = {'signals': 65536, 'grey': 65536}.get(kind)
  encoding = data.find_encoding(source, levels, None, expected.shape[-1])
  assert (encoding.dtype, encoding.levels) == (values.dtype, levels or {'volumes': 256}.get(kind))
  encoded = data.Encoded(source, encoding).read(np.arange(5))
  np.testing.assert_allclose(encoding.stored(encoded), read, rtol=1e-5, atol=1e-6)


def test_images_that_are_no_pictures_are_read_as_they_are_stored(
  tmp_path, write_features, sorted_rows
):
  grey = TENSORS['grey']
  with_alpha = RNG.integers(0, 256, (5, 4, 6, 4)).astype(np.uint8)
  floats = TENSORS['pictures'][..., :1]
  as_bytes = np.ascontiguousarray(floats).view(np.uint8)  # as TFDS stores them
  write_features(
    tmp_path,
    grey=image(grey, (4, 6, 1), np.uint16),
    floats=image(as_bytes, (4, 6, 4)),
    with_alpha=image(with_alpha, (None, None, 4)),
  )
  file = tmp_path / 'tiny/1.0.0/features.json'  # TFDS writes floats with TensorFlow alone
  described = json.loads(file.read_text())
  of_floats = described['featuresDict']['features']['floats']['image']
  of_floats['shape']['dimensions'][-1], of_floats['dtype'] = '1', 'float32'
  file.write_text(json.dumps(described))
  for feature, expected in (('grey', grey[..., None]), ('floats', floats)):
    read = open_tfds(tmp_path, (4, 6), 1, feature=feature).read(np.arange(5))
    assert_same_set(read, expected, sorted_rows)
  assert_same_set(open_tfds(tmp_path, (4, 6), 4).read(np.arange(5)), with_alpha, sorted_rows)
  small = open_tfds(tmp_path, (2, 2), 3)  # a picture: on white, cropped and resized
  assert small.read(np.arange(5)).shape == (5, 2, 2, 3)


def test_deep_colour_which_pillow_does_not_read_is_named(tmp_path, write_features):
  import tensorflow_datasets as tfds

  feature = tfds.features.Image(shape=(4, 6, 3), dtype=np.uint16)
  pictures = [PIL.Image.new('RGB', (6, 4)) for _ in range(5)]
  write_features(tmp_path, x=(feature, pictures))
  with pytest.raises(UserError, match=r'Pillow reads 8 bits a channel .* should have uint16: give'):
    open_tfds(tmp_path, (4, 6), 3).read([0])


def test_labels_of_tensors(tmp_path, write_features, sorted_rows):
  import tensorflow_datasets as tfds

  labels = tfds.features.ClassLabel(names=['walk', 'run']), [0, 1, 1, 0, 1]
  write_features(tmp_path, x=tensor(TENSORS['signals']), label=labels)
  source = open_tfds(tmp_path, (8,), 2)
  found = data.read_labels(source)
  assert found.names == ('walk', 'run')
  runs = TENSORS['signals'][[1, 2, 4]]
  assert_same_set(source.read(np.flatnonzero(found.ids)), runs, sorted_rows)


def test_the_feature_that_fits_is_read(tmp_path, write_features, sorted_rows):
  values = TENSORS['signals']
  write_features(tmp_path, a=tensor(values), b=tensor(values[:, :4]), c=tensor(values[:, :4] + 1))
  assert_same_set(open_tfds(tmp_path, (8,), 2).read(np.arange(5)), values, sorted_rows)
  message = r'several .* \[4, 2\]: b \(int16\[4, 2\]\), c \(.*; name one, as in .*data\.feature=b$'
  with pytest.raises(UserError, match=message):
    open_tfds(tmp_path, (4,), 2)
  read = open_tfds(tmp_path, (4,), 2, feature='c').read(np.arange(5))
  assert_same_set(read, values[:, :4] + 1, sorted_rows)


def test_a_picture_comes_before_a_tensor_and_that_is_said(tmp_path, pictures, write_features):
  write_features(
    tmp_path, depth=tensor(TENSORS['pictures'], (4, 6, 3)), photo=image(pictures, (None, None, 3))
  )
  source = open_tfds(tmp_path, (4, 6), 3)
  assert source.read([0]).dtype == np.uint8
  assert source.remarks == (
    'tfds:tiny: photo is read, and not depth; --config.data.feature=depth reads that one',
  )
  assert open_tfds(tmp_path, (4, 6), 3, feature='depth').read([0]).dtype == np.float32


@pytest.mark.parametrize(
  ('image_size', 'channels', 'feature', 'message'),
  [
    ((4, 4), 2, None, r'has x \(int16\[8, 2\]\), y \(.*\), and data\.image_size .* \[4, 4, 2\]'),
    ((8,), 1, 'x', r'has x \(int16\[8, 2\]\), and data\.image_size with .*channels says \[8, 1\]'),
    ((8,), 2, 'z', r'no z among its features text, x \(int16\[8, 2\]\), y \(float32\[\?, \?\]\)$'),
    ((5,), 2, None, r'example 0 of split .*: y is \[7, 3\], and .* says \[5, 2\]: give '),
    ((7,), 3, None, r'example 0 of split .*: a value is not finite\. .*data\.on_damage=skip'),
  ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(
  tmp_path, write_features, image_size, channels, feature, message
):
  import tensorflow_datasets as tfds

  y = np.full((5, 7, 3), np.nan, np.float32)
  text = tfds.features.Text(), ['a'] * 5
  write_features(
    tmp_path,
    x=tensor(TENSORS['signals']),
    y=tensor(y, (None, None), encoding='zlib'),
    text=text,
  )
  with pytest.raises(UserError, match=message) as error:
    open_tfds(tmp_path, image_size, channels, feature=feature).read([0])
  assert '\n' not in str(error.value)


def test_damaged_images_are_named(tmp_path, write_features):
  import tensorflow_datasets as tfds

  feature = tfds.features.Image(shape=(4, 6, 1), dtype=np.uint16)
  write_features(tmp_path, x=(feature, [b'no picture'] * 5))
  with pytest.raises(data.DamagedDataError, match=r'example 3 .* cannot be read as a picture'):
    open_tfds(tmp_path, (4, 6), 1).read([3])


def test_features_that_need_tensorflow_are_said(tmp_path, write_features, monkeypatch):
  write_features(tmp_path, x=tensor(TENSORS['signals']))
  file = tmp_path / 'tiny/1.0.0/features.json'
  described = file.read_text().replace('tensor_feature.Tensor', 'audio_feature.Audio')
  described = described.replace('"tensor"', '"audio"')
  file.write_text(described)
  with pytest.raises(UserError, match='reads with TensorFlow alone; give the data as signals:PATH'):
    open_tfds(tmp_path, (8,), 2)


@pytest.mark.parametrize('source', ['digits', 'tfds:cifar10', 'array:x.npy'])
def test_a_feature_is_of_tfds_alone(source):
  with pytest.raises(
    UserError, match=r'data\.feature is x, which goes with data\.source=tfds:NAME'
  ):
    data.make_source(source, dir=None, image_size=8, channels=1, split='train', feature='x')
