"""One device and four give the same numbers; the compiled step compiles once and donates."""

import functools
import os
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax import devices, processes
from ddpm_jax.diffusion import Parameterization
from ddpm_jax.errors import UserError
from ddpm_jax.nn.unet import UNet
from ddpm_jax.storage.sealed_path import SCHEME
from ddpm_jax.training.recipe import make_optimizer
from ddpm_jax.training.state import init_train_state
from ddpm_jax.training.step import make_train_step
from tests.tiny import MODEL, SCHEDULE, OneLayer, make_sample_fn, random_params

RATE = optax.constant_schedule(1e-3)
# Adam's steps do not shrink with the gradient: with the usual epsilon, gradients that are rounding
# noise, such as a key bias's, would move their parameters by the whole rate, each in its own way.
OPTIMIZER = make_optimizer(RATE, grad_clip=1.0, eps=1e-3)


def test_the_machine_has_four_devices():
  assert jax.local_device_count() == 4


@pytest.fixture(scope='module')
def params():
  """Returns the network's parameters, NumPy since steps donate, none of them all but zero."""
  return random_params(MODEL)


def make_step(axis_name, model=MODEL, **kwargs):
  return make_train_step(
    model,
    SCHEDULE,
    OPTIMIZER,
    RATE,
    parameterization=Parameterization('eps', 'fixedlarge'),
    loss_type='mse',
    ema_decay=0.9,
    random_flip=True,
    axis_name=axis_name,
    **kwargs,
  )


def batches():
  rng = np.random.default_rng(1)
  return [rng.integers(0, 256, (8, 4, 4, 1), np.uint8) for _ in range(5)]


def test_four_devices_train_as_one(params):
  key = jax.random.key(2)
  one_step = jax.jit(make_step(None))
  one, one_metrics = init_train_state(params, OPTIMIZER), []
  for images in batches():
    one, metrics = one_step(one, images, None, key)
    one_metrics.append(jax.device_get(metrics))

  traces = []

  def counted(*arguments):
    traces.append(arguments)
    return make_step(devices.AXIS)(*arguments)

  four_step = devices.compile_train_step(counted, several=False)
  key = devices.replicate(key)
  four, four_metrics = devices.replicate(init_train_state(params, OPTIMIZER)), []
  num_traces = []
  for images in batches():
    donated = four
    four, metrics = four_step(four, devices.split_over_devices(images), None, key)
    four_metrics.append(jax.device_get(metrics))
    num_traces.append(len(traces))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(donated))
  assert num_traces[0] == num_traces[-1]  # compiled in the first step, and never again

  assert int(four.step) == int(one.step) == 5
  for name in ('loss', 'grad_norm', 'learning_rate'):
    values = [[metrics[name] for metrics in run] for run in (one_metrics, four_metrics)]
    np.testing.assert_allclose(*values, rtol=2e-5, err_msg=name)
  assert len({float(metrics['loss']) for metrics in one_metrics}) == 5
  for field in ('params', 'ema_params'):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
      getattr(four, field),
      getattr(one, field),
    )
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), getattr(one, field), params)
    assert max(jax.tree.leaves(moved)) > 1e-3


@pytest.mark.parametrize('timesteps', ['stratified', 'loss', 'lognormal'])
def test_four_devices_draw_timesteps_as_one(timesteps):
  model, key = OneLayer(), jax.random.key(2)
  params = jax.device_get(model.init(key, jnp.zeros((1, 4, 4, 1)), jnp.zeros(1, jnp.int32)))
  by_loss = SCHEDULE.num_timesteps if timesteps == 'loss' else None

  def fresh():
    return init_train_state(params['params'], OPTIMIZER, timesteps_by_loss=by_loss)

  one, one_step = fresh(), jax.jit(make_step(None, model, timesteps=timesteps))
  four, four_key = devices.replicate(fresh()), devices.replicate(key)
  four_step = devices.compile_train_step(
    make_step(devices.AXIS, model, timesteps=timesteps), several=False
  )
  for images in batches():
    one, metrics = one_step(one, images, None, key)
    four, four_metrics = four_step(four, devices.split_over_devices(images), None, four_key)
    np.testing.assert_allclose(four_metrics['loss'], metrics['loss'], rtol=2e-5)
  if by_loss:
    np.testing.assert_array_equal(four.loss_history.counts, one.loss_history.counts)
    assert int(one.loss_history.counts.sum()) == 5 * 8
    np.testing.assert_allclose(four.loss_history.squares, one.loss_history.squares, rtol=1e-4)


def test_state_has_no_device_axis(params):
  replicated = devices.replicate(params)
  assert jax.tree.map(jnp.shape, replicated) == jax.tree.map(jnp.shape, params)
  for leaf in jax.tree.leaves(replicated):
    assert leaf.sharding.is_fully_replicated
    assert len(leaf.addressable_shards) == 4


