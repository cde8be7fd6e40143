import contextlib
import os
import pickle
import re
import zipfile

import ml_dtypes
import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.interop.torch_file import read_torch_file
from tests.fuzz import SLOW_FACTOR, count_refusals, little_memory, mutations
from tests.torch_writer import (
  ORDERED_DICT,
  call_code,
  code_of,
  name_code,
  pickle_of,
  storage_code,
  tensor_code,
  write_legacy,
  write_torch_legacy,
  write_torch_zip,
  write_zip,
)

WRITERS = pytest.mark.parametrize('write', [write_torch_zip, write_torch_legacy])
EIGHT = {'0': np.arange(8, dtype=np.float32)}
STORAGE = storage_code('FloatStorage', '0', 8)
TENSOR = tensor_code(STORAGE, 0, (8,), (1,))
SIZE = name_code('torch', 'Size')
OF_PAIRS = name_code('collections', 'OrderedDict')


def same(actual, expected):
  """Whether two nested containers are equal, types and dtypes included."""
  assert type(actual) is type(expected)
  if isinstance(expected, dict):
    assert list(actual) == list(expected)
    for key in expected:
      same(actual[key], expected[key])
  elif isinstance(expected, list | tuple):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
      same(one, other)
  elif isinstance(expected, np.ndarray):
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected, strict=True)
  else:
    assert actual == expected
  return True


@pytest.fixture
def read_code(tmp_path):
  """Returns code -> what a file has that puts code's value on the stack."""

  def read(code, contents=EIGHT):
    path = tmp_path / 'written.pth'
    write_zip(path, pickle_of(code), contents)
    return read_torch_file(path)

  return read


NUMBERS = np.random.RandomState(0).randn(4, 3, 2, 2) * 50
DTYPES = ['f8', 'f4', 'f2', 'i8', 'i4', 'i2', 'i1', 'u1', '?']
SAVED = {
  'state dict': {'conv.weight': NUMBERS, 'count': np.array(7), 'empty': np.zeros((0, 5), 'f4')},
  'dtypes': {dtype: NUMBERS.astype(dtype) for dtype in DTYPES},
  'containers': [{'a': {'b': {0: {'step': NUMBERS}}}}, (1, (2, [NUMBERS]))],
  'plain': [None, True, False, 0, 255, 256, -1, 2**40, -(2**70), 1.5, 'naïve', '\ud800'],
}


@WRITERS
@pytest.mark.parametrize('name', SAVED)
def test_what_was_saved_is_read(tmp_path, write, name):
  write(tmp_path / 'x.pth', SAVED[name])
  assert same(read_torch_file(tmp_path / 'x.pth'), SAVED[name])


@WRITERS
def test_bfloat16_becomes_float32(tmp_path, write):
  array = np.array([1.0, -3.14, 1e30, np.inf, np.nan]).astype(ml_dtypes.bfloat16)
  write(tmp_path / 'x.pth', {'x': array})
  assert same(read_torch_file(tmp_path / 'x.pth'), {'x': array.astype(np.float32)})


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_protocols(tmp_path, protocol):
  value = {'a': [1, (2,), (3, 4), (5, 6, 7), (8, 9, 10, 11)], 'b': {}, 'c': 'x' * 300, 'd': ()}
  value['again'] = value['a']
  if protocol > 2:
    value['bytes'] = b'x'
  write_zip(tmp_path / 'x.pth', pickle.dumps(value, protocol), {})
  assert same(read_torch_file(tmp_path / 'x.pth'), value)


def test_tensors_are_views(read_code):
  # A transposed one, a slice, a scalar.
  code = code_of([]) + b'('
  for offset, size, strides in [(0, (4, 2), (1, 4)), (1, (2, 2), (4, 2)), (7, (), ())]:
    code += tensor_code(STORAGE, offset, size, strides)
  transposed, sliced, scalar = read_code(code + b'e')
  whole = EIGHT['0'].reshape(2, 4)
  assert same([transposed, sliced, scalar], [whole.T, whole[:, 1::2], np.array(7, np.float32)])
  assert np.shares_memory(transposed, sliced)
  assert not transposed.flags.writeable


