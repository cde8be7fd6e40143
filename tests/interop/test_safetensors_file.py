import json

import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.interop.safetensors_file import read_safetensors, write_safetensors
from tests.fuzz import SLOW_FACTOR, count_refusals, mutations


def test_round_trip(tmp_path):
  rng = np.random.default_rng(0)
  tensors = {'a.weight': rng.standard_normal((2, 3)).astype(np.float32), 'b': np.zeros((), 'f8')}
  write_safetensors(tmp_path / 'x', tensors)
  read = read_safetensors(tmp_path / 'x')
  assert sorted(read) == sorted(tensors)
  for name, array in tensors.items():
    np.testing.assert_array_equal(read[name], array, strict=True)


def tensor(start, stop, *, shape=(2,), dtype='F32'):
  return {'dtype': dtype, 'shape': shape, 'data_offsets': [start, stop]}


def write_file(path, header, num_bytes, header_bytes=None):
  header = header if isinstance(header, bytes) else json.dumps(header).encode()
  size = len(header) if header_bytes is None else header_bytes
  path.write_bytes(size.to_bytes(8, 'little') + header + bytes(num_bytes))


LIES = {
  'beyond the file': ({'a': tensor(0, 8)}, 7),
  'before its end': ({'a': tensor(8, 0)}, 8),
  'overlap': ({'a': tensor(0, 8), 'b': tensor(4, 12)}, 12),
  'the same bytes': ({'a': tensor(0, 8), 'b': tensor(0, 8)}, 8),
  'a gap': ({'a': tensor(0, 8), 'b': tensor(12, 20)}, 20),
  'bytes left over': ({'a': tensor(0, 8)}, 9),
  'negative offsets': ({'a': tensor(-8, 0)}, 8),
  'a negative size': ({'a': tensor(0, 8, shape=(-2,))}, 8),
  'another size': ({'a': tensor(0, 8, shape=(3,))}, 8),
  'a huge size': ({'a': tensor(0, 8, shape=(1 << 62, 1 << 62))}, 8),
  'a huge tensor': ({'a': tensor(0, 1 << 45, shape=(1 << 43,))}, 8),
  'a size that is no number': ({'a': tensor(0, 8, shape=('x',))}, 8),
  'an unknown type': ({'a': tensor(0, 8, dtype='F33')}, 8),
  'integers': ({'a': tensor(0, 8, dtype='I32')}, 8),
  'bytes of eight bits': ({'a': tensor(0, 8, shape=(8,), dtype='F8_E4M3')}, 8),
  'no shape': ({'a': {'dtype': 'F32', 'data_offsets': [0, 8]}}, 8),
  'a list': ([], 0),
  'no JSON': (b'{', 0),
  'no text': (b'\xff\xfe', 0),
  'nested': (b'[' * 100_000, 0),
}


@pytest.mark.parametrize('lie', LIES)
def test_headers_that_lie(tmp_path, lie):
  write_file(tmp_path / 'x.safetensors', *LIES[lie])
  with pytest.raises(UserError, match=r'x\.safetensors: not a whole safetensors file'):
    read_safetensors(tmp_path / 'x.safetensors')


@pytest.mark.parametrize('size', [0, 3, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_headers_of_other_sizes(tmp_path, size):
  write_file(tmp_path / 'x', {'a': tensor(0, 8)}, 8, header_bytes=size)
  with pytest.raises(UserError, match='not a whole safetensors file'):
    read_safetensors(tmp_path / 'x')


def test_huge_header_is_not_read(tmp_path):
  write_file(tmp_path / 'x', b'{' + b' ' * (1 << 24) + b'}', 0)
  with pytest.raises(UserError, match='its header says that it has 16777218 bytes'):
    read_safetensors(tmp_path / 'x')


def test_missing_and_empty_files(tmp_path):
  with pytest.raises(UserError, match='no such file'):
    read_safetensors(tmp_path / 'x')
  (tmp_path / 'x').write_bytes(b'')
  with pytest.raises(UserError, match='not a whole safetensors file'):
    read_safetensors(tmp_path / 'x')


@pytest.mark.parametrize('factor', [1, pytest.param(SLOW_FACTOR, marks=pytest.mark.slow)])
def test_mutations_are_refused_or_within_the_file(tmp_path, factor):
  tensors = {name: np.arange(6, dtype=np.float32).reshape(2, 3) + i for i, name in enumerate('abc')}
  path = tmp_path / 'x'
  write_safetensors(path, tensors)
  whole = path.read_bytes()
  header_bytes = 8 + int.from_bytes(whole[:8], 'little')

  def read(content):
    path.write_bytes(content)
    return read_safetensors(path)

  def judge(read):
    # There is no checksum: names, types and shapes may be others, but all bytes are the file's.
    assert sum(array.nbytes for array in read.values()) <= len(whole) + 24
    assert all(array.dtype.kind == 'f' or array.dtype.itemsize == 2 for array in read.values())

  header = (head + whole[header_bytes:] for head in mutations(whole[:header_bytes], 400 * factor))
  assert count_refusals(read, judge, header) > 200 * factor
  assert count_refusals(read, judge, mutations(whole, 200 * factor)) > 50 * factor
