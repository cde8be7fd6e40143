"""Figures 8 and 9: interpolation of real images, at half the steps and at several depths.

A row is: image, weights 0 (its reconstruction), 0.1, ..., 1, other image.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import processes
from ddpm_jax.diffusion import Denoiser, NoiseSchedule, q_sample
from ddpm_jax.diffusion.forward import scale_levels
from ddpm_jax.diffusion.gaussians import LEVELS
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import stepwise
from ddpm_jax.evaluation.figures.run import Run
from ddpm_jax.evaluation.references import source_identity
from ddpm_jax.evaluation.stepwise import Stepwise
from ddpm_jax.sampling import fold_rows, make_noise_fn
from ddpm_jax.sampling.ancestral import ancestral_chain
from ddpm_jax.storage.npz import write_npz
from ddpm_jax.storage.shards import Pauses

WEIGHTS = tuple(round(0.1 * i, 1) for i in range(11))
DEPTH_FRACTIONS = tuple(i / 8 for i in range(9))  # of T, Fig. 9


def make_interpolate_fn(
  denoiser_of: Callable[[Any], Denoiser],
  schedule: NoiseSchedule,
  *,
  variance: str | None,
  levels: int | None = LEVELS,
) -> Stepwise:
  """Interpolation of images in the latent space (Sec. 4.4, Figs. 8 and 9).

  Both images are noised num_steps times with the same noise, mixed, and decoded; num_steps = 0
  mixes the pixels. One id has the same noise at every weight.

  Returns:
    Stepwise, begun at step T - num_steps, whose state is a ChainState, of x_0 not clipped. The
    batch has images and other_images uint8 [B, H, W, C], weights float32 [B] of the other image,
    and num_steps and ids, int [B].
  """

  def start(batch, key):
    noise_fn = make_noise_fn(fold_rows(key, batch['ids']), batch['images'].shape[1:])
    t = jnp.maximum(batch['num_steps'] - 1, 0)
    noise = noise_fn(schedule.num_timesteps)

    def per_example(values):
      return jnp.expand_dims(values, range(1, batch['images'].ndim))

    def encode(images):
      x_0 = scale_levels(images, levels)
      is_noised = per_example(batch['num_steps'] > 0)
      return jnp.where(is_noised, q_sample(schedule, x_0, t, noise), x_0)

    weights = per_example(batch['weights'])
    mixed = (1 - weights) * encode(batch['images']) + weights * encode(batch['other_images'])
    return make_chain(None, noise_fn).start(mixed)

  def advance(params, state, batch, key, first, last):
    noise_fn = make_noise_fn(fold_rows(key, batch['ids']), batch['images'].shape[1:])
    return jax.lax.fori_loop(first, last, make_chain(denoiser_of(params), noise_fn).step, state)

  def make_chain(denoiser, noise_fn):
    return ancestral_chain(schedule, denoiser, noise_fn, variance=variance)

  return Stepwise(schedule.num_timesteps, start, advance)


def interpolate_batch(
  work: Stepwise,
  params: Any,
  batch: dict[str, np.ndarray],
  key: Any,
  num_steps: int,
  pauses: Pauses,
) -> np.ndarray:
  """x_0 float32 [n, H, W, C] of a batch of make_interpolate_fn without its num_steps.

  Args:
    work: as make_interpolate_fn returns it, compiled.
    params: replicated.
    batch: its arrays.
    key: replicated.
    num_steps: in [0, T], of all pairs.
    pauses: Pauses.
  """
  batch = {**batch, 'num_steps': np.full(len(batch['ids']), num_steps, np.int32)}
  first = work.num_steps - num_steps
  return stepwise.run(work, params, batch, key, first=first, pauses=pauses).x


def interpolation(run: Run) -> pathlib.Path:
  """Interpolates pairs of images of a split.

  Raises:
    UserError: the split has too few images.
  """
  source, pairs = run.split, run.num_images
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
  work = stepwise.compiled(
    make_interpolate_fn(
      run.denoiser_of, run.schedule, variance=run.variance, levels=run.encoding.levels
    )
  )
  key = run.key_of('interpolate')
  identity = run.identify(images=chosen.tolist(), weights=list(WEIGHTS))
  identity = identity.but(data=source_identity(source))
  folder = run.folder('interpolation', identity)

  def interpolate(num_pairs, num_steps):
    """uint8 [num_pairs, 2 + weights, H, W, C]."""
    shape = num_pairs, len(WEIGHTS)

    def compute(ids, pauses):
      pair, weight = np.unravel_index(ids, shape)
      batch = {
        'images': images[0, pair],
        'other_images': images[1, pair],
        'weights': np.float32(WEIGHTS)[weight],
        'ids': pair.astype(np.int32),
      }
      x_0 = interpolate_batch(work, run.weights.params, batch, key, num_steps, pauses)
      return {'samples': run.encoding.decode(x_0)}

    mixed = run.collect(
      folder / f'steps_{num_steps:04d}',
      'samples',
      identity.but(choices={**identity.choices, 'num_steps': num_steps}),
      int(np.prod(shape)),
      compute,
      what=f'interpolations at {num_steps} steps',
    ).reshape(*shape, *source.image_shape)
    ends = (run.encoding.stored(of[:num_pairs, None]) for of in images)
    return np.concatenate([next(ends), mixed, next(ends)], axis=1)

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
    headings = ['real', *map(str, WEIGHTS), 'real']
    of_depths = [f'{depth} steps' for depth in depths]
    for name, rows, captions in (('figure8', at_half, None), ('figure9', at_depths, of_depths)):
      run.display.save(
        folder / f'interpolation_{name}.png',
        rows.reshape(-1, *source.image_shape),
        columns=rows.shape[1],
        captions=captions,
        headings=headings,
      )
  return folder
