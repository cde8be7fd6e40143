"""The bound's terms at each t, on each of the splits."""

import itertools
import pathlib

import numpy as np

from ddpm_jax import processes
from ddpm_jax.evaluation.figures import plots
from ddpm_jax.evaluation.figures.run import Run, write_csv

STYLES = ('-', '--', ':')  # train and test lie close together


def bound(run: Run) -> pathlib.Path:
  """Draws the terms against t, and writes them with the prior."""
  bounds = [run.make_bound(split) for split in run.bpd_splits]
  curves, rows = [], []  # type: list[tuple], list[tuple]
  for bound, style in zip(bounds, itertools.cycle(STYLES)):
    arrays = bound.collect(run.eval_folder, run.weights)
    vb, mse = (arrays[name].mean(axis=0, dtype=np.float64) for name in ('vb', 'mse'))
    unit, scale = bound.unit
    prior = scale * float(arrays['prior_bpd'].mean(dtype=np.float64))
    vb = scale * vb
    vb[0] += bound.encoding.log_scale()
    name = f'{bound.split}: {vb.sum() + prior:.3f} {unit}'
    if vb[0] <= 0:  # which the axis has no place for
      name += f', L_0 {vb[0]:.3f}'
    curves.append((name, np.arange(1, len(vb) + 1), vb, style))
    rows += [(bound.split, t, vb[t], mse[t], len(arrays['vb'])) for t in range(len(vb))]
    rows.append((bound.split, 'prior', prior, '', len(arrays['vb'])))
  facts = {bound.split: [bound.identity.facts(), bound.count] for bound in bounds}
  folder = run.folder('bound', run.weights.identify(run.identity).but(choices=facts))
  if processes.is_primary():
    column = f'vb_{"bpd" if unit == "bits/dim" else "nats"}'
    write_csv(folder / 'bound.csv', ('split', 't', column, 'x_0_mse', 'images'), rows)
    panel = {
      'title': 'Terms of the variational bound',
      'x': 't + 1',
      'y': unit,
      'curves': curves,
      'logx': True,
      'logy': True,
    }
    plots.plot_curves(folder / 'bound.png', [panel])
  return folder
