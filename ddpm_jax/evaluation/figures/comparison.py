"""Samples beside real data and beside simple models, by many figures: where do they stand?

Columns are samples of this model; real examples of the split of config.reproduce; a half of the
training examples; and samples of the two models of baselines.py. Every column has as many examples,
and is measured against the other half of the training examples. The code lengths are of the split's
examples that the bound is of, under each model and by programs that compress without loss.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax import processes
from ddpm_jax.data import Labels, Source
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import baselines
from ddpm_jax.evaluation.coders import coded_bits_per_dim
from ddpm_jax.evaluation.features import collect_features, features_identity
from ddpm_jax.evaluation.figures import plots
from ddpm_jax.evaluation.figures.neighbours import nearest
from ddpm_jax.evaluation.figures.run import Run, write_csv, write_markdown
from ddpm_jax.evaluation.images import ArrayImages, evenly_spaced
from ddpm_jax.evaluation.metrics import structure, transfer
from ddpm_jax.evaluation.metrics.frechet import accumulate, frechet_distance
from ddpm_jax.evaluation.metrics.kid import kid
from ddpm_jax.evaluation.metrics.precision_recall import precision_recall
from ddpm_jax.evaluation.references import source_identity
from ddpm_jax.evaluation.report import format_value
from ddpm_jax.evaluation.samples import load_samples, write_samples
from ddpm_jax.storage.logs import Terminal

SAMPLES, HALF, GAUSSIAN, MARGINALS = 'samples', 'half of training', 'Gaussian', 'marginals'
MIN_EXAMPLES = 8  # a column
NEIGHBOURS = 3  # k of precision and recall
NEAR = 0.01  # share of real examples that lie as near to a training example
SEED = 0  # of what baselines draw
SHOWN = 6  # examples of each column in the picture


class Examples(NamedTuple):
  """The examples of a column.

  Attributes:
    x_0: float32 [N, ..., C].
    classes: int [N]; None for a model without labels.
  """

  x_0: np.ndarray
  classes: np.ndarray | None


class Row(NamedTuple):
  """A figure of all columns.

  Attributes:
    name: what it is, with its unit.
    values: of the columns that have it.
    better: 'low' or 'high', or where the real data lie.
  """

  name: str
  values: Mapping[str, float]
  better: str


def comparison(run: Run) -> pathlib.Path:
  """Writes the table, and draws spectra, autocorrelations, marginals and examples.

  Raises:
    UserError: too few examples.
  """
  source, split = run.open_training(), run.split
  count = min(run.num_samples, len(split), len(source) // 2)
  if count < MIN_EXAMPLES:
    raise UserError(
      f'comparison needs {MIN_EXAMPLES} examples a column, of reproduce.num_samples, of the split '
      f'{split.split} and of each half of {source.split}; they have {run.num_samples}, '
      f'{len(split)} and {len(source) // 2}'
    )
  bound = run.make_bound(split)
  arrays = bound.collect(run.eval_folder, run.weights)
  drawer = run.make_drawer(count)
  drawn = write_samples(drawer, run.weights, run.workdir, count, progress=True)
  identity = run.weights.identify(drawer.identity).but(
    data=source_identity(source),
    choices={'split': source_identity(split), 'examples': count, 'bound': bound.identity.facts()},
  )
  scorer = run.make_scorer(())
  if scorer is not None:
    identity = features_identity(identity, scorer.network)
  folder = run.folder('comparison', identity)
  labels = None if bound.labels is None else run.labels_of(source)
  with Terminal().waiting('fits a Gaussian and marginals to the training examples'):
    fitted = _fit_baselines(run, source, labels)
  columns = {SAMPLES: _samples(run, drawer, drawn, count)}
  columns[split.split] = _real(run, split, bound.labels, evenly_spaced(count, len(split)))
  halves = [np.arange(len(source))[start::2] for start in (0, 1)]
  columns[HALF] = _real(run, source, labels, halves[1][evenly_spaced(count, len(halves[1]))])
  for name, model in fitted.items():
    drawn_x_0 = model.sample(np.random.default_rng(SEED), count, columns[SAMPLES].classes)
    rounded = run.encoding.x_0(run.encoding.decode(drawn_x_0))
    columns[name] = Examples(rounded, columns[SAMPLES].classes)
  most = baselines.thinned(len(halves[0]), int(np.prod(run.image_shape)))
  reference = _real(run, source, labels, halves[0][most])
  rows = _likelihoods(run, bound, arrays, fitted)
  if scorer is not None:
    rows += _of_features(run, scorer, folder, identity, reference, columns)
  if not processes.is_primary():
    return folder
  with Terminal().waiting('compares structure'):
    rows += _of_structure(reference, columns) + _of_copies(run, source, columns, split.split)
  if labels is not None:
    with Terminal().waiting('trains classifiers'):
      rows += _of_transfer(reference, columns, len(labels.names), split.split)
  notes = [f'{name}: {model.words}' for name, model in fitted.items()]
  notes += [f'bits/dim by {line}' for line in _programs(run, bound)]
  if scorer is not None:
    notes.append(f'Features are of the {scorer.network.name}; they compare with no other data.')
  notes.append(f'{count} examples a column, against {len(reference.x_0)} training examples.')
  _write(folder, rows, list(columns), notes)
  _draw(run, folder, reference, columns)
  return folder


def _real(run, source, labels: Labels | None, rows) -> Examples:
  stored = run.encoding.stored(source.read(rows))
  return Examples(run.encoding.x_0(stored), None if labels is None else labels.ids[rows])


def _samples(run, drawer, drawn, count):
  x_0 = run.encoding.x_0(np.asarray(load_samples(drawn, count)))
  return Examples(x_0, drawer.labels(np.arange(count)))


def _fit_baselines(run: Run, source: Source, labels: Labels | None) -> dict[str, Any]:
  """{name: Baseline}, of the training split; no Gaussian of too many dimensions."""
  dims = int(np.prod(run.image_shape))
  examples = _real(run, source, labels, baselines.thinned(len(source), dims))
  x_0 = np.asarray(examples.x_0, np.float64)
  kinds = {GAUSSIAN: baselines.gaussians, MARGINALS: baselines.marginals}
  if dims > baselines.MAX_GAUSSIAN_DIMS:
    del kinds[GAUSSIAN]
  found = {
    name: baselines.fitted(kind, x_0, run.encoding.levels, examples.classes)
    for name, kind in kinds.items()
  }
  return {name: model for name, model in found.items() if model is not None}


def _likelihoods(run: Run, bound, arrays, fitted) -> list[Row]:
  """Code lengths of the examples of the bound, with the bound's terms."""
  continuous = run.encoding.levels is None
  scale, unit = (math.log(2), 'nats/dim') if continuous else (1.0, 'bits/dim')
  shift, dims = run.encoding.log_scale(), int(np.prod(run.image_shape))
  examples = _real(run, bound.source, bound.labels, np.arange(bound.count))
  totals = {SAMPLES: scale * float(arrays['total_bpd'].mean(dtype=np.float64)) + shift}
  for name, model in fitted.items():
    nats = model.nats(np.asarray(examples.x_0, np.float64), examples.classes).mean() / dims
    totals[name] = float(nats if continuous else nats / math.log(2)) + shift
  vb = arrays['vb'].mean(axis=0, dtype=np.float64)
  terms = {
    'L_T': float(arrays['prior_bpd'].mean(dtype=np.float64)),
    'L_1..T-1': float(vb[1:].sum()),
    'L_0': float(vb[0]) + shift / scale,
  }
  given = '' if bound.labels is None else ', given the label'
  rows = [Row(f'{unit} of {bound.count} {bound.split} examples{given}', totals, 'low')]
  return rows + [Row(f'of which {n}', {SAMPLES: scale * x}, 'low') for n, x in terms.items()]