def test_parameters_dtypes_sizes_and_attributes(read_code):
  parameter = call_code(
    name_code('torch._utils', '_rebuild_parameter'), TENSOR, code_of(True), ORDERED_DICT
  )
  size = call_code(SIZE, code_of((2, 3)))
  metadata = ORDERED_DICT + code_of({'_metadata': {'': {'version': 1}}}) + b'b'
  code = b'(' + parameter + name_code('torch', 'bfloat16') + size + metadata + b't'
  assert same(read_code(code), (EIGHT['0'], 'torch.bfloat16', (2, 3), {}))


def test_what_python_2_wrote(read_code):
  pairs = code_of([['b', 1], ['a', 2]])
  assert same(read_code(call_code(OF_PAIRS, pairs)), {'b': 1, 'a': 2})
  assert read_code(b'U\x02\xe9x') == 'éx'


@pytest.mark.parametrize('kind', ['Float', 'BFloat16'])
def test_big_endian(tmp_path, kind):
  stored = EIGHT['0'].astype('f4' if kind == 'Float' else ml_dtypes.bfloat16).byteswap()
  code = tensor_code(storage_code(f'{kind}Storage', '0', 8), 0, (8,), (1,))
  write_zip(tmp_path / 'x', pickle_of(code), {'0': stored}, byteorder='big')
  assert same(read_torch_file(tmp_path / 'x'), EIGHT['0'])


def test_folder_in_the_zip_has_any_name_and_byteorder_may_lack(tmp_path):
  write_zip(tmp_path / 'x', pickle_of(TENSOR), EIGHT, folder='weights-2015', byteorder=None)
  assert same(read_torch_file(tmp_path / 'x'), EIGHT['0'])


def test_strides_of_single_elements_do_not_matter(read_code):
  assert read_code(tensor_code(STORAGE, 0, (1, 8), (2**70, 1))).shape == (1, 8)


def test_frames_may_have_any_length(read_code):
  assert read_code(b'\x95' + b'\xff' * 8 + b'N') is None


def test_shared_containers_stay_shared(read_code):
  outer = read_code(b']q\x00' + b'](h\x00h\x00eq\x00' * 50)
  assert outer[0] is outer[1]


# What is refused.


@pytest.fixture
def no_call(tmp_path, monkeypatch):
  """Fails the test if anything was called that a pickle here would call."""
  monkeypatch.chdir(tmp_path)
  calls = []
  monkeypatch.setattr(os, 'system', calls.append)
  yield
  assert not calls
  assert not list(tmp_path.glob('called*'))


