"""Signals as curves, in panels that share their axes: time across, values up."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

DPI = 100
# In inches: what the panels of a row share, within limits of one; its height; room for the labels.
ROW_WIDTH, MIN_WIDTH, MAX_WIDTH, HEIGHT, MARGIN = 12.0, 1.5, 5.0, 1.5, 0.9
GAP = 0.06  # between panels, of a panel's width or height
CAPTION_GAP = 0.22  # where a text stands above each row
MAX_LEGEND = 16  # channels
LEGEND_CHARACTERS = 14  # an inch


def time_axis(length: int, rate: float | None) -> tuple[np.ndarray, float, str]:
  """Where the samples of a signal lie.

  Args:
    length: samples.
    rate: samples a second; None if that is not known.

  Returns:
    (float64 [length], the end of the axis, which begins at 0; its unit).
  """
  step, unit = (1.0, 'samples') if rate is None else (1 / rate, 'seconds')
  return np.arange(length) * step, length * step, unit


def value_range(values: np.ndarray) -> tuple[float, float]:
  """The least and the greatest finite one of some values, with a margin: the ends of an axis."""
  finite = values[np.isfinite(values)]
  low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
  margin = 0.05 * (high - low) or 1.0
  return low - margin, high + margin


def ticks(low: float, high: float, most: int) -> np.ndarray:
  """Round numbers from low to high, about `most` of them, 1, 2 or 5 times a power of ten apart."""
  from matplotlib.ticker import MaxNLocator

  values = np.asarray(MaxNLocator(most, steps=[1, 2, 5, 10]).tick_values(low, high))
  return values[(values >= low) & (values <= high)]


def signal_panels(
  signals: np.ndarray,
  *,
  columns: int,
  rate: float | None = None,
  channel_names: Sequence[str] | None = None,
  captions: Sequence[str] | None = None,
  headings: Sequence[str] | None = None,
  is_empty: np.ndarray | None = None,
  values: tuple[float, float] | None = None,
  dpi: int = DPI,
) -> 'Figure':
  """A panel for each signal, a curve for each channel.

  All lie on one pair of matplotlib's axes, which is many times faster than a pair for each: panel i
  is the square of side 1 whose lower left corner is panel_corners(N, columns)[i], and the ticks say
  what lies there.

  Args:
    signals: [N, L, C], in the unit of the data.
    columns: panels a row.
    rate: samples a second; None if that is not known.
    channel_names: C of them, for a legend; None for none.
    captions: a text above each row.
    headings: a text above each column.
    is_empty: bool [N], panels without a signal; None for none.
    values: the ends of the axis, which values beyond are drawn at; None for value_range of the
      signals.
    dpi: pixels an inch, of figures of some 12 inches.

  Returns:
    a matplotlib Figure.
  """
  from matplotlib.collections import LineCollection
  from matplotlib.figure import Figure

  count, length, channels = signals.shape
  is_shown = np.ones(count, bool) if is_empty is None else ~is_empty
  gap = GAP if captions is None else CAPTION_GAP
  corners = panel_corners(count, columns, gap)
  times, end, unit = time_axis(length, rate)
  low, high = value_range(signals[is_shown]) if values is None else values
  width = float(np.clip(ROW_WIDTH / columns, MIN_WIDTH, MAX_WIDTH))
  rows = -(-count // columns)
  size = width * columns + MARGIN, HEIGHT * rows + MARGIN
  figure = Figure(size, dpi=dpi, layout='constrained')
  axes = figure.add_subplot()
  curves = np.empty((count, length, channels, 2))
  curves[..., 0] = (times / end)[:, None]
  curves[..., 1] = (np.clip(signals, low, high) - low) / (high - low)
  curves += corners[:, None, None]
  for channel in range(channels):
    axes.add_collection(
      LineCollection(curves[is_shown, :, channel], colors=f'C{channel % 10}', linewidths=0.9)
    )
  frame = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)])
  axes.add_collection(
    LineCollection(corners[is_shown, None] + frame, colors='black', linewidths=0.8, clip_on=False)
  )
  x_ticks, y_ticks = ticks(0, end, 6 if width > 2 else 3), ticks(low, high, 4)
  first_row, first_column = corners[:columns, 0], corners[::columns, 1]
  x_places, y_places = x_ticks / end, (y_ticks - low) / (high - low)
  _set_ticks(axes.xaxis, first_row, x_ticks, x_places)
  _set_ticks(axes.yaxis, first_column, y_ticks, y_places)
  lines = [[(x, 0), (x, 1)] for x in x_places] + [[(0, y), (1, y)] for y in y_places]
  grid = (corners[is_shown, None, None] + np.array(lines)).reshape(-1, 2, 2)
  axes.add_collection(LineCollection(grid, colors='lightgrey', linewidths=0.6, zorder=0))
  axes.set(frame_on=False, xlim=(0, first_row[-1] + 1), ylim=(first_column[-1], 1), xlabel=unit)
  _add_texts(axes, captions, [(0, y + 1.03) for y in first_column], ha='left')
  top = 1.03 if captions is None else 1 + gap
  _add_texts(axes, headings, [(x + 0.5, top) for x in first_row], ha='center')
  one_name = channel_names[0] if channel_names and channels == 1 else 'value'
  axes.set_ylabel(one_name).set_parse_math(False)
  if channel_names and 1 < channels <= MAX_LEGEND:
    _add_legend(figure, axes.collections[:channels], channel_names)
  return figure


def panel_corners(count: int, columns: int, gap: float = GAP) -> np.ndarray:
  """The lower left corners of panels of side 1, float64 [count, 2]; that of the first is (0, 0)."""
  rows, of_row = np.divmod(np.arange(count), columns)
  return np.stack([of_row * (1 + GAP), -rows * (1.0 + gap)], axis=-1)


def _set_ticks(axis, corners, values, places):
  """Ticks of each panel of a row or column: the values, at places within the panel."""
  at = np.add.outer(corners, places).reshape(-1)
  axis.set_ticks(at, [f'{value:g}' for value in values] * len(corners), fontsize='small')


def _add_texts(axes: 'Axes', texts, places, *, ha):
  """Names may hold what matplotlib takes for formulas: they are shown as they are."""
  for text, (x, y) in zip(texts or (), places, strict=False):
    axes.text(x, y, text, ha=ha, va='bottom', fontsize='small').set_parse_math(False)


def _add_legend(figure, curves, names):
  """The names of the channels, above the panels."""
  numbers = [f'channel {i + 1}' for i in range(len(names))]
  widest = max(map(len, names)) + 8  # with the line beside it
  columns = int(LEGEND_CHARACTERS * figure.get_figwidth() / widest)
  legend = figure.legend(
    curves,
    numbers,
    loc='outside upper center',
    ncols=max(1, min(len(names), columns)),
    fontsize='small',
  )
  for text, name in zip(legend.get_texts(), names, strict=True):
    text.set_parse_math(False)
    text.set_text(name)


def drawn(figure: 'Figure') -> np.ndarray:
  """The pixels of a Figure, uint8 [H, W, 3]."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  return np.array(canvas.buffer_rgba())[..., :3]
