"""The seal of a checkpoint: no byte changes unseen, and what cannot be read is no damage."""

import errno
import hashlib
import os

import pytest

from ddpm_jax.errors import DiskError, UserError
from ddpm_jax.storage import manifest
from ddpm_jax.storage.manifest import MANIFEST, find_fault, read_manifest, write_manifest

FILES = {'a': b'some bytes', 'state/d/b': bytes(range(256)), 'state/empty': b''}


@pytest.fixture
def folder(tmp_path):
  """A folder with its manifest."""
  folder = tmp_path / 'folder'
  for name, content in FILES.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
  write_manifest(folder)
  return folder


def test_the_manifest_has_all_files_but_itself(folder):
  read = read_manifest(folder)
  assert read['files'] == {
    name: {'bytes': len(content), 'sha256': hashlib.sha256(content).hexdigest()}
    for name, content in FILES.items()
  }
  assert len(read['checksum']) == 64
  assert find_fault(folder) is None


def test_what_the_seal_says_of_the_folder_is_sealed(folder):
  write_manifest(folder, {'step': 4, 'run': 'one'})
  assert find_fault(folder, {'step': 4, 'run': 'one'}) is None
  assert find_fault(folder, {'step': 4}) is None  # a reader that does not know the run
  assert find_fault(folder, {'step': 6, 'run': 'one'}) == 'it is of step 4, not 6'
  assert find_fault(folder, {'step': 4, 'run': 'two'}) == 'it is of run one, not two'
  sealed = (folder / MANIFEST).read_text()
  assert sealed.count('"step": 4') == 1
  (folder / MANIFEST).write_text(sealed.replace('"step": 4', '"step": 6'))
  assert find_fault(folder, {'step': 6}) == f'{MANIFEST} is damaged'


def test_a_seal_of_an_earlier_version_says_nothing_of_its_folder(folder):
  assert read_manifest(folder).keys() == {'checksum', 'files'}
  assert find_fault(folder, {'step': 4, 'run': 'one'}) is None


def test_the_checksum_names_the_files(folder):
  before = read_manifest(folder)['checksum']
  write_manifest(folder)
  assert read_manifest(folder)['checksum'] == before
  (folder / 'a').write_bytes(b'other bytes')
  write_manifest(folder)
  assert read_manifest(folder)['checksum'] != before


@pytest.mark.parametrize('name', [*FILES, MANIFEST])
def test_every_bit_counts(folder, name):
  file = folder / name
  whole = file.read_bytes()
  expected = f'{name} has another sha256 than in {MANIFEST}'
  if name == MANIFEST:
    expected = f'{MANIFEST} is damaged'
  for position in range(len(whole)):
    changed = bytearray(whole)
    changed[position] ^= 1 << position % 8
    file.write_bytes(changed)
    assert find_fault(folder) == expected, position
  file.write_bytes(whole)
  assert find_fault(folder) is None


@pytest.mark.parametrize(
  ('change', 'fault'),
  [
    (lambda folder: (folder / 'a').unlink(), 'a is missing'),
    (lambda folder: (folder / 'a').write_bytes(b''), 'a has 0 bytes, not 10'),
    (lambda folder: (folder / 'more').touch(), f'more is not in {MANIFEST}'),
    (lambda folder: (folder / MANIFEST).unlink(), f'{MANIFEST} is missing'),
    (lambda folder: (folder / MANIFEST).write_text('{}'), f'{MANIFEST} is damaged'),
    (lambda folder: (folder / MANIFEST).write_text('[]'), f'{MANIFEST} is damaged'),
    (lambda folder: (folder / MANIFEST).write_text('{"step": 4}'), f'{MANIFEST} is damaged'),
    (lambda folder: (folder / MANIFEST).write_bytes(b'\xff'), f'{MANIFEST} is damaged'),
  ],
)
def test_faults_are_told(folder, change, fault):
  change(folder)
  assert find_fault(folder) == fault
  if MANIFEST in fault and 'not in' not in fault:
    with pytest.raises(UserError, match=fault):
      read_manifest(folder)


@pytest.mark.parametrize('number', [errno.ESTALE, errno.EMFILE, errno.EIO])
def test_what_cannot_be_read_just_now_is_no_damage(folder, monkeypatch, number):
  def fail(path):
    raise OSError(number, os.strerror(number), str(path))

  monkeypatch.setattr(manifest, '_sha256', fail)
  with pytest.raises(DiskError, match=rf'/folder/a cannot be used \({os.strerror(number)}\)'):
    find_fault(folder)


def test_a_folder_that_vanishes_is_told(folder, monkeypatch):
  def vanish(path):
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

  monkeypatch.setattr(manifest, '_sha256', vanish)
  assert 'No such file or directory' in find_fault(folder)
