import contextlib
import errno
import os
import pickle
import socket
import struct

import numpy as np
import PIL.Image
import pytest

from ddpm_jax import data
from ddpm_jax.data.listing import EXTENSIONS
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
  extensions = set(EXTENSIONS) - {'.apng', '.j2k', '.pbm', '.pgm', '.pnm'}  # not for colour
  for extension in extensions:
    save(tmp_path / f'a{extension}', pictures[0])
  opened = source(tmp_path)
  assert opened.remarks == ()
  assert read(opened).shape == (len(extensions), 6, 6, 3)


def test_other_files_and_hidden_files_are_left_out_and_counted(tmp_path, pictures):
  for name in ('a.png', '.b.png', '.hidden/c.png'):
    save(tmp_path / name, pictures[0])
  for name in ('notes.txt', 'b.txt', 'more.txt', 'z.txt', 'README'):
    (tmp_path / name).write_text('no picture')
  (tmp_path / 'gone.png').symlink_to('nowhere')
  opened = source(tmp_path)
  assert len(opened) == 1
  assert opened.remarks == (
    f'{tmp_path}: 1 pictures; left out are 8: 4 .txt (b.txt, more.txt, notes.txt, ...); 2 hidden '
    '(.b.png, .hidden); 1 without an extension (README); 1 links to nothing (gone.png)',
  )


def test_a_format_that_this_pillow_lacks_is_said(tmp_path, pictures, monkeypatch):
  for name in ('a.png', 'b.avif'):
    save(tmp_path / name, pictures[0])
  PIL.Image.init()
  monkeypatch.delitem(PIL.Image.OPEN, 'AVIF')
  opened = source(tmp_path)
  assert len(opened) == 1
  assert '1 .avif, which Pillow here does not read (b.avif)' in opened.remarks[0]


def test_each_file_is_read_once_by_its_own_name(tmp_path, pictures):
  for i, image in enumerate(pictures):
    save(tmp_path / f'b/{i}.png', image)
  (tmp_path / 'again').symlink_to('.')
  (tmp_path / 'twice').symlink_to('.')
  (tmp_path / 'a').symlink_to('b')
  (tmp_path / 'b/up').symlink_to('..')
  (tmp_path / 'a.png').symlink_to('b/0.png')
  (tmp_path / 'c.png').hardlink_to(tmp_path / 'b/1.png')
  opened = source(tmp_path)
  np.testing.assert_array_equal(read(opened), pictures)
  assert opened.picture_names() == [b'b/%d.png' % i for i in range(5)]
  (remark,) = opened.remarks
  assert '4 links to folders that are read already (a, again, b/up, ...)' in remark
  assert '2 links to files that are read already (a.png, c.png)' in remark


def test_a_linked_folder_elsewhere_is_read(tmp_path, pictures):
  for i, image in enumerate(pictures):
    save(tmp_path / f'elsewhere/{i}.png', image)
  (tmp_path / 'root').mkdir()
  (tmp_path / 'root/link').symlink_to(tmp_path / 'elsewhere')
  np.testing.assert_array_equal(read(source(tmp_path / 'root')), pictures)


def test_what_is_no_regular_file_is_not_opened(tmp_path, pictures):
  save(tmp_path / 'a.png', pictures[0])
  os.mkfifo(tmp_path / 'x.png')
  with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
    server.bind(os.path.relpath(tmp_path / 'y.png'))
    opened = source(tmp_path)
  assert len(read(opened)) == 1
  assert '2 no regular files (x.png, y.png)' in opened.remarks[0]


def test_what_lies_beside_a_split_is_said(tmp_path, pictures):
  for name in ('train/a.png', 'test/a.png', 'car/a.png', 'plane/a.png', 'loose.png'):
    save(tmp_path / name, pictures[0])
  (remark,) = source(tmp_path).remarks
  assert remark == (
    f'{tmp_path}: train/ alone is read; beside it lie car/, plane/, loose.png (3 in all), which '
    'data.split=all reads, too'
  )
  assert len(source(tmp_path, 'all')) == 5


def test_splits_in_capitals_are_told_from_splits(tmp_path, pictures):
  save(tmp_path / 'Train/a.png', pictures[0])
  save(tmp_path / 'Test/a.png', pictures[1])
  opened = source(tmp_path)
  assert len(opened) == 2
  assert opened.remarks == (
    f'{tmp_path}: Test/, Train/ are read as any other folder; splits are written in small letters',
  )


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


def test_a_folder_without_splits_has_no_test_split(tmp_path, pictures):
  save(tmp_path / 'cats/a.png', pictures[0])
  assert len(source(tmp_path, 'train')) == len(source(tmp_path, 'all')) == 1
  message = r"data\.split='test': .* is one set of pictures.*--config\.data\.holdout=0\.1, given "
  with pytest.raises(data.NoSplitError, match=message):
    source(tmp_path, 'test')


@pytest.mark.parametrize('name', ['test', 'val', 'validation'])
def test_a_held_out_folder_alone_leaves_no_train_split(tmp_path, pictures, name):
  save(tmp_path / 'cats/a.png', pictures[0])
  save(tmp_path / name / 'a.png', pictures[1])
  with pytest.raises(data.NoSplitError, match=rf'no such subfolder, only cats, {name}$'):
    source(tmp_path, 'train')


def test_missing_folder(tmp_path):
  with pytest.raises(UserError, match=r'data\.source=.*nowhere does not exist'):
    source(tmp_path / 'nowhere')


def test_a_file_is_not_a_folder(tmp_path, pictures):
  save(tmp_path / 'a.png', pictures[0])
  with pytest.raises(UserError, match='is not a folder'):
    source(tmp_path / 'a.png')


def test_empty_folder(tmp_path):
  with pytest.raises(UserError, match=r'no pictures in .*\.bmp .*\.gif .*\.webp'):
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
  with pytest.raises(UserError, match=r'a\.png cannot be read as a picture \(not a picture\)\. Re'):
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
  message = r'1\.png .*2 more of the 5 pictures read with it: \S*/3\.png .*; \S*/4\.png .*'
  with pytest.raises(UserError, match=message + r'go on with --config\.data\.on_damage=skip$'):
    read(opened)


def test_what_the_system_fails_to_read_is_not_called_damaged(tmp_path, pictures, monkeypatch):
  save(tmp_path / 'a.png', pictures[0])
  opened = data.Substitutes(source(tmp_path))

  def fail(*_args, **_kwargs):
    raise OSError(errno.EIO, os.strerror(errno.EIO))

  monkeypatch.setattr(PIL.Image, 'open', fail)
  with pytest.raises(OSError, match=r'Input/output error: .*a\.png') as raised:
    read(opened)
  assert raised.value.errno == errno.EIO
  assert not isinstance(raised.value, UserError)
