"""Trains on any array of pictures, draws samples, and measures: python examples/own_data.py DIR."""

import sys

import numpy as np

import ddpm_jax

workdir, num_steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 500


def make_discs(num, seed):
  """Coloured discs at random places: uint8 [num, 16, 16, 3]."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:16, :16]
  centre = rng.uniform(4, 12, (2, num, 1, 1))
  inside = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 14
  return np.where(inside[..., None], rng.integers(64, 256, (num, 1, 1, 3)), 16).astype(np.uint8)


model = ddpm_jax.train(workdir, make_discs(2000, seed=0), num_steps=num_steps)
model.picture(model.sample(16, sampler='dpmpp_2m')).save(f'{workdir}/samples.png')
bound = model.bits_per_dim(make_discs(8, seed=1), num_terms=50)
print(f'{bound["total_bpd"].mean():.2f} bits/dim of discs that it has not seen')
