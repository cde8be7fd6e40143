"""TensorFlow's checkpoints: what the original program wrote, and what nobody should have."""

import tarfile

import jax
import ml_dtypes
import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.interop.tf_bundle import find_bundle, read_bundle
from ddpm_jax.interop.tf_ddpm import read_checkpoint
from ddpm_jax.nn.unet import UNet
from tests.conftest import REFERENCE
from tests.fuzz import SLOW_FACTOR, count_refusals, mutations
from tests.tf_writer import (
  HEADER,
  block_code,
  bundle_items,
  entry_code,
  field,
  masked_crc,
  table_code,
  varint,
  write_bundle,
  write_files,
)

EMA = '/ExponentialMovingAverage'


@pytest.fixture(scope='module')
def original(tmp_path_factory):
  """The folder of a checkpoint written by the original program."""
  folder = tmp_path_factory.mktemp('original')
  with tarfile.open(REFERENCE / 'ckpt_tiny.tar.xz') as archive:
    archive.extractall(folder, filter='data')
  return folder / 'ckpt_tiny'


@pytest.fixture(scope='module')
def tiny(reference):
  """(model, its parameters as ShapeDtypeStructs) of that checkpoint."""
  expected = reference('ckpt_tiny_expected')
  model = UNet(32, (1, 1), 1, (8,), 3)
  like = jax.eval_shape(model.init, jax.random.key(0), expected['x'], expected['t'])['params']
  return model, like


def test_original_checkpoint_computes_what_the_original_did(
  original, tiny, reference, relative_error
):
  model, like = tiny
  expected = reference('ckpt_tiny_expected')
  params, ema_params, step = read_checkpoint(find_bundle(original), like)
  assert step == expected['global_step'] == 3
  for tree, name in ((params, 'output_raw'), (ema_params, 'output_ema')):
    output = model.apply({'params': tree}, expected['x'], expected['t'])
    assert relative_error(output, expected[name]) < 2e-6
  for path, leaf in (('conv_in', 'conv_in/W'), ('temb_dense0', 'temb/dense0/W')):
    np.testing.assert_array_equal(ema_params[path]['kernel'], expected[f'ema/model/{leaf}{EMA}'])


def test_adam_is_not_read(original):
  # The archive here has zeros in its place.
  with pytest.raises(UserError, match=r'model/conv_in/W/Adam has another checksum'):
    read_bundle(find_bundle(original))


def test_another_architecture_is_refused_with_both_shapes(original, tiny):
  wider = jax.eval_shape(
    UNet(64, (1, 1), 1, (8,), 3).init,
    jax.random.key(0),
    np.zeros((1, 16, 16, 3)),
    np.zeros(1, int),
  )['params']
  with pytest.raises(
    UserError, match=r'model\.ckpt-3: .*: model/conv_in/b \(32,\), wanted \(64,\), model/conv_in/W'
  ):
    read_checkpoint(find_bundle(original), wider)


def test_paths_that_mean_a_bundle(original, tmp_path):
  prefix = original / 'model.ckpt-3'
  endings = ('', '.index', '.meta', '.data-00000-of-00001')
  for path in (original, *(original / f'model.ckpt-3{ending}' for ending in endings)):
    assert find_bundle(path) == prefix
  assert find_bundle(tmp_path) is None
  assert find_bundle(tmp_path / 'x') is None
  assert find_bundle(original / 'model.ckpt-4') is None
  assert find_bundle(tmp_path / ('x' * 300)) is None


def test_checkpoint_file_leads_nowhere_else(tmp_path):
  inside = tmp_path / 'inside'
  inside.mkdir()
  write_bundle(tmp_path / 'm', {'x': np.zeros(2)})
  for name in ('../m', str(tmp_path / 'm')):
    (inside / 'checkpoint').write_text(f'model_checkpoint_path: "{name}"\n')
    assert find_bundle(inside) is None
  write_bundle(inside / 'm', {'x': np.zeros(2)})
  assert find_bundle(inside) == inside / 'm'
  (inside / 'checkpoint').write_bytes(b'\xff\x00')
  assert find_bundle(inside) is None
  write_bundle(tmp_path / 'inside', {'x': np.zeros(2)})
  for name in ('', '.', '..', '/', '.index', 'x' * 300, '\0'):
    (inside / 'checkpoint').write_text(f'model_checkpoint_path: "{name}"\n')
    assert find_bundle(inside) is None


