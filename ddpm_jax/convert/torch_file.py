"""Reads the tensors of a PyTorch file (.pth, .pt, .ckpt) without PyTorch, and executes nothing.

Two formats: of torch >= 1.6 a zip file, with one pickle and a member for each storage; before it
some pickles in a row, followed by the storages.

A pickle is a program for a stack machine, which may import and call any function. The machine here
has only the instructions that torch.save needs, and looks no name up: either it is in a table
below, with what we do instead, or the file is refused.
"""

import dataclasses
import io
import math
import pathlib
import pickletools
import struct
import zipfile

import numpy as np

_ZIP_MAGIC = b'PK\x03\x04'
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_MAX_PICKLE_BYTES = 1 << 22  # a thousand tensors take 0.2 MB
_MAX_INSTRUCTIONS = 1 << 18  # of a pickle; a thousand tensors take some 40,000
_MAX_DEPTH = 64
_MAX_DIMENSIONS = 32
_MAX_EMPTY_SHAPE = 1 << 48  # a tensor without elements can have any other sizes, within reason
_MAX_REASON = 400
# What zipfile raises on damaged files, besides ValueError.
_ZIP_ERRORS = (
  zipfile.BadZipFile,
  EOFError,
  NotImplementedError,
  OSError,
  OverflowError,
  RuntimeError,
  struct.error,
)

_STORAGES = {
  'torch.DoubleStorage': 'float64',
  'torch.FloatStorage': 'float32',
  'torch.HalfStorage': 'float16',
  'torch.BFloat16Storage': 'bfloat16',
  'torch.LongStorage': 'int64',
  'torch.IntStorage': 'int32',
  'torch.ShortStorage': 'int16',
  'torch.CharStorage': 'int8',
  'torch.ByteStorage': 'uint8',
  'torch.BoolStorage': 'bool',
}
_DTYPES = frozenset(f'torch.{name}' for name in _STORAGES.values())

_CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
_EMPTY = {'EMPTY_LIST': list, 'EMPTY_TUPLE': tuple, 'EMPTY_DICT': dict}
_PLAIN_TYPES = (str, int, float, bytes, type(None))


