"""Likelihoods: the variational bound in bits/dim, term by term and whole.

The bound is L_T + sum_{t >= 1} L_t + L_0 (Eq. 5, Ho et al. 2020): prior, KL terms, decoder.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion import q_mean_variance, q_sample, vb_terms_bpd
from ddpm_jax.gaussians import discretized_gaussian_log_likelihood, normal_kl

__all__ = [
  'bpd_estimate',
  'bpd_loop',
  'discretized_gaussian_log_likelihood',
  'normal_kl',
  'prior_bpd',
  'timestep_strata',
  'vb_terms_bpd',
]


def prior_bpd(schedule, x_start):
  """L_T = KL(q(x_T | x_0) || N(0, I)), in bits/dim.

  Args:
    schedule: NoiseSchedule.
    x_start: [B, ..., C] in [-1, 1].

  Returns:
    [B].
  """
  t = jnp.full(x_start.shape[:1], schedule.num_timesteps - 1, jnp.int32)
  mean, _, log_variance = q_mean_variance(schedule, x_start, t)
  kl = normal_kl(mean, log_variance, 0.0, 0.0)
  return kl.reshape(kl.shape[0], -1).mean(axis=-1) / jnp.log(2.0)


def bpd_loop(schedule, denoise_fn, x_start, noise_fn, *, mean_type, var_type, clip_denoised):
  """The whole bound for a batch: all T terms, one fresh draw of x_t each, and the prior.

  Args:
    schedule: NoiseSchedule.
    denoise_fn: (x_t, t) -> model output.
    x_start: [B, ..., C] in [-1, 1], of the 256 levels.
    noise_fn: t (int scalar) -> noise ~ N(0, I), [B, ..., C].
    mean_type, var_type, clip_denoised: as diffusion.p_mean_variance.

  Returns:
    dict of total_bpd [B], vb [B, T] (bits/dim of the term at each t), prior_bpd [B], and
    mse [B, T] (mean squared error of the predicted x_0 at each t).
  """

  def term(_, t):
    t_batch = jnp.full(x_start.shape[:1], t, jnp.int32)
    return None, _term(schedule, denoise_fn, x_start, t_batch, noise_fn(t), **choices)

  choices = dict(mean_type=mean_type, var_type=var_type, clip_denoised=clip_denoised)
  _, (vb, mse) = jax.lax.scan(term, None, jnp.arange(schedule.num_timesteps, dtype=jnp.int32))
  prior = prior_bpd(schedule, x_start)
  return {'total_bpd': vb.sum(axis=0) + prior, 'vb': vb.T, 'prior_bpd': prior, 'mse': mse.T}


def _term(schedule, denoise_fn, x_start, t, noise, **choices):
  """(bits/dim of the term at t [B], mean squared error of the predicted x_0 [B]) for t [B]."""
  x_t = q_sample(schedule, x_start, t, noise)
  vb, pred_xstart = vb_terms_bpd(schedule, denoise_fn(x_t, t), x_start, x_t, t, **choices)
  error = jnp.square(pred_xstart - x_start).reshape(x_start.shape[0], -1).mean(axis=-1)
  return vb, error


def timestep_strata(num_timesteps, num_strata):
  """Cuts 0, ..., T-1 into K runs of timesteps whose terms are alike, for `bpd_estimate`.

  The terms fall about as 1/t, so the edges are spaced geometrically: 0, which is half of the bound,
  is alone, and the runs grow with t.

  Args:
    num_timesteps: T.
    num_strata: K in [1, T].

  Returns:
    int64 [K + 1], increasing from 0 to T: run k is edges[k], ..., edges[k + 1] - 1.

  Raises:
    ValueError: K is not in [1, T].
  """
  if not 1 <= num_strata <= num_timesteps:
    raise ValueError(
      f'{num_strata} strata of {num_timesteps} timesteps: the number must lie in '
      f'[1, {num_timesteps}]'
    )
  # Each edge at least one past the one before, and with a timestep left for each one after.
  edges = np.rint(np.geomspace(1, num_timesteps, num_strata)) if num_strata > 1 else [num_timesteps]
  index = np.arange(num_strata)
  edges = np.maximum.accumulate(np.asarray(edges) - index) + index
  return np.concatenate([[0], np.minimum(edges, num_timesteps - index[::-1])]).astype(np.int64)


def bpd_estimate(
  schedule, denoise_fn, x_start, noise_fn, uniforms, *, mean_type, var_type, clip_denoised
):
  """An unbiased estimate of the bound from K of the T terms (Eq. 5), stratified over t.

  Of each run of `timestep_strata` one t is drawn, uniformly and for each example anew, and its term
  counts for the whole run.

  Args:
    schedule: NoiseSchedule.
    denoise_fn: (x_t, t) -> model output.
    x_start: [B, ..., C] in [-1, 1], of the 256 levels.
    noise_fn: t (int [B]) -> noise ~ N(0, I), [B, ..., C].
    uniforms: U(0, 1) [B, K]: the draws of t. K = T takes every term once.
    mean_type, var_type, clip_denoised: as diffusion.p_mean_variance.

  Returns:
    dict of total_bpd [B], t int [B, K] and vb [B, K] (bits/dim of the term at t, unweighted),
    prior_bpd [B], and mse [B, K]. The total of a batch has the standard error of independent draws:
    std(total_bpd) / sqrt(B).
  """
  edges = timestep_strata(schedule.num_timesteps, uniforms.shape[1])
  sizes = np.diff(edges)

  def term(_, stratum):
    uniform, edge, size = stratum
    t = edge + jnp.minimum((uniform * size).astype(jnp.int32), size - 1)
    return None, (t, *_term(schedule, denoise_fn, x_start, t, noise_fn(t), **choices))

  choices = dict(mean_type=mean_type, var_type=var_type, clip_denoised=clip_denoised)
  strata = (uniforms.T, jnp.asarray(edges[:-1], jnp.int32), jnp.asarray(sizes, jnp.int32))
  _, (t, vb, mse) = jax.lax.scan(term, None, strata)
  prior = prior_bpd(schedule, x_start)
  total = (jnp.asarray(sizes, jnp.float32)[:, None] * vb).sum(axis=0) + prior
  return {'total_bpd': total, 't': t.T, 'vb': vb.T, 'prior_bpd': prior, 'mse': mse.T}
