import concurrent.futures
import functools
import hashlib
import http.server
import io
import tarfile
import threading

import numpy as np
import pytest

from ddpm_jax import data
from ddpm_jax.data import cifar10
from ddpm_jax.errors import UserError

EXAMPLES_PER_MEMBER = 4
LABELS = np.arange(24) % 10


@pytest.fixture
def cifar_pictures():
  """Returns 24 pictures, five files of training and one of test, uint8 [24, 32, 32, 3]."""
  return np.random.RandomState(0).randint(0, 256, (24, 32, 32, 3), np.uint8)


@pytest.fixture
def archive(tmp_path, cifar_pictures, monkeypatch):
  """An archive in the official format, with the checksum that goes with it."""
  path = tmp_path / cifar10.ARCHIVE
  names = [name for split in ('train', 'test') for name in cifar10._MEMBERS[split]]
  with tarfile.open(path, 'w:gz') as tar:
    for i, name in reversed(list(enumerate(names))):  # not in order of their numbers
      rows = slice(i * EXAMPLES_PER_MEMBER, (i + 1) * EXAMPLES_PER_MEMBER)
      planes = cifar_pictures[rows].transpose(0, 3, 1, 2).reshape(EXAMPLES_PER_MEMBER, -1)
      records = np.concatenate([LABELS[rows, None].astype(np.uint8), planes], axis=1)
      member = tarfile.TarInfo(f'cifar-10-batches-bin/{name}')
      member.size = records.size
      tar.addfile(member, io.BytesIO(records.tobytes()))
  monkeypatch.setattr(cifar10, 'SHA256', hashlib.sha256(path.read_bytes()).hexdigest())
  monkeypatch.setattr(cifar10, '_EXAMPLES_PER_MEMBER', EXAMPLES_PER_MEMBER)
  return path


@pytest.fixture
def server(tmp_path):
  """A web server of tmp_path/web; yields (its URL, the folder, the requests' Range headers)."""
  ranges = []

  class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
      ranges.append(self.headers['Range'])
      if not self.headers['Range']:
        return super().do_GET()
      content = (tmp_path / 'web' / cifar10.ARCHIVE).read_bytes()
      start = int(self.headers['Range'].removeprefix('bytes=').removesuffix('-'))
      self.send_response(206)
      self.send_header('Content-Length', str(len(content) - start))
      self.end_headers()
      self.wfile.write(content[start:])

    def log_message(self, *args):
      pass

  (tmp_path / 'web').mkdir()
  handler = functools.partial(Handler, directory=tmp_path / 'web')
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as running:
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{running.server_port}/{cifar10.ARCHIVE}', tmp_path / 'web', ranges
    running.shutdown()


def source(root, split='train', name='cifar10'):
  return data.make_source(name, dir=root, image_size=32, channels=3, split=split)


def read(opened):
  return opened.read(np.arange(len(opened)))


@pytest.mark.parametrize('name', ['cifar10', 'tfds:cifar10'])
def test_prepares_from_the_archive(archive, cifar_pictures, sorted_rows, name):
  root = archive.parent
  assert sorted_rows(read(source(root, 'train', name))) == sorted_rows(cifar_pictures[:20])
  assert sorted_rows(read(source(root, 'test', name))) == sorted_rows(cifar_pictures[20:])
  assert (root / 'cifar10/3.0.2/dataset_info.json').is_file()


def test_labels_and_ids_stay_with_their_pictures(archive, cifar_pictures):
  import tensorflow_datasets as tfds

  source(archive.parent)
  records = tfds.builder_from_directory(archive.parent / 'cifar10/3.0.2').as_data_source('train')
  for record in records:
    index = int(record['id'].decode().removeprefix('train_'))
    np.testing.assert_array_equal(record['image'], cifar_pictures[index])
    assert record['label'] == LABELS[index]


def test_prepared_data_need_no_archive(archive):
  source(archive.parent)
  archive.unlink()
  assert len(source(archive.parent)) == 20


def test_any_prepared_version_is_read(tmp_path, pictures, write_tfds, monkeypatch):
  monkeypatch.setattr(cifar10, '_download', None)  # calling it would fail
  write_tfds(tmp_path, 'cifar10', pictures, version='3.0.0')
  assert len(source(tmp_path)) == 5


def test_another_version_is_not_prepared(archive):
  with pytest.raises(UserError, match=r"data\.source='tfds:cifar10:3\.0\.0': not prepared"):
    source(archive.parent, name='tfds:cifar10:3.0.0')
  assert not (archive.parent / 'cifar10').exists()


def test_archive_in_downloads(archive):
  (archive.parent / 'downloads').mkdir()
  archive.rename(archive.parent / 'downloads' / archive.name)
  assert len(source(archive.parent)) == 20


def test_damaged_archive(archive, monkeypatch):
  content = bytearray(archive.read_bytes())
  content[100] ^= 1
  archive.write_bytes(content)
  with pytest.raises(UserError, match=r'cifar-10-binary\.tar\.gz is damaged: its sha256'):
    source(archive.parent)
  assert not (archive.parent / 'cifar10').exists()


def test_incomplete_archive(archive, monkeypatch):
  monkeypatch.setattr(cifar10, '_EXAMPLES_PER_MEMBER', EXAMPLES_PER_MEMBER + 1)
  with pytest.raises(UserError, match=r'data_batch_1\.bin is missing or not of 5 records'):
    source(archive.parent)


def test_downloads_and_prepares(archive, server, tmp_path, monkeypatch):
  url, web, _ = server
  archive.rename(web / archive.name)
  monkeypatch.setattr(cifar10, 'URL', url)
  assert len(source(tmp_path / 'new')) == 20
  assert [path.name for path in (tmp_path / 'new/downloads').glob('cifar*')] == [archive.name]


def test_two_at_once_download_and_prepare_once(archive, server, tmp_path, monkeypatch):
  url, web, ranges = server
  archive.rename(web / archive.name)
  monkeypatch.setattr(cifar10, 'URL', url)
  root = tmp_path / 'new'
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    opened = list(pool.map(source, [root] * 2))
  assert [len(one) for one in opened] == [20, 20]
  assert len(ranges) == 1
  assert [path.name for path in (root / 'cifar10').iterdir()] == ['3.0.2']


def test_interrupted_download_goes_on(archive, server, tmp_path):
  url, web, ranges = server
  content = archive.read_bytes()
  archive.rename(web / archive.name)
  target = tmp_path / 'new' / archive.name
  target.parent.mkdir()
  target.with_name(f'{archive.name}.part').write_bytes(content[:1000])
  assert cifar10._download(url, target).read_bytes() == content
  assert ranges == ['bytes=1000-']


@pytest.mark.parametrize(
  'url', ['http://127.0.0.1:9/a.tar.gz', 'http://host.invalid/a.tar.gz'], ids=['refused', 'offline']
)
def test_offline(tmp_path, monkeypatch, url):
  monkeypatch.setattr(cifar10, 'URL', url)
  with pytest.raises(UserError, match=r"data\.source='cifar10': not prepared in") as raised:
    source(tmp_path)
  message = str(raised.value)
  assert '\n' not in message
  assert url in message
  assert f'place the file at {tmp_path}/downloads/cifar-10-binary.tar.gz' in message
  assert 'data.dir' in message


def test_missing_on_the_server(server, tmp_path, monkeypatch):
  monkeypatch.setattr(cifar10, 'URL', server[0])
  with pytest.raises(UserError, match='HTTP Error 404'):
    source(tmp_path / 'new')
