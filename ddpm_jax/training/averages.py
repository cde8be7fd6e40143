"""Moving averages of the parameters: several at once, and those made afterwards.

A power-function average of the steps up to t weights step s as s^gamma (Karras et al. 2024, EDM2).
Its width is the deviation of that profile over t. From averages of two widths, kept in several
checkpoints, those of other widths follow by least squares on the profiles.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UserError

MAX_WIDTH = 0.28  # 1 / sqrt(12) is that of all steps alike, of gamma 0
MAX_ERROR = 0.1  # of a profile that is made of others, relative

Rate = Callable[[jax.Array], jax.Array | float]  # steps done, 1 after the first -> 1 - decay


def decay_rate(decay: float, warmup: float | None = None) -> Rate:
  """1 - decay; with a warm-up, the half-life is at most `warmup` times the steps done (EDM)."""
  if warmup is None:
    return lambda count: 1 - decay

  def rate(count):
    return jnp.maximum(1 - decay, -jnp.expm1(np.log(0.5) / (warmup * count)))

  return rate


def power_rate(width: float) -> Rate:
  """1 - (1 - 1 / t)^(gamma + 1), after which the profile at t is s^gamma (Sec. 3.1, EDM2)."""
  gamma = gamma_of(width)
  return lambda count: -jnp.expm1((gamma + 1) * jnp.log1p(-1 / count))


def gamma_of(width: float) -> float:
  """The exponent: width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) (Sec. 3.1, EDM2)."""
  if not 0 < width <= MAX_WIDTH:
    raise UserError(f'the width of an average is {width}; it must lie in (0, {MAX_WIDTH}]')
  inverse = width**-2
  roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
  return float(roots[np.abs(roots.imag) < 1e-6].real.max())


def rates_of(decays: Sequence[float], widths: Sequence[float]) -> dict[str, Rate]:
  """The averages beside the first, by their names in the state."""
  rates = {name_of('decay', decay): decay_rate(decay) for decay in decays}
  return rates | {name_of('width', width): power_rate(width) for width in widths}


def name_of(kind: str, number: float) -> str:
  """Of an average in the state, such as 'width 0.05'."""
  return f'{kind} {number:g}'


def averaged(average: Any, params: Any, rate: jax.Array | float) -> Any:
  """The average with the parameters after a step in it."""
  return jax.tree.map(lambda ema, new: ema - rate * (ema - new), average, params)


def synthesis(
  kept: Sequence[tuple[float, float]], width: float, step: float
) -> tuple[np.ndarray, float]:
  """How power-function averages add up to one of another width (Sec. 3.2, EDM2).

  Args:
    kept: [N] of (step, width), the averages there are.
    width: that is wanted.
    step: up to which it averages.

  Returns:
    (weights float64 [N], relative error of the profile: the root of the integral of its square).
  """
  steps = np.array([float(at) for at, _ in kept] + [float(step)])
  gammas = np.array([gamma_of(one) for _, one in kept] + [gamma_of(width)])
  products = _products(steps, gammas)
  gram, toward, own = products[:-1, :-1], products[:-1, -1], products[-1, -1]
  weights, *_ = np.linalg.lstsq(gram, toward, rcond=None)
  square = own - 2 * weights @ toward + weights @ gram @ weights
  return weights, float(np.sqrt(max(square, 0.0) / own))


def _products(steps, gammas):
  """The integrals of products of two profiles, (gamma + 1) s^gamma / t^(gamma + 1) for s < t."""
  first = np.minimum(steps[:, None], steps[None])
  exponents = gammas[:, None] + gammas[None] + 1
  # In logarithms: steps to the power of a hundred are no floats.
  powers = exponents * np.log(first) - (
    ((gammas + 1) * np.log(steps))[:, None] + ((gammas + 1) * np.log(steps))[None]
  )
  return (gammas + 1)[:, None] * (gammas + 1)[None] / exponents * np.exp(powers)


def check_synthesis(
  kept: Sequence[tuple[float, float]], width: float, step: float
) -> tuple[np.ndarray, float]:
  """As synthesis; a UserError where the averages cannot give the width."""
  weights, error = synthesis(kept, width, step)
  if error > MAX_ERROR:
    widths = sorted({one for _, one in kept})
    raise UserError(
      f'ema.width is {width}, which the kept averages (widths {", ".join(map(str, widths))} at '
      f'{len({at for at, _ in kept})} steps) give with an error of {error:.0%}: take one nearer to '
      'theirs, or keep more checkpoints (train.keep_checkpoint_every_steps)'
    )
  return weights, error


def added_up(weights: Sequence[float] | np.ndarray, averages: Callable[[int], Any]) -> Any:
  """The weighted sum of trees, in float64, as float32.

  Args:
    weights: [N].
    averages: i -> tree i, asked for one after another.
  """
  total: Any = None
  for i, weight in enumerate(weights):
    part = jax.tree.map(lambda x, w=weight: w * np.asarray(x, np.float64), averages(i))
    total = part if total is None else jax.tree.map(np.add, total, part)
  return jax.tree.map(lambda x: x.astype(np.float32), total)


def start_of(names: Mapping[str, Rate], params: Any) -> dict[str, Any] | None:
  """The averages before the first step, each in buffers of its own; None of no names."""
  if not names:
    return None
  return {name: jax.tree.map(jnp.copy, params) for name in names}
