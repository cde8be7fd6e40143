"""Training: a run that stops, however it stops, ends as one that did not."""

import contextlib
import errno
import functools
import itertools
import json
import os
import pathlib
import signal
import time
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from ddpm_jax import data, devices, heeding, processes, trainer
from ddpm_jax.config import build
from ddpm_jax.errors import NotFiniteError, UserError, WriteError
from ddpm_jax.evaluation.samples import Drawer
from ddpm_jax.modes.train import train
from ddpm_jax.storage import checkpoints, logs
from ddpm_jax.storage.identity import sampler_name
from ddpm_jax.training import step as step_module
from ddpm_jax.training.state import init_train_state
from tests.tiny import tiny_config

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures('one_layer')


@functools.cache
def state_like(model):
  def init():
    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.zeros(1, jnp.int32))
    return init_train_state(params['params'], build.optimizer(tiny_config()))

  return jax.eval_shape(init)


def final_state(workdir):
  """The newest state as NumPy arrays by path."""
  with build.checkpointer(tiny_config(), workdir, read_only=True) as checkpointer:
    state = checkpointer.restore_latest(state_like(build.model(tiny_config())))
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def metrics(workdir):
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def losses(workdir):
  return [(line['step'], line['loss'], line['grad_norm']) for line in metrics(workdir)]


def assert_same_run(workdir, other):
  """Parameters, moments, EMA and step bit for bit, and every step's loss, so its batch too."""
  state, other_state = final_state(workdir), final_state(other)
  assert state.keys() == other_state.keys()
  for path, array in state.items():
    np.testing.assert_array_equal(array, other_state[path], err_msg=path)
  assert losses(workdir) == losses(other)


def samples_folder(workdir, config, step):
  """The only folder of samples of a step, of the config's sampler."""
  [folder] = (workdir / f'samples/step_{step:08d}').glob('[!.]*')
  assert folder.name.rpartition('_')[0] == sampler_name(build.samples_identity(config).sampler)
  return folder


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
  folder = samples_folder(undisturbed, tiny_config(), 6)
  assert np.load(folder / 'samples.npz')['samples'].shape == (4, 8, 8, 1)
  assert final_state(undisturbed)['.step'] == 6


def test_ema_follows_the_parameters_and_is_not_them(undisturbed):
  state = final_state(undisturbed)
  init = jax.jit(lambda: build.init_params(tiny_config()))()
  for path, start in jax.tree_util.tree_leaves_with_path(init):
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
  assert final_state(tmp_path)['.step'] == stops_at
  train(tiny_config(), tmp_path)
  assert_same_run(tmp_path, undisturbed)


