"""Samples on disk: WORKDIR/samples/step_XXXXXXXX/samples.npz and grid.png.

Image i depends on the parameters and on (sample.seed, i) alone.
"""

import hashlib

import jax
import numpy as np

from ddpm_jax import build, npz, parallel, shards
from ddpm_jax.checkpoints import Checkpointer
from ddpm_jax.grids import make_grid, save_png, to_uint8
from ddpm_jax.workdir import config_dict, deciding_fields, find_workdir, open_workdir

MAX_GRID_IMAGES = 100


def sample(config, workdir):
  """--mode=sample: draws config.sample.num_samples images with the newest checkpoint's EMA.

  Args:
    config: ConfigDict.
    workdir: folder of the run.

  Raises:
    ValueError: no checkpoint, or one of another model.
  """
  build.begin(config)
  path = open_workdir(find_workdir(workdir))
  step, ema_params, _ = restore_ema(config, path)
  if parallel.is_primary():
    print(
      f'{config.sample.num_samples} samples of step {step}, seed {config.sample.seed}: '
      f'{build.sampler_words(config)}'
    )
  sampler = Sampler(config, config.sample.num_samples)
  folder = write_samples(sampler, ema_params, path, step, config.sample.num_samples, tell=True)
  if parallel.is_primary():
    print(f'done: {folder / "samples.npz"} and {folder / "grid.png"}')


def restore_ema(config, path, step=None):
  """(step, EMA parameters on every device, checksum) of a step, or of the newest that verifies."""
  params_like = jax.eval_shape(lambda: build.init_params(config))
  with Checkpointer(path / 'checkpoints', config_dict(config), read_only=True) as checkpointer:
    step, ema_params, checksum = checkpointer.restore_ema(params_like, step)
  return step, parallel.replicate(ema_params), checksum


class Sampler:
  """The compiled sampler of a config, for batches of one size."""

  def __init__(self, config, max_samples):
    """max_samples: how many are wanted at once; sample.batch_size at most go through together."""
    self.sizes = parallel.fitting_batch_sizes(config.sample.batch_size, max_samples)
    self.request = {
      'seed': config.sample.seed,
      'diffusion': deciding_fields(config, 'diffusion'),
      'model': deciding_fields(config, 'model'),
      **build.sampler_request(config),
    }
    self._step = build.sample_step(config)
    self._key = parallel.replicate(build.key(config.sample.seed, 'sample'))

  def draw(self, params, ids):
    """The images of ids [sizes.host], this process's share: x_0 float32 [n, H, W, C], unclipped."""
    x_0 = self._step(params, parallel.split_over_devices(ids), self._key)
    return parallel.gather_from_devices(x_0)


def write_samples(sampler, ema_params, path, step, num_samples, *, rounding='uint8', tell=False):
  """Draws what is missing of samples 0, ..., num_samples - 1, and writes samples.npz and grid.png.

  Samples that are there already, of the same parameters, seed, model and sampler, are kept and
  completed; samples of another kind are moved to step_XXXXXXXX.earlier1, ... What another process
  is drawing of this step is waited for.

  Args:
    sampler: Sampler.
    ema_params: replicated parameters.
    path: WORKDIR.
    step: training step of the parameters.
    num_samples: N.
    rounding: 'uint8'; or 'float' for x_0 in float32, neither clipped nor rounded, in the folder
      samples_float instead of samples.
    tell: whether to print the progress.

  Returns:
    the folder written to.
  """

  def compute(ids):
    x_0 = sampler.draw(ema_params, ids)
    return {'samples': to_uint8(x_0) if rounding == 'uint8' else x_0}

  def draw_grid(file):
    images = npz.open_npz(file)['samples'][:MAX_GRID_IMAGES]
    save_png(folder / 'grid.png', make_grid(images if rounding == 'uint8' else to_uint8(images)))

  parent = 'samples' if rounding == 'uint8' else 'samples_float'
  folder = path / parent / f'step_{step:08d}'
  shards.collect(
    folder,
    'samples',
    {**sampler.request, 'ema_sha256': fingerprint(ema_params)},
    num_samples,
    compute,
    sizes=sampler.sizes,
    what='samples' if tell else None,
    finish=draw_grid,
  )
  return folder


def fingerprint(params):
  """sha256 (hex) of all parameters."""
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(params):
    digest.update(np.asarray(leaf).tobytes())
  return digest.hexdigest()
