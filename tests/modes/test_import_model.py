"""Other programs' models become runs, and runs become other programs' models."""

import errno
import json

import jax
import numpy as np
import pytest
from safetensors import SafetensorError

from ddpm_jax import processes
from ddpm_jax.config import build
from ddpm_jax.config.origins import read_weights
from ddpm_jax.errors import UserError, WriteError
from ddpm_jax.interop import diffusers, pytorch_diffusion
from ddpm_jax.interop.foreign import read_foreign
from ddpm_jax.interop.tensors import tensors_from_params
from ddpm_jax.interop.tf_ddpm import tf_name
from ddpm_jax.modes.export_model import export_model
from ddpm_jax.modes.import_model import import_model
from ddpm_jax.modes.sample import sample
from ddpm_jax.modes.train import train
from ddpm_jax.storage import checkpoints
from ddpm_jax.trainer import begin
from tests.tf_writer import write_bundle
from tests.tiny import OneLayer, tiny_config
from tests.torch_writer import write_torch_zip

FULL = 'Error while serializing: I/O error: No space left on device (os error 28)'


@pytest.fixture(scope='module')
def trees():
  """Two sets of parameters of the tiny run's model."""
  like = jax.eval_shape(lambda: build.init_params(tiny_config()))
  rng = np.random.default_rng(0)

  def draw():
    return jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32), like)

  return draw(), draw()


@pytest.fixture
def models(trees, tmp_path):
  """Paths of the two sets as a TF checkpoint of step 7, of the second as the other forms."""
  raw, ema = trees
  variables = {'global_step': np.array(7)}
  for tree, suffix in ((raw, ''), (ema, '/ExponentialMovingAverage')):
    tensors = tensors_from_params(tree, lambda path, _: (tf_name(path), 'same'))
    variables |= {f'{name}{suffix}': array for name, array in tensors.items()}
  write_bundle(tmp_path / 'model.ckpt-7', variables)
  write_torch_zip(tmp_path / 'model-7.ckpt', tensors_from_params(ema, pytorch_diffusion.place))
  diffusers.write_pipeline(tmp_path / 'pipeline', tiny_config(), ema)
  return {
    'original': str(tmp_path / 'model.ckpt-7'),
    'pytorch_diffusion': str(tmp_path / 'model-7.ckpt'),
    'diffusers': str(tmp_path / 'pipeline'),
  }


def read_sets(file, trees, **fields):
  """(params, ema_params, step) of a file."""
  return read_foreign(str(file), tiny_config(**fields), trees[0], cache_dir=None)


def same_trees(actual, expected):
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), actual, expected)


def import_config(path, **overrides):
  return tiny_config(**{'import_.path': path, 'train.num_steps': 8}, **overrides)


@pytest.mark.parametrize('form', ['original', 'pytorch_diffusion', 'diffusers'])
def test_import_and_export_change_no_bit(models, trees, form, tmp_path, capsys):
  config = import_config(models[form])
  import_model(config, tmp_path / 'run')
  expected_step = 7 if form == 'original' else 0
  weights = build.restore_weights(config, tmp_path / 'run')
  assert weights.step == expected_step
  same_trees(weights.params, trees[1])
  out = capsys.readouterr().out
  assert f'of step {expected_step}' in out
  found = 'weights and moving average' if form == 'original' else 'one set of weights, used as both'
  assert f'{models[form]}, step {expected_step}: {found}\n' in out
  config.export.path = str(tmp_path / 'exported')
  export_model(config, tmp_path / 'run')
  names = sorted(path.name for path in tmp_path.iterdir())
  export_model(config, tmp_path / 'run')  # as after a kill behind its rename
  assert sorted(path.name for path in tmp_path.iterdir()) == names
  import_model(import_config(config.export.path), tmp_path / 'again')
  same_trees(build.restore_weights(config, tmp_path / 'again').params, trees[1])


