"""The paper's tables and figures, each by one command: data, and a picture.

WORKDIR/reproduce/step_XXXXXXXX/
  table1          Table 1: this model in the paper's list              csv, png
  table2          Table 2: this model among the ablations              csv, png
  bound           the bound, term by term                              csv, png
  compression     Table 4 and Figure 5: rate and distortion            csv, png
  progressive     Figures 6 and 10: x_0 predictions, their metrics     csv, png;
                  the predictions in progressive/progressive.npz
  shared          Figure 7: samples that share x_t                     npz, png
  interpolation   Figures 8 and 9: between real images                 npz, png
  neighbours      nearest training images by pixels and by features    csv, png

What takes long is done in shards: an interrupted command goes on.
"""

import contextlib
import csv
import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np

from ddpm_jax import build, npz, paper, parallel, plots, shards
from ddpm_jax.bounds import Bound
from ddpm_jax.checkpoints import keep_steps
from ddpm_jax.evaluate import Evaluator, restore_step, step_folder
from ddpm_jax.files import written_whole
from ddpm_jax.grids import make_grid, save_png, to_uint8
from ddpm_jax.metrics.features import collect_features
from ddpm_jax.sample import Sampler, fingerprint, write_samples
from ddpm_jax.scores import ArrayImages, Scorer, source_request
from ddpm_jax.workdir import find_workdir, locked, open_workdir

NUM_COLUMNS = 10  # of Table 4 and of the pictures of progress
WEIGHTS = tuple(round(0.1 * i, 1) for i in range(11))  # of interpolation
SHARED_FRACTIONS = (1.0, 0.75, 0.5, 0.25)  # of T, Fig. 7
DEPTH_FRACTIONS = tuple(i / 8 for i in range(9))  # of T, Fig. 9
BLOCK = 2048  # training images compared at a time


@dataclasses.dataclass(frozen=True)
class Run:
  """A model to reproduce with: config, folders and parameters."""

  config: Any
  path: pathlib.Path  # WORKDIR
  folder: pathlib.Path  # WORKDIR/reproduce/step_XXXXXXXX
  step: int
  ema_params: Any  # replicated
  ema_sha256: str
  checkpoint_sha256: str

  @property
  def eval_folder(self):
    """Of this step's evaluation."""
    return step_folder(self.path, self.step)

  @functools.cached_property
  def evaluation(self):
    """The figures of this step's evaluation, by metric (bits/dim by split)."""
    figures = Evaluator(self.config).measure(
      self.eval_folder,
      self.path,
      self.step,
      self.ema_params,
      checkpoint_sha256=self.checkpoint_sha256,
    )
    return {figure.get('bpd_split', figure['metric']): figure for figure in figures}

  def request(self, **choices):
    """What samples of this model depend on, for shards."""
    request = {'parameters_sha256': self.ema_sha256, 'seed': self.config.sample.seed}
    return request | build.dtype_request(self.config) | choices


def reproduce(config, workdir):
  """--mode=reproduce: writes what config.reproduce.what names.

  Args:
    config: ConfigDict.
    workdir: folder of the run.

  Raises:
    ValueError: a config, checkpoint, data set or weights that cannot be used.
  """
  build.begin(config)
  path = open_workdir(find_workdir(workdir))
  with contextlib.ExitStack() as stack:
    if parallel.is_primary():
      stack.enter_context(locked(path, 'eval'))
    step, ema_params, checksum = restore_step(config, path, config.eval.step)
    folder = path / 'reproduce' / f'step_{step:08d}'
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(config, path, folder, step, ema_params, fingerprint(ema_params), checksum)
    for name in build.names(config.reproduce.what):
      if parallel.is_primary():
        print(f'{name} of step {step}', flush=True)
      FIGURES[name](run)
      if parallel.is_primary():
        print(f'done: {folder / name}.*', flush=True)
    if parallel.is_primary():
      keep_steps(path / 'checkpoints', 'evaluating', [])


def write_csv(file, columns, rows):
  """Writes a table, whole or not at all."""
  with written_whole(file) as partial, open(partial, 'w', newline='') as stream:
    writer = csv.writer(stream)
    writer.writerow(columns)
    writer.writerows(rows)


