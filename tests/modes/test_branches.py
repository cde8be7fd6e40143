"""A workdir knows its config; a run begins from another one; info says what is where."""

import json

import jax
import numpy as np
import pytest

from ddpm_jax.config import build
from ddpm_jax.config.origins import config_of, read_start, read_weights, split_step
from ddpm_jax.errors import UserError
from ddpm_jax.modes.evaluate import evaluate
from ddpm_jax.modes.info import info
from ddpm_jax.modes.sample import sample
from ddpm_jax.modes.train import train
from ddpm_jax.storage.workdir import config_dict
from tests.tiny import tiny_config

pytestmark = pytest.mark.usefixtures('one_layer')


@pytest.fixture(scope='module')
def origin(one_layer, tmp_path_factory):
  """Returns a workdir of the tiny run, with steps 2, 4 and 6."""
  path = tmp_path_factory.mktemp('origin')
  train(tiny_config(), path)
  return path


def same(actual, expected):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-8), actual, expected)


def state_of(path, step=None, **overrides):
  return read_start(
    f'{path}@{step}' if step else str(path), tiny_config(**overrides), optimizer_state=True
  )


def test_workdir_tells_the_config_of_its_run(origin):
  told = config_of(str(origin))
  of_a_cpu = {'model.dtype': 'float32'}  # which auto is there
  assert config_dict(told) == config_dict(tiny_config(**of_a_cpu))


@pytest.mark.parametrize(
  ('suffix', 'step'),
  [('', None), ('@4', 4), ('/checkpoints', None), ('/checkpoints/4', 4), ('/checkpoints/4/', 4)],
)
def test_a_checkpoint_is_named_by_its_step_or_its_folder(suffix, step, origin):
  assert split_step(f'{origin}{suffix}') == (str(origin), step)


def test_branch_begins_with_weights_and_average_of_a_step(origin, tmp_path, capsys):
  # With a learning rate of 0, one step moves nothing but the average.
  changes = {'optim.learning_rate': 0.0, 'train.global_batch_size': 32, 'optim.ema_decay': 0.0}
  config = tiny_config(**changes, **{'init_from': f'{origin}@4', 'train.num_steps': 1})
  train(config, tmp_path)
  assert f'{origin}@4, step 4: weights and moving average' in capsys.readouterr().out
  there, here = state_of(origin, 4), state_of(tmp_path)
  same(here.params, there.params)
  same(here.ema_params, there.params)
  counts = [x for x in jax.tree.leaves(here.opt_state) if np.shape(x) == ()]
  assert {int(count) for count in counts} == {1}  # a fresh optimizer


def test_branch_takes_the_optimizer_over_where_asked(origin, tmp_path):
  config = tiny_config(**{'init_from': str(origin), 'init_optimizer': True, 'train.num_steps': 1})
  train(config, tmp_path)
  counts = [x for x in jax.tree.leaves(state_of(tmp_path).opt_state) if np.shape(x) == ()]
  assert {int(count) for count in counts} == {7}  # six steps there, one here
  # It was the newest that it began from, and goes on from whatever is added to the origin.
  assert json.loads((tmp_path / 'origin.json').read_text())['step'] == 6
  assert config_of(str(tmp_path)).init_from == f'{origin}@6'


def test_branch_says_its_origin_in_config_and_reports(origin, tmp_path):
  overrides = {'train.num_steps': 1, 'eval.metrics': ('bpd',), 'eval.bpd_examples': 4}
  train(tiny_config(init_from=f'{origin}@2', **overrides), tmp_path)
  evaluate(tiny_config(**overrides, **{'eval.bpd_terms': 2}), tmp_path)
  (file,) = tmp_path.glob('eval/step_00000001/report-*/report.json')
  assert json.loads(file.read_text())['about']['began_from'] == f'{origin}@2'
  begun_from = json.loads((tmp_path / 'origin.json').read_text())
  assert (begun_from['path'], begun_from['step']) == (str(origin), 2)
  assert len(begun_from['sha256']) == 64


def test_branch_resumes_without_naming_its_origin_and_refuses_another(origin, tmp_path, capsys):
  train(tiny_config(init_from=f'{origin}@2', **{'train.num_steps': 2}), tmp_path)
  train(tiny_config(**{'train.num_steps': 3}), tmp_path)
  assert 'steps       2 done, 1 to do' in capsys.readouterr().out
  assert config_of(str(tmp_path)).init_from == f'{origin}@2'
  for other in (f'{origin}@4', '/nowhere'):
    with pytest.raises(
      UserError, match=rf'init_from is {other}, but the run in .*{origin}@2: leav'
    ):
      train(tiny_config(init_from=other), tmp_path)