def test_imported_run_samples_and_trains_on(models, tmp_path, capsys):
  config = import_config(models['original'])
  import_model(config, tmp_path / 'run')
  sample(config, tmp_path / 'run')
  samples = tmp_path / 'run' / 'samples' / 'step_00000007'
  assert len(list(samples.glob('ancestral-10_*/samples.npz'))) == 1
  train(config, tmp_path / 'run')
  assert 'steps       7 done, 1 to do' in capsys.readouterr().out
  lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == [8]
  assert json.loads(lines[0])['learning_rate'] == 0  # of the fresh optimizer, which warms up


def test_state_has_both_sets_and_a_fresh_optimizer(models, trees):
  state, start = begin(tiny_config(), models['original'])
  assert (int(state.step), start.step) == (0, 7)
  same_trees((state.params, state.ema_params), trees)
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
  state, start = begin(tiny_config(), models['diffusers'])
  assert start.step == 0
  same_trees((state.params, state.ema_params), (trees[1], trees[1]))


@pytest.mark.slow
def test_training_starts_from_any_of_them(models, trees, tmp_path, monkeypatch, capsys):
  # With a learning rate of 0, the first step leaves the weights alone.
  for form, path in models.items():
    config = tiny_config(**{'init_from': path, 'train.num_steps': 1})
    train(config, tmp_path / form)
    assert 'steps       0 done' in capsys.readouterr().out
    weights = build.restore_weights(config, tmp_path / form)
    assert weights.step == 1
    raw, ema = trees if form == 'original' else (trees[1], trees[1])
    expected = jax.tree.map(lambda ema, raw: ema - 0.5 * (ema - raw), ema, raw)
    same_trees(weights.params, expected)
    config.train.num_steps = 2  # once begun, the run goes on from its own checkpoint
    train(config, tmp_path / form)
    assert 'steps       1 done' in capsys.readouterr().out
    config.init_from = '/nowhere'
    with pytest.raises(UserError, match=r'init_from is /nowhere, but the run in .* began from '):
      train(config, tmp_path / form)


def test_what_cannot_be_imported_leaves_nothing_behind(models, tmp_path):
  workdir = tmp_path / 'run'
  wider = import_config(models['original'], **{'model.ch': 64})
  for config, message in (
    (tiny_config(), '--config.import.path=PATH: a workdir, a checkpoint of the'),
    (import_config('/nowhere'), '/nowhere: nothing there; give a workdir'),
    (import_config('x' * 300), 'xxx: nothing there; give a workdir'),
    (import_config('x' * 300 + '/checkpoints/2'), '2: nothing there; give a workdir'),
    (import_config(str(tmp_path)), 'a folder without a model'),
    (
      import_config(f'{models["diffusers"]}/unet/diffusion_pytorch_model.safetensors'),
      'weights without their settings; give the folder',
    ),
    (import_config(f'{models["diffusers"]}/model_index.json'), 'not a PyTorch file'),
    (wider, r'model\.ckpt-7: .* of another shape: .* \(32,\), wanted \(64,\)'),
  ):
    with pytest.raises(UserError, match=message) as error:
      import_model(config, workdir)
    assert '\n' not in str(error.value)
    assert not workdir.exists()


def test_our_own_runs_are_imported(tmp_path, monkeypatch):
  monkeypatch.setattr(build, 'model', lambda config: OneLayer())
  train(tiny_config(**{'train.num_steps': 4}), tmp_path / 'own')
  for i, (given, step) in enumerate(
    ((f'{tmp_path}/own', 4), (f'{tmp_path}/own@2', 2), (f'{tmp_path}/own/checkpoints/2', 2))
  ):
    workdir = tmp_path / f'again{i}'
    import_model(import_config(given), workdir)
    for ema in (True, False):
      theirs = read_weights(f'{tmp_path}/own', tiny_config(), step=step, ema=ema)
      ours = read_weights(str(workdir), tiny_config(), ema=ema)
      assert ours.step == step
      same_trees(ours.params, theirs.params)


