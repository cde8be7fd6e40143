"""Metrics of images against a reference, from a network's features, as figures of a report.

A new metric is a function and its entry in METRICS.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ddpm_jax import processes
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.features import (
  FeatureNetwork,
  Images,
  collect_features,
  features_identity,
)
from ddpm_jax.evaluation.metrics import jpeg
from ddpm_jax.evaluation.metrics.frechet import frechet_distance
from ddpm_jax.evaluation.metrics.inception_score import inception_score
from ddpm_jax.evaluation.metrics.kid import (
  PUBLISHED_SIZE,
  PUBLISHED_SUBSETS,
  kid,
  published_kid,
)
from ddpm_jax.evaluation.metrics.precision_recall import density_coverage, precision_recall
from ddpm_jax.evaluation.references import (
  Features,
  OpenReference,
  Reference,
  blockiness_of,
  jpeg_files_note,
  measure_reference,
  statistics_of,
)
from ddpm_jax.evaluation.report import figure_name
from ddpm_jax.storage import shards
from ddpm_jax.storage.identity import Identity
from ddpm_jax.storage.logs import Terminal

NUM_IS_SPLITS = 10
MIN_SPLIT_IMAGES = 500  # a score of fewer is low for want of images
NEIGHBOURS = 3  # k of precision and recall
BALL_NEIGHBOURS = 5  # k of density and coverage, as their paper has it

Figure = dict[str, Any]  # value, and what else is to be said


@dataclasses.dataclass(frozen=True)
class Metric:
  """A metric of images.

  Attributes:
    least_images: that it needs, of each set.
    names: {figure: (name with the weights of published numbers, name with others)}.
    measure: (features of the images, Reference) -> {figure: Figure}.
    needs_reference: whether it depends on the reference, so that names tell of unusual ones.
    needs_real: whether it needs real images, and not their statistics alone.
  """

  least_images: int
  names: Mapping[str, tuple[str, str]]
  measure: Callable[[Features, Reference], dict[str, Figure]]
  needs_reference: bool = True
  needs_real: bool = False


class LazyRows:
  """Some rows of an array on disk, read a slice at a time."""

  def __init__(self, array: np.ndarray, rows: np.ndarray):
    self._array, self._rows = array, rows

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, part: slice) -> np.ndarray:
    return self._array[self._rows[part]]


@Terminal().waiting('computes the distance')
def _measure_frechet(generated, reference):
  statistics = statistics_of(generated['features'])
  figure = {'value': frechet_distance(statistics, reference.statistics)}
  if reference.real is not None:
    figure['sanity'] = reference.sanity_fid
    figure |= _distance_of_real_images(reference.real['features'], len(generated['features']))
  if statistics.count <= len(statistics.mean):
    figure['covariance'] = f'singular: fewer images than the {len(statistics.mean)} features'
  return {'fid': figure}


def _distance_of_real_images(features, count):
  """The distance of as many real images to the rest: what the number of images alone costs."""
  if count > len(features) // 2:
    return {}
  order = np.random.default_rng(0).permutation(len(features))
  few, rest = (
    statistics_of(LazyRows(features, np.sort(rows))) for rows in (order[:count], order[count:])
  )
  return {'distance_of_as_many_real_images': frechet_distance(few, rest)}


def num_splits(logits: np.ndarray) -> int:
  """Parts for an Inception score."""
  return NUM_IS_SPLITS if len(logits) >= NUM_IS_SPLITS * MIN_SPLIT_IMAGES else 1


def _measure_inception_score(generated, reference):
  splits = num_splits(generated['logits'])
  mean, std = inception_score(generated['logits'], num_splits=splits)
  figure = {
    'value': mean,
    'splits': splits,
    'std_over_splits': std,
    'value_of_one_split': inception_score(generated['logits'], num_splits=1)[0],
  }
  if reference.real is not None:
    real = reference.real['logits']
    splits = min(splits, num_splits(real))
    figure['value_of_real_images'] = inception_score(real, num_splits=splits)[0]
  return {'is': figure}


@Terminal().waiting('computes the kernel distance')
def _measure_kid(generated, reference):
  value, error = kid(reference.real['features'], generated['features'])
  sanity, _ = kid(*(half['features'] for half in reference.halves))
  return {'kid': {'value': value, 'standard_error': error, 'sanity': sanity}}


def _measure_by_balls(measure, names, k):
  """(features, reference) -> the two figures of a function of balls about k-th neighbours."""

  def measured(generated, reference):
    real, halves = reference.real['features'], [half['features'] for half in reference.halves]
    values = measure(real, generated['features'], k=k, what=' and '.join(names))
    sanity = measure(*halves, k=k, what='of halves of the real images')
    facts = {'neighbours': k, 'real_images': len(real)}
    return {
      name: {'value': value, 'sanity': of_halves, **facts}
      for name, value, of_halves in zip(names, values, sanity, strict=True)
    }

  return measured


@Terminal().waiting('computes the kernel distance of 100 subsets')
def _measure_published_kid(generated, reference):
  value, deviation = published_kid(reference.real['features'], generated['features'])
  facts = {'subsets': PUBLISHED_SUBSETS, 'subset_size': PUBLISHED_SIZE}
  return {'kid100': {'value': value, 'std_over_subsets': deviation, **facts}}


METRICS: Mapping[str, Metric] = {
  'fid': Metric(2, {'fid': ('FID', 'Frechet distance')}, _measure_frechet),
  'is': Metric(
    1,
    {'is': ('Inception score', 'Classifier score')},
    _measure_inception_score,
    needs_reference=False,
  ),
  'kid': Metric(4, {'kid': ('KID', 'Kernel distance')}, _measure_kid, needs_real=True),
  'pr': Metric(
    4,
    {'precision': ('Precision', 'Precision'), 'recall': ('Recall', 'Recall')},
    _measure_by_balls(precision_recall, ('precision', 'recall'), NEIGHBOURS),
    needs_real=True,
  ),
  'dc': Metric(
    6,
    {'density': ('Density', 'Density'), 'coverage': ('Coverage', 'Coverage')},
    _measure_by_balls(density_coverage, ('density', 'coverage'), BALL_NEIGHBOURS),
    needs_real=True,
  ),
  'kid100': Metric(
    PUBLISHED_SIZE,
    {'kid100': ('KID of 100 subsets', 'Kernel distance of 100 subsets')},
    _measure_published_kid,
    needs_real=True,
  ),
}


def check_count(what: str, count: int, metrics: Sequence[str], *, times: int = 1) -> None:
  """Raises a UserError if a metric needs more images.

  Args:
    what: the words before the number, such as 'the reference has'.
    count: number of images.
    metrics: names of METRICS; others need one image.
    times: how many such sets they are to be divided into.
  """
  for metric in metrics:
    least = times * (METRICS[metric].least_images if metric in METRICS else 1)
    if count < least:
      raise UserError(f'{what} {count} images; {metric} (eval.metrics) needs {least} at least')


@dataclasses.dataclass
class Scorer:
  """Metrics against a reference, whose features are computed when they are first needed.

  Attributes:
    metrics: names of METRICS.
    network: FeatureNetwork.
    opened: the reference.
    cache: as references.open_cache.
    batch_size: images at a time, over all devices.

  Raises:
    UserError: a reference that a metric cannot use.
  """

  metrics: Sequence[str]
  network: FeatureNetwork
  opened: OpenReference
  image_shape: tuple[int, ...]
  cache: pathlib.Path
  batch_size: int

  def __post_init__(self):
    self._reference = None
    if self.opened.images is not None:
      if self.opened.statistics is not None:
        self._check_published()
      metrics = self.metrics if self.opened.statistics is None else self._metrics_of_real()
      check_count('the reference has', self.opened.count, metrics, times=2)  # two halves
      return
    impossible = [metric for metric in self.metrics if METRICS[metric].needs_real]
    if impossible:
      raise UserError(
        f'eval.reference={self.opened.about["file"]} has a mean and a covariance, and no images as '
        f'{" and ".join(impossible)} need: leave them out of eval.metrics'
      )
    given, expected = len(self.opened.statistics.mean), self.network.num_features(self.image_shape)
    if given != expected:
      raise UserError(
        f'eval.reference={self.opened.about["file"]} has statistics of {given} features; '
        f'{self.network.name} has {expected}'
      )

  def _metrics_of_real(self):
    """The metrics that need more than published statistics."""
    return [metric for metric in self.metrics if metric != 'fid']

  def _check_published(self):
    """Notes what is measured against what, of a file with statistics and images.

    Statistics of another network's features are left aside.
    """
    file, statistics = self.opened.about['file'], self.opened.statistics
    given, expected = len(statistics.mean), self.network.num_features(self.image_shape)
    if given == expected:
      note = (
        f'The Frechet distance is against mu and sigma of {file}, which does not say which data '
        f'they are of; other metrics are against its {self.opened.count} images.'
      )
    else:
      statistics, note = (
        None,
        (
          f'mu and sigma of {file} are of {given} features, and {self.network.name} has '
          f'{expected}: all metrics are against its images.'
        ),
      )
    notes = (*self.opened.notes, note)
    self.opened = dataclasses.replace(self.opened, statistics=statistics, notes=notes)

  def reference(self) -> Reference:
    """The reference, measured at the first call: for many images, that takes long."""
    if self._reference is None:
      self._reference = measure_reference(
        self.opened,
        self.network,
        cache=self.cache,
        batch_size=self.batch_size,
        with_distance='fid' in self.metrics,
        with_real=bool(self._metrics_of_real()),
      )
    return self._reference

  def identity(self) -> dict[str, Any]:
    """What decides figures beyond the images: attributes of an Identity."""
    return {
      'data': {'reference': self.opened.identity.facts()},
      'network': self.network.about(),
    }

  def about(self) -> dict[str, Any]:
    """What a report says of the network and the reference."""
    network = {f'network_{key}': value for key, value in self.network.about().items()}
    return network | {f'reference_{key}': value for key, value in self.reference().about.items()}

  def score(
    self,
    parent: pathlib.Path,
    name: str,
    images: Images,
    count: int,
    *,
    identity: Identity,
    facts: Mapping[str, Any],
  ) -> tuple[list[Figure], list[str]]:
    """Measures images.

    Args:
      parent: folder of the evaluation; features go to parent/NAME_KEY.
      name: readable name of the features.
      images: Images.
      count: number of images.
      identity: of the images.
      facts: dict that goes into each figure.

    Returns:
      (figures, notes), lists of dicts and of lines; no figures but on the first process.

    Raises:
      UserError: fewer images than a metric needs.
    """
    check_count('the set to measure has', count, self.metrics)
    reference = self.reference()
    identity = features_identity(identity, self.network)
    folder = identity.folder(parent, name)
    features = collect_features(
      folder,
      self.network,
      images,
      count,
      identity=identity,
      batch_size=self.batch_size,
      what='features',
    )
    ratio = blockiness_of(images, count)
    facts = {**facts, 'feature_secs': shards.seconds(folder), 'jpeg_blockiness': ratio}
    notes = [*reference.notes, *jpeg_files_note(images, 'images that were measured')]
    if ratio is not None and ratio > jpeg.LIMIT:
      notes.append(
        f'The images that were measured show JPEG blocks (blockiness {ratio:.2f}, not 1).'
      )
    if not self.network.published:
      notes.append(
        f'Features are of the {self.network.name}, whose figures compare with no published FID, '
        'KID or Inception score.'
      )
    if not processes.is_primary():
      return [], notes
    figures = []
    for metric in self.metrics:
      figures += self._figures(METRICS[metric], features, count, facts)
    return figures, notes

  def _figures(self, metric, features, count, facts):
    start = time.perf_counter()
    measured = metric.measure(features, self.reference())
    secs = round(time.perf_counter() - start, 1)
    departures, reference = [], self.reference()
    if metric.needs_reference and not (reference.is_published and not metric.needs_real):
      departures = list(reference.departures)
    departures += ['unrounded'] if facts.get('rounding') == 'float' else []
    return [
      {
        'metric': key,
        'name': figure_name(metric.names[key], self.network.about(), count, departures),
        'count': count,
        **figure,
        **facts,
        'secs': secs,
      }
      for key, figure in measured.items()
    ]