@pytest.mark.parametrize('factor', [1, pytest.param(SLOW_FACTOR, marks=pytest.mark.slow)])
def test_mutated_checkpoint_files_name_a_bundle_beside_them_or_none(tmp_path, factor):
  inside = tmp_path / 'inside'
  inside.mkdir()
  for prefix in (tmp_path / 'inside', inside / 'm', inside / 'm-1'):
    write_bundle(prefix, {'x': np.zeros(2)})
  content = b'model_checkpoint_path: "/far/m-1"\nall_model_checkpoint_paths: "m-1.index"\n'

  def read(content):
    (inside / 'checkpoint').write_bytes(content)
    return find_bundle(inside)

  def judge(prefix):
    assert prefix in (None, inside / 'm', inside / 'm-1')

  assert count_refusals(read, judge, mutations(content, 400 * factor)) == 0


# What is written is what is read.


@pytest.mark.parametrize('num_shards', [1, 3])
def test_round_trip(tmp_path, num_shards):
  rng = np.random.default_rng(0)
  arrays = {
    f'scope_{i}/{dtype}': (rng.standard_normal((3, i + 1)) * 50).astype(dtype)
    for i, dtype in enumerate(
      ['float64', 'float32', 'float16', 'int64', 'int32', 'int16', 'int8', 'uint8', 'bool']
    )
  }
  arrays |= {'scalar': np.array(7), 'half': np.ones(3, ml_dtypes.bfloat16), 'é': np.arange(4)}
  write_bundle(tmp_path / 'm', arrays, num_shards=num_shards)
  read = read_bundle(tmp_path / 'm')
  assert sorted(read) == sorted(arrays)
  for name, array in arrays.items():
    assert read[name].dtype == array.dtype
    np.testing.assert_array_equal(read[name], array, strict=True)


# A model of three leaves stands for the others from here on.

LIKE = {
  'conv_in': {
    'kernel': jax.ShapeDtypeStruct((1, 1, 2, 3), np.float32),
    'bias': jax.ShapeDtypeStruct((3,), np.float32),
  },
  'norm_out': {'scale': jax.ShapeDtypeStruct((3,), np.float32)},
}


def small_variables():
  rng = np.random.default_rng(1)
  shapes = {'conv_in/W': (1, 1, 2, 3), 'conv_in/b': (3,), 'norm_out/gamma': (3,)}
  variables = {'global_step': np.array(5), 'beta1_power': np.float32(0.9)}
  for name, shape in shapes.items():
    for suffix in ('', EMA, '/Adam', '/Adam_1'):
      variables[f'model/{name}{suffix}'] = rng.standard_normal(shape).astype(np.float32)
  return variables


def same_trees(actual, expected):
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), actual, expected)


def test_a_missing_set_is_the_other_one(tmp_path):
  variables = small_variables()
  write_bundle(tmp_path / 'both', variables)
  params, ema_params, step = read_checkpoint(tmp_path / 'both', LIKE)
  assert step == 5
  raw = {name: array for name, array in variables.items() if EMA not in name}
  ema = {name: array for name, array in variables.items() if EMA in name}
  write_bundle(tmp_path / 'raw', raw)
  write_bundle(tmp_path / 'ema', ema)
  for name, tree, expected_step in (('raw', params, 5), ('ema', ema_params, 0)):
    one, other, step = read_checkpoint(tmp_path / name, LIKE)
    assert one is other
    same_trees(one, tree)
    assert step == expected_step


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'model/more/W': np.zeros(2, np.float32)}, r'1 unknown: model/more/W \(2,\)'),
    ({f'model/more/W{EMA}': np.zeros(2, np.float32)}, r'1 unknown: model/more/W \(2,\)'),
    ({'more': np.zeros(2, np.float32)}, r'1 unknown: more \(2,\)'),
    ({'model/conv_in/b': np.zeros(3, np.int32)}, 'other than finite real numbers'),
    ({'model/conv_in/b': np.full(3, np.nan, np.float32)}, 'other than finite real numbers'),
    ({'global_step': np.array(-1)}, r'its global_step is int64\[\], out of range'),
    ({'global_step': np.array([1, 2])}, r'its global_step is int64\[2\]'),
  ],
)
def test_other_tensors_are_refused(tmp_path, change, message):
  write_bundle(tmp_path / 'm', small_variables() | change)
  with pytest.raises(UserError, match=f'm: .*{message}'):
    read_checkpoint(tmp_path / 'm', LIKE)


