"""Writes .pth files as torch.save does, without torch."""

import pickle
import struct
import zipfile
import zlib

import numpy as np

STORAGES = {
  'float64': 'DoubleStorage',
  'float32': 'FloatStorage',
  'float16': 'HalfStorage',
  'bfloat16': 'BFloat16Storage',
  'int64': 'LongStorage',
  'int32': 'IntStorage',
  'int16': 'ShortStorage',
  'int8': 'CharStorage',
  'uint8': 'ByteStorage',
  'bool': 'BoolStorage',
}


def fill_state_dict(shapes, seed):
  """Random weights of the scale that keeps activations tame.

  Those of Inception are the same as behind reference/inception.npz if the seed is.

  Args:
    shapes: dict of shapes by name, as in reference/inception_shapes.json.
    seed: int.

  Returns:
    dict of arrays by name, float32, but for int64 counters of batches.
  """
  filled = {}
  for name, shape in shapes.items():
    z = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
    if name.endswith('num_batches_tracked'):
      z = np.zeros(shape, np.int64)
    elif z.ndim == 4:
      z = z * np.sqrt(2 / np.prod(shape[1:]))
    elif z.ndim == 1 and name.endswith('weight'):  # of a norm
      z = 1 + 0.1 * z
    elif name.endswith('running_var'):
      z = 1 + 0.1 * np.abs(z)
    elif z.ndim == 2:
      z = z * np.sqrt(1 / shape[1])
    else:
      z = 0.1 * z
    filled[name] = z if z.dtype == np.int64 else z.astype(np.float32)
  return filled


def write_torch_zip(path, state_dict):
  """Writes a dict of arrays, or containers of them, as torch.save writes tensors."""
  contents = {}
  pickled = pickle_of(code_of(state_dict, contents))
  write_zip(path, pickled, contents)


def write_torch_legacy(path, state_dict):
  """The same in the format before torch 1.6."""
  contents = {}
  pickled = pickle_of(code_of(state_dict, contents, legacy=True))
  write_legacy(path, pickled, contents)


def write_zip(path, pickled, contents, *, folder='archive', byteorder='little'):
  """Writes the zip file of a pickle and of {storage key: array}."""
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
    archive.writestr(f'{folder}/data.pkl', pickled)
    if byteorder:
      archive.writestr(f'{folder}/byteorder', byteorder)
    for key, array in contents.items():
      archive.writestr(f'{folder}/data/{key}', array.tobytes())
    archive.writestr(f'{folder}/version', '3\n')


def write_legacy(path, pickled, contents):
  """Writes the sequence of pickles and storages."""
  system = {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {'int': 4}}
  with open(path, 'wb') as file:
    for value in (0x1950A86A20F9469CFC6C, 1001, system):
      pickle.dump(value, file, protocol=2)
    file.write(pickled)
    pickle.dump(list(contents), file, protocol=2)
    for array in contents.values():
      file.write(struct.pack('<q', array.size) + array.tobytes())


def pickle_of(code):
  """A whole pickle, of protocol 2, that leaves what `code` puts on the stack."""
  return b'\x80\x02' + code + b'.'


def name_code(module, name):
  """Puts a function or class on the stack."""
  return f'c{module}\n{name}\n'.encode()


def call_code(function, *arguments):
  """Calls what `function` puts on the stack with what `arguments` do."""
  return function + b'(' + b''.join(arguments) + b'tR'


def storage_code(kind, key, num_elements, *, legacy=False):
  """Refers to a storage; kind as in 'FloatStorage'."""
  arguments = [code_of(value) for value in (key, 'cpu', num_elements, None)[: 4 if legacy else 3]]
  return b'(' + code_of('storage') + name_code('torch', kind) + b''.join(arguments) + b'tQ'


def tensor_code(storage, offset, size, strides):
  """Makes a tensor of what `storage` puts on the stack."""
  arguments = [code_of(value) for value in (offset, size, strides, False)]
  return call_code(
    name_code('torch._utils', '_rebuild_tensor_v2'), storage, *arguments, ORDERED_DICT
  )


ORDERED_DICT = call_code(name_code('collections', 'OrderedDict'))


def code_of(value, contents=None, *, legacy=False):
  """Puts a value on the stack: plain, a container, or an array, whose elements go to contents."""
  if isinstance(value, dict):
    items = [code_of(part, contents, legacy=legacy) for item in value.items() for part in item]
    return ORDERED_DICT + b'(' + b''.join(items) + b'u'
  if isinstance(value, list | tuple):
    items = b''.join(code_of(item, contents, legacy=legacy) for item in value)
    return b'(' + items + b't' if isinstance(value, tuple) else b'](' + items + b'e'
  if isinstance(value, np.ndarray):
    key = str(len(contents))
    contents[key] = value
    storage = storage_code(STORAGES[value.dtype.name], key, value.size, legacy=legacy)
    strides = [int(np.prod(value.shape[i + 1 :])) for i in range(value.ndim)]
    return tensor_code(storage, 0, value.shape, tuple(strides))
  return pickle.dumps(value, protocol=2)[2:-1]
