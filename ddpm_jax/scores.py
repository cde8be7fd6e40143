"""Metrics of images against real ones, by a network's features, as the evaluation has them."""

import pathlib
import time

import jax
import numpy as np

from ddpm_jax import build, data, parallel, shards
from ddpm_jax.files import make_writable
from ddpm_jax.metrics.features import collect_features
from ddpm_jax.metrics.frechet import Statistics, accumulate, frechet_distance, merge
from ddpm_jax.metrics.inception_score import inception_score
from ddpm_jax.metrics.jpeg import LIMIT, blockiness
from ddpm_jax.metrics.kid import kid
from ddpm_jax.metrics.precision_recall import precision_recall
from ddpm_jax.metrics.reference import file_sha256, open_reference
from ddpm_jax.report import FULL_COUNT, metric_name
from ddpm_jax.shards import request_key

BLOCK = 1024  # features in memory at a time
NUM_IS_SPLITS = 10
MIN_SPLIT_IMAGES = 500  # a score of fewer is low for want of images
JPEG_IMAGES = 512
NEIGHBOURS = 3  # k of precision and recall


class Scorer:
  """The metrics of config.eval.metrics but bits/dim, against the reference of config.eval."""

  def __init__(self, config):
    """Opens the reference; its features are computed once, into the cache.

    Raises:
      ValueError: weights, reference or data that cannot be used.
    """
    self._metrics = [metric for metric in build.names(config.eval.metrics) if metric != 'bpd']
    self._batch_size = config.eval.batch_size
    self.network = build.feature_network(config)
    self._real = None
    self._notes = []
    self._departures = []  # of the reference, from what published numbers are measured against
    if not config.eval.reference:
      self._open_data(config)
      return
    path = pathlib.Path(config.eval.reference).expanduser()
    opened = open_reference(path)
    if isinstance(opened, Statistics):
      self._open_statistics(config, path, opened)
    else:
      self._open_images(config, opened)

  def _open_data(self, config):
    source = build.source(config, config.eval.reference_split)
    if source.split != 'train':
      self._departures.append(f'against {source.split}')
    self._use_images(config, source, source_request(source), len(source))

  def _open_images(self, config, images):
    if images.image_shape != build.image_shape(config):
      raise ValueError(
        f'eval.reference={config.eval.reference} has images of {images.image_shape}; '
        f'data.image_size and data.channels say {build.image_shape(config)}'
      )
    request = {'file': images.name, 'file_sha256': images.fingerprint()}
    self._notes += jpeg_files_note(images, 'real images')
    self._use_images(config, images, request, max(len(images), FULL_COUNT))

  def _open_statistics(self, config, path, statistics):
    impossible = [metric for metric in self._metrics if metric in ('kid', 'pr')]
    if impossible:
      raise ValueError(
        f'eval.reference={path} has a mean and a covariance, and no images as '
        f'{" and ".join(impossible)} need: leave them out of eval.metrics'
      )
    one_each = parallel.fitting_batch_sizes(1, 1).host
    blank = np.zeros((one_each, *build.image_shape(config)), np.uint8)
    step, params = self.network.step, self.network.params
    features = jax.eval_shape(step, params, parallel.split_over_devices(blank))['features']
    if len(statistics.mean) != features.shape[-1]:
      raise ValueError(
        f'eval.reference={path} has statistics of {len(statistics.mean)} features; '
        f'{self.network.name} has {features.shape[-1]}'
      )
    self.reference = {'file': str(path), 'file_sha256': file_sha256(path), 'count': None}
    self._statistics = statistics
    self._notes.append(
      'The reference file does not say which data it is of, nor how they were prepared.'
    )

  def _use_images(self, config, images, request, full_count):
    """Measures against images, or eval.reference_examples of them.

    Args:
      config: ConfigDict.
      images: a source, or as open_images gives them.
      request: dict of JSON values that says which images these are.
      full_count: a figure's name tells of fewer.
    """
    of = len(images)
    count = min(of, config.eval.reference_examples or of)
    build.check_count('the reference has', count, self._metrics, times=2)  # halves are compared
    if count < of:  # of all classes, where a folder has one after another
      images = ChosenImages(images, evenly_spaced(count, of))
      request = request | {'chosen': f'{count} of {of}, evenly spaced'}
    if count < full_count:
      self._departures.append(f'{count:,} real images')
    self.reference = {**request, 'count': count, 'of': of}
    ratio = blockiness(images.read(evenly_spaced(min(count, JPEG_IMAGES), count)))
    self.reference['jpeg_blockiness'] = None if np.isnan(ratio) else round(ratio, 3)
    if ratio > LIMIT:
      self._notes.append(
        f'The real images went through JPEG (blockiness {ratio:.2f}, not 1): figures do not '
        'compare with those against the original data set.'
      )
    self._real, self.reference['feature_secs'] = self.real_features(config, images, count, request)
    self._halves = [{name: self._real[name][start::2] for name in self._real} for start in (0, 1)]
    if 'fid' in self._metrics:
      half_statistics = [statistics_of(half['features']) for half in self._halves]
      self._statistics = merge(*half_statistics)
      self._sanity_fid = frechet_distance(*half_statistics)

  def real_features(self, config, images, count, request):
    """(features of real images, seconds they took); computed once, and kept in the cache."""
    name = request.get('data', 'file').replace(':', '_').replace('/', '_')
    key = request_key({**request, 'network': self.network.about()})
    folder = open_cache(config) / f'{name}_{key}'
    features = collect_features(
      folder,
      self.network,
      images,
      count,
      request=request,
      batch_size=self._batch_size,
      what='features of real images',
    )
    return features, shards.seconds(folder)

  def about(self):
    """What a report says of the network and the reference."""
    network = {f'network_{key}': value for key, value in self.network.about().items()}
    return network | {f'reference_{key}': value for key, value in self.reference.items()}

  def score(self, folder, images, count, *, request, facts):
    """Measures images.

    Args:
      folder: pathlib.Path; features go to folder/features.
      images: has read(indices) -> [n, H, W, C] of values 0..255.
      count: number of images.
      request: dict of JSON values that says which images these are.
      facts: dict that goes into each figure.

    Returns:
      (figures, notes), lists of dicts and of lines.

    Raises:
      ValueError: fewer images than a metric needs.
    """
    build.check_count('the set to measure has', count, self._metrics)
    features = collect_features(
      folder / 'features',
      self.network,
      images,
      count,
      request=request,
      batch_size=self._batch_size,
      what='features',
    )
    facts = facts | {'feature_secs': shards.seconds(folder / 'features')}
    ratio = blockiness(images.read(evenly_spaced(min(count, JPEG_IMAGES), count)))
    facts['jpeg_blockiness'] = None if np.isnan(ratio) else round(ratio, 3)
    notes = self._notes + jpeg_files_note(images, 'images that were measured')
    if ratio > LIMIT:
      notes.append(
        f'The images that were measured show JPEG blocks (blockiness {ratio:.2f}, not 1).'
      )
    if not self.network.published:
      notes.append(
        f'Features are of the {self.network.name}, whose figures compare with no published FID, '
        'KID or Inception score.'
      )
    if not parallel.is_primary():
      return [], notes
    measures = {
      'fid': self._measure_fid,
      'is': self._measure_is,
      'kid': self._measure_kid,
      'pr': self._measure_precision_recall,
    }
    figures = []
    for metric in self._metrics:
      start = time.perf_counter()
      measured = measures[metric](features)
      secs = round(time.perf_counter() - start, 1)
      for key, figure in measured.items():
        name = metric_name(key, self.network.about(), count, self.departures(key, facts))
        figures.append(
          {'metric': key, 'name': name, 'count': count, **figure, **facts, 'secs': secs}
        )
    return figures, notes

  def departures(self, metric, facts):
    """What a figure's name has to say, see metric_name; a score does without real images."""
    unrounded = ['unrounded'] if facts.get('rounding') == 'float' else []
    return unrounded if metric == 'is' else self._departures + unrounded

  def _measure_fid(self, generated):
    statistics = statistics_of(generated['features'])
    figure = {'value': frechet_distance(statistics, self._statistics)}
    if self._real is not None:
      figure['sanity'] = self._sanity_fid
      figure |= self._distance_of_real_images(len(generated['features']))
    if statistics.count <= len(statistics.mean):
      figure['covariance'] = f'singular: fewer images than the {len(statistics.mean)} features'
    return {'fid': figure}

  def _distance_of_real_images(self, count):
    """The distance of as many real images to the rest: what the number of images alone costs."""
    features = self._real['features']
    if count > len(features) // 2:
      return {}
    order = np.random.default_rng(0).permutation(len(features))
    few, rest = (
      statistics_of(LazyRows(features, np.sort(rows))) for rows in (order[:count], order[count:])
    )
    return {'distance_of_as_many_real_images': frechet_distance(few, rest)}

  def _measure_is(self, generated):
    splits = num_splits(generated['logits'])
    mean, std = inception_score(generated['logits'], num_splits=splits)
    figure = {
      'value': mean,
      'splits': splits,
      'std_over_splits': std,
      'value_of_one_split': inception_score(generated['logits'], num_splits=1)[0],
    }
    if self._real is not None:
      real = self._real['logits']
      splits = min(splits, num_splits(real))
      figure['value_of_real_images'] = inception_score(real, num_splits=splits)[0]
    return {'is': figure}

  def _measure_kid(self, generated):
    value, error = kid(self._real['features'], generated['features'])
    sanity, _ = kid(*(half['features'] for half in self._halves))
    return {'kid': {'value': value, 'standard_error': error, 'sanity': sanity}}

  def _measure_precision_recall(self, generated):
    real, halves = self._real['features'], [half['features'] for half in self._halves]
    precision, recall = precision_recall(
      real, generated['features'], k=NEIGHBOURS, what='precision and recall'
    )
    sanity = precision_recall(*halves, k=NEIGHBOURS, what='of halves of the real images')
    facts = {'neighbours': NEIGHBOURS, 'real_images': len(self._real['features'])}
    return {
      'precision': {'value': precision, 'sanity': sanity[0], **facts},
      'recall': {'value': recall, 'sanity': sanity[1], **facts},
    }


