"""Likelihoods: the variational bound in bits/dim, term by term and whole.

The bound is L_T + sum_{t >= 1} L_t + L_0 (Eq. 5, Ho et al. 2020): prior, KL terms, decoder.
"""

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion import q_mean_variance, q_sample, vb_terms_bpd
from ddpm_jax.gaussians import discretized_gaussian_log_likelihood, normal_kl

__all__ = [
  'bpd_loop',
  'discretized_gaussian_log_likelihood',
  'normal_kl',
  'prior_bpd',
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
    x_t = q_sample(schedule, x_start, t_batch, noise_fn(t))
    vb, pred_xstart = vb_terms_bpd(
      schedule,
      denoise_fn(x_t, t_batch),
      x_start,
      x_t,
      t_batch,
      mean_type=mean_type,
      var_type=var_type,
      clip_denoised=clip_denoised,
    )
    error = jnp.square(pred_xstart - x_start).reshape(x_start.shape[0], -1).mean(axis=-1)
    return None, (vb, error)

  _, (vb, mse) = jax.lax.scan(term, None, jnp.arange(schedule.num_timesteps, dtype=jnp.int32))
  prior = prior_bpd(schedule, x_start)
  return {'total_bpd': vb.sum(axis=0) + prior, 'vb': vb.T, 'prior_bpd': prior, 'mse': mse.T}
