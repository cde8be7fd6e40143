"""The diffusion process as pure functions: q, p, their means and variances, and the losses.

Shapes: images x are [B, ..., C], t is int [B] in [0, T-1] with t = 0 one step of noise (the paper's
t = 1). Images are scaled to [-1, 1]. Everything random is an argument.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.gaussians import discretized_gaussian_log_likelihood, normal_kl

MEAN_TYPES = ('eps', 'xstart', 'xprev')
VAR_TYPES = ('fixedsmall', 'fixedlarge', 'learned')
LOSS_TYPES = ('mse', 'kl')


def _extract(table, t, like):
  """table[t] in the dtype of `like`, shaped [B, 1, ...] to broadcast against it."""
  values = jnp.asarray(table, like.dtype)[t]
  return values.reshape(t.shape + (1,) * (like.ndim - 1))


def _mean_except_batch(x):
  return x.reshape(x.shape[0], -1).mean(axis=-1)


def _check_choice(field, value, choices):
  if value not in choices:
    raise ValueError(f'diffusion.{field} is {value!r}; it must be one of {", ".join(choices)}')


def check_loss(mean_type, var_type, loss_type):
  """Raises a ValueError for an unknown choice, and for 'mse' with a learned variance."""
  _check_choice('mean_type', mean_type, MEAN_TYPES)
  _check_choice('var_type', var_type, VAR_TYPES)
  _check_choice('loss_type', loss_type, LOSS_TYPES)
  if loss_type == 'mse' and var_type == 'learned':
    raise ValueError(
      'diffusion.loss_type=mse does not train diffusion.var_type=learned; use loss_type=kl'
    )


def q_mean_variance(schedule, x_start, t):
  """Mean, variance and log-variance of q(x_t | x_0) (Eq. 4).

  Returns:
    mean [B, ..., C]; variance and log_variance [B, 1, ...].
  """
  mean = _extract(schedule.sqrt_alphas_cumprod, t, x_start) * x_start
  # Not 1 - alphas_cumprod, which cancels where the schedule's tables are float32 arguments.
  variance = jnp.square(_extract(schedule.sqrt_one_minus_alphas_cumprod, t, x_start))
  log_variance = _extract(schedule.log_one_minus_alphas_cumprod, t, x_start)
  return mean, variance, log_variance


def q_sample(schedule, x_start, t, noise):
  """x_t = sqrt(alphas_cumprod) x_0 + sqrt(1 - alphas_cumprod) noise (Eq. 4); noise ~ N(0, I)."""
  return (
    _extract(schedule.sqrt_alphas_cumprod, t, x_start) * x_start
    + _extract(schedule.sqrt_one_minus_alphas_cumprod, t, x_start) * noise
  )


def q_posterior_mean_variance(schedule, x_start, x_t, t):
  """Mean, variance and clipped log-variance of q(x_{t-1} | x_t, x_0) (Eqs. 6-7).

  Returns:
    mean [B, ..., C]; variance and log_variance_clipped [B, 1, ...]. At t = 0 the variance is 0 and
    its log that of t = 1, so that it stays finite.
  """
  mean = (
    _extract(schedule.posterior_mean_coef1, t, x_t) * x_start
    + _extract(schedule.posterior_mean_coef2, t, x_t) * x_t
  )
  variance = _extract(schedule.posterior_variance, t, x_t)
  log_variance_clipped = _extract(schedule.posterior_log_variance_clipped, t, x_t)
  return mean, variance, log_variance_clipped


def predict_xstart_from_eps(schedule, x_t, t, eps):
  """x_0 = x_t / sqrt(alphas_cumprod) - sqrt(1 / alphas_cumprod - 1) eps (Eq. 15)."""
  return (
    _extract(schedule.sqrt_recip_alphas_cumprod, t, x_t) * x_t
    - _extract(schedule.sqrt_recipm1_alphas_cumprod, t, x_t) * eps
  )


def predict_xstart_from_xprev(schedule, x_t, t, xprev):
  """The x_0 whose posterior mean (Eq. 7) is xprev."""
  coef1 = schedule.posterior_mean_coef1
  return (
    _extract(1 / coef1, t, x_t) * xprev
    - _extract(schedule.posterior_mean_coef2 / coef1, t, x_t) * x_t
  )


class PMeanVariance(NamedTuple):
  """p(x_{t-1} | x_t) and the x_0 it implies, each [B, ..., C]."""

  mean: jax.Array
  variance: jax.Array
  log_variance: jax.Array
  pred_xstart: jax.Array


def _split_model_output(schedule, model_output, x_t, t, var_type):
  """The prediction, and the variance and log-variance of p, broadcast to x_t's shape."""
  channels = x_t.shape[-1] * (2 if var_type == 'learned' else 1)
  if model_output.shape != (*x_t.shape[:-1], channels):
    raise ValueError(
      f'the model returned {model_output.shape} for x_t of {x_t.shape}; '
      f'diffusion.var_type={var_type} needs {channels} channels'
    )
  if var_type == 'learned':
    prediction, log_variance = jnp.split(model_output, 2, axis=-1)
    return prediction, jnp.exp(log_variance), log_variance
  variance, log_variance = {
    'fixedsmall': (schedule.posterior_variance, schedule.posterior_log_variance_clipped),
    'fixedlarge': (schedule.betas, schedule.fixedlarge_log_variance),
  }[var_type]
  variance = jnp.broadcast_to(_extract(variance, t, x_t), x_t.shape)
  log_variance = jnp.broadcast_to(_extract(log_variance, t, x_t), x_t.shape)
  return model_output, variance, log_variance


