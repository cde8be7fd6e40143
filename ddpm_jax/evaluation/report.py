"""The report of an evaluation: every figure with what it was measured on, and how.

report.json is for programs, report.md for people. The words are chosen here so that no figure
passes for what it is not: an FID of fewer than 50,000 samples is FID-N, one against other images
than the train split says so, and a distance in the features of another network is not called FID
at all.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ddpm_jax.storage.files import write_text

FULL_COUNT = 50_000  # samples of a published FID


def figure_name(
  names: tuple[str, str],
  network: Mapping[str, Any],
  count: int,
  departures: Sequence[str] = (),
) -> str:
  """What a figure is called.

  Args:
    names: with the weights of published numbers, and with others.
    network: dict with name, and published: whether it has the weights of published numbers.
    count: number of generated images.
    departures: words on what else is not as in published numbers, such as 'against test'.
  """
  published, other = names
  if not network['published']:
    name = f'{other} ({network["name"]}), {count:,} images'
  elif count >= FULL_COUNT:
    name = published
  elif published == 'FID':
    name = f'FID-{count}'
  else:
    name = f'{published} of {count:,} images'
  return f'{name} ({", ".join(departures)})' if departures else name


def write_report(folder: pathlib.Path, report: Mapping[str, Any]) -> None:
  """Writes report.json and report.md.

  Args:
    folder: pathlib.Path, which is made.
    report: dict of JSON values: title, about (dict of lines), notes (list of lines), figures
      (list of dicts with metric, name, value, count and further facts).
  """
  folder.mkdir(parents=True, exist_ok=True)
  write_text(folder / 'report.json', json.dumps(report, indent=2) + '\n')
  write_text(folder / 'report.md', to_markdown(report))


def format_value(value: float) -> str:
  """A figure with as many digits as mean something."""
  return (
    f'{value:.4g}' if abs(value) < 1 else f'{value:.4f}' if abs(value) < 100 else f'{value:.2f}'
  )


def to_markdown(report: Mapping[str, Any]) -> str:
  """The report for people: notes, a table of the figures, then how each was measured."""
  lines = [f'# {report["title"]}', '']
  for note in report['notes']:
    lines += [f'**{note}**', '']
  lines += ['| Figure | Value | Standard error | Images | Between halves of the real data |']
  lines += ['|---|---|---|---|---|']
  for figure in report['figures']:
    error, sanity = figure.get('standard_error'), figure.get('sanity')
    lines.append(
      f'| {figure["name"]} | {format_value(figure["value"])} | '
      f'{"" if error is None else format_value(error)} | {figure["count"]:,} | '
      f'{"" if sanity is None else format_value(sanity)} |'
    )
  lines += ['', '## How', '']
  lines += [f'* {name}: {value}' for name, value in report['about'].items()]
  shown = ('metric', 'bpd_split', 'name', 'value', 'standard_error', 'count', 'sanity')
  for figure in report['figures']:
    lines += ['', f'### {figure["name"]}', '']
    lines += [f'* {name}: {value}' for name, value in figure.items() if name not in shown]
  return '\n'.join(lines) + '\n'
