"""The loop: a run that stops, however it stops, ends as one that did not."""

import contextlib
import errno
import itertools
import json
import os
import pathlib
import signal
import time

import jax
import numpy as np
import pytest

from ddpm_jax import build, checkpoints, data, logs, parallel
from ddpm_jax import train as train_module
from ddpm_jax.checkpoints import Checkpointer
from ddpm_jax.files import WriteError
from ddpm_jax.sample import Sampler
from ddpm_jax.train import restore_or_init, train
from ddpm_jax.workdir import config_dict
from tests.tiny import tiny_config


def final_state(workdir, config):
  """The newest state as NumPy arrays by path."""
  with Checkpointer(workdir / 'checkpoints', config_dict(config), read_only=True) as checkpointer:
    state = restore_or_init(config, checkpointer)
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def metrics(workdir):
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def losses(workdir):
  return [(line['step'], line['loss'], line['grad_norm']) for line in metrics(workdir)]


def assert_same_run(workdir, other):
  """Parameters, moments, EMA and step bit for bit, and every step's loss, so its batch too."""
  state, other_state = final_state(workdir, tiny_config()), final_state(other, tiny_config())
  assert state.keys() == other_state.keys()
  for path, array in state.items():
    np.testing.assert_array_equal(array, other_state[path], err_msg=path)
  assert losses(workdir) == losses(other)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  """The workdir of six steps without a stop."""
  workdir = tmp_path_factory.mktemp('undisturbed')
  train(tiny_config(**{'train.sample_every_steps': 6}), workdir)
  return workdir


def test_run_leaves_what_it_promises(undisturbed):
  lines = metrics(undisturbed)
  assert [line['step'] for line in lines] == [1, 2, 3, 4, 5, 6]
  assert lines[0].keys() == {
    'step', 'loss', 'loss_mean', 'grad_norm', 'learning_rate', 'steps_per_sec', 'images_per_sec'
  }  # fmt: skip
  assert [line['learning_rate'] for line in lines[:4]] == pytest.approx([0, 1e-3, 2e-3, 2e-3])
  assert json.loads((undisturbed / 'config.json').read_text())['train']['num_steps'] == 6
  assert list((undisturbed / 'tensorboard').glob('events.*'))
  assert [path.name for path in (undisturbed / 'samples').glob('step_*')] == ['step_00000006']
  assert np.load(undisturbed / 'samples/step_00000006/samples.npz')['samples'].shape == (4, 8, 8, 1)
  assert final_state(undisturbed, tiny_config())['.step'] == 6


def test_ema_follows_the_parameters_and_is_not_them(undisturbed):
  state = final_state(undisturbed, tiny_config())
  init = jax.tree_util.tree_leaves_with_path(build.init_params(tiny_config()))
  for path, start in init:
    params = state['.params' + jax.tree_util.keystr(path)]
    ema = state['.ema_params' + jax.tree_util.keystr(path)]
    moved = np.abs(params - start).max()
    if moved > 1e-6:
      assert 0 < np.abs(ema - start).max() < 2 * moved
      assert not np.array_equal(ema, params)


def test_resumed_run_equals_an_undisturbed_one(undisturbed, tmp_path):
  train(tiny_config(**{'train.num_steps': 3}), tmp_path)
  train(tiny_config(), tmp_path)
  assert_same_run(tmp_path, undisturbed)


@pytest.mark.parametrize(
  ('number', 'method', 'stops_at'),
  [
    (signal.SIGTERM, 'add', 3),
    pytest.param(signal.SIGINT, 'add', 3, marks=pytest.mark.slow),
    (signal.SIGTERM, '_write', 4),  # a step is written while the next one runs
  ],
)
def test_signal_saves_and_the_same_command_goes_on(
  number, method, stops_at, undisturbed, tmp_path, monkeypatch, capsys
):
  original = getattr(logs.RunLog, method)

  def signalled(log, step, *args, **kwargs):
    original(log, step, *args, **kwargs)
    if step == 3:
      os.kill(os.getpid(), number)

  with monkeypatch.context() as patch:
    patch.setattr(logs.RunLog, method, signalled)
    train(tiny_config(), tmp_path)
  assert f'stopped by {number.name} at step {stops_at}: saved' in capsys.readouterr().out
  assert final_state(tmp_path, tiny_config())['.step'] == stops_at
  train(tiny_config(), tmp_path)
  assert_same_run(tmp_path, undisturbed)


