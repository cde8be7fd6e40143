"""One device and four give the same numbers; the compiled step compiles once and donates."""

import functools
import os
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax import parallel, steps
from ddpm_jax.schedules import make_betas, make_schedule
from ddpm_jax.train_state import init_train_state, make_optimizer
from ddpm_jax.unet import UNet

SCHEDULE = make_schedule(make_betas('linear', 10, beta_end=0.5))
MODEL = UNet(32, (2,), 1, (), 1, dropout=0.1)
RATE = optax.constant_schedule(1e-3)
# Adam's steps do not shrink with the gradient: with the usual epsilon, gradients that are rounding
# noise, such as a key bias's, would move their parameters by the whole rate, each in its own way.
OPTIMIZER = make_optimizer(RATE, grad_clip=1.0, eps=1e-3)


def test_the_machine_has_four_devices():
  assert jax.local_device_count() == 4


@pytest.fixture(scope='module')
def params():
  """Returns the tiny network's parameters, NumPy since steps donate, none of them all but zero."""
  key = jax.random.key(0, impl='unsafe_rbg')  # fast to compile
  x = jnp.zeros((1, 4, 4, 1))
  params = jax.device_get(jax.jit(MODEL.init)(key, x, jnp.zeros(1, jnp.int32))['params'])
  leaves, treedef = jax.tree.flatten(params)
  rng = np.random.default_rng(0)
  leaves = [leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves]
  return jax.tree.unflatten(treedef, leaves)


def make_train_step(axis_name, model=MODEL, **kwargs):
  return steps.make_train_step(
    model,
    SCHEDULE,
    OPTIMIZER,
    RATE,
    mean_type='eps',
    var_type='fixedlarge',
    loss_type='mse',
    ema_decay=0.9,
    random_flip=True,
    axis_name=axis_name,
    **kwargs,
  )


class OneLayer(nn.Module):
  """A network that compiles at once."""

  @nn.compact
  def __call__(self, x, t, train=False, rows=None):
    return nn.Conv(x.shape[-1], (3, 3))(x) * (1 + t[:, None, None, None])


def batches():
  rng = np.random.default_rng(1)
  return [rng.integers(0, 256, (8, 4, 4, 1), np.uint8) for _ in range(5)]


def test_four_devices_train_as_one(params):
  key = jax.random.key(2)
  one_step = jax.jit(make_train_step(None))
  one, one_metrics = init_train_state(params, OPTIMIZER), []
  for images in batches():
    one, metrics = one_step(one, images, key)
    one_metrics.append(jax.device_get(metrics))

  traces = []

  def counted(*arguments):
    traces.append(arguments)
    return steps.make_gather_step(make_train_step(parallel.AXIS))(*arguments)

  four_step = parallel.pmap_train_steps(counted)
  key = parallel.replicate(key)
  four, four_metrics = parallel.replicate(init_train_state(params, OPTIMIZER)), []
  num_traces = []
  for images in batches():
    donated = four
    four, metrics = four_step(four, parallel.split_over_devices(images[None], axis=1), None, key)
    four_metrics.append({name: value[0] for name, value in jax.device_get(metrics).items()})
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


def test_state_has_no_device_axis(params):
  replicated = parallel.replicate(params)
  assert jax.tree.map(jnp.shape, replicated) == jax.tree.map(jnp.shape, params)
  for leaf in jax.tree.leaves(replicated):
    assert leaf.sharding.is_fully_replicated
    assert len(leaf.addressable_shards) == 4


def test_four_devices_sample_as_one(params):
  step = steps.make_sample_step(MODEL, SCHEDULE, (4, 4, 1), mean_type='eps', var_type='fixedlarge')
  ids, key = np.array([5, 0, 3, 1, 2, 4, 6, 7]), jax.random.key(3)
  one = jax.jit(step)(params, np.arange(8), key)
  four = parallel.pmap_batch_step(step)(
    parallel.replicate(params), parallel.split_over_devices(ids), parallel.replicate(key)
  )
  four = parallel.gather_from_devices(four)
  assert isinstance(four, np.ndarray)
  np.testing.assert_allclose(four, np.asarray(one)[ids], rtol=1e-4, atol=1e-4)


def test_gathering_undoes_splitting():
  batch = np.arange(8 * 3).reshape(8, 3)
  split = parallel.split_over_devices(batch)
  assert split.shape == (4, 2, 3)
  np.testing.assert_array_equal(split[1], batch[2:4])
  np.testing.assert_array_equal(parallel.gather_from_devices(split), batch)
  doubled = jax.pmap(lambda x: 2 * x)(split)
  np.testing.assert_array_equal(parallel.gather_from_devices(doubled), 2 * batch)


def test_batch_sizes_divide_the_global_batch():
  assert parallel.batch_sizes(128, 'train.global_batch_size') == (128, 128, 32)


