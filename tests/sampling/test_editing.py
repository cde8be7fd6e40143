"""Editing, where p(x_0 | what is known) is exact; docs/editing.md has the biases in a table."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import make_betas, make_schedule, q_sample, timestep_subsequence
from ddpm_jax.diffusion.prediction import Prediction
from ddpm_jax.errors import UserError
from ddpm_jax.sampling import (
  CHAINS,
  average_pooling,
  conditioned,
  ddnm,
  depth_timesteps,
  linear_operator,
  masking,
  noised,
  pigdm,
  repaint_chain,
)
from ddpm_jax.sampling.editing import repaint_rows
from tests.analytic import PICTURES, batch_noise_fn

COUNT = 4000
SCHEDULE = make_schedule(make_betas('linear', 100, beta_start=1e-3, beta_end=0.2))
SHAPE = 2, 2, 1
MASK = np.array([True, False, True, False]).reshape(SHAPE)
KNOWN = np.float32([0.6, 0.0, -0.5, 0.0]).reshape(SHAPE)
SOME = batch_noise_fn((COUNT, *SHAPE))


def run(chain, x_T):
  x_0 = jax.jit(lambda x: jax.lax.fori_loop(0, chain.num_steps, chain.step, chain.start(x)).x)(x_T)
  return np.asarray(x_0, np.float64).reshape(len(x_T), -1)


def draw(denoiser, sampler='ancestral', num_steps=None, **choices):
  timesteps = num_steps and timestep_subsequence(SCHEDULE, num_steps, 'trailing')
  choices = {'variance': 'fixedlarge', **choices}
  return run(CHAINS[sampler](SCHEDULE, denoiser, SOME, timesteps, **choices), SOME(100))


def repaint(denoiser, **choices):
  known = jnp.broadcast_to(jnp.asarray(KNOWN), (COUNT, *SHAPE))
  choices = {'known': known, 'mask': jnp.asarray(MASK), 'variance': 'fixedlarge', **choices}
  return run(repaint_chain(SCHEDULE, denoiser, SOME, **choices), SOME(100))


def errors(x, data, matrix, y):
  """The largest errors of mean and covariance, in units of the data's standard deviation.

  Their Monte Carlo errors are 1 / sqrt(COUNT) and sqrt(2 / COUNT) at most: 0.016 and 0.022.
  """
  mean, covariance = data.posterior(matrix, y)
  variance = np.diag(data.posterior(np.zeros((0, 4)), np.zeros(0))[1]).max()
  of_mean = np.abs(x.mean(0) - mean).max() / np.sqrt(variance)
  return of_mean, np.abs(np.cov(x.T) - covariance).max() / variance


def of_mask(x, name):
  return errors(x, PICTURES[name], np.eye(4)[MASK.ravel()], KNOWN.ravel()[MASK.ravel()])


def conditional(name, method, operator, measurement, **choices):
  measurement = jnp.broadcast_to(jnp.asarray(measurement), (COUNT, *measurement.shape))
  denoiser = PICTURES[name].denoiser(SCHEDULE)
  if method == 'ddnm':
    return ddnm(denoiser, operator, measurement, **choices)
  return pigdm(denoiser, SCHEDULE, operator, measurement, **choices)


def masked(name, method, **choices):
  return conditional(name, method, masking(jnp.asarray(MASK)), KNOWN, **choices)


@pytest.mark.parametrize(
  ('method', 'choices'), [('ddnm', {}), ('pigdm', {'data_variance': 0.25})]
)  # fmt: skip
@pytest.mark.parametrize('sampler', ['ancestral', 'dpmpp_2m'])
def test_independent_pixels_are_drawn_given_the_known_ones(method, choices, sampler):
  x = draw(
    masked('independent', method, **choices), sampler, None if sampler == 'ancestral' else 40
  )
  of_mean, of_covariance = of_mask(x, 'independent')
  assert of_mean < 5 / np.sqrt(COUNT)
  assert of_covariance < 5 * np.sqrt(2 / COUNT) + 0.05  # and the solver's own
  np.testing.assert_allclose(x[:, MASK.ravel()], [KNOWN.ravel()[MASK.ravel()]] * COUNT, atol=1e-5)


@pytest.mark.parametrize('method', ['ddnm', 'pigdm'])
def test_independent_pixels_are_drawn_given_their_mean(method):
  y = np.full((1, 1, 1), 0.5, np.float32)
  choices = {} if method == 'ddnm' else {'data_variance': 0.25}
  x = draw(conditional('independent', method, average_pooling(2, SHAPE), y, **choices))
  of_mean, of_covariance = errors(x, PICTURES['independent'], np.full((1, 4), 0.25), y.ravel())
  assert of_mean < 5 / np.sqrt(COUNT)
  assert of_covariance < 5 * np.sqrt(2 / COUNT) + 0.03
  np.testing.assert_allclose(x.mean(1), 0.5, atol=1e-5)


def test_noise_of_the_measurement_widens_the_posterior():
  # x_0 ~ N(m, v I), y = x_0 + noise: precisions add.
  v, s = 0.25, 0.4
  measured = KNOWN + 0.1
  whole = linear_operator(lambda x: x, SHAPE)
  denoiser = conditional('independent', 'pigdm', whole, measured, noise_std=s, data_variance=v)
  x = draw(denoiser)
  posterior = 1 / (1 / v + 1 / s**2)
  mean = posterior * (PICTURES['independent'].means[0] / v + measured.ravel() / s**2)
  np.testing.assert_allclose(x.mean(0), mean, atol=5 * np.sqrt(posterior / COUNT))
  np.testing.assert_allclose(x.var(0), posterior, rtol=5 * np.sqrt(2 / COUNT) + 0.05)


@functools.cache
def resampled(name, resamplings):
  return of_mask(
    repaint(PICTURES[name].denoiser(SCHEDULE), jump_length=5, resamplings=resamplings), name
  )


@pytest.mark.parametrize('name', ['correlated', 'mixture'])
def test_resampling_takes_the_bias_of_repaint(name):
  without, with_it = resampled(name, 1), resampled(name, 10)
  assert without[0] > 0.2  # docs/editing.md says so
  assert with_it[0] < 0.7 * without[0]
  assert with_it[0] < 0.18  # the kinds of the mixture mix slowly
  assert with_it[1] < 0.15


@pytest.mark.parametrize('method', ['ddnm', 'pigdm'])
def test_the_bias_on_correlated_pixels_is_as_told(method):
  choices = {} if method == 'ddnm' else {'data_variance': 0.25}
  of_mean, _ = of_mask(draw(masked('correlated', method, **choices)), 'correlated')
  assert 0.05 < of_mean < 0.6


def test_repaint_of_nothing_known_is_ancestral_sampling_and_of_all_the_picture():
  denoiser = PICTURES['mixture'].denoiser(SCHEDULE)
  free = repaint(denoiser, mask=jnp.zeros(SHAPE, bool), resamplings=1)
  np.testing.assert_allclose(free, draw(denoiser), atol=1e-5)
  x = repaint(denoiser, mask=jnp.ones(SHAPE, bool), jump_length=20, resamplings=2)
  np.testing.assert_array_equal(x, [KNOWN.ravel()] * COUNT)


def test_repaint_jumps_where_the_paper_does():
  assert repaint_rows(6, 2, 2).tolist() == [5, 4, 3, 4, 3, 2, 1, 2, 1, 0]
  assert repaint_rows(4, 10, 7).tolist() == [3, 2, 1, 0]
  # The authors' schedule for 250 timesteps: 250 + 24 stretches of 10, gone through 9 times more.
  rows = repaint_rows(250, 10, 10)
  assert len(rows) == 250 + 24 * 9 * 10
  assert (np.diff(rows) >= -1).all()
  assert set(np.diff(rows)) == {-1, 9}


def test_a_jump_keeps_the_law_of_the_noise():
  # All known: before each evaluation the state is q(x_t | x_0), whatever the jumps on the way.
  chain = repaint_chain(
    SCHEDULE,
    lambda x, t: Prediction(x),  # so that the chain tells what it evaluates
    SOME,
    timestep_subsequence(SCHEDULE, 8, 'trailing'),
    variance='fixedlarge',
    known=jnp.broadcast_to(jnp.asarray(KNOWN), (COUNT, *SHAPE)),
    mask=jnp.ones(SHAPE, bool),
    jump_length=2,
    resamplings=2,
  )
  state, step = chain.start(SOME(100)), jax.jit(chain.step)
  assert (np.diff(chain.timesteps[:8]) > 0).any()
  for i, t in enumerate(chain.timesteps[:8]):
    state = step(i, state)
    if i == 0:
      continue
    x_t, abar = state.predictions[0], SCHEDULE.alphas_cumprod[t]
    mean = np.sqrt(abar) * KNOWN
    np.testing.assert_allclose(x_t.mean(0), mean, atol=5 * np.sqrt((1 - abar) / COUNT))
    np.testing.assert_allclose(x_t.var(0), 1 - abar, rtol=5 * np.sqrt(2 / COUNT))


@pytest.mark.parametrize('sampler', ['ancestral', 'dpmpp_2m'])
def test_sdedit_of_data_draws_data(sampler):
  # Noised data are q(x_t), and the chain from there leads back to the data.
  data = PICTURES['correlated']
  x_0 = np.random.default_rng(0).multivariate_normal(data.means[0], data.covariances[0], COUNT)
  steps = None if sampler == 'ancestral' else timestep_subsequence(SCHEDULE, 50, 'trailing')
  timesteps = depth_timesteps(SCHEDULE, steps, 0.5)
  assert timesteps[-1] == 49
  x_0 = jnp.asarray(x_0.reshape(COUNT, *SHAPE), jnp.float32)
  x_t = noised(SCHEDULE, x_0, timesteps, SOME(100))
  t = jnp.full(COUNT, 49, jnp.int32)
  np.testing.assert_array_equal(x_t, q_sample(SCHEDULE, x_0, t, SOME(100)))
  chain = CHAINS[sampler](SCHEDULE, data.denoiser(SCHEDULE), SOME, timesteps, variance='fixedlarge')
  x = run(chain, x_t)
  of_mean, of_covariance = errors(x, data, np.zeros((0, 4)), np.zeros(0))
  assert of_mean < 5 / np.sqrt(COUNT)
  assert of_covariance < 5 * np.sqrt(2 / COUNT) + 0.05
  assert np.abs(x - np.asarray(x_0).reshape(COUNT, 4)).mean() > 0.1  # other pictures


def test_the_last_timesteps_are_steps_of_the_whole_chain():
  data = PICTURES['correlated']
  whole = CHAINS['ancestral'](SCHEDULE, data.denoiser(SCHEDULE), SOME, variance='fixedlarge')
  last = CHAINS['ancestral'](
    SCHEDULE, data.denoiser(SCHEDULE), SOME, np.arange(30), variance='fixedlarge'
  )
  state = whole.start(SOME(7))
  state = jax.jit(lambda s: jax.lax.fori_loop(70, 100, whole.step, s))(state)
  np.testing.assert_allclose(np.asarray(state.x).reshape(COUNT, 4), run(last, SOME(7)), atol=1e-5)


@pytest.mark.parametrize('depth', [0.0, 1.5, float('nan')])
def test_a_depth_outside_the_chain_is_refused(depth):
  with pytest.raises(UserError, match=r'depth is .*; it must lie in \(0, 1\]'):
    depth_timesteps(SCHEDULE, None, depth)


def test_depths_end_at_their_share_of_the_chain():
  assert depth_timesteps(SCHEDULE, None, 1.0).tolist() == list(range(100))
  assert depth_timesteps(SCHEDULE, None, 1e-6).tolist() == [0]
  assert depth_timesteps(SCHEDULE, np.array([9, 49, 99]), 0.5).tolist() == [9, 49]


def test_clipping_keeps_known_pixels():
  denoiser = PICTURES['mixture'].denoiser(SCHEDULE)
  x, t = 3 * SOME(1)[:4], jnp.full(4, 3, jnp.int32)
  mask = jnp.asarray(MASK)
  y = jnp.broadcast_to(jnp.asarray(KNOWN), x.shape)
  for method in ('ddnm', 'pigdm'):
    informed = conditioned(SCHEDULE, denoiser, masking(mask), y, method=method)
    x_0 = jax.jit(lambda x, t: informed(x, t).x_0)(x, t)  # noqa: B023
    assert float(jnp.abs(x_0).max()) <= 1
    if method == 'ddnm':
      np.testing.assert_allclose(jnp.where(mask, x_0, 0), y, atol=1e-6)


def test_methods_and_jumps_that_there_are_not_are_refused():
  with pytest.raises(UserError, match=r'edit\.method .* ddnm, pigdm'):
    conditioned(SCHEDULE, None, None, None, method='dps')
  for choices in ({'jump_length': 0}, {'resamplings': 0}):
    with pytest.raises(UserError, match='is 0; it must be at least 1'):
      repaint_chain(SCHEDULE, None, None, variance=None, known=None, mask=None, **choices)
