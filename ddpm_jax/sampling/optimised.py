"""Timesteps of few steps that are the best for one model, found by dynamic programming.

Two measures of best, each additive over the steps, so that the shortest path through all timesteps
is found and not searched for: the variational bound (Watson et al. 2021), whose terms follow from
the error of the predicted x_0 at each t; and the errors that single steps of a solver make on the
probability flow, next to a fine solution of it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.errors import UserError
from ddpm_jax.sampling.solvers import Levels, Table, dpm_table

Predict = Callable[[np.ndarray, int], np.ndarray]  # (x_t [N, ...], t) -> x_0 [N, ...]

# A step that few timesteps cannot have, such as one upwards.
_NEVER = np.inf


def least_bound(
  schedule: NoiseSchedule, errors: np.ndarray, num_steps: int, *, variance: str | None
) -> np.ndarray:
  """The S timesteps whose chain has the least bound; 0 and T-1 are among them.

  L_0 and L_T are the same for all such chains; a step from t to s adds
  `bound_of_step(schedule, errors, ...)[s, t]`.

  Args:
    schedule: NoiseSchedule, of NumPy tables.
    errors: [T], the mean squared error of the predicted x_0 at each t.
    num_steps: S, in [2, T].
    variance: of a step, fixedsmall or fixedlarge; None for the best one, the analytic variance.

  Returns:
    int64 [S], increasing.

  Raises:
    UserError: fewer than two steps, or more than T.
  """
  check_least_bound(schedule, num_steps)
  costs = bound_of_step(schedule, errors, variance=variance)
  best, came_from = costs[:, -1], []  # of chains that have gone from T-1 to s
  for _ in range(num_steps - 2):
    through = costs + best[None]  # [s, t]
    came_from.append(through.argmin(axis=1))
    best = through.min(axis=1)
  found = [0]
  for previous in reversed(came_from):
    found.append(int(previous[found[-1]]))
  return np.unique([*found, schedule.num_timesteps - 1])


def bound_of_step(
  schedule: NoiseSchedule, errors: np.ndarray, *, variance: str | None
) -> np.ndarray:
  """The term of the bound of a step from t to s, in nats a dimension, [s, t]; infinite for s >= t.

  KL(q(x_s | x_t, x_0) || p(x_s | x_t)) of Gaussians with q's variance b~, p's variance v and means
  that differ by posterior_mean_coef1 times the error of x_0 (Eqs. 5 and 7).

  Args: as least_bound.
  """
  signal = np.asarray(schedule.alphas_cumprod, np.float64)
  kept, noisier = signal[:, None], signal[None]
  with np.errstate(divide='ignore', invalid='ignore'):
    beta = 1 - noisier / kept
    posterior = beta * (1 - kept) / (1 - noisier)
    excess = kept * np.square(beta / (1 - noisier)) * errors  # of the mean, squared
    chosen = {'fixedsmall': posterior, 'fixedlarge': beta, None: posterior + excess}[variance]
    nats = 0.5 * (np.log(chosen / posterior) + (posterior + excess) / chosen - 1)
  return np.where(np.tri(len(signal), k=0, dtype=bool), _NEVER, nats)


def check_least_bound(schedule: NoiseSchedule, num_steps: int) -> None:
  """Raises a UserError where least_bound has no chain of so many steps."""
  total = schedule.num_timesteps
  if not min(2, total) <= num_steps <= total:
    raise UserError(
      f'sample.num_steps is {num_steps}; of sample.spacing=least_bound it must lie in '
      f'[{min(2, total)}, {total}], since t = 0 and T-1 are among its timesteps'
    )


def check_least_error(num_levels: int, num_steps: int) -> None:
  """Raises a UserError where least_error has no steps of so many between so many levels."""
  if not 1 <= num_steps <= num_levels:
    raise UserError(
      f'sample.num_steps is {num_steps}; of sample.spacing=least_error it must lie in '
      f'[1, {num_levels}]'
    )


class FlowProducts(NamedTuple):
  """Mean products of the states and the predictions of x_0 on fine solutions of the flow.

  The squared error of any step that is linear in them is a quadratic form of these.

  Attributes:
    levels: Levels of the G evaluations, the noisiest first, and of x_0.
    xx, xd, dd: float64 [G, G], the means of x_i x_j, x_i D_j and D_i D_j over chains and elements.
  """

  levels: Levels
  xx: np.ndarray
  xd: np.ndarray
  dd: np.ndarray


def flow_products(levels: Levels, states: np.ndarray, predictions: np.ndarray) -> FlowProducts:
  """The FlowProducts of states and predictions [G, N, ...] at the levels."""
  x, d = (np.reshape(a, (len(a), -1)).astype(np.float64) for a in (states, predictions))
  xx, xd, dd = (a @ b.T / x.shape[1] for a, b in ((x, x), (x, d), (d, d)))
  return FlowProducts(levels, xx, xd, dd)


def solved_products(levels: Levels, predict: Predict, x_T: np.ndarray) -> FlowProducts:
  """The FlowProducts of solutions by DPM-Solver++(2M) on all the levels.

  Args:
    levels: Levels, which end at x_0.
    predict: (x_t [N, ...], t) -> x_0 [N, ...].
    x_T: [N, ...].
  """
  coefficients = coefficients_of(dpm_table(levels, order=2))
  _, states, predictions = solve(coefficients, levels.timesteps, predict, x_T)
  return flow_products(levels, np.stack(states), np.stack(predictions))


def coefficients_of(table: Table) -> np.ndarray:
  """Those of a multistep solver without a corrector, as `solve` takes them."""
  return np.column_stack([table.scale, table.predict])


def solve(
  coefficients: np.ndarray, timesteps: np.ndarray, predict: Predict, x_T: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
  """Runs a multistep solver outside of JAX.

  Args:
    coefficients: float64 [S, 1 + K], in each step of x and of the last K predictions, the newest
      first; where there are fewer yet, the others are left out.
    timesteps: int [S], of the evaluations.
    predict: (x_t [N, ...], t) -> x_0 [N, ...].
    x_T: [N, ...].

  Returns:
    (x_0, the states at the timesteps, the predictions there), each [N, ...].
  """
  x, states, predictions = x_T, [], []
  for row, t in zip(coefficients.astype(x.dtype), timesteps.tolist(), strict=True):
    states.append(x)
    predictions.append(predict(x, t))
    x = sum(c * term for c, term in zip(row, (x, *predictions[::-1]), strict=False))
  return x, states, predictions


def least_error(products: FlowProducts, num_steps: int) -> np.ndarray:
  """The S of the levels at which the steps of DPM-Solver++(2M) have the least errors in all.

  Each step is taken from the exact state and with the exact predictions; its error, root mean
  squared, counts as much as it would change x_0 if the data were Gaussian, of their power.

  Args:
    products: FlowProducts of G levels.
    num_steps: S, in [1, G].

  Returns:
    int64 [S], indices of the levels, increasing; 0, the noisiest, is one of them.

  Raises:
    UserError: more steps than levels.
  """
  count = len(products.xx)
  check_least_error(count, num_steps)
  if num_steps == 1:
    return np.array([0])
  first, later, last = _step_errors(products)
  # best[i, j]: of chains whose last evaluation is i and the one before it j.
  best = np.full((count, count), _NEVER)
  best[:, 0] = first[0]
  came_from = []
  for _ in range(num_steps - 2):
    through = best[:, :, None] + later  # [j, k, i]: evaluated at k, then at j, then at i
    came_from.append(through.argmin(axis=1))
    best = through.min(axis=1).T
  i, j = np.unravel_index((best + last[:, None]).argmin(), best.shape)
  found = [int(i), int(j)]
  for previous in reversed(came_from):
    found.append(int(previous[found[-1], found[-2]]))
  return np.array(found[::-1])


def _step_errors(products):
  """Errors of single steps between G levels, of which the first is the noisiest.

  Returns:
    (of order 1 from j to i [j, i]; of order 2 from j to i with the prediction at k, too [j, k, i];
    of the last one, from j to x_0 [j]); infinite for what is no step.
  """
  levels, count = products.levels, len(products.xx)
  alpha, sigma, lambda_ = (x[:count] for x in (levels.alpha, levels.sigma, levels.lambda_))
  xx, xd, dd = products.xx, products.xd, products.dd
  power = dd[-1, -1]
  carried = np.sqrt(power / (alpha**2 * power + sigma**2))
  order = np.arange(count)

  def norm(j, i, a, k=None, b=0.0):
    """Root mean square of sigma_i / sigma_j x_j - x_i + a D_j + b D_k."""
    c = sigma[i] / sigma[j]
    square = c**2 * xx[j, j] + xx[i, i] - 2 * c * xx[j, i] + a**2 * dd[j, j]
    square = square + 2 * a * (c * xd[j, j] - xd[i, j])
    if k is not None:
      square = square + b**2 * dd[k, k] + 2 * b * (c * xd[j, k] - xd[i, k] + a * dd[j, k])
    return np.sqrt(np.maximum(square, 0)) * carried[i]

  j, i = order[:, None], order[None]
  with np.errstate(invalid='ignore'):  # without signal, and not a step
    h = lambda_[i] - lambda_[j]
    whole = alpha[i] * -np.expm1(-h)
  first = np.where(i > j, norm(j, i, whole), _NEVER)
  j, k, i = order[:, None, None], order[None, :, None], order[None, None]
  with np.errstate(divide='ignore', invalid='ignore'):
    ratio = (lambda_[i] - lambda_[j]) / (lambda_[j] - lambda_[k])  # of the step to the one before
    weight = alpha[i] * -np.expm1(-(lambda_[i] - lambda_[j]))
    found = norm(j, i, weight * (1 + ratio / 2), k, -weight * ratio / 2)
  later = np.where((i > j) & (j > k), found, _NEVER)
  last = np.sqrt(np.maximum(np.diag(dd) - 2 * dd[:, -1] + power, 0))
  return first, later, last