def _write_table(run, name, columns, rows, *, marked):
  rows = [[str(cell) for cell in row] for row in rows]
  write_csv(run.folder / f'{name}.csv', columns, rows)
  plots.plot_table(run.folder / f'{name}.png', columns, rows, marked=marked)


def _printed(figure):
  """A figure as a cell, with what it really is where that is not the column's name."""
  if figure is None:
    return ''
  return f'{figure["value"]:.2f} [{figure["name"]}]'


def table1(run):
  """Table 1: the paper's list, with this model at its end."""
  figures = run.evaluation
  bounds = [figures[key] for key in ('test', 'train') if key in figures]
  ours = (
    f'this model, step {run.step}',
    _printed(figures.get('is')),
    _printed(figures.get('fid')),
    ', '.join(f'<= {f["value"]:.2f} [{f["name"]}, {f["count"]:,} images]' for f in bounds),
  )
  rows = [*paper.TABLE_1, ours]
  if parallel.is_primary():
    _write_table(run, 'table1', paper.TABLE_1_COLUMNS, rows, marked=[len(rows) - 1])


def table2(run):
  """Table 2: the paper's ablations, with this model beside the row of its own kind."""
  figures = run.evaluation
  kind = tuple(run.config.diffusion[name] for name in ('mean_type', 'loss_type', 'var_type'))
  ours = (_printed(figures.get('is')), _printed(figures.get('fid')))
  rows = [(*row, *(ours if row[:3] == kind else ('', ''))) for row in paper.TABLE_2]
  if kind not in [row[:3] for row in paper.TABLE_2]:
    rows.append((*kind, 'not in the paper', 'not in the paper', *ours))
  marked = [index for index, row in enumerate(rows) if row[:3] == kind]
  columns = (*paper.TABLE_2_COLUMNS, 'IS, this model', 'FID, this model')
  if parallel.is_primary():
    _write_table(run, 'table2', columns, rows, marked=marked)


def _bound(run, split):
  """The bound's arrays [N, ...] of a split, those of the evaluation."""
  config = run.config.copy_and_resolve_references()
  config.eval.bpd_terms = None
  bound = Bound(config, split, build.bpd_step(config))
  return bound.collect(run.eval_folder, run.ema_params, run.ema_sha256)


def bound(run):
  """The bound's terms at each t, on each of eval.bpd_splits."""
  curves, rows = [], []
  for split in build.names(run.config.eval.bpd_splits):
    arrays = _bound(run, split)
    vb, mse = (arrays[name].mean(axis=0, dtype=np.float64) for name in ('vb', 'mse'))
    curves.append((split, np.arange(1, len(vb) + 1), vb, '-'))
    prior = float(arrays['prior_bpd'].mean(dtype=np.float64))
    rows += [(split, t, vb[t], mse[t], len(arrays['vb'])) for t in range(len(vb))]
    rows.append((split, 'prior', prior, '', len(arrays['vb'])))
  if parallel.is_primary():
    write_csv(run.folder / 'bound.csv', ('split', 't', 'vb_bpd', 'x_0_mse', 'images'), rows)
    panel = {'x': 't + 1', 'y': 'bits/dim', 'curves': curves, 'logx': True, 'logy': True}
    plots.plot_curves(run.folder / 'bound.png', [panel])


def rate_distortion(vb, prior_bpd, mse):
  """Progressive lossy compression (Sec. 4.3): after k reverse steps, x_{T-k} is known.

  Args:
    vb: [N, T] bits/dim.
    prior_bpd: [N].
    mse: [N, T] of the predicted x_0, on [-1, 1].

  Returns:
    (rate [T] in bits/dim, distortion [T] as RMSE on [0, 255]); entry k - 1 is after k steps.
  """
  vb, mse = (x.mean(axis=0, dtype=np.float64)[::-1] for x in (vb, mse))
  rate = prior_bpd.mean(dtype=np.float64) + np.concatenate([[0], np.cumsum(vb)[:-1]])
  return rate, 127.5 * np.sqrt(mse)


