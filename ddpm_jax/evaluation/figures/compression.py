"""Table 4 and Figure 5: rate and distortion of progressive lossy compression (Sec. 4.3)."""

import pathlib
from typing import Any

import numpy as np

from ddpm_jax import processes
from ddpm_jax.evaluation.figures import paper, plots
from ddpm_jax.evaluation.figures.run import NUM_COLUMNS, Run, write_csv


def rate_distortion(
  vb: np.ndarray, prior_bpd: np.ndarray, mse: np.ndarray, half_range: float = 127.5
) -> tuple[np.ndarray, np.ndarray]:
  """Progressive lossy compression (Sec. 4.3): after k reverse steps, x_{T-k} is known.

  Args:
    vb: [N, T] bits/dim.
    prior_bpd: [N].
    mse: [N, T] of the predicted x_0, on [-1, 1].
    half_range: stored units of one unit of x_0.

  Returns:
    (rate [T] in bits/dim, distortion [T] as RMSE in stored units); entry k - 1 is after k steps.
  """
  vb, mse = (x.mean(axis=0, dtype=np.float64)[::-1] for x in (vb, mse))
  rate = prior_bpd.mean(dtype=np.float64) + np.concatenate([[0], np.cumsum(vb)[:-1]])
  return rate, half_range * np.sqrt(mse)


def rmse_name(levels: int | None) -> str:
  """What to call a distortion, with its unit: that of the data's levels, or of x_0 without."""
  return 'RMSE of x_0' if levels is None else f'RMSE on [0, {levels - 1}]'


def compression(run: Run) -> pathlib.Path:
  """Rate, distortion and RMSE against reverse steps, on the split of config.reproduce."""
  bound = run.make_bound(run.split)
  arrays = bound.collect(run.eval_folder, run.weights)
  rate, rmse = rate_distortion(
    arrays['vb'], arrays['prior_bpd'], arrays['mse'], run.encoding.half_range
  )
  total = len(rate)
  unit = rmse_name(run.encoding.levels)
  steps = np.arange(1, total + 1)
  theirs = {row[0]: row[1:] for row in paper.TABLE_4} if run.is_paper_data else {}
  identity = run.weights.identify(bound.identity)
  folder = run.folder(
    'compression', identity.but(choices={**(identity.choices or {}), 'images': bound.count})
  )
  if not processes.is_primary():
    return folder
  columns = ('reverse_steps', 'rate_bpd', 'rmse', 'paper_rate_bpd', 'paper_rmse')
  rows = [(k, rate[k - 1], rmse[k - 1], *theirs.get(k, ('', ''))) for k in steps.tolist()]
  write_csv(folder / 'compression.csv', columns, rows)
  known = sorted(theirs)
  paper_rate, paper_rmse = np.transpose([theirs[k] for k in known]) if known else ([], [])
  curves = (
    ('Distortion', 'reverse steps', steps, known, unit, rmse, paper_rmse),
    ('Rate', 'reverse steps', steps, known, 'rate, bits/dim', rate, paper_rate),
    (
      'Distortion at a rate',
      'rate, bits/dim',
      rate,
      paper_rate,
      unit,
      rmse,
      paper_rmse,
    ),
  )
  panels = []
  for title, x_name, x, paper_x, y_name, y, paper_y in curves:
    panel: dict[str, Any] = {'title': title, 'x': x_name, 'y': y_name}
    panel['curves'] = [(f'this model, {bound.split}', x, y, '-')]
    if known:
      panel['curves'].append(('paper', paper_x, paper_y, 'o'))
    panels.append(panel)
  plots.plot_curves(folder / 'compression.png', panels)
  chosen = [max(1, round(total * (NUM_COLUMNS - i) / NUM_COLUMNS)) for i in range(NUM_COLUMNS)]
  table = [[str(k), f'{rate[k - 1]:.5f}', f'{rmse[k - 1]:.5f}', *theirs.get(k, '')] for k in chosen]
  table = [row[:3] + [f'{cell:.5f}' for cell in row[3:]] for row in table]
  columns = ['Reverse steps', 'Rate (bits/dim)', unit.replace(' on', '')]
  columns += ['Paper: rate', 'Paper: RMSE'] if theirs else []
  plots.plot_table(folder / 'compression_table.png', columns, table)
  return folder