def _programs(run: Run, bound) -> list[str]:
  """Lines on what programs that compress without loss make of the same examples."""
  if run.encoding.levels is None:
    return []
  examples = bound.source.read(np.arange(bound.count))
  found = coded_bits_per_dim(examples, levels=run.encoding.levels)
  return [
    f'{name}: {each:.3f} each example by itself, {whole:.3f} all in one'
    for name, (each, whole) in found.items()
  ]


def _of_features(run, scorer, folder, identity, reference, columns):
  """Distances in the features of config.eval.network; on all processes."""

  def features(name, examples):
    decoded = run.encoding.decode(examples.x_0)
    found = collect_features(
      folder / f'features-{name.replace(" ", "-")}',
      scorer.network,
      ArrayImages(decoded, run.encoding),
      len(decoded),
      identity=identity.but(choices={'column': name, **(identity.choices or {})}),
      batch_size=scorer.batch_size,
      what=None,
    )
    return np.asarray(found['features'], np.float64)

  real = features('reference', reference)
  values = {name: features(name, examples) for name, examples in columns.items()}
  if not processes.is_primary():
    return []
  statistics = accumulate([real])
  shares = {name: precision_recall(real, x, k=NEIGHBOURS) for name, x in values.items()}
  distances = {n: frechet_distance(statistics, accumulate([x])) for n, x in values.items()}
  return [
    Row('Frechet distance', distances, 'low'),
    Row('kernel distance', {name: kid(real, x)[0] for name, x in values.items()}, 'low'),
    Row('precision', {name: precision for name, (precision, _) in shares.items()}, 'high'),
    Row('recall', {name: recall for name, (_, recall) in shares.items()}, 'high'),
  ]


def _of_structure(reference, columns):
  kinds = {
    'spectra apart, dB': structure.spectral_distance,
    'autocorrelations apart': structure.autocorrelation_distance,
    'marginals apart, deviations': structure.marginal_distance,
    'correlations of channels apart': structure.channel_correlation_distance,
  }
  if reference.x_0.shape[-1] == 1:
    del kinds['correlations of channels apart']
  return [
    Row(name, {column: distance(reference.x_0, x.x_0) for column, x in columns.items()}, 'low')
    for name, distance in kinds.items()
  ]