def test_logged_steps_do_not_hold_up_the_next_dispatch(tmp_path, monkeypatch):
  events = []
  train_steps, write = build.train_steps, logs.RunLog._write

  def recording(config):
    steps_fn = train_steps(config)
    return lambda *args: events.append('dispatch') or steps_fn(*args)

  def recorded(log, step, *args):
    events.append(step)
    write(log, step, *args)

  monkeypatch.setattr(build, 'train_steps', recording)
  monkeypatch.setattr(logs.RunLog, '_write', recorded)
  config = tiny_config(**{'train.num_steps': 3, 'train.checkpoint_every_steps': 3})
  train(config, tmp_path)
  assert events == ['dispatch', 'dispatch', 1, 'dispatch', 2, 3]


@pytest.mark.parametrize('step', [3, 6])
def test_signals_in_the_midst_of_sampling_cost_no_samples(
  step, undisturbed, tmp_path, monkeypatch, capsys
):
  config = tiny_config(**{'train.sample_every_steps': step})

  def signalled(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)

  with monkeypatch.context() as patch:
    patch.setattr(Sampler, 'draw', signalled)
    for _ in range(2):  # while the step is sampled, and while that is made up for
      train(config, tmp_path)
      assert f'stopped by SIGTERM at step {step}: saved' in capsys.readouterr().out
  train(config, tmp_path)
  assert_same_run(tmp_path, undisturbed)
  samples = sorted(path.name for path in (tmp_path / f'samples/step_{step:08d}').iterdir())
  assert samples == ['grid.png', 'request.json', 'samples.npz', 'seconds.txt']


def test_a_signal_in_a_destructor_is_heard_a_moment_later(capfd):
  """There, an exception would be printed, and lost."""

  class Dying:
    def __del__(self):
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(0.01)

  def work():
    dying = Dying()
    del dying
    time.sleep(60)

  start = time.monotonic()
  with train_module.Signals() as signals:
    signals.leave_at(work)
    signals.leave_at(work)  # not begun
  assert time.monotonic() - start < 30
  assert signals.received == [signal.SIGTERM]
  assert capfd.readouterr().err == ''


def test_damaged_newest_checkpoint_costs_steps_not_the_run(undisturbed, tmp_path, caplog):
  train(tiny_config(**{'train.num_steps': 4}), tmp_path)
  array = max((tmp_path / 'checkpoints/4').rglob('d/*'), key=lambda path: path.stat().st_size)
  content = bytearray(array.read_bytes())
  content[len(content) // 2] ^= 1
  array.write_bytes(content)
  train(tiny_config(), tmp_path)
  assert [r for r in caplog.messages if 'checkpoint 4' in r and 'using checkpoint 2' in r]
  assert_same_run(tmp_path, undisturbed)


def test_steps_of_one_dispatch_are_those_of_single_ones(undisturbed, tmp_path):
  train(tiny_config(**{'train.num_steps': 3}), tmp_path)  # between two multiples
  fields = {'train.steps_per_dispatch': 2, 'train.log_every_steps': 2}
  train(tiny_config(**fields), tmp_path)
  state, expected = final_state(tmp_path, tiny_config()), final_state(undisturbed, tiny_config())
  for path, array in state.items():
    np.testing.assert_array_equal(array, expected[path], err_msg=path)
  by_step = {step: rest for step, *rest in losses(undisturbed)}
  assert [by_step[step] for step in (4, 6)] == [rest for step, *rest in losses(tmp_path)[3:]]


def test_batches_gathered_on_the_devices_are_the_same(undisturbed, tmp_path, monkeypatch):
  monkeypatch.setattr(build, 'device_data', lambda _, batches: parallel.replicate(batches.images))
  train(tiny_config(), tmp_path)
  assert_same_run(tmp_path, undisturbed)


def test_non_finite_loss_stops_at_its_step_and_keeps_the_last_good_state(tmp_path):
  train(tiny_config(**{'train.num_steps': 2}), tmp_path)
  config = tiny_config()
  bad = batch_of(config, 3)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      build, 'train_steps', poisoned(build.train_steps, lambda x: np.array_equal(x, bad))
    )
    with pytest.raises(FloatingPointError, match='nan at step 4'):
      train(config, tmp_path)
  assert final_state(tmp_path, config)['.step'] == 2


