"""What programs that compress without loss make of examples: FLAC, xz, PNG.

The figures stand beside a model's bits/dim. Each is the least of a program's settings, with all
headers, for each example by itself and for all in one.
"""

import io
import lzma
from collections.abc import Callable

import numpy as np

FLAC_CHANNELS = 8  # at most
FLAC_LEVELS = 1 << 16  # of its samples of 16 bits
FLAC_RATE = 44_100  # in its header: any will do


def coded_bits_per_dim(examples: np.ndarray, *, levels: int) -> dict[str, tuple[float, float]]:
  """Bits/dim of each program that is there and takes such examples.

  Args:
    examples: levels 0, ..., levels - 1, uint8 or uint16 [N, ..., C].
    levels: of the data.

  Returns:
    {program: (each example by itself, all in one)}.
  """
  coders: dict[str, Callable[[np.ndarray], int]] = {'xz': _xz}
  num_axes = examples.ndim - 2
  if num_axes == 1 and levels <= FLAC_LEVELS and examples.shape[-1] <= FLAC_CHANNELS:
    try:
      import soundfile  # noqa: F401

      coders['FLAC'] = lambda rows: _flac(rows, levels)
    except ImportError:
      pass
  if num_axes > 1 and levels <= 256 and examples.shape[-1] in (1, 3):
    coders['PNG'] = _png
  found = {}
  for name, coder in coders.items():
    each = sum(coder(example[None]) for example in examples)
    found[name] = 8 * each / examples.size, 8 * coder(examples) / examples.size
  return found


def _xz(examples):
  """Bytes of the shorter of xz of the values and of their differences, a channel after another."""
  width = examples.dtype.itemsize
  planes = np.moveaxis(examples, -1, 0)
  little = np.ascontiguousarray(planes.astype(f'<u{width}')).tobytes()
  best = {'preset': 9 | lzma.PRESET_EXTREME, 'dict_size': max(1 << 12, len(little))}
  filters = [{'id': lzma.FILTER_LZMA2, **best}]
  delta = [{'id': lzma.FILTER_DELTA, 'dist': width}]
  return min(len(lzma.compress(little, filters=before + filters)) for before in ([], delta))


def _flac(examples, levels):
  """Bytes of FLAC of 16 bits, a channel of the file each channel, example after example."""
  import soundfile

  samples = examples.reshape(-1, examples.shape[-1]).astype(np.int32) - levels // 2
  stream, kind = io.BytesIO(), {'format': 'FLAC', 'subtype': 'PCM_16', 'compression_level': 1.0}
  soundfile.write(stream, samples.astype(np.int16), FLAC_RATE, **kind)
  return len(stream.getvalue())


def _png(examples):
  """Bytes of PNG; slices of a volume one below another."""
  import PIL.Image

  *_, width, channels = examples.shape
  picture = examples.reshape(-1, width, channels).astype(np.uint8)
  stream = io.BytesIO()
  PIL.Image.fromarray(picture[..., 0] if channels == 1 else picture).save(
    stream, format='PNG', optimize=True
  )
  return len(stream.getvalue())