def _of_copies(run, source, columns, real):
  """Distances to the nearest training example: samples that are copies lie nearer than real ones.

  The half of the training examples lies at 0, of course, and is left out.
  """
  rows = baselines.thinned(len(source), int(np.prod(run.image_shape)))
  training = _real(run, source, None, rows).x_0.reshape(len(rows), -1)
  size = run.encoding.half_range / math.sqrt(training.shape[1])  # RMS of a dimension, as stored
  distances = {
    name: size * nearest(x.x_0.reshape(len(x.x_0), -1), training, 1)[0][:, 0]
    for name, x in columns.items()
    if name != HALF
  }
  limit = np.quantile(distances[real], NEAR)
  return [
    Row(
      'RMS distance to the nearest training example, median',
      {name: float(np.median(x)) for name, x in distances.items()},
      f'as {real}',
    ),
    Row(
      f'share nearer to one than {1 - NEAR:.0%} of {real}',
      {name: float((x < limit).mean()) for name, x in distances.items()},
      'low',
    ),
  ]


def _of_transfer(reference, columns, num_classes, real):
  """Accuracies of classifiers: trained on a column and tested on real examples, and the reverse."""
  test, there, back = columns[real], {}, {}
  of_training = transfer.train_classifier(*reference, num_classes)
  for name, examples in columns.items():
    labelled = _labelled(examples, num_classes)
    if name != real:
      params = transfer.train_classifier(*labelled, num_classes)
      there[name] = transfer.accuracy(params, *test, num_classes)
    back[name] = transfer.accuracy(of_training, *labelled, num_classes)
  return [
    Row(f'trained on these, right of {real}', there, 'high'),
    Row('trained on training examples, right of these', back, 'high'),
  ]


def _labelled(examples, num_classes):
  """The examples that have a label; samples without one are of no class."""
  chosen = examples.classes < num_classes
  return examples.x_0[chosen], examples.classes[chosen]


def _write(folder, rows, columns, notes):
  header = ['figure', *columns, 'better']
  table = [[row.name, *(row.values.get(name, '') for name in columns), row.better] for row in rows]
  write_csv(folder / 'comparison.csv', header, table)
  shown = [
    [cell if isinstance(cell, str) else format_value(cell) for cell in cells] for cells in table
  ]
  plots.plot_table(folder / 'comparison.png', header, shown)
  title = 'Samples beside real data and simple models'
  write_markdown(folder / 'comparison.md', title, header, shown, notes)


def _draw(run, folder, reference, columns):
  everything = {'training': reference, **columns}
  num_axes = reference.x_0.ndim - 2
  deviation = reference.x_0.reshape(-1, reference.x_0.shape[-1]).std(axis=0)
  deviation[deviation == 0] = 1.0
  of_axes = {
    name: (structure.spectra(x.x_0 / deviation), structure.autocorrelations(x.x_0))
    for name, x in everything.items()
  }
  panels = []
  for axis in range(num_axes):
    length = reference.x_0.shape[axis + 1]
    where = '' if num_axes == 1 else f', axis {axis + 1}'
    is_time = run.display.are_signals or (run.display.are_films and axis == 0)
    rate = run.display.rate if is_time else None
    frequencies, lags = np.arange(1, length // 2 + 1) / length, np.arange(length // 2 + 1)
    spectra = {name: found[0][axis].mean(axis=1) for name, found in of_axes.items()}
    correlations = {name: found[1][axis].mean(axis=1) for name, found in of_axes.items()}
    panels += [
      {
        'title': f'Spectrum{where}',
        'x': 'Hz' if rate else 'cycles a sample',
        'y': 'power, in variances',
        'logy': True,
        'curves': _curves(frequencies * (rate or 1), spectra),
      },
      {
        'title': f'Autocorrelation{where}',
        'x': 'seconds apart' if rate else 'samples apart',
        'y': 'correlation',
        'curves': _curves(lags / (rate or 1), correlations),
      },
    ]
  shares = (np.arange(structure.NUM_QUANTILES) + 0.5) / structure.NUM_QUANTILES
  quantiles = {
    name: structure.quantiles(x.x_0 / deviation).mean(axis=1) for name, x in everything.items()
  }
  panels.append(
    {
      'title': 'Marginals',
      'x': 'share of values below',
      'y': 'value, in deviations',
      'curves': _curves(shares, quantiles),
    }
  )
  plots.plot_curves(folder / 'structure.png', panels)
  cells = [x.x_0[evenly_spaced(SHOWN, len(x.x_0))] for x in columns.values()]
  run.display.save(
    folder / 'examples.png',
    run.encoding.decode(np.concatenate(cells)),
    columns=SHOWN,
    captions=list(columns),
    values=run.display.value_range(run.encoding.decode(reference.x_0)),
  )


def _curves(x, values):
  return [(name, x, y, '-') for name, y in values.items()]
