"""Figures 8 and 9: interpolation of real images, at half the steps and at several depths.

A row is: image, weights 0 (its reconstruction), 0.1, ..., 1, other image.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import devices, processes
from ddpm_jax.diffusion import Denoiser, NoiseSchedule, q_sample
from ddpm_jax.diffusion.forward import scale_images
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.figures.run import Run, write_npz
from ddpm_jax.evaluation.grids import make_grid, save_png, to_uint8
from ddpm_jax.evaluation.references import source_identity
from ddpm_jax.sampling import fold_rows, make_noise_fn
from ddpm_jax.sampling.ancestral import ancestral

WEIGHTS = tuple(round(0.1 * i, 1) for i in range(11))
DEPTH_FRACTIONS = tuple(i / 8 for i in range(9))  # of T, Fig. 9


def make_interpolate_fn(
  denoiser_of: Callable[[Any], Denoiser], schedule: NoiseSchedule, *, variance: str | None
) -> Callable[..., jax.Array]:
  """Interpolation of images in the latent space (Sec. 4.4, Figs. 8 and 9).

  Both images are noised num_steps times with the same noise, mixed, and decoded; num_steps = 0
  mixes the pixels. One id has the same noise at every weight.

  Returns:
    (params, batch, (key, num_steps)) -> x_0 float32 [B, H, W, C], not clipped. The batch has images
    and other_images uint8 [B, H, W, C], weights float32 [B] of the other image, and ids int [B].
  """

  def interpolate_fn(params, batch, key_and_steps):
    key, num_steps = key_and_steps
    noise_fn = make_noise_fn(fold_rows(key, batch['ids']), batch['images'].shape[1:])
    t = jnp.full(batch['ids'].shape, jnp.maximum(num_steps - 1, 0))
    noise = noise_fn(schedule.num_timesteps)

    def encode(images):
      x_0 = scale_images(images)
      return jnp.where(num_steps > 0, q_sample(schedule, x_0, t, noise), x_0)

    weights = batch['weights'][:, None, None, None]
    mixed = (1 - weights) * encode(batch['images']) + weights * encode(batch['other_images'])
    return ancestral(
      schedule, denoiser_of(params), mixed, noise_fn, variance=variance, num_steps=num_steps
    )

  return interpolate_fn


def interpolation(run: Run) -> pathlib.Path:
  """Interpolates pairs of images of a split.

  Raises:
    UserError: the split has too few images.
  """
  source, pairs = run.open_source(run.split), run.num_images
  total = run.schedule.num_timesteps
  if 2 * pairs > len(source):
    raise UserError(
      f'reproduce.num_images={pairs}: interpolation takes two images for each, and the split '
      f'{source.split} has {len(source)}; give at most {len(source) // 2}'
    )
  half = total // 2
  depths = sorted({round(fraction * total) for fraction in DEPTH_FRACTIONS} | {half})
  chosen = np.random.default_rng(run.identity.seed).choice(len(source), 2 * pairs, replace=False)
  images = source.read(chosen).reshape(2, pairs, *source.image_shape)
  step = devices.compile_batch_fn(
    make_interpolate_fn(run.denoiser_of, run.schedule, variance=run.variance)
  )
  key = run.key_of('interpolate')
  identity = run.identify(images=chosen.tolist(), weights=list(WEIGHTS))
  identity = identity.but(data=source_identity(source))
  folder = run.folder('interpolation', identity)

  def interpolate(num_pairs, num_steps):
    """uint8 [num_pairs, 2 + weights, H, W, C]."""
    shape = num_pairs, len(WEIGHTS)
    extras = key, devices.replicate(np.int32(num_steps))

    def compute(ids):
      pair, weight = np.unravel_index(ids, shape)
      batch = {
        'images': images[0, pair],
        'other_images': images[1, pair],
        'weights': np.float32(WEIGHTS)[weight],
        'ids': pair.astype(np.int32),
      }
      x_0 = step(run.weights.params, devices.split_over_devices(batch), extras)
      return {'samples': to_uint8(devices.gather_from_devices(x_0))}

    mixed = run.collect(
      folder / f'steps_{num_steps:04d}',
      'samples',
      identity.but(choices={**identity.choices, 'num_steps': num_steps}),
      int(np.prod(shape)),
      compute,
      what=f'interpolations at {num_steps} steps',
    ).reshape(*shape, *source.image_shape)
    return np.concatenate([images[0, :num_pairs, None], mixed, images[1, :num_pairs, None]], axis=1)

  at_half = interpolate(pairs, half)
  at_depths = np.concatenate([interpolate(1, depth) for depth in depths])
  if processes.is_primary():
    write_npz(
      folder / 'interpolation.npz',
      {
        'figure_8': at_half,
        'figure_9': at_depths,
        'depths': depths,
        'weights': WEIGHTS,
        'ids': chosen.reshape(2, pairs),
      },
    )
    for name, rows in (('figure8', at_half), ('figure9', at_depths)):
      grid = make_grid(rows.reshape(-1, *source.image_shape), columns=rows.shape[1])
      save_png(folder / f'interpolation_{name}.png', grid)
  return folder
