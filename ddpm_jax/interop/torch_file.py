"""Reads the tensors of a PyTorch file (.pth, .pt, .ckpt) without PyTorch, and executes nothing.

Since torch 1.6 that is a zip file, with one pickle and a member for each storage; before, it was
some pickles in a row, followed by the storages.

A pickle is a program, which may import and call any function. Here it passes two gates: a scan
refuses the instructions that torch.save does not write, and the Unpickler looks names up in a
table of ours alone. What it makes has _Tensors, which become arrays in the end.
"""

import dataclasses
import io
import math
import os
import pathlib
import pickle
import pickletools
import sys
import zipfile

import ml_dtypes
import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.refusals import raise_refusal

_LEGACY_START = (0x1950A86A20F9469CFC6C, 1001)  # magic number and protocol
_MAX_PICKLE_BYTES = 1 << 22  # a thousand tensors take 0.2 MB
_MAX_INSTRUCTIONS = 1 << 18  # of a pickle; a thousand tensors take some 40,000
_MAX_DEPTH = 64
_MAX_DIMENSIONS = 32
_MAX_EMPTY_SHAPE = 1 << 48  # a tensor without elements can have any other sizes, within reason
_MAX_REASON = 400
_OPCODES = """
  PROTO FRAME STOP MARK MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET NONE NEWTRUE NEWFALSE
  BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINSTRING SHORT_BINSTRING
  BINBYTES SHORT_BINBYTES EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS
  EMPTY_DICT SETITEM SETITEMS GLOBAL STACK_GLOBAL BINPERSID REDUCE BUILD
""".split()  # noqa: SIM905
_PLAIN_TYPES = (str, int, float, bytes, type(None))


