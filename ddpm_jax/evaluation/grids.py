"""Pictures in grids, as PNG and GIF files."""

import pathlib
from collections.abc import Sequence

import numpy as np

from ddpm_jax.data import PICTURES
from ddpm_jax.storage.files import written_whole

FRAME_MS = 60  # of an animation
LAST_FRAME_MS = 1_500
MAX_CAPTION = 24  # characters
MIN_CELL_PIXELS = 64  # smaller images are enlarged so that one can see them


def to_uint8(images: np.ndarray) -> np.ndarray:
  """float [-1, 1] -> uint8 [0, 255], clipped and rounded to the nearest level."""
  return PICTURES.decode(images)


def make_grid(
  images: np.ndarray,
  *,
  columns: int | None = None,
  padding: int = 2,
  captions: Sequence[str] | None = None,
  headings: Sequence[str] | None = None,
  note: str = '',
) -> np.ndarray:
  """Lays images out in rows.

  Args:
    images: uint8 [N, H, W, C], N at least 1.
    columns: images a row; by default as many as make a square, rounded up.
    padding: pixels between images.
    captions: a text beside each row.
    headings: a text above each column.
    note: a text below.

  Returns:
    uint8 [height, width, 3]; missing cells and the padding are black.
  """
  images = np.asarray(images)
  scale = -(-MIN_CELL_PIXELS // images.shape[1])
  images = images.repeat(scale, axis=1).repeat(scale, axis=2)
  if images.shape[-1] == 1:
    images = images.repeat(3, axis=-1)
  count, height, width, _ = images.shape
  columns = columns or int(np.ceil(np.sqrt(count * height / width)))
  rows = -(-count // columns)
  height, width = height + padding, width + padding
  grid = np.zeros((rows * height + padding, columns * width + padding, 3), np.uint8)
  for i, image in enumerate(images):
    top, left = padding + i // columns * height, padding + i % columns * width
    grid[top : top + image.shape[0], left : left + image.shape[1]] = image
  if not (captions or headings or note):
    return grid
  return _with_texts(grid, captions or (), headings or (), note, (height, width, padding))


def _with_texts(grid, captions, headings, note, sizes):
  """The grid with texts beside its rows, above its columns and below it, white on black."""
  from PIL import Image, ImageDraw

  height, width, padding = sizes
  draw = ImageDraw.Draw(Image.new('L', (1, 1)))

  def sized(texts):
    """[(text, its width, its height)]."""
    boxes = [(text, *draw.textbbox((0, 0), text)) for text in texts]
    return [(text, right, bottom) for text, _, _, right, bottom in boxes]

  def room(lengths):
    """For the longest of some texts; none for no texts."""
    return int(np.ceil(max(lengths))) + 2 * padding if lengths else 0

  captions, headings = (sized(text[:MAX_CAPTION] for text in of) for of in (captions, headings))
  notes = sized([note] if note else [])
  left, top = room([w for _, w, _ in captions]), room([h for _, _, h in headings])
  size = left + grid.shape[1], top + grid.shape[0] + room([h for _, _, h in notes])
  picture = Image.new('RGB', size)
  picture.paste(Image.fromarray(grid), (left, top))
  draw = ImageDraw.Draw(picture)
  for row, (text, _, h) in enumerate(captions):
    draw.text((padding, top + padding + row * height + (height - h) // 2), text)
  for column, (text, w, _) in enumerate(headings):
    draw.text((left + padding + column * width + max(0, width - padding - w) // 2, padding), text)
  for text, _, _ in notes:
    draw.text((left + padding, top + grid.shape[0]), text)
  return np.array(picture)


def save_png(path: pathlib.Path, image: np.ndarray) -> None:
  """Writes uint8 [H, W, 3] or [H, W, 1] whole or not at all."""
  from PIL import Image

  with written_whole(path) as partial:
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(partial, format='PNG')


def save_gif(
  path: pathlib.Path,
  frames: Sequence[np.ndarray],
  *,
  frame_ms: float = FRAME_MS,
  last_ms: float = LAST_FRAME_MS,
) -> None:
  """Writes an endless animation of uint8 [H, W, 3], whole or not at all.

  Args:
    path: of the file.
    frames: at least one. Equal ones that follow one another become one, which stays as long.
    frame_ms: how long a frame stays; the format counts in hundredths of a second.
    last_ms: how long the last one does.
  """
  from PIL import Image

  pictures = [Image.fromarray(frame) for frame in frames]
  durations = [max(10, 10 * round(ms / 10)) for ms in (frame_ms, last_ms)]
  durations = durations[:1] * (len(pictures) - 1) + durations[1:]
  with written_whole(path) as partial:
    pictures[0].save(
      partial,
      format='GIF',
      save_all=True,
      append_images=pictures[1:],
      duration=durations,
      loop=0,
    )
