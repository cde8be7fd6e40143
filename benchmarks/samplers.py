"""Quality against evaluations of the network, sampler by sampler: a table for docs/results.md.

  python benchmarks/samplers.py --workdir=DIR [--num_samples=1024] [--columns=5,10,20,50,100]
    [--samplers=ddim,heun] [--spacings=linspace,least_error] [--clips=static,none] [--parts=1,8]
    [--variances=analytic] [--early] [--seeds=5] [--no_whole]
    [--network=efficientnet_lite0 --reference_examples=5000]

DIR is a run, of configs/digits.py in docs/results.md. Each cell is the Frechet distance of the
samples to the training pictures in the features of eval.network; the initial noise is the same in
all. With seeds, a cell is the mean over them, and the deviation. How far it moves with the seed,
the distance between halves of the real pictures and that of the whole reverse chain come below.
"""

import itertools

import numpy as np
from distances import Distances, config_of
from interleaved import parse, print_row
from worker import versions

from ddpm_jax.sampling import SAMPLERS

SEEDED = 'dpmpp_2m'  # whose distance is measured for several seeds
NUM_SEEDS = 5


def num_steps(name, evaluations):
  """The most steps that the evaluations are enough for."""
  return (evaluations + 1) // 2 if name == 'heun' else evaluations


def choices_of(args):
  """Yields (label, fields of config.sample) of each row."""
  rows = itertools.product(
    *(options.split(',') for options in (args.samplers, args.spacings, args.clips)),
    map(int, args.parts.split(',')),
  )
  for name, spacing, clip, parts in rows:
    label, fields = f'{name}, {spacing}', {'sampler': name, 'spacing': spacing, 'clip': clip}
    if clip != 'static':
      label = f'{label}, clip {clip}'
    if parts > 1:
      label, fields = f'{label}, 1/{parts}', {**fields, 'timestep_parts': parts}
    yield label, fields
    if name == 'ddim':
      yield f'{label}, eta 1', {**fields, 'eta': 1.0}
    if name == 'ancestral':
      for variance in filter(None, args.variances.split(',')):
        yield f'{label}, {variance}', {**fields, 'variance': variance}
    elif args.early:
      yield f'{label}, stops early', {**fields, 'stops_early': True}


def main():
  """Prints the table."""
  args = parse(
    __doc__,
    workdir=None,
    num_samples=1024,
    columns='5,10,20,50,100',
    samplers=','.join(SAMPLERS),
    spacings='trailing',
    clips='static',
    parts='1',
    variances='',
    early=False,
    seeds=1,
    no_whole=False,
    network='',
    reference_examples=5000,
  )
  count = args.num_samples
  distances = Distances(config_of(args.workdir, args), args.workdir, count)

  def cell(**fields):
    """The figure over the seeds."""
    values = [distances.figure(seed=seed, **fields)['value'] for seed in range(args.seeds)]
    deviation = '' if args.seeds == 1 else f' +- {np.std(values):.2f}'
    return f'{np.mean(values):.2f}{deviation}'

  print(f'step {distances.weights.step}, {count} images, {versions()}\n')
  columns = [int(column) for column in args.columns.split(',')]
  print_row(['Sampler', *columns])
  print_row(['---'] * (len(columns) + 1))
  for label, fields in choices_of(args):
    steps = [num_steps(fields['sampler'], column) for column in columns]
    print_row([label, *(cell(num_steps=n, **fields) for n in steps)])
  if args.no_whole:
    return
  of_seeds = [
    distances.figure(sampler=SEEDED, num_steps=10, seed=seed) for seed in range(NUM_SEEDS)
  ]
  values = [figure['value'] for figure in of_seeds]
  print(f'\n{SEEDED}, 10 steps, {NUM_SEEDS} seeds: {np.mean(values):.2f} +- {np.std(values):.2f}')
  print(f'halves of the real pictures: {of_seeds[0]["sanity"]:.2f}', flush=True)
  print(f'ancestral, all steps: {distances.figure()["value"]:.2f}')


if __name__ == '__main__':
  main()