@pytest.mark.parametrize('step', [3, 6])
def test_signals_in_the_midst_of_sampling_cost_no_samples(
  step, undisturbed, tmp_path, monkeypatch, capsys
):
  config = tiny_config(**{'train.sample_every_steps': step})

  def signalled(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    heeding.sleep(60)

  with monkeypatch.context() as patch:
    patch.setattr(Drawer, 'draw', signalled)
    for _ in range(2):  # while the step is sampled, and while that is made up for
      train(config, tmp_path)
      assert f'stopped by SIGTERM at step {step}: saved' in capsys.readouterr().out
  train(config, tmp_path)
  assert_same_run(tmp_path, undisturbed)
  samples = sorted(path.name for path in samples_folder(tmp_path, config, step).iterdir())
  assert samples == ['grid.png', 'request.json', 'samples.npz', 'seconds.txt']


def test_damaged_newest_checkpoint_costs_steps_not_the_run(undisturbed, tmp_path, caplog):
  train(tiny_config(**{'train.num_steps': 4}), tmp_path)
  array = max((tmp_path / 'checkpoints/4').rglob('d/*'), key=lambda path: path.stat().st_size)
  content = bytearray(array.read_bytes())
  content[len(content) // 2] ^= 1
  array.write_bytes(content)
  train(tiny_config(), tmp_path)
  assert [r for r in caplog.messages if 'checkpoint 4' in r and 'using checkpoint 2' in r]
  assert_same_run(tmp_path, undisturbed)


def test_a_run_that_draws_by_loss_goes_on_with_the_losses_it_has_seen(tmp_path):
  fields = {'train.timesteps': 'loss', 'train.num_steps': 12}  # 16 losses a step, at ten timesteps
  train(tiny_config(**fields), tmp_path / 'whole')
  for num_steps in (5, 12):
    train(tiny_config(**fields | {'train.num_steps': num_steps}), tmp_path / 'parts')
  config = tiny_config(**fields)
  like = jax.eval_shape(lambda: build.init_state(config, build.init_params(config)))
  states = []
  for name in ('parts', 'whole'):
    with build.checkpointer(config, tmp_path / name, read_only=True) as checkpointer:
      states.append(checkpointer.restore_latest(like))
  jax.tree.map(np.testing.assert_array_equal, *states)
  assert int(states[0].loss_history.counts.sum()) == 12 * 16
  assert losses(tmp_path / 'parts') == losses(tmp_path / 'whole')
  with pytest.raises(UserError, match=r'another config \(train.timesteps: workdir loss, config'):
    train(tiny_config(**fields | {'train.timesteps': 'lognormal'}), tmp_path / 'parts')


@pytest.fixture(scope='module')
def programs():
  """What JAX compiled since, by (event, name of the program)."""
  heard = []

  def listen(event, _, **facts):
    heard.append((event.rpartition('/')[2], facts.get('fun_name')))

  jax.monitoring.register_event_duration_secs_listener(listen)
  jax.monitoring.register_event_listener(lambda event, **_: listen(event, 0))
  return heard


STEPS = ('jit(train_step)', 'jit(scan)', 'jit(_fun)')  # the last one under a bare pmap


@pytest.mark.parametrize('change', ['cpu', 'gathers', 'dispatches', 'labels'])
def test_the_step_is_compiled_once_while_the_state_is_made(tmp_path, monkeypatch, programs, change):
  fields = {'train.num_steps': 4, 'train.checkpoint_every_steps': 4}
  if change != 'cpu':
    monkeypatch.setattr(devices, 'on_cpu', lambda: False)
  if change == 'dispatches':
    fields |= {'train.steps_per_dispatch': 2, 'train.log_every_steps': 2}
    fields |= {'train.num_steps': 5, 'data.device_limit_gib': 0.0}  # the last one by itself
  config = tiny_config(**fields)
  if change == 'labels':
    config.model.num_classes = 10
  programs.clear()
  counts, run = [], trainer.loop.run

  def counted(*args, compiling, **kwargs):
    compiling.result()
    counts.append(sum(name in STEPS for kind, name in programs if kind.startswith('backend')))
    return run(*args, compiling=compiling, **kwargs)

  monkeypatch.setattr(trainer.loop, 'run', counted)
  train(config, tmp_path)
  assert counts == [1]  # before the first step
  assert sum(name in STEPS for kind, name in programs if kind.startswith('backend')) == 1
  assert sum(name in STEPS for kind, name in programs if 'to_mlir' in kind) == 1


def test_going_on_compiles_no_program_that_was_there(tmp_path, monkeypatch, programs):
  monkeypatch.setattr(devices, 'MIN_CACHED_SECS', 0)
  jax.clear_caches()  # as a new process has none in its memory
  train(tiny_config(**{'train.num_steps': 2}), tmp_path)
  programs.clear()
  jax.clear_caches()
  train(tiny_config(**{'train.num_steps': 4}), tmp_path)
  events = [kind for kind, _ in programs]
  assert events.count('cache_hits') > 0
  assert events.count('cache_misses') == 0


def test_a_finished_run_traces_no_step(tmp_path, monkeypatch, capsys):
  train(tiny_config(**{'train.num_steps': 2}), tmp_path)
  monkeypatch.setattr(devices, 'lower_train_step', None)
  train(tiny_config(**{'train.num_steps': 2}), tmp_path)
  assert 'nothing to do: step 2' in capsys.readouterr().out


def test_what_goes_wrong_in_compiling_is_raised(tmp_path, monkeypatch):
  def lower(*_):
    def compile_step():
      raise MemoryError('of compiling')

    return compile_step

  monkeypatch.setattr(devices, 'lower_train_step', lower)
  with pytest.raises(MemoryError, match='of compiling'):
    train(tiny_config(), tmp_path)


def test_batches_gathered_on_the_devices_are_the_same(tmp_path, monkeypatch):
  train(tiny_config(), tmp_path / 'read')
  monkeypatch.setattr(build, 'device_data', lambda _, batches: devices.replicate(batches.images))
  train(tiny_config(), tmp_path / 'gathered')
  assert_same_run(tmp_path / 'gathered', tmp_path / 'read')


def test_several_steps_of_one_dispatch_are_those_of_single_ones(tmp_path, monkeypatch):
  fields = {'train.steps_per_dispatch': 2, 'train.log_every_steps': 2}
  single, on_a_cpu, stopped, at_once = (tmp_path / name for name in '1234')
  train(tiny_config(), single)
  train(tiny_config(**fields), on_a_cpu)  # where each is a dispatch
  monkeypatch.setattr(devices, 'on_cpu', lambda: False)
  train(tiny_config(**fields), at_once)
  train(tiny_config(**{'train.num_steps': 3, **fields}), stopped)  # between two multiples
  train(tiny_config(**fields), stopped)
  expected, state = final_state(single), final_state(at_once)
  for path, array in final_state(on_a_cpu).items():
    np.testing.assert_array_equal(array, expected[path], err_msg=path)
  for path, array in final_state(stopped).items():
    np.testing.assert_array_equal(array, state[path], err_msg=path)
    # XLA rounds otherwise within a loop.
    np.testing.assert_allclose(array, expected[path], rtol=1e-4, atol=1e-5, err_msg=path)
  by_step = {step: rest for step, *rest in losses(single)}
  assert losses(on_a_cpu) == [(step, *by_step[step]) for step in (2, 4, 6)]
  assert [step for step, *_ in losses(stopped)] == [2, 3, 4, 6]
  assert losses(stopped)[2:] == losses(at_once)[1:]
  for step, *rest in losses(stopped):
    np.testing.assert_allclose(rest, by_step[step], rtol=1e-4)


def test_non_finite_loss_stops_at_its_step_and_keeps_the_last_good_state(tmp_path, monkeypatch):
  train(tiny_config(**{'train.num_steps': 2}), tmp_path)
  config = tiny_config()
  bad = batch_of(config, 3)
  poison(monkeypatch, lambda images: np.array_equal(images, bad))
  with pytest.raises(NotFiniteError, match='nan at step 4'):
    train(config, tmp_path)
  assert final_state(tmp_path)['.step'] == 2


def poison(patch, is_bad):
  """Makes the loss no number for the batches that is_bad."""
  make_step = build.train_step

  def make(config, network=None):
    step = make_step(config)

    @functools.wraps(step)  # with what lowers it
    def poisoned(state, images, data, key):
      state, metrics = step(state, images, data, key)
      return state, metrics | {'loss': metrics['loss'] + (np.nan if is_bad(images) else 0)}

    return poisoned

  patch.setattr(build, 'train_step', make)


def batch_of(config, number):
  """The images of a batch, as steps take them."""
  source = build.source(config)
  with contextlib.closing(build.batches(config, source)) as batches:
    images = next(batches.iterate(number))
  return devices.split_over_devices(images)


def test_a_batch_that_is_not_finite_can_be_skipped(tmp_path, monkeypatch, capsys):
  config = tiny_config(**{'train.on_nonfinite': 'skip'})
  without = tmp_path / 'without'
  without.mkdir()
  (without / 'skipped_batches.json').write_text('[3]')
  train(config, without)
  bad = batch_of(config, 3)
  skips = tmp_path / 'skips'
  with monkeypatch.context() as patch:
    poison(patch, lambda images: np.array_equal(images, bad))
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
  with pytest.raises(UserError, match=r'skipped_batches\.json is damaged'):
    trainer.read_skipped(tmp_path)


def test_a_signal_in_a_step_that_is_not_finite_stops_the_run(tmp_path, monkeypatch, capsys):
  config = tiny_config(**{'train.on_nonfinite': 'skip'})
  counts = []

  def signalled(images):
    os.kill(os.getpid(), signal.SIGTERM)
    return True

  with monkeypatch.context() as patch:
    poison(patch, signalled)
    agreed = processes.stop_agreed
    patch.setattr(processes, 'stop_agreed', lambda *args: counts.append(args) or agreed(*args))
    train(config, tmp_path)
  assert 'stopped by SIGTERM at step 0: saved' in capsys.readouterr().out
  assert json.loads((tmp_path / 'skipped_batches.json').read_text()) == [0]
  assert final_state(tmp_path)['.step'] == 0
  assert counts == [(0, False), (1, True), (2, True)]


def test_a_run_with_another_fault_is_not_skipped_for_ever(tmp_path, monkeypatch):
  config = tiny_config(**{'train.on_nonfinite': 'skip'})
  monkeypatch.setattr(trainer, 'MAX_SKIPPED_BATCHES', 2)
  poison(monkeypatch, lambda images: True)
  with pytest.raises(NotFiniteError, match='the loss is nan at step 1'):
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

  def slowly(*args):
    time.sleep(1)
    write_manifest(*args)

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


def test_a_first_try_without_pictures_leaves_no_config(tmp_path):
  with pytest.raises(UserError, match='does not exist; give a folder of pictures'):
    train(tiny_config(**{'data.source': f'folder:{tmp_path}/typo'}), tmp_path / 'run')
  assert not (tmp_path / 'run' / 'config.json').exists()


def test_another_config_in_the_workdir_is_refused(undisturbed):
  with pytest.raises(UserError, match=r'another config \(optim.ema_decay: workdir 0.5, config 0.9'):
    train(tiny_config(**{'optim.ema_decay': 0.9}), undisturbed)


def test_nothing_is_trained_that_would_be_measured_by_no_metric(tmp_path):
  config = tiny_config(**{'eval.metrics': (), 'train.eval_every_steps': 2})
  with pytest.raises(UserError, match=r'^eval\.metrics is empty; name some of bpd, flow, fid, .*$'):
    train(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.fixture
def folder(tmp_path):
  """A folder of 20 pictures."""
  images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
  (tmp_path / 'pictures').mkdir()
  for i, image in enumerate(images):
    PIL.Image.fromarray(image).save(tmp_path / f'pictures/{i:02d}.png')
  return tmp_path / 'pictures'


def test_what_is_read_and_what_is_not_is_said_and_a_folder_may_move(folder, tmp_path, capsys):
  def begin(folder, num_steps, **fields):
    fields |= {'data.source': f'folder:{folder}', 'train.num_steps': num_steps}
    train(tiny_config(**fields), tmp_path / 'run')
    return capsys.readouterr().out

  (folder / 'notes.txt').touch()
  (folder / 'again').symlink_to('.')
  holdout = {'data.holdout': 0.4}
  out = begin(folder, 1, **holdout)
  assert '20 pictures; left out are 2: ' in out
  assert 'data.holdout=0.4: ' in out
  assert 'train.global_batch_size=16 is more than the ' in out
  assert 'not those that this run has had' not in out
  moved = folder.rename(tmp_path / 'moved')
  assert 'not those that this run has had' not in begin(moved, 2, **holdout)
  for i in range(0, 20, 2):
    (moved / f'{i:02d}.png').unlink()
  assert 'now: ' in begin(moved, 3, **holdout).partition('not those that this run has had')[2]
  assert len(losses(tmp_path / 'run')) == 3
  with pytest.raises(UserError, match=r'data\.holdout: workdir 0\.4, config None'):
    begin(moved, 4)


def test_damaged_pictures_are_named_while_the_step_is_compiled(folder, tmp_path, monkeypatch):
  for i in (3, 7):
    (folder / f'{i:02d}.png').write_bytes(b'no picture')
  monkeypatch.setattr(trainer.loop, 'run', None)  # which would wait for that
  with pytest.raises(UserError, match=r'03\.png .*07\.png .*on_damage=skip$'):
    train(tiny_config(**{'data.source': f'folder:{folder}'}), tmp_path / 'run')


def test_an_error_in_the_loss_is_few_frames_away(tmp_path, monkeypatch):
  def training_losses(*args, **kwargs):
    raise RuntimeError('in the loss')

  monkeypatch.setattr(step_module, 'training_losses', training_losses)
  with pytest.raises(RuntimeError, match='in the loss') as raised:
    train(tiny_config(), tmp_path)
  frames = traceback.extract_tb(raised.value.__traceback__)
  # The loss itself is of this file here. Before all of them comes main.main.
  inside = [
    frame.name
    for frame in frames
    if pathlib.Path(frame.filename).is_relative_to(ROOT / 'ddpm_jax')
    or frame.name == 'training_losses'
  ]
  assert (inside[0], inside[-1]) == ('run', 'training_losses')
  assert len(['main', *inside]) <= 6, inside


@pytest.mark.slow
@pytest.mark.usefixtures('unet')
def test_a_model_that_predicts_v_learns_samples_and_has_a_bound(tmp_path):
  config = tiny_config(
    **{
      'diffusion.mean_type': 'v',
      'diffusion.beta_end': 0.5,
      'train.num_steps': 40,
      'train.log_every_steps': 10,
      'train.checkpoint_every_steps': 40,
    }
  )
  source, noise = build.source(config), build.schedule(config)
  images = source.read(np.arange(len(source))) / 127.5 - 1
  of_zero = (noise.alphas_cumprod + (1 - noise.alphas_cumprod) * np.mean(images**2)).mean()
  train(config, tmp_path)
  assert metrics(tmp_path)[-1]['loss_mean'] < 0.75 * of_zero
  weights = build.restore_weights(config, tmp_path)
  for sampler in ('ancestral', 'ddim'):
    config.sample.sampler = sampler
    samples = build.drawer(config, 8).draw(weights.params, np.arange(8))
    assert samples.shape == (8, 8, 8, 1)
    assert np.abs(samples).max() <= 1 + 1e-5  # of a clipped x_0; so all are numbers
    assert (samples.std(axis=0) > 0).all()
  [bound] = build.bounds(config, ['test'], None)
  assert np.isfinite(bound.measure(tmp_path / 'eval', weights)['value'])


@pytest.mark.slow
@pytest.mark.usefixtures('unet')
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

  first, other_seed = curve('first'), curve('seed', seed=1)
  fields = {
    'plain': {},
    'bfloat16': {'model.dtype': 'bfloat16'},
    'remat and accumulation': {'model.remat': True, 'train.grad_accum_steps': 4},
  }[change]
  if change == 'plain':  # no minimal filtering, no compiler options, steps in a loop
    monkeypatch.setattr(devices, 'on_cpu', lambda: False)
    fields = {'train.steps_per_dispatch': 20}
  other = curve('other', **fields)
  assert first[-1] < first[0] / 3
  assert np.abs(other - first).max() < np.abs(other_seed - first).max()
