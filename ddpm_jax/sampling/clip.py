"""Clipping of the predicted x_0: a function around a Denoiser."""

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.prediction import Denoiser, check_choice

CLIPS = ('none', 'static', 'dynamic')
DYNAMIC_QUANTILE = 0.995  # of |x_0| in an example (Sec. 2.3, Saharia et al. 2022)


def clip_x_0(x_0: jax.Array, clip: str) -> jax.Array:
  """A predicted x_0 brought back to the range of the data.

  Args:
    x_0: [B, ..., C].
    clip: 'none'; 'static', to [-1, 1]; or 'dynamic': each example to [-s, s] and divided by s,
      where s is the 99.5% quantile of its |x_0|, and at least 1 (Saharia et al. 2022).

  Raises:
    UserError: an unknown name.
  """
  check_choice('sample.clip', clip, CLIPS)
  if clip == 'none':
    return x_0
  if clip == 'static':
    return jnp.clip(x_0, -1.0, 1.0)
  axes = tuple(range(1, x_0.ndim))
  limit = jnp.quantile(jnp.abs(x_0), DYNAMIC_QUANTILE, axis=axes, keepdims=True)
  limit = jnp.maximum(limit, 1.0)
  return jnp.clip(x_0, -limit, limit) / limit


def clipped(denoiser: Denoiser, clip: str = 'static') -> Denoiser:
  """The denoiser with its x_0 clipped, as clip_x_0 has it.

  A predicted mean (of 'xprev') stays as it is, as in the original program.
  """
  check_choice('sample.clip', clip, CLIPS)

  def clipped_denoiser(x_t, t):
    prediction = denoiser(x_t, t)
    return prediction._replace(x_0=clip_x_0(prediction.x_0, clip))

  return clipped_denoiser
