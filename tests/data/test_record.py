"""A change of the pictures between two commands is said, and a move is none."""

import os
import shutil

import numpy as np
import PIL.Image
import pytest

from ddpm_jax import data
from ddpm_jax.data import record
from ddpm_jax.errors import UserError
from ddpm_jax.trainer import array_source


@pytest.fixture
def folder(tmp_path):
  """A folder of 8 pictures in two batches."""
  images = np.random.RandomState(0).randint(0, 256, (8, 4, 4, 3), np.uint8)
  for i, image in enumerate(images):
    file = tmp_path / f'pictures/{i % 2}/{i}.bmp'
    file.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(image).save(file)
  return tmp_path / 'pictures'


@pytest.fixture
def changes(tmp_path):
  """Returns folder or source -> the lines that a run in one workdir says."""

  def changes(folder, has_begun=True):
    opened, said = folder, []
    if isinstance(folder, os.PathLike):
      opened = data.make_source(
        f'folder:{folder}', dir=None, image_size=4, channels=3, split='train'
      )
    data.keep_record(tmp_path, opened, has_begun=has_begun, say=said.append)
    return said

  return changes


def test_nothing_is_said_of_what_is_the_same_wherever_it_lies(folder, changes, tmp_path):
  assert changes(folder) == []
  assert changes(folder) == []
  shutil.move(folder, tmp_path / 'moved')
  assert changes(tmp_path / 'moved') == []
  shutil.copytree(tmp_path / 'moved', tmp_path / 'copied', copy_function=shutil.copyfile)
  assert changes(tmp_path / 'copied') == []


def test_pictures_that_are_gone_new_or_changed_are_said_once(folder, changes):
  changes(folder)
  shutil.rmtree(folder / '0')
  PIL.Image.new('RGB', (4, 4)).save(folder / 'x.bmp')
  PIL.Image.new('RGB', (4, 4)).save(folder / '1/3.bmp')  # of the same size as before
  assert changes(folder) == [
    'the pictures are not those that this run has had, 8 then and 5 now: 4 are gone (0/0.bmp, '
    '0/2.bmp, 0/4.bmp, ...); 1 are new (x.bmp); 1 were written anew (1/3.bmp); training goes on '
    'with these'
  ]
  assert changes(folder) == []


def test_a_run_that_has_not_begun_has_none(folder, changes):
  changes(folder)
  shutil.rmtree(folder / '0')
  assert changes(folder, has_begun=False) == []
  assert changes(folder) == []


def test_another_folder_is_refused(folder, changes, tmp_path):
  changes(folder)
  other = tmp_path / 'other'
  (other / '0').mkdir(parents=True)
  PIL.Image.new('RGB', (4, 4)).save(other / '0/0.bmp')
  PIL.Image.new('RGB', (5, 4)).save(other / '0/2.bmp')
  with pytest.raises(UserError, match=r'other has 1 of the 8 pictures that this run has trained'):
    changes(other)
  assert changes(folder) == []


def test_large_sets_are_counted_alone(folder, changes, monkeypatch):
  monkeypatch.setattr(record, 'MAX_LISTED', 5)
  changes(folder)
  assert changes(folder) == []
  (folder / '1/7.bmp').unlink()
  (line,) = changes(folder)
  assert '8 then, 7 now' in line


def test_another_array_is_said(changes):
  images = np.zeros((500, 2, 2, 1), np.uint8)
  assert changes(array_source(images)) == []
  assert changes(array_source(images)) == []
  images[123] = 1
  (line,) = changes(array_source(images))
  assert '500 then, 500 now' in line


def test_damaged_pictures_are_left_to_be_named_with_all_others(folder, changes):
  (folder / '0/0.bmp').write_bytes(b'')
  assert changes(folder) == []
