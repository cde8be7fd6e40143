import functools
import hashlib
import http.server
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.interop import inception_weights as weights
from ddpm_jax.interop.torch_inception import params_from_torch
from tests.torch_writer import fill_state_dict, write_torch_zip

NAME = 'weights-inception-2015-12-05-6726825d.pth'


def sha256_of(path):
  return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def small_file(tmp_path):
  """A file that is no network; finding does not look inside."""
  path = tmp_path / 'given.pth'
  write_torch_zip(path, {'x': np.arange(5.0)})
  return path


@pytest.fixture
def server(tmp_path, monkeypatch):
  """A web server of the folder it yields, where the published file is looked for."""
  folder = tmp_path / 'web'
  folder.mkdir()

  class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
      pass

  handler = functools.partial(Handler, directory=folder)
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as running:
    threading.Thread(target=running.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{running.server_port}/{NAME}'
    monkeypatch.setattr(weights, 'INCEPTION_URL', url)
    yield folder
    running.shutdown()


@pytest.fixture
def offline(monkeypatch):
  monkeypatch.setattr(weights, 'INCEPTION_URL', f'http://127.0.0.1:9/{NAME}')


def test_given_file_is_used(small_file, tmp_path, offline):
  found = weights.find_inception_weights(
    str(small_file), cache_dir=tmp_path / 'none', sha256=sha256_of(small_file).upper()
  )
  assert found == small_file
  assert not (tmp_path / 'none').exists()


def test_given_file_may_be_below_home(small_file, tmp_path, offline, monkeypatch):
  monkeypatch.setenv('HOME', str(small_file.parent))
  path = f'~/{small_file.name}'
  found = weights.find_inception_weights(path, cache_dir=tmp_path, sha256=sha256_of(small_file))
  assert found == small_file


def test_given_file_with_another_hash(small_file, tmp_path):
  found, expected = sha256_of(small_file), weights.INCEPTION_SHA256
  with pytest.raises(UserError, match='sha256') as error:
    weights.find_inception_weights(small_file, cache_dir=tmp_path)
  message = str(error.value)
  assert str(small_file) in message
  assert f'sha256 {found}, expected is {expected}' in message
  assert f'--config.eval.inception_sha256={found} accepts it' in message
  assert '\n' not in message


def test_given_file_cut_off(small_file, tmp_path):
  whole = sha256_of(small_file)
  small_file.write_bytes(small_file.read_bytes()[:-1])
  with pytest.raises(UserError, match=f'expected is {whole}'):
    weights.find_inception_weights(small_file, cache_dir=tmp_path, sha256=whole)


def test_given_file_does_not_exist(tmp_path):
  with pytest.raises(UserError, match=r'--config\.eval\.inception_weights=.*none\.pth: no such'):
    weights.find_inception_weights(tmp_path / 'none.pth', cache_dir=tmp_path)


def test_downloads_once(small_file, tmp_path, server, monkeypatch):
  cache, sha256 = tmp_path / 'cache/deep', sha256_of(small_file)
  (server / NAME).write_bytes(small_file.read_bytes())
  found = weights.find_inception_weights(cache_dir=cache, sha256=sha256)
  assert found == cache / NAME
  assert found.read_bytes() == small_file.read_bytes()
  assert {path.name for path in cache.iterdir()} == {NAME, f'{NAME}.lock'}
  (server / NAME).unlink()
  assert weights.find_inception_weights(cache_dir=cache, sha256=sha256) == found


def test_processes_that_want_it_at_once_download_it_once(tmp_path, small_file, monkeypatch):
  calls = []

  def fetch(url, partial):
    calls.append(url)
    partial.write_bytes(small_file.read_bytes()[:7])
    time.sleep(0.1)
    partial.write_bytes(small_file.read_bytes())

  monkeypatch.setattr(weights, 'fetch', fetch)
  find = functools.partial(
    weights.find_inception_weights, cache_dir=tmp_path / 'cache', sha256=sha256_of(small_file)
  )
  with ThreadPoolExecutor(3) as pool:  # each opens the lock file anew, as processes do
    found = [future.result() for future in [pool.submit(find) for _ in range(3)]]
  assert found == [tmp_path / 'cache' / NAME] * 3
  assert len(calls) == 1


def test_damaged_download_is_not_used(small_file, tmp_path, server):
  (server / NAME).write_bytes(small_file.read_bytes()[::-1])
  for _ in range(2):
    with pytest.raises(UserError, match=f'expected is {sha256_of(small_file)}'):
      weights.find_inception_weights(cache_dir=tmp_path, sha256=sha256_of(small_file))
  assert not (tmp_path / NAME).exists()
  (server / NAME).write_bytes(small_file.read_bytes())  # the next attempt starts anew
  assert weights.find_inception_weights(cache_dir=tmp_path, sha256=sha256_of(small_file)).is_file()


def test_damaged_file_in_the_cache(small_file, tmp_path, offline):
  (tmp_path / NAME).write_bytes(small_file.read_bytes())
  with pytest.raises(UserError, match='delete it if it is damaged'):
    weights.find_inception_weights(cache_dir=tmp_path)


def test_interrupted_download(small_file, tmp_path, server, monkeypatch):
  monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, 'copyfile', lambda *args: None)
  (server / NAME).write_bytes(small_file.read_bytes())
  with pytest.raises(UserError, match=r'the connection closed after 0 of \d+ bytes'):
    weights.find_inception_weights(cache_dir=tmp_path, sha256=sha256_of(small_file))
  assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize('connected', [False, True])
def test_not_to_be_had(tmp_path, offline, connected, request):
  if connected:
    request.getfixturevalue('server')  # which has no such file
  with pytest.raises(UserError, match='downloading') as error:
    weights.find_inception_weights(cache_dir=tmp_path)
  message = str(error.value)
  assert weights.INCEPTION_URL in message
  assert f'sha256 {weights.INCEPTION_SHA256}' in message
  assert '--config.eval.inception_weights=FILE' in message
  assert '\n' not in message


def test_loads_a_whole_network(tmp_path, reference):
  state_dict = fill_state_dict(reference('inception_shapes.json'), 1)
  path = tmp_path / 'filled.pth'
  write_torch_zip(path, state_dict)
  params, sha256 = weights.load_inception(path, cache_dir=tmp_path, sha256=sha256_of(path))
  assert sha256 == sha256_of(path)
  jax.tree.map(np.testing.assert_array_equal, params, params_from_torch(state_dict))


@pytest.mark.parametrize(
  ('content', 'match'),
  [
    ({'x': np.arange(5.0)}, r'472 missing: .*; 1 unknown: x \(5,\)'),
    ({'state_dict': {}}, 'not a state dict'),
    ([np.arange(5.0)], 'not a state dict'),
    ({1: np.arange(5.0)}, 'not a state dict'),
  ],
)
def test_other_files_are_named(tmp_path, content, match):
  path = tmp_path / 'other.pth'
  write_torch_zip(path, content)
  with pytest.raises(UserError, match=f'other.pth: .*{match}'):
    weights.load_inception(path, cache_dir=tmp_path, sha256=sha256_of(path))
