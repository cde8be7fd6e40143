"""Config files are found by path and by name; stored configs come back as they were."""

import json

import pytest

from ddpm_jax.config.files import find_config, load_config
from ddpm_jax.config.origins import config_from, config_of
from ddpm_jax.errors import UserError
from ddpm_jax.interop import diffusers
from ddpm_jax.storage.workdir import config_dict, flatten
from tests.tiny import tiny_config


@pytest.mark.parametrize('given', ['cifar10', 'cifar10.py', 'configs/cifar10.py'])
def test_configs_of_the_package_are_found_from_anywhere(given, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert load_config(given).model.ch == 128
  config = load_config(f'{given}:xprev-kl-learned')
  assert config.diffusion.mean_type == 'xprev'


def test_own_config_comes_first_and_builds_on_the_default(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'cifar10.py').write_text(
    'from ddpm_jax.configs import default\n'
    'def get_config():\n'
    '  config = default.get_config()\n'
    '  config.seed = 7\n'
    '  return config\n'
  )
  assert load_config('cifar10.py').seed == 7
  assert load_config('cifar10').seed == 0


@pytest.mark.parametrize('given', ['nothing', 'elsewhere/cifar10.py', '/configs/cifar10.py'])
def test_config_that_is_not_there_is_answered_by_those_that_are(given):
  with pytest.raises(UserError, match=rf'there is no {given}; configs has .*celebahq256\.py, cif'):
    find_config(given)


def test_stored_config_comes_back_with_its_types():
  config = tiny_config(**{'sample.num_steps': 5, 'data.dir': '/data', 'optim.grad_clip': 0.0})
  again = config_from(json.loads(json.dumps(config_dict(config))), 'config.json')
  assert flatten(config_dict(again)) == flatten(config_dict(config))
  assert isinstance(again.model.ch_mult, tuple)
  again.sample.eta = 0.5  # a placeholder still has its type
  with pytest.raises(TypeError):
    again.sample.num_steps = 'many'


def test_field_that_an_earlier_version_lacked_has_its_default():
  stored = config_dict(tiny_config())
  del stored['sample']['files'], stored['init_optimizer']
  assert config_dict(config_from(stored, '')) == config_dict(tiny_config())


def test_stored_config_that_is_not_ours_is_named():
  stored = config_dict(tiny_config())
  stored['model']['depth'] = 3
  with pytest.raises(UserError, match=r'run/config\.json has fields .* not know: model\.depth'):
    config_from(stored, 'run/config.json')
  del stored['model']['depth']
  stored['model']['ch'] = 'wide'
  with pytest.raises(UserError, match=r"run/config\.json: model\.ch is 'wide'"):
    config_from(stored, 'run/config.json')


@pytest.mark.parametrize(
  'fields',
  [
    {},
    {'diffusion.schedule': 'cosine', 'diffusion.mean_type': 'v'},
    {'diffusion.schedule': 'warmup10', 'diffusion.var_type': 'fixedsmall'},
    {'model.ch_mult': (1, 2), 'model.attn_resolutions': (4,), 'model.num_res_blocks': 2},
    {'data.channels': 3, 'data.image_size': 16, 'diffusion.beta_end': 0.03},
  ],
)
def test_pipeline_tells_its_config(fields, tmp_path):
  config = tiny_config(**fields)
  diffusers.write_pipeline(tmp_path / 'pipeline', config, {'conv_in': {}})
  told = config_of(str(tmp_path / 'pipeline'))
  for section in ('model', 'diffusion'):
    theirs, ours = config_dict(told)[section], config_dict(config)[section]
    assert {**theirs, 'dropout': 0.0} == {**ours, 'dropout': 0.0}
  assert (told.data.image_size, told.data.channels) == (
    config.data.image_size,
    config.data.channels,
  )


@pytest.mark.parametrize(
  ('file', 'setting', 'value', 'message'),
  [
    ('unet/config.json', 'sample_size', None, 'sample_size=null, .* not all positive integers'),
    ('unet/config.json', 'block_out_channels', [], r'block_out_channels=\[\]'),
    ('unet/config.json', 'layers_per_block', 'two', 'layers_per_block="two"'),
    ('scheduler/scheduler_config.json', 'beta_schedule', 'sigmoid', 'no schedule known here'),
    (
      'scheduler/scheduler_config.json', 'trained_betas', [0.1] * 9 + [0.2],
      'its trained_betas are those of no schedule known here: linear',
    ),
  ],
)  # fmt: skip
def test_pipeline_that_tells_no_config_of_ours_is_named(file, setting, value, message, tmp_path):
  diffusers.write_pipeline(tmp_path, tiny_config(), {'conv_in': {}})
  settings = json.loads((tmp_path / file).read_text())
  (tmp_path / file).write_text(json.dumps({**settings, setting: value}))
  with pytest.raises(UserError, match=message) as error:
    config_of(str(tmp_path))
  assert '\n' not in str(error.value)


def test_folder_that_tells_no_config_is_named(tmp_path):
  with pytest.raises(UserError, match='is an empty folder: it holds no model'):
    config_of(str(tmp_path))
  (tmp_path / 'notes.txt').write_text('of a run')
  with pytest.raises(UserError, match='does not tell its config; if it is a model, name'):
    config_of(str(tmp_path))
  with pytest.raises(UserError, match=r'/nowhere: nothing there; give a workdir'):
    config_of('/nowhere')