def open_cache(config):
  """The folder of real images' features, which all processes share.

  Raises:
    ValueError: it cannot be written, or one of them has another.
  """
  field = f'eval.cache_dir={build.cache_dir(config)}'
  folder = build.cache_dir(config) / 'reference'
  try:
    make_writable(folder)
  except OSError as error:
    raise ValueError(
      f'{field} cannot be written ({error.strerror}); give a folder that can'
    ) from error
  blind = parallel.not_shared_with(folder)
  if blind is not None:
    raise ValueError(
      f'{field} of process {blind} is not the folder of process 0: give one on a file system that '
      'all processes share, such as --config.eval.cache_dir=WORKDIR/cache'
    )
  return folder


class LazyRows:
  """Some rows of an array on disk, read a slice at a time."""

  def __init__(self, array, rows):
    self._array, self._rows = array, rows

  def __len__(self):
    return len(self._rows)

  def __getitem__(self, part):
    return self._array[self._rows[part]]


def source_request(source):
  """What a data source is, for caches and reports."""
  return {
    'data': source.name,
    'split': source.split,
    'image_shape': list(source.image_shape),
    'data_sha256': data.fingerprint(source),
  }


def statistics_of(features):
  """Mean and covariance, a block of features in memory at a time."""
  return accumulate(features[i : i + BLOCK] for i in range(0, len(features), BLOCK))


