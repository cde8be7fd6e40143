"""Writes TensorFlow's checkpoints (V2), whole or damaged on purpose, without TensorFlow."""

import google_crc32c
import numpy as np

DTYPES = {
  'float32': 1,
  'float64': 2,
  'int32': 3,
  'uint8': 4,
  'int16': 5,
  'int8': 6,
  'int64': 9,
  'bool': 10,
  'bfloat16': 14,
  'float16': 19,
}
MAGIC = 0xDB4775248B80FB57
HEADER = b'\x08\x01\x1a\x02\x08\x01'  # one shard, version 1


def masked_crc(content):
  crc = google_crc32c.value(content)
  return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def varint(number):
  """A number of 64 bits; negative ones as protocol buffers have them."""
  number &= (1 << 64) - 1
  code = b''
  while number >= 0x80:
    code += bytes([number & 0x7F | 0x80])
    number >>= 7
  return code + bytes([number])


def field(number, value):
  """A field of a protocol buffer: an int, or bytes."""
  if isinstance(value, bytes):
    return varint(number << 3 | 2) + varint(len(value)) + value
  return varint(number << 3) + varint(value)


def entry_code(dtype=1, shape=(), offset=0, size=0, crc=0, shard=0):
  """BundleEntryProto."""
  sizes = b''.join(field(2, field(1, n)) for n in shape)
  code = field(1, dtype) + field(2, sizes) + field(3, shard) + field(4, offset) + field(5, size)
  return code + varint(6 << 3 | 5) + crc.to_bytes(4, 'little')


def block_code(items, *, restart_every=16):
  """A block of [(key, value)] without type and checksum; keys share prefixes."""
  code, restarts, previous = b'', [], b''
  for i, (key, value) in enumerate(items):
    shared = 0
    if i % restart_every == 0:
      restarts.append(len(code))
    else:
      while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
        shared += 1
    code += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
    previous = key
  restarts = restarts or [0]
  return code + b''.join(n.to_bytes(4, 'little') for n in [*restarts, len(restarts)])


def table_code(blocks, *, kind=0, handles=None):
  """A table of blocks' codes, with right checksums; handles replaces what the index block says."""
  code, places = b'', []

  def add(block):
    nonlocal code
    place = varint(len(code)) + varint(len(block))
    block += bytes([kind])
    code += block + masked_crc(block).to_bytes(4, 'little')
    return place

  places = [add(block) for block in blocks]
  statistics = add(block_code([]))
  index = add(block_code([(b'%03d' % i, place) for i, place in enumerate(handles or places)]))
  return code + (statistics + index).ljust(40, b'\x00') + MAGIC.to_bytes(8, 'little')


def bundle_items(arrays, num_shards=1):
  """([(key, value)] of the table, [content of each shard])."""
  shards = [b''] * num_shards
  items = [(b'', field(1, num_shards) + HEADER[2:])]
  for i, (name, array) in enumerate(sorted(arrays.items(), key=lambda item: item[0].encode())):
    array, shard = np.asarray(array), i % num_shards
    content = array.tobytes()
    entry = entry_code(
      DTYPES[array.dtype.name],
      array.shape,
      len(shards[shard]),
      len(content),
      masked_crc(content),
      shard,
    )
    items.append((name.encode(), entry))
    shards[shard] += content
  return items, shards


def write_bundle(prefix, arrays, *, num_shards=1, items_a_block=7):
  """Writes a dict of arrays by name as the bundle of a pathlib.Path prefix."""
  items, shards = bundle_items(arrays, num_shards)
  blocks = [block_code(items[i : i + items_a_block]) for i in range(0, len(items), items_a_block)]
  write_files(prefix, table_code(blocks), shards)


def write_files(prefix, index, shards):
  """Writes the bytes of index and shards."""
  prefix.with_name(f'{prefix.name}.index').write_bytes(index)
  for i, content in enumerate(shards):
    name = f'{prefix.name}.data-{i:05d}-of-{len(shards):05d}'
    prefix.with_name(name).write_bytes(content)
