"""Samples on disk: WORKDIR/samples/step_XXXXXXXX/samples.npz and grid.png.

Each batch is written as a shard of its own as soon as it is drawn, so that an interrupted run goes
on where it stopped. Image i depends on the parameters and on (sample.seed, i) alone.
"""

import contextlib
import hashlib
import json
import time
import zipfile

import jax
import numpy as np

from ddpm_jax import build, logs, parallel
from ddpm_jax.checkpoints import Checkpointer
from ddpm_jax.grids import make_grid, save_png, to_uint8
from ddpm_jax.workdir import config_dict, find_workdir, locked, open_workdir

MAX_GRID_IMAGES = 100


def sample(config, workdir):
  """--mode=sample: draws config.sample.num_samples images with the newest checkpoint's EMA.

  Args:
    config: ConfigDict.
    workdir: folder of the run.

  Raises:
    ValueError: no checkpoint, one of another model, or a workdir in use.
  """
  build.check(config)
  path = open_workdir(find_workdir(workdir))
  with contextlib.ExitStack() as stack:
    if parallel.is_primary():
      stack.enter_context(locked(path, 'sample'))
    step, ema_params = restore_ema(config, path)
    if parallel.is_primary():
      print(f'{config.sample.num_samples} samples of step {step}, seed {config.sample.seed}')
    sampler = Sampler(config, config.sample.num_samples)
    folder = write_samples(sampler, ema_params, path, step, config.sample.num_samples, tell=print)
    if parallel.is_primary():
      print(f'done: {folder / "samples.npz"} and {folder / "grid.png"}')


def restore_ema(config, path):
  """(step, EMA parameters on every device) of the newest checkpoint that verifies."""
  params_like = jax.eval_shape(lambda: build.init_params(config))
  with Checkpointer(path / 'checkpoints', config_dict(config), read_only=True) as checkpointer:
    step, ema_params, _ = checkpointer.restore_ema(params_like)
  return step, parallel.replicate(ema_params)


