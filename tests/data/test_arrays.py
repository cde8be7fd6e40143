"""Arrays in files as data."""

import pathlib
import pickle

import numpy as np
import pytest

from ddpm_jax import data
from ddpm_jax.errors import DiskError, UserError

RNG = np.random.default_rng(0)
SIGNALS = RNG.integers(-50, 50, (30, 8, 2)).astype(np.int16)
VOLUMES = RNG.integers(0, 256, (12, 4, 6, 8)).astype(np.uint8)


def open_source(path, image_size, channels=1, split='train', **choices):
  return data.make_source(
    f'array:{path}', dir=None, image_size=image_size, channels=channels, split=split, **choices
  )


def test_an_array_of_any_shape_is_read_as_it_is_stored(tmp_path):
  np.save(tmp_path / 'signals.npy', SIGNALS)
  source = open_source(tmp_path / 'signals.npy', (8,), 2)
  assert (len(source), source.image_shape) == (30, (8, 2))
  read = source.read(np.array([7, 0, 29]))
  np.testing.assert_array_equal(read, SIGNALS[[7, 0, 29]])
  assert read.dtype == np.int16
  assert source.labels(None) is None


def test_an_axis_of_one_channel_may_lack(tmp_path):
  np.save(tmp_path / 'v.npy', VOLUMES)
  source = open_source(tmp_path / 'v.npy', (4, 6, 8))
  assert source.image_shape == (4, 6, 8, 1)
  np.testing.assert_array_equal(source.read(np.arange(12)), VOLUMES[..., None])
  np.save(tmp_path / 'p.npy', VOLUMES[:, 0])
  assert open_source(tmp_path / 'p.npy', (6, 8)).image_shape == (6, 8, 1)


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
@pytest.mark.parametrize('key', ['images', 'samples', 'data', 'x', 'arr_0'])
def test_an_npz_file_has_labels_too(tmp_path, save, key):
  save(tmp_path / 's.npz', **{key: SIGNALS, 'labels': np.arange(30) % 3})
  source = open_source(tmp_path / 's.npz', (8,), 2)
  np.testing.assert_array_equal(source.read(np.arange(30)), SIGNALS)
  labels = data.read_labels(source)
  assert labels.names == ('0', '1', '2')
  np.testing.assert_array_equal(labels.ids, np.arange(30) % 3)


def test_the_splits_of_medmnist(tmp_path):
  splits = {'train': VOLUMES[:6], 'val': VOLUMES[6:9], 'test': VOLUMES[9:]}
  arrays = {f'{name}_images': values for name, values in splits.items()}
  arrays |= {f'{name}_labels': np.arange(len(x))[:, None] % 3 for name, x in splits.items()}
  np.savez_compressed(tmp_path / 'organmnist3d.npz', **arrays)
  for name, values in splits.items():
    source = open_source(tmp_path / 'organmnist3d.npz', (4, 6, 8), split=name)
    np.testing.assert_array_equal(source.read(np.arange(len(values)))[..., 0], values)
    assert data.read_labels(source).ids.tolist() == [i % 3 for i in range(len(values))]
  with pytest.raises(data.NoSplitError, match='has the splits train, test, val'):
    open_source(tmp_path / 'organmnist3d.npz', (4, 6, 8), split='valid')


def test_a_folder_has_a_file_for_each_split(tmp_path):
  np.save(tmp_path / 'train.npy', SIGNALS[:20])
  np.savez(tmp_path / 'test.npz', x=SIGNALS[20:])
  for name, values in (('train', SIGNALS[:20]), ('test', SIGNALS[20:])):
    source = open_source(tmp_path, (8,), 2, name)
    np.testing.assert_array_equal(source.read(np.arange(len(source))), values)
  with pytest.raises(data.NoSplitError, match=r"data\.split='val': .* has test, train"):
    open_source(tmp_path, (8,), 2, 'val')


def test_a_part_is_held_out_by_the_number_of_the_example(tmp_path):
  np.save(tmp_path / 's.npy', SIGNALS)
  with pytest.raises(data.NoSplitError, match=r"split='test': .* --config\.data\.holdout=0\.1"):
    open_source(tmp_path / 's.npy', (8,), 2, 'test')
  parts = [open_source(tmp_path / 's.npy', (8,), 2, x, holdout=0.3) for x in ('train', 'test')]
  rows = np.concatenate([part.read(np.arange(len(part))) for part in parts])
  count = len(parts[1])
  assert 0 < count < 20
  assert sorted(row.tobytes() for row in rows) == sorted(row.tobytes() for row in SIGNALS)
  np.save(tmp_path / 's.npy', np.concatenate([SIGNALS, SIGNALS]))
  more = open_source(tmp_path / 's.npy', (8,), 2, 'test', holdout=0.3)
  np.testing.assert_array_equal(more.read(np.arange(count)), rows[-count:])


def test_another_array_has_another_version(tmp_path):
  np.save(tmp_path / 's.npy', SIGNALS)
  before = open_source(tmp_path / 's.npy', (8,), 2)
  version, fingerprint = before.version(), data.fingerprint(before)
  np.save(tmp_path / 's.npy', SIGNALS + 1)
  after = open_source(tmp_path / 's.npy', (8,), 2)
  assert after.version() != version
  assert data.fingerprint(after) != fingerprint