def test_four_devices_sample_as_one(params):
  step = make_sample_fn()
  ids, key = np.array([5, 0, 3, 1, 2, 4, 6, 7]), jax.random.key(3)
  one = jax.jit(step)(params, np.arange(8), key)
  four = devices.compile_batch_fn(step)(
    devices.replicate(params), devices.split_over_devices(ids), devices.replicate(key)
  )
  four = devices.gather_from_devices(four)
  assert isinstance(four, np.ndarray)
  np.testing.assert_allclose(four, np.asarray(one)[ids], rtol=1e-4, atol=1e-4)


def test_gathering_undoes_splitting():
  batch = np.arange(8 * 3).reshape(8, 3)
  split = devices.split_over_devices(batch)
  assert split.shape == (4, 2, 3)
  np.testing.assert_array_equal(split[1], batch[2:4])
  np.testing.assert_array_equal(devices.gather_from_devices(split), batch)
  doubled = jax.pmap(lambda x: 2 * x)(split)
  np.testing.assert_array_equal(devices.gather_from_devices(doubled), 2 * batch)


def test_batch_sizes_divide_the_global_batch():
  assert devices.batch_sizes(128, 'train.global_batch_size') == (128, 128, 32)


@pytest.mark.parametrize(('size', 'suggested'), [(130, 128), (3, 4), (0, 4), (-4, 4)])
def test_batch_sizes_refuse_what_four_devices_cannot_share(size, suggested):
  message = rf'^train\.batch is {size}; .* the 4 devices, such as {suggested}$'
  with pytest.raises(UserError, match=message):
    devices.batch_sizes(size, 'train.batch')


@pytest.mark.parametrize(
  ('size', 'used'), [(8, 4), (6, 3), (9, 3), (14, 2), (7, 1), (1, 1), (0, 4), (-3, 4)]
)
def test_devices_that_are_too_many_for_a_batch_are_left_out(size, used):
  with devices.dividing(size):
    assert devices.in_use() == jax.devices()[:used]
    if size > 0:
      assert devices.batch_sizes(size, 'train.batch') == (size, size, size // used)
    assert devices.fitting_batch_sizes(10, 10).global_ == -(-10 // used) * used
  assert devices.in_use() == jax.devices()


def test_three_of_four_devices_sample_as_four(params):
  step = make_sample_fn()
  ids, key = np.array([5, 0, 3, 1, 2, 4]), jax.random.key(3)
  one = jax.jit(step)(params, ids, key)
  with devices.dividing(6):
    on_three = devices.replicate(params)
    assert len(jax.tree.leaves(on_three)[0].addressable_shards) == 3
    three = devices.compile_batch_fn(step)(
      on_three, devices.split_over_devices(ids), devices.replicate(key)
    )
    assert set(three.devices()) == set(jax.devices()[:3])
    three = devices.gather_from_devices(three)
  np.testing.assert_allclose(three, np.asarray(one), rtol=1e-4, atol=1e-4)


def test_processes_of_different_numbers_of_devices_are_refused(monkeypatch):
  found = [types.SimpleNamespace(process_index=i) for i in (0, 0, 1)]
  monkeypatch.setattr(devices.jax, 'devices', lambda: found)
  with pytest.raises(UserError, match=r'numbers of devices \(2 on process 0, 1 on process 1\): '):
    devices.connect()


@pytest.mark.parametrize(
  ('error', 'reason'),
  [
    (RuntimeError("Unable to initialize backend 'cuda':\n none"), 'Unable to .* none'),
    (AssertionError(), 'JAX finds none'),  # jax 0.10
  ],
)
def test_a_kind_of_device_that_is_not_there_is_told_in_one_line(error, reason, monkeypatch):
  def fail():
    raise error

  monkeypatch.setattr(devices.jax, 'devices', fail)
  monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
  with pytest.raises(UserError, match=f'^no device can be used: {reason}; JAX_PLATFORMS=cuda asks'):
    devices.connect()


def test_one_process_is_the_primary_and_waits_for_nobody():
  assert processes.is_primary()
  assert (processes.index(), processes.count()) == (0, 1)
  processes.barrier('nothing')


def test_processes_compare_what_must_be_the_same(monkeypatch):
  processes.check_same('config', {'a': 1})
  monkeypatch.setattr(processes, 'texts_of_all', lambda text: [text, text, '{"a": 1, "c": null}'])
  with pytest.raises(UserError, match=r'^processes 0 and 2 differ in their config \(b: 2 and N'):
    processes.check_same('config', {'a': 1, 'b': 2})


def test_small_programs_are_kept_too(tmp_path):
  names = 'jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs'
  before = {name: getattr(jax.config, name) for name in names}
  try:
    jax.config.update(names[1], 1.0)  # JAX's own
    devices.use_compilation_cache('off', lambda: tmp_path)
    assert getattr(jax.config, names[1]) == 1
    devices.use_compilation_cache(str(tmp_path), lambda: tmp_path)
    assert getattr(jax.config, names[1]) == devices.MIN_CACHED_SECS < 0.5
  finally:
    for name, value in before.items():
      jax.config.update(name, value)


def test_programs_are_cached_where_asked_or_not_at_all(tmp_path, monkeypatch):
  before = jax.config.jax_compilation_cache_dir
  hint = '(none with --config.compilation_cache=off)'
  (tmp_path / 'file').touch()

  def use(asked=None):
    line = devices.use_compilation_cache(asked, lambda: tmp_path / 'user')
    folder = (jax.config.jax_compilation_cache_dir or '').removeprefix(SCHEME)
    assert line.startswith(f'{folder} {hint}' if folder else 'none')
    return folder or line

  try:
    assert use() == os.environ['JAX_COMPILATION_CACHE_DIR']
    assert jax.config.jax_compilation_cache_dir.startswith(SCHEME)  # whose entries are checked
    assert use('off') == 'none'
    assert use(str(tmp_path / 'made')) == str(tmp_path / 'made')
    assert use('gs://bucket/programs') == 'gs://bucket/programs'
    assert not jax.config.jax_compilation_cache_dir.startswith(SCHEME)
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'file'))
    assert use() == f'none: {tmp_path}/file cannot be written (File exists)'
    assert use('off') == 'none'
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
    assert use() == str(tmp_path / 'user/programs')
    assert use(f'{tmp_path}/file/programs').endswith('programs cannot be written (Not a directory)')
    monkeypatch.setattr(os.path, 'expanduser', lambda path: path)
    assert use('~/programs') == (
      'none: ~/programs: this user has no home folder; give a path without ~ '
      '--config.compilation_cache names a folder'
    )
  finally:
    jax.config.update('jax_compilation_cache_dir', before)


