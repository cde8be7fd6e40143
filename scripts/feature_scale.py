"""Prints what figures of a network of features are on real pictures, and on pictures that are off.

  python scripts/feature_scale.py --source=cifar10 --dir=DIR [--num=2000]
    [--network=efficientnet_lite0] [--image_size=32] [--channels=3] [--batch_size=16]

All are measured against NUM training pictures, evenly spaced: as many others of the training split,
those of the test split, the others changed in ways that samples may be off, and those of a class
alone. The first row says what the number of pictures alone costs.
"""

import argparse
import io
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np
import PIL.Image
import PIL.ImageFilter

import ddpm_jax
from ddpm_jax import devices
from ddpm_jax.config import build
from ddpm_jax.evaluation.images import evenly_spaced
from ddpm_jax.evaluation.metrics.frechet import frechet_distance
from ddpm_jax.evaluation.metrics.inception_score import inception_score
from ddpm_jax.evaluation.metrics.kid import kid
from ddpm_jax.evaluation.metrics.precision_recall import density_coverage, precision_recall
from ddpm_jax.evaluation.references import statistics_of

BLURS = (0.5, 1)  # radius of a Gaussian, in pixels
QUALITIES = (75, 30)  # of JPEG
NOISES = (8, 16)  # standard deviations, of 255
COLUMNS = ('Frechet', 'Kernel x 1000', 'Precision', 'Recall', 'Density', 'Coverage', 'Classifier')


def parse():
  """Returns the arguments."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--source', required=True, help='as config.data.source')
  parser.add_argument('--dir', help='as config.data.dir')
  parser.add_argument('--num', type=int, default=2_000, help='pictures of each set')
  parser.add_argument('--network', default='efficientnet_lite0', help='as config.eval.network')
  parser.add_argument('--image_size', type=int, default=32)
  parser.add_argument('--channels', type=int, default=3)
  parser.add_argument('--batch_size', type=int, default=16)
  return parser.parse_args()


def blurred(pictures, radius):
  """uint8 [N, H, W, C], through a Gaussian of a radius in pixels."""
  filtered = PIL.ImageFilter.GaussianBlur(radius)
  return np.stack([as_array(as_picture(x).filter(filtered), x.shape) for x in pictures])


def through_jpeg(pictures, quality):
  """uint8 [N, H, W, C], written as JPEG and read again."""

  def decoded(x):
    file = io.BytesIO()
    as_picture(x).save(file, 'JPEG', quality=quality)
    return as_array(PIL.Image.open(file), x.shape)

  return np.stack([decoded(x) for x in pictures])


def noisy(pictures, deviation):
  """uint8 [N, H, W, C], with noise of a standard deviation, of 255."""
  noise = np.random.default_rng(0).standard_normal(pictures.shape)
  return np.clip(np.round(pictures + deviation * noise), 0, 255).astype(np.uint8)


def as_picture(x):
  """A PIL picture of uint8 [H, W, C]."""
  return PIL.Image.fromarray(x[..., 0] if x.shape[2] == 1 else x)


def as_array(picture, shape):
  """uint8 of a shape [H, W, C], of a PIL picture."""
  return np.asarray(picture).reshape(shape)


def sets(config, num):
  """Yields (name, uint8 [N, H, W, C]), first of the reference."""
  train = build.source(config, 'train')
  for_reference, others = np.arange(len(train))[::2], np.arange(len(train))[1::2]
  num = min(num, len(others))
  yield 'reference', train.read(for_reference[evenly_spaced(num, len(for_reference))])
  pictures = train.read(others[evenly_spaced(num, len(others))])
  yield 'other training pictures', pictures
  test = build.source(config, 'test')
  yield 'test pictures', test.read(evenly_spaced(min(num, len(test)), len(test)))
  for radius in BLURS:
    yield f'blurred, radius {radius} pixels', blurred(pictures, radius)
  for quality in QUALITIES:
    yield f'JPEG of quality {quality}', through_jpeg(pictures, quality)
  for deviation in NOISES:
    yield f'noise of deviation {deviation} of 255', noisy(pictures, deviation)
  labels = train.labels(None)
  if labels is not None:
    rows = others[np.asarray(labels.ids)[others] == 0]
    some = rows[evenly_spaced(min(num, len(rows)), len(rows))]
    yield f'class {labels.names[0]} alone', train.read(some)


def features_of(network, pictures, batch_size):
  """dict of features float32 [N, d] and logits float32 [N, classes]."""
  sizes = devices.fitting_batch_sizes(batch_size, len(pictures))
  found = []
  for start in range(0, len(pictures), sizes.host):
    batch = np.resize(pictures[start : start + sizes.host], (sizes.host, *pictures.shape[1:]))
    outputs = network.extract(network.params, devices.split_over_devices(batch))
    found.append(devices.gather_from_devices(outputs))
  return {
    name: np.concatenate([np.asarray(each[name]) for each in found])[: len(pictures)]
    for name in found[0]
  }


def figures(reference, found):
  """The numbers of a row, in the order of COLUMNS."""
  real, features = reference['features'], found['features']
  distance = frechet_distance(statistics_of(features), statistics_of(real))
  return (
    distance,
    1000 * kid(real, features)[0],
    *precision_recall(real, features),
    *density_coverage(real, features),
    inception_score(found['logits'], num_splits=1)[0],
  )


def main():
  """Prints the table."""
  given = parse()
  config = ddpm_jax.load_config('cifar10').copy_and_resolve_references()
  config.data.update(source=given.source, channels=given.channels, dir=given.dir)
  config.data.image_size, config.eval.network = given.image_size, given.network
  network = build.feature_network(config)
  print(f'{network.name}: {network.preprocessing}')
  print(f'{given.num:,} pictures of {given.source} a set')
  print(f'\n| Pictures | {" | ".join(COLUMNS)} |\n|---|{"---|" * len(COLUMNS)}')
  start, num_pictures, reference = time.perf_counter(), 0, None
  for name, pictures in sets(config, given.num):
    found = features_of(network, pictures, given.batch_size)
    num_pictures += len(pictures)
    if reference is None:
      reference = found
      continue
    values = [f'{value:.3g}' for value in figures(reference, found)]
    print(f'| {name} | {" | ".join(values)} |', flush=True)
  rate = num_pictures / (time.perf_counter() - start)
  print(f'\n{num_pictures:,} pictures, {rate:.0f} a second, their figures included')


if __name__ == '__main__':
  main()
