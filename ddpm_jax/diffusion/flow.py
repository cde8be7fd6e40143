"""The likelihood of the probability-flow ODE (Song et al. 2021; Chen et al. 2018, FFJORD).

With z = x_t / alpha and r = sigma / alpha, the flow is dz/dr = eps, and its divergence is
(d - tr J) / r, where J is the Jacobian of the predicted x_0 with respect to z and d the number of
elements. Along the flow log p changes by the negative of it, so that

  log p(z at r_0) = log p(z at r_T) + d log(r_T / r_0) - int tr J d log r.

The density is that of a deterministic sampler that stops at the least noise, r_0: see stops_early
in sampling.solvers.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.bound import BoundTerms
from ddpm_jax.diffusion.gaussians import LEVELS
from ddpm_jax.diffusion.prediction import Denoiser
from ddpm_jax.diffusion.schedules import NoiseSchedule, check_timesteps, sigmas
from ddpm_jax.errors import UserError


def dequantised(x_0: jax.Array, uniforms: jax.Array, levels: int | None) -> jax.Array:
  """x_0 of levels with the uniform noise of a level's width; of values of any kind, as it is.

  The mean of its log-density plus the log of the width is a lower bound of the log-probability of
  the level (Theis et al. 2016).

  Args:
    x_0: [B, ..., C], levels in [-1, 1].
    uniforms: U(0, 1), [B, ..., C].
    levels: of the data; None for values of any kind.
  """
  return x_0 if levels is None else x_0 + (uniforms - 0.5) * (2 / (levels - 1))


def flow_terms(
  schedule: NoiseSchedule,
  denoiser: Denoiser,
  x_0: jax.Array,
  timesteps: np.ndarray,
  probes: jax.Array | None = None,
  *,
  levels: int | None = LEVELS,
) -> BoundTerms:
  """The likelihood of a batch, a step of Heun's method a term: two evaluations and products each.

  Args:
    schedule: NoiseSchedule, of NumPy tables, which keeps some signal.
    denoiser: Denoiser, not clipped, differentiable in x_t, by reverse mode.
    x_0: [B, ..., C], dequantised.
    timesteps: increasing ints [S + 1], between which the S steps are; the first should be 0 and the
      last T-1.
    probes: [P, B, ..., C] of mean 0 and covariance I, such as random signs: Hutchinson's estimate
      of tr J, unbiased, is the mean over these of probe^T J probe. None for the trace itself, which
      takes a product an element.
    levels: of the data; None for values of any kind, whose density is taken as it is.

  Returns:
    BoundTerms, whose arrays are z [B, ..., C]; traces [B, P], the integral of each probe's, P = 1
    without probes; and total_bpd [B], in bits/dim, which is right after the last step.

  Raises:
    UserError: a schedule without signal at the end, or timesteps that cannot be.
  """
  timesteps = check_timesteps(schedule, timesteps)
  if len(timesteps) < 2 or not schedule.alphas_cumprod[timesteps[-1]]:
    raise UserError(
      'the likelihood of the flow takes two timesteps or more, at all of which some signal is left'
    )
  times = jnp.asarray(timesteps, jnp.int32)
  dtype, size = x_0.dtype, math.prod(x_0.shape[1:])
  alpha = jnp.asarray(schedule.sqrt_alphas_cumprod[timesteps], dtype)
  ratio = jnp.asarray(sigmas(schedule)[timesteps], dtype)
  log_ratio = np.log(sigmas(schedule)[timesteps])
  gained = jnp.asarray(log_ratio - log_ratio[0], dtype)
  bits_of_width = 0.0 if levels is None else math.log2(2 / (levels - 1))

  def slope(z, i):
    """(eps, tr J [B, P]) at level i."""
    t = jnp.full(z.shape[:1], times[i], jnp.int32)
    x_0_of, traces = _traced(lambda z: denoiser(alpha[i] * z, t).x_0, z, probes)
    return (z - x_0_of) / ratio[i], traces

  def step(i, arrays):
    z, h = arrays['z'], ratio[i + 1] - ratio[i]
    eps, trace = slope(z, i)
    next_eps, next_trace = slope(z + h * eps, i + 1)
    z = z + h / 2 * (eps + next_eps)
    length = gained[i + 1] - gained[i]
    traces = arrays['traces'] + length / 2 * (trace + next_trace)
    x = alpha[i + 1] * z
    rows = jnp.square(x).reshape(len(x), -1).sum(axis=1)
    log_prior = -0.5 * rows + size * (jnp.log(alpha[i + 1]) - 0.5 * math.log(2 * math.pi))
    log_density = log_prior + size * gained[i + 1] - traces.mean(axis=1)
    total = -log_density / (size * math.log(2)) - bits_of_width
    return {'z': z, 'traces': traces, 'total_bpd': total}

  count = 1 if probes is None else len(probes)
  none = jnp.zeros((len(x_0), count), dtype)
  return BoundTerms(len(timesteps) - 1, {'z': x_0, 'traces': none, 'total_bpd': none[:, 0]}, step)


def _traced(
  function: Callable[[jax.Array], jax.Array], z: jax.Array, probes: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """(function(z), its Jacobian's trace by each probe [B, P]); its rows are maps of their own."""
  size = math.prod(z.shape[1:])
  value, pulled = jax.vjp(function, z)  # some convolutions have no products forwards

  def along(i):
    if probes is None:
      unit = jnp.zeros(size, z.dtype).at[i].set(1).reshape(z.shape[1:])
      probe = jnp.broadcast_to(unit, z.shape)
    else:
      probe = probes[i]
    return (probe * pulled(probe)[0]).reshape(len(z), -1).sum(axis=1)

  count = size if probes is None else len(probes)
  traces = jax.lax.map(along, jnp.arange(count))
  return value, traces.sum(axis=0)[:, None] if probes is None else traces.T
