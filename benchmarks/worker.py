"""What the benchmarks measure of this package, made as its own modes make it; and its process.

  CHECKOUT=DIR python benchmarks/worker.py TASK '{"batch": 16, ...}'

is started by interleaved.py. Other benchmarks import the classes.
"""

import collections
import importlib
import importlib.metadata
import math
import os
import pathlib
import sys
import tempfile
import time
import types

sys.path.insert(0, os.environ.get('CHECKOUT', str(pathlib.Path(__file__).resolve().parents[1])))

import jax
import numpy as np
from interleaved import DATA_BYTES, peak_mib, seconds, serve
from traces import (
  ATTENTION,
  ATTENTION_SCOPE,
  CONVOLUTIONS,
  FILTERING_PRODUCTS,
  MATMULS,
  MINIMAL_FILTERING,
  by_kind,
  op_times,
  read_events,
  read_program,
)

from ddpm_jax.data.digits import ArraySource

MATMUL_SIZE = 4096
# Of the ceilings, where one call has to take far longer than its launch: a product, values, passes.
CEILING_SIZES = {'cpu': (512, 1 << 20, 4)}
CEILING_SIZES_OF_ACCELERATORS = (8192, 1 << 28, 20)


def open_program():
  """The checkout's builders; an earlier checkout's under the names that they have now."""
  if importlib.util.find_spec('ddpm_jax.modes') is None:
    return open_earlier_program()
  from ddpm_jax import devices
  from ddpm_jax.training import loop, state

  room = 'modes' if importlib.util.find_spec('ddpm_jax.config') is None else 'config'
  build = importlib.import_module(f'ddpm_jax.{room}.build')

  def earlier_init_state(config, params):
    return state.init_train_state(params, build.optimizer(config))

  return types.SimpleNamespace(
    build=build,
    devices=devices,
    compile_batch_fn=devices.compile_batch_fn,
    init_state=getattr(build, 'init_state', earlier_init_state),
    train_step=build.train_step,
    dispatches=lambda config, batches, **kwargs: loop.dispatches(
      batches, 0, build.plan(config), **kwargs
    ),
    drawer=build.drawer,
    bpd_fn=bpd_fn_of,
  )


def bpd_fn_of(config):
  """(params, batch [B, ...], key) -> the bound of a batch."""
  (bound,) = build.bounds(config, ['train'], None)
  if not hasattr(bound, 'work'):  # of an earlier checkout, in one dispatch
    return lambda params, batch, key: bound.compute(params, devices.split_over_devices(batch), key)
  from ddpm_jax.evaluation import stepwise

  return lambda params, batch, key: stepwise.run(bound.work, params, batch, key)


def open_earlier_program():
  """As open_program, of a checkout whose modules all lie in ddpm_jax/."""
  from ddpm_jax import build, parallel, sample, train, train_state

  def earlier_bpd_fn(config):
    step = build.bpd_step(config)
    return lambda params, batch, key: step(params, parallel.split_over_devices(batch), key)

  return types.SimpleNamespace(
    build=build,
    devices=parallel,
    compile_batch_fn=parallel.pmap_batch_step,
    init_state=lambda config, params: train_state.init_train_state(params, build.optimizer(config)),
    train_step=build.train_steps,
    dispatches=lambda config, batches, **kwargs: train.dispatches(config, batches, 0, **kwargs),
    drawer=sample.Sampler,
    bpd_fn=earlier_bpd_fn,
  )


program = open_program()
build, devices = program.build, program.devices
LOWER = getattr(devices, 'lower_train_step', None)  # earlier checkouts compile at the first call


def make_config(name, batch, changes=()):
  """configs/NAME.py with another batch and with changes, {'model.ch': 64}."""
  config = importlib.import_module(f'configs.{name}').get_config()
  sizes = {'train.global_batch_size': batch, 'sample.batch_size': batch, 'eval.batch_size': batch}
  config.update_from_flattened_dict(sizes | dict(changes))
  return config


