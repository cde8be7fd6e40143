"""The bias of each method of editing, where p(x_0 | what is known) is exact: docs/editing.md.

  python -m benchmarks.editing

Errors of means are in standard deviations of the data, those of covariances in their variances;
both are the largest of the four pixels, and are good to about 0.03 and 0.04.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion import make_betas, make_schedule
from ddpm_jax.sampling import CHAINS, average_pooling, ddnm, masking, pigdm, repaint_chain
from tests.analytic import PICTURES, batch_noise_fn

COUNT = 8_000
SCHEDULE = make_schedule(make_betas('linear', 200, beta_start=5e-4, beta_end=0.1))
SHAPE = 2, 2, 1
MASK = np.array([True, False, True, False]).reshape(SHAPE)
KNOWN = np.array([0.6, 0.0, -0.5, 0.0], np.float32).reshape(SHAPE)
MEASUREMENTS = {  # name: (operator, its matrix, what is measured)
  'half of the pixels': (masking(jnp.asarray(MASK)), np.eye(4)[MASK.ravel()], KNOWN),
  'their mean': (average_pooling(2, SHAPE), np.full((1, 4), 0.25), np.full((1, 1, 1), 0.5, 'f')),
}
JUMPS = {'repaint, 1': (1, 1), 'repaint, 4': (10, 4), 'repaint, 10': (10, 10)}


def draw(denoiser, method, operator, known):
  """x_0 float64 [COUNT, 4] by ancestral sampling."""
  noise_fn = batch_noise_fn((COUNT, *SHAPE))
  known = jnp.broadcast_to(jnp.asarray(known), (COUNT, *known.shape))
  make_chain = CHAINS['ancestral']
  if method == 'ddnm':
    denoiser = ddnm(denoiser, operator, known)
  elif method.startswith('pigdm'):
    variance = float(method.partition(' ')[2])
    denoiser = pigdm(denoiser, SCHEDULE, operator, known, data_variance=variance)
  else:
    length, times = JUMPS[method]
    choices = {'jump_length': length, 'resamplings': times}
    mask = jnp.asarray(MASK)
    make_chain = functools.partial(repaint_chain, known=known, mask=mask, **choices)
  chain = make_chain(SCHEDULE, denoiser, noise_fn, variance='fixedlarge')
  x_T = noise_fn(SCHEDULE.num_timesteps)
  x_0 = jax.jit(lambda x: jax.lax.fori_loop(0, chain.num_steps, chain.step, chain.start(x)).x)(x_T)
  return np.asarray(x_0, np.float64).reshape(COUNT, 4)


def main():
  """Prints a row for each kind of data, measurement and method."""
  print('| data | known | method | mean | covariance |\n|---|---|---|---|---|')
  for name, data in PICTURES.items():
    denoiser = data.denoiser(SCHEDULE)
    _, covariance = data.posterior(np.zeros((0, 4)), np.zeros(0))
    variance = np.diag(covariance).max()
    for known, (operator, matrix, y) in MEASUREMENTS.items():
      at = y.ravel()[MASK.ravel()] if y.size == 4 else y.ravel()
      mean, covariance = data.posterior(matrix, at)
      methods = ['ddnm', 'pigdm 1', f'pigdm {variance:.2g}']
      methods += JUMPS if y.size == 4 else []
      for method in methods:
        x = draw(denoiser, method, operator, y)
        of_mean = np.abs(x.mean(0) - mean).max() / np.sqrt(variance)
        of_covariance = np.abs(np.cov(x.T) - covariance).max() / variance
        row = name, known, method, f'{of_mean:.2f}', f'{of_covariance:.2f}'
        print('| ' + ' | '.join(row) + ' |', flush=True)


if __name__ == '__main__':
  main()
