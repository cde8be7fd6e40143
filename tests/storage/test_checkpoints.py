"""Checkpoints: bit-exact, refused where they do not fit, never read where a byte has changed."""

import errno
import logging
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from ddpm_jax.errors import DiskError, UserError, WriteError
from ddpm_jax.storage import checkpoints, files, manifest
from ddpm_jax.storage.checkpoints import Checkpointer
from ddpm_jax.storage.manifest import MANIFEST
from ddpm_jax.training.recipe import make_optimizer
from ddpm_jax.training.state import TrainState

CONFIG = {
  'model': {'ch': 64, 'ch_mult': (1, 2), 'dropout': 0.1, 'resamp_with_conv': True},
  'diffusion': {'num_timesteps': 1000, 'beta_schedule': 'linear'},
  'data': {'image_size': 32, 'channels': 3, 'name': 'cifar10'},
  'train': {'num_steps': 10},
}


def make_state(step, width=4):
  """A state whose every bit depends on the step; with nan, -0 and a denormal among the values.

  By NumPy, so that it is the same in processes whose compilers optimise differently.
  """
  rng = np.random.default_rng(step)

  def random(shape, dtype=np.float32):
    return jnp.asarray(rng.standard_normal(shape).astype(np.float32).astype(dtype))

  kernel = 10.0 ** np.arange(-3, width - 3) * rng.standard_normal((3, width))
  kernel[0, :3] = np.nan, -0.0, 1e-40
  kernel = jnp.asarray(kernel, jnp.float32)
  params = {
    'conv': {'kernel': kernel, 'bias': jnp.full([width], step, jnp.float32)},
    'half': jnp.arange(step, step + 5, dtype=jnp.bfloat16),
  }
  tx = make_optimizer(optax.linear_schedule(0.0, 2e-4, 5000), grad_clip=1.0)
  opt_state = tx.init(params)
  opt_state = jax.tree.map(
    lambda x: random(x.shape, x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x + step,
    opt_state,
  )
  return TrainState(
    step=jnp.asarray(step, jnp.int32),
    params=params,
    ema_params=jax.tree.map(lambda p: random(p.shape, p.dtype), params),
    opt_state=opt_state,
  )


def bits(tree):
  """The leaves as (dtype, shape, bytes), so that nan equals nan and -0 differs from 0."""
  return jax.tree.map(lambda x: (str(x.dtype), x.shape, np.asarray(x).tobytes()), tree)


def assert_same_bits(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  assert bits(actual) == bits(expected)


def snapshot(directory):
  return {
    p: (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else None)
    for p in sorted(directory.rglob('*'))
  }


def save_steps(directory, steps, config=CONFIG, **kwargs):
  with Checkpointer(directory, config, **{'keep_last': 9, **kwargs}) as checkpointer:
    for step in steps:
      assert checkpointer.save(step, make_state(step))


def restore(directory, config=CONFIG, **kwargs):
  with Checkpointer(directory, config, **kwargs) as checkpointer:
    return checkpointer.restore_latest(make_state(0))


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A directory that holds the steps 10 and 20; tests copy it."""
  directory = tmp_path_factory.mktemp('saved') / 'checkpoints'
  save_steps(directory, [10, 20])
  return directory


@pytest.fixture
def copied(saved, tmp_path):
  return pathlib.Path(shutil.copytree(saved, tmp_path / 'copy'))


@pytest.fixture
def warnings(caplog):
  caplog.set_level(logging.WARNING, logger=checkpoints.logger.name)
  return lambda: [r.getMessage() for r in caplog.records if r.name == checkpoints.logger.name]


def test_round_trip_is_bit_exact(saved, warnings):
  state = make_state(20)
  shapes = jax.eval_shape(lambda: make_state(0))
  with Checkpointer(saved, CONFIG) as checkpointer:
    assert_same_bits(checkpointer.restore_latest(make_state(0)), state)
    assert_same_bits(checkpointer.restore_latest(shapes), state)
    for step in (None, 20):
      found, ema_params, checksum = checkpointer.restore_ema(shapes.params, step)
      assert found == 20
      assert_same_bits(ema_params, state.ema_params)
      assert len(checksum) == 64
    assert checkpointer.restore_ema(shapes.params, 10)[2] != checksum
  assert not warnings()


def test_nothing_saved_yet(tmp_path):
  assert restore(tmp_path / 'new') is None
  with Checkpointer(tmp_path / 'none', CONFIG, read_only=True) as reader:
    assert reader.all_steps() == []
    assert reader.restore_latest(make_state(0)) is None
    with pytest.raises(UserError, match=r'no checkpoint in .*none'):
      reader.restore_ema(make_state(0).params)
  assert not (tmp_path / 'none').exists()


def test_restored_arrays_take_the_templates_sharding(saved):
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('batch',))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), make_state(0)
  )
  with Checkpointer(saved, CONFIG, read_only=True) as reader:
    restored = reader.restore_latest(like)
    ema_params = reader.restore_ema(like.params)[1]
  assert all(x.sharding == sharding for x in jax.tree.leaves((restored, ema_params)))
  assert_same_bits(restored, make_state(20))


@pytest.mark.parametrize(
  ('keep_last', 'keep_every_steps', 'kept'),
  [(1, None, [6]), (2, None, [5, 6]), (1, 2, [2, 4, 6]), (2, 3, [3, 5, 6])],
)
def test_retention(tmp_path, keep_last, keep_every_steps, kept):
  save_steps(tmp_path, range(1, 7), keep_last=keep_last, keep_every_steps=keep_every_steps)
  assert sorted(p.name for p in tmp_path.iterdir()) == [str(step) for step in kept]
  assert_same_bits(restore(tmp_path), make_state(6))


def test_old_step_stays_until_the_new_one_has_its_manifest(tmp_path, monkeypatch):
  save_steps(tmp_path, [1], keep_last=1)
  entered, go_on, write_manifest = threading.Event(), threading.Event(), checkpoints.write_manifest

  def wait_then_write(*args):
    entered.set()
    go_on.wait(30)
    write_manifest(*args)

  monkeypatch.setattr(checkpoints, 'write_manifest', wait_then_write)
  with Checkpointer(tmp_path, CONFIG, keep_last=1) as checkpointer:
    checkpointer.restore_latest(make_state(0))
    checkpointer.save(2, make_state(2))  # returns though the manifest cannot be written yet
    assert entered.wait(30)
    with Checkpointer(tmp_path, CONFIG, read_only=True) as reader:
      assert reader.restore_ema(make_state(0).params)[0] == 1
    go_on.set()
    checkpointer.wait()
    assert checkpointer.all_steps() == [2]


def test_all_is_on_disk_before_the_manifest_and_that_before_the_name(tmp_path, monkeypatch):
  synced = []

  def fsync(descriptor):
    path = pathlib.Path(os.readlink(f'/proc/self/fd/{descriptor}')).relative_to(tmp_path)
    synced.append((path.as_posix(), (tmp_path / '3').exists()))

  with Checkpointer(tmp_path, CONFIG) as checkpointer, monkeypatch.context() as patch:
    patch.setattr(files.os, 'fsync', fsync)
    checkpointer.save(3, make_state(3))
    checkpointer.wait()
  folder = tmp_path / '3'
  below = {f'3.writing/{path.relative_to(folder)}' for path in folder.rglob('*')} | {'3.writing'}
  manifest = '3.writing/MANIFEST.json'
  assert synced[-3:] == [(manifest, False), ('3.writing', False), ('.', True)]
  assert {path for path, _ in synced[:-3]} == below - {manifest}


def test_another_model_is_refused_by_name(saved):
  other = {
    **CONFIG,
    'model': {'ch': 128, 'ch_mult': [1, 2], 'dropout': 0.1, 'attention': True},
    'data': {'image_size': 64, 'channels': 3.0, 'name': 'celeba'},
    'train': {},
  }
  with Checkpointer(saved, other, read_only=True) as reader:
    for read in (
      lambda: reader.restore_latest(make_state(0)),
      lambda: reader.restore_ema(make_state(0).params),
      lambda: reader.restore_ema(make_state(0).params, 20),
    ):
      with pytest.raises(UserError, match='of another model') as error:
        read()
      assert str(error.value) == (
        f'checkpoint 20 in {saved} is of another model: '
        'data.image_size: checkpoint 32, config 64; model.attention: checkpoint absent, '
        'config True; model.ch: checkpoint 64, config 128; '
        'model.resamp_with_conv: checkpoint True, config absent. Use its config, or another workdir'
      )


def test_fields_outside_the_model_may_change(saved):
  other = {**CONFIG, 'data': {'image_size': 32.0, 'channels': 3, 'name': 'other'}, 'optim': {}}
  assert_same_bits(restore(saved, other, read_only=True), make_state(20))


def test_parameters_are_read_for_a_computation_of_another_type(saved):
  other = {**CONFIG, 'model': {**CONFIG['model'], 'dtype': 'bfloat16'}}
  assert_same_bits(restore(saved, other, read_only=True), make_state(20))


def test_arrays_that_do_not_fit_are_refused_by_name(saved):
  def refusal(like):
    with pytest.raises(UserError, match='of another model') as error:
      Checkpointer(saved, CONFIG, read_only=True).restore_latest(like)
    return str(error.value)

  like = make_state(0)
  assert 'state.params.conv.kernel: checkpoint float32[3, 4], program float32[3, 5]' in refusal(
    make_state(0, width=5)
  )
  assert 'ema_params.half: checkpoint bfloat16[5], program float32[5]' in refusal(
    like.replace(ema_params={**like.ema_params, 'half': jnp.zeros(5)})
  )
  assert 'state.opt_state.1.0.mu.conv.bias: checkpoint float32[4], program absent' in refusal(
    like.replace(opt_state=optax.sgd(1.0).init(like.params))
  )


def truncate(path):
  os.truncate(path, path.stat().st_size - 1)


def empty(path):
  os.truncate(path, 0)


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize('damage', [truncate, empty, flip, pathlib.Path.unlink])
def test_damage_to_any_file_is_noticed(copied, damage):
  files = [p for p in sorted((copied / '20').rglob('*')) if p.is_file() and p.stat().st_size]
  assert len(files) > 15
  assert checkpoints.find_fault(copied / '20') is None
  for path in files:
    good = path.read_bytes()
    damage(path)
    assert path.name in checkpoints.find_fault(copied / '20'), path
    path.write_bytes(good)
  assert checkpoints.find_fault(copied / '20') is None


def test_every_bit_of_the_manifest_counts(copied):
  path = copied / '20' / MANIFEST
  good = path.read_bytes()
  for position in range(0, len(good), 7):
    path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
    assert checkpoints.find_fault(copied / '20') == 'MANIFEST.json is damaged', position


def biggest_array_file(folder):
  return max((folder / 'state').rglob('d/*'), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize(
  ('damage', 'words'),
  [
    (lambda folder: truncate(biggest_array_file(folder)), 'bytes, not'),
    (lambda folder: flip(biggest_array_file(folder)), 'another sha256'),
    (lambda folder: biggest_array_file(folder).unlink(), 'is missing'),
    (lambda folder: flip(folder / 'config' / 'metadata'), 'config/metadata has another sha256'),
    (lambda folder: flip(folder / MANIFEST), 'MANIFEST.json is damaged'),
    (lambda folder: (folder / MANIFEST).unlink(), 'MANIFEST.json is missing'),
    (lambda folder: (folder / 'state' / 'more').write_text(''), 'state/more is not in MANIFEST'),
    (lambda folder: (shutil.rmtree(folder), folder.mkdir()), 'MANIFEST.json is missing'),
    (
      lambda folder: (shutil.rmtree(folder), shutil.copytree(folder.parent / '10', folder)),
      'it is of step 10, not 20',
    ),
  ],
  ids=[
    'truncated',
    'flipped',
    'missing',
    'config',
    'manifest',
    'no-manifest',
    'extra',
    'empty',
    'renamed',
  ],
)
def test_damaged_step_gives_way_to_the_one_before(copied, warnings, damage, words):
  damage(copied / '20')
  with Checkpointer(copied, CONFIG) as checkpointer:
    assert_same_bits(checkpointer.restore_latest(make_state(0)), make_state(10))
    [line] = warnings()
    assert words in line
    assert '\n' not in line
    assert line.startswith(f'checkpoint 20 in {copied} is damaged (')
    assert line.endswith('): using checkpoint 10 instead; moved to 20.damaged')
    assert checkpointer.save(20, make_state(21))
  assert_same_bits(restore(copied), make_state(21))
  assert len(warnings()) == 1
  assert sorted(p.name for p in copied.iterdir()) == ['10', '20', '20.damaged']


@pytest.mark.parametrize('number', [errno.ESTALE, errno.EMFILE, errno.EIO])
def test_a_step_that_cannot_be_read_just_now_is_not_set_aside(copied, monkeypatch, number):
  def fail(path):
    raise OSError(number, os.strerror(number), str(path))

  with monkeypatch.context() as patch, Checkpointer(copied, CONFIG) as checkpointer:
    patch.setattr(manifest, '_sha256', fail)
    with pytest.raises(DiskError, match=rf'/20/.* cannot be used \({os.strerror(number)}\); mend'):
      checkpointer.restore_latest(make_state(0))
  with Checkpointer(copied, CONFIG) as checkpointer:
    assert checkpointer.restore_latest(make_state(0)).step == 20


def test_steps_that_were_exchanged_are_told_and_wrong_by_no_means_restored(copied):
  (copied / '10').rename(copied / 'other')
  (copied / '20').rename(copied / '10')
  (copied / 'other').rename(copied / '20')
  like = make_state(0)
  with Checkpointer(copied, CONFIG, read_only=True) as reader:
    for read in (
      lambda: reader.restore_latest(like),
      lambda: reader.restore_ema(like.params),
      lambda: reader.restore_ema(like.params, 20),
    ):
      with pytest.raises(UserError, match='it is of step 10, not 20'):
        read()


def test_a_step_of_another_run_is_passed_over(tmp_path, warnings):
  for name, steps in (('one', [10]), ('two', [10, 20])):
    save_steps(tmp_path / name, steps, record=tmp_path / f'{name}.json')
  shutil.copytree(tmp_path / 'two/20', tmp_path / 'one/20')
  one = {'record': tmp_path / 'one.json'}
  assert_same_bits(restore(tmp_path / 'one', **one, read_only=True), make_state(10))
  assert_same_bits(restore(tmp_path / 'one', **one), make_state(10))
  assert len(warnings()) == 2
  assert all(re.search(r'\(it is of run \w{32}, not \w{32}\)', line) for line in warnings())
  assert (tmp_path / 'one/20.damaged').is_dir()
  # Checkpoints that were put into a new workdir are of its run.
  shutil.copytree(tmp_path / 'two', tmp_path / 'three')
  assert_same_bits(restore(tmp_path / 'three', record=tmp_path / 'three.json'), make_state(20))


@pytest.mark.parametrize('is_mounted', [True, False])
def test_steps_that_were_there_and_are_gone_are_an_error(tmp_path, is_mounted):
  directory, record = tmp_path / 'run/checkpoints', tmp_path / 'run/run.json'
  record.parent.mkdir()
  for _ in range(2):  # nothing was saved yet
    assert restore(directory, record=record) is None
  save_steps(directory, [10], record=record)
  directory.rename(tmp_path / 'elsewhere')
  if is_mounted:
    directory.mkdir()
  for _ in range(2):
    with pytest.raises(UserError, match=r'checkpoints, where this run has saved some: put') as info:
      restore(directory, record=record)
    assert '\n' not in str(info.value)
  shutil.copytree(tmp_path / 'elsewhere', directory, dirs_exist_ok=True)
  assert_same_bits(restore(directory, record=record), make_state(10))


@pytest.mark.parametrize('witness', ['metrics.jsonl', 'samples/step_00000010', 'eval/step_10'])
def test_gone_steps_of_an_earlier_version_are_an_error(tmp_path, witness):
  (tmp_path / witness).parent.mkdir(exist_ok=True)
  if witness == 'metrics.jsonl':
    (tmp_path / witness).write_text('{"step": 1}\n')
  else:
    (tmp_path / witness).mkdir()
  for _ in range(2):
    with pytest.raises(UserError, match='where this run has saved some'):
      restore(tmp_path / 'checkpoints', record=tmp_path / 'run.json')
  assert not (tmp_path / 'checkpoints').exists()
  (tmp_path / 'run.json').unlink()
  (tmp_path / 'checkpoints').mkdir()  # it was to save its first step
  assert restore(tmp_path / 'checkpoints', record=tmp_path / 'run.json') is None


@pytest.mark.parametrize('text', ['', '[]', '{"run": 3}', '{"has_saved": true}'])
def test_a_damaged_record_is_named(tmp_path, text):
  (tmp_path / 'run.json').write_text(text)
  with pytest.raises(UserError, match=r'run\.json is damaged'):
    restore(tmp_path / 'checkpoints', record=tmp_path / 'run.json')


def test_what_is_not_the_name_of_a_step_is_none(copied):
  for name in ('007', '00', '\u0663', '-1', '30.writing'):
    (copied / name).mkdir()
  (copied / '40').touch()
  with Checkpointer(copied, CONFIG) as checkpointer:
    assert checkpointer.all_steps() == [10, 20]
    assert checkpointer.restore_latest(make_state(0)).step == 20


@pytest.mark.parametrize('change', [lambda x: x + 1, lambda x: x[:1], lambda x: x.astype('f8')])
def test_a_step_is_sealed_only_if_it_reads_as_it_was_written(tmp_path, monkeypatch, change):
  restore_item = ocp.StandardCheckpointHandler.restore

  def read_other(self, folder, args):
    tree = restore_item(self, folder, args=args)
    if folder.name == 'state':
      tree['params']['conv']['bias'] = change(np.asarray(tree['params']['conv']['bias']))
    return tree

  with Checkpointer(tmp_path, CONFIG) as checkpointer:
    checkpointer.save(1, make_state(1))
    checkpointer.wait()
    monkeypatch.setattr(ocp.StandardCheckpointHandler, 'restore', read_other)
    checkpointer.save(2, make_state(2))
    with pytest.raises(WriteError, match=r'checkpoint 2 in .* \(what was read back is not what'):
      checkpointer.wait()
    assert checkpointer.all_steps() == [1]


def test_a_failed_removal_is_told_as_one_and_the_new_step_is_there(tmp_path, monkeypatch):
  def fail(path):
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

  with Checkpointer(tmp_path, CONFIG, keep_last=1) as checkpointer:
    checkpointer.save(1, make_state(1))
    checkpointer.wait()
    monkeypatch.setattr(checkpoints.shutil, 'rmtree', fail)
    checkpointer.save(2, make_state(2))
    words = r'old checkpoint 1 in .* cannot be deleted \(Stale file handle\)'
    with pytest.raises(DiskError, match=words):
      checkpointer.wait()
    assert checkpointer.all_steps() == [2]
    assert not checkpointer.save(2, make_state(2))


def test_an_old_step_that_could_not_be_deleted_goes_at_the_next_start(tmp_path, monkeypatch):
  rename = pathlib.Path.rename

  def fail(path, target):
    if target.name.endswith('.deleting'):
      raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(path))
    return rename(path, target)

  with Checkpointer(tmp_path, CONFIG, keep_last=1) as checkpointer:
    checkpointer.save(1, make_state(1))
    checkpointer.wait()
    with monkeypatch.context() as patch:
      patch.setattr(pathlib.Path, 'rename', fail)
      checkpointer.save(2, make_state(2))
      with pytest.raises(DiskError, match=r'old checkpoint 1 in .* cannot be deleted'):
        checkpointer.wait()
    assert checkpointer.all_steps() == [1, 2]
  with Checkpointer(tmp_path, CONFIG, read_only=True) as reader:
    assert_same_bits(reader.restore_latest(make_state(0)), make_state(2))
  assert sorted(path.name for path in tmp_path.iterdir()) == ['1', '2']
  with Checkpointer(tmp_path, CONFIG, keep_last=1) as checkpointer:
    assert_same_bits(checkpointer.restore_latest(make_state(0)), make_state(2))
    assert checkpointer.all_steps() == [2]


def test_damaged_again(copied):
  flip(biggest_array_file(copied / '20'))
  (copied / '20.damaged').mkdir()
  assert_same_bits(restore(copied), make_state(10))
  assert sorted(p.name for p in copied.iterdir()) == ['10', '20.damaged', '20.damaged+']


def test_all_damaged_is_an_error_and_stays_one(copied):
  flip(biggest_array_file(copied / '20'))
  (copied / '10' / MANIFEST).unlink()
  for _ in range(2):
    with pytest.raises(
      UserError,
      match=r'intact: 20 \(state/.* sha256 .*\); 10 \(MANIFEST.json '
      r'is missing\)',
    ) as error:
      restore(copied)
    assert '\n' not in str(error.value)


def test_reader_changes_nothing(copied, warnings):
  flip(biggest_array_file(copied / '20'))
  for name in ('30.writing', '30.writing.orbax-checkpoint-tmp', '5.deleting'):
    (copied / name).mkdir()
  before = snapshot(copied)
  with Checkpointer(copied, CONFIG, read_only=True) as reader:
    assert_same_bits(reader.restore_latest(make_state(0)), make_state(10))
    assert reader.restore_ema(make_state(0).params)[0] == 10
    with pytest.raises(UserError, match=r'checkpoint 20 .* damaged .*sha256'):
      reader.restore_ema(make_state(0).params, 20)
    with pytest.raises(UserError, match=r'no checkpoint 15 .*\[10, 20\]'):
      reader.restore_ema(make_state(0).params, 15)
  assert snapshot(copied) == before
  assert [line.endswith('): using checkpoint 10 instead') for line in warnings()] == [True, True]


@pytest.mark.parametrize('moment', ['before', 'between', 'after'])
def test_reader_goes_on_when_the_trainer_deletes_a_step(copied, monkeypatch, warnings, moment):
  """The step vanishes before it is verified, between that and reading, or after the reading."""
  find_fault, read_step = checkpoints.find_fault, Checkpointer._read

  def vanish(now):
    if now == moment and (copied / '20').exists():
      (copied / '20').rename(copied / '20.deleting')

  def find_fault_then_vanish(*args):
    vanish('before')
    fault = find_fault(*args)
    vanish('between')
    return fault

  def read_then_vanish(self, step, items):
    restored = read_step(self, step, items)
    vanish('after')
    return restored

  monkeypatch.setattr(checkpoints, 'find_fault', find_fault_then_vanish)
  monkeypatch.setattr(Checkpointer, '_read', read_then_vanish)
  with Checkpointer(copied, CONFIG, read_only=True) as reader:
    assert_same_bits(reader.restore_latest(make_state(0)), make_state(10))
  assert not warnings()


def test_leftovers_of_a_killed_run_are_removed(copied):
  leftovers = [
    '30.writing',
    '30.writing.orbax-checkpoint-tmp',
    '30.orbax-checkpoint-tmp',
    '5.deleting',
  ]
  for name in leftovers:
    (copied / name / 'state').mkdir(parents=True)
  for name in ('20.damaged', 'samples'):
    (copied / name).mkdir()
  with Checkpointer(copied, CONFIG) as checkpointer:
    assert sorted(p.name for p in copied.iterdir()) == ['10', '20', '20.damaged', 'samples']
    assert_same_bits(checkpointer.restore_latest(make_state(0)), make_state(20))
    assert checkpointer.save(30, make_state(30))
  assert_same_bits(restore(copied), make_state(30))


def test_saving_the_same_step_again(copied):
  with Checkpointer(copied, CONFIG) as checkpointer:
    with pytest.raises(UserError, match=r'checkpoint 20 in .* from another run'):
      checkpointer.save(20, make_state(20))
    checkpointer.restore_latest(make_state(0))
    assert not checkpointer.save(20, make_state(20))
    assert checkpointer.save(30, make_state(30))
    assert not checkpointer.save(30, make_state(31))
  assert_same_bits(restore(copied), make_state(30))


def test_donation_right_after_save_is_safe(tmp_path):
  """What save() took is kept though the buffers are donated at once, to be overwritten."""
  refill = jax.jit(lambda tree: jax.tree.map(lambda x: x - x - 1, tree), donate_argnums=0)
  ramp = np.arange(2_000_000, dtype=np.float32)

  def ramps(step):  # buffers of their own, and no NumPy view that would keep them alive
    w = jnp.asarray(ramp) + step
    return TrainState(jnp.int32(step), {'w': w}, {'w': jnp.copy(w)}, {'mu': w * 2})

  with Checkpointer(tmp_path, CONFIG) as checkpointer:
    for step in (1, 2, 3):
      state = ramps(step)
      checkpointer.save(step, state)
      overwritten = jax.block_until_ready(refill(refill(state)))
      restored = checkpointer.restore_latest(overwritten)
      np.testing.assert_array_equal(restored.params['w'], ramp + step)
      np.testing.assert_array_equal(restored.ema_params['w'], ramp + step)
      np.testing.assert_array_equal(restored.opt_state['mu'], (ramp + step) * 2)


@pytest.mark.parametrize(
  ('raised', 'error'),
  [
    (OSError(28, 'No space left on device'), WriteError),
    (ValueError('RESOURCE_EXHAUSTED: No space left on device [writing]'), WriteError),  # Orbax's
    (KeyError('a defect'), RuntimeError),
  ],
  ids=str,
)
@pytest.mark.parametrize('surface', ['save', 'wait', 'close'])
def test_background_error_surfaces_once(tmp_path, monkeypatch, surface, raised, error):
  def fail(*_):
    raise raised

  checkpointer = Checkpointer(tmp_path, CONFIG)
  with monkeypatch.context() as patch:
    patch.setattr(checkpoints, 'write_manifest', fail)
    assert checkpointer.save(1, make_state(1))
    words = {WriteError: 'cannot be written .*No space left', RuntimeError: 'failed: KeyError'}
    with pytest.raises(error, match=f'checkpoint 1 in .* {words[error]}') as info:
      {
        'save': lambda: checkpointer.save(2, make_state(2)),
        'wait': checkpointer.wait,
        'close': checkpointer.close,
      }[surface]()
    assert type(info.value) is error
  assert checkpointer.all_steps() == []
  if surface != 'close':
    assert checkpointer.save(1, make_state(1))  # not mistaken for a step already saved
    checkpointer.close()
    assert_same_bits(restore(tmp_path), make_state(1))


def test_another_process_than_the_primary_leaves_the_files_alone(copied):
  flip(biggest_array_file(copied / '20'))
  (copied / '30.writing').mkdir()
  before = snapshot(copied)
  assert_same_bits(restore(copied, is_primary=False), make_state(10))
  assert snapshot(copied) == before


@pytest.mark.parametrize(
  ('kwargs', 'words'),
  [
    ({'keep_last': 0}, 'keep_last 0'),
    ({'keep_every_steps': 0}, 'keep_every_steps 0'),
    ({'directory': 'gs://bucket/run'}, 'gs://bucket/run: must be a local path'),
    ({'directory': pathlib.Path('/no/lr=[1e-3]')}, r'lr=\[1e-3\] has \[ and \] in it, which'),
    ({'directory': pathlib.Path('/no/a\\b'), 'read_only': True}, 'which the library of checkpoint'),
  ],
)
def test_wrong_arguments(tmp_path, kwargs, words):
  with pytest.raises(UserError, match=words):
    Checkpointer(**{'directory': tmp_path, 'config': CONFIG, **kwargs})


KILLED = """
import pathlib, sys, time
sys.path.insert(0, sys.argv[2])
from ddpm_jax.storage import checkpoints
from tests.storage.test_checkpoints import CONFIG, make_state
directory, moment = pathlib.Path(sys.argv[1]), sys.argv[3]
checkpointer = checkpoints.Checkpointer(directory, CONFIG, keep_last=1)
checkpointer.save(1, make_state(1))
checkpointer.wait()
if moment == 'manifest':
  def write_manifest(*_):
    print('manifest', flush=True)
    time.sleep(60)
  checkpoints.write_manifest = write_manifest
checkpointer.save(2, make_state(2))
if moment == 'arrays':
  print('arrays', flush=True)
checkpointer.wait()
"""


@pytest.mark.parametrize('moment', ['arrays', 'manifest'])
def test_killed_while_saving(tmp_path, moment):
  """SIGKILL right after save() returned, or between Orbax's commit and the manifest."""
  root = pathlib.Path(__file__).resolve().parents[2]
  child = subprocess.Popen(
    [sys.executable, '-c', KILLED, str(tmp_path), str(root), moment],
    stdout=subprocess.PIPE,
    text=True,
    cwd=root,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
  )
  try:
    while child.stdout.readline().strip() != moment:
      assert child.poll() is None
  finally:
    child.send_signal(signal.SIGKILL)
    child.wait()
  with Checkpointer(tmp_path, CONFIG) as checkpointer:
    if moment == 'manifest':
      assert checkpointer.all_steps() == [1]
    newest = checkpointer.all_steps()[-1]
    assert_same_bits(checkpointer.restore_latest(make_state(0)), make_state(newest))
    assert checkpointer.save(newest + 1, make_state(newest + 1))
  assert sorted(p.name for p in tmp_path.iterdir()) == sorted(map(str, range(1, newest + 2)))
