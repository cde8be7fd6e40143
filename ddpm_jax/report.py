"""The report of an evaluation: every figure with what it was measured on, and how.

report.json is for programs, report.md for people. The words are chosen here so that no figure
passes for what it is not: an FID of fewer than 50,000 samples is FID-N, one against other images
than the train split says so, and a distance in the features of another network is not called FID
at all.
"""

import json

from ddpm_jax.files import write_text

FULL_COUNT = 50_000  # samples of a published FID

NAMES = {
  'fid': 'Frechet distance',
  'kid': 'Kernel distance',
  'is': 'Classifier score',
  'precision': 'Precision',
  'recall': 'Recall',
}
PUBLISHED_NAMES = {
  'fid': 'FID',
  'kid': 'KID',
  'is': 'Inception score',
  'precision': 'Precision',
  'recall': 'Recall',
}


def metric_name(metric, network, count, departures=()):
  """What a figure is called.

  Args:
    metric: 'fid', 'kid', 'is', 'precision' or 'recall'.
    network: dict with name, and published: whether it has the weights of published numbers.
    count: number of generated images.
    departures: words on what else is not as in published numbers, such as 'against test'.
  """
  if not network['published']:
    name = f'{NAMES[metric]} ({network["name"]}), {count:,} images'
  elif count >= FULL_COUNT:
    name = PUBLISHED_NAMES[metric]
  elif metric == 'fid':
    name = f'FID-{count}'
  else:
    name = f'{PUBLISHED_NAMES[metric]} of {count:,} images'
  return f'{name} ({", ".join(departures)})' if departures else name


def write_report(folder, report):
  """Writes report.json and report.md.

  Args:
    folder: pathlib.Path.
    report: dict of JSON values: title, about (dict of lines), notes (list of lines), figures
      (list of dicts with metric, name, value, count and further facts).
  """
  write_text(folder / 'report.json', json.dumps(report, indent=2) + '\n')
  write_text(folder / 'report.md', to_markdown(report))


def format_value(value):
  """A figure with as many digits as mean something."""
  return (
    f'{value:.4g}' if abs(value) < 1 else f'{value:.4f}' if abs(value) < 100 else f'{value:.2f}'
  )


def to_markdown(report):
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