def random_source(config, count):
  """So many pictures of noise."""
  shape = (count, *build.image_shape(config))
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  num_classes = config.model.get('num_classes')  # earlier checkouts have no labels
  if num_classes is None:
    return ArraySource('random', 'train', images)
  from ddpm_jax.data import Labels

  ids = np.arange(count, dtype=np.int32) % num_classes
  return ArraySource('random', 'train', images, Labels(ids, tuple(map(str, range(num_classes)))))


def versions():
  """Names and versions, in words."""
  names = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')
  return ', '.join(f'{name} {importlib.metadata.version(name)}' for name in names)


class Training:
  """Training as its loop has it, input pipeline included."""

  def __init__(self, config):
    self.config = config
    self._train_step = program.train_step(config)
    self._key = devices.replicate(build.key(config.seed, 'train'))
    batch, pixels = config.train.global_batch_size, math.prod(build.image_shape(config))
    source = random_source(config, max(DATA_BYTES // pixels, 2 * batch))
    has_labels = config.model.get('num_classes') is not None
    labels = {'labels': build.labels_of(config, source)} if has_labels else {}
    batches = build.batches(config, source, **labels)
    self._data = build.device_data(config, batches)
    self._dispatches = program.dispatches(config, batches, gather=self._data is not None)
    self._done = 0

    @jax.jit
    def init():
      return program.init_state(config, build.init_params(config))

    self.state = jax.block_until_ready(devices.replicate(init()))

  def seconds(self, num_steps):
    """Of so many steps; or of more, in proportion, where a dispatch has more."""
    start, done = time.perf_counter(), self._done
    while self._done < done + num_steps:
      is_first = self._done == 0
      self._done, *_, self._block = next(self._dispatches)
      if is_first and LOWER:  # as the trainer compiles it
        self.program()
      self.state, self.metrics = self._train_step(self.state, self._block, self._data, self._key)
    jax.block_until_ready((self.state, self.metrics))
    return (time.perf_counter() - start) * num_steps / (self._done - done)

  def program(self):
    """The compiled program of a dispatch that was done, from the cache where there is one."""
    arguments = self.state, self._block, self._data, self._key
    if LOWER:
      return LOWER(self._train_step, *arguments)()
    return self._train_step.lower(*arguments).compile()


def training(config, batch, steps, dtype='float32', changes=()):
  """Task: a step, and several."""
  config = make_config(config, batch, {'model.dtype': dtype, **dict(changes)})
  run = Training(config)

  def facts():
    peak = peak_mib()  # tracing takes memory
    flops = sum(flops_by_primitive(training_jaxpr(config)).values())
    return {**about(run.state.params), 'flops': flops, 'peak_mib': peak}

  def profile():
    times, secs = trace(run, steps)
    program = run.program()
    return {
      'seconds': secs,
      'kinds': by_kind(times, read_program(program.as_text()), steps),
      'flops': training_flops(config),
      'program_mib': program_mib(program),
    }

  return {
    'step': lambda: run.seconds(1),
    'steps': lambda: run.seconds(steps),
    'facts': facts,
    'profile': profile,
    **ceilings(dtype),
  }


def trace(run, steps):
  """({op: (seconds, how often)} of so many steps of a Training, seconds of one)."""
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      secs = run.seconds(steps)
    return op_times(read_events(folder)), secs / steps


def program_mib(program):
  """What a compiled program needs at once, arguments included, MiB; None where XLA is silent."""
  found = program.memory_analysis()
  if found is None:
    return None
  num_bytes = found.argument_size_in_bytes + found.temp_size_in_bytes
  num_bytes += found.output_size_in_bytes - found.alias_size_in_bytes
  return num_bytes / 2**20


def device_mib():
  """Most memory of the device that was in use at once, MiB; on a CPU, of the process."""
  stats = jax.local_devices()[0].memory_stats()
  return stats['peak_bytes_in_use'] / 2**20 if stats else peak_mib()


def ceilings(dtype):
  """What the device can do: functions to ask for.

  matrix_peak: FLOP/s of products of matrices of a dtype, one after the other.
  bandwidth: bytes/s of a float32 array that is read and written, again and again.
  """
  size, count, passes = CEILING_SIZES.get(jax.default_backend(), CEILING_SIZES_OF_ACCELERATORS)

  @jax.jit
  def multiply(x, y):
    return jax.lax.fori_loop(0, passes, lambda _, x: x @ y, x)

  @jax.jit
  def stream(x):
    return jax.lax.fori_loop(0, passes, lambda _, x: x * 0.999 + 1, x)

  def rate(function, work, *args):
    jax.block_until_ready(function(*args))
    return work / seconds(lambda: jax.block_until_ready(function(*args)))

  def matrix_peak():
    keys = jax.random.split(jax.random.key(0))
    x, y = (jax.random.normal(key, (size, size)).astype(dtype) for key in keys)
    return rate(multiply, 2 * passes * size**3, x, y / math.sqrt(size))

  def bandwidth():
    return rate(stream, 2 * 4 * passes * count, jax.numpy.ones(count, np.float32))

  return {'matrix_peak': matrix_peak, 'bandwidth': bandwidth}


def inference(config, batch, timesteps, dtype='float32', changes=()):
  """Task: evaluations of the network; a chain, from noise to images in NumPy; a bound."""
  chosen = {'diffusion.num_timesteps': timesteps, 'data.source': 'digits', 'model.dtype': dtype}
  config = make_config(config, batch, {**dict(changes), **chosen})
  params = devices.replicate(jax.jit(lambda: build.init_params(config))())
  model = build.model(config)
  network = program.compile_batch_fn(
    lambda params, x, t: model.apply({'params': params}, x, t), in_axes=(None, 0, 0)
  )
  drawer, bpd_fn = program.drawer(config, batch), program.bpd_fn(config)
  key = devices.replicate(build.key(config.eval.seed, 'bpd'))
  ids, t = np.arange(batch, dtype=np.int32), np.full(batch, timesteps // 2, np.int32)
  images = random_source(config, batch).read(ids)
  x = images / np.float32(127.5) - 1
  split, examples = devices.split_over_devices({'x': x, 't': t}), {'images': images, 'ids': ids}

  def evaluate(count):
    for _ in range(count):
      jax.block_until_ready(network(params, split['x'], split['t']))

  def facts():
    jaxpr = jax.make_jaxpr(plain(model).apply)({'params': params}, x, t)
    return {**about(params), 'flops': sum(flops_by_primitive(jaxpr).values())}

  return {
    'evaluation': lambda: seconds(lambda: evaluate(1)),
    'evaluations': lambda: seconds(lambda: evaluate(timesteps)),
    'chain': lambda: seconds(lambda: drawer.draw(params, ids)),
    'bound': lambda: seconds(lambda: jax.block_until_ready(bpd_fn(params, examples, key))),
    'facts': facts,
  }


def features(config, batch, count):
  """Task: features of so many images, written to disk; and the bare network on the same.

  Those of Inception are of random weights, which cost the same.
  """
  from ddpm_jax.evaluation.features import FeatureNetwork, collect_features, make_feature_fn
  from ddpm_jax.interop.torch_inception import inception_params_like
  from ddpm_jax.nn.inception import InceptionV3
  from ddpm_jax.storage.identity import Identity

  config = make_config(config, batch)
  if config.eval.network == 'inception':
    rng = np.random.default_rng(0)
    params = jax.tree.map(
      lambda x: np.float32(rng.normal(size=x.shape) / np.sqrt(max(np.prod(x.shape[:-1]), 1))),
      inception_params_like(),
    )
    extract = make_feature_fn(InceptionV3(), '2048', 'logits_unbiased')
    extract = devices.compile_batch_fn(extract, in_axes=(None, 0))
    network = FeatureNetwork('inception', False, '', '', devices.replicate(params), extract)
  else:
    network = build.feature_network(config)
  source = random_source(config, count)
  batches = [
    jax.numpy.asarray(devices.split_over_devices(source.read(np.arange(first, first + batch))))
    for first in range(0, count, batch)
  ]

  def bare():
    for images in batches:
      jax.block_until_ready(network.extract(network.params, images))

  def evaluate():
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder) / 'features'
      collect_features(path, network, source, count, identity=Identity(), batch_size=batch)

  return {'network': lambda: seconds(bare), 'evaluation': lambda: seconds(evaluate)}


def matmul(library, dtype='float32'):
  """Task: FLOP/s of a large product of matrices, the peak that all else is held against."""
  a, b = np.random.default_rng(0).normal(size=(2, MATMUL_SIZE, MATMUL_SIZE)).astype(np.float32)
  product = np.matmul
  if library == 'jax':
    a, b = jax.numpy.asarray(a, dtype), jax.numpy.asarray(b, dtype)
    product = jax.jit(jax.numpy.matmul)
  jax.block_until_ready(product(a, b))
  return {
    'product': lambda: 2 * MATMUL_SIZE**3 / seconds(lambda: jax.block_until_ready(product(a, b)))
  }


def about(params):
  """The number of parameters, and the versions."""
  return {'parameters': sum(x.size for x in jax.tree.leaves(params)), 'versions': versions()}


def plain(model):
  """The network as it would be on an accelerator."""
  name = 'on_cpu' if hasattr(model, 'on_cpu') else 'winograd'  # the latter of earlier checkouts
  return model.clone(**{name: False})


def training_jaxpr(config, *, as_run=False):
  """The network of a training step, forward and backward, which is all of its FLOPs."""
  model = build.model(config) if as_run else plain(build.model(config))
  shape = (config.train.global_batch_size, *build.image_shape(config))

  def loss(params, x, t, key):
    return model.apply({'params': params}, x, t, train=True, rngs={'dropout': key}).mean()

  return jax.make_jaxpr(jax.grad(loss))(
    jax.eval_shape(lambda: build.init_params(config)),
    jax.ShapeDtypeStruct(shape, np.float32),
    jax.ShapeDtypeStruct(shape[:1], np.int32),
    build.key(config.seed, 'train'),
  )


def training_flops(config):
  """{kind of traces.py: FLOPs of a training step}, those that are computed."""
  jaxpr = training_jaxpr(config, as_run=True)
  flops = flops_by_primitive(jaxpr)
  filtering = flops_where(jaxpr, lambda eqn: MINIMAL_FILTERING in str(eqn.params.get('name', '')))
  attention = flops_where(jaxpr, lambda eqn: ATTENTION_SCOPE in str(eqn.source_info.name_stack))
  return {
    FILTERING_PRODUCTS: filtering,
    CONVOLUTIONS: flops['conv_general_dilated'],
    ATTENTION: attention,
    MATMULS: flops['dot_general'] - filtering - attention,
  }


def flops_where(jaxpr, is_meant):
  """FLOPs of the equations that are meant, with all within them; none may be within a loop."""
  total = 0
  for eqn in jaxpr.eqns:
    if is_meant(eqn):
      total += flops_by_primitive(types.SimpleNamespace(eqns=[eqn])).total()
    else:
      total += sum(flops_where(inner, is_meant) for inner in inner_jaxprs(eqn.params))
  return total


def flops_by_primitive(jaxpr):
  """FLOPs of {dot_general, conv_general_dilated} in a jaxpr, two a multiplication.

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


if __name__ == '__main__':
  tasks = {'training': training, 'inference': inference, 'features': features, 'matmul': matmul}
  serve(tasks, device_mib=device_mib)