def entry_items(**changes):
  """Items of one tensor, x of two float32, with changes to its entry."""
  content = np.arange(2, dtype=np.float32).tobytes()
  entry = {'shape': (2,), 'size': 8, 'crc': masked_crc(content)} | changes
  return [(b'', HEADER), (b'x', entry_code(**entry))], [content]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'offset': 1}, 'x is at bytes 1 to 9 of a file of 8: it is cut off'),
    ({'offset': -1}, 'field 4 is damaged'),
    ({'size': -8}, 'field 5 is damaged'),
    ({'size': 1 << 50}, r'x of shape \(2,\) and type float32 has 1125899906842624 bytes'),
    ({'shape': (1 << 40,), 'size': 1 << 42}, 'it is cut off'),
    ({'shape': (-1,)}, 'a tensor with a size of'),
    ({'shape': (1,) * 9}, 'over 8 dimensions'),
    ({'shape': (3,)}, r'x of shape \(3,\)'),
    ({'dtype': 7}, 'x has data type 7, which is no number type'),
    ({'shard': 1}, 'x is in shard 1 of 1'),
    ({'shard': -1}, 'field 3 is damaged'),
    ({'crc': 1}, 'x has another checksum'),
    ({'shape': (0, 1 << 47, 1 << 47), 'size': 0}, 'larger than any array'),
  ],
)
def test_entries_that_lie(tmp_path, changes, message):
  items, shards = entry_items(**changes)
  write_files(tmp_path / 'm', table_code([block_code(items)]), shards)
  with pytest.raises(UserError, match=message):
    read_bundle(tmp_path / 'm')


ONE = entry_items()[0]
INDEXES = {
  'overlapping tensors': ([*ONE, (b'y', ONE[1][1])], 'y overlaps the tensor before it'),
  'names out of order': ([ONE[0], (b'z', ONE[1][1]), ONE[1]], 'not in order'),
  'a name twice': ([*ONE, ONE[1]], 'not in order'),
  'no header': ([ONE[1]], 'no header'),
  'nothing': ([], 'it is empty'),
  'slices': ([ONE[0], (b'x', ONE[1][1] + field(7, b''))], 'x is stored in slices'),
  'big-endian': ([(b'', HEADER + field(2, 1))], 'big-endian'),
  'no shards': ([(b'', field(1, 0))], 'number of shards'),
  'too many shards': ([(b'', field(1, 1 << 30))], 'number of shards'),
  'a long name': ([ONE[0], (b'x' * 2000, ONE[1][1])], 'does not fit'),
  'a name that is no text': ([ONE[0], (b'\xff', ONE[1][1])], 'a name that is no text'),
  'a wire type': ([ONE[0], (b'x', varint(1 << 3 | 3))], 'wire type 3'),
  'an unknown field': ([ONE[0], (b'x', field(9, 1))], 'field 9'),
  'a field cut off': ([ONE[0], (b'x', field(2, b'12345')[:-2])], 'cut off'),
  'a number without end': ([ONE[0], (b'x', b'\x08' + b'\xff' * 12)], 'does not end'),
}


@pytest.mark.parametrize('case', INDEXES)
def test_indexes_that_lie(tmp_path, case):
  items, message = INDEXES[case]
  write_files(tmp_path / 'm', table_code([block_code(items)]), entry_items()[1])
  with pytest.raises(UserError, match=rf'm\.(index|data-\S*): .*{message}'):
    read_bundle(tmp_path / 'm')