def test_mistake_of_the_first_command_does_not_take_the_workdir(origin, tmp_path):
  fields = {'data.channels': 3, 'eval.network': 'inception'}
  coloured = tiny_config(init_from=str(origin), **fields)
  with pytest.raises(
    UserError, match=r'of another shape \(Conv_0\.bias: there \[1\], here \[3\]; Conv_0\.kernel'
  ):
    train(coloured, tmp_path)
  train(tiny_config(init_from=f'{origin}@4', **{'train.num_steps': 1}), tmp_path)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'init_from': '{origin}@5'}, r'no checkpoint 5 in .*/checkpoints: it has \[2, 4, 6\]'),
    ({'init_from': '/nowhere'}, '/nowhere: nothing there; give a workdir, a model of the package'),
    (
      {'init_from': '{origin}', 'data.channels': 3, 'eval.network': 'inception'},
      r'Conv_0\.kernel: there \[3, 3, 1, 1\], here \[3, 3, 3, 3\]',
    ),
    (
      {'init_from': 'digits', 'init_optimizer': True},
      'init_optimizer is True, but digits has no optimizer state; leave it out',
    ),
    (
      {'init_from': '{origin}', 'init_optimizer': True, 'optim.weight_decay': 0.01},
      r'state of another optimizer \(optim.weight_decay: there None, here 0.01\): leave init_opt',
    ),
  ],
)
def test_branch_that_cannot_be_is_named(fields, message, origin, tmp_path):
  fields = {**fields, 'init_from': fields['init_from'].format(origin=origin)}
  with pytest.raises(UserError, match=message) as error:
    train(tiny_config(**fields), tmp_path)
  assert '\n' not in str(error.value)


def test_samples_of_a_step_and_of_a_model_that_is_elsewhere(origin, tmp_path):
  config = tiny_config(**{'sample.step': 4, 'sample.files': 'png', 'sample.animate': True})
  sample(config, origin)
  (folder,) = (origin / 'samples' / 'step_00000004').glob('ancestral-10_*')
  pictures = sorted(path.name for path in (folder / 'pictures').iterdir())
  assert pictures == [f'{i:08d}.png' for i in range(6)]
  sample(tiny_config(init_from=f'{origin}@4'), tmp_path)
  (elsewhere,) = (tmp_path / 'samples' / 'step_00000004').glob('ancestral-10_*')
  assert elsewhere.name == folder.name  # the same identity
  ours, theirs = (np.load(path / 'samples.npz')['samples'] for path in (folder, elsewhere))
  np.testing.assert_array_equal(ours, theirs)
  from PIL import Image

  shown = np.asarray(Image.open(folder / 'pictures' / '00000003.png'))
  np.testing.assert_array_equal(shown, ours[3, ..., 0])
  with Image.open(folder / 'chain.gif') as animation:
    assert animation.n_frames == 10  # the last prediction is what the chain ends with
    animation.seek(9)
    last = np.asarray(animation.convert('RGB'), int)
  grid = np.asarray(Image.open(folder / 'grid.png').convert('RGB'), int)
  assert np.abs(last - grid).max() <= 2  # a palette of grey


def test_step_that_is_not_there_is_answered_by_those_that_are(origin):
  with pytest.raises(UserError, match=r'no checkpoint 3 in .*: it has \[2, 4, 6\]'):
    sample(tiny_config(**{'sample.step': 3}), origin)
  with pytest.raises(UserError, match='has its moving average alone; leave out ema=False'):
    read_weights('digits', config_of('digits'), ema=False)
  with pytest.raises(UserError, match='digits has no steps to choose from, and step is 4; leave'):
    read_weights('digits', config_of('digits'), step=4)


def test_raw_weights_and_average_of_a_workdir_differ(origin):
  config = tiny_config()
  average, raw = read_weights(str(origin), config), read_weights(str(origin), config, ema=False)
  same(average.params, build.restore_weights(config, origin).params)
  start = state_of(origin)
  same(raw.params, start.params)
  assert average.sha256 != raw.sha256


def test_info_says_what_a_workdir_holds(origin, tmp_path, capsys):
  info(tiny_config(), str(origin))
  out = capsys.readouterr().out
  assert 'checkpoints 2, 4, 6 (' in out
  assert 'data        digits, split train, 8 x 8 x 1\n' in out
  assert 'logged      step 6, loss_mean ' in out
  info(tiny_config(), 'digits')
  assert 'parameters  ' in capsys.readouterr().out
  with pytest.raises(UserError, match='is no workdir: it has neither a config nor results'):
    info(tiny_config(), str(tmp_path))
  with pytest.raises(UserError, match='/nowhere: nothing there'):
    info(tiny_config(), '/nowhere')
