import pickle
import struct

import numpy as np
import PIL.Image
import pytest

from ddpm_jax import data
from ddpm_jax.errors import UserError


def save(path, image):
  path.parent.mkdir(parents=True, exist_ok=True)
  PIL.Image.fromarray(image).save(path)


def source(path, split='train', image_size=6):
  return data.make_source(
    f'folder:{path}', dir=None, image_size=image_size, channels=3, split=split
  )


def read(opened):
  return opened.read(np.arange(len(opened)))


def test_sorted_by_relative_path(tmp_path, pictures):
  names = ['b/0.png', 'a.png', 'c.BMP', 'b/1.webp', 'b/a/2.png']
  order = sorted(range(5), key=lambda i: names[i])
  for name, image in zip(names, pictures, strict=True):
    if name.endswith('webp'):
      PIL.Image.fromarray(image).save(tmp_path / name, lossless=True)
    else:
      save(tmp_path / name, image)
  np.testing.assert_array_equal(read(source(tmp_path)), pictures[order])


def test_reads_every_extension(tmp_path, pictures):
  for extension in ('bmp', 'gif', 'jpeg', 'jpg', 'png', 'webp'):
    save(tmp_path / f'a.{extension}', pictures[0])
  assert read(source(tmp_path)).shape == (6, 6, 6, 3)


def test_other_files_and_hidden_files_are_left_out(tmp_path, pictures):
  for name in ('a.png', '.b.png', '.hidden/c.png'):
    save(tmp_path / name, pictures[0])
  (tmp_path / 'notes.txt').write_text('no picture')
  assert len(source(tmp_path)) == 1


def test_indices_may_repeat_and_run_backwards(tmp_path, pictures):
  for i, image in enumerate(pictures):
    save(tmp_path / f'{i}.png', image)
  np.testing.assert_array_equal(source(tmp_path).read(np.array([4, 1, 1])), pictures[[4, 1, 1]])


def test_pickles(tmp_path, pictures):
  save(tmp_path / 'a.png', pictures[0])
  opened = pickle.loads(pickle.dumps(source(tmp_path)))
  np.testing.assert_array_equal(read(opened), pictures[:1])


def test_splits_are_subfolders(tmp_path, pictures):
  for i, name in enumerate(('train/a.png', 'test/a.png', 'extra/a.png')):
    save(tmp_path / name, pictures[i])
  np.testing.assert_array_equal(read(source(tmp_path, 'test')), pictures[1:2])
  np.testing.assert_array_equal(read(source(tmp_path, 'extra')), pictures[2:3])
  assert len(source(tmp_path, 'all')) == 3
  with pytest.raises(UserError, match=r"data\.split='val'.*only extra, test, train"):
    source(tmp_path, 'val')


def test_a_folder_without_splits_is_every_split(tmp_path, pictures):
  save(tmp_path / 'cats/a.png', pictures[0])
  assert len(source(tmp_path, 'train')) == len(source(tmp_path, 'test')) == 1


def test_missing_folder(tmp_path):
  with pytest.raises(UserError, match=r'data\.source=.*nowhere does not exist'):
    source(tmp_path / 'nowhere')


def test_a_file_is_not_a_folder(tmp_path, pictures):
  save(tmp_path / 'a.png', pictures[0])
  with pytest.raises(UserError, match='is not a folder'):
    source(tmp_path / 'a.png')


def test_empty_folder(tmp_path):
  with pytest.raises(UserError, match=r'no pictures in .*\.bmp \.gif .*\.webp'):
    source(tmp_path)


def test_fingerprint_is_of_the_content_and_the_names(tmp_path, pictures):
  for folder in ('a', 'b', 'c', 'd'):
    for i, image in enumerate(pictures):
      save(tmp_path / folder / f'{i}.png', image)
  save(tmp_path / 'c/4.png', pictures[0])
  (tmp_path / 'd/4.png').rename(tmp_path / 'd/5.png')
  a, b, c, d = (data.fingerprint(source(tmp_path / folder)) for folder in 'abcd')
  assert a == b
  assert len({a, c, d}) == 3
  assert data.fingerprint(data.Substitutes(source(tmp_path / 'a'))) == a


def cut(path):
  path.write_bytes(path.read_bytes()[:-60])


def replace_by_text(path):
  path.write_text('no picture')


def empty(path):
  path.write_bytes(b'')


@pytest.mark.parametrize('damage', [cut, replace_by_text, empty, lambda path: path.unlink()])
@pytest.mark.parametrize('extension', ['png', 'jpg', 'bmp', 'gif', 'webp'])
def test_broken_file_is_named(tmp_path, pictures, damage, extension):
  for i, image in enumerate(pictures):
    save(tmp_path / f'{i}.{extension}', image)
  opened = source(tmp_path)
  damage(tmp_path / f'2.{extension}')
  with pytest.raises(UserError, match=rf'{tmp_path}/2\.{extension} cannot be read') as raised:
    read(opened)
  assert '\n' not in str(raised.value)
  assert opened.read(np.array([1])).shape == (1, 6, 6, 3)  # the others still can


@pytest.mark.parametrize('damage', [replace_by_text, empty])
def test_a_file_that_is_no_picture(tmp_path, pictures, damage):
  save(tmp_path / 'a.png', pictures[0])
  damage(tmp_path / 'a.png')
  with pytest.raises(UserError, match=r'a\.png cannot be read as a picture \(not a picture\): re'):
    read(source(tmp_path))


@pytest.mark.parametrize('extension', ['png', 'jpg', 'webp'])
def test_damaged_exif(tmp_path, pictures, extension):
  # Orientation, and a resolution that is text: of this, Pillow takes the absolute value.
  entries = struct.pack('<HHI4sHHI4s', 0x112, 3, 1, b'\3\0\0\0', 0x11A, 2, 1, b'x\0\0\0')
  exif = b'Exif\0\0II*\0\x08\0\0\0\2\0' + entries + bytes(4)
  PIL.Image.fromarray(pictures[0]).save(tmp_path / f'a.{extension}', exif=exif)
  with pytest.raises(UserError, match=rf'a\.{extension} cannot be read as a pict.* \(bad operand'):
    read(source(tmp_path))


def test_several_broken_files_are_counted(tmp_path, pictures):
  for i, image in enumerate(pictures):
    save(tmp_path / f'{i}.png', image)
  opened = source(tmp_path)
  for i in (1, 3, 4):
    cut(tmp_path / f'{i}.png')
  with pytest.raises(UserError, match=r'1\.png .*2 more of the 5 pictures'):
    read(opened)
