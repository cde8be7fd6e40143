"""Devices and processes: the only file with pmap, meshes, device_put and the [D, B, ...] reshape.

States and parameters have no device axis: they are replicated arrays, in and out, so that
checkpoints and sampling see ordinary trees.
"""

import functools
import json
import os
import pathlib
import uuid
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax import steps
from ddpm_jax.files import make_writable

AXIS = 'devices'

# XLA's CPU compiler sends convolutions' weight gradients to a slow library path; this keeps there
# only what it does well, the reductions. No other platform has the option.
_CPU_COMPILER_OPTIONS = {'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_REDUCE'}


class BatchSizes(NamedTuple):
  """global_ = host * process count = device * device count."""

  global_: int
  host: int
  device: int


def batch_sizes(global_batch_size, field):
  """Splits a global batch evenly.

  Args:
    global_batch_size: images a step, over all processes.
    field: config path to name in the error.

  Raises:
    ValueError: below 1, or not divisible by the number of devices.
  """
  devices = jax.device_count()
  if global_batch_size < 1 or global_batch_size % devices:
    below = global_batch_size // devices * devices
    raise ValueError(
      f'{field} is {global_batch_size}; it must be a positive multiple of the {devices} devices, '
      f'such as {max(below, devices)}'
    )
  device = global_batch_size // devices
  return BatchSizes(global_batch_size, device * jax.local_device_count(), device)


