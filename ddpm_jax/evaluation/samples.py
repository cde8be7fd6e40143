"""Samples on disk: WORKDIR/samples/step_XXXXXXXX/SAMPLER_KEY/samples.npz and grid.png.

Image i depends on the parameters and on (sample.seed, i) alone.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ddpm_jax import devices
from ddpm_jax.diffusion import Denoiser, NoiseSchedule
from ddpm_jax.evaluation.grids import make_grid, save_png, to_uint8
from ddpm_jax.evaluation.weights import Weights
from ddpm_jax.sampling import fold_rows, make_noise_fn
from ddpm_jax.storage import earlier, npz, shards
from ddpm_jax.storage.identity import Identity, sampler_name, step_folder

MAX_GRID_IMAGES = 100


def make_sample_fn(
  denoiser_of: Callable[[Any], Denoiser],
  schedule: NoiseSchedule,
  shape: tuple[int, ...],
  sampler: Callable[..., jax.Array],
) -> Callable[[Any, jax.Array, jax.Array], jax.Array]:
  """From x_T to x_0 for a batch of ids.

  Args:
    denoiser_of: params -> Denoiser.
    schedule: NoiseSchedule.
    shape: of one example.
    sampler: (schedule, denoiser, x_T, noise_fn) -> x_0, such as one of SAMPLERS with its choices.

  Returns:
    (params, ids int [B], key) -> x_0 float32 [B, *shape], not clipped; row i is a function of
    (params, key, ids[i]) alone.
  """

  def sample_fn(params, ids, key):
    noise_fn = make_noise_fn(fold_rows(key, ids), shape)
    x_T = noise_fn(schedule.num_timesteps)  # steps use t < T, so T is free for x_T
    return sampler(schedule, denoiser_of(params), x_T, noise_fn)

  return sample_fn


@dataclasses.dataclass(frozen=True)
class Drawer:
  """A compiled sampler, for batches of one size.

  Attributes:
    sample: (params, ids [D, B], key) -> x_0 [D, B, ...], compiled.
    key: replicated.
    sizes: of a batch.
    identity: of the samples, but for the parameters.
    words: the sampler in words, for reports.
  """

  sample: Callable[..., jax.Array]
  key: jax.Array
  sizes: devices.BatchSizes
  identity: Identity
  words: str

  def draw(self, params: Any, ids: np.ndarray) -> np.ndarray:
    """x_0 of ids [sizes.host], this process's share: float32 [n, ...], unclipped."""
    x_0 = self.sample(params, devices.split_over_devices(ids), self.key)
    return devices.gather_from_devices(x_0)


def write_samples(
  drawer: Drawer,
  weights: Weights,
  workdir: pathlib.Path,
  num_samples: int,
  *,
  rounding: str = 'uint8',
  progress: bool = False,
) -> pathlib.Path:
  """Draws the samples 0, ..., num_samples - 1 that are missing; writes samples.npz and grid.png.

  Samples of the same identity are kept and completed. Samples that another process is drawing are
  waited for.

  Args:
    drawer: Drawer.
    weights: Weights.
    workdir: WORKDIR.
    num_samples: N.
    rounding: 'uint8'; or 'float' for x_0 in float32, neither clipped nor rounded.
    progress: whether to print the progress.

  Returns:
    the folder written to.
  """

  def compute(ids):
    x_0 = drawer.draw(weights.params, ids)
    return {'samples': to_uint8(x_0) if rounding == 'uint8' else x_0}

  def draw_grid(file):
    images = npz.open_npz(file)['samples'][:MAX_GRID_IMAGES]
    save_png(folder / 'grid.png', make_grid(images if rounding == 'uint8' else to_uint8(images)))

  identity = samples_identity(drawer, weights, rounding)
  name = sampler_name(identity.sampler) + ('' if rounding == 'uint8' else '-float')
  folder = identity.folder(step_folder(workdir / 'samples', weights.step), name)
  shards.collect(
    folder,
    'samples',
    identity.facts(),
    num_samples,
    compute,
    sizes=drawer.sizes,
    what='samples' if progress else None,
    finish=draw_grid,
    earlier=earlier.samples(workdir, identity),
  )
  return folder


def samples_identity(drawer: Drawer, weights: Weights, rounding: str) -> Identity:
  """Of samples, rounded to uint8 or not."""
  identity = weights.identify(drawer.identity)
  return identity if rounding == 'uint8' else identity.but(choices={'rounding': rounding})


def load_samples(folder: pathlib.Path, num_samples: int | None = None) -> np.ndarray:
  """The samples that write_samples wrote to a folder, mapped from the file."""
  return npz.open_npz(folder / 'samples.npz')['samples'][:num_samples]
