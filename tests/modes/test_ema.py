"""--mode=ema: averages of a run that were kept, and those of other widths made of them."""

import jax
import numpy as np
import pytest

from ddpm_jax.config import build
from ddpm_jax.config.origins import config_of, settled
from ddpm_jax.errors import UserError
from ddpm_jax.modes.ema import ema
from ddpm_jax.modes.info import info
from ddpm_jax.modes.sample import sample
from ddpm_jax.modes.train import train
from tests.tiny import tiny_config

pytestmark = pytest.mark.usefixtures('one_layer')
STEPS = 60
FIELDS = {
  'optim.ema_widths': (0.1, 0.2),
  'optim.ema_decays': (0.7,),
  'train.num_steps': STEPS,
  'train.checkpoint_every_steps': 6,
  'train.log_every_steps': 6,
  'train.keep_last_checkpoints': 100,
}


@pytest.fixture(scope='module')
def runs(one_layer, tmp_path_factory):
  """Returns the workdir of a run with two widths, and that of the same with a third."""
  folders = [tmp_path_factory.mktemp(name) for name in ('kept', 'direct')]
  train(tiny_config(**FIELDS), folders[0])
  train(tiny_config(**FIELDS | {'optim.ema_widths': (0.15,)}), folders[1])
  return folders


def state_of(workdir, step=None):
  config = config_of(str(workdir))
  like = jax.eval_shape(lambda: build.init_state(config, build.init_params(config)))
  with build.checkpointer(config, workdir, read_only=True) as checkpoints:
    return checkpoints.restore_state(like, step)[1]


def make(origin, workdir, **fields):
  config = config_of(str(origin)).unlock()
  config.init_from = str(origin)
  config.ema.update(**fields)
  ema(config, str(workdir))


def largest(tree):
  return max(float(np.abs(x).max()) for x in jax.tree.leaves(tree))


def test_an_average_of_another_width_is_the_one_kept_directly(runs, tmp_path, capsys):
  kept, direct = runs
  make(kept, tmp_path, width=0.15)
  assert 'made of 2 widths at 10 steps, error of its profile' in capsys.readouterr().out
  made, expected, start = state_of(tmp_path), state_of(direct), state_of(kept, 6)
  off = jax.tree.map(lambda a, b: a - b, made.ema_params, expected.averages['width 0.15'])
  moved = jax.tree.map(lambda a, b: a - b, made.params, start.params)
  assert largest(off) < 5e-3 * largest(moved)  # sixty steps are no fine profile
  jax.tree.map(np.testing.assert_array_equal, made.params, state_of(kept).params)
  assert int(made.step) == STEPS
  config = config_of(str(tmp_path))
  assert (config.ema.width, config.init_from) == (0.15, f'{kept}@{STEPS}')
  assert build.average_words(config) == 'power-function average of width 0.15'
  info(config, str(tmp_path))
  sample(tiny_config(**FIELDS, **{'ema.width': 0.15}), str(tmp_path))


def test_an_average_is_named_after_what_was_made_alone(runs, tmp_path):
  kept, _ = runs
  make(kept, tmp_path, width=0.15)
  assert settled(config_of(str(kept)), tmp_path).ema.width == 0.15
  with pytest.raises(UserError, match=r'ema.width is 0.2, which makes another workdir .* has None'):
    settled(tiny_config(**FIELDS, **{'ema.width': 0.2}), kept)
  with pytest.raises(UserError, match='training would change the average that --mode=ema made'):
    train(config_of(str(tmp_path)), tmp_path)


def test_averages_that_were_kept_come_back_as_they_are(runs, tmp_path):
  kept, _ = runs
  for i, (fields, name) in enumerate(
    (({'decay': 0.7}, 'decay 0.7'), ({'width': 0.2}, 'width 0.2'))
  ):
    make(f'{kept}@30' if i else kept, tmp_path / str(i), **fields)
    made, state = state_of(tmp_path / str(i)), state_of(kept, 30 if i else None)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
      made.ema_params,
      state.averages[name],
    )


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({}, 'takes one of --config.ema.width and --config.ema.decay'),
    ({'width': 0.15, 'decay': 0.7}, 'takes one of --config.ema.width and --config.ema.decay'),
    (
      {'decay': 0.8},
      'decay is 0.8, and the run kept decay 0.7, width 0.1, width 0.2: give one',
    ),
    ({'width': 0.01}, r'ema.width is 0.01, which the kept averages \(widths 0.1, 0.2 at 10 steps'),
  ],
)
def test_an_average_that_cannot_be_made_is_refused(runs, tmp_path, fields, message):
  with pytest.raises(UserError, match=message) as raised:
    make(runs[0], tmp_path, **fields)
  assert '\n' not in str(raised.value)


def test_a_run_without_averages_or_a_workdir_in_use_is_refused(runs, tmp_path):
  with pytest.raises(UserError, match='holds a run already; give another workdir'):
    make(runs[0], runs[1], width=0.15)
  config = tiny_config(**{'ema.width': 0.1})
  with pytest.raises(UserError, match=r'--mode=ema needs --config.init_from=WORKDIR\[@STEP\]'):
    ema(config, str(tmp_path / 'new'))
  plain = tmp_path / 'plain'
  train(tiny_config(**{'train.num_steps': 2}), plain)
  with pytest.raises(UserError, match='kept no power-function averages: a run keeps some with'):
    make(plain, tmp_path / 'new', width=0.1)
