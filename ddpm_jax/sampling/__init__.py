"""Samplers, from x_T to x_0; and what is put around a Denoiser before any of them."""

from ddpm_jax.sampling.ancestral import Chain, ChainState, respaced
from ddpm_jax.sampling.clip import CLIPS, clipped
from ddpm_jax.sampling.editing import (
  conditioned,
  ddnm,
  depth_timesteps,
  noised,
  pigdm,
  repaint_chain,
)
from ddpm_jax.sampling.guidance import classifier_guided, guided, in_one_batch, noise_levels
from ddpm_jax.sampling.noise import fold_rows, make_noise_fn
from ddpm_jax.sampling.operators import (
  LinearOperator,
  average_pooling,
  blur,
  channel_mean,
  gaussian_kernel,
  linear_operator,
  masking,
)
from ddpm_jax.sampling.solvers import CHAINS, SAMPLERS, ddim_encode

__all__ = [
  'CHAINS',
  'CLIPS',
  'SAMPLERS',
  'Chain',
  'ChainState',
  'LinearOperator',
  'average_pooling',
  'blur',
  'channel_mean',
  'classifier_guided',
  'clipped',
  'conditioned',
  'ddim_encode',
  'ddnm',
  'depth_timesteps',
  'fold_rows',
  'gaussian_kernel',
  'guided',
  'in_one_batch',
  'linear_operator',
  'make_noise_fn',
  'masking',
  'noise_levels',
  'noised',
  'pigdm',
  'repaint_chain',
  'respaced',
]
