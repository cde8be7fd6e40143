"""Downloading from the hub, of which a local server takes the place."""

import concurrent.futures
import functools
import http.server
import threading

import jax
import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.interop import diffusers, hub
from ddpm_jax.interop.safetensors_file import read_safetensors
from tests.interop.test_diffusers import flatten
from tests.interop.test_weight_files import write_shards

ID = 'owner/name.v1-32'


@pytest.fixture
def web(pipeline, tmp_path, monkeypatch):
  """The folder behind ID's files on the server."""
  folder = tmp_path / 'web' / ID / 'resolve'
  folder.mkdir(parents=True)

  class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
      pass

  handler = functools.partial(Handler, directory=tmp_path / 'web')
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as running:
    threading.Thread(target=running.serve_forever, daemon=True).start()
    monkeypatch.setattr(hub, 'HUB_URL', f'http://127.0.0.1:{running.server_port}')
    yield pipeline.rename(folder / 'main')
    running.shutdown()


@pytest.mark.parametrize('form', ['as now', 'flat'])
def test_downloads_once(web, form, tmp_path, pipeline_config, pipeline_like, monkeypatch):
  if form == 'flat':
    flatten(web)
  expected = diffusers.read_pipeline(web, pipeline_config, pipeline_like)
  folder = hub.fetch_pipeline(ID, tmp_path / 'cache')
  assert folder == tmp_path / 'cache' / 'hub' / 'owner--name.v1-32'
  params = diffusers.read_pipeline(folder, pipeline_config, pipeline_like)
  jax.tree.map(np.testing.assert_array_equal, params, expected)
  monkeypatch.setattr(hub, 'HUB_URL', 'http://127.0.0.1:9')
  assert hub.fetch_pipeline(ID, tmp_path / 'cache') == folder


def test_two_at_once_download_once(web, tmp_path, monkeypatch):
  asked = []
  fetch = hub.fetch
  monkeypatch.setattr(hub, 'fetch', lambda url, to: (asked.append(url), fetch(url, to)))
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    folders = set(pool.map(lambda _: hub.fetch_pipeline(ID, tmp_path / 'cache'), range(2)))
  assert len(folders) == 1
  assert len(asked) == 3


def test_the_old_form_of_weights_where_there_is_no_other(web, tmp_path):
  safetensors, old = (web / 'unet' / name for name in diffusers.WEIGHTS)
  safetensors.rename(old)
  folder = hub.fetch_pipeline(ID, tmp_path)
  assert sorted(path.name for path in (folder / 'unet').iterdir()) == ['config.json', old.name]


@pytest.mark.parametrize('form', ['safetensors', 'bin', 'fp16'])
def test_shards_and_variants_are_downloaded_too(web, form, tmp_path):
  weights = web / 'unet' / diffusers.WEIGHTS[0]
  if form == 'fp16':
    weights.rename(weights.with_name('diffusion_pytorch_model.fp16.safetensors'))
  else:
    write_shards(web / 'unet', read_safetensors(weights), form)
    weights.unlink()
  expected = {path.name: path.read_bytes() for path in (web / 'unet').iterdir()}
  for _ in range(2):
    folder = hub.fetch_pipeline(ID, tmp_path) / 'unet'
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected
    if form != 'fp16':  # as after a kill
      next(folder.glob('*00002-of-00002*')).unlink()


def test_what_is_not_there_is_said(web, tmp_path):
  with pytest.raises(UserError, match=r'failed \(it has no unet/config\.json or config\.json\)'):
    hub.fetch_pipeline('owner/other', tmp_path)
  for path in (web / 'unet').glob('diffusion*'):
    path.unlink()
  with pytest.raises(UserError, match=r'it has no unet/diffusion_pytorch_model\.safetensors or'):
    hub.fetch_pipeline(ID, tmp_path)


def test_offline_is_said_in_one_line(tmp_path, monkeypatch):
  monkeypatch.setattr(hub, 'HUB_URL', 'http://127.0.0.1:9')
  with pytest.raises(UserError, match=r'no file owner/name.*failed .*refused.*give their f') as e:
    hub.fetch_pipeline('owner/name', tmp_path)
  assert '\n' not in str(e.value)
  assert [path.name for path in tmp_path.rglob('*') if path.is_file()] == ['owner--name.lock']


def test_cut_off_downloads_are_not_kept(web, tmp_path, monkeypatch):
  send = http.server.SimpleHTTPRequestHandler.copyfile

  def send_less(self, source, output):
    if self.path.endswith('.safetensors'):
      output.write(source.read(1000))
    else:
      send(self, source, output)

  monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, 'copyfile', send_less)
  with pytest.raises(UserError, match='the connection closed after 1000 of 28'):
    hub.fetch_pipeline(ID, tmp_path / 'cache')
  assert not list((tmp_path / 'cache').rglob('*.safetensors'))


@pytest.mark.parametrize('name', ['google/ddpm-cifar10-32', 'a/b', 'a_b/c.d-e'])
def test_names_of_the_hub(name):
  assert hub.is_hub_id(name)


@pytest.mark.parametrize(
  'name', ['a', 'a/b/c', '/a/b', './a', '../a', 'a/..', 'a/b..c', 'a/b?c', 'a b/c', 'a/b\n', '']
)
def test_paths_are_no_names_of_the_hub(name):
  assert not hub.is_hub_id(name)
