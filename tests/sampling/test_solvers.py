"""Samplers of few steps on data whose denoiser is exact; then another program's numbers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import (
  Parameterization,
  make_betas,
  make_denoiser,
  make_network,
  make_schedule,
  timestep_subsequence,
)
from ddpm_jax.diffusion.prediction import MEANS
from ddpm_jax.errors import UserError
from ddpm_jax.interop.diffusers import params_from_state_dict
from ddpm_jax.interop.safetensors_file import read_safetensors
from ddpm_jax.nn.unet import UNet
from ddpm_jax.sampling import CLIPS, SAMPLERS, clipped, ddim_encode
from ddpm_jax.sampling.solvers import (
  Solver,
  check_sampler,
  default_num_steps,
  default_spacing,
  deis_table,
  dpm_table,
  make_levels,
  num_evaluations,
)
from tests.analytic import (
  MIXTURE,
  batch_noise_fn,
  mixture_network,
  network_from_eps,
  with_log_variance,
)
from tests.conftest import REFERENCE

DETERMINISTIC = (
  'ddim', 'dpmpp_2m', 'dpmpp_3m', 'heun', 'unipc_2', 'unipc_3', 'ipndm', 'deis_2', 'deis_3',
)  # fmt: skip
SDE = ('dpmpp_2m_sde', 'dpmpp_3m_sde')
GAUSSIAN = {'weights': [1.0], 'means': [0.3], 'stds': [0.4]}
LINEAR = make_schedule(make_betas('linear', 1000))


def uniform_lambda_schedule(num_timesteps, most=4.0, least=-4.0):
  """A schedule whose log(alpha / sigma) is evenly spaced."""
  alphas_cumprod = 1 / (1 + np.exp(-2 * np.linspace(most, least, num_timesteps)))
  return make_schedule(1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1]))


def mixture_denoiser(schedule, weights, means, stds):
  network = mixture_network(schedule, weights, means, stds)
  return make_denoiser(network, Parameterization('eps'), schedule)


def transported(x, start, end, weights, means, stds):
  """Where the probability-flow ODE takes x (float64 array): in 1-d it keeps the CDF's value.

  start, end: (alpha, sigma).
  """

  def cdf(x, level):
    alpha, sigma = level
    return sum(
      w * 0.5 * (1 + math.erf((x - alpha * m) / math.hypot(alpha * d, sigma) / math.sqrt(2)))
      for w, m, d in zip(weights, means, stds, strict=True)
    )

  def solve(value):
    low, high = -10.0, 10.0
    for _ in range(80):
      middle = (low + high) / 2
      low, high = (middle, high) if cdf(middle, end) < value else (low, middle)
    return low

  return np.array([solve(cdf(v, start)) for v in np.ravel(x)]).reshape(np.shape(x))


def no_noise(t):
  raise AssertionError('a deterministic sampler drew noise')


def run(name, schedule, denoiser, x_T, noise_fn=no_noise, *, variance='fixedlarge', **choices):
  choices |= {'variance': variance}
  return jax.jit(lambda x: SAMPLERS[name](schedule, denoiser, x, noise_fn, **choices))(x_T)


@pytest.mark.parametrize('data', [GAUSSIAN, MIXTURE], ids=['gaussian', 'mixture'])
@pytest.mark.parametrize(
  ('name', 'order'),
  [('ddim', 1), ('dpmpp_2m', 2), ('heun', 2), ('dpmpp_3m', 3), ('unipc_2', 3), ('unipc_3', 4)],
)
@pytest.mark.usefixtures('float64')
def test_error_falls_with_the_order_of_the_solver(name, order, data):
  counts = np.array([40, 80, 160])
  x_T = np.array([[-1.3], [-0.1], [0.4], [1.5]])
  errors = []
  for count in counts:
    schedule = uniform_lambda_schedule(count)
    denoiser = mixture_denoiser(schedule, **data)
    _, states = run(name, schedule, denoiser, x_T, trajectory=True)
    levels = schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod
    last, first = ((levels[0][t], levels[1][t]) for t in (-1, 0))
    exact = transported(x_T, last, first, **data)
    # The state at t = 0; the step from there to x_0 is one and the same in all.
    errors.append(np.abs(np.asarray(states)[:, -2] - exact).max())
  slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
  assert order - 0.3 < -slope < order + 1.3
  assert errors[-1] < {1: 0.1, 2: 2e-3, 3: 1e-4, 4: 2e-5}[order]


@pytest.mark.parametrize('data', [GAUSSIAN, MIXTURE], ids=['gaussian', 'mixture'])
@pytest.mark.parametrize(
  ('name', 'order', 'most'), [('ipndm', 2, 4e-4), ('deis_2', 3, 2e-5), ('deis_3', 3, 1e-5)]
)
@pytest.mark.usefixtures('float64')
def test_error_of_what_integrates_the_noise_falls_with_its_order(name, order, most, data):
  # Of few steps of a fine chain, which the integrals of deis go over. The first step of each has
  # order 1, which leaves an error of order 2: that of ipndm, whose weights are of equal steps; in
  # deis it is small, since there the noise is all but known.
  counts, schedule = np.array([20, 40, 80]), uniform_lambda_schedule(4000)
  denoiser, x_T = mixture_denoiser(schedule, **data), np.array([[-1.3], [-0.1], [0.4], [1.5]])
  levels = schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod
  last, first = ((levels[0][t], levels[1][t]) for t in (-1, 0))
  exact, errors = transported(x_T, last, first, **data), []
  for count in counts:
    timesteps = np.rint(np.linspace(0, 3999, count)).astype(int)
    _, states = run(name, schedule, denoiser, x_T, timesteps=timesteps, trajectory=True)
    errors.append(np.abs(np.asarray(states)[:, -2] - exact).max())
  slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
  assert order - 0.3 < -slope < order + 1.3
  assert errors[-1] < most


@pytest.mark.parametrize('name', SAMPLERS)
@pytest.mark.usefixtures('float64')
def test_a_chain_that_stops_early_ends_where_the_ode_is_at_the_least_noise(name):
  if name == 'ancestral':
    return
  schedule = uniform_lambda_schedule(161)
  denoiser = mixture_denoiser(schedule, **GAUSSIAN)
  levels = schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod
  last, first = ((levels[0][t], levels[1][t]) for t in (-1, 0))
  x_T = np.array([[-1.3], [-0.1], [0.4], [1.5]])
  expected = transported(x_T, last, first, **GAUSSIAN) / first[0]
  if name.endswith('sde'):  # of noise nil, whose mean follows the ODE of twice the drift

    def moments(stops_early):
      x = run(name, schedule, denoiser, x_T, lambda t: jnp.zeros_like(x_T), stops_early=stops_early)
      return np.asarray(x)

    np.testing.assert_allclose(moments(True), moments(False), atol=0.05)
    return
  errors = []
  for timesteps in (np.arange(0, 161, 8), np.arange(0, 161, 4)):
    x = run(name, schedule, denoiser, x_T, timesteps=timesteps, stops_early=True)
    errors.append(np.abs(np.asarray(x) - expected).max())
    # Timestep 0 is where the chain ends, not an evaluation.
    again = run(name, schedule, denoiser, x_T, timesteps=timesteps[1:], stops_early=True)
    np.testing.assert_array_equal(again, x)
  assert errors[0] < 0.1
  assert errors[1] < (0.6 if name == 'ddim' else 0.35) * errors[0]


@pytest.mark.usefixtures('float64')
def test_ipndm_takes_adams_and_bashforths_steps():
  # Five steps by hand, of x / alpha in sigma / alpha.
  timesteps = np.array([100, 250, 400, 600, 900])
  ratio = np.append(np.sqrt(1 / LINEAR.alphas_cumprod[timesteps[::-1]] - 1), 0.0)
  alpha = LINEAR.sqrt_alphas_cumprod[timesteps[::-1]]
  network, x = mixture_network(LINEAR, **MIXTURE), np.array([[0.7]])
  weights = [[1], [1.5, -0.5], [23 / 12, -4 / 3, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -3 / 8], [1]]
  noises, states, scaled = [], [], x / alpha[0]
  for i, weight in enumerate(weights):
    noises.insert(0, np.asarray(network(alpha[i] * scaled, jnp.array([timesteps[4 - i]]))))
    slope = sum(w * noise for w, noise in zip(weight, noises, strict=False))
    scaled = scaled + (ratio[i + 1] - ratio[i]) * slope
    states.append(scaled * (alpha[i + 1] if i < 4 else 1))
  denoiser = mixture_denoiser(LINEAR, **MIXTURE)
  _, found = run('ipndm', LINEAR, denoiser, x, timesteps=timesteps, trajectory=True)
  np.testing.assert_allclose(found[0, :, 0], np.ravel(states), rtol=1e-9)


def test_deis_integrates_polynomials_in_t():
  # Weights of noises that are 1, t and t^2, whose integrals over the chain are known.
  timesteps = np.array([50, 200, 300, 600, 900])
  table = deis_table(make_levels(LINEAR, timesteps), 2)
  t, ratio = np.arange(1000), np.sqrt(1 / LINEAR.alphas_cumprod - 1)
  for power in range(3):
    noises = timesteps[[2, 3, 4]].astype(float) ** power
    inside = slice(200, 301)  # the step from 300 to 200
    exact = -((t[inside][1:] - 0.5) ** power * np.diff(ratio[inside])).sum()
    found = table.predict[2] @ noises / LINEAR.sqrt_alphas_cumprod[200]
    assert found == pytest.approx(exact, rel=1e-4)


def churned(x_T, churn, **choices):
  timesteps = timestep_subsequence(LINEAR, 12, 'karras')
  denoiser, noise_fn = mixture_denoiser(LINEAR, **MIXTURE), batch_noise_fn(x_T.shape)
  choices |= {'churn': churn, 'timesteps': timesteps, 'trajectory': True}
  return run('heun', LINEAR, denoiser, x_T, noise_fn, **choices)


@pytest.mark.usefixtures('float64')
def test_churn_is_algorithm_2_of_edm_on_the_timesteps_of_the_chain():
  timesteps = timestep_subsequence(LINEAR, 12, 'karras')[::-1]
  ratio, alpha = np.sqrt(1 / LINEAR.alphas_cumprod - 1), LINEAR.sqrt_alphas_cumprod
  network, noise_fn = mixture_network(LINEAR, **MIXTURE), batch_noise_fn((4, 1))
  low, high, s_noise, gamma = 0.05, 10.0, 1.1, min(6 / 12, np.sqrt(2) - 1)

  def slope(x, t):
    return np.asarray(network(alpha[t] * x, jnp.full(4, t)))

  x_T = np.array([[-1.3], [-0.1], [0.4], [1.5]])
  x, raises, states = x_T / alpha[timesteps[0]], [], []
  for i, t in enumerate(timesteps):
    if i and low <= ratio[t] <= high:
      raised = np.abs(np.log(ratio / ratio[t] / (1 + gamma))).argmin()
      raises.append(ratio[raised] / ratio[t])
      noise = np.asarray(noise_fn(t))
      x = x + np.sqrt(ratio[raised] ** 2 - ratio[t] ** 2) * s_noise * noise
      t = raised
    if i:
      states.append(x * alpha[t])
    first = slope(x, t)
    if i == 11:
      break
    following = timesteps[i + 1]
    euler = x + (ratio[following] - ratio[t]) * first
    x = x + (ratio[following] - ratio[t]) * (first + slope(euler, following)) / 2
  states.append(x - ratio[t] * first)
  choices = {'churn_interval': (low, high), 'churn_noise': s_noise}
  x_0, found = churned(x_T, 6.0, **choices)
  np.testing.assert_allclose(np.moveaxis(np.asarray(found), 1, 0), states, rtol=1e-8)
  np.testing.assert_allclose(x_0, states[-1], rtol=1e-8)
  assert len(raises) >= 5
  np.testing.assert_allclose(raises, 1 + gamma, rtol=0.05)


@pytest.mark.usefixtures('float64')
def test_churn_of_nothing_is_heun_and_churn_keeps_the_data():
  x_T = np.array([[-1.3], [0.4]])
  plain = run(
    'heun',
    LINEAR,
    mixture_denoiser(LINEAR, **MIXTURE),
    x_T,
    timesteps=timestep_subsequence(LINEAR, 12, 'karras'),
  )
  np.testing.assert_array_equal(churned(x_T, 0.0)[0], plain)
  assert np.abs(churned(x_T, 4.0)[0] - plain).max() > 1e-2
  count = 20_000
  timesteps = timestep_subsequence(LINEAR, 40, 'karras')
  noise_fn = batch_noise_fn((count, 1), seed=1)
  arguments = LINEAR, mixture_denoiser(LINEAR, **MIXTURE), noise_fn(1000), noise_fn
  x_0 = np.asarray(run('heun', *arguments, timesteps=timesteps, churn=20.0))
  weights, means, stds = (np.array(MIXTURE[name]) for name in ('weights', 'means', 'stds'))
  mean = weights @ means
  std = np.sqrt(weights @ (stds**2 + means**2) - mean**2)
  assert x_0.mean() == pytest.approx(mean, abs=5 * std / np.sqrt(count) + 0.01)
  assert x_0.std() == pytest.approx(std, rel=5 / np.sqrt(2 * count) + 0.01)


@pytest.mark.parametrize(
  ('choices', 'message'),
  [
    (
      {'name': 'dpmpp_2m', 'churn': 1.0},
      'but sample.sampler=dpmpp_2m has none; only heun',
    ),
    ({'name': 'ddim', 'churn': 1.0}, 'only heun does; ddim has eta'),
    ({'churn_choices': {'churn_noise': 1.1}}, 'churn_noise is 1.1, but nothing is churned: give'),
    (
      {'churn': 1.0, 'churn_choices': {'churn_interval': (3.0, 1.0)}},
      r'sample.churn_interval is \(3.0, 1.0\); it must be two noise levels',
    ),
  ],
)
def test_churn_without_a_meaning_is_refused(choices, message):
  possible = {'name': 'heun', 'num_steps': 20, 'eta': None, 'is_step': False}
  check_sampler(LINEAR, **possible, churn=40.0, churn_choices={'churn_interval': (0.05, 50.0)})
  with pytest.raises(UserError, match=message):
    check_sampler(LINEAR, **possible | choices)


@pytest.mark.parametrize('schedule', ['linear', 'cosine'])
@pytest.mark.parametrize('name', DETERMINISTIC)
@pytest.mark.usefixtures('float64')
def test_no_sampler_is_far_off_at_20_steps_by_default(name, schedule):
  schedule = make_schedule(make_betas(schedule, 1000))
  denoiser = clipped(mixture_denoiser(schedule, **MIXTURE))
  x_T = np.linspace(-2, 2, 21)[:, None]
  first = schedule.sqrt_alphas_cumprod[-1], schedule.sqrt_one_minus_alphas_cumprod[-1]
  exact = transported(x_T, first, (1.0, 0.0), **MIXTURE)
  timesteps = timestep_subsequence(schedule, 20, default_spacing(name))
  off = np.asarray(run(name, schedule, denoiser, x_T, timesteps=timesteps)) - exact
  assert np.sqrt(np.mean(off**2)) < 0.09  # heun with cosine and trailing: 0.37


@pytest.mark.parametrize('name', ['unipc_2', 'unipc_3'])
@pytest.mark.usefixtures('float64')
def test_a_trajectory_of_unipc_has_the_states_that_were_predicted(name):
  denoiser = mixture_denoiser(LINEAR, **MIXTURE)
  x_T, timesteps = np.array([[-1.3], [0.4]]), timestep_subsequence(LINEAR, 10, 'trailing')
  seen = []

  def watched(x_t, t):
    jax.debug.callback(seen.append, x_t, ordered=True)
    return denoiser(x_t, t)

  x_0, states = run(name, LINEAR, watched, x_T, timesteps=timesteps, trajectory=True)
  jax.effects_barrier()
  np.testing.assert_allclose(np.moveaxis(np.asarray(states), 1, 0)[:-1], seen[1:], rtol=1e-12)
  np.testing.assert_array_equal(states[:, -1], x_0)


def variance_of(name, schedule, data_std, **choices):
  """The variance of a sampler's x at t = 0, for Gaussian data of mean 0.

  All steps are linear then: each row goes through with one draw of noise at 1 and all others at 0.
  """
  total = schedule.num_timesteps
  denoiser = mixture_denoiser(schedule, [1.0], [0.0], [data_std])
  rows = jnp.arange(total + 1)[:, None]
  _, states = run(
    name,
    schedule,
    denoiser,
    (rows == total).astype(jnp.float64),
    lambda t: (rows == t).astype(jnp.float64),
    trajectory=True,
    **choices,
  )
  shares = np.asarray(states)[:, -2, 0]
  start = schedule.alphas_cumprod[-1] * (data_std**2 - 1) + 1
  return (shares[:-1] ** 2).sum() + shares[-1] ** 2 * start


@pytest.mark.usefixtures('float64')
def test_variance_of_sde_solvers_converges_with_their_order():
  counts, std = np.array([40, 80, 160]), 0.4
  errors = {'ddim': [], 'dpmpp_2m_sde': [], 'dpmpp_3m_sde': []}
  for count in counts:
    schedule = uniform_lambda_schedule(count)
    exact = schedule.alphas_cumprod[0] * (std**2 - 1) + 1
    for name, found in errors.items():
      choices = {'eta': 1.0} if name == 'ddim' else {}
      found.append(abs(variance_of(name, schedule, std, **choices) - exact))
  for name, order in (('ddim', 1), ('dpmpp_2m_sde', 2), ('dpmpp_3m_sde', 2)):
    slope = np.polyfit(np.log(counts), np.log(errors[name]), 1)[0]
    assert -slope == pytest.approx(order, abs=0.3), name
  assert errors['dpmpp_3m_sde'][-1] < 0.6 * errors['dpmpp_2m_sde'][-1]


@pytest.mark.parametrize('name', DETERMINISTIC)
@pytest.mark.parametrize('spacing', ['linspace', 'trailing', 'karras'])
@pytest.mark.parametrize('num_steps', [1, 2, 7])
@pytest.mark.usefixtures('float64')
def test_data_of_a_single_point_is_solved_exactly(name, spacing, num_steps):
  # All states lie on alpha point + sigma eps, whatever the steps.
  schedule, point = LINEAR, jnp.array([0.3, -0.7])
  timesteps = timestep_subsequence(schedule, num_steps, spacing)
  eps = np.random.default_rng(0).normal(size=(3, 2))
  alpha, sigma = schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod

  def states_at(t):
    return alpha[t] * np.asarray(point) + sigma[t] * eps

  denoiser = make_denoiser(
    lambda x, t: jnp.broadcast_to(point, x.shape), Parameterization('xstart'), schedule
  )
  x_T = states_at(timesteps[-1])
  x_0, states = run(name, schedule, denoiser, x_T, timesteps=timesteps, trajectory=True)
  assert states.shape == (3, num_steps, 2)
  for column, t in enumerate(timesteps[-2::-1]):
    np.testing.assert_allclose(states[:, column], states_at(t), atol=1e-9)
  np.testing.assert_allclose(x_0, np.broadcast_to(point, (3, 2)), atol=1e-9)
  np.testing.assert_array_equal(states[:, -1], x_0)


@pytest.mark.parametrize('name', SDE)
@pytest.mark.parametrize('num_steps', [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_sde_solvers_reach_the_moments_of_the_data(name, num_steps):
  count = 40_000
  key = jax.random.key(0)
  x_0 = np.asarray(
    run(
      name,
      LINEAR,
      mixture_denoiser(LINEAR, **MIXTURE),
      jax.random.normal(key, (count, 1)),
      lambda t: jax.random.normal(jax.random.fold_in(key, t), (count, 1)),
      timesteps=timestep_subsequence(LINEAR, num_steps, 'logsnr'),
    ),
    np.float64,
  )
  weights, means, stds = (np.array(MIXTURE[name]) for name in ('weights', 'means', 'stds'))
  mean = weights @ means
  std = np.sqrt(weights @ (stds**2 + means**2) - mean**2)
  assert x_0.mean() == pytest.approx(mean, abs=5 * std / np.sqrt(count) + 0.01)
  assert x_0.std() == pytest.approx(std, rel=5 / np.sqrt(2 * count) + 0.01)
  # The cube tells the mixture from a Gaussian of the same two.
  cube = weights @ (means**3 + 3 * means * stds**2)
  assert (x_0**3).mean() == pytest.approx(cube, abs=0.02)


@pytest.mark.usefixtures('float64')
def test_unipc_takes_the_steps_of_the_paper():
  # Three steps by hand: predictor 1, corrector 1, predictor 2 (Algs. 5 and 6, Zhao et al. 2023).
  timesteps = np.array([100, 400, 900])
  alpha, sigma = (
    table[timesteps[::-1]]
    for table in (LINEAR.sqrt_alphas_cumprod, LINEAR.sqrt_one_minus_alphas_cumprod)
  )
  h = np.diff(np.log(alpha / sigma))
  network, denoiser = mixture_network(LINEAR, **MIXTURE), mixture_denoiser(LINEAR, **MIXTURE)

  def predicted_x_0(x, i):
    return (x - sigma[i] * network(x, jnp.array([timesteps[2 - i]]))) / alpha[i]

  x = np.array([[0.7]])
  first = predicted_x_0(x, 0)
  b = np.expm1(-h)  # B_2
  predicted = sigma[1] / sigma[0] * x - alpha[1] * b[0] * first
  second = predicted_x_0(predicted, 1)
  corrected = predicted - alpha[1] * b[0] * 0.5 * (second - first)
  slope = (first - second) / (-h[0] / h[1])
  last = sigma[2] / sigma[1] * corrected - alpha[2] * b[1] * (second + 0.5 * slope)
  _, states = run('unipc_2', LINEAR, denoiser, x, timesteps=timesteps, trajectory=True)
  np.testing.assert_allclose(states[:, 0], predicted, rtol=1e-9)
  np.testing.assert_allclose(states[:, 1], last, rtol=1e-9)
  np.testing.assert_allclose(states[:, 2], predicted_x_0(last, 2), rtol=1e-9)


@pytest.mark.parametrize('clip', CLIPS)
@pytest.mark.parametrize('num_steps', [7, 100])
def test_ddim_with_eta_1_is_ancestral_sampling_with_the_posterior_variance(num_steps, clip):
  schedule = make_schedule(make_betas('linear', 100, beta_end=0.2))
  noise_fn = batch_noise_fn((5, 2))
  denoiser = clipped(mixture_denoiser(schedule, **MIXTURE), clip)
  arguments = schedule, denoiser, 2 * noise_fn(100), noise_fn
  choices = {'timesteps': timestep_subsequence(schedule, num_steps, 'linspace')}
  expected = run('ancestral', *arguments, variance='fixedsmall', **choices)
  np.testing.assert_allclose(run('ddim', *arguments, eta=1.0, **choices), expected, atol=1e-5)
  assert np.abs(run('ddim', *arguments, eta=0.5, **choices) - expected).max() > 1e-2


@pytest.mark.parametrize('sde', [False, True])
def test_the_first_order_of_dpm_solver_is_ddim(sde):
  noise_fn = batch_noise_fn((5, 2))
  denoiser = clipped(mixture_denoiser(LINEAR, **MIXTURE))
  arguments = LINEAR, denoiser, noise_fn(1000), noise_fn
  first_order = Solver(functools.partial(dpm_table, order=1, sde=sde))
  choices = {'timesteps': timestep_subsequence(LINEAR, 9, 'linspace'), 'trajectory': True}
  for actual, expected in zip(
    first_order(*arguments, **choices),
    SAMPLERS['ddim'](*arguments, eta=float(sde), **choices),
    strict=True,
  ):
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize('name', ['ancestral', 'ddim', 'unipc_3'])
def test_all_timesteps_by_name_are_all_timesteps(name):
  schedule = make_schedule(make_betas('linear', 20, beta_end=0.5))
  noise_fn = batch_noise_fn((5, 2))
  arguments = schedule, mixture_denoiser(schedule, **MIXTURE), noise_fn(20), noise_fn
  everything = timestep_subsequence(schedule, 20, 'quad')
  expected = run(name, *arguments)
  np.testing.assert_array_equal(run(name, *arguments, timesteps=everything), expected)
  x_0, states = run(name, *arguments, trajectory=True)
  assert states.shape == (5, 20, 2)
  np.testing.assert_allclose(x_0, expected, atol=1e-6)
  np.testing.assert_array_equal(states[:, -1], x_0)


def test_decoding_returns_what_was_encoded():
  x_0 = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 3, 3, 2)), jnp.float32)
  denoiser = mixture_denoiser(LINEAR, **MIXTURE)
  errors = []
  for num_steps in (50, 200, 1000):
    timesteps = timestep_subsequence(LINEAR, num_steps, 'linspace')
    x_T = ddim_encode(LINEAR, denoiser, x_0, timesteps)
    decoded = run('ddim', LINEAR, denoiser, x_T, timesteps=timesteps)
    errors.append(float(jnp.abs(decoded - x_0).max()))
  assert errors[0] < 0.3
  assert errors[1] < errors[0] / 2
  assert errors[2] < 0.02


def test_encodings_are_those_of_the_ode():
  x_0 = np.linspace(-1.2, 1.0, 8)[:, None]
  x_T = ddim_encode(LINEAR, mixture_denoiser(LINEAR, **MIXTURE), jnp.asarray(x_0, jnp.float32))
  last = LINEAR.sqrt_alphas_cumprod[-1], LINEAR.sqrt_one_minus_alphas_cumprod[-1]
  np.testing.assert_allclose(x_T, transported(x_0, (1.0, 0.0), last, **MIXTURE), atol=0.03)


@pytest.mark.parametrize('name', SAMPLERS)
def test_every_prediction_will_do(name):
  # What a network predicts, and whether it has channels of a variance, changes nothing.
  schedule = make_schedule(make_betas('linear', 100, beta_start=0.01, beta_end=0.2))
  timesteps = timestep_subsequence(schedule, 6, 'linspace')
  noise_fn = batch_noise_fn((4, 3))
  eps_network = mixture_network(schedule, **MIXTURE)

  def sample(network, mean, variance='fixedlarge'):
    parameterization = Parameterization(mean, variance)
    denoiser = make_denoiser(network, parameterization, schedule)
    choices = {'timesteps': timesteps, 'variance': parameterization.fixed_variance}
    return run(name, schedule, denoiser, noise_fn(100), noise_fn, **choices)

  expected = sample(eps_network, 'eps')
  assert np.isfinite(expected).all()
  # Noise that is made of x_0 is divided by what it has of x_t.
  rounding = 1e-4 if name in ('ipndm', 'deis_2', 'deis_3') else 1e-5
  for mean in MEANS:
    actual = sample(network_from_eps(mean, schedule, eps_network), mean)
    # A prediction of x_{t-1} is divided by the little weight that x_0 has in it.
    np.testing.assert_allclose(actual, expected, atol=2e-3 if mean == 'xprev' else rounding)
  doubled = with_log_variance(eps_network, np.ones(100))
  if name != 'ancestral':
    np.testing.assert_allclose(sample(doubled, 'eps', 'learned'), expected, atol=rounding)
  message = r'the network returned \(4, 6\) for x_t of \(4, 3\)'
  with pytest.raises(UserError, match=message):
    sample(doubled, 'eps')


@pytest.mark.parametrize('name', SAMPLERS)
def test_evaluations_of_the_network_are_as_many_as_are_told(name):
  calls = []
  noise_fn = batch_noise_fn((2, 1))

  def network(x, t):
    jax.debug.callback(lambda t: calls.append(int(t)), t[0], ordered=True)
    return 0.1 * x

  denoiser = make_denoiser(network, Parameterization('eps'), LINEAR)
  timesteps = timestep_subsequence(LINEAR, 5, 'logsnr')
  x_0 = run(name, LINEAR, denoiser, noise_fn(1000), noise_fn, timesteps=timesteps)
  jax.block_until_ready(x_0)
  jax.effects_barrier()
  assert len(calls) == num_evaluations(name, 5)
  assert sorted(set(calls)) == timesteps.tolist()


@pytest.mark.parametrize('clip', ['static', 'dynamic'])
@pytest.mark.parametrize('name', SAMPLERS)
def test_clipped_predictions_end_in_an_image(name, clip):
  noise_fn = batch_noise_fn((3, 8))
  timesteps = timestep_subsequence(LINEAR, 4, 'trailing')
  denoiser = clipped(make_denoiser(lambda x, t: -x, Parameterization('eps'), LINEAR), clip)
  x_0 = run(name, LINEAR, denoiser, noise_fn(1000), noise_fn, timesteps=timesteps)
  assert np.abs(x_0).max() <= 1 + 1e-5


@pytest.fixture(scope='module')
def diffusers_denoiser(reference):
  """Returns the denoiser of the network that the stored samples are of, and these."""
  arrays = reference('diffusers/diffusers')
  model = UNet(32, (1, 2), 1, (8,), 3)
  like = jax.eval_shape(model.init, jax.random.key(0), arrays['x_T'], jnp.zeros(len(arrays['x_T'])))
  weights = REFERENCE / 'diffusers/pipeline/unet/diffusion_pytorch_model.safetensors'
  params = params_from_state_dict(read_safetensors(weights), like['params'])
  return make_denoiser(make_network(model, params), Parameterization('eps'), LINEAR), arrays


@pytest.mark.parametrize('count', [10, 50])
@pytest.mark.parametrize(('ours', 'theirs'), [('ddim', 'ddim'), ('dpmpp_2m', 'dpmpp2m')])
def test_samples_equal_those_of_diffusers(diffusers_denoiser, relative_error, ours, theirs, count):
  denoiser, arrays = diffusers_denoiser
  timesteps = arrays[f'{theirs}{count}/timesteps'][::-1]
  if ours == 'ddim':
    assert timesteps.tolist() == timestep_subsequence(LINEAR, count, 'leading').tolist()
  x_0 = run(ours, LINEAR, denoiser, jnp.asarray(arrays['x_T']), timesteps=timesteps)
  assert relative_error(x_0, arrays[f'{theirs}{count}/sample']) < 1e-4


@pytest.mark.parametrize(
  ('choices', 'message'),
  [
    ({'name': 'euler'}, f"sample.sampler is 'euler'; it must be one of {', '.join(SAMPLERS)}"),
    ({'eta': 0.5}, 'sample.eta is 0.5, but sample.sampler=heun has none; only ddim does'),
    ({'name': 'ancestral', 'eta': 0.0}, 'sample.sampler=ancestral has none'),
    ({'name': 'ddim', 'eta': 1.5}, r'sample.eta is 1.5; it must lie in \[0, 1\]'),
    ({'name': 'ddim', 'eta': -0.1}, r'sample.eta is -0.1; it must lie in \[0, 1\]'),
    ({'name': 'ddim', 'eta': float('nan')}, r'sample.eta is nan; it must lie in \[0, 1\]'),
  ],
)
def test_check_names_what_cannot_work(choices, message):
  possible = {'name': 'heun', 'num_steps': 20, 'eta': None, 'is_step': False}
  check_sampler(LINEAR, **possible)
  with pytest.raises(UserError, match=message):
    check_sampler(LINEAR, **possible | choices)


@pytest.mark.parametrize('num_steps', [1, 20, 999, 1000])
@pytest.mark.parametrize('name', SAMPLERS)
def test_a_prediction_of_one_step_alone_suits_the_whole_ancestral_chain_alone(name, num_steps):
  check_sampler(LINEAR, name, num_steps, eta=None, is_step=False)
  if (name, num_steps) == ('ancestral', 1000):
    check_sampler(LINEAR, name, num_steps, eta=None, is_step=True)
    return
  message = (
    f'sample.sampler={name} with {num_steps} of 1000 steps cannot use a prediction of one step '
    r'alone \(diffusion.mean_type\): use sample.sampler=ancestral with all steps'
  )
  with pytest.raises(UserError, match=message):
    check_sampler(LINEAR, name, num_steps, eta=None, is_step=True)


def test_ddim_alone_has_an_eta():
  for name in SAMPLERS:
    if name == 'ddim':
      for eta in (0.0, 0.5, 1.0):
        check_sampler(LINEAR, name, 20, eta=eta, is_step=False)
    else:
      with pytest.raises(UserError, match=f'sample.sampler={name} has none; only ddim does'):
        check_sampler(LINEAR, name, 20, eta=0.0, is_step=False)


def test_all_samplers_but_ancestral_take_few_steps_unless_asked():
  for name in SAMPLERS:
    assert default_num_steps(name, 1000) == {'ancestral': 1000, 'bespoke': 10}.get(name, 20)
    assert default_num_steps(name, 7) == 7


@pytest.mark.filterwarnings('ignore:divide by zero')
@pytest.mark.parametrize('mean', ['xstart', 'v'])
@pytest.mark.parametrize('name', SAMPLERS)
def test_a_schedule_that_ends_without_signal_suits_ancestral_and_ddim_alone(name, mean):
  schedule = make_schedule(make_betas('jsd', 20))
  noise_fn = batch_noise_fn((3, 2))

  denoiser = make_denoiser(lambda x, t: 0.1 * x, Parameterization(mean), schedule)

  def sample():
    check_sampler(schedule, name, 3, eta=None, is_step=False)
    timesteps = np.array([0, 5, 19])
    return run(name, schedule, denoiser, noise_fn(20), noise_fn, timesteps=timesteps)

  if name in ('ancestral', 'ddim'):
    assert np.isfinite(sample()).all()
    return
  with pytest.raises(UserError, match=f'sample.sampler={name} steps in the log signal-to-noise'):
    sample()


@pytest.mark.parametrize(
  ('timesteps', 'message'),
  [
    ([], 'S at least 1'),
    ([0.5], 'must be ints'),
    ([3, 3], 'must increase strictly'),
    ([5, 4], 'must increase strictly'),
    ([-1, 4], r'lie in \[0, 999\]'),
    ([4, 1000], r'lie in \[0, 999\]'),
  ],
)
@pytest.mark.parametrize('name', ['ancestral', 'ddim'])
def test_impossible_timesteps_are_refused(name, timesteps, message):
  denoiser = make_denoiser(lambda x, t: x, Parameterization('eps'), LINEAR)
  with pytest.raises(UserError, match=message):
    run(name, LINEAR, denoiser, jnp.zeros((1, 1)), jnp.zeros, timesteps=timesteps)
