"""The bound of chains of few steps, by the variance of a step: Analytic-DPM's table."""

import pathlib

import numpy as np

from ddpm_jax import processes
from ddpm_jax.evaluation.bound import mean_and_error
from ddpm_jax.evaluation.figures import plots
from ddpm_jax.evaluation.figures.run import Run, write_csv, write_markdown

NUM_STEPS = (10, 25, 50, 100)  # and all
VARIANCES = ('fixedsmall', 'fixedlarge', 'analytic')  # and the model's own


def few_steps(run: Run) -> pathlib.Path:
  """Measures each variance at each number of steps, evenly spaced from 0 to T-1."""
  source = run.bpd_splits[-1]
  total = run.schedule.num_timesteps
  counts = [*(count for count in NUM_STEPS if count < total), total]
  variances = dict.fromkeys((*VARIANCES, run.kind[2]))
  rows, facts, values = [], [], {name: [] for name in variances}
  for variance in variances:
    for count in counts:
      bound = run.make_short_bound(source, count, variance)
      arrays = bound.collect(run.eval_folder, run.weights)
      unit, scale = bound.unit
      mean, error = mean_and_error(arrays['total_bpd'])
      value = mean * scale + bound.encoding.log_scale()
      rows.append((variance, count, value, '' if error is None else error * scale))
      values[variance].append(value)
      facts.append([bound.identity.facts(), bound.count])
  folder = run.folder('few_steps', run.weights.identify(run.identity).but(choices={'of': facts}))
  if processes.is_primary():
    title = f'{unit} of {bound.count} images of the split {source.split}'
    write_csv(folder / 'few_steps.csv', ('variance', 'steps', 'value', 'standard_error'), rows)
    write_markdown(
      folder / 'few_steps.md',
      title,
      ['Variance of a step', *(f'{count:,} steps' for count in counts)],
      [(name, *(f'{x:.3f}' for x in found)) for name, found in values.items()],
      [
        'Steps lie evenly from t = 0 to T-1. The analytic variance is one number a step, fitted to '
        'training data (sample.variance=analytic); a learned one is that of a step of any length.'
      ],
    )
    panel = {
      'title': title,
      'x': 'steps',
      'y': unit,
      'curves': [(name, np.array(counts), np.array(values[name]), '-') for name in variances],
      'logx': True,
      'logy': True,
    }
    plots.plot_curves(folder / 'few_steps.png', [panel])
  return folder
