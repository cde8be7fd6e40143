"""Tables 1 and 2: this model in the paper's list and among its ablations."""

import pathlib

from ddpm_jax import processes
from ddpm_jax.evaluation.figures import paper
from ddpm_jax.evaluation.figures.run import Run, write_table


def _printed(figure):
  """A figure as a cell, with what it really is where that is not the column's name."""
  if figure is None:
    return ''
  return f'{figure["value"]:.2f} [{figure["name"]}]'


def _folder(run, name):
  identity = run.weights.identify(run.evaluator.identity)
  return run.folder(name, identity)


def table1(run: Run) -> pathlib.Path:
  """Table 1: the paper's list, with this model at its end."""
  figures, folder = run.evaluation, _folder(run, 'table1')
  bounds = [figures[key] for key in ('test', 'train') if key in figures]
  this_model = (
    f'this model, step {run.weights.step}',
    _printed(figures.get('is')),
    _printed(figures.get('fid')),
    ', '.join(f'<= {f["value"]:.2f} [{f["name"]}, {f["count"]:,} images]' for f in bounds),
  )
  rows = [*paper.TABLE_1, this_model]
  if processes.is_primary():
    write_table(folder, 'table1', paper.TABLE_1_COLUMNS, rows, marked=[len(rows) - 1])
  return folder


def table2(run: Run) -> pathlib.Path:
  """Table 2: the paper's ablations, with this model beside the row of its own kind."""
  figures, folder = run.evaluation, _folder(run, 'table2')
  this_model = (_printed(figures.get('is')), _printed(figures.get('fid')))
  rows = [(*row, *(this_model if row[:3] == run.kind else ('', ''))) for row in paper.TABLE_2]
  if run.kind not in [row[:3] for row in paper.TABLE_2]:
    rows.append((*run.kind, 'not in the paper', 'not in the paper', *this_model))
  marked = [index for index, row in enumerate(rows) if row[:3] == run.kind]
  columns = (*paper.TABLE_2_COLUMNS, 'IS, this model', 'FID, this model')
  if processes.is_primary():
    write_table(folder, 'table2', columns, rows, marked=marked)
  return folder
