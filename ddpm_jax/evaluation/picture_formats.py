"""What picture formats make of pictures: PNG, WebP, AVIF, JPEG and JPEG XL, at several qualities.

Each picture is a file of its own. Its bytes are counted twice: all of them, and those of the coded
data alone, without what the format says of every picture (sizes, tables, metadata).
"""

import io
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

QUALITIES = (1, 5, 10, 20, 40, 60, 80, 95)
# By Pillow's names: the options of a file without loss; None for a format that always has some.
_LOSSLESS = {
  'PNG': {'optimize': True},
  'WebP': {'lossless': True, 'quality': 100, 'method': 6},
  'JXL': {'lossless': True, 'effort': 9},
}
_LOSSY = {'WebP': {'method': 6}, 'AVIF': {'speed': 2}, 'JPEG': {'optimize': True}, 'JXL': {}}


class Point(NamedTuple):
  """What a format reaches, in means over pictures.

  Attributes:
    name: of the format.
    quality: of QUALITIES; None without loss.
    file_bytes: of a picture.
    data_bytes: those of its coded data.
    rmse: root of the mean squared error, of 255.
  """

  name: str
  quality: int | None
  file_bytes: float
  data_bytes: float
  rmse: float


def format_points(images: np.ndarray) -> Iterator[Point]:
  """What each format reaches that is installed, without loss and at each of QUALITIES.

  Args:
    images: uint8 [N, H, W, 1 or 3].
  """
  known = _installed()
  for name, options in _LOSSLESS.items():
    if name in known:
      yield _point(images, name, None, options)
  for name, options in _LOSSY.items():
    for quality in QUALITIES if name in known else ():
      yield _point(images, name, quality, options | {'quality': quality})


def _installed():
  """Names of the formats that Pillow writes here; JPEG XL by the package pillow-jxl-plugin."""
  import PIL.features

  known = {'PNG', 'JPEG'}
  known |= {name for name in ('WebP', 'AVIF') if PIL.features.check(name.lower())}
  try:
    import pillow_jxl  # noqa: F401

    known.add('JXL')
  except ImportError:
    pass
  return known


def _point(images, name, quality, options):
  import PIL.Image

  sizes, squares = [], []
  for image in images:
    picture = PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    stream = io.BytesIO()
    picture.save(stream, format=name, **options)
    file = stream.getvalue()
    with PIL.Image.open(io.BytesIO(file)) as read:
      decoded = np.asarray(read.convert(picture.mode), np.float64)
    sizes.append((len(file), data_bytes(file, name)))
    squares.append(np.square(decoded.reshape(image.shape) - image).mean())
  file_bytes, coded = np.mean(sizes, axis=0).tolist()
  return Point(name, quality, file_bytes, coded, float(np.sqrt(np.mean(squares))))


def data_bytes(file: bytes, name: str) -> int:
  """Bytes of the coded data of a file of a format.

  PNG: its IDAT chunks. WebP: its VP8, VP8L and ALPH chunks. AVIF: its mdat boxes. JPEG: its
  scans, without the tables. JPEG XL: its codestream.
  """
  if name == 'PNG':
    return sum(end - start for kind, start, end in _png_chunks(file) if kind == b'IDAT')
  if name == 'WebP':
    kinds = (b'VP8 ', b'VP8L', b'ALPH')
    return sum(end - start for kind, start, end in _riff_chunks(file) if kind in kinds)
  if name == 'JPEG':
    return _scan_bytes(file)
  kinds = (b'mdat',) if name == 'AVIF' else (b'jxlc', b'jxlp')
  found = sum(end - start for kind, start, end in _boxes(file) if kind in kinds)
  return found or len(file)  # a JPEG XL without a container is a codestream


def _png_chunks(file):
  """(kind, start, end) of each chunk's data."""
  place = 8
  while place < len(file):
    length = int.from_bytes(file[place : place + 4], 'big')
    yield file[place + 4 : place + 8], place + 8, place + 8 + length
    place += length + 12


def _riff_chunks(file):
  place = 12
  while place < len(file):
    length = int.from_bytes(file[place + 4 : place + 8], 'little')
    yield file[place : place + 4], place + 8, place + 8 + length
    place += 8 + length + length % 2


def _boxes(file):
  """Of the ISO base media file format; a box of length 0 goes to the end."""
  place = 0
  while place + 8 <= len(file):
    length, head = int.from_bytes(file[place : place + 4], 'big'), 8
    if length == 1:
      length, head = int.from_bytes(file[place + 8 : place + 16], 'big'), 16
    end = place + length if length else len(file)
    if end < place + head:
      return
    yield file[place + 4 : place + 8], place + head, end
    place = end


def _scan_bytes(file):
  """Of a JPEG: all bytes that are in no marker's segment."""
  place, found = 2, 0
  while place < len(file):
    marker = file[place + 1] if file[place] == 0xFF else 0
    if marker == 0xD9:  # the end
      break
    if marker == 0 or 0xD0 <= marker <= 0xD7:  # a byte of a scan, or a restart within it
      found, place = found + 1, place + 1
      continue
    place += 2 + int.from_bytes(file[place + 2 : place + 4], 'big')
  return found