def poisoned(make_steps, is_bad):
  """make_steps whose loss is no number for the batches that is_bad."""

  def make(config):
    steps_fn = make_steps(config)

    def step(state, images, data, key):
      state, metrics = steps_fn(state, images, data, key)
      poison = np.nan if is_bad(images) else 0
      return state, metrics | {'loss': [loss + poison for loss in metrics['loss']]}

    return step

  return make


def batch_of(config, number):
  """The images of a batch, as steps take them."""
  source = build.source(config)
  with contextlib.closing(build.batches(config, source)) as batches:
    images = next(batches.iterate(number))
  return parallel.split_over_devices(images[None], axis=1)


def test_a_batch_that_is_not_finite_can_be_skipped(tmp_path, monkeypatch, capsys):
  config = tiny_config(**{'train.on_nonfinite': 'skip'})
  without = tmp_path / 'without'
  without.mkdir()
  (without / 'skipped_batches.json').write_text('[3]')
  train(config, without)
  bad = batch_of(config, 3)
  skips = tmp_path / 'skips'
  with monkeypatch.context() as patch:
    patch.setattr(
      build, 'train_steps', poisoned(build.train_steps, lambda x: np.array_equal(x, bad))
    )
    train(config, skips)
  assert 'goes on from the last checkpoint, without batch 3 (1 of at most 10)' in (
    capsys.readouterr().out
  )
  assert_same_run(skips, without)
  assert json.loads((skips / 'skipped_batches.json').read_text()) == [3]
  noted = json.loads((skips / 'not_finite_step_00000004.json').read_text())
  assert noted['metrics']['loss'] == 'nan'
  expected = data.batch_indices(0, 3, global_batch_size=16, num_examples=1497)
  assert (noted['step'], noted['batch'], noted['examples']) == (4, 3, expected.tolist())


def test_damaged_list_of_skipped_batches_is_named(tmp_path):
  (tmp_path / 'skipped_batches.json').write_text('[3')
  with pytest.raises(ValueError, match=r'skipped_batches\.json is damaged'):
    train_module.read_skipped(tmp_path)


def test_a_signal_in_a_step_that_is_not_finite_stops_the_run(tmp_path, monkeypatch, capsys):
  config = tiny_config(**{'train.on_nonfinite': 'skip'})
  train_steps, counts = build.train_steps, []

  def signalled(images):
    os.kill(os.getpid(), signal.SIGTERM)
    return True

  with monkeypatch.context() as patch:
    patch.setattr(build, 'train_steps', poisoned(train_steps, signalled))
    agreed = parallel.stop_agreed
    patch.setattr(parallel, 'stop_agreed', lambda *args: counts.append(args) or agreed(*args))
    train(config, tmp_path)
  assert 'stopped by SIGTERM at step 0: saved' in capsys.readouterr().out
  assert json.loads((tmp_path / 'skipped_batches.json').read_text()) == [0]
  assert final_state(tmp_path, config)['.step'] == 0
  assert counts == [(0, False), (1, True), (2, True)]


def test_several_processes_stop_though_jax_says_it_once(monkeypatch):
  monkeypatch.setattr(parallel, 'stop_agreed', lambda count, _: count == 2)
  with train_module.Signals() as signals:
    assert [signals.stop_agreed() for _ in range(5)] == [False, False, True, True, True]


