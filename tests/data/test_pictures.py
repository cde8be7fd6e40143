import io

import numpy as np
import PIL.Image
import pytest

from ddpm_jax import data
from ddpm_jax.data.pictures import PictureSource, decode_picture
from ddpm_jax.errors import UserError
from tests.fuzz import SLOW_FACTOR, count_refusals, mutations


def prepare(array, image_size, channels, mode=None):
  picture = PIL.Image.fromarray(array)
  if mode:
    picture = picture.convert(mode)
  return data.prepare_picture(picture, image_size=image_size, channels=channels)


@pytest.mark.parametrize('channels', [1, 3])
def test_right_size_and_mode_pass_bit_for_bit(channels):
  image = np.random.RandomState(0).randint(0, 256, (9, 9, channels), np.uint8)
  np.testing.assert_array_equal(prepare(image.squeeze(), 9, channels), image)


@pytest.mark.parametrize('size', [1, 5, 16, 40])
def test_resize_keeps_constants(size):
  image = np.broadcast_to(np.array([0, 127, 255], np.uint8), (16, 16, 3))
  np.testing.assert_array_equal(
    prepare(image, size, 3), np.broadcast_to(image[0, 0], (size, size, 3))
  )


def test_shrinking_is_antialiased():
  checkers = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
  small = prepare(checkers, 8, 1)[1:-1, 1:-1]  # away from the border
  np.testing.assert_allclose(small, 127.5, atol=1)  # without antialiasing: 0 or 255


@pytest.mark.parametrize(('height', 'width'), [(5, 10), (10, 5)])
def test_crop_is_central(height, width):
  image = np.zeros((height, width, 3), np.uint8)
  image[(height - 5) // 2 :, (width - 5) // 2 :][:5, :5] = 200
  assert (prepare(image, 5, 3) == 200).all()


@pytest.mark.parametrize(
  ('size', 'box'),
  [((5, 10), (0, 5, 20, 15)), ((10, 5), (5, 0, 15, 20)), ((20, 20), (0, 0, 20, 20))],
)
def test_other_forms_are_cut_from_the_middle_and_resized(size, box):
  """The largest part of the form of the result; (left, top, right, bottom)."""
  image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
  cut = PIL.Image.fromarray(image).crop(box)
  expected = cut.resize(size[::-1], PIL.Image.Resampling.LANCZOS)
  np.testing.assert_array_equal(prepare(image, size, 3), np.asarray(expected))
  if cut.size == size[::-1]:
    np.testing.assert_array_equal(prepare(image, size, 3), image)


def test_one_pixel_of_a_long_picture_is_the_least_that_is_cut():
  image = np.full((1, 9), 7, np.uint8)
  assert prepare(image, (2, 64), 1).shape == (2, 64, 1)
  assert (prepare(image, (64, 2), 1) == 7).all()


@pytest.mark.parametrize('mode', ['L', 'RGB', 'P', 'CMYK', '1', 'LA', 'RGBA', 'YCbCr'])
@pytest.mark.parametrize('channels', [1, 3])
def test_modes_keep_white_and_black(mode, channels):
  image = np.zeros((4, 4, 3), np.uint8)
  image[:, 2:] = 255
  expected = np.broadcast_to(image[..., :1], (4, 4, channels))
  np.testing.assert_array_equal(prepare(image, 4, channels, mode), expected)


def test_grey_is_luma():
  red = np.broadcast_to(np.array([255, 0, 0], np.uint8), (4, 4, 3))
  assert (prepare(red, 4, 1) == 76).all()  # ITU-R 601: 0.299 * 255


def test_transparent_pixels_turn_white():
  image = np.zeros((4, 4, 4), np.uint8)
  image[2:, :, 3] = 255  # the lower half is opaque black
  prepared = prepare(image, 4, 3)
  assert (prepared[:2] == 255).all()
  assert (prepared[2:] == 0).all()


@pytest.mark.parametrize('form', ['png', 'ppm', 'tiff'])
@pytest.mark.parametrize('channels', [1, 3])
def test_grey_of_16_bits_keeps_the_upper_8(form, channels):
  values = np.array([[0, 255, 256], [257, 40_000, 65_535], [1, 32_768, 65_280]], np.uint16)
  file = io.BytesIO()
  PIL.Image.fromarray(values).save(file, form)
  decoded = decode_picture(file, image_size=3, channels=channels, upright=True)
  expected = np.broadcast_to((values >> 8)[..., None], (3, 3, channels))
  np.testing.assert_array_equal(decoded, expected)


def test_a_transparent_level_of_16_bits_turns_white():
  values = np.array([[500, 501], [500, 0]], np.uint16)
  file = io.BytesIO()
  PIL.Image.fromarray(values).save(file, 'png', transparency=500)
  decoded = decode_picture(file, image_size=2, channels=1, upright=True)
  assert decoded[..., 0].tolist() == [[255, 1], [255, 0]]


@pytest.mark.parametrize('kind', [np.int32, np.float32])
def test_deeper_pictures_are_refused(kind):
  with pytest.raises(UserError, match='more than 16 bits'):
    prepare(np.zeros((4, 4), kind), 4, 1)


@pytest.mark.parametrize('upright', [False, True])
def test_orientation(upright):
  image = np.zeros((8, 8, 3), np.uint8)
  image[:4] = 255  # white above
  exif = PIL.Image.Exif()
  exif[0x0112] = 3  # Orientation: turned by 180 degrees
  file = io.BytesIO()
  PIL.Image.fromarray(image).save(file, 'png', exif=exif)
  decoded = decode_picture(file, image_size=8, channels=3, upright=upright)
  np.testing.assert_array_equal(decoded, image[::-1] if upright else image)


class OnePicture(PictureSource):
  """One encoded picture."""

  def __init__(self, content):
    super().__init__('one', 'train', image_size=8, channels=3, upright=True)
    self._content = content

  def _files(self, indices):
    return [io.BytesIO(self._content)]

  def _picture_name(self, index):
    return 'the picture'


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('factor', [1, pytest.param(SLOW_FACTOR, marks=pytest.mark.slow)])
@pytest.mark.parametrize('form', ['jpeg', 'png', 'webp'])
def test_mutated_pictures_are_named_or_read(form, factor):
  image = np.random.RandomState(0).randint(0, 256, (12, 9, 3), np.uint8)
  exif = PIL.Image.Exif()
  exif[0x0112] = 3  # Orientation
  exif[0x011A] = 72.0  # XResolution
  file = io.BytesIO()
  PIL.Image.fromarray(image).save(file, form, exif=exif)

  def read(content):
    try:
      return OnePicture(content).read([0])
    except data.BrokenPicturesError as error:
      assert str(error).startswith('the picture cannot be read as a picture (')  # noqa: PT017
      raise UserError(str(error)) from error

  def judge(images):
    assert (images.shape, images.dtype) == ((1, 8, 8, 3), np.uint8)

  assert count_refusals(read, judge, mutations(file.getvalue(), 300 * factor)) > 100 * factor