def fitting_batch_sizes(batch_size, num_examples):
  """As batch_sizes, for a batch no larger than needed for so many examples.

  A batch_size that the number of devices does not divide is rounded up.
  """
  devices = jax.device_count()
  rounded = -(-min(batch_size, num_examples) // devices) * devices
  return batch_sizes(rounded, 'batch_size')


def host_share(sizes):
  """The slice of a global batch that is this process's."""
  first = jax.process_index() * sizes.host
  return slice(first, first + sizes.host)


def is_primary():
  """Whether this is the process that writes logs, pictures and metrics."""
  return jax.process_index() == 0


def process_index():
  """This process's number."""
  return jax.process_index()


def process_count():
  """How many processes take part."""
  return jax.process_count()


def barrier(name):
  """Waits until every process is here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def connect():
  """Connects the processes: later, a CPU's first collective waits for the others for 30 s only."""
  if jax.process_count() > 1:
    sum_all = jax.pmap(lambda x: jax.lax.psum(x, AXIS), AXIS)
    jax.block_until_ready(sum_all(np.ones(jax.local_device_count())))
    barrier('connected')


def from_primary(text):
  """The first process's text, on every process; all call it, in the same order."""
  return texts_of_all(text)[0]


def texts_of_all(text):
  """What every process gives, a list in their order; all call it, in the same order."""
  if jax.process_count() == 1:
    return [text]
  content = np.frombuffer(text.encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.int32(len(content)))
  padded = np.zeros(lengths.max(), np.uint8)
  padded[: len(content)] = content
  contents = multihost_utils.process_allgather(padded)
  return [bytes(x[:n]).decode() for x, n in zip(contents, lengths, strict=True)]


def check_same(what, facts):
  """Compares the processes, once all of them call it.

  Args:
    what: word for the error.
    facts: dict of JSON values, which must be the same everywhere.

  Raises:
    ValueError: on every process, where one has other facts than the first.
  """
  first, *others = [json.loads(text) for text in texts_of_all(json.dumps(facts))]
  for process, other in enumerate(others, 1):
    differing = [
      f'{name}: {first.get(name)} and {other.get(name)}'
      for name in sorted(first.keys() | other.keys())
      if first.get(name) != other.get(name)
    ]
    if differing:
      raise ValueError(
        f'processes 0 and {process} differ in their {what} ({"; ".join(differing)}): start all '
        'with the same command, program and data'
      )


def not_shared_with(folder):
  """The first process for which a folder's path names another than the first process's.

  All processes call it, in the same order.

  Args:
    folder: pathlib.Path, which each of them can write.

  Returns:
    its number; None if all share the folder.
  """
  if jax.process_count() == 1:
    return None
  token = from_primary(uuid.uuid4().hex)
  file = folder / f'.shared.{token}'
  if is_primary():
    file.touch()
  barrier('folder marked')  # its path may be another elsewhere
  blind = [i for i, seen in enumerate(texts_of_all('yes' if file.exists() else '')) if not seen]
  if is_primary():
    file.unlink(missing_ok=True)
  return blind[0] if blind else None


def stop_agreed(count, received):
  """Whether all processes stop now, since a signal came to one of them.

  Args:
    count: 0, 1, ...: how often this was asked before; the same on every process.
    received: whether a signal came to this one; of several, JAX listens for SIGTERM itself.
  """
  if jax.process_count() == 1:
    return received
  return multihost_utils.reached_preemption_sync_point(count)


def replicate(tree):
  """The same arrays on every device, under the mesh that pmap uses.

  Un-placed arguments would make a pmapped step compile twice.
  """
  sharding = _replicated()
  if jax.process_count() == 1:
    return jax.device_put(tree, sharding)

  def place(x):
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      return jax.random.wrap_key_data(place(jax.random.key_data(x)), impl=jax.random.key_impl(x))
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

  return jax.tree.map(place, tree)


def _replicated():
  return NamedSharding(Mesh(np.asarray(jax.devices()), (AXIS,)), PartitionSpec())


def as_global(tree):
  """A state that a step of several processes returned, as arrays of all devices; nothing moves.

  pmap's results are of this process's devices, which Orbax refuses to save.
  """
  if jax.process_count() == 1:
    return tree

  def join(x):
    shards = [shard.data for shard in x.addressable_shards]
    return jax.make_array_from_single_device_arrays(x.shape, _replicated(), shards)

  return jax.tree.map(join, tree)


def split_over_devices(batch, *, axis=0):
  """Each array of a tree from [host batch, ...] to [D, B, ...] for D local devices.

  Args:
    batch: tree of arrays.
    axis: of the host batch, where it is not the first.
  """
  devices = jax.local_device_count()

  def split(x):
    size = x.shape[axis] // devices
    return x.reshape(*x.shape[:axis], devices, size, *x.shape[axis + 1 :])

  return jax.tree.map(split, batch)


def gather_from_devices(tree):
  """Each array of a tree from [D, B, ...] on this process's devices to NumPy [D * B, ...]."""

  def gather(array):
    if jax.process_count() > 1:
      array = np.concatenate([np.asarray(shard.data) for shard in array.addressable_shards])
    return np.asarray(array).reshape(-1, *array.shape[2:])

  return jax.tree.map(gather, tree)


def pmap_train_steps(gather_step):
  """(state, batches [K, D, B, ...], data, key) -> (state, metrics [K]), compiled.

  K steps are one dispatch, but not on a CPU: there a dispatch costs nothing, and what XLA compiles
  within a loop runs at 0.6 of its speed outside.

  Args:
    gather_step: as steps.make_gather_step returns it. The state is donated; data, which is
      replicated, or None, is not.
  """

  def compiled(step, axis):
    axes = dict(in_axes=(None, axis, None, None), out_axes=(None, None))
    return _compiled(jax.pmap(step, AXIS, **axes, donate_argnums=0), donate_argnums=0)

  if not on_cpu():
    return compiled(steps.make_train_steps(gather_step), 1)
  step = compiled(gather_step, 0)

  def one_by_one(state, batches, data, key):
    metrics = []
    for batch in batches:
      state, of_step = step(state, batch, data, key)
      metrics.append(of_step)
    return state, jax.tree.map(lambda *values: list(values), *metrics)

  return one_by_one


def pmap_batch_step(step, *, in_axes=(None, 0, None)):
  """(params, batch [D, B, ...], key) -> results [D, B, ...], compiled.

  Args:
    step: a pure function of one device's batch, whose results have one row an example.
    in_axes: None for each argument that all devices share, 0 for each that they divide.
  """
  return _compiled(jax.pmap(step, AXIS, in_axes=in_axes))


def on_cpu():
  """Whether steps run on a CPU, which has fast paths of its own."""
  return jax.default_backend() == 'cpu'


def lacks_bfloat16():
  """The name of the device if it cannot compute in bfloat16, else None."""
  device = jax.devices()[0]
  capability = str(getattr(device, 'compute_capability', ''))  # NVIDIA's '9.0', or AMD's 'gfx942'
  major = capability.split('.')[0]
  lacks = device.platform == 'gpu' and major.isdecimal() and int(major) < 8
  return f'{device.device_kind} (compute capability {capability})' if lacks else None


def use_compilation_cache(wanted, default):
  """Keeps compiled programs between runs, where that can be done.

  Args:
    wanted: a folder; 'off'; None for JAX_COMPILATION_CACHE_DIR, or else one in the default.
    default: () -> the user's cache folder.

  Returns:
    a line on where they are, or why nowhere.
  """
  folder, line = None, 'none'
  if wanted != 'off':
    try:
      folder = _writable_folder(wanted or os.environ.get('JAX_COMPILATION_CACHE_DIR'), default)
      line = f'{folder} (none with --config.compilation_cache=off)'
    except OSError as error:
      line = f'none: {error.filename} cannot be written ({error.strerror})'
    except RuntimeError as error:  # there is no home folder
      line = f'none: {error} --config.compilation_cache names a folder'
  jax.config.update('jax_compilation_cache_dir', folder)
  return line


def _writable_folder(given, default):
  if given and '://' in given:
    return given  # JAX writes to more than disks
  folder = pathlib.Path(given).expanduser() if given else default() / 'programs'
  make_writable(folder)
  return str(folder)


def _compiled(pmapped, **kwargs):
  if not on_cpu() or jax.process_count() > 1 or not _has_cpu_options():
    return pmapped
  return jax.jit(pmapped, compiler_options=_CPU_COMPILER_OPTIONS, **kwargs)


@functools.cache
def _has_cpu_options():
  """Whether this jaxlib knows the option: its name says that it may go."""
  try:
    jax.jit(lambda x: x + 1, compiler_options=_CPU_COMPILER_OPTIONS)(0)
  except jax.errors.JaxRuntimeError:
    return False
  return True
