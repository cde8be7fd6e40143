"""What the evaluation costs beyond its networks: features and bits/dim against bare evaluations.

  python benchmarks/evaluation.py [--rounds=7] [--images=192]

The two take turns. The Inception network has random weights, which cost the same; the model is
that of configs/cifar10_small.py with fewer timesteps.
"""

import pathlib
import statistics
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from interleaved import alternate, machine, parse, print_table, ratio, seconds
from worker import build, devices, make_config, random_source, versions

from ddpm_jax.diffusion.forward import scale_levels
from ddpm_jax.evaluation.features import FeatureNetwork, collect_features, make_feature_fn
from ddpm_jax.interop.torch_inception import inception_params_like
from ddpm_jax.nn.inception import InceptionV3
from ddpm_jax.storage.identity import Identity

BATCH = 32
NUM_TIMESTEPS = 50


def compare(what, count, rounds, network, evaluation):
  """A row of the table, of two functions that each do so many."""
  functions = {'network': network, 'evaluation': evaluation}
  functions = {name: lambda f=function: seconds(f) for name, function in functions.items()}
  alternate(functions, 1)
  measured = alternate(functions, rounds)
  rates = [f'{count / statistics.median(values):.2f}' for values in measured.values()]
  return [what, *rates, f'{ratio(measured["network"], measured["evaluation"]):.3f}']


def compare_features(count, rounds):
  """Features of images, written to disk, against the network called in a loop."""
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: np.float32(rng.normal(size=x.shape) / np.sqrt(max(np.prod(x.shape[:-1]), 1))),
    inception_params_like(),
  )
  params = devices.replicate(params)
  extract = make_feature_fn(InceptionV3(), '2048', 'logits_unbiased')
  extract = devices.compile_batch_fn(extract, in_axes=(None, 0))
  network = FeatureNetwork('inception', False, '', '', params, extract)
  source = random_source(make_config('cifar10', BATCH), count)
  batches = [
    jnp.asarray(devices.split_over_devices(source.read(np.arange(first, first + BATCH))))
    for first in range(0, count, BATCH)
  ]

  def bare():
    for batch in batches:
      jax.block_until_ready(extract(params, batch))

  def evaluate():
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder) / 'features'
      collect_features(path, network, source, count, identity=Identity(), batch_size=BATCH)

  return compare('Inception features, images/s', count, rounds, bare, evaluate)


def compare_bound(rounds):
  """Bits/dim of a batch against T evaluations of the network, each its own dispatch."""
  changes = {'diffusion.num_timesteps': NUM_TIMESTEPS, 'data.source': 'digits'}
  config = make_config('cifar10_small', BATCH, changes)
  params = devices.replicate(jax.jit(lambda: build.init_params(config))())
  (bound,) = build.bounds(config, ['train'], None)
  model = build.model(config)
  network = devices.compile_batch_fn(
    lambda params, x, t: model.apply({'params': params}, x, t), in_axes=(None, 0, 0)
  )
  ids = np.arange(BATCH, dtype=np.int32)
  images = random_source(config, BATCH).read(ids)
  x = devices.split_over_devices(scale_levels(images))
  ts = [devices.split_over_devices(np.full(BATCH, t, np.int32)) for t in range(NUM_TIMESTEPS)]
  batch = devices.split_over_devices({'images': images, 'ids': ids})

  def bare():
    for t in ts:
      jax.block_until_ready(network(params, x, t))

  def evaluate():
    jax.block_until_ready(bound.compute(params, batch, bound.key))

  return compare('bits/dim, evaluations/s', BATCH * NUM_TIMESTEPS, rounds, bare, evaluate)


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
