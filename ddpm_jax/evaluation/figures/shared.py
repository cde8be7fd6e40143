"""Figure 7: samples that share the chain from x_T down to x_t, at several t."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import processes
from ddpm_jax.diffusion import Denoiser, NoiseSchedule
from ddpm_jax.evaluation import stepwise
from ddpm_jax.evaluation.figures.run import NUM_COLUMNS, Run
from ddpm_jax.evaluation.stepwise import Stepwise
from ddpm_jax.sampling import fold_rows, make_noise_fn
from ddpm_jax.sampling.ancestral import ancestral_chain
from ddpm_jax.storage.npz import write_npz

FRACTIONS = (1.0, 0.75, 0.5, 0.25)  # of T


def make_branch_fn(
  denoiser_of: Callable[[Any], Denoiser],
  schedule: NoiseSchedule,
  shape: tuple[int, ...],
  *,
  variance: str | None,
) -> Stepwise:
  """Samples that share a chain down to x_t and go their own ways from there (Fig. 7).

  Returns:
    Stepwise, whose state is a ChainState, of x_0 not clipped. The batch has int [B] arrays: ids,
    the chains; branches, one's own way within a chain; and timesteps, the t of the last shared
    x_t, in [0, T-1]: T-1 shares the first noise alone.
  """

  def keys_of(batch, key):
    shared_keys = fold_rows(key, batch['ids'])
    own = schedule.num_timesteps + 1 + batch['branches']
    return shared_keys, jax.vmap(jax.random.fold_in)(shared_keys, own)

  def start(batch, key):
    noise_fn = make_noise_fn(keys_of(batch, key)[0], shape)
    return make_chain(None, noise_fn).start(noise_fn(schedule.num_timesteps))

  def advance(params, state, batch, key, first, last):
    shared_keys, own_keys = keys_of(batch, key)

    def noise_fn(t):
      # The step at time t makes x_{t-1}.
      keys = jnp.where(t > batch['timesteps'], shared_keys, own_keys)
      return make_noise_fn(keys, shape)(t)

    return jax.lax.fori_loop(first, last, make_chain(denoiser_of(params), noise_fn).step, state)

  def make_chain(denoiser, noise_fn):
    return ancestral_chain(schedule, denoiser, noise_fn, variance=variance)

  return Stepwise(schedule.num_timesteps, start, advance)


def shared(run: Run) -> pathlib.Path:
  """Draws NUM_COLUMNS branches of each chain at each t."""
  total, chains = run.schedule.num_timesteps, run.num_images
  timesteps = [max(0, round(fraction * total) - 1) for fraction in FRACTIONS]
  shape = chains, len(timesteps), NUM_COLUMNS
  work = stepwise.compiled(
    make_branch_fn(run.denoiser_of, run.schedule, run.image_shape, variance=run.variance)
  )
  key = run.key_of('sample')

  def compute(ids, pauses):
    chain, time, branch = (x.astype(np.int32) for x in np.unravel_index(ids, shape))
    batch = {'ids': chain, 'branches': branch, 'timesteps': np.int32(timesteps)[time]}
    chains = stepwise.run(work, run.weights.params, batch, key, pauses=pauses)
    return {'samples': run.encoding.decode(chains.x)}

  identity = run.identify(timesteps=timesteps, branches=NUM_COLUMNS, chains=chains)
  folder = run.folder('shared', identity)
  count = int(np.prod(shape))
  images = run.collect(folder / 'rows', 'samples', identity, count, compute, what='samples')
  if processes.is_primary():
    shaped = images.reshape(*shape, *images.shape[1:])
    write_npz(folder / 'shared.npz', {'samples': shaped, 'timesteps': timesteps})
    captions = [f'share x_{t + 1}' for t in timesteps] * chains
    run.display.save(folder / 'shared.png', images, columns=NUM_COLUMNS, captions=captions)
  return folder
