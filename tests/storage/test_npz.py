"""Files of arrays: mapped where they can be, equal to what np.load reads, and damage is told."""

import io
import zipfile

import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.storage import npz
from ddpm_jax.storage.npz import open_npz
from tests.fuzz import SLOW_FACTOR, count_refusals, mutations

ARRAYS = {
  'images': np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4),
  'features': np.linspace(0, 1, 10, dtype=np.float32),
  'by_columns': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
  'big_endian': np.arange(4, dtype='>i4'),
  'scalar': np.float64(2.5),
  'empty': np.zeros((0, 3), np.int64),
  'words': np.array(['a', 'bcd']),
}


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_arrays_equal_those_that_were_saved(tmp_path, save):
  save(tmp_path / 'x.npz', **ARRAYS)
  opened = open_npz(tmp_path / 'x.npz')
  assert opened.keys() == ARRAYS.keys()
  for name, array in ARRAYS.items():
    assert opened[name].dtype == array.dtype
    assert opened[name].shape == array.shape
    np.testing.assert_array_equal(opened[name], array)


def test_stored_members_are_mapped_and_compressed_ones_read(tmp_path):
  np.savez(tmp_path / 'stored.npz', x=np.arange(5))
  np.savez_compressed(tmp_path / 'compressed.npz', x=np.arange(5))
  mapped = open_npz(tmp_path / 'stored.npz')['x']
  assert isinstance(mapped, np.memmap)
  assert not mapped.flags.writeable
  assert not isinstance(open_npz(tmp_path / 'compressed.npz')['x'], np.memmap)


def test_members_with_long_headers_are_found(tmp_path):
  # zip64 gives the local header an extra field that the central directory does not have.
  with zipfile.ZipFile(tmp_path / 'x.npz', 'w') as archive:
    for name in ('first', 'second'):
      with archive.open(f'{name}.npy', 'w', force_zip64=True) as stream:
        np.save(stream, ARRAYS['features'])
  for array in open_npz(tmp_path / 'x.npz').values():
    np.testing.assert_array_equal(array, ARRAYS['features'])


def test_headers_of_version_two_are_read(tmp_path):
  buffer = io.BytesIO()
  np.lib.format.write_array(buffer, ARRAYS['features'], version=(2, 0))
  with zipfile.ZipFile(tmp_path / 'x.npz', 'w') as archive:
    archive.writestr('x.npy', buffer.getvalue())
  np.testing.assert_array_equal(open_npz(tmp_path / 'x.npz')['x'], ARRAYS['features'])


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_python_objects_are_refused(tmp_path, save):
  save(tmp_path / 'x.npz', x=np.array([{}], object))
  with pytest.raises(UserError, match=r'x\.npz is not an intact .npz file of arrays'):
    open_npz(tmp_path / 'x.npz')


def test_arrays_longer_or_shorter_than_their_member_are_refused(tmp_path):
  buffer = io.BytesIO()
  np.save(buffer, ARRAYS['features'])
  whole = buffer.getvalue()
  for content in (whole[:-4], whole + bytes(4), whole[:20], b''):
    with zipfile.ZipFile(tmp_path / 'x.npz', 'w') as archive:
      archive.writestr('x.npy', content)
    with pytest.raises(UserError, match=r'not an intact .npz file'):
      open_npz(tmp_path / 'x.npz')


def test_members_of_another_kind_are_refused(tmp_path):
  with zipfile.ZipFile(tmp_path / 'x.npz', 'w') as archive:
    archive.writestr('notes.txt', 'no array, but long enough for a header of one')
  with pytest.raises(UserError, match=r'not an intact .npz file'):
    open_npz(tmp_path / 'x.npz')


def test_no_file_is_refused(tmp_path):
  for path in (tmp_path / 'absent.npz', tmp_path):
    with pytest.raises(UserError, match=r'not an intact .npz file'):
      open_npz(path)


def test_every_truncation_is_refused(tmp_path):
  path = tmp_path / 'x.npz'
  np.savez(path, **{name: ARRAYS[name] for name in ('images', 'features')})
  whole = path.read_bytes()
  for length in range(0, len(whole), 3):
    path.write_bytes(whole[:length])
    with pytest.raises(UserError, match=r'not an intact .npz file'):
      open_npz(path)


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_damage_anywhere_raises_nothing_but_value_errors(tmp_path, save):
  # A mapped array's own values cannot be checked without reading them all, and some fields of a
  # zip file say nothing. All else is a ValueError: no other exception comes out.
  path = tmp_path / 'x.npz'
  save(path, x=np.arange(300) % 7)
  whole = path.read_bytes()
  refused = 0
  for place in range(len(whole)):
    damaged = bytearray(whole)
    damaged[place] ^= 0xFF
    path.write_bytes(damaged)
    try:
      open_npz(path)
    except ValueError:
      refused += 1
  assert refused > 100


