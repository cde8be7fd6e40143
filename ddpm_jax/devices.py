"""Devices: the only file with pmap, meshes, device_put and the [D, B, ...] reshape.

States and parameters have no device axis: they are replicated arrays, in and out, so that
checkpoints and sampling see ordinary trees.
"""

import collections
import contextlib
import ctypes
import functools
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax import numerics, processes
from ddpm_jax.errors import UserError
from ddpm_jax.paths import expanded
from ddpm_jax.storage.files import make_writable
from ddpm_jax.storage.sealed_path import SCHEME

AXIS = 'devices'
MIN_CACHED_SECS = 0.1  # of compiling; JAX's 1 leaves a second of small programs to each start

# XLA's CPU compiler sends convolutions' weight gradients to a slow library path; this keeps there
# only what it does well, the reductions. No other platform has the option.
_CPU_COMPILER_OPTIONS = {'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_REDUCE'}


# How many devices of each process are in use; None for all of them.
_used: ContextVar[int | None] = ContextVar('used', default=None)


class BatchSizes(NamedTuple):
  """global_ = host * process count = device * device count."""

  global_: int
  host: int
  device: int


class Steps(NamedTuple):
  """What a dispatch of several training steps takes: as many batches as any other.

  So one program does all, where fewer steps are left, too.
  """

  batches: Any  # tree of arrays [K, D, B, ...]
  count: Any  # int32: the last so many are taken, those before them change nothing


def in_use() -> list[jax.Device]:
  """The devices that share a batch, of all processes."""
  used = _used.get()
  if used is None:
    return jax.devices()
  of_processes = collections.defaultdict(list)
  for device in jax.devices():
    of_processes[device.process_index].append(device)
  return [device for own in of_processes.values() for device in own[:used]]


@contextlib.contextmanager
def dividing(global_batch_size: int) -> Iterator[None]:
  """Leaves out the devices that are too many for equal parts of a batch, in a block of code.

  Where no number of devices divides the batch, all are used, and batch_sizes refuses it.
  """
  several = jax.process_count()
  fitting = [
    count
    for count in range(1, jax.local_device_count() + 1)
    if global_batch_size > 0 and global_batch_size % (count * several) == 0
  ]
  used = max(fitting, default=jax.local_device_count())
  token = _used.set(None if used == jax.local_device_count() else used)
  try:
    yield
  finally:
    _used.reset(token)


def _local_count():
  return len(in_use()) // jax.process_count()


def batch_sizes(global_batch_size: int, field: str) -> BatchSizes:
  """Splits a global batch evenly.

  Args:
    global_batch_size: images a step, over all processes.
    field: config path to name in the error.

  Raises:
    UserError: below 1, or not divisible by the number of devices.
  """
  devices = len(in_use())
  if global_batch_size < 1 or global_batch_size % devices:
    below = global_batch_size // devices * devices
    raise UserError(
      f'{field} is {global_batch_size}; it must be a positive multiple of the {devices} devices, '
      f'such as {max(below, devices)}'
    )
  device = global_batch_size // devices
  return BatchSizes(global_batch_size, device * _local_count(), device)


