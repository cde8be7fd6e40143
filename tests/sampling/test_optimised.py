"""Timesteps that are the best for a model, next to all other choices."""

import itertools

import numpy as np
import pytest

from ddpm_jax.diffusion import make_betas, make_schedule, normal_kl, timestep_subsequence
from ddpm_jax.diffusion.schedules import respace
from ddpm_jax.errors import UserError
from ddpm_jax.sampling.optimised import bound_of_step, flow_products, least_bound, least_error
from ddpm_jax.sampling.solvers import dpm_table, make_levels

SCHEDULE = make_schedule(make_betas('linear', 12, beta_start=0.01, beta_end=0.6))


def gaussian_errors(schedule, std):
  """The variance of x_0 given x_t, for x_0 ~ N(0, std^2)."""
  signal = schedule.alphas_cumprod
  return std**2 * (1 - signal) / (signal * std**2 + 1 - signal)


@pytest.mark.parametrize('variance', ['fixedsmall', 'fixedlarge', None])
def test_bound_of_a_step_is_the_kl_of_the_respaced_chain(variance):
  errors = gaussian_errors(SCHEDULE, 0.5)
  s, t = 3, 8
  kept = respace(SCHEDULE, np.array([0, s, t]))
  posterior, coef1 = kept.posterior_variance[2], kept.posterior_mean_coef1[2]
  excess = coef1**2 * errors[t]
  chosen = {'fixedsmall': posterior, 'fixedlarge': kept.betas[2], None: posterior + excess}
  means, log_variances = (coef1 * np.sqrt(errors[t]), 0.0), np.log([posterior, chosen[variance]])
  expected = normal_kl(means[0], log_variances[0], means[1], log_variances[1])
  found = bound_of_step(SCHEDULE, errors, variance=variance)
  np.testing.assert_allclose(found[s, t], expected, rtol=1e-5)
  assert np.isinf(found[t, s])
  assert np.isinf(found[t, t])


@pytest.mark.parametrize('variance', ['fixedsmall', None])
@pytest.mark.parametrize('num_steps', [2, 3, 5, 12])
def test_least_bound_is_the_least_of_all(variance, num_steps):
  errors = gaussian_errors(SCHEDULE, 0.3)
  costs = bound_of_step(SCHEDULE, errors, variance=variance)

  def total(timesteps):
    return sum(costs[s, t] for s, t in itertools.pairwise(timesteps))

  between = itertools.combinations(range(1, 11), num_steps - 2)
  least = min(total((0, *middle, 11)) for middle in between)
  found = least_bound(SCHEDULE, errors, num_steps, variance=variance)
  assert len(found) == num_steps
  assert found[[0, -1]].tolist() == [0, 11]
  assert total(found) == pytest.approx(least, rel=1e-12)


def fine_solutions(count=24):
  """Exact flows of data N(0, 0.4^2), and one element that is a mixture's: x_0 of +-0.7."""
  schedule = make_schedule(make_betas('linear', 1000))
  levels = make_levels(schedule, timestep_subsequence(schedule, count, 'logsnr'))
  alpha, sigma = levels.alpha[:-1, None, None], levels.sigma[:-1, None, None]
  z = np.random.default_rng(0).standard_normal((30, 2))
  states = np.sqrt(alpha**2 * 0.16 + sigma**2) * z
  predictions = alpha * 0.16 / (alpha**2 * 0.16 + sigma**2) * states
  return levels, states, predictions


def test_least_error_is_the_least_of_all_and_its_errors_are_the_solvers():
  levels, states, predictions = fine_solutions(9)
  power = np.square(predictions[-1]).mean()

  def local_errors(chosen):
    part = make_levels_of(levels, chosen)
    table, total = dpm_table(part, order=2), 0.0
    for row, j in enumerate(chosen):
      is_last = row + 1 == len(chosen)
      reached = table.scale[row] * states[j] + table.predict[row, 0] * predictions[j]
      if row:
        reached += table.predict[row, 1] * predictions[chosen[row - 1]]
      i = -1 if is_last else chosen[row + 1]
      exact = predictions[-1] if is_last else states[i]
      a, s = (1, 0) if is_last else (levels.alpha[i], levels.sigma[i])
      error = np.sqrt(np.square(reached - exact).mean())
      total += error * np.sqrt(power / (a**2 * power + s**2))
    return total

  products = flow_products(levels, states, predictions)
  for num_steps in (1, 2, 3, 5):
    others = itertools.combinations(range(1, 9), num_steps - 1)
    least = min(local_errors((0, *rest)) for rest in others)
    found = least_error(products, num_steps)
    assert len(found) == num_steps
    assert local_errors(tuple(found)) == pytest.approx(least, rel=1e-6)


def make_levels_of(levels, chosen):
  """The Levels of some of the levels."""
  rows = [*chosen, len(levels.timesteps)]
  fields = {name: getattr(levels, name)[rows] for name in ('alpha', 'sigma', 'lambda_')}
  return type(levels)(levels.timesteps[list(chosen)], **fields, ratios=levels.ratios)


def test_impossible_numbers_of_steps_are_refused():
  errors = gaussian_errors(SCHEDULE, 0.5)
  for num_steps in (1, 13):
    with pytest.raises(UserError, match=r'it must lie in \[2, 12\], since t = 0 and T-1'):
      least_bound(SCHEDULE, errors, num_steps, variance=None)
  products = flow_products(*fine_solutions(9))
  with pytest.raises(UserError, match=r'num_steps is 10; of sample.spacing=least_error'):
    least_error(products, 10)
