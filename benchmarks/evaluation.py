"""What the evaluation costs beyond its networks: features and bits/dim against bare evaluations.

  python benchmarks/evaluation.py

Turns alternate, so that a change of the machine's speed meets both. The Inception network has
random weights, which cost the same; the model is that of configs/cifar10_small.py with fewer
timesteps.
"""

import pathlib
import platform
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from configs import cifar10_small
from ddpm_jax import build, parallel, steps
from ddpm_jax.convert.torch_inception import inception_params_like
from ddpm_jax.data.digits import ArraySource
from ddpm_jax.inception import InceptionV3
from ddpm_jax.metrics.features import FeatureNetwork, collect_features

TURNS = 7
NUM_IMAGES = 192
BATCH_SIZE = 32
NUM_TIMESTEPS = 50


def turns(functions):
  """{name: seconds of each turn} of functions called in turn, after a first call of each."""
  for function in functions.values():
    function()
  seconds = {name: [] for name in functions}
  for _ in range(TURNS):
    for name, function in functions.items():
      start = time.perf_counter()
      function()
      seconds[name].append(time.perf_counter() - start)
  return seconds


def tell(what, seconds, count, unit):
  """Prints medians and the ratio of the second to the first."""
  for name, values in seconds.items():
    print(f'{what}, {name}: {count / np.median(values):.2f} {unit}/s (median of {TURNS})')
  ratios = np.divide(*seconds.values())
  print(f'{what}: {np.median(ratios):.3f} of the bare throughput, turn by turn', flush=True)


def features():
  """Features of images, written to disk, against the network called in a loop."""
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: np.float32(rng.normal(size=x.shape) / np.sqrt(max(np.prod(x.shape[:-1]), 1))),
    inception_params_like(),
  )
  params = parallel.replicate(params)
  step = steps.make_feature_step(InceptionV3(), '2048', 'logits_unbiased')
  step = parallel.pmap_batch_step(step, in_axes=(None, 0))
  network = FeatureNetwork('inception', False, '', '', params, step)
  images = rng.integers(0, 256, (NUM_IMAGES, 32, 32, 3), np.uint8)
  batches = [
    jax.block_until_ready(jnp.asarray(parallel.split_over_devices(images[i : i + BATCH_SIZE])))
    for i in range(0, NUM_IMAGES, BATCH_SIZE)
  ]

  def bare():
    for batch in batches:
      jax.block_until_ready(step(params, batch))

  def ours():
    with tempfile.TemporaryDirectory() as folder:
      source = ArraySource('benchmark', 'train', images)
      path = pathlib.Path(folder) / 'job'
      collect_features(path, network, source, NUM_IMAGES, request={}, batch_size=BATCH_SIZE)

  tell('features', turns({'bare network': bare, 'evaluation': ours}), NUM_IMAGES, 'images')


def bound():
  """Bits/dim of a batch against T evaluations of the network, each its own dispatch."""
  config = cifar10_small.get_config()
  config.diffusion.num_timesteps = NUM_TIMESTEPS
  params = parallel.replicate(jax.jit(lambda: build.init_params(config))())
  bpd_step = build.bpd_step(config)
  model = build.model(config)
  network = parallel.pmap_batch_step(
    lambda params, x, t: model.apply({'params': params}, x, t), in_axes=(None, 0, 0)
  )
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (BATCH_SIZE, 32, 32, 3), np.uint8)
  x = parallel.split_over_devices(steps.scale_images(images))
  ts = [parallel.split_over_devices(np.full(BATCH_SIZE, t, np.int32)) for t in range(NUM_TIMESTEPS)]
  batch = parallel.split_over_devices({'images': images, 'ids': np.arange(BATCH_SIZE)})
  key = parallel.replicate(build.key(0, 'bpd'))

  def bare():
    for t in ts:
      jax.block_until_ready(network(params, x, t))

  def ours():
    jax.block_until_ready(bpd_step(params, batch, key))

  seconds = turns({'bare network': bare, 'evaluation': ours})
  tell('bits/dim', seconds, BATCH_SIZE * NUM_TIMESTEPS, 'evaluations')


def main():
  """Prints machine and versions, then both comparisons."""
  print(f'{platform.machine()}, {jax.device_count()} x {jax.devices()[0].device_kind}')
  print(f'Python {platform.python_version()}, jax {jax.__version__}, numpy {np.__version__}')
  features()
  bound()


if __name__ == '__main__':
  main()