def jpeg_files_note(images, what):
  """A line for the notes, in a list, if images come from JPEG files."""
  count = getattr(images, 'jpeg_files', 0)
  if not count:
    return []
  return [f'{count:,} files of the {what} are JPEG: its losses are part of the figures.']


def num_splits(logits):
  """Parts for an Inception score."""
  return NUM_IS_SPLITS if len(logits) >= NUM_IS_SPLITS * MIN_SPLIT_IMAGES else 1


def evenly_spaced(count, of):
  """`count` increasing indices below `of`, which is no less."""
  return np.arange(count) * of // count


class ChosenImages:
  """Some of a set of images, as a set of their own."""

  def __init__(self, images, rows):
    self._images, self._rows = images, rows

  def read(self, indices):
    """uint8 [n, H, W, C]."""
    return self._images.read(self._rows[indices])


class ArrayImages:
  """Samples in an array, as images of values 0..255."""

  def __init__(self, samples):
    """samples: uint8 [N, H, W, C], or x_0 in float32."""
    self._samples = samples

  def read(self, indices):
    """uint8, or float32 in [0, 255] and not rounded, [n, H, W, C]."""
    samples = self._samples[indices]
    if samples.dtype == np.uint8:
      return samples
    return (np.clip(samples, -1, 1) + 1) * np.float32(127.5)
