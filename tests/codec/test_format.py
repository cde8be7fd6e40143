"""The bytes: what is written is read; anything else is one line, or the sections before it."""

import dataclasses

import numpy as np
import pytest

from ddpm_jax.codec.channel import Search
from ddpm_jax.codec.format import (
  Compressed,
  Header,
  is_archive,
  read_archive,
  read_file,
  write_archive,
)
from ddpm_jax.errors import UserError

HEADER = Header(b'modelmod', b'tabl', 2**32 - 1, Search(True, 17), 15, (32, 32, 3), 256)
SECTIONS = (b'', b'a', bytes(range(200)), b'last')
FILE = Compressed(HEADER, SECTIONS)


@pytest.mark.parametrize('levels', [None, 2, 256, 65536])
@pytest.mark.parametrize('shape', [(8, 8, 1), (2**16, 2**16, 3), (128, 6)])
@pytest.mark.parametrize('search', [Search(False, 3), Search(True, 20)])
def test_a_file_is_read_as_it_was_written(levels, shape, search):
  header = dataclasses.replace(HEADER, levels=levels, shape=shape, search=search)
  file = Compressed(header, SECTIONS)
  assert read_file(file.to_bytes()) == file
  assert read_file(file.first(0).to_bytes()) == file.first(0)


def test_the_header_of_a_small_picture_is_40_bytes_at_most():
  assert len(FILE.first(0).to_bytes()) <= 40


def test_a_file_that_is_cut_has_its_whole_sections():
  data, seen = FILE.to_bytes(), []
  head = len(FILE.first(0).to_bytes()) - 1
  for length in range(len(data)):
    if length < head:
      with pytest.raises(UserError, match=r'the file is (cut off|no compressed)'):
        read_file(data[:length])
      continue
    found = read_file(data[:length])
    assert found.is_cut
    assert found.sections == SECTIONS[: len(found.sections)]
    seen.append(len(found.sections))
  assert sorted({*seen}) == [0, 1, 2, 3]


def test_a_changed_byte_is_refused_or_ends_the_sections():
  data, rng, wrong = FILE.to_bytes(), np.random.default_rng(0), 0
  for _ in range(3000):
    changed = bytearray(data)
    changed[rng.integers(len(data))] ^= int(rng.integers(1, 256))
    try:
      found = read_file(bytes(changed))
    except UserError:
      continue
    assert found.header == HEADER
    is_prefix = found.sections == SECTIONS[: len(found.sections)]
    wrong += not (is_prefix and (found.is_cut or len(found.sections) < 4))
  assert wrong == 0


def test_bytes_of_any_kind_are_refused_in_one_line():
  rng = np.random.default_rng(0)
  for i in range(500):
    data = (b'', b'DDPC', b'DDPC\1', b'DDPA\1')[i % 4] + rng.bytes(rng.integers(0, 60))
    for read in (read_file, read_archive):
      with pytest.raises(UserError) as info:
        read(data, 'x.ddpc')
      assert str(info.value).startswith('x.ddpc ')


@pytest.mark.parametrize(
  ('place', 'value', 'words'), [(4, 9, 'version 9'), (17, 9, 'damaged'), (0, 0x89, 'no compressed')]
)
def test_foreign_files_are_named(place, value, words):
  data = bytearray(FILE.to_bytes())
  data[place] = value
  with pytest.raises(UserError, match=words):
    read_file(bytes(data))


def test_an_archive_shares_the_header():
  files = [FILE, FILE.first(2), FILE.first(0)]
  data = write_archive(files)
  assert is_archive(data)
  assert not is_archive(FILE.to_bytes())
  found = read_archive(data)
  assert [(x.header, x.sections, x.is_cut) for x in found] == [
    (HEADER, x.sections, False) for x in files
  ]
  single = len(HEADER.to_bytes(b'DDPC'))
  assert len(data) < sum(len(x.to_bytes()) for x in files) - 2 * single + 20
  with pytest.raises(UserError, match='an archive, not a compressed example'):
    read_file(data)
  with pytest.raises(UserError, match='a compressed example, not an archive'):
    read_archive(FILE.to_bytes())
  with pytest.raises(UserError, match='one model'):
    write_archive([FILE, dataclasses.replace(FILE, header=dataclasses.replace(HEADER, seed=0))])


def test_an_archive_that_is_cut_has_its_first_examples():
  data, seen = write_archive([FILE] * 3), set()
  for length in range(len(data)):
    try:
      found = read_archive(data[:length])
    except UserError:
      continue
    assert all(x.sections == SECTIONS[: len(x.sections)] for x in found)
    assert all(x.sections == SECTIONS and not x.is_cut for x in found[:-1])
    assert found[-1].is_cut == (found[-1].sections != SECTIONS)
    assert [x.beyond for x in found[:-1]] == [None] * (len(found) - 1)
    lost = f'the archive is cut off or damaged: {3 - len(found)} of its 3 examples are not there'
    assert found[-1].beyond == (lost if len(found) < 3 else None)
    seen.add(len(found))
  assert seen == {1, 2, 3}
  assert read_archive(data + b'xy')[-1].beyond == 'the archive is damaged: 2 bytes follow its end'
