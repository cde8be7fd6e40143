"""What the benchmarks run of this package, made as its own loops make it."""

import collections
import contextlib
import importlib
import importlib.metadata
import math
import time
from unittest import mock

import jax
import numpy as np
import PIL.Image
from turns import DATA_BYTES

from ddpm_jax import build, parallel
from ddpm_jax.data.digits import ArraySource
from ddpm_jax.sample import Sampler
from ddpm_jax.train import dispatches
from ddpm_jax.train_state import init_train_state

NUM_IMAGES = 50_000  # of CIFAR-10


def versions():
  """Names and versions, in words."""
  names = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')
  return ', '.join(f'{name} {importlib.metadata.version(name)}' for name in names)


def make_config(batch_size, changes, name='cifar10'):
  """configs/NAME.py with another batch and with changes, {'model.ch': 64}."""
  config = importlib.import_module(f'configs.{name}').get_config()
  config.update_from_flattened_dict(
    {'train.global_batch_size': batch_size, 'sample.batch_size': batch_size, **changes}
  )
  build.check(config)
  return config


def count(tree):
  """Number of elements of a tree of arrays."""
  return sum(x.size for x in jax.tree.leaves(tree))


def random_source(config, num_images=NUM_IMAGES):
  """Noise in place of pictures."""
  shape = (num_images, *build.image_shape(config))
  return ArraySource('random', 'train', np.random.default_rng(0).integers(0, 256, shape, np.uint8))


