"""Pictures for people: of examples of any shape, in grids, as PNG and GIF files."""

import pathlib
from collections.abc import Sequence

import numpy as np

from ddpm_jax.data import PICTURES
from ddpm_jax.storage.files import written_whole

FRAME_MS = 60  # of an animation
LAST_FRAME_MS = 1_500
MAX_CAPTION = 24  # characters
LINES_HEIGHT, MIN_LINES_WIDTH = 64, 128  # pixels of a signal
COLOURS = ('#1f77b4', '#d62728', '#2ca02c', '#ff7f0e', '#9467bd', '#8c564b')  # of its channels
MIN_CELL_PIXELS = 64  # smaller images are enlarged so that one can see them


def to_uint8(images: np.ndarray) -> np.ndarray:
  """float [-1, 1] -> uint8 [0, 255], clipped and rounded to the nearest level."""
  return PICTURES.decode(images)


def pictures_of(x_0: np.ndarray) -> np.ndarray:
  """Examples of any shape as pictures: themselves, signals as lines, volumes as middle slices.

  Args:
    x_0: float [N, ..., C] on [-1, 1], of one to three spatial axes.

  Returns:
    uint8 [N, H, W, 1 or 3].
  """
  num_axes = x_0.ndim - 2
  if num_axes == 1:
    return np.stack([_lines(example) for example in x_0])
  if num_axes == 3:
    x_0 = _slices(x_0)
  if x_0.shape[-1] not in (1, 3):  # channels beside one another
    x_0 = np.concatenate(np.split(x_0, x_0.shape[-1], axis=-1), axis=2)
  return to_uint8(x_0)


def _lines(signal):
  """A signal [L, C] as lines, a colour each channel: uint8 [LINES_HEIGHT, W, 3]."""
  from PIL import Image, ImageDraw

  length, channels = signal.shape
  width = max(length, MIN_LINES_WIDTH)
  picture = Image.new('RGB', (width, LINES_HEIGHT), 'white')
  draw = ImageDraw.Draw(picture)
  at = np.linspace(0, width - 1, length)
  for channel in range(channels):
    rows = (1 - np.clip(signal[:, channel], -1, 1)) / 2 * (LINES_HEIGHT - 1)
    draw.line(list(zip(at.tolist(), rows.tolist(), strict=True)), fill=COLOURS[channel % 6])
  return np.array(picture)


def _slices(volumes):
  """[N, D, H, W, C] -> [N, height, width, C]: the middle slices across each axis, in a row."""
  slices = [volumes.take(volumes.shape[axis] // 2, axis) for axis in (1, 2, 3)]
  height = max(x.shape[1] for x in slices)
  padded = [
    np.pad(x, [(0, 0), (0, height - x.shape[1]), (0, 0), (0, 0)], constant_values=-1)
    for x in slices
  ]
  return np.concatenate(padded, axis=2)


def make_grid(
  images: np.ndarray,
  *,
  columns: int | None = None,
  padding: int = 2,
  captions: Sequence[str] | None = None,
) -> np.ndarray:
  """Lays images out in rows.

  Args:
    images: uint8 [N, H, W, C], N at least 1.
    columns: images a row; by default the square root of N, rounded up.
    padding: pixels between images.
    captions: a text beside each row.

  Returns:
    uint8 [height, width, 3]; missing cells and the padding are black.
  """
  images = np.asarray(images)
  scale = -(-MIN_CELL_PIXELS // images.shape[1])
  images = images.repeat(scale, axis=1).repeat(scale, axis=2)
  if images.shape[-1] == 1:
    images = images.repeat(3, axis=-1)
  count, height, width, _ = images.shape
  columns = columns or int(np.ceil(np.sqrt(count)))
  rows = -(-count // columns)
  height, width = height + padding, width + padding
  grid = np.zeros((rows * height + padding, columns * width + padding, 3), np.uint8)
  for i, image in enumerate(images):
    top, left = padding + i // columns * height, padding + i % columns * width
    grid[top : top + image.shape[0], left : left + image.shape[1]] = image
  return grid if captions is None else _with_captions(grid, captions, height, padding)


def _with_captions(grid, captions, height, padding):
  """The grid with a text on the left of each row, white on black."""
  from PIL import Image, ImageDraw

  shown = [text[:MAX_CAPTION] for text in captions]
  draw = ImageDraw.Draw(Image.new('L', (1, 1)))
  boxes = [draw.textbbox((0, 0), text) for text in shown]
  margin = int(np.ceil(max(box[2] for box in boxes))) + 2 * padding
  picture = Image.new('RGB', (margin + grid.shape[1], grid.shape[0]))
  picture.paste(Image.fromarray(grid), (margin, 0))
  draw = ImageDraw.Draw(picture)
  for row, (text, box) in enumerate(zip(shown, boxes, strict=True)):
    draw.text((padding, padding + row * height + (height - box[3]) // 2), text)
  return np.array(picture)


def save_png(path: pathlib.Path, image: np.ndarray) -> None:
  """Writes uint8 [H, W, 3] or [H, W, 1] whole or not at all."""
  from PIL import Image

  with written_whole(path) as partial:
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(partial, format='PNG')


def save_gif(path: pathlib.Path, frames: Sequence[np.ndarray]) -> None:
  """Writes an endless animation of uint8 [H, W, 3], whole or not at all; the last frame stays."""
  from PIL import Image

  pictures = [Image.fromarray(frame) for frame in frames]
  durations = [FRAME_MS] * (len(pictures) - 1) + [LAST_FRAME_MS]
  with written_whole(path) as partial:
    pictures[0].save(
      partial,
      format='GIF',
      save_all=True,
      append_images=pictures[1:],
      duration=durations,
      loop=0,
    )
