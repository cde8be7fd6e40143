"""What a config takes over from the data and from the run of a workdir."""

import json

import jax.numpy as jnp
import pytest

from ddpm_jax import devices
from ddpm_jax.config import build
from ddpm_jax.config.checks import check
from ddpm_jax.config.origins import config_from, config_of, with_data, with_dtype
from ddpm_jax.configs import default, watch
from ddpm_jax.data.watch import CHANNELS
from ddpm_jax.errors import UserError
from ddpm_jax.storage.workdir import check_config, config_dict, store_config
from tests.tiny import tiny_config

AUTO = {'model.dtype': 'auto'}


@pytest.fixture
def run_of(tmp_path):
  """Returns fields of data -> workdir of a run that has begun, with them in its config."""

  def make(**fields):
    (tmp_path / 'checkpoints').mkdir()
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n')
    values = config_dict(with_data(watch.get_config()))
    for name, value in fields.items():
      if value is None:
        del values['data'][name]
      else:
        values['data'][name] = value
    (tmp_path / 'config.json').write_text(json.dumps(values))
    return tmp_path

  return make


def shown(config):
  return config.data.rate, config.data.channel_names


def test_the_rate_and_the_channels_are_those_of_the_source():
  config = with_data(watch.get_config())
  assert shown(config) == (25.0, CHANNELS)
  assert shown(config_from(config_dict(config), 'config.json')) == (25.0, CHANNELS)


def test_what_the_config_says_of_them_comes_first(run_of):
  config = watch.get_config()
  config.data.rate = 50.0
  assert shown(with_data(config)) == (50.0, CHANNELS)
  assert shown(with_data(config, run_of(rate=30.0))) == (50.0, CHANNELS)


def test_the_run_of_a_workdir_tells_them_without_its_data(run_of, monkeypatch):
  workdir = run_of(rate=30.0, channel_names=list('abcdef'))
  monkeypatch.setattr(build, 'source', None)
  assert shown(with_data(watch.get_config(), workdir)) == (30.0, tuple('abcdef'))


def test_a_run_of_before_these_fields_goes_on_and_draws(run_of):
  workdir = run_of(rate=None, channel_names=None)
  assert shown(with_data(config_of(str(workdir)))) == (None, None)
  config = with_data(watch.get_config(), workdir)
  assert config.data.dtype == 'int16'
  assert shown(config) == (None, None)
  store_config(workdir, config)
  config.data.rate = 25.0
  check_config(workdir, config)


def test_they_decide_no_result():
  # The keys are those of the folders of results, as they were before there were these fields.
  config = default.get_config()
  assert build.samples_identity(config).key() == '54bedde1'
  config.data.update(source='watch', image_size=(128,), channels=6, levels=16_384)
  config.data.update(dtype='int16', lowest=-8192)
  assert build.samples_identity(config).key() == 'a20a9b20'
  config.data.update(rate=50.0, channel_names=tuple('abcdef'))
  assert build.samples_identity(config).key() == 'a20a9b20'


def test_names_may_come_as_one_text():
  config = with_data(watch.get_config())
  config.data.channel_names = ('a,b,c,d,e,f',)
  check(config)
  assert build.display(config).channel_names == tuple('abcdef')


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('rate', 0.0, 'data.rate is 0.0; it must be at least 1e-09'),
    ('channel_names', ('a',), 'has 1 names; there must be one for each of the 6 channels'),
  ],
)
def test_what_they_cannot_be_is_named(field, value, message):
  config = watch.get_config()
  config.data[field] = value
  with pytest.raises(UserError, match=message):
    check(config)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_auto_is_what_suits_the_devices_and_has_the_identity_of_that_name(dtype, monkeypatch):
  monkeypatch.setattr(devices, 'fast_dtype', lambda: dtype)
  given = tiny_config(**AUTO)
  check(given)
  config = with_dtype(given)
  assert (config.model.dtype, given.model.dtype) == (dtype, 'auto')
  named = tiny_config(**{'model.dtype': dtype})
  assert build.model_identity(config) == build.model_identity(named)
  assert build.model_identity(config).dtype == dtype


@pytest.mark.parametrize(('stored', 'here'), [('float32', 'bfloat16'), ('bfloat16', 'float32')])
def test_a_run_keeps_its_dtype_on_other_devices(tmp_path, monkeypatch, stored, here):
  monkeypatch.setattr(devices, 'fast_dtype', lambda: stored)
  store_config(tmp_path, with_dtype(tiny_config(**AUTO), tmp_path))
  assert json.loads((tmp_path / 'config.json').read_text())['model']['dtype'] == stored
  (tmp_path / 'checkpoints' / '2').mkdir(parents=True)  # it has begun
  monkeypatch.setattr(devices, 'fast_dtype', lambda: here)
  config = with_dtype(tiny_config(**AUTO), tmp_path)
  assert config.model.dtype == stored
  check_config(tmp_path, config)


def test_auto_is_the_default_and_needs_no_workdir(monkeypatch):
  config = default.get_config()
  assert config.model.dtype == 'auto'
  assert build.model(config).dtype == jnp.float32  # on a CPU
  monkeypatch.setattr(devices, 'fast_dtype', lambda: 'bfloat16')
  network = build.model(config)
  assert (network.dtype, network.on_cpu) == (jnp.bfloat16, False)
  assert build.model_identity(config).dtype == 'bfloat16'


def test_a_name_that_is_given_stays(monkeypatch):
  monkeypatch.setattr(devices, 'fast_dtype', lambda: 'bfloat16')
  config = tiny_config(**{'model.dtype': 'float32'})
  assert with_dtype(config) is config