SYSTEM = call_code(name_code('os', 'system'), code_of('touch called'))
CALLED = code_of("open('called', 'w')")
DEEP = b')' + b'\x85' * 250_000  # comparing, hashing or printing it would overflow the stack
ATTACKS = {
  'os.system': SYSTEM,
  'eval': call_code(name_code('builtins', 'eval'), CALLED),
  'eval of Python 2': call_code(name_code('__builtin__', 'eval'), CALLED),
  'getattr': call_code(name_code('builtins', 'getattr'), SIZE, code_of('x')),
  'dotted name': call_code(name_code('collections', 'OrderedDict.fromkeys'), code_of([1])),
  'name with a space': name_code('os system', 'x'),
  'name by STACK_GLOBAL': code_of('os') + code_of('system') + b'\x93' + code_of(('ls',)) + b'R',
  'STACK_GLOBAL of a call': ORDERED_DICT + code_of('system') + b'\x93',
  'in our own file': name_code('ddpm_jax.interop.torch_file', '_unpickle'),
  'a module of torch': name_code('torch.nn.modules.linear', 'Linear'),
  'call within an argument': call_code(SIZE, SYSTEM),
  'INST': b'(' + code_of('touch called') + b'ios\nsystem\n',
  'OBJ': b'(' + SIZE + code_of((1,)) + b'o',
  'NEWOBJ': SIZE + code_of((1,)) + b'\x81',
  'NEWOBJ_EX': SIZE + code_of((1,)) + code_of({}) + b'\x92',
  'EXT1': b'\x82\x01',
  'PERSID': b'Pos.system\n',
  'pop': b'NN0',
  'call of a string': call_code(code_of('os.system'), code_of('touch called')),
  'call of a storage class': call_code(name_code('torch', 'FloatStorage'), code_of(8)),
  'call of a dtype': call_code(name_code('torch', 'float32'), code_of(8)),
  'call with a list': SIZE + code_of([(1,)]) + b'R',
  'call with too few arguments': call_code(SIZE),
  'call with too many arguments': call_code(SIZE, code_of(1), code_of(2)),
  'state of a function': SIZE + code_of({'__code__': 1}) + b'b',
  'state of a class': name_code('torch', 'FloatStorage') + code_of({'__call__': 1}) + b'b',
  'state of a storage': STORAGE + code_of({'__dict__': {'key': '/etc/passwd'}}) + b'b',
  'state of a tensor': TENSOR + code_of({'size': (9,)}) + b'b',
  'slots of a function': SIZE + code_of((None, {'__defaults__': 1})) + b'b',
  'slots of a storage': STORAGE + code_of((None, {'num_elements': 9})) + b'b',
  'slots of a tensor': TENSOR + code_of((None, {'size': (9,)})) + b'b',
  'slots of an OrderedDict': ORDERED_DICT + code_of((None, {'__class__': 1})) + b'b',
  'fields of a tensor': TENSOR + code_of([None, 9]) + b'b',
  'state that is a string': ORDERED_DICT + code_of('__class__') + b'b',
  'function as a value': SIZE,
  'storage as a value': STORAGE,
  'OrderedDict of an int': call_code(OF_PAIRS, code_of(3)),
  'OrderedDict of no pairs': call_code(OF_PAIRS, code_of([[1]])),
  'OrderedDict of strings': call_code(OF_PAIRS, code_of(['ab'])),
  'OrderedDict with a tensor as key': call_code(OF_PAIRS, b'(' + TENSOR + b'N\x86t'),
  'append to a dict': ORDERED_DICT + b'Na',
  'append to a call': SIZE + b'(NNe',
  'items of a list': b']NNs',
  'odd items': b'}(Nu',
  'tuple as key': b'}' + code_of((1,)) + b'Ns',
  'empty stack': b'R',
  'no mark': b't',
  'nothing in the memo': b'h\x05',
  'list in itself': b']q\x00h\x00a',
  'dict in itself': b'}q\x00X\x01\x00\x00\x00xh\x00s',
  'nested lists': b']' * 100 + b'a' * 99,
  '2^100 lists': b']q\x00' + b'](h\x00h\x00eq\x00' * 100,
  'deep tuple': DEEP,
  'deep tensor': TENSOR + DEEP[1:],
  'deep key': b'}' + DEEP + b'Ns',
  'deep key of an OrderedDict': ORDERED_DICT + b'(' + DEEP + b'Nu',
  'deep key in pairs': call_code(OF_PAIRS, b'(' + DEEP + b'N\x86t'),
  'deep pairs': call_code(OF_PAIRS, DEEP),
  'deep persistent id': DEEP + b'Q',
  'deep end of a persistent id': STORAGE[:-2] + DEEP + b'tQ',
  'deep size': call_code(SIZE, DEEP),
  'deep size of a tensor': call_code(
    name_code('torch._utils', '_rebuild_tensor_v2'), STORAGE, code_of(0), DEEP, DEEP
  ),
  'deep name': DEEP + DEEP + b'\x93',
  'deep state': ORDERED_DICT + DEEP + b'b',
}