def compression(run):
  """Table 4 and Figure 5: rate, distortion and RMSE against reverse steps, on the test split."""
  split = run.config.reproduce.split
  arrays = _bound(run, split)
  rate, rmse = rate_distortion(arrays['vb'], arrays['prior_bpd'], arrays['mse'])
  total = len(rate)
  steps = np.arange(1, total + 1)
  comparable = total == 1000 and 'cifar10' in run.config.data.source
  theirs = {row[0]: row[1:] for row in paper.TABLE_4} if comparable else {}
  if not parallel.is_primary():
    return
  columns = ('reverse_steps', 'rate_bpd', 'rmse', 'paper_rate_bpd', 'paper_rmse')
  rows = [(k, rate[k - 1], rmse[k - 1], *theirs.get(k, ('', ''))) for k in steps.tolist()]
  write_csv(run.folder / 'compression.csv', columns, rows)
  known = sorted(theirs)
  paper_rate, paper_rmse = np.transpose([theirs[k] for k in known]) if known else ([], [])
  curves = (
    ('reverse steps', steps, known, 'RMSE on [0, 255]', rmse, paper_rmse),
    ('reverse steps', steps, known, 'rate, bits/dim', rate, paper_rate),
    ('rate, bits/dim', rate, paper_rate, 'RMSE on [0, 255]', rmse, paper_rmse),
  )
  panels = []
  for x_name, x, paper_x, y_name, y, paper_y in curves:
    panel = {'x': x_name, 'y': y_name, 'curves': [('this model', x, y, '-')]}
    if known:
      panel['curves'].append(('paper', paper_x, paper_y, 'o'))
    panels.append(panel)
  plots.plot_curves(run.folder / 'compression.png', panels)
  chosen = [max(1, round(total * (NUM_COLUMNS - i) / NUM_COLUMNS)) for i in range(NUM_COLUMNS)]
  table = [[str(k), f'{rate[k - 1]:.5f}', f'{rmse[k - 1]:.5f}', *theirs.get(k, '')] for k in chosen]
  table = [row[:3] + [f'{cell:.5f}' for cell in row[3:]] for row in table]
  columns = ['Reverse steps', 'Rate (bits/dim)', 'RMSE [0, 255]']
  columns += ['Paper: rate', 'Paper: RMSE'] if theirs else []
  plots.plot_table(run.folder / 'compression_table.png', columns, table)