class TrainStep:
  """Training as ddpm_jax/train.py does it, input pipeline included."""

  def __init__(self, batch_size, changes=None, name='cifar10'):
    config = make_config(batch_size, changes or {}, name)
    self.config = config
    self._steps = build.train_steps(config)
    self._key = parallel.replicate(build.key(config.seed, 'train'))
    num_images = max(DATA_BYTES // math.prod(build.image_shape(config)), 2 * batch_size)
    batches = build.batches(config, random_source(config, num_images))
    self._data = build.device_data(config, batches)
    self._dispatches = dispatches(config, batches, 0, gather=self._data is not None)

    def init():
      return init_train_state(build.init_params(config), build.optimizer(config))

    self.state = jax.block_until_ready(parallel.replicate(jax.jit(init)()))

  def facts(self):
    """Parameters, FLOPs of a step, and versions."""
    return {
      'parameters': count(self.state.params),
      'flops': matmul_flops(self.traced(plain=True).jaxpr) / build.steps_per_dispatch(self.config),
      'versions': versions(),
    }

  def traced(self, *, plain=False):
    """The step, traced with the arguments of its next call; plain: without what is for CPUs."""
    with contextlib.ExitStack() as stack:
      # Options of the compiler are not for what is traced within another function.
      stack.enter_context(mock.patch.object(parallel, '_has_cpu_options', return_value=False))
      if plain:
        stack.enter_context(mock.patch.object(parallel, 'on_cpu', return_value=False))
      train_steps = build.train_steps(self.config)
    _, block = next(self._dispatches)
    return jax.jit(train_steps).trace(self.state, block, self._data, self._key)

  def turn(self, num_steps):
    """Seconds of so many steps, or of more in proportion, where a dispatch has more."""
    start, taken = time.perf_counter(), 0
    while taken < num_steps:
      _, block = next(self._dispatches)
      self.state, self.metrics = self._steps(self.state, block, self._data, self._key)
      taken += len(block)
    jax.block_until_ready((self.state, self.metrics))
    return (time.perf_counter() - start) * num_steps / taken


def matmul_flops(jaxpr):
  """FLOPs of all matrix products and convolutions in a jaxpr, two a multiplication."""
  return sum(flops_by_primitive(jaxpr).values())


def flops_by_primitive(jaxpr):
  """FLOPs of {dot_general, conv_general_dilated} in a jaxpr.

  Zeros that pad an image are counted, zeros between the pixels of a dilated one are not: as
  torch.utils.flop_counter has it.
  """
  totals = collections.Counter()
  for eqn in jaxpr.eqns:
    name = eqn.primitive.name
    if name == 'dot_general':
      (contracted, _), _ = eqn.params['dimension_numbers']
      depth = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
      totals[name] += 2 * eqn.outvars[0].aval.size * depth
    elif name == 'conv_general_dilated':
      _, in_features, *window = eqn.params['dimension_numbers'].rhs_spec
      kernel = eqn.invars[1].aval.shape
      taps = math.prod(kernel[i] for i in window) / math.prod(eqn.params['lhs_dilation'])
      totals[name] += int(2 * eqn.outvars[0].aval.size * kernel[in_features] * taps)
    else:
      repeats = eqn.params['length'] if name == 'scan' else 1
      for inner in inner_jaxprs(eqn.params):
        for inner_name, flops in flops_by_primitive(inner).items():
          totals[inner_name] += repeats * flops
  return totals


def inner_jaxprs(params):
  """Yields the jaxprs of the functions that an equation calls."""
  for value in jax.tree.leaves(list(params.values()), is_leaf=lambda x: hasattr(x, 'jaxpr')):
    jaxpr = getattr(value, 'jaxpr', value)
    if hasattr(jaxpr, 'eqns'):
      yield jaxpr


class SampleStep:
  """Sampling as ddpm_jax/sample.py does it, and the bare network."""

  def __init__(self, batch_size, num_timesteps):
    config = make_config(batch_size, {'diffusion.num_timesteps': num_timesteps})
    self._params = parallel.replicate(jax.jit(lambda: build.init_params(config))())
    self._sampler = Sampler(config, batch_size)
    model = build.model(config)

    def network(params, x, t):
      return model.apply({'params': params}, x, t)

    self._plain = model.clone(winograd=False)
    self._network = parallel.pmap_batch_step(network, in_axes=(None, 0, 0))
    x = np.random.default_rng(0).normal(size=(batch_size, *build.image_shape(config)))
    t = np.full(batch_size, num_timesteps // 2, np.int32)
    self._arguments = parallel.split_over_devices((x.astype(np.float32), t))
    self._ids = np.arange(batch_size)

  def network(self, num_evaluations):
    """Seconds of so many evaluations of the network, one after the other."""
    start = time.perf_counter()
    for _ in range(num_evaluations):
      jax.block_until_ready(self._network(self._params, *self._arguments))
    return time.perf_counter() - start

  def chain(self):
    """Seconds of a batch of samples, from noise to images in NumPy."""
    start = time.perf_counter()
    self._sampler.draw(self._params, self._ids)
    return time.perf_counter() - start

  def facts(self):
    """Parameters, FLOPs of an evaluation, and versions."""
    x, t = (array[0] for array in self._arguments)
    jaxpr = jax.make_jaxpr(self._plain.apply)({'params': self._params}, x, t)
    return {
      'parameters': count(self._params),
      'flops': matmul_flops(jaxpr),
      'versions': versions(),
    }


class Matmul:
  """A large product of matrices, the peak that everything else is held against."""

  def __init__(self, library, size, dtype='float32'):
    self._size = size
    a, b = np.random.default_rng(0).normal(size=(2, size, size)).astype(np.float32)
    if library == 'jax':
      a, b = jax.numpy.asarray(a, dtype), jax.numpy.asarray(b, dtype)
      product = jax.jit(jax.numpy.matmul)
      self._product = lambda: jax.block_until_ready(product(a, b))
    else:
      self._product = lambda: a @ b
    self._product()

  def turn(self):
    """FLOP/s of one product."""
    start = time.perf_counter()
    self._product()
    return 2 * self._size**3 / (time.perf_counter() - start)


class Pipeline:
  """The input pipeline, up to the arrays that a step is called with."""

  def __init__(self, batch_size, folder=None, num_files=None):
    """Pictures in memory; with a folder, in so many PNG files that are written there."""
    config = make_config(batch_size, {'data.num_workers': 0})
    source = random_source(config, num_files or NUM_IMAGES)
    if folder is not None:
      for i in range(num_files):
        PIL.Image.fromarray(source.read([i])[0]).save(f'{folder}/{i:05d}.png')
      config.data.update(source=f'folder:{folder}', memory_limit_gib=0.0)
      source = build.source(config)
    self._batch_size = batch_size
    self._iterator = build.batches(config, source).iterate(0)

  def turn(self, num_batches):
    """Images a second of so many batches."""
    start = time.perf_counter()
    for _ in range(num_batches):
      parallel.split_over_devices(next(self._iterator))
    return num_batches * self._batch_size / (time.perf_counter() - start)
