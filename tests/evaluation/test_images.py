"""Images of other programs: read as they are, and named when they cannot be."""

import hashlib

import numpy as np
import PIL.Image
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.images import open_images

FIELD = 'eval.samples'


def pictures(count=4, channels=3):
  return np.random.default_rng(0).integers(0, 256, (count, 5, 7, channels), np.uint8)


def write_folder(path, images, suffix='.png'):
  path.mkdir(parents=True, exist_ok=True)
  for i, image in enumerate(images):
    PIL.Image.fromarray(image.squeeze()).save(path / f'{i:03d}{suffix}')


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('key', ['samples', 'arr_0'])
@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_npz_images_are_read_unchanged(tmp_path, channels, key, save):
  images = pictures(channels=channels)
  save(tmp_path / 'x.npz', **{key: images, 'ids': np.arange(4)})
  opened = open_images(tmp_path / 'x.npz', FIELD)
  assert len(opened) == 4
  assert opened.image_shape == (5, 7, channels)
  assert opened.name == str(tmp_path / 'x.npz')
  block = opened.read(np.array([3, 0]))
  assert block.dtype == np.uint8
  np.testing.assert_array_equal(block, images[[3, 0]])


@pytest.mark.parametrize('channels', [1, 3])
def test_folder_images_are_read_unchanged(tmp_path, channels):
  images = pictures(channels=channels)
  write_folder(tmp_path, images)
  opened = open_images(str(tmp_path), FIELD)
  assert opened.image_shape == (5, 7, channels)
  assert opened.name == str(tmp_path)
  block = opened.read(np.array([2, 1]))
  assert block.dtype == np.uint8
  np.testing.assert_array_equal(block, images[[2, 1]])


def test_folders_are_read_in_the_order_of_names_with_their_subfolders(tmp_path):
  images = pictures(6)
  write_folder(tmp_path / 'b', images[4:])
  write_folder(tmp_path / 'a', images[:2])
  write_folder(tmp_path / 'a' / 'z', images[2:4])
  (tmp_path / 'a' / 'notes.txt').write_text('no picture')
  np.testing.assert_array_equal(open_images(tmp_path, FIELD).read(np.arange(6)), images)


def test_lossless_webp_and_other_case_are_read(tmp_path):
  images = pictures(2)
  for i, image in enumerate(images):
    PIL.Image.fromarray(image).save(tmp_path / f'{i}.WEBP', lossless=True)
  np.testing.assert_array_equal(open_images(tmp_path, FIELD).read(np.arange(2)), images)


def test_jpeg_files_are_counted_by_their_content(tmp_path):
  write_folder(tmp_path / 'a', pictures(3), '.jpg')
  write_folder(tmp_path / 'b', pictures(2))
  (tmp_path / 'a/000.jpg').rename(tmp_path / 'a/000.png')
  assert open_images(tmp_path, FIELD).jpeg_files == 3
  assert open_images(tmp_path / 'b', FIELD).jpeg_files == 0
  np.savez(tmp_path / 'x.npz', samples=pictures())
  assert open_images(tmp_path / 'x.npz', FIELD).jpeg_files == 0


def test_fingerprint_is_of_the_content_alone(tmp_path, monkeypatch):
  images = pictures(5)
  np.savez(tmp_path / 'x.npz', samples=images)
  write_folder(tmp_path / 'folder', images)
  fingerprint = open_images(tmp_path / 'x.npz', FIELD).fingerprint()
  assert len(fingerprint) == len(hashlib.sha256().hexdigest())
  assert open_images(tmp_path / 'folder', FIELD).fingerprint() == fingerprint
  monkeypatch.setattr('ddpm_jax.evaluation.images._HASHED', 2)
  assert open_images(tmp_path / 'x.npz', FIELD).fingerprint() == fingerprint

  images[4, 4, 6, 2] ^= 1
  np.savez(tmp_path / 'y.npz', samples=images)
  assert open_images(tmp_path / 'y.npz', FIELD).fingerprint() != fingerprint
  np.savez(tmp_path / 'z.npz', samples=images.reshape(5, 7, 5, 3))
  others = {open_images(tmp_path / f'{name}.npz', FIELD).fingerprint() for name in 'xyz'}
  assert len(others) == 3