def test_a_run_with_another_fault_is_not_skipped_for_ever(tmp_path, monkeypatch):
  config = tiny_config(**{'train.on_nonfinite': 'skip'})
  monkeypatch.setattr(train_module, 'MAX_SKIPPED_BATCHES', 2)
  monkeypatch.setattr(build, 'train_steps', poisoned(build.train_steps, lambda x: True))
  with pytest.raises(FloatingPointError, match='the loss is nan at step 1'):
    train(config, tmp_path)
  assert json.loads((tmp_path / 'skipped_batches.json').read_text()) == [0, 1]
  assert len(losses(tmp_path)) == 0


def test_a_clock_that_is_set_back_changes_nothing(undisturbed, tmp_path, monkeypatch):
  now = itertools.count(2e9, -3600)
  monkeypatch.setattr(time, 'time', lambda: float(next(now)))
  train(tiny_config(), tmp_path)
  assert_same_run(tmp_path, undisturbed)


@pytest.mark.slow
def test_a_slow_disk_changes_nothing(undisturbed, tmp_path, monkeypatch):
  write_manifest = checkpoints.write_manifest

  def slowly(folder):
    time.sleep(1)
    write_manifest(folder)

  monkeypatch.setattr(checkpoints, 'write_manifest', slowly)
  train(tiny_config(), tmp_path)
  assert_same_run(tmp_path, undisturbed)


def test_a_disk_that_cannot_rename_is_named(tmp_path, monkeypatch):
  def refuse(path, target):
    raise OSError(errno.EOPNOTSUPP, 'Operation not supported')

  with monkeypatch.context() as patch:
    patch.setattr(pathlib.PosixPath, 'rename', refuse)
    with pytest.raises(WriteError, match=r'checkpoint 2 in .* cannot be written \(Operation not s'):
      train(tiny_config(), tmp_path)
  assert not [path for path in (tmp_path / 'checkpoints').iterdir() if path.name.isdigit()]
  train(tiny_config(), tmp_path)  # on a disk that can


def test_run_that_is_done_does_nothing(undisturbed, capsys):
  before = losses(undisturbed)
  train(tiny_config(), undisturbed)
  assert 'nothing to do: step 6' in capsys.readouterr().out
  assert losses(undisturbed) == before


def test_another_config_in_the_workdir_is_refused(undisturbed):
  with pytest.raises(
    ValueError, match=r'another config \(optim.ema_decay: workdir 0.5, config 0.9'
  ):
    train(tiny_config(**{'optim.ema_decay': 0.9}), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize('change', ['plain', 'bfloat16', 'remat and accumulation'])
def test_loss_of_200_steps_is_that_of_another_way_to_compute_them(change, tmp_path, monkeypatch):
  """Within what a second seed differs by, in means of 20 steps."""

  def curve(name, **fields):
    config = tiny_config(
      **{
        'model.ch_mult': (1, 2),
        'model.attn_resolutions': (4,),
        'diffusion.num_timesteps': 1000,
        'train.global_batch_size': 64,
        'train.num_steps': 200,
        'train.log_every_steps': 20,
        'train.checkpoint_every_steps': 200,
        'optim.warmup_steps': 20,
      }
      | fields
    )
    train(config, tmp_path / name)
    return np.array([line['loss_mean'] for line in metrics(tmp_path / name)])

  ours, other_seed = curve('ours'), curve('seed', seed=1)
  fields = {
    'plain': {},
    'bfloat16': {'model.dtype': 'bfloat16'},
    'remat and accumulation': {'model.remat': True, 'train.grad_accum_steps': 4},
  }[change]
  if change == 'plain':  # no minimal filtering, no compiler options, steps in a loop
    monkeypatch.setattr(parallel, 'on_cpu', lambda: False)
    fields = {'train.steps_per_dispatch': 20}
  other = curve('other', **fields)
  assert ours[-1] < ours[0] / 3
  assert np.abs(other - ours).max() < np.abs(other_seed - ours).max()
