"""What the evaluation costs beyond its networks: features and bits/dim against bare evaluations.

  python benchmarks/evaluation.py [--rounds=7] [--images=192]

The two take turns. The Inception network has random weights, which cost the same; the model is
that of configs/cifar10_small.py with fewer timesteps.
"""

import statistics

import jax
import numpy as np
from interleaved import alternate, machine, parse, print_table, ratio, seconds
from worker import bpd_fn_of, build, devices, features, make_config, random_source, versions

from ddpm_jax.diffusion.forward import scale_levels

BATCH = 32
NUM_TIMESTEPS = 50


def compare(what, count, rounds, *, network, evaluation):
  """A row of the table, of two functions that each take the seconds of so many."""
  functions = {'network': network, 'evaluation': evaluation}
  alternate(functions, 1)
  measured = alternate(functions, rounds)
  rates = [f'{count / statistics.median(values):.2f}' for values in measured.values()]
  return [what, *rates, f'{ratio(measured["network"], measured["evaluation"]):.3f}']


def compare_features(count, rounds):
  """Features of images, written to disk, against the network called in a loop."""
  functions = features('cifar10', BATCH, count)
  return compare('Inception features, images/s', count, rounds, **functions)


def compare_bound(rounds):
  """Bits/dim of a batch against T evaluations of the network, each its own dispatch."""
  changes = {'diffusion.num_timesteps': NUM_TIMESTEPS, 'data.source': 'digits'}
  config = make_config('cifar10_small', BATCH, changes)
  params = devices.replicate(jax.jit(lambda: build.init_params(config))())
  bpd_fn, key = bpd_fn_of(config), devices.replicate(build.key(config.eval.seed, 'bpd'))
  model = build.model(config)
  network = devices.compile_batch_fn(
    lambda params, x, t: model.apply({'params': params}, x, t), in_axes=(None, 0, 0)
  )
  ids = np.arange(BATCH, dtype=np.int32)
  images = random_source(config, BATCH).read(ids)
  x = devices.split_over_devices(scale_levels(images))
  ts = [devices.split_over_devices(np.full(BATCH, t, np.int32)) for t in range(NUM_TIMESTEPS)]
  batch = {'images': images, 'ids': ids}

  def bare():
    for t in ts:
      jax.block_until_ready(network(params, x, t))

  def evaluate():
    jax.block_until_ready(bpd_fn(params, batch, key))

  return compare(
    'bits/dim, evaluations/s',
    BATCH * NUM_TIMESTEPS,
    rounds,
    network=lambda: seconds(bare),
    evaluation=lambda: seconds(evaluate),
  )


def main():
  """Prints machine, versions and the table."""
  args = parse(__doc__, rounds=7, images=192)
  print(machine(), versions(), sep='\n', end='\n\n')

  def rows():
    yield compare_features(args.images // BATCH * BATCH, args.rounds)
    yield compare_bound(args.rounds)

  print_table(['', 'bare network', 'evaluation', 'evaluation over network'], rows())


if __name__ == '__main__':
  main()
