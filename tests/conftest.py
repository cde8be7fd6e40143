"""Four fake CPU devices, strict broadcasting, and the original program's numbers for every test."""

import atexit
import functools
import gc
import io
import json
import os
import pathlib
import shutil
import signal
import tempfile

# Each program is compiled once, also for the other workers, whose environment is the first
# process's, and for the processes that tests start.
os.environ['JAX_COMPILATION_CACHE_DIR'] = (
  os.environ['JAX_COMPILATION_CACHE_DIR']
  if 'PYTEST_XDIST_WORKER' in os.environ
  else tempfile.mkdtemp(prefix='ddpm_jax_tests_')
)
os.environ['XDG_CACHE_HOME'] = os.environ['JAX_COMPILATION_CACHE_DIR']  # of decoded pictures
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=4'
)

import jax
import numpy as np
import pytest

from tests.compiling import SHORT_TO_COMPILE

if 'PYTEST_XDIST_WORKER' not in os.environ:
  atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)
# Compiling is most of what the suite does. The backend reads its flags once, and no result says so.
plain_flags = os.environ['XLA_FLAGS']
os.environ['XLA_FLAGS'] += f' {SHORT_TO_COMPILE}'
jax.devices()
os.environ['XLA_FLAGS'] = plain_flags
# Tracing makes many objects that stay; to look through them for cycles takes a twentieth of all.
gc.set_threshold(100_000, 20, 50)
jax.config.update('jax_numpy_rank_promotion', 'raise')
# A script's background jobs ignore Ctrl-C, and the processes that they start inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

REFERENCE = pathlib.Path(__file__).parent / 'reference'


@functools.cache
def load_reference(name):
  if name.endswith('.json'):
    return json.loads((REFERENCE / name).read_text())
  with np.load(REFERENCE / f'{name}.npz') as arrays:
    return dict(arrays)


@pytest.fixture(scope='session')
def reference():
  """Returns name -> dict of arrays (NAME.npz), or what NAME.json holds."""
  return load_reference


@pytest.fixture(scope='session')
def relative_error():
  """Returns (actual, expected) -> |actual - expected| / |expected|, in the Euclidean norm."""

  def error(actual, expected):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)

  return error


@pytest.fixture(scope='session')
def unet_small():
  """Returns (model, params) of the original program's small network, weights included."""
  from ddpm_jax.interop.tf_ddpm import params_from_tf
  from ddpm_jax.nn.unet import UNet

  arrays = load_reference('unet_small')
  model = UNet(32, (1, 2), 1, (8,), 3)
  like = jax.eval_shape(model.init, jax.random.key(0), arrays['x'], arrays['t'])['params']
  variables = {
    name.removeprefix('var/'): array for name, array in arrays.items() if name.startswith('var/')
  }
  return model, params_from_tf(variables, like)


@pytest.fixture(scope='session')
def abstract_params():
  """Returns name of a shapes file -> the parameters of that network, as ShapeDtypeStructs."""
  from ddpm_jax.nn.unet import UNet

  @functools.cache
  def params_of(name):
    shapes = load_reference(name)
    config = shapes['config']
    model = UNet(
      config['ch'],
      tuple(config['ch_mult']),
      config['num_res_blocks'],
      tuple(config['attn_resolutions']),
      config['out_ch'],
    )
    x = jax.ShapeDtypeStruct((1, *shapes['input_shape'][1:]), np.float32)
    t = jax.ShapeDtypeStruct((1,), np.int32)
    return jax.eval_shape(model.init, jax.random.key(0), x, t)['params']

  return params_of


@pytest.fixture(scope='session')
def unet_of():
  """Returns the function of a config that makes its network."""
  from ddpm_jax.config import build

  return build.model


@pytest.fixture(scope='module')
def one_layer(unet_of):
  """A network that compiles at once, for tests of what is done with a network."""
  from ddpm_jax.config import build
  from tests.tiny import OneLayer

  def of_config(config):
    return OneLayer(num_classes=build.num_classes(config))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(build, 'model', of_config)
    yield


@pytest.fixture
def unet(unet_of, one_layer, monkeypatch):
  """The network of the config after all, for one test of a module with one_layer."""
  from ddpm_jax.config import build

  monkeypatch.setattr(build, 'model', unet_of)


@pytest.fixture
def float64():
  """JAX has 64 bits for the time of a test."""
  with jax.enable_x64(True):
    yield


@pytest.fixture
def fail_reads(monkeypatch):
  """(file, number) -> None: from now on, each read of the file in Python fails with that errno."""

  def fail_reads(file, number):
    def open_failing(path, *args, really=io.open, **kwargs):
      opened = really(path, *args, **kwargs)
      if isinstance(path, int) or pathlib.Path(path) != file:
        return opened
      return _Failing(opened, OSError(number, os.strerror(number)))

    monkeypatch.setattr(io, 'open', open_failing)
    monkeypatch.setattr('builtins.open', open_failing)

  return fail_reads


class _Failing:
  """A file of which nothing can be read."""

  def __init__(self, file, error):
    self._file, self._error = file, error

  def __getattr__(self, name):
    return getattr(self._file, name)

  def __enter__(self):
    return self

  def __exit__(self, *exc_info):
    self._file.close()

  def read(self, *_):
    raise self._error

  readinto = readline = read