def test_a_checkpoint_of_diffusers_training_has_both_sets(models, trees, tmp_path, capsys):
  folder = tmp_path / 'training/checkpoint-30'
  diffusers.write_pipeline(folder, tiny_config(), trees[0])
  (tmp_path / 'pipeline/unet').rename(folder / 'unet_ema')
  settings = json.loads((folder / 'unet_ema/config.json').read_text())
  settings |= {'optimization_step': 30, 'decay': 0.99}
  (folder / 'unet_ema/config.json').write_text(json.dumps(settings))
  config = import_config(str(folder))
  import_model(config, tmp_path / 'run')
  assert f'{folder}, step 30: weights and moving average\n' in capsys.readouterr().out
  state, start = begin(config, str(tmp_path / 'run'))
  assert start.step == 30
  same_trees((state.params, state.ema_params), trees)
  with pytest.raises(UserError, match='without a model, but checkpoint-30 in it has one;'):
    import_model(import_config(str(folder.parent)), tmp_path / 'other')


@pytest.mark.parametrize(
  ('weights', 'indices'),
  [('0', (0, 0)), ('4', (1, 1)), ('0.module,4', (0, 1)), ('4,0', (1, 0))],
)
def test_one_of_several_state_dicts_is_chosen(trees, weights, indices, tmp_path):
  # As the program of DDIM (Song et al. 2021) writes checkpoints.
  raw, ema = (tensors_from_params(tree, pytorch_diffusion.place) for tree in trees)
  optimizer = {'state': {0: {'step': 3, 'exp_avg': np.ones(2, np.float32)}}, 'param_groups': []}
  wrapped = {f'module.{name}': tensor for name, tensor in raw.items()}
  file = tmp_path / 'ckpt.pth'
  write_torch_zip(file, [wrapped, optimizer, 5, 800, ema])
  message = r'ckpt\.pth: it has 2 sets of weights: 0\.module, 4; choose one by --config\.import\.w'
  with pytest.raises(UserError, match=message):
    read_sets(file, trees)
  params, ema_params, step = read_sets(file, trees, **{'import_.weights': weights})
  assert step == 0
  same_trees((params, ema_params), tuple(trees[i] for i in indices))


@pytest.mark.parametrize('prefix', ['module.', 'model.', '_orig_mod.', 'ema.', '_orig_mod.module.'])
@pytest.mark.parametrize('nest', [lambda x: x, lambda x: {'epoch': 3, 'state_dict': x}])
def test_prefixes_and_nesting_change_nothing(trees, prefix, nest, tmp_path):
  state_dict = tensors_from_params(trees[0], pytorch_diffusion.place)
  file = tmp_path / 'model.pt'
  write_torch_zip(file, nest({f'{prefix}{name}': x for name, x in state_dict.items()}))
  params, ema_params, _ = read_sets(file, trees)
  assert params is ema_params
  same_trees(params, trees[0])


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ({'net': {'x': np.ones(2)}, 'lr': 0.1}, r'no weights of this network, but net \(1 tensors, su'),
    ({'x': np.ones(2)}, r'variables do not fit the model: .* 1 unknown: x \(2,\)'),
    ([1, 'a'], 'no weights of this network, but a list without tensors'),
    ('library', 'weights without their settings; give the folder of the pipeline'),
  ],
)
def test_a_file_without_these_weights_says_what_it_has(trees, content, message, tmp_path):
  if content == 'library':
    content = {'unet': diffusers.state_dict_from_params(trees[0])}
  write_torch_zip(tmp_path / 'model.pt', content)
  with pytest.raises(UserError, match=rf'model\.pt: {message}') as error:
    read_sets(tmp_path / 'model.pt', trees)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('settings', 'clip', 'said'),
  [
    ({'clip_sample': False}, 'none', None),
    ({'clip_sample': False}, 'static', 'clips as sample.clip=none does; this config says sample.'),
    ({'clip_sample_range': 2.0}, 'static', 'clip_sample_range=2.0; that of sample.clip=static is'),
  ],
)
def test_another_clipping_of_the_scheduler_is_said(models, settings, clip, said, tmp_path, capsys):
  file = tmp_path / 'pipeline/scheduler/scheduler_config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | settings))
  import_model(import_config(models['diffusers'], **{'sample.clip': clip}), tmp_path / 'run')
  out = capsys.readouterr().out
  assert said in out if said else 'this config says' not in out