def progressive(run):
  """Figures 6 and 10: the x_0 predictions of a chain, and their metrics against the step."""
  config = run.config
  total = config.diffusion.num_timesteps
  every = max(1, total // config.reproduce.num_slots)
  count = config.reproduce.num_samples
  step = build.progressive_step(config, every)
  sizes = parallel.fitting_batch_sizes(config.sample.batch_size, count)
  key = parallel.replicate(build.key(config.sample.seed, 'sample'))

  def compute(ids):
    predictions = step(run.ema_params, parallel.split_over_devices(ids), key)
    return {'predictions': to_uint8(parallel.gather_from_devices(predictions))}

  request = run.request(every_steps=every)
  file = shards.collect(
    run.folder / 'progressive',
    'progressive',
    request,
    count,
    compute,
    sizes=sizes,
    what='chains',
  )
  predictions = npz.open_npz(file)['predictions'][:count]
  slots = predictions.shape[1]
  if parallel.is_primary():
    shown = np.unique(np.linspace(0, slots - 1, min(slots, NUM_COLUMNS)).astype(int))[::-1]
    rows = predictions[: config.reproduce.num_images][:, shown]
    picture = make_grid(rows.reshape(-1, *rows.shape[2:]), columns=len(shown))
    save_png(run.folder / 'progressive.png', picture)
  _measure_progress(run, predictions, every, request)


def _measure_progress(run, predictions, every, request):
  """IS and FID of the predictions at each slot."""
  config = run.config.copy_and_resolve_references()
  config.eval.metrics = tuple(m for m in build.names(config.eval.metrics) if m in ('fid', 'is'))
  if not config.eval.metrics:
    return
  scorer = Scorer(config)
  rows, values = [], {}
  for slot in reversed(range(predictions.shape[1])):
    reverse_steps = config.diffusion.num_timesteps - slot * every
    figures, _ = scorer.score(
      run.folder / 'progressive' / f'slot_{slot:03d}',
      ArrayImages(predictions[:, slot]),
      len(predictions),
      request={**request, 'slot': slot},
      facts={},
    )
    for figure in figures:
      rows.append((reverse_steps, figure['name'], figure['value'], figure['count']))
      values.setdefault(figure['name'], []).append((reverse_steps, figure['value']))
  if parallel.is_primary():
    write_csv(run.folder / 'progressive.csv', ('reverse_steps', 'metric', 'value', 'images'), rows)
    panels = [
      {'x': 'reverse steps', 'y': name, 'curves': [(name, *np.transpose(points), '.-')]}
      for name, points in values.items()
    ]
    plots.plot_curves(run.folder / 'progressive_metrics.png', panels)


def _write_npz(file, **arrays):
  """Writes arrays, whole or not at all."""
  with written_whole(file) as partial, open(partial, 'wb') as stream:
    np.savez(stream, **arrays)


def shared(run):
  """Figure 7: samples that share the chain from x_T down to x_t, at several t."""
  config = run.config
  total, chains = config.diffusion.num_timesteps, config.reproduce.num_images
  timesteps = [max(0, round(fraction * total) - 1) for fraction in SHARED_FRACTIONS]
  shape = chains, len(timesteps), NUM_COLUMNS
  step = build.branch_step(config)
  key = parallel.replicate(build.key(config.sample.seed, 'sample'))

  def compute(ids):
    chain, time, branch = (x.astype(np.int32) for x in np.unravel_index(ids, shape))
    batch = {'ids': chain, 'branches': branch, 'timesteps': np.int32(timesteps)[time]}
    x_0 = step(run.ema_params, parallel.split_over_devices(batch), key)
    return {'samples': to_uint8(parallel.gather_from_devices(x_0))}

  count = int(np.prod(shape))
  file = shards.collect(
    run.folder / 'shared',
    'samples',
    run.request(timesteps=timesteps, branches=NUM_COLUMNS),
    count,
    compute,
    sizes=parallel.fitting_batch_sizes(config.sample.batch_size, count),
    what='samples',
  )
  images = npz.open_npz(file)['samples'][:count]
  if parallel.is_primary():
    shaped = images.reshape(*shape, *images.shape[1:])
    _write_npz(run.folder / 'shared.npz', samples=shaped, timesteps=timesteps)
    save_png(run.folder / 'shared.png', make_grid(images, columns=NUM_COLUMNS))


def interpolation(run):
  """Figures 8 and 9: interpolation of real images, at half the steps and at several depths.

  A row is: image, weights 0 (its reconstruction), 0.1, ..., 1, other image.
  """
  config = run.config
  source = build.source(config, config.reproduce.split)
  total, pairs = config.diffusion.num_timesteps, config.reproduce.num_images
  if 2 * pairs > len(source):
    raise ValueError(
      f'reproduce.num_images={pairs}: interpolation takes two images for each, and the split '
      f'{source.split} has {len(source)}; give at most {len(source) // 2}'
    )
  half = total // 2
  depths = sorted({round(fraction * total) for fraction in DEPTH_FRACTIONS} | {half})
  chosen = np.random.default_rng(config.sample.seed).choice(len(source), 2 * pairs, replace=False)
  images = source.read(chosen).reshape(2, pairs, *source.image_shape)
  step = build.interpolate_step(config)
  key = parallel.replicate(build.key(config.sample.seed, 'interpolate'))
  request = run.request(images=chosen.tolist(), weights=list(WEIGHTS), **source_request(source))

  def interpolate(num_pairs, num_steps):
    """uint8 [num_pairs, 2 + weights, H, W, C]."""
    shape = num_pairs, len(WEIGHTS)
    extras = key, parallel.replicate(np.int32(num_steps))

    def compute(ids):
      pair, weight = np.unravel_index(ids, shape)
      batch = {
        'images': images[0, pair],
        'other_images': images[1, pair],
        'weights': np.float32(WEIGHTS)[weight],
        'ids': pair.astype(np.int32),
      }
      x_0 = step(run.ema_params, parallel.split_over_devices(batch), extras)
      return {'samples': to_uint8(parallel.gather_from_devices(x_0))}

    count = int(np.prod(shape))
    file = shards.collect(
      run.folder / 'interpolation' / f'steps_{num_steps:04d}',
      'samples',
      {**request, 'num_steps': num_steps},
      count,
      compute,
      sizes=parallel.fitting_batch_sizes(config.sample.batch_size, count),
      what=f'interpolations at {num_steps} steps',
    )
    mixed = npz.open_npz(file)['samples'][:count].reshape(*shape, *source.image_shape)
    return np.concatenate([images[0, :num_pairs, None], mixed, images[1, :num_pairs, None]], axis=1)

  at_half = interpolate(pairs, half)
  at_depths = np.concatenate([interpolate(1, depth) for depth in depths])
  if parallel.is_primary():
    _write_npz(
      run.folder / 'interpolation.npz',
      figure_8=at_half,
      figure_9=at_depths,
      depths=depths,
      weights=WEIGHTS,
      ids=chosen.reshape(2, pairs),
    )
    for name, rows in (('figure8', at_half), ('figure9', at_depths)):
      grid = make_grid(rows.reshape(-1, *source.image_shape), columns=rows.shape[1])
      save_png(run.folder / f'interpolation_{name}.png', grid)


def nearest(queries, others, count):
  """The nearest of many vectors to a few, a block of them in memory at a time.

  Args:
    queries: [Q, d].
    others: [N, d], may be mapped from a file.
    count: K, at most N.

  Returns:
    (distances float64 [Q, K], indices [Q, K]), nearest first.
  """
  queries = np.asarray(queries, np.float64)
  best = np.full((len(queries), 0), np.inf), np.zeros((len(queries), 0), np.int64)
  for first in range(0, len(others), BLOCK):
    block = np.asarray(others[first : first + BLOCK], np.float64)
    squares = (queries**2).sum(1)[:, None] + (block**2).sum(1) - 2 * queries @ block.T
    squares = np.concatenate([best[0], squares], axis=1)
    new = np.broadcast_to(np.arange(first, first + len(block)), (len(queries), len(block)))
    indices = np.concatenate([best[1], new], axis=1)
    order = np.argsort(squares, axis=1, kind='stable')[:, :count]
    best = tuple(np.take_along_axis(array, order, axis=1) for array in (squares, indices))
  return np.sqrt(np.maximum(best[0], 0)), best[1]


class PixelRows:
  """A source's images as vectors of [0, 255], read a slice at a time."""

  def __init__(self, source):
    self._source = source

  def __len__(self):
    return len(self._source)

  def __getitem__(self, rows):
    images = self._source.read(np.arange(len(self._source))[rows])
    return images.reshape(len(images), -1)


def neighbours(run):
  """The nearest training images of samples, in pixels and in features: is anything copied?"""
  config = run.config
  count, width = config.reproduce.num_images, NUM_COLUMNS - 1
  sampler = Sampler(config, count)
  drawn = write_samples(sampler, run.ema_params, run.path, run.step, count, tell=True)
  samples = np.asarray(npz.open_npz(drawn / 'samples.npz')['samples'][:count])
  source = build.source(config)
  scorer = Scorer(config)
  features = collect_features(
    run.folder / 'neighbours',
    scorer.network,
    ArrayImages(samples),
    count,
    request=run.request(of='samples', **build.sampler_request(config)),
    batch_size=config.eval.batch_size,
  )
  real, _ = scorer.real_features(config, source, len(source), source_request(source))
  spaces = {
    'pixels': nearest(samples.reshape(count, -1), PixelRows(source), width),
    'features': nearest(features['features'], real['features'], width),
  }
  if not parallel.is_primary():
    return
  rows = []
  for space, (distances, indices) in spaces.items():
    for i in range(count):
      rows += [
        (space, i, rank + 1, indices[i, rank], distances[i, rank])
        for rank in range(indices.shape[1])
      ]
    picture = np.concatenate(
      [np.concatenate([samples[i : i + 1], source.read(indices[i])]) for i in range(count)]
    )
    grid = make_grid(picture, columns=indices.shape[1] + 1)
    save_png(run.folder / f'neighbours_{space}.png', grid)
  columns = ('space', 'sample', 'rank', 'training_image', 'distance')
  write_csv(run.folder / 'neighbours.csv', columns, rows)


FIGURES = {
  'table1': table1,
  'table2': table2,
  'bound': bound,
  'compression': compression,
  'progressive': progressive,
  'shared': shared,
  'interpolation': interpolation,
  'neighbours': neighbours,
}
assert tuple(FIGURES) == build.REPRODUCTIONS
