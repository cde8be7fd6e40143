"""Samplers: from x_T to x_0, each one compiled loop.

Noise is drawn per example, from a key of its own, so that image i depends on (seed, i) alone and
not on the batch it was drawn in.
"""

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion import p_sample


def make_noise_fn(keys, shape):
  """Noise per example and timestep.

  Args:
    keys: key array [B], one an example.
    shape: of one example.

  Returns:
    t (int scalar, or [B]) -> N(0, I) float32 [B, *shape]; row i is a function of (keys[i], t[i])
    alone.
  """

  def noise_fn(t):
    t = jnp.broadcast_to(t, keys.shape)
    return jax.vmap(lambda key, t: jax.random.normal(jax.random.fold_in(key, t), shape))(keys, t)

  return noise_fn


def _make_step(schedule, denoise_fn, noise_fn, **choices):
  """(i, x_t) -> (t, x_{t-1}, pred_xstart): the i-th step of the chain, from t = T-1 on."""

  def step(i, x_t):
    t = schedule.num_timesteps - 1 - i
    t_batch = jnp.full(x_t.shape[:1], t, jnp.int32)
    model_output = denoise_fn(x_t, t_batch)
    return t, *p_sample(schedule, model_output, x_t, t_batch, noise_fn(t), **choices)

  return step


def ancestral(
  schedule, denoise_fn, x_T, noise_fn, *, mean_type, var_type, clip_denoised=True, num_steps=None
):
  """Ancestral sampling, Alg. 2: x_{t-1} ~ p(x_{t-1} | x_t) for t = T-1, ..., 0.

  The last step adds no noise and, as in the original program, only the predicted x_0 within a step
  is clipped, not the result.

  Args:
    schedule: NoiseSchedule.
    denoise_fn: (x_t, t) -> model output.
    x_T: [B, ..., C] ~ N(0, I).
    noise_fn: t (int scalar) -> noise ~ N(0, I) [B, ..., C] for the step at time t.
    mean_type, var_type, clip_denoised: as diffusion.p_mean_variance.
    num_steps: S in [0, T], an int or an int scalar array: only the last S steps are taken, and x_T
      is then x_{S-1}, noised S times (decoding, Sec. 4.4). None for all T.

  Returns:
    x_0, [B, ..., C].
  """

  choices = dict(mean_type=mean_type, var_type=var_type, clip_denoised=clip_denoised)
  step = _make_step(schedule, denoise_fn, noise_fn, **choices)
  total = schedule.num_timesteps
  first = 0 if num_steps is None else total - num_steps
  return jax.lax.fori_loop(first, total, lambda i, x_t: step(i, x_t)[1], x_T)


def ancestral_progressive(
  schedule, denoise_fn, x_T, noise_fn, *, every_steps, mean_type, var_type, clip_denoised=True
):
  """Ancestral sampling that also keeps the x_0 predictions (Fig. 6; Sec. 4.3).

  Args: as `ancestral`, and every_steps: k, at least 1.

  Returns:
    (x_0 [B, ..., C], predictions [B, T // k, ..., C]); slot j holds the prediction made at t = j k,
    so slot 0 is the last and sharpest.
  """
  if every_steps < 1:
    raise ValueError(f'every_steps is {every_steps}; it must be at least 1')
  num_slots = schedule.num_timesteps // every_steps

  choices = dict(mean_type=mean_type, var_type=var_type, clip_denoised=clip_denoised)
  step = _make_step(schedule, denoise_fn, noise_fn, **choices)

  def step_and_keep(i, carry):
    x_t, predictions = carry
    t, x_prev, pred_xstart = step(i, x_t)
    slot = jnp.where(t % every_steps == 0, t // every_steps, num_slots)  # num_slots: dropped
    return x_prev, predictions.at[:, slot].set(pred_xstart, mode='drop')

  predictions = jnp.zeros((x_T.shape[0], num_slots, *x_T.shape[1:]), x_T.dtype)
  return jax.lax.fori_loop(0, schedule.num_timesteps, step_and_keep, (x_T, predictions))