def test_columns_first_arrays_are_mapped_in_their_order(tmp_path):
  np.savez(tmp_path / 'x.npz', x=ARRAYS['by_columns'])
  mapped = open_npz(tmp_path / 'x.npz')['x']
  assert isinstance(mapped, np.memmap)
  assert mapped.flags.f_contiguous
  assert not mapped.flags.c_contiguous


@pytest.mark.parametrize(
  ('descr', 'shape'),
  [
    ('<f8', '(True,)'),
    ('<f8', '(2.0,)'),
    ('<f8', "('a',)"),
    ('<f8', '(-1,)'),
    ('<f8', '(-1, -2)'),
    ('<f8', '(0, 10000000000000000000000000000000)'),
    ('<f8', f'({"1, " * 70})'),
    ('no type', '(2,)'),
  ],
)
@pytest.mark.parametrize('compression', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_headers_that_describe_no_array_are_refused(tmp_path, descr, shape, compression):
  header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
  magic = b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little')
  with zipfile.ZipFile(tmp_path / 'x.npz', 'w', compression) as archive:
    archive.writestr('x.npy', magic + header + bytes(16))
  with pytest.raises(UserError, match=r'not an intact .npz file') as caught:
    open_npz(tmp_path / 'x.npz')
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_one_flipped_bit_is_refused_or_leaves_a_valid_array(tmp_path, save):
  # The checksum of a compressed array tells any change of it; a mapped one may have other values.
  path, array = tmp_path / 'x.npz', np.arange(12) % 7
  save(path, x=array)
  whole = path.read_bytes()
  messages, accepted = [], 0
  for place in range(len(whole)):
    damaged = bytearray(whole)
    damaged[place] ^= 1 << place % 8
    path.write_bytes(damaged)
    try:
      opened = open_npz(path)
    except ValueError as error:
      messages.append(str(error))
      continue
    accepted += 1
    for values in opened.values():
      assert isinstance(values, np.memmap) == (save is np.savez)
      assert not values.dtype.hasobject
      assert values.nbytes == array.nbytes
      if save is np.savez_compressed:
        np.testing.assert_array_equal(values, array)
  assert len(messages) > 50
  assert not any('\n' in message for message in messages)
  assert accepted > 20


@pytest.mark.parametrize('factor', [1, pytest.param(SLOW_FACTOR, marks=pytest.mark.slow)])
@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_mutations_are_refused_or_within_the_file(tmp_path, save, factor):
  path = tmp_path / 'x.npz'
  save(path, **ARRAYS)
  whole = path.read_bytes()

  def read(content):
    path.write_bytes(content)
    return {name: np.array(array) for name, array in open_npz(path).items()}

  def judge(read):
    assert sum(array.nbytes for array in read.values()) <= 1100 * len(whole)

  assert count_refusals(read, judge, mutations(whole, 400 * factor)) > 150 * factor


def test_members_that_claim_to_be_huge_are_refused_unread(tmp_path):
  path = tmp_path / 'x.npz'
  header = io.BytesIO()
  shape = (1 << 33,)
  np.lib.format.write_array_header_1_0(
    header, {'descr': '|u1', 'fortran_order': False, 'shape': shape}
  )
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('x.npy', header.getvalue())
  content = bytearray(path.read_bytes())
  at = content.rindex(b'PK\x01\x02') + 24  # the size, in the directory
  content[at : at + 4] = (0xF0000000).to_bytes(4, 'little')
  path.write_bytes(content)
  with pytest.raises(UserError, match='says that it has 4026531840 bytes'):
    open_npz(path)


def test_large_members_are_mapped_when_they_inflate_as_pictures_do(tmp_path, monkeypatch):
  images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), np.uint8)
  np.savez_compressed(tmp_path / 'x.npz', samples=images, ids=np.arange(30))
  monkeypatch.setattr(npz, '_IN_MEMORY_BYTES', 1000)
  arrays = open_npz(tmp_path / 'x.npz')
  assert isinstance(arrays['samples'], np.memmap)
  assert not isinstance(arrays['ids'], np.memmap)
  np.testing.assert_array_equal(arrays['samples'], images)
  content = bytearray((tmp_path / 'x.npz').read_bytes())
  content[1000] ^= 1
  (tmp_path / 'x.npz').write_bytes(content)
  with pytest.raises(UserError, match='is not an intact'):
    open_npz(tmp_path / 'x.npz')


def test_a_small_file_that_inflates_to_much_is_refused(tmp_path, monkeypatch):
  np.savez_compressed(tmp_path / 'x.npz', samples=np.zeros((1000, 8, 8, 3), np.uint8))
  assert len(open_npz(tmp_path / 'x.npz')['samples']) == 1000
  monkeypatch.setattr(npz, '_IN_MEMORY_BYTES', 100_000)
  monkeypatch.setattr(npz, '_BLOCK_BYTES', None)  # reading it would fail
  with pytest.raises(UserError, match=r'samples\.npy has \d+ bytes that inflate to 192128'):
    open_npz(tmp_path / 'x.npz')