def read_torch_file(path: os.PathLike | str) -> object:
  """Reads what torch.save has written.

  Args:
    path: a file of either format.

  Returns:
    Most often a dict of NumPy arrays by name, a state dict; in general what was saved, of dicts,
    lists, tuples, strings, numbers and tensors. OrderedDicts are dicts; tensors and parameters are
    read-only arrays (of bfloat16: float32), which share memory where they did; dtypes are strings
    such as 'torch.float32'.

  Raises:
    UserError: no such file, not of either format, damaged, or with other things than these; in
      one line, which names the file.
    DiskError: the system fails to read it.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f'{path}: no such file')
  try:
    with open(path, 'rb') as file:
      read = _read_zip if file.read(4) == b'PK\x03\x04' else _read_legacy
      return _with_arrays(*read(file, path.stat().st_size))
  except MemoryError:
    raise
  except Exception as error:  # on damaged files zipfile and pickle raise a dozen kinds
    raise_refusal(path, error)
    reason = ' '.join(str(error).split())[:_MAX_REASON]
    if not isinstance(error, UserError):
      reason = f'not a PyTorch file, or damaged ({reason})'
    raise UserError(f'{path}: {reason}') from error


def read_state_dict(path: os.PathLike | str) -> dict[str, np.ndarray]:
  """Reads a file that has nothing but tensors, a dict of arrays by name.

  Raises:
    UserError: as read_torch_file; or it has something else.
  """
  state_dict = read_torch_file(path)
  if not isinstance(state_dict, dict) or not all(
    isinstance(name, str) and isinstance(array, np.ndarray) for name, array in state_dict.items()
  ):
    raise UserError(f'{path}: not a state dict, which has nothing but tensors')
  return state_dict


def _read_zip(file, file_bytes):
  """What the pickle has, with _Tensors for tensors; and the arrays by _Storage."""
  archive = zipfile.ZipFile(file)
  members = {info.filename: info for info in archive.infolist()}
  for name, info in members.items():
    # zipfile takes memory for either size.
    if info.compress_type or info.flag_bits & 1 or info.compress_size != info.file_size:
      raise UserError(f'{name} is compressed or encrypted, where PyTorch stores it as it is')
  # Overlapping members can be larger together than the file.
  if sum(info.file_size for info in archive.infolist()) > file_bytes:
    raise UserError('damaged (its members are larger than the file)')
  pickles = [name for name in members if name.endswith('/data.pkl')]
  if len(pickles) != 1:
    raise UserError(f'a zip file with {len(pickles)} data.pkl, where PyTorch writes one')
  folder = pickles[0].removesuffix('data.pkl')

  def read(name, max_bytes):
    info = members.get(folder + name)
    if info is None or info.file_size > max_bytes:
      raise UserError(f'{name} is missing, or has more than {max_bytes} bytes')
    return archive.read(info)

  order = read('byteorder', len('little')) if folder + 'byteorder' in members else b'little'
  if order not in (b'little', b'big'):
    raise UserError('its byteorder is neither little nor big')
  root, storages = _unpickle(io.BytesIO(read('data.pkl', _MAX_PICKLE_BYTES)))
  return root, {s: s.array(read(f'data/{s.key}', s.num_bytes), order) for s in storages.values()}


def _read_legacy(file, file_bytes):
  """The same of pickles of magic number, protocol, system, object and keys; then the storages."""
  file.seek(0)
  stream = io.BytesIO(file.read(_MAX_PICKLE_BYTES))
  (magic, _), (protocol, _), _, (root, storages), (keys, _) = [_unpickle(stream) for _ in range(5)]
  if (magic, protocol) != _LEGACY_START:
    raise UserError('not a PyTorch file')
  if not isinstance(keys, list) or sorted(keys) != sorted(storages):
    raise UserError('its storages are not those of its tensors')
  file.seek(stream.tell())
  arrays = {}
  for key in keys:
    storage = storages[key]
    count = int.from_bytes(file.read(8), 'little')
    if count != storage.num_elements or storage.num_bytes > file_bytes:
      raise UserError(f'storage {key!r} is damaged or cut off')
    arrays[storage] = storage.array(file.read(storage.num_bytes), b'little')
  return root, arrays


def _with_arrays(root, arrays):
  """A copy of the containers, with arrays in the place of _Tensors."""
  done = {}  # what is shared stays so, and is visited once

  def visit(value, depth):
    if not isinstance(value, _PLAIN_TYPES) and id(value) not in done:
      done[id(value)] = copy(value, depth)
    return done.get(id(value), value)

  def copy(value, depth):
    if depth > _MAX_DEPTH:
      raise UserError(f'it is nested over {_MAX_DEPTH} deep, or contains itself')
    if isinstance(value, dict):
      return {key: visit(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
      return type(value)(visit(inner, depth + 1) for inner in value)
    if not isinstance(value, _Tensor):
      raise UserError(f'it has a {type(value).__name__[1:]} by itself, outside a tensor')
    start = arrays[value.storage][value.offset :]
    strides = [stride * start.itemsize for stride in value.strides]
    return np.lib.stride_tricks.as_strided(start, value.size, strides, writeable=False)

  return visit(root, 0)


class _Inert:
  """Refuses BUILD, which would set its attributes."""

  def __setstate__(self, state):
    raise UserError(f'it sets the state of a {type(self).__name__[1:]}')


@dataclasses.dataclass(frozen=True)
class _Name(_Inert):
  """What a name stands for: what we call instead, or the dtype of a class of storages."""

  meaning: object

  def __call__(self, *arguments):
    return self.meaning(*arguments)


@dataclasses.dataclass(frozen=True)
class _Storage(_Inert):
  """The elements behind tensors; `key` is their place in the file."""

  dtype: np.dtype
  key: str
  num_elements: int

  @property
  def num_bytes(self):
    return self.num_elements * self.dtype.itemsize

  def array(self, content, byte_order):
    if len(content) != self.num_bytes:
      raise UserError(f'storage {self.key!r} has {len(content)} bytes, not {self.num_bytes}')
    array = np.frombuffer(content, self.dtype)
    if byte_order.decode() != sys.byteorder:
      array = array.byteswap()
    return array.astype(np.float32) if self.dtype == ml_dtypes.bfloat16 else array


@dataclasses.dataclass(frozen=True)
class _Tensor(_Inert):
  """A view of a storage, within it; offset and strides count elements."""

  storage: _Storage
  offset: int
  size: tuple
  strides: tuple


class _OrderedDict(dict):
  """An OrderedDict or dict while a pickle fills it."""

  def __setitem__(self, key, value):
    if not isinstance(key, _PLAIN_TYPES):  # hashing a deep tuple would overflow the C stack
      raise UserError(f'a dict with a {type(key).__name__} as a key')
    super().__setitem__(key, value)

  def __setstate__(self, state):
    if not isinstance(state, dict):  # the attributes of a state dict, its _metadata, are dropped
      raise UserError(f'it sets the state of a dict to a {type(state).__name__}')


def _make_tensor(storage, offset, size, strides, requires_grad=None, hooks=None, metadata=None):
  """torch._utils._rebuild_tensor_v2."""
  if not isinstance(storage, _Storage):
    raise UserError('a tensor without storage')
  for numbers in ((offset,), size, strides):
    if not isinstance(numbers, tuple) or not all(type(n) is int and n >= 0 for n in numbers):
      raise UserError('a tensor whose offset, size or strides are not natural numbers')
  if len(size) != len(strides) or len(size) > _MAX_DIMENSIONS:
    raise UserError(f'a tensor of {len(size)} dimensions with {len(strides)} strides')
  strides = tuple(stride if n > 1 else 0 for n, stride in zip(size, strides, strict=True))
  most = storage.num_elements
  if 0 in size:
    offset, strides, most = 0, (0,) * len(size), _MAX_EMPTY_SHAPE
  last = offset + sum((n - 1) * stride for n, stride in zip(size, strides, strict=True))
  # With strides of 0, few elements would make a tensor of any size.
  if last >= most or math.prod(n for n in size if n) > most:
    where = f'size {size}, strides {strides} and offset {offset}'
    raise UserError(f'a tensor of {where} is not within its {storage.num_elements} elements')
  return _Tensor(storage, offset, size, strides)


_DTYPES = {
  **{'Double': 'float64', 'Float': 'float32', 'Half': 'float16', 'BFloat16': 'bfloat16'},
  **{'Long': 'int64', 'Int': 'int32', 'Short': 'int16', 'Char': 'int8', 'Byte': 'uint8'},
  'Bool': 'bool',
}
_NAMES = {
  'torch._utils._rebuild_tensor_v2': _Name(_make_tensor),
  'torch._utils._rebuild_parameter': _Name(lambda data, requires_grad=None, hooks=None: data),
  'torch.Size': _Name(lambda numbers: numbers),
  **{f'torch.{kind}Storage': _Name(np.dtype(dtype)) for kind, dtype in _DTYPES.items()},
  **{f'torch.{dtype}': f'torch.{dtype}' for dtype in _DTYPES.values()},
}


def _unpickle(stream):
  """(what the next pickle of a stream has, with _Tensors for tensors; its _Storages by key)."""
  content, safe = stream.getbuffer(), bytearray()
  for count, (opcode, argument, start) in enumerate(pickletools.genops(stream)):
    if opcode.name not in _OPCODES:
      raise UserError(f'it has an instruction {opcode.name} that PyTorch does not write')
    if count == _MAX_INSTRUCTIONS:
      raise UserError(f'it has more than {_MAX_INSTRUCTIONS} instructions')
    if opcode.name in ('BINPUT', 'LONG_BINPUT') and argument > count:  # of an array, the memo
      raise UserError(f'it puts a value at {argument}, after {count} instructions')
    if opcode.name == 'EMPTY_DICT':
      safe += b'ccollections\nOrderedDict\n)R'  # which looks at its keys
    elif opcode.name != 'FRAME':  # whose length may have become wrong
      safe += content[start : stream.tell()]
  unpickler = _Unpickler(safe)
  return unpickler.load(), unpickler.storages


class _Unpickler(pickle.Unpickler):
  """The standard library's, without a name but those above, and with storages."""

  def __init__(self, pickled):
    super().__init__(io.BytesIO(pickled), encoding='latin-1')  # of the strings of Python 2
    self.storages = {}
    self._names = {**_NAMES, 'collections.OrderedDict': _Name(self._make_ordered_dict)}
    self._num_pairs = 0

  def find_class(self, module, name):
    name = f'{module}.{name}'
    if name not in self._names:
      raise UserError(f'it names {name}, which is no part of a tensor; nothing was executed')
    return self._names[name]

  def persistent_load(self, pid):
    """From ('storage', class, key, device, number of elements), and in old files None."""
    match pid:
      case ('storage', _Name(meaning=np.dtype() as dtype), str(key), _, int(count), *rest):
        storage = _Storage(dtype, key, count)
        if self.storages.setdefault(key, storage) != storage:
          raise UserError(f'it has two storages {key!r}')
        if count >= 0 and rest in ([], [None]):
          return storage
    raise UserError('it refers to a storage in an unknown way')

  def _make_ordered_dict(self, pairs=()):
    """Python 2 wrote a list of pairs, used once; repeated, few bytes would make large dicts."""
    made = _OrderedDict()
    for pair in pairs:
      self._num_pairs += 1
      if not isinstance(pair, (list, tuple)) or self._num_pairs > _MAX_INSTRUCTIONS:
        raise UserError('an OrderedDict of other things than pairs, or of too many')
      key, value = pair
      made[key] = value
    return made
