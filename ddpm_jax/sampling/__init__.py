"""Samplers, from x_T to x_0; and what is put around a Denoiser before any of them."""

from ddpm_jax.sampling.ancestral import Chain, ChainState
from ddpm_jax.sampling.clip import CLIPS, clipped
from ddpm_jax.sampling.noise import fold_rows, make_noise_fn
from ddpm_jax.sampling.solvers import CHAINS, SAMPLERS, ddim_encode

__all__ = [
  'CHAINS',
  'CLIPS',
  'SAMPLERS',
  'Chain',
  'ChainState',
  'clipped',
  'ddim_encode',
  'fold_rows',
  'make_noise_fn',
]
