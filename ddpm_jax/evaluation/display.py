"""Examples of any shape, for people to see.

pictures   themselves, in a grid
signals    curves on axes, in seconds where the rate is known
volumes    the middle slice across each axis, and below it the means along that axis
films      volumes whose first axis is time: strips of frames, and animations
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ddpm_jax.data import PICTURES, Encoding
from ddpm_jax.evaluation.grids import make_grid, save_gif, save_png, to_uint8
from ddpm_jax.evaluation.panels import DPI, drawn, signal_panels, value_range

MAX_PICTURES, MAX_SIGNALS = 100, 16  # of a grid of samples
TIME_AXIS = 1  # of films [N, T, H, W, C]
MAX_STRIP = 8  # frames
MIN_SLICE_PIXELS = 64  # smaller slices and frames are enlarged
LINE, LINE_LEVEL = 1, 96  # pixels between slices, and their grey
PADDING = 6  # pixels between volumes
FRAMES_A_SECOND = 10.0  # where the rate is not known


@dataclasses.dataclass(frozen=True)
class Display:
  """What pictures of examples go by.

  Attributes:
    encoding: of the data.
    num_axes: spatial ones: 1 of signals, 2 of pictures, 3 of volumes.
    rate: samples or frames a second; None where that is not known.
    channel_names: None where they are not known.
    are_films: whether the first axis of volumes is time.
  """

  encoding: Encoding = PICTURES
  num_axes: int = 2
  rate: float | None = None
  channel_names: tuple[str, ...] | None = None
  are_films: bool = False

  @property
  def are_signals(self) -> bool:
    """Whether examples have one spatial axis."""
    return self.num_axes == 1

  @property
  def most_shown(self) -> int:
    """How many samples a grid shows."""
    return MAX_SIGNALS if self.are_signals else MAX_PICTURES

  def grid(
    self,
    examples: np.ndarray,
    *,
    columns: int | None = None,
    captions: Sequence[str] | None = None,
    headings: Sequence[str] | None = None,
    is_empty: np.ndarray | None = None,
    values: tuple[float, float] | None = None,
    dpi: int = DPI,
  ) -> np.ndarray:
    """Examples in a grid.

    Args:
      examples: [N, ..., C] as the data are stored.
      columns: examples a row; None for about as many as rows, or a shape like a square.
      captions: a text beside each row.
      headings: a text above each column.
      is_empty: bool [N], cells to be left empty; None for none.
      values: the ends of the axis of signals; None for those of the examples.
      dpi: pixels an inch, of signals.

    Returns:
      uint8 [height, width, 3].
    """
    if not self.are_signals:
      return make_grid(
        _emptied(self.pictures(examples), is_empty),
        columns=columns,
        captions=captions,
        headings=headings,
        **self._volumes_layout(examples),
      )
    return drawn(
      signal_panels(
        examples,
        columns=columns or int(np.ceil(np.sqrt(len(examples)))),
        rate=self.rate,
        channel_names=self.channel_names,
        captions=captions,
        headings=headings,
        is_empty=is_empty,
        values=values,
        dpi=dpi,
      )
    )

  def _volumes_layout(self, examples):
    """What `make_grid` takes for volumes alone."""
    if self.num_axes != 3:
      return {}
    note = 'above: the middle slice across each axis; below: the means along it'
    if self.are_films:
      length = examples.shape[TIME_AXIS]
      note = f'frames {", ".join(str(t + 1) for t in strip_frames(length))} of {length}'
    return {'padding': PADDING, 'note': note}

  def pictures(self, examples: np.ndarray) -> np.ndarray:
    """Examples of two or three spatial axes, each as one picture: uint8 [N, H, W, 1 or 3]."""
    x_0 = self.encoding.x_0(examples)
    if x_0.ndim == 4:
      return _in_colour(x_0)
    if self.are_films:
      frames = [x_0.take(t, TIME_AXIS) for t in strip_frames(x_0.shape[TIME_AXIS])]
      return _in_rows([_in_colour(frame) for frame in frames], MAX_STRIP)
    return _in_rows([_in_colour(part) for part in (*slices(x_0), *projections(x_0))], 3)

  def frames(
    self, films: np.ndarray, *, is_empty: np.ndarray | None = None, **layout: Any
  ) -> list[np.ndarray]:
    """Each frame of films [N, T, H, W, C] in a grid, as `make_grid` lays it out."""
    x_0 = self.encoding.x_0(films)
    return [
      make_grid(_emptied(_in_colour(x_0.take(t, TIME_AXIS)), is_empty), **layout)
      for t in range(x_0.shape[TIME_AXIS])
    ]

  def save(
    self,
    file: pathlib.Path,
    examples: np.ndarray,
    *,
    values: tuple[float, float] | None = None,
    **layout: Any,
  ) -> None:
    """Writes `grid` as a PNG file, and of films an animation beside it, FILE.gif."""
    if self.are_films:
      self._save_film(file, self.frames(examples, **layout))
    save_png(file, self.grid(examples, values=values, **layout))

  def save_one(self, file: pathlib.Path, example: np.ndarray) -> None:
    """As `save`, of one example alone: a picture pixel by pixel."""
    examples = example[None]
    if self.are_films:
      self._save_film(file, self.frames(examples, padding=0))
    save_png(file, self.grid(examples) if self.are_signals else self.pictures(examples)[0])

  def _save_film(self, file, frames):
    frame_ms = 1000 / (self.rate or FRAMES_A_SECOND)
    save_gif(file.with_suffix('.gif'), frames, frame_ms=frame_ms, last_ms=frame_ms)

  def animation(self, steps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A `grid` of each of several arrays of examples, all on the axes of the last."""
    values = self.value_range(steps[-1])
    return [self.grid(examples, values=values, dpi=DPI // 2) for examples in steps]

  def value_range(self, examples: np.ndarray) -> tuple[float, float] | None:
    """The ends of the axis of some signals; None of other examples."""
    return value_range(examples) if self.are_signals else None


def strip_frames(length: int) -> list[int]:
  """Up to MAX_STRIP of so many frames, about evenly spaced: the first, ..., the last."""
  return np.linspace(0, length - 1, min(length, MAX_STRIP)).round().astype(int).tolist()


def slices(volumes: np.ndarray) -> list[np.ndarray]:
  """The middle slices of volumes [N, D, H, W, C] across each axis: three [N, height, width, C]."""
  return [volumes.take(volumes.shape[axis] // 2, axis) for axis in (1, 2, 3)]


def projections(volumes: np.ndarray) -> list[np.ndarray]:
  """The means of volumes [N, D, H, W, C] along each axis: three [N, height, width, C]."""
  return [volumes.mean(axis) for axis in (1, 2, 3)]


def _emptied(pictures, is_empty):
  """The pictures, black where they are to be empty."""
  return pictures if is_empty is None else np.where(is_empty[:, None, None, None], 0, pictures)


def _in_colour(x_0):
  """x_0 [N, H, W, C] as uint8 of 1 or 3 channels: others lie beside one another."""
  if x_0.shape[-1] not in (1, 3):
    x_0 = np.concatenate(np.split(x_0, x_0.shape[-1], axis=-1), axis=2)
  return to_uint8(x_0)


def _in_rows(parts, columns):
  """Batches of pictures uint8 [N, H, W, C] in rows, all enlarged by the same factor."""
  scale = -(-MIN_SLICE_PIXELS // max(part.shape[1] for part in parts))
  parts = [part.repeat(scale, axis=1).repeat(scale, axis=2) for part in parts]
  rows = [_joined(parts[i : i + columns], 2, 1) for i in range(0, len(parts), columns)]
  return _joined(rows, 1, 2)


def _joined(parts, axis, other):
  """Batches of pictures one after the other along an axis, lines between; shorter ones are filled
  up along the other axis."""
  most = max(part.shape[other] for part in parts)
  joined = []
  for part in parts:
    widths = [(0, most - size if i == other else 0) for i, size in enumerate(part.shape)]
    part = np.pad(part, widths)
    line = np.full_like(part.take(range(LINE), axis), LINE_LEVEL)
    joined += [line, part]
  return np.concatenate(joined[1:], axis)
