import io
import pickle
import sys

import numpy as np
import PIL.Image
import pytest

from ddpm_jax import data
from ddpm_jax.data import lsun
from ddpm_jax.errors import UserError

KEYS = [b'ff', b'00a', b'7', b'zero\0', b'zero']  # any bytes; lmdb sorts them
ORDER = [1, 2, 0, 4, 3]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  lsun._environment.cache_clear()


def write_lmdb(folder, images):
  lmdb = pytest.importorskip('lmdb')
  options = dict(map_size=1 << 20)
  folder.parent.mkdir(exist_ok=True)
  with lmdb.open(str(folder), **options) as environment, environment.begin(write=True) as writer:
    for key, image in zip(KEYS, images, strict=True):
      file = io.BytesIO()
      PIL.Image.fromarray(image).save(file, 'webp', lossless=True)
      writer.put(key, file.getvalue())


def source(root, split='train', name='lsun_bedroom'):
  return data.make_source(name, dir=root, image_size=6, channels=3, split=split)


def read(opened):
  return opened.read(np.arange(len(opened)))


@pytest.mark.parametrize(
  ('name', 'split', 'folder'),
  [
    ('lsun_bedroom', 'train', 'bedroom_train_lmdb'),
    ('lsun_bedroom', 'val', 'bedroom_val_lmdb'),
    ('lsun_church', 'train', 'church_outdoor_train_lmdb'),
    ('lsun_cat', 'train', 'cat'),
  ],
)
def test_reads_in_the_order_of_the_keys(tmp_path, pictures, name, split, folder):
  write_lmdb(tmp_path / folder, pictures)
  opened = source(tmp_path, split, name)
  assert (opened.name, opened.split) == (name, split)
  np.testing.assert_array_equal(read(opened), pictures[ORDER])


def test_keys_come_from_the_cache(tmp_path, pictures, monkeypatch):
  write_lmdb(tmp_path / 'bedroom_train_lmdb', pictures)
  source(tmp_path)
  assert len(list((tmp_path / 'cache/ddpm_jax').iterdir())) == 1
  monkeypatch.setattr(lsun, '_save', None)  # calling it would fail
  np.testing.assert_array_equal(read(source(tmp_path)), pictures[ORDER])


def test_fingerprint_is_of_the_keys_as_well(tmp_path, pictures, monkeypatch):
  write_lmdb(tmp_path / 'bedroom_train_lmdb', pictures)
  fingerprint = data.fingerprint(source(tmp_path))
  assert data.fingerprint(source(tmp_path)) == fingerprint  # now from the cache
  monkeypatch.setitem(globals(), 'KEYS', [b'fg', *KEYS[1:]])  # at the same place
  write_lmdb(tmp_path / 'bedroom_val_lmdb', pictures)
  assert data.fingerprint(source(tmp_path, 'val')) != fingerprint


def test_cache_that_cannot_be_written(tmp_path, pictures, monkeypatch):
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  write_lmdb(tmp_path / 'bedroom_train_lmdb', pictures)
  np.testing.assert_array_equal(read(source(tmp_path)), pictures[ORDER])


def test_pickles(tmp_path, pictures):
  write_lmdb(tmp_path / 'bedroom_train_lmdb', pictures)
  opened = pickle.loads(pickle.dumps(source(tmp_path)))
  assert len(opened) == 5
  np.testing.assert_array_equal(read(opened), pictures[ORDER])


def test_split_that_is_not_there(tmp_path, pictures):
  write_lmdb(tmp_path / 'bedroom_train_lmdb', pictures)
  with pytest.raises(UserError, match=r'no bedroom_val_lmdb in .* has bedroom_train_lmdb'):
    source(tmp_path, 'val')


def test_cat_has_one_split(tmp_path, pictures):
  write_lmdb(tmp_path / 'cat', pictures)
  with pytest.raises(UserError, match=r'no cat_val_lmdb in .* has cat'):
    source(tmp_path, 'val', 'lsun_cat')


def test_broken_value_is_named(tmp_path, pictures):
  lmdb = pytest.importorskip('lmdb')
  folder = tmp_path / 'bedroom_train_lmdb'
  write_lmdb(folder, pictures)
  with lmdb.open(str(folder)) as environment, environment.begin(write=True) as transaction:
    transaction.put(b'7', b'no picture')
  with pytest.raises(UserError, match=r"bedroom_train_lmdb: key b'7' cannot be read"):
    read(source(tmp_path))


def test_broken_lmdb(tmp_path):
  pytest.importorskip('lmdb')
  (tmp_path / 'bedroom_train_lmdb').mkdir()
  (tmp_path / 'bedroom_train_lmdb/data.mdb').write_bytes(b'no lmdb' * 1000)
  with pytest.raises(UserError, match=r'bedroom_train_lmdb cannot be read as an lmdb'):
    source(tmp_path)


def test_lmdb_that_is_cut_off(tmp_path, pictures):
  file = tmp_path / 'bedroom_train_lmdb/data.mdb'
  write_lmdb(file.parent, pictures)
  content = file.read_bytes()
  for num_bytes in [*range(0, len(content), 1000), len(content) - 1]:
    file.write_bytes(content[:num_bytes])
    reason = rf'cut off: it has {num_bytes} bytes of {len(content)}'
    for _ in range(2):
      with pytest.raises(UserError, match=f'{reason}|cannot be read as an lmdb') as error:
        source(tmp_path)
  assert reason in str(error.value)
  file.write_bytes(content)
  np.testing.assert_array_equal(read(source(tmp_path)), pictures[ORDER])


def test_damaged_pages_of_keys(tmp_path, pictures):
  file = tmp_path / 'bedroom_train_lmdb/data.mdb'
  write_lmdb(file.parent, pictures)
  content = bytearray(file.read_bytes())
  for page in range(2 * 4096, len(content), 4096):
    content[page + 10 : page + 12] = b'\0\0'  # its kind
  file.write_bytes(content)
  with pytest.raises(UserError, match=r'bedroom_train_lmdb is damaged \(.*MDB_CORRUPTED'):
    source(tmp_path)


def test_empty_lmdb(tmp_path):
  lmdb = pytest.importorskip('lmdb')
  lmdb.open(str(tmp_path / 'bedroom_train_lmdb')).close()
  with pytest.raises(UserError, match='holds no pictures'):
    source(tmp_path)


def test_without_the_package(tmp_path, monkeypatch):
  (tmp_path / 'bedroom_train_lmdb').mkdir()
  (tmp_path / 'bedroom_train_lmdb/data.mdb').write_bytes(b'')
  monkeypatch.setitem(sys.modules, 'lmdb', None)
  with pytest.raises(UserError, match='pip install lmdb'):
    source(tmp_path)


def test_a_folder_of_pictures(tmp_path, pictures):
  for i, image in enumerate(pictures):
    PIL.Image.fromarray(image).save(tmp_path / f'{i}.png')
  opened = source(tmp_path)
  assert opened.name == 'lsun_bedroom'
  np.testing.assert_array_equal(read(opened), pictures)


def test_without_a_folder():
  with pytest.raises(UserError, match=r"data\.source='lsun_bedroom': set data\.dir"):
    source(None)