def test_tables_that_lie(tmp_path):
  block = block_code(ONE)
  place = varint(0) + varint(len(block))
  far = varint(1 << 40) + varint(8)
  for index, message in (
    (table_code([block], kind=1), 'compressed'),
    (table_code([block], handles=[place, place]), 'blocks overlap'),
    (table_code([block], handles=[far]), 'a block outside the file'),
    (table_code([block + b'\xff\xff\xff\x7f']), 'does not fit|do not fit'),
    (table_code([b'']), 'a block without an end'),
    (table_code([block])[:-1], 'its end is cut off'),
    (b'', 'a file of 0 bytes'),
  ):
    write_files(tmp_path / 'm', index, entry_items()[1])
    with pytest.raises(UserError, match=rf'm\.index: .*({message})'):
      read_bundle(tmp_path / 'm')
  write_files(tmp_path / 'm', bytes(1 << 24) + b'x', [])
  with pytest.raises(UserError, match='an index of more than'):
    read_bundle(tmp_path / 'm')


def test_a_missing_index(tmp_path):
  write_bundle(tmp_path / 'm', {'x': np.zeros(2)})
  (tmp_path / 'm.index').unlink()
  with pytest.raises(UserError, match=r'm\.index: no such file'):
    read_bundle(find_bundle(tmp_path / 'm'))


def test_a_missing_shard(tmp_path):
  write_bundle(tmp_path / 'm', {'x': np.zeros(2), 'y': np.zeros(2)}, num_shards=2)
  (tmp_path / 'm.data-00001-of-00002').unlink()
  with pytest.raises(UserError, match=r'm\.data-00001-of-00002: no such file'):
    read_bundle(tmp_path / 'm')


@pytest.fixture
def written(tmp_path):
  """(prefix, its index, its data, what is read of it)."""
  prefix = tmp_path / 'm'
  write_bundle(prefix, small_variables())
  index = tmp_path / 'm.index'
  data = tmp_path / 'm.data-00000-of-00001'
  return prefix, index, data, read_checkpoint(prefix, LIKE)


def test_cut_off_anywhere(written):
  prefix, index, data, _ = written
  for file, every in ((index, 1), (data, 5)):
    content = file.read_bytes()
    for size in range(0, len(content), every):
      file.write_bytes(content[:size])
      with pytest.raises(UserError, match=rf'{file.name}: '):
        read_checkpoint(prefix, LIKE)
    file.write_bytes(content)


def fuzz_file(file, content, prefix, expected, num_inputs):
  """Refusals among mutations of one file, the checksums as they were."""

  def read(mutated):
    file.write_bytes(mutated)
    return read_checkpoint(prefix, LIKE)

  def judge(answer):
    same_trees(answer, expected)

  refused = count_refusals(read, judge, mutations(content, num_inputs))
  file.write_bytes(content)
  return refused


def fuzz_items(prefix, expected, num_inputs):
  """Refusals among mutations of the table's block, with right checksums: what a liar would do."""
  items, shards = bundle_items(small_variables())
  write_files(prefix, b'', shards)
  index = prefix.with_name(f'{prefix.name}.index')

  def read(block):
    index.write_bytes(table_code([block]))
    return read_checkpoint(prefix, LIKE)

  def judge(answer):
    same_trees(answer[:2], expected[:2])
    assert answer[2] in (5, 0)  # by another name, the step is a counter like others

  return count_refusals(read, judge, mutations(block_code(items), num_inputs))


@pytest.mark.parametrize('factor', [1, pytest.param(SLOW_FACTOR, marks=pytest.mark.slow)])
def test_mutations_are_refused_or_do_not_matter(written, factor):
  prefix, index, data, expected = written
  assert fuzz_file(index, index.read_bytes(), prefix, expected, 300 * factor) > 200 * factor
  assert fuzz_file(data, data.read_bytes(), prefix, expected, 300 * factor) > 50 * factor
  assert fuzz_items(prefix, expected, 600 * factor) > 300 * factor