@pytest.mark.parametrize('attack', ATTACKS)
def test_attacks_are_refused(read_code, no_call, attack):
  with pytest.raises(UserError, match=r'written\.pth: ') as error:
    read_code(ATTACKS[attack])
  assert '\n' not in str(error.value)


# Lengths of strings, bytes and ints (some of only 4 bytes), and indices of the memo.
LENGTHS = [3, 2**27, 2**31 - 1, 2**32 - 1, 2**63 - 1]
HUGE = [
  bytes([code]) + number.to_bytes(8, 'little')
  for code in b'TXB\x8b\x8d\x8e\x96'
  for number in LENGTHS
]
HUGE += [b'Nr' + number.to_bytes(8, 'little')[:4] for number in LENGTHS]


@pytest.mark.parametrize('code', HUGE)
def test_huge_numbers_take_little_memory(read_code, code):
  with little_memory(), pytest.raises(UserError, match=r'written\.pth: '):
    read_code(code)


def test_an_ordered_dict_does_not_multiply_its_pairs(read_code):
  pairs = code_of([(i, None) for i in range(2000)]) + b'\x85q\x01'
  calls = b'(' + b'h\x00h\x01R' * 2000 + b't'  # 4 million items from 30 kB
  with little_memory(), pytest.raises(UserError, match='or of too many'):
    read_code(OF_PAIRS + b'q\x00' + pairs + calls)


REFUSED = [(r'names os\.system, which is .*; nothing was executed', SYSTEM)]
REFUSED += [
  ('refers to a storage in an unknown way', code_of(persistent_id) + b'Q')
  for persistent_id in [
    *('storage', None, (), ('storage',), ('module', None, '0', 'cpu', 8)),
    *(('storage', 'torch.FloatStorage', '0', 'cpu', 8), ('storage', None, '0', 'cpu', 8)),
  ]
]
REFUSED += [
  ('refers to a storage in an unknown way', storage_code('FloatStorage', '0', count))
  for count in (-1, 8.0, None)
]
REFUSED += [
  (
    f'data/{re.escape(key)} is missing',
    tensor_code(storage_code('FloatStorage', key, 8), 0, (), ()),
  )
  for key in ('1', '../data.pkl', '/etc/passwd', '../../../../etc/passwd', '')
]
REFUSED += [("has two storages '0'", b'(' + STORAGE + storage_code('IntStorage', '0', 8) + b't')]
REFUSED += [
  ('a tensor without storage', tensor_code(thing, 0, (8,), (1,)))
  for thing in (code_of(None), code_of('0'), ORDERED_DICT, name_code('torch', 'FloatStorage'))
]
REFUSED += [
  ('a tensor of .* is not within its 8 elements', tensor_code(STORAGE, *view))
  for view in [
    (1, (8,), (1,)),
    (0, (9,), (1,)),
    (0, (5,), (2,)),
    (0, (3, 3), (3, 1)),
    (8, (), ()),
    (2**70, (1,), (1,)),
    (0, (2**40,), (0,)),  # of one element, as torch's expand makes it
    (0, (2**20, 2**20, 2**30), (0, 0, 0)),
    (0, (0, 2**62, 2**62), (1, 1, 1)),
  ]
]
REFUSED += [
  (': a tensor (whose|of . dimensions|of 33 dimensions)', tensor_code(STORAGE, *view))
  for view in [
    (-1, (1,), (1,)),
    (0, (-1,), (1,)),
    (7, (8,), (-1,)),
    (0.0, (8,), (1,)),
    (0, [8], (1,)),
    (0, None, None),
    (0, (True,), (1,)),
    (0, ('8',), (1,)),
    (0, (8,), ()),
    (0, (1,) * 33, (1,) * 33),
  ]
]


@pytest.mark.parametrize(('message', 'code'), REFUSED, ids=[message for message, _ in REFUSED])
def test_refusals_say_what_is_wrong(read_code, message, code):
  with pytest.raises(UserError, match=message):
    read_code(code)


