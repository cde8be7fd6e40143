"""Picture formats: bytes with headers and without, and what is lost."""

import io

import numpy as np
import PIL.features
import PIL.Image
import PIL.PngImagePlugin
import pytest

from ddpm_jax.data.digits import load_digits
from ddpm_jax.evaluation.picture_formats import QUALITIES, data_bytes, format_points

GREY = load_digits('test')[0][:5].reshape(5, 8, 8, 1).astype(np.uint8)
COLOUR = np.kron(GREY[:3].repeat(3, axis=-1), np.ones((1, 4, 4, 1), np.uint8))
FORMATS = ['PNG', 'JPEG', 'WebP', 'AVIF']


def saved(name, **options):
  if name in ('WebP', 'AVIF') and not PIL.features.check(name.lower()):
    pytest.skip(f'Pillow has no {name} here')
  stream = io.BytesIO()
  PIL.Image.fromarray(COLOUR[0]).save(stream, format=name, **options)
  return stream.getvalue()


@pytest.mark.parametrize('name', FORMATS)
def test_coded_data_are_the_same_whatever_else_a_file_has(name):
  more = (
    {'comment': 'x' * 500} if name == 'JPEG' else {'exif': b'Exif\0\0' + b'II*\0' + 500 * b'\0'}
  )
  if name == 'PNG':
    more = {'pnginfo': PIL.PngImagePlugin.PngInfo()}
    more['pnginfo'].add_text('comment', 'x' * 500)
  if name == 'AVIF':  # whose metadata are in the same box
    more = {'icc_profile': 500 * b'\0'}
  plain, other = saved(name), saved(name, **more)
  assert len(other) >= len(plain) + 500
  assert data_bytes(other, name) == data_bytes(plain, name) < len(plain)


def test_a_scan_of_jpeg_is_what_no_marker_has():
  tables = b'\xff\xd8' + b'\xff\xdb\0\x05abc' + b'\xff\xda\0\x04de'
  scan = b'12\xff\0\xff\xd045'  # a byte of value 255, and a restart
  assert data_bytes(tables + scan + b'\xff\xd9', 'JPEG') == len(scan)


@pytest.mark.parametrize('images', [GREY, COLOUR])
def test_more_bytes_have_less_error_and_those_without_loss_none(images):
  points = [*format_points(images)]
  assert {'PNG', 'JPEG'} <= {point.name for point in points}
  for name in {point.name for point in points}:
    lossless = [point for point in points if point.name == name and point.quality is None]
    assert all(point.rmse == 0 for point in lossless)
    lossy = [point for point in points if point.name == name and point.quality is not None]
    assert [point.quality for point in lossy] in ([], [*QUALITIES])
    if lossy:
      assert lossy[-1].rmse < lossy[0].rmse
      assert lossy[-1].data_bytes > lossy[0].data_bytes
  assert all(0 < point.data_bytes < point.file_bytes for point in points)


def test_a_picture_of_one_colour_takes_less_than_noise():
  noise = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
  flat = np.full_like(noise, 100)
  for of_flat, of_noise in zip(format_points(flat), format_points(noise), strict=True):
    if of_flat.quality is None or of_flat.quality >= 40:  # below, AVIF has little of either
      assert of_flat.data_bytes < of_noise.data_bytes / 4
