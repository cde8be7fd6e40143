"""Quality against evaluations of the network, sampler by sampler: a table for docs/results.md.

  python benchmarks/samplers.py --workdir=DIR [--num_samples=1024] [--columns=5,10,20,50,100]
    [--samplers=ddim,heun] [--spacings=linspace,karras] [--no-whole]

DIR is a run of configs/digits.py. Each cell is the Frechet distance of the samples to the training
digits in the features of the digits classifier; the initial noise is the same in all. How far it
moves with the seed, the distance between halves of the real digits and that of the whole reverse
chain come below.
"""

import argparse
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import numpy as np

from configs import digits
from ddpm_jax import build
from ddpm_jax.grids import to_uint8
from ddpm_jax.sample import Sampler, restore_ema
from ddpm_jax.samplers import SAMPLERS
from ddpm_jax.scores import ArrayImages, Scorer

NOISE_OF = 'dpmpp_2m'  # whose distance is told for several seeds
NUM_SEEDS = 5


def num_steps(name, evaluations):
  """The most steps that the evaluations are enough for."""
  return (evaluations + 1) // 2 if name == 'heun' else evaluations


class Bench:
  """A trained model, drawn from and measured."""

  def __init__(self, workdir, num_samples):
    self.config = digits.get_config()
    self.config.eval.update(metrics=('fid',), num_samples=num_samples)
    self.config.sample.batch_size = 128
    self.count = num_samples
    self.step, self._params, _ = restore_ema(self.config, pathlib.Path(workdir))
    self.scorer = Scorer(self.config)

  def distance(self, **sample):
    """The figure of samples drawn as config.sample and these fields say."""
    config = self.config.copy_and_resolve_references()
    config.sample.update(**sample)
    build.check(config)
    sampler = Sampler(config, self.count)
    images = []
    for first in range(0, self.count, sampler.sizes.global_):
      ids = np.minimum(np.arange(first, first + sampler.sizes.global_), self.count - 1)
      images.append(to_uint8(sampler.draw(self._params, ids)))
    images = np.concatenate(images)[: self.count]
    with tempfile.TemporaryDirectory() as folder:
      figures, _ = self.scorer.score(
        pathlib.Path(folder), ArrayImages(images), self.count, request={}, facts={}
      )
    print(f'{sample}: {figures[0]["value"]:.3f}', file=sys.stderr, flush=True)
    return figures[0]


def rows_of(samplers, spacings):
  """(label, fields of config.sample) of each row."""
  for name in samplers:
    for spacing in spacings:
      label, fields = f'{name}, {spacing}', {'sampler': name, 'spacing': spacing}
      yield label, fields
      if name == 'ddim':
        yield f'{label}, eta 1', {**fields, 'eta': 1.0}


def main():
  """Prints the table in Markdown."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--num_samples', type=int, default=1024)
  parser.add_argument('--columns', default='5,10,20,50,100')
  parser.add_argument('--samplers', default=','.join(SAMPLERS))
  parser.add_argument('--spacings', default='trailing')
  parser.add_argument('--no-whole', action='store_true', help='leave out the last row')
  arguments = parser.parse_args()
  columns = [int(column) for column in arguments.columns.split(',')]
  bench = Bench(arguments.workdir, arguments.num_samples)
  print(f'step {bench.step}, {bench.count} images, jax {jax.__version__}')
  print('| Sampler | ' + ' | '.join(map(str, columns)) + ' |')
  print('|---' * (len(columns) + 1) + '|')
  for label, fields in rows_of(arguments.samplers.split(','), arguments.spacings.split(',')):
    figures = [
      bench.distance(num_steps=num_steps(fields['sampler'], column), **fields) for column in columns
    ]
    print(f'| {label} | ' + ' | '.join(f'{f["value"]:.2f}' for f in figures) + ' |', flush=True)
  values = [
    bench.distance(sampler=NOISE_OF, num_steps=10, seed=seed)['value'] for seed in range(NUM_SEEDS)
  ]
  print(f'{NOISE_OF}, 10 steps, {NUM_SEEDS} seeds: {np.mean(values):.2f} +- {np.std(values):.2f}')
  print(f'halves of the real digits: {figures[0]["sanity"]:.2f}', flush=True)
  if not arguments.no_whole:
    print(f'ancestral, all steps: {bench.distance()["value"]:.2f}')


if __name__ == '__main__':
  main()