def fitting_batch_sizes(batch_size: int, num_examples: int) -> BatchSizes:
  """As batch_sizes, for a batch no larger than needed for so many examples.

  A batch_size that the number of devices does not divide is rounded up.
  """
  devices = len(in_use())
  rounded = -(-min(batch_size, num_examples) // devices) * devices
  return batch_sizes(rounded, 'batch_size')


def connect() -> None:
  """Finds the devices, and connects those of several processes.

  Later, a CPU's first collective would wait for the others for 30 s only.

  Raises:
    UserError: there are none of the kind that is asked for, or not as many on each process.
  """
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:  # JAX raises either
    reason = ' '.join(str(error).split()) or 'JAX finds none'
    asked = os.environ.get('JAX_PLATFORMS')
    raise UserError(
      f'no device can be used: {reason}' + (f'; JAX_PLATFORMS={asked} asks for it' if asked else '')
    ) from error
  _check_equal_counts()
  if jax.process_count() > 1:
    sum_all = jax.pmap(lambda x: jax.lax.psum(x, AXIS), AXIS)
    jax.block_until_ready(sum_all(np.ones(jax.local_device_count())))
    processes.barrier('connected')


def _check_equal_counts():
  """Raises a UserError, on all processes alike, if they have different numbers of devices."""
  counts = collections.Counter(device.process_index for device in jax.devices())
  if len(set(counts.values())) > 1:
    words = ', '.join(f'{count} on process {i}' for i, count in sorted(counts.items()))
    raise UserError(
      f'the processes have different numbers of devices ({words}): give each as many, such as by '
      'CUDA_VISIBLE_DEVICES, or by --xla_force_host_platform_device_count in XLA_FLAGS'
    )


def replicate(tree: Any) -> Any:
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
  return NamedSharding(Mesh(np.asarray(in_use()), (AXIS,)), PartitionSpec())


def place_like(tree: Any, like: Any) -> Any:
  """The arrays of a tree where those of another one are."""
  return jax.tree.map(lambda x, y: jax.device_put(x, y.sharding), tree, like)


def as_global(tree: Any) -> Any:
  """A state that a step of several processes returned, as arrays of all devices; nothing moves.

  pmap's results are of this process's devices, which Orbax refuses to save.
  """
  if jax.process_count() == 1:
    return tree

  def join(x):
    shards = [shard.data for shard in x.addressable_shards]
    return jax.make_array_from_single_device_arrays(x.shape, _replicated(), shards)

  return jax.tree.map(join, tree)


def split_over_devices(batch: Any, *, axis: int = 0) -> Any:
  """Each array of a tree from [host batch, ...] to [D, B, ...] for D local devices.

  Args:
    batch: tree of arrays.
    axis: of the host batch, where it is not the first.
  """
  devices = _local_count()

  def split(x):
    size = x.shape[axis] // devices
    return x.reshape(*x.shape[:axis], devices, size, *x.shape[axis + 1 :])

  return jax.tree.map(split, batch)


def gather_from_devices(tree: Any) -> Any:
  """Each array of a tree from [D, B, ...] on this process's devices to NumPy [D * B, ...]."""

  def gather(array):
    if jax.process_count() > 1:
      array = np.concatenate([np.asarray(shard.data) for shard in array.addressable_shards])
    return np.asarray(array).reshape(-1, *array.shape[2:])

  return jax.tree.map(gather, tree)


def compile_train_step(train_step: Callable, *, several: bool) -> Callable:
  """Compiles a training step, over all devices.

  Args:
    train_step: as training.step.make_train_step returns it. The state is donated; data, which is
      replicated, or None, is not.
    several: whether a dispatch has several steps.

  Returns:
    (state, batch [D, B, ...], data, key) -> (state, metrics); with several steps, of Steps and
    metrics [K].
  """

  def scan(state, steps, data, key):
    def take(state, step):
      batch, counts = step
      after, metrics = train_step(state, batch, data, key)
      return jax.tree.map(lambda new, old: jnp.where(counts, new, old), after, state), metrics

    size = len(jax.tree.leaves(steps.batches)[0])
    return jax.lax.scan(take, state, (steps.batches, jnp.arange(size) >= size - steps.count))

  block_axes = Steps(1, None) if several else 0
  axes = dict(in_axes=(None, block_axes, None, None), out_axes=(None, None))
  step = _pmap(scan if several else train_step, **axes, donate_argnums=0)
  return _compiled(step, donate_argnums=0)


def lower_train_step(
  step: Any, state: Any, block: Any, data: Any, key: jax.Array
) -> Callable[[], object]:
  """Traces a training step, for its first call to find all done; in one process only.

  Args:
    step: as compile_train_step returns it.
    state, block, data, key: its arguments; of the first three, arrays or ShapeDtypeStructs.

  Returns:
    () -> its program, compiled in any thread; the system is given back what memory that took. Of
    what a call needs, nothing else takes long.
  """
  sharding = _replicated()

  def placed(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding, weak_type=x.weak_type)

  arguments = jax.tree.map(placed, state), block, jax.tree.map(placed, data), key
  # A jitted pmap shows the pmap's own `lower`, which knows of no options.
  lowered = step.trace(*arguments).lower() if hasattr(step, 'trace') else step.lower(*arguments)

  def compile_step():
    program = lowered.compile()
    if sys.platform == 'linux':  # glibc would keep some hundred MiB, beside what a step takes
      give_back = getattr(ctypes.CDLL(None), 'malloc_trim', None)
      if give_back is not None:
        give_back(0)
    return program

  return compile_step


def compile_batch_fn(
  step: Callable, *, in_axes: tuple[int | None, ...] = (None, 0, None)
) -> Callable:
  """(params, batch [D, B, ...], key) -> results [D, B, ...], compiled.

  Args:
    step: a pure function of one device's batch, whose results have one row an example.
    in_axes: None for each argument that all devices share, 0 for each that they divide.
  """
  return _pinned(_compiled(_pmap(step, in_axes=in_axes)))


def _pmap(function, **kwargs):
  chosen = None if _used.get() is None else in_use()
  return jax.pmap(function, AXIS, devices=chosen, **kwargs)


def result_shapes(compiled: Callable, *args: Any) -> Any:
  """The ShapeDtypeStructs of what a compiled function returns; nothing is computed."""
  return jax.eval_shape(getattr(compiled, '__wrapped__', compiled), *args)


def on_cpu() -> bool:
  """Whether steps run on a CPU, which has fast paths of its own."""
  return jax.default_backend() == 'cpu'


def lacks_bfloat16() -> str | None:
  """The name of the device if it cannot compute in bfloat16, else None."""
  device = jax.devices()[0]
  capability = str(getattr(device, 'compute_capability', ''))  # NVIDIA's '9.0', or AMD's 'gfx942'
  major = capability.split('.')[0]
  lacks = device.platform == 'gpu' and major.isdecimal() and int(major) < 8
  return f'{device.device_kind} (compute capability {capability})' if lacks else None


def fast_dtype() -> str:
  """What networks compute in where nobody says: bfloat16 on accelerators that have that."""
  return 'float32' if on_cpu() or lacks_bfloat16() else 'bfloat16'


def use_compilation_cache(asked: str | None, default: Callable[[], pathlib.Path]) -> str:
  """Keeps compiled programs between runs, where that can be done.

  Args:
    asked: a folder; 'off'; None for JAX_COMPILATION_CACHE_DIR, or else one in the default.
    default: () -> the user's cache folder.

  Returns:
    a line on where they are, or why nowhere.
  """
  folder, line = None, 'none'
  if asked != 'off':
    try:
      folder = _writable_folder(asked or os.environ.get('JAX_COMPILATION_CACHE_DIR'), default)
      line = f'{folder} (none with --config.compilation_cache=off)'
    except OSError as error:
      line = f'none: {error.filename} cannot be written ({error.strerror})'
    except (RuntimeError, UserError) as error:  # there is no home folder
      line = f'none: {error} --config.compilation_cache names a folder'
  if folder:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', MIN_CACHED_SECS)
  is_local = folder and '://' not in folder
  jax.config.update('jax_compilation_cache_dir', f'{SCHEME}{folder}' if is_local else folder)
  return line


def _writable_folder(given, default):
  if given and '://' in given:
    return given  # JAX writes to more than disks
  folder = expanded(given) if given else default() / 'programs'
  make_writable(folder)
  return str(folder)


def _compiled(pmapped, **kwargs):
  if on_cpu() and jax.process_count() == 1 and _has_cpu_options():
    return jax.jit(pmapped, compiler_options=_CPU_COMPILER_OPTIONS, **kwargs)
  return pmapped


def _pinned(compiled):
  """The same under numerics.pinned: a library is called under its user's settings."""

  @functools.wraps(compiled)
  def call(*args):
    with numerics.pinned():
      return compiled(*args)

  return call


@functools.cache
def _has_cpu_options():
  """Whether this jaxlib knows the option: its name says that it may go."""
  try:
    jax.jit(lambda x: x + 1, compiler_options=_CPU_COMPILER_OPTIONS)(0)
  except jax.errors.JaxRuntimeError:
    return False
  return True
