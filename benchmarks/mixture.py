"""Errors of few steps where the score is exact: a table for docs/results.md.

  python benchmarks/mixture.py [--evaluations=10] [--parts=1]

Each cell is the root mean square of the error of x_0, from 101 x_T evenly in [-2.5, 2.5], of data
that are a mixture of two Gaussians (means -0.8 and 0.5, deviations 0.3 and 0.2, weights 0.3 and
0.7), against 4,000 steps of a solver of order 3 on the paper's schedule; in float64. Timesteps and
coefficients that are fitted, are so to other x_T, drawn from N(0, 1).
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from interleaved import parse, print_row

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from ddpm_jax.diffusion import (
  Parameterization,
  make_betas,
  make_denoiser,
  make_schedule,
  refined,
  timestep_subsequence,
)
from ddpm_jax.sampling import SAMPLERS
from ddpm_jax.sampling.bespoke import fine_solution, fit_bespoke
from ddpm_jax.sampling.optimised import least_error, solved_products
from ddpm_jax.sampling.solvers import make_levels

WEIGHTS, MEANS, STDS = (np.array(x) for x in ((0.3, 0.7), (-0.8, 0.5), (0.3, 0.2)))
NAMES = ('ddim', 'dpmpp_2m', 'dpmpp_3m', 'unipc_2', 'unipc_3', 'deis_3', 'bespoke')
SPACINGS = ('trailing', 'logsnr', 'karras', 'least_error')
X_T = np.linspace(-2.5, 2.5, 101)[:, None]
FINE_PARTS, FINE_STEPS = 16, 4_000
NUM_LEVELS, NUM_CHAINS = 128, 4_000  # of the solutions that timesteps are fitted to
NUM_BESPOKE = 512  # that coefficients are fitted to; as many are held out


def exact_denoiser(schedule):
  """E[eps | x_t], by its rows: the network's time is not asked for."""
  levels = schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod
  times = np.arange(schedule.num_timesteps) if schedule.times is None else schedule.times

  def network(x, t):
    alpha, sigma = (jnp.interp(t, times, table)[:, None, None] for table in levels)
    variance = alpha**2 * STDS**2 + sigma**2
    offset = x[..., None] - alpha * MEANS
    shares = jax.nn.softmax(jnp.log(WEIGHTS / jnp.sqrt(variance)) - offset**2 / (2 * variance))
    return (shares * sigma * offset / variance).sum(-1)

  return make_denoiser(network, Parameterization('eps'), schedule)


def solved(schedule, name, timesteps, **choices):
  """x_0 of X_T."""

  def solve(x):
    return SAMPLERS[name](schedule, exact_denoiser(schedule), x, None, timesteps, **choices)

  return np.asarray(jax.jit(solve)(X_T))


def from_the_end(schedule, count):
  """The timesteps of fine solutions; logsnr alone begins where sigma is 80 alpha."""
  rows = timestep_subsequence(schedule, count, 'logsnr')
  return np.unique([*rows, schedule.num_timesteps - 1])


def fitting(schedule):
  """(levels of fine solutions, what predicts x_0, x_T) for what is fitted."""
  levels = make_levels(schedule, from_the_end(schedule, NUM_LEVELS))
  predict = jax.jit(lambda x, t: exact_denoiser(schedule)(x, jnp.full(len(x), t)).x_0)
  x_T = np.random.default_rng(0).standard_normal((NUM_CHAINS, 1))
  return levels, lambda x, t: np.asarray(predict(x, t)), x_T


def bespoke_of(schedule):
  """timesteps -> the coefficients of a bespoke solver."""
  levels, predict, x_T = fitting(schedule)
  x_T = x_T[: 2 * NUM_BESPOKE]
  x_0 = fine_solution(levels, predict, x_T)

  def coefficients(timesteps):
    levels = make_levels(schedule, timesteps)
    return fit_bespoke(levels, predict, x_T, x_0, NUM_BESPOKE).coefficients

  return coefficients


def main():
  """Prints the table."""
  args = parse(__doc__, evaluations=10, parts=1)
  jax.config.update('jax_enable_x64', True)
  whole = make_schedule(make_betas('linear', 1000))
  fine = refined(whole, FINE_PARTS)
  exact = solved(fine, 'dpmpp_3m', from_the_end(fine, FINE_STEPS))
  schedule = whole if args.parts == 1 else refined(whole, args.parts)
  products, bespoke = solved_products(*fitting(schedule)), bespoke_of(schedule)
  fitted = np.sort(products.levels.timesteps[least_error(products, args.evaluations)])
  print_row(['Sampler', *SPACINGS])
  print_row(['---'] * (len(SPACINGS) + 1))
  for name in NAMES:
    cells = []
    for spacing in SPACINGS:
      timesteps = fitted
      if spacing != 'least_error':
        timesteps = timestep_subsequence(schedule, args.evaluations, spacing)
      choices = {}
      if name == 'bespoke':
        choices['coefficients'] = bespoke(timesteps)
      found = solved(schedule, name, timesteps, **choices)
      cells.append(f'{np.sqrt(np.square(found - exact).mean()):.2g}')
    print_row([f'`{name}`', *cells])


if __name__ == '__main__':
  main()