def test_other_sizes_and_modes_are_refused_naming_both_files(tmp_path):
  write_folder(tmp_path / 'a', pictures(2))
  write_folder(tmp_path / 'b', pictures(1)[:, :4])
  with pytest.raises(UserError, match=r'a/000.png is 7 x 5 RGB and b/000.png 7 x 4 RGB'):
    open_images(tmp_path, FIELD)
  write_folder(tmp_path / 'b', pictures(1, channels=1))
  with pytest.raises(UserError, match=r'a/000.png is 7 x 5 RGB and b/000.png 7 x 5 L'):
    open_images(tmp_path, FIELD)


def test_modes_that_would_need_conversion_are_refused(tmp_path):
  for i in range(2):
    PIL.Image.new('RGBA', (4, 4)).save(tmp_path / f'{i}.png')
  with pytest.raises(UserError, match=r'0.png has mode RGBA; it must be RGB or L'):
    open_images(tmp_path, FIELD)


def test_broken_files_are_named(tmp_path):
  write_folder(tmp_path, pictures(3))
  broken = tmp_path / '001.png'
  whole = broken.read_bytes()
  broken.write_bytes(b'no picture at all')
  with pytest.raises(UserError, match=r'001.png is not a picture'):
    open_images(tmp_path, FIELD)
  broken.write_bytes(whole[: len(whole) // 2])  # its head says the size; the pixels are missing
  opened = open_images(tmp_path, FIELD)
  with pytest.raises(UserError, match=r'001.png cannot be read'):
    opened.read(np.arange(3))


def test_a_bomb_is_refused_like_any_broken_file(tmp_path, monkeypatch):
  write_folder(tmp_path, pictures(2))
  monkeypatch.setattr(PIL.Image, 'MAX_IMAGE_PIXELS', 5)
  with pytest.raises(UserError, match=r'000.png is not a picture'):
    open_images(tmp_path, FIELD)


@pytest.mark.parametrize(
  ('arrays', 'message'),
  [
    (dict(images=pictures()), 'has images; images are under samples or arr_0'),
    (dict(samples=pictures().astype(np.float32)), 'samples is float32.*must be uint8'),
    (dict(samples=pictures()[..., :2]), 'with 1 or 3 channels'),
    (dict(samples=pictures()[0]), r'must be uint8 \[N, H, W, C\]'),
    (dict(samples=pictures(1)), 'two are needed'),
    (dict(samples=pictures()[:0]), r'has 0 image\(s\); two are needed'),
    (dict(), 'has nothing; images are under'),
  ],
)
def test_other_arrays_are_refused_in_one_line(tmp_path, arrays, message):
  np.savez(tmp_path / 'x.npz', **arrays)
  with pytest.raises(UserError, match=message) as caught:
    open_images(tmp_path / 'x.npz', FIELD)
  assert str(caught.value).startswith(f'{FIELD}={tmp_path / "x.npz"}')
  assert '\n' not in str(caught.value)


def test_python_objects_are_refused(tmp_path):
  np.savez(tmp_path / 'x.npz', samples=np.array([{}, {}], object))
  with pytest.raises(UserError, match=r'x\.npz .*Python objects'):
    open_images(tmp_path / 'x.npz', FIELD)


def test_nothing_to_open_is_refused(tmp_path):
  with pytest.raises(UserError, match='has no pictures'):
    open_images(tmp_path, FIELD)
  (tmp_path / 'notes.txt').write_text('no picture')
  with pytest.raises(UserError, match='has no pictures'):
    open_images(tmp_path, FIELD)
  with pytest.raises(UserError, match='does not exist'):
    open_images(tmp_path / 'absent', FIELD)
  write_folder(tmp_path, pictures(1))
  with pytest.raises(UserError, match='two are needed'):
    open_images(tmp_path, FIELD)