def read_torch_file(path):
  """Reads what torch.save has written.

  Args:
    path: a file of either format.

  Returns:
    Most often a dict of NumPy arrays by name, a state dict; in general what was saved, of dicts,
    lists, tuples, strings, numbers and tensors. OrderedDicts are dicts; tensors and parameters are
    read-only arrays (of bfloat16: float32), which share memory where they did; dtypes are strings
    such as 'torch.float32'.

  Raises:
    ValueError: no such file, not of either format, damaged, or with other things than these; in
      one line, which names the file.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(f'{path}: no such file')
  try:
    with open(path, 'rb') as file:
      is_zip = file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
    return _read_zip(path) if is_zip else _read_legacy(path)
  except (ValueError, OSError) as error:
    reason = ' '.join(str(error).split())
    raise ValueError(f'{path}: {reason[:_MAX_REASON]}') from error


def read_state_dict(path):
  """Reads a file that has nothing but tensors, a dict of arrays by name.

  Raises:
    ValueError: as read_torch_file; or it has something else.
  """
  state_dict = read_torch_file(path)
  if not isinstance(state_dict, dict) or not all(
    isinstance(name, str) and isinstance(array, np.ndarray) for name, array in state_dict.items()
  ):
    raise ValueError(f'{path}: not a state dict, which has nothing but tensors')
  return state_dict


def _read_zip(path):
  try:
    with zipfile.ZipFile(path) as archive:
      return _read_archive(archive, path.stat().st_size)
  except _ZIP_ERRORS as error:
    raise ValueError(f'a damaged zip file ({error})') from error


def _read_archive(archive, file_bytes):
  members = {info.filename: info for info in archive.infolist()}
  for name, info in members.items():
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
      raise ValueError(f'{name} is compressed or encrypted, where PyTorch stores it as it is')
    if info.compress_size != info.file_size:  # zipfile takes memory for either
      raise ValueError(f'a damaged zip file (of two sizes of {name})')
  # Overlapping members can be larger together than the file.
  if sum(info.file_size for info in archive.infolist()) > file_bytes:
    raise ValueError('a damaged zip file (its members are larger than the file)')
  pickles = [name for name in members if name.endswith('/data.pkl')]
  if len(pickles) != 1:
    raise ValueError(f'a zip file with {len(pickles)} data.pkl, where PyTorch writes one')
  folder = pickles[0].removesuffix('data.pkl')

  def read(name, max_bytes):
    if folder + name not in members:
      raise ValueError(f'{name} is missing')
    if members[folder + name].file_size > max_bytes:
      raise ValueError(f'{name} has more than {max_bytes} bytes')
    return archive.read(members[folder + name])

  order = read('byteorder', len('little')) if folder + 'byteorder' in members else b'little'
  if order not in (b'little', b'big'):
    raise ValueError('its byteorder is neither little nor big')

  def read_elements(storage):
    content = read(f'data/{storage.key}', storage.num_bytes)
    if len(content) != storage.num_bytes:
      raise ValueError(
        f'storage {storage.key!r} has {len(content)} bytes, and should have {storage.num_bytes}'
      )
    return storage.elements(content, '<' if order == b'little' else '>')

  pickled = read('data.pkl', _MAX_PICKLE_BYTES)
  return _with_arrays(_unpickle(io.BytesIO(pickled), {}), read_elements)


def _read_legacy(path):
  """Pickles of magic number, protocol, system, object and storage keys; then the storages."""
  with open(path, 'rb') as file:
    return _read_pickles_and_storages(file, path.stat().st_size)


def _read_pickles_and_storages(file, file_bytes):
  stream = io.BytesIO(file.read(_MAX_PICKLE_BYTES))
  try:
    magic = _unpickle(stream, {})
  except ValueError:
    magic = None
  if magic != _LEGACY_MAGIC:
    raise ValueError('not a PyTorch file')
  if _unpickle(stream, {}) != _LEGACY_PROTOCOL:
    raise ValueError(f'not of protocol {_LEGACY_PROTOCOL}')
  _unpickle(stream, {})  # the system's sizes; whatever they are, storages are little-endian
  storages = {}
  root = _unpickle(stream, storages)
  keys = _unpickle(stream, {})
  starts = _legacy_starts(keys, storages, file, file_bytes, stream.tell())

  def read_elements(storage):
    file.seek(starts[storage.key])
    return storage.elements(file.read(storage.num_bytes), '<')

  return _with_arrays(root, read_elements)


def _legacy_starts(keys, storages, file, file_bytes, position):
  """{key: where its elements start in the file}; before them stands their number, an int64."""
  if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
    raise ValueError('its list of storages is damaged')
  if sorted(keys) != sorted(storages):
    raise ValueError('its storages are not those of its tensors')
  starts = {}
  for key in keys:
    storage = storages[key]
    starts[key] = position + 8
    file.seek(position)
    count = int.from_bytes(file.read(8), 'little')
    position = starts[key] + storage.num_bytes
    if count != storage.num_elements or position > file_bytes:
      raise ValueError(f'storage {key!r} is damaged or cut off')
  return starts


def _with_arrays(root, read_elements):
  """A copy of the containers, with arrays in the place of _Tensors."""
  elements = {}
  done = {}  # what is shared stays so, and is visited once

  def copy(value, depth):
    if depth > _MAX_DEPTH:
      raise ValueError(f'it is nested over {_MAX_DEPTH} deep, or contains itself')
    if isinstance(value, dict):
      return {key: visit(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
      return type(value)(visit(inner, depth + 1) for inner in value)
    if isinstance(value, _Tensor):
      key = value.storage.key
      if key not in elements:
        elements[key] = read_elements(value.storage)
      return value.array(elements[key])
    raise ValueError(f'it has a {type(value).__name__[1:]} by itself, outside a tensor')

  def visit(value, depth):
    if isinstance(value, _PLAIN_TYPES):
      return value
    if id(value) not in done:
      done[id(value)] = copy(value, depth)
    return done[id(value)]

  return visit(root, 0)


@dataclasses.dataclass(frozen=True, eq=False)
class _Name:
  """A name that stands in the table of calls or of storages."""

  name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
  """The elements behind tensors: `kind` is a name in the table, `key` their place in the file."""

  kind: str
  key: str
  num_elements: int

  @property
  def dtype(self):
    name = _STORAGES[self.kind]
    return np.dtype('uint16' if name == 'bfloat16' else name)

  @property
  def num_bytes(self):
    return self.num_elements * self.dtype.itemsize

  def elements(self, content, byte_order):
    """[num_elements], of bytes [num_bytes]; byte_order is '<' or '>'."""
    stored = np.frombuffer(content, self.dtype.newbyteorder(byte_order), self.num_elements)
    stored = stored.astype(self.dtype, copy=False)
    if _STORAGES[self.kind] == 'bfloat16':  # the upper half of a float32
      return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored


@dataclasses.dataclass(frozen=True, eq=False)
class _Tensor:
  """A view of a storage, within it; offset and strides count elements."""

  storage: _Storage
  offset: int
  size: tuple
  strides: tuple

  def array(self, elements):
    strides = [stride * elements.itemsize for stride in self.strides]
    elements = elements[self.offset :]
    return np.lib.stride_tricks.as_strided(elements, self.size, strides, writeable=False)


def _make_storage(persistent_id):
  """From ('storage', class, key, device, number of elements), and in old files None."""
  match persistent_id:
    case ('storage', _Name(name=kind), str(key), _, int(count), *rest) if kind in _STORAGES:
      if count >= 0 and rest in ([], [None]):
        return _Storage(kind, key, count)
  raise ValueError('it refers to a storage in an unknown way')


def _make_tensor(storage, offset, size, strides, *_):
  """torch._utils._rebuild_tensor_v2, whose other arguments are about gradients."""
  if not isinstance(storage, _Storage):
    raise ValueError('a tensor without storage')
  for numbers in ((offset,), size, strides):
    if not isinstance(numbers, tuple) or not all(type(n) is int and n >= 0 for n in numbers):
      raise ValueError('a tensor whose offset, size or strides are not natural numbers')
  if len(size) != len(strides) or len(size) > _MAX_DIMENSIONS:
    raise ValueError(f'a tensor of {len(size)} dimensions with {len(strides)} strides')
  strides = tuple(stride if n > 1 else 0 for n, stride in zip(size, strides, strict=True))
  if 0 in size:
    if math.prod(n for n in size if n) > _MAX_EMPTY_SHAPE:
      raise ValueError(f'an empty tensor of size {size}')
    return _Tensor(storage, 0, size, (0,) * len(size))
  last = offset + sum((n - 1) * stride for n, stride in zip(size, strides, strict=True))
  # With strides of 0, few elements would make a tensor of any size.
  if last >= storage.num_elements or math.prod(size) > storage.num_elements:
    raise ValueError(
      f'a tensor of size {size}, strides {strides} and offset {offset} is not within its storage '
      f'of {storage.num_elements} elements'
    )
  return _Tensor(storage, offset, size, strides)


def _make_parameter(data, *_):
  """torch._utils._rebuild_parameter, whose other arguments are about gradients."""
  return data


def _make_size(numbers):
  """torch.Size."""
  return numbers


def _make_ordered_dict(pairs=()):
  """collections.OrderedDict."""
  if not isinstance(pairs, (list, tuple)):
    raise ValueError(f'an OrderedDict of a {type(pairs).__name__}')
  items = []
  for pair in pairs:
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
      raise ValueError('an OrderedDict of things that are no pairs')
    items.extend(pair)
  return _set_items({}, items)


# What may be called: what we call instead, its least and its largest number of arguments.
_CALLS = {
  'collections.OrderedDict': (_make_ordered_dict, 0, 1),
  'torch._utils._rebuild_tensor_v2': (_make_tensor, 4, 7),
  'torch._utils._rebuild_parameter': (_make_parameter, 1, 3),
  'torch.Size': (_make_size, 1, 1),
}


def _look_up(module, name):
  if not isinstance(module, str) or not isinstance(name, str):
    raise ValueError('it names something without a name')
  name = f'{module}.{name}'
  if name in _DTYPES:
    return name
  if name in _CALLS or name in _STORAGES:
    return _Name(name)
  raise ValueError(f'it names {name}, which is no part of a tensor')


def _call(function, arguments):
  if not isinstance(function, _Name) or function.name not in _CALLS:
    raise ValueError(f'it calls a {type(function).__name__}')
  make, least, most = _CALLS[function.name]
  if not isinstance(arguments, tuple) or not least <= len(arguments) <= most:
    raise ValueError(f'it calls {function.name} with other arguments than PyTorch does')
  return make(*arguments)


def _set_items(target, items):
  """Sets key, value, key, value, ... in a dict; returns it."""
  if not isinstance(target, dict) or len(items) % 2:
    raise ValueError('it sets items where it cannot')
  for key, value in zip(items[::2], items[1::2], strict=True):
    if not isinstance(key, _PLAIN_TYPES):  # hashing a deep tuple would overflow the C stack
      raise ValueError(f'a dict with a {type(key).__name__} as a key')
    target[key] = value
  return target


def _unpickle(stream, storages):
  """The next pickle of a stream, with _Tensors for tensors; adds to {key: _Storage}."""
  machine = _Machine(storages)
  try:
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
      if count == _MAX_INSTRUCTIONS:
        raise ValueError(f'it has more than {_MAX_INSTRUCTIONS} instructions')
      machine.step(opcode.name, argument)
    return machine.stack.pop()
  except LookupError as error:
    raise ValueError('a damaged pickle: it takes what it has not put') from error
  except ValueError as error:
    raise ValueError(f'refused, nothing in it was executed: {error}') from error


class _Machine:
  """The pickle machine: its stack, the stacks below open marks, and its memo."""

  def __init__(self, storages):
    self.stack = []
    self.below = []
    self.memo = {}
    self.storages = storages

  def step(self, opcode, argument):
    """Does one instruction; LookupError if the stack or the memo lacks what it takes."""
    stack = self.stack
    match opcode:
      case 'PROTO' | 'FRAME' | 'STOP':
        pass
      case 'MARK':
        self.below.append(stack)
        self.stack = []
      case 'PUT' | 'BINPUT' | 'LONG_BINPUT':
        self.memo[argument] = stack[-1]
      case 'MEMOIZE':
        self.memo[len(self.memo)] = stack[-1]
      case 'GET' | 'BINGET' | 'LONG_BINGET':
        stack.append(self.memo[argument])
      case 'TUPLE1' | 'TUPLE2' | 'TUPLE3':
        items = [stack.pop() for _ in range(int(opcode[-1]))]
        stack.append(tuple(reversed(items)))
      case 'TUPLE' | 'LIST' | 'DICT' | 'APPENDS' | 'SETITEMS':
        items = self.pop_to_mark()
        self.collect(opcode, items)
      case 'APPEND':
        self.collect('APPENDS', [stack.pop()])
      case 'SETITEM':
        self.collect('SETITEMS', [stack.pop(-2), stack.pop()])
      case 'GLOBAL':
        stack.append(_look_up(*argument.split(' ', 1)))
      case 'STACK_GLOBAL':
        name, module = stack.pop(), stack.pop()
        stack.append(_look_up(module, name))
      case 'BINPERSID':
        stack.append(self.store(_make_storage(stack.pop())))
      case 'REDUCE':
        arguments, function = stack.pop(), stack.pop()
        stack.append(_call(function, arguments))
      case 'BUILD':
        self.drop_state(stack.pop())
      case 'BININT' | 'BININT1' | 'BININT2' | 'LONG1' | 'LONG4' | 'BINFLOAT':
        stack.append(argument)
      case 'BINUNICODE' | 'SHORT_BINUNICODE' | 'BINUNICODE8' | 'BINSTRING' | 'SHORT_BINSTRING':
        stack.append(argument)
      case 'BINBYTES' | 'SHORT_BINBYTES':
        stack.append(argument)
      case _ if opcode in _CONSTANTS:
        stack.append(_CONSTANTS[opcode])
      case _ if opcode in _EMPTY:
        stack.append(_EMPTY[opcode]())
      case _:
        raise ValueError(f'it has an instruction {opcode} that PyTorch does not write')

  def pop_to_mark(self):
    """Takes what was pushed since the last mark."""
    below = self.below.pop()
    items, self.stack = self.stack, below
    return items

  def collect(self, opcode, items):
    """Makes a container of the items, or adds them to the one on top."""
    match opcode:
      case 'TUPLE':
        self.stack.append(tuple(items))
      case 'LIST':
        self.stack.append(items)
      case 'DICT':
        self.stack.append(_set_items({}, items))
      case 'SETITEMS':
        _set_items(self.stack[-1], items)
      case _ if isinstance(self.stack[-1], list):
        self.stack[-1].extend(items)
      case _:
        raise ValueError(f'it appends to a {type(self.stack[-1]).__name__}')

  def drop_state(self, state):
    """The attributes of an OrderedDict are left out: a state dict has _metadata."""
    if not isinstance(state, dict) or not isinstance(self.stack[-1], dict):
      raise ValueError(f'it sets the state of a {type(self.stack[-1]).__name__}')

  def store(self, storage):
    """Notes a storage; returns it."""
    if self.storages.setdefault(storage.key, storage) != storage:
      raise ValueError(f'it has two storages {storage.key!r}')
    return storage
