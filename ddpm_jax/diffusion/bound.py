"""The variational bound in bits/dim, term by term and whole.

The bound is L_T + sum_{t >= 1} L_t + L_0 (Eq. 5, Ho et al. 2020): prior, KL terms, decoder.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.forward import (
  mean_except_batch,
  q_mean_variance,
  q_posterior_mean_variance,
  q_sample,
)
from ddpm_jax.diffusion.gaussians import (
  LEVELS,
  discretized_gaussian_log_likelihood,
  normal_kl,
  normal_log_density,
)
from ddpm_jax.diffusion.prediction import Denoiser, Prediction
from ddpm_jax.diffusion.reverse import p_mean_variance
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.errors import UserError


def vb_terms_bpd(
  schedule: NoiseSchedule,
  prediction: Prediction,
  x_0: jax.Array,
  x_t: jax.Array,
  t: jax.Array,
  *,
  variance: str | None,
  levels: int | None = LEVELS,
) -> jax.Array:
  """Terms of the variational bound (Eq. 5): L_{t-1} for t > 0, the decoder's L_0 at t = 0.

  Args:
    schedule: NoiseSchedule.
    prediction: Prediction from x_t.
    x_0: [B, ..., C].
    x_t: [B, ..., C] ~ q(x_t | x_0).
    t: int [B].
    variance: as p_mean_variance.
    levels: of the data. None for data of any values, whose decoder is a density: then the bound is
      one on the density of x_0.

  Returns:
    bits/dim [B].
  """
  true_mean, _, true_log_variance = q_posterior_mean_variance(schedule, x_0, x_t, t)
  mean, _, log_variance = p_mean_variance(schedule, prediction, x_t, t, variance=variance)
  is_decoder = (t == 0).reshape(t.shape + (1,) * (x_t.ndim - 1))
  # Each branch gets harmless inputs where the other one is taken: the gradient of `where`
  # multiplies the branch not taken by 0, and 0 * inf is NaN.
  kl = normal_kl(
    true_mean,
    true_log_variance,
    jnp.where(is_decoder, true_mean, mean),
    jnp.where(is_decoder, true_log_variance, log_variance),
  )
  means = jnp.where(is_decoder, mean, x_0)
  log_scales = jnp.where(is_decoder, 0.5 * log_variance, 0.0)
  if levels is None:
    decoder_nll = -normal_log_density(x_0, means=means, log_scales=log_scales)
  else:
    decoder_nll = -discretized_gaussian_log_likelihood(
      x_0, means=means, log_scales=log_scales, levels=levels
    )
  return mean_except_batch(jnp.where(is_decoder, decoder_nll, kl)) / jnp.log(2.0)


def prior_bpd(schedule: NoiseSchedule, x_0: jax.Array) -> jax.Array:
  """L_T = KL(q(x_T | x_0) || N(0, I)), in bits/dim.

  Args:
    schedule: NoiseSchedule.
    x_0: [B, ..., C] in [-1, 1].

  Returns:
    [B].
  """
  t = jnp.full(x_0.shape[:1], schedule.num_timesteps - 1, jnp.int32)
  mean, _, log_variance = q_mean_variance(schedule, x_0, t)
  return mean_except_batch(normal_kl(mean, log_variance, 0.0, 0.0)) / jnp.log(2.0)


class BoundTerms(NamedTuple):
  """The bound of a batch taken apart, so that the terms can be summed in pieces.

  Attributes:
    num_terms: T, or K of an estimate.
    start: the bound's arrays before the first term; see bpd_loop and bpd_estimate.
    step: (i, arrays) -> arrays: with term i.
  """

  num_terms: int
  start: dict[str, jax.Array]
  step: Callable[[jax.Array, dict[str, jax.Array]], dict[str, jax.Array]]


def bpd_loop(
  schedule: NoiseSchedule,
  denoiser: Denoiser,
  x_0: jax.Array,
  noise_fn: Callable[[jax.Array], jax.Array],
  *,
  variance: str | None,
  levels: int | None = LEVELS,
) -> dict[str, jax.Array]:
  """The whole bound for a batch: all T terms, one fresh draw of x_t each, and the prior.

  Args:
    schedule: NoiseSchedule.
    denoiser: Denoiser; the original program clips its x_0 (sampling.clipped).
    x_0: [B, ..., C] in [-1, 1], of the levels.
    noise_fn: t (int scalar) -> noise ~ N(0, I), [B, ..., C].
    variance: as p_mean_variance.
    levels: as vb_terms_bpd.

  Returns:
    dict of total_bpd [B], vb [B, T] (bits/dim of the term at each t), prior_bpd [B], and
    mse [B, T] (mean squared error of the predicted x_0 at each t).
  """
  return _sum(all_terms(schedule, denoiser, x_0, noise_fn, variance=variance, levels=levels))


def _sum(terms):
  return jax.lax.fori_loop(0, terms.num_terms, terms.step, terms.start)


def all_terms(
  schedule: NoiseSchedule,
  denoiser: Denoiser,
  x_0: jax.Array,
  noise_fn: Callable[[jax.Array], jax.Array],
  *,
  variance: str | None,
  levels: int | None = LEVELS,
) -> BoundTerms:
  """The terms of bpd_loop, which has the arguments."""

  def step(t, arrays):
    t_batch = jnp.full(x_0.shape[:1], t, jnp.int32)
    vb, mse = _term(schedule, denoiser, x_0, t_batch, noise_fn(t), variance, levels)
    return _with_term(arrays, t, vb, vb=vb, mse=mse)

  return BoundTerms(schedule.num_timesteps, _no_terms(schedule, x_0, schedule.num_timesteps), step)


def _no_terms(schedule, x_0, num_terms):
  prior = prior_bpd(schedule, x_0)
  none = jnp.zeros((x_0.shape[0], num_terms), prior.dtype)
  return {'total_bpd': prior, 'vb': none, 'prior_bpd': prior, 'mse': none}


def _with_term(arrays, i, share, **columns):
  """The arrays with the share of term i in the total, and with its columns."""
  put = {name: arrays[name].at[:, i].set(column) for name, column in columns.items()}
  return {**arrays, **put, 'total_bpd': arrays['total_bpd'] + share}


def _term(schedule, denoiser, x_0, t, noise, variance, levels):
  """(bits/dim of the term at t [B], mean squared error of the predicted x_0 [B]) for t [B]."""
  x_t = q_sample(schedule, x_0, t, noise)
  prediction = denoiser(x_t, t)
  vb = vb_terms_bpd(schedule, prediction, x_0, x_t, t, variance=variance, levels=levels)
  return vb, mean_except_batch(jnp.square(prediction.x_0 - x_0))


def timestep_strata(num_timesteps: int, num_strata: int) -> np.ndarray:
  """Cuts 0, ..., T-1 into K runs of timesteps whose terms are alike, for `bpd_estimate`.

  The terms fall about as 1/t, so the edges are spaced geometrically: 0, which is half of the bound,
  is alone, and the runs grow with t.

  Args:
    num_timesteps: T.
    num_strata: K in [1, T].

  Returns:
    int64 [K + 1], increasing from 0 to T: run k is edges[k], ..., edges[k + 1] - 1.

  Raises:
    UserError: K is not in [1, T].
  """
  if not 1 <= num_strata <= num_timesteps:
    raise UserError(
      f'{num_strata} strata of {num_timesteps} timesteps: the number must lie in '
      f'[1, {num_timesteps}]'
    )
  # Each edge at least one past the one before, and with a timestep left for each one after.
  edges = np.rint(np.geomspace(1, num_timesteps, num_strata)) if num_strata > 1 else [num_timesteps]
  index = np.arange(num_strata)
  edges = np.maximum.accumulate(np.asarray(edges) - index) + index
  return np.concatenate([[0], np.minimum(edges, num_timesteps - index[::-1])]).astype(np.int64)


def bpd_estimate(
  schedule: NoiseSchedule,
  denoiser: Denoiser,
  x_0: jax.Array,
  noise_fn: Callable[[jax.Array], jax.Array],
  uniforms: jax.Array,
  *,
  variance: str | None,
  levels: int | None = LEVELS,
) -> dict[str, jax.Array]:
  """An unbiased estimate of the bound from K of the T terms (Eq. 5), stratified over t.

  Of each run of `timestep_strata` one t is drawn, uniformly and for each example anew, and its term
  counts for the whole run.

  Args:
    schedule: NoiseSchedule.
    denoiser: Denoiser; the original program clips its x_0 (sampling.clipped).
    x_0: [B, ..., C] in [-1, 1], of the levels.
    noise_fn: t (int [B]) -> noise ~ N(0, I), [B, ..., C].
    uniforms: U(0, 1) [B, K]: the draws of t. K = T takes every term once.
    variance: as p_mean_variance.
    levels: as vb_terms_bpd.
    levels: as vb_terms_bpd.

  Returns:
    dict of total_bpd [B], t int [B, K] and vb [B, K] (bits/dim of the term at t, unweighted),
    prior_bpd [B], and mse [B, K]. The total of a batch has the standard error of independent draws:
    std(total_bpd) / sqrt(B).
  """
  return _sum(
    sampled_terms(schedule, denoiser, x_0, noise_fn, uniforms, variance=variance, levels=levels)
  )


def sampled_terms(
  schedule: NoiseSchedule,
  denoiser: Denoiser,
  x_0: jax.Array,
  noise_fn: Callable[[jax.Array], jax.Array],
  uniforms: jax.Array,
  *,
  variance: str | None,
  levels: int | None = LEVELS,
) -> BoundTerms:
  """The terms of bpd_estimate, which has the arguments."""
  num_terms = uniforms.shape[1]
  edges = timestep_strata(schedule.num_timesteps, num_terms)
  first, sizes = jnp.asarray(edges[:-1], jnp.int32), jnp.asarray(np.diff(edges), jnp.int32)

  def step(k, arrays):
    t = first[k] + jnp.minimum((uniforms[:, k] * sizes[k]).astype(jnp.int32), sizes[k] - 1)
    vb, mse = _term(schedule, denoiser, x_0, t, noise_fn(t), variance, levels)
    return _with_term(arrays, k, sizes[k] * vb, t=t, vb=vb, mse=mse)

  start = _no_terms(schedule, x_0, num_terms)
  start['t'] = jnp.zeros(uniforms.shape, jnp.int32)
  return BoundTerms(num_terms, start, step)
