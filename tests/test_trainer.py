"""ddpm_jax.train: any array, any network, no handlers, and an interrupt that keeps the run."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.config.origins import config_of
from ddpm_jax.data.digits import load_digits
from ddpm_jax.errors import UserError
from ddpm_jax.modes.sample import sample
from tests.compiling import environment
from tests.tiny import tiny_config

pytestmark = pytest.mark.usefixtures('one_layer')
ROOT = pathlib.Path(__file__).resolve().parents[1]
PICTURES = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)


def apply(params, x, t):
  """A network of two numbers."""
  return x * params['scale'] + params['shift'] * jnp.sin(t)[:, None, None, None]


def own_params():
  return {'scale': np.float32(1), 'shift': np.float32(0)}


def handlers():
  return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]


def test_any_array_trains_quietly_and_goes_on(tmp_path, capfd):
  before, hook = handlers(), threading.excepthook
  model = ddpm_jax.train(tmp_path, PICTURES, config=tiny_config(), num_steps=3, progress=False)
  measured = {'train.eval_every_steps': 2, 'eval.metrics': ('bpd',), 'eval.bpd_splits': ('train',)}
  config = tiny_config(**measured, **{'train.sample_every_steps': 2})
  ddpm_jax.train(tmp_path / 'measured', config=config, num_steps=2, progress=False)
  assert capfd.readouterr() == ('', '')
  assert (handlers(), threading.excepthook) == (before, hook)
  assert model.step == 3
  assert model.sample(2).shape == (2, 8, 8, 1)
  model = ddpm_jax.train(tmp_path, PICTURES, config=tiny_config(), num_steps=5)
  assert 'steps       3 done, 2 to do' in capfd.readouterr().out
  assert model.step == 5
  assert model.config.data.source == 'array'


def test_training_is_that_of_the_command_line(tmp_path):
  from ddpm_jax.modes.train import train

  train(tiny_config(), tmp_path / 'command')
  images = load_digits('train')[0]
  ddpm_jax.train(tmp_path / 'library', images, config=tiny_config(), progress=False)

  def losses(path):
    lines = (path / 'metrics.jsonl').read_text().splitlines()
    return [json.loads(line)['loss'] for line in lines]

  assert losses(tmp_path / 'command') == losses(tmp_path / 'library')


@pytest.mark.usefixtures('unet')
def test_own_network_trains_is_sampled_measured_and_loaded_again(tmp_path):
  config = tiny_config(**{'optim.learning_rate': 0.1})
  model = ddpm_jax.train(
    tmp_path, PICTURES, config=config, network=apply, params=own_params(), progress=False
  )
  assert float(model.params['scale']) != 1
  samples, bound = model.sample(3), model.bits_per_dim(PICTURES[:2])['total_bpd']
  assert samples.shape == (3, 8, 8, 1)
  assert np.isfinite(bound).all()
  again = ddpm_jax.load(tmp_path, network=apply, params=own_params())
  np.testing.assert_array_equal(again.sample(3), samples)
  assert config_of(str(tmp_path)).network == 'apply'
  with pytest.raises(
    UserError, match=r'a network of its own, apply, .* ddpm_jax\.load\(workdir, n'
  ):
    sample(config_of(str(tmp_path)), tmp_path)
  with pytest.raises(UserError, match='a network of its own, apply'):
    ddpm_jax.load(tmp_path)


def test_interrupt_saves_the_step_in_hand_and_goes_on(tmp_path):
  config = tiny_config(**{'train.checkpoint_every_steps': 100_000, 'train.num_steps': 100_000})

  def interrupt():
    log = tmp_path / 'metrics.jsonl'
    while not (log.exists() and log.stat().st_size):
      time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

  threading.Thread(target=interrupt, daemon=True).start()
  with pytest.raises(KeyboardInterrupt):
    ddpm_jax.train(tmp_path, PICTURES, config=config, progress=False)
  step = ddpm_jax.load(tmp_path).step
  assert step >= 1
  again = ddpm_jax.train(tmp_path, PICTURES, config=config, num_steps=step + 1, progress=False)
  assert again.step == step + 1
  steps = [json.loads(x)['step'] for x in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert steps == list(range(1, step + 2))


@pytest.mark.parametrize(
  ('choices', 'message'),
  [
    ({'data': PICTURES[:, 0, 0]}, r'data is uint8\[40, 1\]; it must be \[N, L, C\] signals, '),
    ({'data': PICTURES.astype(str)}, r'data is <U3\[40, 8, 8, 1\]; it must be .*, of numbers'),
    ({'data': PICTURES[..., 0]}, r'data is uint8\[40, 8, 8\]: give grey pictures with their axis'),
    ({'data': PICTURES[:0]}, 'data holds no examples'),
    ({'network': apply}, 'network is given without params'),
    (
      {'network': lambda p, x, t: x[..., 0], 'params': {}},
      r'the network returned \(2, 8, 8\) for x_t of \(2, 8, 8, 1\)',
    ),
    ({'network': lambda p, x, t: (x, t), 'params': {}}, 'returned a tuple; it must return an a'),
    ({'config': 'nothing'}, 'there is no nothing; configs has'),
  ],
)  # fmt: skip
def test_mistakes_are_answered_in_one_line_and_leave_nothing(choices, message, tmp_path):
  choices = {'data': PICTURES, 'config': tiny_config(), **choices}
  with pytest.raises(UserError, match=message) as error:
    ddpm_jax.train(tmp_path / 'run', **choices)
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'run').exists()


def test_workdir_of_another_network_is_refused(tmp_path):
  ddpm_jax.train(
    tmp_path, PICTURES, config=tiny_config(), network=apply, params=own_params(), progress=False
  )
  with pytest.raises(UserError, match='network: workdir apply, config None'):
    ddpm_jax.train(tmp_path, PICTURES, config=tiny_config(), progress=False)


@pytest.mark.parametrize(
  ('example', 'steps'),
  [pytest.param('own_data', 2, marks=pytest.mark.slow), ('own_network', 20)],
)
def test_examples_run(example, steps, tmp_path):
  file = ROOT / 'examples' / f'{example}.py'
  assert len(file.read_text().splitlines()) < 30
  process = subprocess.run(
    [sys.executable, str(file), str(tmp_path), str(steps)],
    capture_output=True, text=True, env=environment() | {'PYTHONPATH': str(ROOT)},
  )  # fmt: skip
  assert (process.returncode, process.stderr) == (0, '')
  assert 'bits/dim of' in process.stdout
  assert (tmp_path / 'samples.png').exists()
