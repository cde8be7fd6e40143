"""The coefficients of a solver fitted to one model: Bespoke Non-Stationary solvers (Shaul et al.
2024), for few steps.

A solver of S steps is linear in x and in the predictions made on the way. Here all its coefficients
are free, S (S + 3) / 2 of them, and are those by which x_0 comes nearest to a fine solution of the
probability flow from the same x_T, by least squares: Levenberg and Marquardt's method, from
DPM-Solver++(2M) on. Derivatives are differences of chains, so that any network will do. Other
examples say when to stop.
"""

from typing import NamedTuple

import numpy as np

from ddpm_jax.sampling.optimised import Predict, coefficients_of, solve
from ddpm_jax.sampling.solvers import Levels, bespoke_table, dpm_table

MAX_STEPS = 20  # that are fitted
MAX_ROUNDS = 20
LEAST_GAIN = 0.02  # of the held-out error, without which PATIENCE rounds are the last
PATIENCE = 3
# A chain is moved by this power of the arithmetic's precision, of the state's size, to see what
# follows: longer than that of smooth functions, 1/2, as a network's rounding errors add up.
DIFFERENCE = 0.4
TRIALS = 8  # of longer and longer dampings, in a round


class Bespoke(NamedTuple):
  """A solver that was fitted.

  Attributes:
    coefficients: float64 [S, S + 1], as bespoke_table.
    error: of x_0 next to the fine solution, root mean squared, of examples that were held out.
    before: the same, of DPM-Solver++(2M).
  """

  coefficients: np.ndarray
  error: float
  before: float


def fine_solution(levels: Levels, predict: Predict, x_T: np.ndarray) -> np.ndarray:
  """x_0 of x_T [N, ...], by DPM-Solver++ of order 3 on all the levels."""
  return solve(coefficients_of(dpm_table(levels, order=3)), levels.timesteps, predict, x_T)[0]


def fit_bespoke(
  levels: Levels, predict: Predict, x_T: np.ndarray, x_0: np.ndarray, num_held_out: int
) -> Bespoke:
  """The solver on these levels that goes from x_T to x_0 best.

  Args:
    levels: Levels of S steps, which end at x_0.
    predict: (x_t [N, ...], t) -> x_0 [N, ...].
    x_T, x_0: [N, ...], ends of fine solutions.
    num_held_out: of the N, the last, which are not fitted to and say when to stop.
  """
  count, timesteps = len(x_T) - num_held_out, levels.timesteps
  found = coefficients_of(bespoke_table(levels))
  used = np.tri(len(found), len(found) + 1, k=1, dtype=bool)

  def errors(coefficients):
    squares = np.square(solve(coefficients, timesteps, predict, x_T)[0].astype(np.float64) - x_0)
    return np.sqrt([squares[:count].mean(), squares[count:].mean()])

  now = before = errors(found)
  best = Bespoke(found, before[1], before[1])
  damping, waited = 1e-3, 0
  for _ in range(MAX_ROUNDS):
    reached, slopes = _slopes(found, timesteps, predict, x_T[:count])
    slopes = slopes.reshape(len(slopes), -1).astype(np.float64)
    off = (reached - x_0[:count]).reshape(-1).astype(np.float64)
    normal, gradient = slopes @ slopes.T, slopes @ off
    for _ in range(TRIALS):
      tried = found.copy()
      damped = normal + damping * np.diag(np.diag(normal))
      tried[used] -= np.linalg.lstsq(damped, gradient, rcond=None)[0]
      then = errors(tried)
      if then[0] < now[0]:
        break
      damping *= 4
    else:
      return best
    found, now, damping = tried, then, damping / 5
    waited = 0 if now[1] < (1 - LEAST_GAIN) * best.error else waited + 1
    if now[1] < best.error:
      best = Bespoke(found, now[1], before[1])
    if waited == PATIENCE:
      return best
  return best


def _slopes(coefficients, timesteps, predict, x):
  """(x_0 [N, ...], its derivatives [P, N, ...] by the coefficients in use, row by row).

  Beside the chain itself goes one for each coefficient of the rows so far, moved a little there.
  """
  chains, predictions, lengths = x[None], [], np.ones(0)
  for i, (row, t) in enumerate(zip(coefficients.astype(x.dtype), timesteps.tolist(), strict=True)):
    flat = predict(chains.reshape(-1, *x.shape[1:]), t)
    predictions = [flat.reshape(chains.shape), *predictions]
    # All chains that were added since share the predictions of the chain itself.
    predictions = [
      np.concatenate([d, np.broadcast_to(d[:1], (len(chains) - len(d), *x.shape))])
      for d in predictions
    ]
    terms = np.stack([chains[0], *(d[0] for d in predictions)])
    chains = row[0] * chains + sum(c * d for c, d in zip(row[1 : i + 2], predictions, strict=True))
    sizes = np.sqrt(np.square(terms.reshape(len(terms), -1), dtype=np.float64).mean(axis=1))
    state = np.sqrt(np.square(chains[0], dtype=np.float64).mean())
    moves = np.finfo(x.dtype).eps ** DIFFERENCE * state / np.maximum(sizes, 1e-6 * state)
    moved = [
      chains[:1] + x.dtype.type(move) * term for move, term in zip(moves, terms, strict=True)
    ]
    chains, lengths = np.concatenate([chains, *moved]), np.append(lengths, moves)
  by = lengths.reshape(-1, *(1,) * x.ndim).astype(x.dtype)
  return chains[0], (chains[1:] - chains[:1]) / by