def test_long_names_make_no_long_messages(read_code):
  with pytest.raises(UserError, match='it names oss') as error:
    read_code(name_code('os' + 's' * 10_000, 'system'))
  assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
  'write', [write_legacy, lambda path, content, _: path.write_bytes(content)]
)
def test_legacy_files_are_refused_as_well(tmp_path, no_call, write):
  write(tmp_path / 'x.pth', pickle_of(SYSTEM), {})  # the second in the place of the magic number
  with pytest.raises(UserError, match=r'it names os\.system'):
    read_torch_file(tmp_path / 'x.pth')


@pytest.mark.parametrize('num_elements', [7, 9, 2**40, 2**70])
@pytest.mark.parametrize('write', [write_zip, write_legacy])
def test_storages_of_other_sizes(tmp_path, num_elements, write):
  storage = storage_code('FloatStorage', '0', num_elements)
  write(tmp_path / 'x', pickle_of(tensor_code(storage, 0, (7,), (1,))), EIGHT)
  with pytest.raises(UserError, match=r"storage '0' (has \d+ b|is damaged)|has more than 28"):
    read_torch_file(tmp_path / 'x')


# Damage.


@pytest.mark.parametrize('content', [b'', b'x', b'\x80\x02N.', b'PK\x03\x04', b'not a file\n' * 9])
def test_other_files(tmp_path, content):
  path = tmp_path / 'x.pth'
  path.write_bytes(content)
  with pytest.raises(UserError, match=r'x\.pth: not a PyTorch file, or damaged'):
    read_torch_file(path)


def test_no_file(tmp_path):
  for path in (tmp_path, tmp_path / 'none.pth'):
    with pytest.raises(UserError, match='no such file'):
      read_torch_file(path)


def test_other_zip_files(tmp_path):
  path = tmp_path / 'x.zip'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('a/data', b'')
  with pytest.raises(UserError, match=r'a zip file with 0 data\.pkl'):
    read_torch_file(path)


def test_compressed_members(tmp_path):
  path = tmp_path / 'x.pth'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('archive/data.pkl', pickle_of(code_of(list(range(1000)))))
    archive.writestr('filler', os.urandom(10_000))
  with pytest.raises(UserError, match=r'archive/data\.pkl is compressed'):
    read_torch_file(path)


def test_overlapping_members(tmp_path):
  # Two entries for the same bytes: with many of them a small file would have any size.
  path = tmp_path / 'x.pth'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', pickle_of(code_of('x' * 10_000)))
    archive.infolist().append(archive.infolist()[0])
    archive._didModify = True
  with pytest.raises(UserError, match='its members are larger than the file'):
    read_torch_file(path)


def test_members_of_two_sizes(tmp_path):
  path = tmp_path / 'x.pth'
  write_torch_zip(path, {'w': np.zeros(3)})
  content = bytearray(path.read_bytes())
  start = content.index(b'PK\x01\x02') + 20  # in the directory, of the compressed size
  content[start : start + 4] = (1 << 31).to_bytes(4, 'little')
  path.write_bytes(content)
  with little_memory(), pytest.raises(UserError, match=r'archive/data\.pkl is compressed'):
    read_torch_file(path)


@pytest.fixture(params=[write_torch_zip, write_torch_legacy])
def whole(tmp_path, request):
  """The bytes of a small file of either format, and what it has."""
  value = {'w': np.arange(6, dtype=np.float32).reshape(2, 3), 'n': [1, 2.5, 'x']}
  request.param(tmp_path / 'whole.pth', value)
  return (tmp_path / 'whole.pth').read_bytes(), value


def test_cut_off_anywhere(tmp_path, whole):
  content, value = whole
  path = tmp_path / 'cut.pth'
  for size in range(len(content)):
    path.write_bytes(content[:size])
    with pytest.raises(UserError, match=r'cut\.pth: '):
      read_torch_file(path)
  path.write_bytes(content)
  assert same(read_torch_file(path), value)