def test_runs_are_not_imported_over(models, tmp_path):
  config = import_config(models['diffusers'])
  import_model(config, tmp_path / 'run')
  (tmp_path / 'begun').mkdir()
  (tmp_path / 'begun' / 'metrics.jsonl').touch()
  for workdir in (tmp_path / 'run', tmp_path / 'begun'):
    with pytest.raises(UserError, match='holds a run already; give another workdir'):
      import_model(config, workdir)


def test_an_import_that_was_stopped_is_done_again_and_never_trained(
  models, trees, tmp_path, monkeypatch
):
  config = import_config(models['diffusers'])

  def fail(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(checkpoints, 'write_manifest', fail)
    with pytest.raises(WriteError, match=r'checkpoint 0 in .* the same command goes on'):
      import_model(config, tmp_path)
  with pytest.raises(UserError, match='has no checkpoint, since its --mode=import was not fin'):
    train(config, tmp_path)
  import_model(config, tmp_path)
  same_trees(build.restore_weights(config, tmp_path).params, trees[1])
  assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['0']


@pytest.mark.parametrize('mode', [import_model, export_model])
def test_processes_compare_what_they_are_told(mode, tmp_path, monkeypatch):
  def differ(what, facts):
    raise UserError(f'processes differ in their {what} ({facts["import_.path"]})')

  monkeypatch.setattr(processes, 'count', lambda: 2)
  monkeypatch.setattr(processes, 'check_same', differ)
  with pytest.raises(UserError, match=r'processes differ in their config \(/here\)'):
    mode(import_config('/here'), tmp_path)


def test_what_cannot_be_exported_leaves_nothing_behind(models, trees, tmp_path, monkeypatch):
  config = import_config(models['diffusers'])
  with pytest.raises(UserError, match=r'needs --config\.export\.path=FOLDER'):
    export_model(config, tmp_path)
  config.export.path = str(tmp_path / 'out')
  with pytest.raises(UserError, match='holds no checkpoint'):
    export_model(config, tmp_path / 'run')
  import_model(config, tmp_path / 'run')
  config.diffusion.mean_type = 'xprev'
  with pytest.raises(UserError, match='mean_type'):
    export_model(config, tmp_path / 'run')
  config.diffusion.mean_type = 'eps'
  config.export.step = 5
  with pytest.raises(UserError, match='no checkpoint 5'):
    export_model(config, tmp_path / 'run')
  config.export.step = None
  others = tmp_path / 'out.partial'
  others.mkdir()
  for error in (OSError(errno.ENOSPC, 'No space left on device'), SafetensorError(FULL)):

    def fail(path, tensors, error=error):
      raise error

    with monkeypatch.context() as patch:
      patch.setattr(diffusers, 'write_safetensors', fail)
      with pytest.raises(WriteError, match=r'out cannot be written \(No space left on device\)'):
        export_model(config, tmp_path / 'run')
  assert sorted(path.name for path in tmp_path.glob('*out*')) == [others.name]
  config.export.path = str(tmp_path)
  with pytest.raises(UserError, match='is there already; give a new folder'):
    export_model(config, tmp_path / 'run')
  config.export.path = str(tmp_path / 'others')
  diffusers.write_pipeline(tmp_path / 'others', config, trees[0])
  with pytest.raises(UserError, match='is there already; give a new folder'):
    export_model(config, tmp_path / 'run')