def p_mean_variance(schedule, model_output, x_t, t, *, mean_type, var_type, clip_denoised):
  """p(x_{t-1} | x_t) from what the network returned (Eq. 11 for eps).

  Args:
    schedule: NoiseSchedule.
    model_output: [B, ..., C], or [B, ..., 2C] for var_type 'learned': the prediction, then the
      log-variance, each C channels.
    x_t: [B, ..., C].
    t: int [B].
    mean_type: what the network predicts: 'eps', 'xstart' or 'xprev' (the posterior mean itself).
    var_type: 'fixedsmall' (posterior variance), 'fixedlarge' (beta_t; log posterior_variance[1] at
      t = 0, as in the original program) or 'learned'.
    clip_denoised: clip the implied x_0 to [-1, 1] before the mean is formed. With 'xprev' the mean
      is the network's own and stays unclipped, as in the original program.

  Returns:
    PMeanVariance.

  Raises:
    ValueError: an unknown choice, or a model output of the wrong shape.
  """
  _check_choice('mean_type', mean_type, MEAN_TYPES)
  _check_choice('var_type', var_type, VAR_TYPES)
  prediction, variance, log_variance = _split_model_output(schedule, model_output, x_t, t, var_type)
  pred_xstart = {
    'eps': lambda: predict_xstart_from_eps(schedule, x_t, t, prediction),
    'xstart': lambda: prediction,
    'xprev': lambda: predict_xstart_from_xprev(schedule, x_t, t, prediction),
  }[mean_type]()
  if clip_denoised:
    pred_xstart = jnp.clip(pred_xstart, -1.0, 1.0)
  if mean_type == 'xprev':
    mean = prediction
  else:
    mean, _, _ = q_posterior_mean_variance(schedule, pred_xstart, x_t, t)
  return PMeanVariance(mean, variance, log_variance, pred_xstart)


def p_sample(schedule, model_output, x_t, t, noise, *, mean_type, var_type, clip_denoised):
  """One ancestral step, x_{t-1} ~ p(x_{t-1} | x_t) (Alg. 2, lines 3-4); no noise is added at t = 0.

  Args: as p_mean_variance, and noise ~ N(0, I) [B, ..., C].

  Returns:
    (x_{t-1}, pred_xstart), each [B, ..., C].
  """
  p = p_mean_variance(
    schedule,
    model_output,
    x_t,
    t,
    mean_type=mean_type,
    var_type=var_type,
    clip_denoised=clip_denoised,
  )
  nonzero = (t != 0).astype(x_t.dtype).reshape(t.shape + (1,) * (x_t.ndim - 1))
  return p.mean + nonzero * jnp.exp(0.5 * p.log_variance) * noise, p.pred_xstart


def vb_terms_bpd(schedule, model_output, x_start, x_t, t, *, mean_type, var_type, clip_denoised):
  """Terms of the variational bound (Eq. 5): L_{t-1} for t > 0, the decoder's L_0 at t = 0.

  Args: as p_mean_variance, and x_start [B, ..., C] with x_t ~ q(x_t | x_start).

  Returns:
    (bits/dim [B], pred_xstart [B, ..., C]).
  """
  true_mean, _, true_log_variance = q_posterior_mean_variance(schedule, x_start, x_t, t)
  p = p_mean_variance(
    schedule,
    model_output,
    x_t,
    t,
    mean_type=mean_type,
    var_type=var_type,
    clip_denoised=clip_denoised,
  )
  is_decoder = (t == 0).reshape(t.shape + (1,) * (x_t.ndim - 1))
  # Each branch gets harmless inputs where the other one is taken: the gradient of `where`
  # multiplies the branch not taken by 0, and 0 * inf is NaN.
  kl = normal_kl(
    true_mean,
    true_log_variance,
    jnp.where(is_decoder, true_mean, p.mean),
    jnp.where(is_decoder, true_log_variance, p.log_variance),
  )
  decoder_nll = -discretized_gaussian_log_likelihood(
    x_start,
    means=jnp.where(is_decoder, p.mean, x_start),
    log_scales=jnp.where(is_decoder, 0.5 * p.log_variance, 0.0),
  )
  nats = _mean_except_batch(jnp.where(is_decoder, decoder_nll, kl))
  return nats / jnp.log(2.0), p.pred_xstart


def training_losses(schedule, denoise_fn, x_start, t, noise, *, mean_type, var_type, loss_type):
  """Loss of each example (Alg. 1): L_simple (Eq. 14) for 'mse', one term of the bound for 'kl'.

  Args:
    schedule: NoiseSchedule.
    denoise_fn: (x_t, t) -> model output.
    x_start: [B, ..., C].
    t: int [B].
    noise: ~ N(0, I), [B, ..., C].
    mean_type, var_type: as p_mean_variance.
    loss_type: 'mse', between the prediction and its target, or 'kl', in bits/dim and unclipped.

  Returns:
    [B].

  Raises:
    ValueError: an unknown choice, or 'mse' with a learned variance, which it would leave untrained.
  """
  check_loss(mean_type, var_type, loss_type)
  x_t = q_sample(schedule, x_start, t, noise)
  model_output = denoise_fn(x_t, t)
  if loss_type == 'kl':
    return vb_terms_bpd(
      schedule,
      model_output,
      x_start,
      x_t,
      t,
      mean_type=mean_type,
      var_type=var_type,
      clip_denoised=False,
    )[0]
  target = {
    'eps': lambda: noise,
    'xstart': lambda: x_start,
    'xprev': lambda: q_posterior_mean_variance(schedule, x_start, x_t, t)[0],
  }[mean_type]()
  return _mean_except_batch(jnp.square(target - model_output))