def assert_of_bytes(value, content):
  """That whatever a file gives is plain, and that each tensor's elements are among its bytes."""
  match value:
    case dict() | list() | tuple():
      for part in value.values() if isinstance(value, dict) else value:
        assert_of_bytes(part, content)
    case np.ndarray():
      assert value.size * value.itemsize <= len(content)
      for element in value.ravel():
        assert element.tobytes() in content
    case _:
      assert isinstance(value, str | int | float | bytes | None)


@pytest.fixture
def read_and_judge(tmp_path, whole):
  """(content -> what is read of it, the judge of that: a zip file's members have checksums)."""
  path = tmp_path / 'changed.pth'

  def read(content):
    path.write_bytes(content)
    return read_torch_file(path)

  def judge(answer):
    if whole[0].startswith(b'PK'):
      same(answer, whole[1])
    else:
      assert_of_bytes(answer, path.read_bytes())

  return read, judge


def test_any_bit_flipped(whole, read_and_judge, no_call):
  content, _ = whole
  flipped = (
    content[:i] + bytes([content[i] ^ 1 << bit]) + content[i + 1 :]
    for i in range(len(content))
    for bit in (0, 1, 3, 5, 7)
  )
  assert count_refusals(*read_and_judge, flipped, bound=contextlib.nullcontext) > len(content)


# A pickle whose tensor a change can only take from the elements of EIGHT.
PICKLED = pickle_of(
  (ORDERED_DICT + b'q\x00(' + code_of('w') + tensor_code(STORAGE, 0, (2, 4), (4, 1)) + b'u')
  + (b'}' + code_of('_metadata') + b'h\x00sb')
)


def judge_of_eight(answer):
  assert_of_bytes(answer, EIGHT['0'].tobytes())


@pytest.fixture
def read_pickle(tmp_path):
  """Returns pickle -> what the machine makes of it: the checksums are right."""
  path = tmp_path / 'x.pth'

  def read(pickled):
    write_zip(path, pickled, EIGHT)
    return read_torch_file(path)

  return read


@pytest.mark.slow
def test_any_byte_of_the_pickle_changed(read_pickle, no_call):
  codes = b'.(0abcdehijlqrstuNRQX\x80\x81\x85\x88\x8a\x8c\x93\x94\x00\xff\n'
  changed = (
    PICKLED[:i] + bytes([code]) + PICKLED[i + 1 :] for i in range(len(PICKLED)) for code in codes
  )
  refused = count_refusals(read_pickle, judge_of_eight, changed, bound=contextlib.nullcontext)
  assert refused > len(PICKLED)


@pytest.mark.parametrize('factor', [1, pytest.param(SLOW_FACTOR, marks=pytest.mark.slow)])
def test_mutations_are_refused_or_within_the_file(whole, read_and_judge, factor, no_call):
  assert count_refusals(*read_and_judge, mutations(whole[0], 300 * factor)) > 100 * factor


@pytest.mark.parametrize('factor', [1, pytest.param(SLOW_FACTOR, marks=pytest.mark.slow)])
def test_mutated_pickles_are_refused_or_within_the_file(read_pickle, factor, no_call):
  inputs = mutations(PICKLED, 400 * factor)
  assert count_refusals(read_pickle, judge_of_eight, inputs) > 200 * factor


def test_other_large_files_are_not_read(tmp_path):
  path = tmp_path / 'x.ckpt'
  with open(path, 'wb') as file:
    file.truncate(600 << 20)
  with little_memory(), pytest.raises(UserError, match=r'x\.ckpt: not a PyTorch file'):
    read_torch_file(path)


@pytest.mark.parametrize(
  ('write', 'pickled'), [(write_legacy, pickle_of(b']' * (1 << 22))), (write_zip, bytes(1 << 26))]
)
def test_long_pickles_take_little_memory(tmp_path, write, pickled):
  write(tmp_path / 'x', pickled, {})
  with little_memory(), pytest.raises(UserError, match=r'has more than|opcode'):
    read_torch_file(tmp_path / 'x')
