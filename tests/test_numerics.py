"""Settings from outside do not change numbers, or are known by name."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import devices, numerics
from ddpm_jax.config import build, checks
from tests.tiny import tiny_config

OTHERS = {  # settings that a user's program may have, for a block of code
  'jax_enable_x64': True,
  'jax_threefry_partitionable': False,
  'jax_default_prng_impl': 'rbg',
  'jax_numpy_dtype_promotion': 'strict',
}


@contextlib.contextmanager
def settings(**values):
  """JAX's settings, for a block of code."""
  before = {name: getattr(jax.config, name) for name in values}
  try:
    for name, value in values.items():
      jax.config.update(name, value)
    yield
  finally:
    for name, value in before.items():
      jax.config.update(name, value)


def now():
  return {name: getattr(jax.config, name) for name in OTHERS}


def test_this_jax_has_the_settings_that_are_pinned():
  """Most of them: some are of other versions."""
  assert sum(hasattr(jax.config, name) for name in numerics.PINNED) >= 9
  assert OTHERS.keys() <= numerics.PINNED.keys()


def test_nothing_is_set_aside_where_nothing_was_set():
  assert numerics.pin() is None


def test_a_program_sets_the_settings_aside_and_says_which():
  with settings(jax_enable_x64=True, jax_random_seed_offset=7):
    assert numerics.pin() == (
      'set aside: JAX_ENABLE_X64=True, JAX_RANDOM_SEED_OFFSET=7; numbers do not go by the '
      'environment'
    )
    assert not jax.config.jax_enable_x64
    assert jax.config.jax_random_seed_offset == 0


def test_what_ends_at_a_number_that_is_not_finite_is_set_aside_by_a_program_alone():
  with settings(jax_debug_nans=True):
    with numerics.pinned():
      assert jax.config.jax_debug_nans
      assert numerics.arithmetic({}) == {}
    assert numerics.pin().startswith('set aside: JAX_DEBUG_NANS=True;')
    assert not jax.config.jax_debug_nans


def test_a_library_leaves_the_settings_as_they_were():
  with settings(**OTHERS):
    with numerics.pinned():
      assert now() == {name: numerics.PINNED[name] for name in OTHERS}
    assert now() == OTHERS


def draw(keys):
  """As much of the random numbers as the program draws, and some arithmetic."""
  noise = jax.vmap(lambda key: jax.random.normal(key, (5, 3)))(keys)
  steps = jax.vmap(lambda key: jax.random.randint(key, (), 0, 1000))(keys)
  return noise * np.int32(2) + steps[:, None, None]  # `strict` forbids it


def draw_of_seed(seed):
  ids = devices.split_over_devices(np.arange(8, dtype=np.int32))
  step = devices.compile_batch_fn(
    lambda ids, key: draw(jax.vmap(jax.random.fold_in, (None, 0))(key, ids)), in_axes=(0, None)
  )
  key = devices.replicate(build.key(seed, 'sample'))
  return devices.gather_from_devices(step(ids, key))


def test_numbers_are_the_same_under_any_settings():
  expected = draw_of_seed(3)
  assert expected.dtype == np.float32
  with settings(**OTHERS, jax_random_seed_offset=7):
    found = draw_of_seed(3)
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('seed', [0, 1, 2**31 - 1, 2**31, 2**32 - 1])
def test_keys_are_those_of_jax(seed):
  root = jax.random.fold_in(jax.random.key(seed, impl='threefry2x32'), 2)
  found = build.key(seed, 'sample')
  np.testing.assert_array_equal(jax.random.key_data(found), jax.random.key_data(root))


FAST = {'XLA_FLAGS: xla_cpu_enable_fast_math': 'true'}


@pytest.mark.parametrize(
  ('environ', 'facts'),
  [
    ({}, {}),
    ({'XLA_FLAGS': '--xla_force_host_platform_device_count=8 --xla_dump_to=/tmp/x'}, {}),
    ({'XLA_FLAGS': '--xla_dump_to=/tmp/fast_math --xla_cpu_enable_fast_math=true'}, FAST),
    ({'XLA_FLAGS': ' --xla_cpu_enable_fast_math'}, FAST),
    (
      {'XLA_FLAGS': '--xla_gpu_ftz=true --xla_allow_excess_precision=false'},
      {'XLA_FLAGS: xla_gpu_ftz': 'true', 'XLA_FLAGS: xla_allow_excess_precision': 'false'},
    ),
    (
      {'LIBTPU_INIT_ARGS': '--xla_jf_bf16_something=1'},
      {'LIBTPU_INIT_ARGS: xla_jf_bf16_something': '1'},
    ),
    ({'NVIDIA_TF32_OVERRIDE': '0'}, {'NVIDIA_TF32_OVERRIDE': '0'}),
    ({'NVIDIA_TF32_OVERRIDE': ''}, {}),
  ],
)
def test_what_chooses_an_arithmetic_is_known_by_name(environ, facts):
  assert numerics.arithmetic(environ) == facts


def test_flags_in_a_file_are_read(tmp_path):
  file = tmp_path / 'flags'
  file.write_text('--xla_cpu_enable_fast_math=true\n--xla_dump_to=/tmp/x\n')
  assert numerics.arithmetic({'XLA_FLAGS': str(file)}) == FAST


def test_the_precision_of_products_is_a_choice():
  with jax.default_matmul_precision('highest'), numerics.pinned():
    assert numerics.arithmetic({}) == {'JAX_DEFAULT_MATMUL_PRECISION': 'highest'}


def test_results_of_another_arithmetic_are_other_results(monkeypatch):
  usual = build.samples_identity(tiny_config())
  assert usual.dtype == 'float32'
  monkeypatch.setenv('NVIDIA_TF32_OVERRIDE', '0')
  other = build.samples_identity(tiny_config())
  assert other.dtype == 'float32, NVIDIA_TF32_OVERRIDE=0'
  assert other.key() != usual.key()


def test_processes_of_another_arithmetic_differ(monkeypatch):
  usual = checks._shared_fields(tiny_config())
  monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_enable_fast_math=true')
  assert checks._shared_fields(tiny_config()) == usual | FAST


def test_a_setting_that_no_block_can_change_is_known_by_name():
  with settings(jax_random_seed_offset=7), numerics.pinned():
    assert numerics.arithmetic({}) == {'JAX_RANDOM_SEED_OFFSET': 7}
  assert jnp.zeros(1).dtype == jnp.float32
