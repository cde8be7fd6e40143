"""Figures 6 and 10: the x_0 predictions of a chain, and their metrics against the step."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ddpm_jax import processes
from ddpm_jax.diffusion import Denoiser, NoiseSchedule
from ddpm_jax.evaluation import stepwise
from ddpm_jax.evaluation.figures import plots
from ddpm_jax.evaluation.figures.run import NUM_COLUMNS, Run, write_csv
from ddpm_jax.evaluation.images import ArrayImages
from ddpm_jax.evaluation.samples import make_chain_fns
from ddpm_jax.evaluation.stepwise import Stepwise
from ddpm_jax.sampling.ancestral import progressive_chain


def make_progressive_fn(
  denoiser_of: Callable[[Any], Denoiser],
  schedule: NoiseSchedule,
  shape: tuple[int, ...],
  *,
  every_steps: int,
  variance: str | None,
) -> Stepwise:
  """The x_0 predictions on the way of a chain (Fig. 6).

  Returns:
    Stepwise of a batch of ids int [B], whose state is a ChainState with the predictions of x_0,
    float32 [B, T // every_steps, *shape], as memory; slot j holds the one made at t =
    j every_steps. Ids give the same chain as in make_chain_fns.
  """

  def make_chain(schedule, denoiser, noise_fn):
    return progressive_chain(
      schedule, denoiser, noise_fn, every_steps=every_steps, variance=variance
    )

  return make_chain_fns(denoiser_of, schedule, shape, make_chain)


def progressive(run: Run) -> pathlib.Path:
  """Draws chains, shows their predictions, and measures those at each slot."""
  every = -(-run.schedule.num_timesteps // run.num_slots)  # rounded up
  work = stepwise.compiled(
    make_progressive_fn(
      run.denoiser_of, run.schedule, run.image_shape, every_steps=every, variance=run.variance
    )
  )
  key = run.key_of('sample')

  def compute(ids, pauses):
    chains = stepwise.run(work, run.weights.params, ids, key, pauses=pauses)
    return {'predictions': run.encoding.decode(chains.memory)}

  chains = run.identify(every_steps=every)
  drawn = run.folder('predictions', chains)
  predictions = run.collect(drawn, 'predictions', chains, run.num_samples, compute, what='chains')
  scorer = run.make_scorer(('fid', 'is'))
  measured = scorer.identity() | {'metrics': list(scorer.metrics)} if scorer else {}
  counts = {'chains': run.num_samples, 'rows': run.num_images}
  folder = run.folder(
    'progressive', chains.but(choices={'every_steps': every, **counts, **measured})
  )
  slots = predictions.shape[1]
  if processes.is_primary():
    shown = np.unique(np.linspace(0, slots - 1, min(slots, NUM_COLUMNS)).astype(int))[::-1]
    rows = predictions[: run.num_images][:, shown]
    run.display.save(
      folder / 'progressive.png',
      rows.reshape(-1, *rows.shape[2:]),
      columns=len(shown),
      values=run.display.value_range(rows[:, -1]),
      headings=[f't = {slot * every}' for slot in shown],
    )
  if scorer:
    _measure(run, scorer, folder, drawn, predictions, every, chains)
  return folder


def _measure(run, scorer, folder, drawn, predictions, every, chains):
  """IS and FID of the predictions at each slot; their features go to the folder `drawn`."""
  rows, values = [], {}
  for slot in reversed(range(predictions.shape[1])):
    reverse_steps = run.schedule.num_timesteps - slot * every
    figures, _ = scorer.score(
      drawn,
      f'features-slot-{slot:03d}',
      ArrayImages(predictions[:, slot], run.encoding),
      len(predictions),
      identity=chains.but(choices={'every_steps': every, 'slot': slot}),
      facts={},
    )
    for figure in figures:
      rows.append((reverse_steps, figure['name'], figure['value'], figure['count']))
      values.setdefault(figure['name'], []).append((reverse_steps, figure['value']))
  if processes.is_primary():
    write_csv(folder / 'progressive.csv', ('reverse_steps', 'metric', 'value', 'images'), rows)
    panels = [
      {
        'title': name,
        'x': 'reverse steps',
        'y': name,
        'curves': [(name, *np.transpose(points), '.-')],
      }
      for name, points in values.items()
    ]
    plots.plot_curves(folder / 'progressive_metrics.png', panels)
