"""Frechet distances of the samples of a run, drawn in one way or another."""

import contextlib
import pathlib
import sys
import tempfile

import numpy as np
from worker import build

from ddpm_jax.config import checks, fitted, origins
from ddpm_jax.evaluation.grids import to_uint8
from ddpm_jax.evaluation.images import ArrayImages

BATCH = 128  # of samples


def config_of(workdir, args):
  """The config of a run, with BATCH, and with args.network and its reference if one is given."""
  config = origins.config_of(str(workdir))
  config.sample.batch_size = BATCH
  if args.network:
    config.eval.update(network=args.network, reference_examples=args.reference_examples)
  return config


class Distances:
  """Draws samples of a run, and measures how far they are from its training pictures.

  Attributes:
    weights: Weights, of the newest checkpoint.
  """

  def __init__(self, config, workdir, num_samples):
    """Restores the weights.

    Args:
      config: ConfigDict; eval.network says in the features of which network.
      workdir: of the run.
      num_samples: of each measurement.
    """
    self._config, self._workdir, self._count = config, workdir, num_samples
    self.weights = build.restore_weights(config, pathlib.Path(workdir))
    self._scorer = build.scorer(config, ['fid'])

  def figure(self, **fields):
    """The figure of samples drawn as config.sample and these fields of it say."""
    chosen = self._config.copy_and_resolve_references()
    chosen.sample.update(**fields)
    checks.check(chosen)
    chosen, estimates = fitted.fit(chosen, self.weights, self._workdir)
    drawer = build.drawer(chosen, self._count, estimates=estimates)
    images = []
    for first in range(0, self._count, drawer.sizes.global_):
      ids = np.minimum(np.arange(first, first + drawer.sizes.global_), self._count - 1)
      images.append(to_uint8(drawer.draw(self.weights.params, ids)))
    images = ArrayImages(np.concatenate(images)[: self._count])
    # Progress is no part of a table.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
      figures, _ = self._scorer.score(
        pathlib.Path(folder), 'features', images, self._count, identity=drawer.identity, facts={}
      )
    print(f'{fields}: {figures[0]["value"]:.3f}', file=sys.stderr, flush=True)
    return figures[0]
