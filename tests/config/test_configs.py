"""The configs are the paper's, and all of them build."""

import importlib
import pathlib
import sys

import jax
import numpy as np
import PIL.Image
import pytest

from configs import cifar10
from ddpm_jax.config import build
from ddpm_jax.config.checks import check
from ddpm_jax.config.files import load_config
from ddpm_jax.config.origins import with_data
from tests.data.test_lsun import write_lmdb

ROOT = pathlib.Path(__file__).parents[2]
NAMES = sorted(path.stem for path in pathlib.Path('configs').glob('*.py'))


def load(name):
  return importlib.import_module(f'configs.{name}').get_config()


def num_params(config):
  params = jax.eval_shape(lambda: build.init_params(config))
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize('name', NAMES)
def test_every_config_passes_the_checks(name):
  check(load(name))


@pytest.mark.parametrize(
  ('name', 'count'),
  [
    ('cifar10', 35_746_307),
    ('celebahq256', 113_673_219),
    ('lsun_bedroom256', 113_673_219),
    ('lsun_church256', 113_673_219),
    ('lsun_cat256', 113_673_219),
    ('lsun_bedroom256_large', 255_677_955),
  ],
)
def test_models_have_the_papers_number_of_parameters(name, count):
  assert num_params(load(name)) == count


def test_cifar10_is_the_papers():
  config = load('cifar10')
  assert config.diffusion.to_dict() == {
    'schedule': 'linear', 'num_timesteps': 1000, 'beta_start': 1e-4, 'beta_end': 0.02,
    'mean_type': 'eps', 'sigma_data': None, 'var_type': 'fixedlarge', 'loss_type': 'mse',
  }  # fmt: skip
  assert (config.model.ch, config.model.ch_mult, config.model.num_res_blocks) == (
    128,
    (1, 2, 2, 2),
    2,
  )
  assert (config.model.attn_resolutions, config.model.dropout) == ((16,), 0.1)
  assert (config.optim.learning_rate, config.optim.warmup_steps) == (2e-4, 5000)
  assert (config.optim.grad_clip, config.optim.ema_decay) == (1.0, 0.9999)
  assert (config.train.global_batch_size, config.train.num_steps) == (128, 800_000)
  assert config.data.random_flip


def test_256_models_are_the_papers():
  for name in ('celebahq256', 'lsun_bedroom256', 'lsun_church256', 'lsun_cat256'):
    config = load(name)
    assert (config.optim.learning_rate, config.train.global_batch_size) == (2e-5, 64)
    assert (config.diffusion.var_type, config.model.dropout) == ('fixedsmall', 0.0)


@pytest.mark.parametrize(
  ('name', 'folders', 'splits'),
  [
    ('lsun_bedroom256', ('bedroom_train_lmdb', 'bedroom_val_lmdb'), ['train', 'val']),
    ('lsun_bedroom256_large', ('bedroom_train_lmdb', 'bedroom_val_lmdb'), ['train', 'val']),
    ('lsun_church256', ('church_outdoor_train_lmdb', 'church_outdoor_val_lmdb'), ['train', 'val']),
    ('lsun_cat256', ('cat',), ['train']),
    ('celebahq256', (), ['train']),
  ],
)
def test_256_configs_measure_what_their_data_have(name, folders, splits, tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  images = np.random.RandomState(0).randint(0, 256, (5, 6, 6, 3), np.uint8)
  for folder in folders:
    write_lmdb(tmp_path / 'data' / folder, images)
  if not folders:
    (tmp_path / 'data').mkdir()
    PIL.Image.fromarray(images[0]).save(tmp_path / 'data/0.png')
  config = load(name)
  config.data.dir = str(tmp_path / 'data')
  sources, lines = build.measured_splits(config, None, config.eval.bpd_splits, 'eval.bpd_splits')
  assert ([source.split for source in sources], lines) == (splits, [])
  run = build.figures_run(config, tmp_path, weights=None, coding=None, x_0_variances=None)
  assert run.split.split == splits[-1]
  assert config.eval.bpd_examples <= 300
  assert (config.eval.reference_examples or 30_000) <= 50_000


def test_ecg_takes_recordings_as_its_header_says(tmp_path):
  soundfile = pytest.importorskip('soundfile')
  wave = np.random.default_rng(0).integers(-1024, 1024, (2048, 1)).astype(np.int16)
  soundfile.write(tmp_path / 'a.wav', wave, 360)
  config = load('ecg')
  config.data.source = f'signals:{tmp_path}'
  config = with_data(config)
  check(config)
  assert (config.data.rate, config.data.dtype) == (360.0, 'int16')
  source = build.source(config)
  assert source.image_shape == (1024, 1)
  windows = source.read(np.arange(len(source)))
  np.testing.assert_array_equal(windows[1], wave[256:1280] + 2048)  # levels from -2,048 on
  assert len(source) == 1 + (2048 - 1024) // 256


def test_configs_are_found_from_any_folder(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, 'path', [path for path in sys.path if path not in ('', str(ROOT))])
  monkeypatch.chdir(tmp_path)
  for module in [name for name in sys.modules if name.split('.')[0] == 'configs']:
    monkeypatch.delitem(sys.modules, module)
  for name in NAMES:
    assert load_config(name).train.num_steps > 0


@pytest.mark.parametrize('mean_type', cifar10.PREDICTIONS)
@pytest.mark.parametrize('var_type', cifar10.VARIANCES)
def test_ablations_are_arguments(mean_type, var_type):
  config = cifar10.get_config(f'{mean_type}-kl-{var_type}')
  check(config)
  assert config.diffusion.mean_type == mean_type
  assert config.diffusion.var_type == var_type
  assert config.diffusion.loss_type == 'kl'
  assert num_params(config) == (35_749_766 if var_type == 'learned' else 35_746_307)


@pytest.mark.parametrize('ablation', ['eps', 'eps-kl', 'eps-kl-small', 'learned-kl-eps'])
def test_unknown_ablation_lists_the_known(ablation):
  with pytest.raises(ValueError, match='PREDICTION-LOSS-VARIANCE; they are eps or xstart or xprev'):
    cifar10.get_config(ablation)
