"""Curves and tables as PNG files."""

import contextlib
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ddpm_jax.storage.files import written_whole


@contextlib.contextmanager
def _axes(file, count=1, *, size=(5.0, 3.6)):
  """Yields matplotlib axes side by side, and writes them to a PNG file, whole or not at all."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(size[0] * count, size[1]))
  FigureCanvasAgg(figure)
  yield figure.subplots(1, count, squeeze=False, gridspec_kw={'wspace': 0.35})[0]
  with written_whole(file) as partial:
    figure.savefig(partial, format='png', dpi=110, bbox_inches='tight')


def plot_curves(file: pathlib.Path, panels: Sequence[Mapping[str, Any]]) -> None:
  """Draws panels of curves.

  Args:
    file: pathlib.Path of the PNG.
    panels: list of dicts with title, x and y (labels), curves (list of (name, x values, y values,
      style)), and, where wanted, logx and logy.
  """
  with _axes(file, len(panels)) as all_axes:
    for axes, panel in zip(all_axes, panels, strict=True):
      for name, x, y, style in panel['curves']:
        axes.plot(x, y, style, label=name)
      axes.set_title(panel['title'], fontsize='medium')
      axes.set_xlabel(panel['x'])
      axes.set_ylabel(panel['y'])
      if panel.get('logx'):
        axes.set_xscale('log')
      if panel.get('logy'):
        axes.set_yscale('log')
      axes.grid(alpha=0.3)
      if len(panel['curves']) > 1:
        axes.legend(fontsize='small')


def plot_table(
  file: pathlib.Path,
  columns: Sequence[str],
  rows: Sequence[Sequence[str]],
  *,
  marked: Iterable[int] = (),
) -> None:
  """Draws a table.

  Args:
    file: pathlib.Path of the PNG.
    columns: names.
    rows: lists of strings.
    marked: indices of rows to set in bold.
  """
  height = 0.28 * (len(rows) + 2)
  with _axes(file, size=(1.7 * len(columns), height)) as (axes,):
    axes.axis('off')
    table = axes.table(cellText=rows, colLabels=columns, loc='center', cellLoc='left')
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    table.auto_set_column_width(range(len(columns)))
    for row in (0, *(index + 1 for index in marked)):
      for column in range(len(columns)):
        table[row, column].set_text_props(weight='bold')
