"""The nearest training images of samples, in pixels and in features: is anything copied?"""

import pathlib
from typing import Any

import numpy as np

from ddpm_jax import processes
from ddpm_jax.data import Source
from ddpm_jax.evaluation.features import collect_features, features_identity
from ddpm_jax.evaluation.figures.run import NUM_COLUMNS, Run, write_csv
from ddpm_jax.evaluation.images import ArrayImages
from ddpm_jax.evaluation.references import real_features, source_identity
from ddpm_jax.evaluation.samples import load_samples, samples_identity, write_samples
from ddpm_jax.storage.identity import Identity

BLOCK = 2048  # training images compared at a time


def nearest(queries: np.ndarray, others: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
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
  """A source's examples as vectors of their values, read a slice at a time."""

  def __init__(self, source: Source):
    self._source = source

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, rows: slice) -> np.ndarray:
    images = self._source.read(np.arange(len(self._source))[rows])
    return images.reshape(len(images), -1)


def neighbours(run: Run) -> pathlib.Path:
  """Finds and shows the nearest training images of the first samples."""
  count, width = run.num_images, NUM_COLUMNS - 1
  drawer = run.make_drawer(count)
  drawn = write_samples(drawer, run.weights, run.workdir, count, progress=True)
  samples = np.asarray(load_samples(drawn, count))
  source, scorer = run.open_training(), run.make_scorer(())
  identity = samples_identity(drawer, run.weights, 'uint8')
  if scorer is not None:
    identity = features_identity(identity, scorer.network)
  data = Identity(data=source_identity(source))
  folder = run.folder('neighbours', identity.but(data=data.data, choices={'samples': count}))
  rows_of = run.encoding.encode(samples).reshape(count, -1)
  spaces = {'pixels': nearest(rows_of, PixelRows(source), width)}
  if scorer is not None:
    features = collect_features(
      folder / 'rows',
      scorer.network,
      ArrayImages(samples, run.encoding),
      count,
      identity=identity,
      batch_size=scorer.batch_size,
    )
    real, _ = real_features(
      scorer.network, source, len(source), data, cache=scorer.cache, batch_size=scorer.batch_size
    )
    spaces['features'] = nearest(features['features'], real['features'], width)
  if not processes.is_primary():
    return folder
  rows = []
  for space, (distances, indices) in spaces.items():
    for i in range(count):
      rows += [
        (space, i, rank + 1, indices[i, rank], distances[i, rank])
        for rank in range(indices.shape[1])
      ]
    shown = np.concatenate(
      [
        np.concatenate([samples[i : i + 1], run.encoding.stored(source.read(indices[i]))])
        for i in range(count)
      ]
    )
    headings = ['sample', *(f'nearest {rank + 1}' for rank in range(indices.shape[1]))]
    run.display.save(
      folder / f'neighbours_{space}.png', shown, columns=len(headings), headings=headings
    )
  columns = ('space', 'sample', 'rank', 'training_image', 'distance')
  write_csv(folder / 'neighbours.csv', columns, rows)
  return folder