@pytest.mark.parametrize('name', ['s.npy', 's.npz'])
def test_workers_map_the_file_themselves(tmp_path, name):
  values = RNG.integers(0, 9, (1000, 8, 4)).astype(np.int16)
  if name == 's.npy':
    np.save(tmp_path / name, values)
  else:
    np.savez(tmp_path / name, x=values)
  source = open_source(tmp_path / name, (8, 4))  # without an axis of channels
  pickled = pickle.dumps(source)
  assert len(pickled) < 2000
  np.testing.assert_array_equal(pickle.loads(pickled).read([3, 999])[..., 0], values[[3, 999]])


@pytest.mark.parametrize('change', [pathlib.Path.unlink, lambda file: file.write_bytes(b'')])
def test_an_array_that_changes_under_a_run_ends_it(tmp_path, change):
  np.save(tmp_path / 's.npy', SIGNALS)
  source = open_source(tmp_path / 's.npy', (8,), 2)
  change(tmp_path / 's.npy')
  with pytest.raises(UserError, match=r's\.npy has changed since it was opened: start again'):
    source.read([0])


def test_a_value_that_is_not_finite_is_named_or_passed_over(tmp_path, capsys):
  values = RNG.normal(size=(200, 8, 2)).astype(np.float32)
  values[7, 3, 1], values[110, 0, 0] = np.nan, np.inf
  np.save(tmp_path / 's.npy', values)
  source = open_source(tmp_path / 's.npy', (8,), 2)
  message = r's\.npy, example 7: a value is not finite\. .*data\.on_damage=skip'
  with pytest.raises(data.DamagedDataError, match=message):
    source.read(np.arange(9))
  with pytest.raises(UserError, match=message):
    data.find_encoding(source, None, None, 2)
  passing = data.Substitutes(source)
  encoding = data.find_encoding(passing, None, None, 2)
  intact = np.delete(values, [7, 110], 0)
  np.testing.assert_allclose(np.add(encoding.shift, encoding.scale), intact.max((0, 1)), rtol=1e-6)
  np.testing.assert_array_equal(passing.read(np.arange(6, 9)), values[[6, 8, 8]])
  err = capsys.readouterr().err
  assert 'damaged picture 1 of 200' in err
  assert 'damaged picture 2 of 200' in err


def test_numbers_of_another_byte_order_are_the_same_numbers(tmp_path):
  np.save(tmp_path / 's.npy', SIGNALS.astype('>i2'))
  source = open_source(tmp_path / 's.npy', (8,), 2)
  encoding = data.find_encoding(source, 128, None, 2)
  assert encoding == data.Encoding('int16', 128, -64)
  read = data.Encoded(source, encoding).read(np.arange(30))
  np.testing.assert_array_equal(encoding.stored(read), SIGNALS)


@pytest.mark.parametrize(
  ('content', 'choices', 'message'),
  [
    (None, {}, r'x\.npy does not exist; give a \.npy or \.npz file'),
    (b'no array', {}, r'x\.npy is not an intact \.npy file of numbers'),
    (b'', {}, r'x\.npy is not an intact \.npy file of numbers'),
    (np.array([{}], object), {}, r'x\.npy is not an intact \.npy file of numbers'),
    (SIGNALS, {'image_size': 8}, r'are int16\[8, 2\]; .*=8 and data.channels=2 say \[8, 8, 2\]: '
     r'give --config\.data\.image_size=\(8,\) and --config\.data\.channels=2$'),
    (SIGNALS, {'channels': 3}, r'int16\[8, 2\]; .* say \[8, 3\]: give .*\.channels=2'),
    (SIGNALS[:0], {}, 'holds no examples'),
  ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(tmp_path, content, choices, message):
  path = tmp_path / 'x.npy'
  if isinstance(content, bytes):
    path.write_bytes(content)
  elif content is not None:
    np.save(path, content, allow_pickle=True)
  with pytest.raises(UserError, match=message) as error:
    open_source(path, **{'image_size': (8,), 'channels': 2, **choices})
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('arrays', 'message'),
  [
    ({'values': SIGNALS}, r'x\.npz has values; examples are under images, samples, data, x, arr_0'),
    ({'x': SIGNALS, 'labels': np.arange(5)}, r'labels are int64\[5\]; they must be int \[30\]'),
    ({'x': SIGNALS, 'labels': np.zeros(30)}, r'labels are float64\[30\]; they must be int \[30\]'),
  ],
)
def test_npz_files_that_cannot_be_used_are_named(tmp_path, arrays, message):
  np.savez(tmp_path / 'x.npz', **arrays)
  with pytest.raises(UserError, match=message):
    open_source(tmp_path / 'x.npz', (8,), 2)


def test_a_disk_that_fails_is_no_damage(tmp_path, fail_reads):
  np.save(tmp_path / 'x.npy', SIGNALS)
  fail_reads(tmp_path / 'x.npy', 5)
  with pytest.raises(DiskError, match=r'x\.npy cannot be used \(Input/output error\)'):
    open_source(tmp_path / 'x.npy', (8,), 2)


def test_an_empty_folder_is_named(tmp_path):
  with pytest.raises(UserError, match=r'no \.npy or \.npz files in '):
    open_source(tmp_path, (8,), 2)