@pytest.mark.parametrize(
  ('platform', 'capability', 'lacks'),
  [
    ('gpu', '7.0', 'card (compute capability 7.0)'),
    ('gpu', '9.0', None),
    ('gpu', '12.0', None),
    ('gpu', 'gfx942', None),
    ('gpu', None, None),
    ('tpu', None, None),
    ('cpu', None, None),
  ],
)
def test_devices_without_bfloat16_are_known(platform, capability, lacks, monkeypatch):
  device = types.SimpleNamespace(platform=platform, device_kind='card')
  if capability:
    device.compute_capability = capability
  monkeypatch.setattr(devices.jax, 'devices', lambda: [device])
  assert devices.lacks_bfloat16() == lacks
  monkeypatch.setattr(devices, 'on_cpu', lambda: platform == 'cpu')
  assert devices.fast_dtype() == ('float32' if lacks or platform == 'cpu' else 'bfloat16')


@pytest.mark.parametrize('model', [OneLayer(), pytest.param(MODEL, marks=pytest.mark.slow)])
def test_steps_of_one_dispatch_are_those_of_single_dispatches(model, params, monkeypatch):
  if model != MODEL:
    params = jax.device_get(model.init(jax.random.key(0), *map(jnp.ones, [(1, 4, 4, 1), 1])))[
      'params'
    ]
  images = np.stack(batches()[:3])
  indices = np.arange(24, dtype=np.int32).reshape(3, 8)
  step = make_step(devices.AXIS, model)

  def run(blocks, data, *, several):
    train_step = devices.compile_train_step(step, several=several)
    state = devices.replicate(init_train_state(params, OPTIMIZER))
    data, key = devices.replicate(data), devices.replicate(jax.random.key(2))
    found = []
    for block in blocks:
      count = len(block) if several else 1
      if several:  # those that do not count come first
        block = np.concatenate([block[:1]] * (3 - count) + [block])
      block = devices.split_over_devices(block, axis=int(several))
      block = devices.Steps(block, np.int32(count)) if several else block
      state, metrics = train_step(state, block, data, key)
      metrics = jax.device_get(metrics)
      found.append({name: np.atleast_1d(x)[-count:] for name, x in metrics.items()})
    return jax.device_get(state), jax.tree.map(lambda *parts: np.concatenate(parts), *found)

  of_a_cpu = run(images, None, several=False)
  monkeypatch.setattr(devices, 'on_cpu', lambda: False)
  gathered = images.reshape(-1, *images.shape[2:])
  at_once = run([indices], gathered, several=True)
  for pieces in (np.split(indices, 3), [indices[:1], indices[1:]]):
    in_pieces = run(pieces, gathered, several=True)
    jax.tree.map(np.testing.assert_array_equal, in_pieces, at_once)
  # XLA rounds otherwise within a loop.
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, of_a_cpu, at_once)


def test_a_step_on_a_cpu_takes_little_memory():
  """149 MiB, of which XLA takes 244 if loops do not say when their results are needed."""
  shape = 16, 32, 32, 1
  model = UNet(32, (1, 2), 1, (), 1, dropout=0.1, on_cpu=True)
  step = devices.compile_train_step(make_step(devices.AXIS, model), several=False)
  params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(1))['params']
  state = jax.eval_shape(lambda params: init_train_state(params, OPTIMIZER), params)
  with devices.dividing(1):
    arguments = state, jax.ShapeDtypeStruct((1, *shape), np.uint8), None, jax.random.key(0)
    lowered = step.trace(*arguments).lower()
  assert lowered.compile().memory_analysis().temp_size_in_bytes < 180 * 2**20
