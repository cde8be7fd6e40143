"""Trains on any array of pictures, draws samples, and measures: python examples/own_data.py DIR."""

import sys

import numpy as np

import ddpm_jax

workdir, num_steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 500


def make_discs(num, seed):
  """Grey discs at random places: uint8 [num, 8, 8, 1]."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:8, :8]
  centre = rng.uniform(2, 6, (2, num, 1, 1))
  inside = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 5
  return np.where(inside, rng.integers(64, 256, (num, 1, 1)), 16).astype(np.uint8)[..., None]


model = ddpm_jax.train(workdir, make_discs(2000, seed=0), num_steps=num_steps)
model.picture(model.sample(20, sampler='dpmpp_2m', num_steps=10)).save(f'{workdir}/samples.png')
bound = model.bits_per_dim(make_discs(32, seed=1), num_terms=20)
print(f'{bound["total_bpd"].mean():.2f} bits/dim of discs that the model has not seen')