class Sampler:
  """The compiled reverse chain of a config, for batches of one size."""

  def __init__(self, config, max_samples):
    """max_samples: how many are wanted at once; sample.batch_size at most go through together."""
    devices = jax.device_count()
    batch_size = min(config.sample.batch_size, -(-max_samples // devices) * devices)
    self.batch_size = batch_size
    self.image_shape = build.image_shape(config)
    self.request = {
      'seed': config.sample.seed,
      **{section: config_dict(config)[section] for section in ('diffusion', 'model')},
    }
    self._sizes = parallel.batch_sizes(batch_size, 'sample.batch_size')
    self._step = build.sample_step(config)
    self._key = parallel.replicate(build.key(config.sample.seed, 'sample'))

  def draw(self, params, ids):
    """The images of these ids (at most batch_size), as far as they are this process's share.

    Returns:
      (ids int64 [n], images uint8 [n, H, W, C]).
    """
    padded = np.resize(ids, self._sizes.global_)
    first = parallel.process_index() * self._sizes.host
    share = padded[first : first + self._sizes.host]
    wanted = np.arange(first, first + self._sizes.host) < len(ids)
    x_0 = self._step(params, parallel.split_over_devices(share), self._key)
    return share[wanted], to_uint8(parallel.gather_from_devices(x_0)[wanted])


def write_samples(sampler, ema_params, path, step, num_samples, *, tell=None):
  """Draws what is missing of samples 0, ..., num_samples - 1, and writes samples.npz and grid.png.

  Samples that are there already, of the same parameters, seed and model, are kept and completed;
  samples of another kind are moved to step_XXXXXXXX.earlier, step_XXXXXXXX.earlier2, ...

  Args:
    sampler: Sampler.
    ema_params: replicated parameters.
    path: WORKDIR.
    step: training step of the parameters.
    num_samples: N.
    tell: called with a line on the progress after each batch; None for silence.

  Returns:
    the folder written to.
  """
  folder = path / 'samples' / f'step_{step:08d}'
  shards = folder / 'shards'
  if parallel.is_primary():
    _prepare(folder, {**sampler.request, 'ema_sha256': _fingerprint(ema_params)}, num_samples)
  parallel.barrier('samples prepared')
  if not shards.exists():
    return folder  # complete

  done = np.concatenate([_load(shard)[0] for shard in sorted(shards.glob('*.npz'))] or [[]])
  missing = np.setdiff1d(np.arange(num_samples), done)
  parallel.barrier('missing samples known')
  start = time.perf_counter()
  for i in range(0, len(missing), sampler.batch_size):
    ids, images = sampler.draw(ema_params, missing[i : i + sampler.batch_size])
    if len(ids):
      _save(shards / f'{ids[0]:08d}.npz', images, ids)
    drawn = min(i + sampler.batch_size, len(missing))
    if tell and parallel.is_primary():
      rate = drawn / (time.perf_counter() - start)
      eta = logs.duration((len(missing) - drawn) / rate)
      tell(f'samples {num_samples - len(missing) + drawn}/{num_samples}  {rate:.2f}/s  ETA {eta}')
  parallel.barrier('samples drawn')
  if parallel.is_primary():
    _merge(folder, num_samples, sampler.image_shape)
  return folder


def _fingerprint(params):
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(params):
    digest.update(np.asarray(leaf).tobytes())
  return digest.hexdigest()


def _prepare(folder, request, num_samples):
  """Leaves folder/shards with what can be used, or no such folder if nothing is left to do."""
  shards = folder / 'shards'
  request_file = folder / 'request.json'
  finished = folder / 'samples.npz'
  if folder.exists():
    same = request_file.exists() and json.loads(request_file.read_text()) == request
    ids, _ = _load(finished) if finished.exists() else ((), None)
    if same and not shards.exists() and len(ids) == num_samples:
      return
    if not same or len(ids) > num_samples:
      _move_aside(folder)
  shards.mkdir(parents=True, exist_ok=True)
  request_file.write_text(json.dumps(request, indent=2) + '\n')
  if finished.exists():
    finished.rename(shards / f'{0:08d}.npz')  # of the same form as a shard
  for shard in shards.iterdir():
    if shard.suffix != '.npz' or _load(shard)[1] is None:
      print(f'{shard} is incomplete: its samples are drawn anew')
      shard.unlink()


def _move_aside(folder):
  number = 1
  while (target := folder.with_name(f'{folder.name}.earlier{number}')).exists():
    number += 1
  folder.rename(target)
  print(f'{folder} held other samples (another seed, model or a larger number): now {target}')


def _load(file):
  """(ids, samples) of a shard or samples.npz; ((), None) if it is damaged."""
  try:
    with np.load(file) as arrays:
      return arrays['ids'], arrays['samples']
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    return (), None


def _save(file, samples, ids):
  partial = file.with_name(file.name + '.partial')
  with open(partial, 'wb') as stream:
    np.savez(stream, samples=samples, ids=ids)
  partial.replace(file)


def _merge(folder, num_samples, image_shape):
  """Makes samples.npz of the shards, one of them in memory at a time, and grid.png."""
  shards = folder / 'shards'
  flat = folder / 'samples.npy.partial'
  samples = np.lib.format.open_memmap(flat, 'w+', np.uint8, (num_samples, *image_shape))
  for shard in shards.glob('*.npz'):
    ids, images = _load(shard)
    samples[ids] = images
  samples.flush()
  save_png(folder / 'grid.png', make_grid(samples[:MAX_GRID_IMAGES]))
  partial = folder / 'samples.npz.partial'
  with zipfile.ZipFile(partial, 'w') as archive:
    archive.write(flat, 'samples.npy')
    with archive.open('ids.npy', 'w') as stream:
      np.lib.format.write_array(stream, np.arange(num_samples))
  partial.replace(folder / 'samples.npz')
  del samples
  flat.unlink()
  for shard in shards.iterdir():
    shard.unlink()
  shards.rmdir()