@pytest.mark.parametrize(('size', 'suggested'), [(130, 128), (3, 4), (0, 4), (-4, 4)])
def test_batch_sizes_refuse_what_four_devices_cannot_share(size, suggested):
  message = rf'^train\.batch is {size}; .* the 4 devices, such as {suggested}$'
  with pytest.raises(ValueError, match=message):
    parallel.batch_sizes(size, 'train.batch')


def test_one_process_is_the_primary_and_waits_for_nobody():
  assert parallel.is_primary()
  assert (parallel.process_index(), parallel.process_count()) == (0, 1)
  parallel.barrier('nothing')


def test_processes_compare_what_must_be_the_same(monkeypatch):
  parallel.check_same('config', {'a': 1})
  monkeypatch.setattr(parallel, 'texts_of_all', lambda text: [text, text, '{"a": 1, "c": null}'])
  with pytest.raises(ValueError, match=r'^processes 0 and 2 differ in their config \(b: 2 and N'):
    parallel.check_same('config', {'a': 1, 'b': 2})


def test_programs_are_cached_where_asked_or_not_at_all(tmp_path, monkeypatch):
  before = jax.config.jax_compilation_cache_dir
  hint = '(none with --config.compilation_cache=off)'
  (tmp_path / 'file').touch()

  def use(wanted=None):
    line = parallel.use_compilation_cache(wanted, lambda: tmp_path / 'user')
    folder = jax.config.jax_compilation_cache_dir
    assert line.startswith(f'{folder} {hint}' if folder else 'none')
    return folder or line

  def no_home(path):
    raise RuntimeError('Could not determine home directory.')

  try:
    assert use() == before == os.environ['JAX_COMPILATION_CACHE_DIR']
    assert use('off') == 'none'
    assert use(str(tmp_path / 'made')) == str(tmp_path / 'made')
    assert use('gs://bucket/programs') == 'gs://bucket/programs'
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'file'))
    assert use() == f'none: {tmp_path}/file cannot be written (File exists)'
    assert use('off') == 'none'
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
    assert use() == str(tmp_path / 'user/programs')
    assert use(f'{tmp_path}/file/programs').endswith('programs cannot be written (Not a directory)')
    monkeypatch.setattr(parallel.pathlib.Path, 'expanduser', no_home)
    assert use('~/programs') == (
      'none: Could not determine home directory. --config.compilation_cache names a folder'
    )
  finally:
    jax.config.update('jax_compilation_cache_dir', before)


def test_gradients_of_parts_add_up_to_those_of_the_batch(params, relative_error):
  images, key = batches()[0], jax.random.key(2)
  state = init_train_state(params, OPTIMIZER)
  whole, whole_metrics = jax.jit(make_train_step(None))(state, images, key)
  accumulated, metrics = jax.jit(make_train_step(None, grad_accum_steps=4))(state, images, key)
  assert relative_error(metrics['loss'], whole_metrics['loss']) < 1e-6
  assert relative_error(metrics['grad_norm'], whole_metrics['grad_norm']) < 1e-5
  for ours, theirs in zip(
    jax.tree.leaves(accumulated.params), jax.tree.leaves(whole.params), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


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
  monkeypatch.setattr(parallel.jax, 'devices', lambda: [device])
  assert parallel.lacks_bfloat16() == lacks


@pytest.mark.parametrize('model', [OneLayer(), pytest.param(MODEL, marks=pytest.mark.slow)])
def test_steps_of_one_dispatch_are_those_of_single_dispatches(model, params, monkeypatch):
  if model != MODEL:
    params = jax.device_get(model.init(jax.random.key(0), *map(jnp.ones, [(1, 4, 4, 1), 1])))[
      'params'
    ]
  images = np.stack(batches()[:3])
  indices = np.arange(24, dtype=np.int32).reshape(3, 8)
  step = steps.make_gather_step(make_train_step(parallel.AXIS, model))

  def run(blocks, data):
    train_steps = parallel.pmap_train_steps(step)
    state = parallel.replicate(init_train_state(params, OPTIMIZER))
    data, key = parallel.replicate(data), parallel.replicate(jax.random.key(2))
    found = []
    for block in blocks:
      state, metrics = train_steps(state, parallel.split_over_devices(block, axis=1), data, key)
      found.append({name: np.stack(value) for name, value in jax.device_get(metrics).items()})
    return jax.device_get(state), jax.tree.map(lambda *parts: np.concatenate(parts), *found)

  of_a_cpu = run([images], None)
  monkeypatch.setattr(parallel, 'on_cpu', lambda: False)
  gathered = images.reshape(-1, *images.shape[2:])
  at_once = run([indices], gathered)
  jax.tree.map(np.testing.assert_array_equal, run(np.split(indices, 3), gathered), at_once)
  # XLA rounds otherwise within a loop.
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, of_a_cpu, at_once)
