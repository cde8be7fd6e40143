"""The cache of compiled programs: an entry that has changed is not there."""

import pathlib
import warnings
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

from ddpm_jax.storage.sealed_path import SCHEME, SEAL_BYTES


def sealed(folder):
  return epath.Path(f'{SCHEME}{folder}')


def test_what_was_written_is_read_and_any_change_is_noticed(tmp_path):
  entry = sealed(tmp_path) / 'a-cache'
  assert not entry.exists()
  entry.write_bytes(b'a program')
  assert (entry.exists(), entry.read_bytes()) == (True, b'a program')
  assert [path.name for path in tmp_path.iterdir()] == ['a-cache']
  file = tmp_path / 'a-cache'
  whole = file.read_bytes()
  for position in range(len(whole)):
    changed = bytearray(whole)
    changed[position] ^= 1 << position % 8
    for damaged in (bytes(changed), whole[:position], whole + whole[: position + 1]):
      file.write_bytes(damaged)
      assert not entry.exists()
      with pytest.raises(FileNotFoundError, match='a-cache is no intact entry'):
        entry.read_bytes()
  entry.write_bytes(b'a program')  # in its place
  assert entry.exists()


def test_other_programs_read_the_entries(tmp_path):
  (sealed(tmp_path) / 'a').write_bytes(zlib.compress(b'a program'))
  assert zlib.decompress((tmp_path / 'a').read_bytes()) == b'a program'


def test_to_others_the_path_is_a_local_one(tmp_path):
  path = sealed(tmp_path) / 'below'
  assert str(path) == str(tmp_path / 'below')
  path.mkdir(parents=True, exist_ok=True)
  (path / 'a-cache').write_bytes(b'1234')
  (found,) = path.glob('*-cache')
  assert type(found) is type(path)
  assert found.stat().length == 4 + SEAL_BYTES


@pytest.fixture
def cache(tmp_path):
  """Path of JAX's cache, sealed; with all programs in it."""
  fields = {
    'jax_compilation_cache_dir': f'{SCHEME}{tmp_path}',
    'jax_persistent_cache_min_compile_time_secs': 0.0,
  }
  before = {name: getattr(jax.config, name) for name in fields}
  for name, value in fields.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  yield tmp_path
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.mark.parametrize('damage', ['flipped', 'cut', 'unsealed', 'empty'])
def test_jax_compiles_a_program_anew_whose_entry_is_damaged(cache, damage):
  def run():
    jax.clear_caches()
    return np.asarray(jax.jit(lambda x: jnp.sin(x) * 3)(jnp.arange(5.0)))

  def entries():
    return {file.name: file.read_bytes() for file in pathlib.Path(cache).glob('*-cache')}

  expected = run()
  written = entries()
  assert written
  read = run()
  assert entries() == written  # each was read
  for name, content in written.items():
    changed = {
      'flipped': content[:50] + bytes([content[50] ^ 4]) + content[51:],
      'cut': content[: len(content) // 2],
      'unsealed': content[:-SEAL_BYTES],
      'empty': b'',
    }[damage]
    (cache / name).write_bytes(changed)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    anew = run()
  assert all((sealed(cache) / name).exists() for name in written)
  for values in (read, anew):
    np.testing.assert_array_equal(values, expected)
