"""The bound on Gaussian data, whose exact likelihood is known; then the original's numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.scipy.stats import norm

from ddpm_jax.diffusion import (
  Parameterization,
  bpd_estimate,
  bpd_loop,
  make_betas,
  make_denoiser,
  make_network,
  make_schedule,
  p_mean_variance,
  prior_bpd,
  q_sample,
  vb_terms_bpd,
)
from ddpm_jax.diffusion.bound import timestep_strata
from ddpm_jax.diffusion.prediction import MEANS
from ddpm_jax.diffusion.schedules import default_choices
from ddpm_jax.errors import UserError
from ddpm_jax.sampling import clipped, make_noise_fn
from tests.analytic import ORIGINAL_VARIANCES as VARIANCES
from tests.analytic import (
  gaussian_posterior_variances,
  mixture_network,
  network_from_eps,
  predict,
  reference_network,
  with_log_variance,
)
from tests.compiling import RUNS_LONG
from tests.decoder import assert_decoder_bpd

# Data: pixels of N(MEAN, SCALE^2), each rounded to the nearest of the 256 levels.
MEAN, SCALE = 0.1, 0.25
LEVELS = np.arange(256) / 127.5 - 1
SCHEDULE = make_schedule(make_betas('linear', 100, beta_end=0.2))
BITS = np.log(2)


def gaussian_pixels(key, shape):
  x = MEAN + SCALE * jax.random.normal(key, shape)
  return jnp.clip(jnp.round((x + 1) * 127.5), 0, 255) / 127.5 - 1


def exact_bpd(x):
  """-log2 of each pixel's probability: the mass of its bin."""
  edges = np.concatenate([[-np.inf], (LEVELS[1:] + LEVELS[:-1]) / 2, [np.inf]])
  bits = -np.log2(np.diff(norm.cdf(edges, MEAN, SCALE)))
  return bits[np.rint((np.asarray(x) + 1) * 127.5).astype(int)]


def exact_denoiser(schedule, parameterization):
  """Of a network that returns the expectation of its target, and a learned variance exactly."""
  network = mixture_network(schedule, [1.0], [MEAN], [SCALE])
  network = network_from_eps(parameterization.mean, schedule, network)
  if parameterization.variance == 'learned':
    log_variances = np.log(gaussian_posterior_variances(schedule, SCALE)[1])
    network = with_log_variance(network, log_variances, parameterization.mean, schedule)
  return make_denoiser(network, parameterization, schedule)


def loop_of(schedule, parameterization, levels=256):
  """The program of the bound, x_0 -> arrays."""

  @functools.partial(jax.jit, compiler_options=RUNS_LONG)
  def run(x_0):
    def noise_fn(t):
      return jax.random.normal(jax.random.fold_in(jax.random.key(1), t), x_0.shape)

    denoiser = exact_denoiser(schedule, parameterization)
    variance = parameterization.fixed_variance
    return bpd_loop(schedule, denoiser, x_0, noise_fn, variance=variance, levels=levels)

  return lambda x_0: jax.tree.map(np.asarray, run(x_0))


@functools.cache
def shared_loop_of(mean, variance):
  """That of SCHEDULE, which more than one test runs."""
  return loop_of(SCHEDULE, Parameterization(mean, variance))


def log_variance_table(schedule, variance):
  return {
    'learned': np.log(gaussian_posterior_variances(schedule, SCALE)[1]),
    'fixedsmall': schedule.posterior_log_variance_clipped,
    'fixedlarge': schedule.fixedlarge_log_variance,
  }[variance]


def variance_mismatch(schedule, variance):
  """KL, for each t, from a Gaussian of the right variance to one of another, in bits."""
  # At t = 0 both are integrated over a pixel's bin, whose variance is (2 / 255)^2 / 12.
  bin_variance = np.where(np.arange(schedule.num_timesteps) == 0, (2 / 255) ** 2 / 12, 0)
  right = gaussian_posterior_variances(schedule, SCALE)[1] + bin_variance
  ratio = right / (np.exp(log_variance_table(schedule, variance)) + bin_variance)
  return 0.5 * (ratio - 1 - np.log(ratio)) / BITS


@pytest.mark.parametrize('variance', VARIANCES)
@pytest.mark.parametrize('mean', MEANS)
def test_bound_of_the_exact_denoiser_meets_the_exact_likelihood_from_above(mean, variance):
  x_0 = gaussian_pixels(jax.random.key(0), (1024, 128))
  bound = shared_loop_of(mean, variance)(x_0)
  excess = bound['total_bpd'] - exact_bpd(x_0).mean(axis=-1)  # of the same pixels: less noise
  error = 4 * excess.std(ddof=1) / np.sqrt(len(excess))
  assert excess.mean() > -error
  # What remains is what a wrong variance costs, and nothing with the right one.
  expected = variance_mismatch(SCHEDULE, variance).sum()
  assert error < 0.025 * (1 + expected)
  assert excess.mean() == pytest.approx(expected, abs=error + 0.01)


@pytest.mark.parametrize('variance', VARIANCES)
@pytest.mark.parametrize('mean', MEANS)
def test_each_term_has_its_closed_form(mean, variance):
  x_0 = MEAN + SCALE * jax.random.normal(jax.random.key(0), (1024, 128))  # no levels: t > 0
  bound = shared_loop_of(mean, variance)(x_0)
  of_x_0, of_previous = gaussian_posterior_variances(SCHEDULE, SCALE)

  def assert_means(samples, expected):  # [400, T] and [T]
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    deviation = np.abs(samples.mean(axis=0) - expected)
    assert (deviation[1:] < 5 * error[1:] + 1e-6).all()

  assert_means(bound['mse'], of_x_0)
  # KL(q(x_{t-1} | x_t, x_0) || p), in expectation over x_0 given x_t.
  log_variance = log_variance_table(SCHEDULE, variance)
  with np.errstate(divide='ignore'):
    log_ratio = log_variance - np.log(SCHEDULE.posterior_variance)
  kl = 0.5 * (of_previous / np.exp(log_variance) - 1 + log_ratio)
  assert_means(bound['vb'], kl / BITS)


def of_levels(x, levels):
  """The nearest of the levels."""
  half = (levels - 1) / 2
  return np.clip(np.rint((x + 1) * half), 0, levels - 1) / half - 1


def bits_of_levels(x, levels):
  """-log2 of the probability of each value; of its density with levels None."""
  if levels is None:
    return -np.asarray(norm.logpdf(x, MEAN, SCALE)) / BITS
  half_bin = 1 / (levels - 1)
  upper, lower = (scipy.stats.norm.cdf(x + side, MEAN, SCALE) for side in (half_bin, -half_bin))
  first, last = x < half_bin - 1, x > 1 - half_bin
  return -np.log2(np.where(last, 1, upper) - np.where(first, 0, lower))


@pytest.mark.parametrize(
  ('shape', 'levels'),
  [((1024, 32, 2), 4096), ((1024, 4, 2, 4, 2), 65536), ((1024, 32, 2), None)],
)
def test_bound_of_signals_and_volumes_of_any_levels_meets_the_exact_likelihood(shape, levels):
  """By the schedule for such data, and the paper's fixed variances."""
  name, beta_start = default_choices(levels)
  betas = make_betas(name, 1000, beta_start=beta_start)
  schedule = make_schedule(betas, decoder_variance=betas[0])
  x = MEAN + SCALE * np.random.default_rng(0).standard_normal(shape)
  x = x if levels is None else of_levels(x, levels)
  bound = loop_of(schedule, Parameterization('eps'), levels)(jnp.float32(x))
  excess = bound['total_bpd'] - bits_of_levels(x, levels).reshape(len(x), -1).mean(axis=-1)
  error = 4 * excess.std(ddof=1) / np.sqrt(len(excess))
  assert error < 0.02
  # What remains are the steps' finite size, and at the first noise the difference between a density
  # and the mass of a level.
  assert -error < excess.mean() < 0.05 + error


def test_the_papers_first_noise_costs_bits_where_levels_are_narrow():
  x = of_levels(MEAN + SCALE * np.random.default_rng(0).standard_normal((64, 32, 2)), 65536)
  first = {}
  for name in ('linear', 'logsnr'):
    betas = make_betas(name, 1000, beta_start={'linear': 1e-4, 'logsnr': (2 / 65535) ** 2}[name])
    schedule = make_schedule(betas, decoder_variance=betas[0] if name == 'logsnr' else None)
    bound = loop_of(schedule, Parameterization('eps'), 65536)(jnp.float32(x))
    first[name] = bound['vb'][:, 0].mean()
  assert first['linear'] > 9
  # A level of the width of the noise takes log2 sqrt(2 pi e) bits.
  assert first['logsnr'] == pytest.approx(0.5 * np.log2(2 * np.pi * np.e), abs=0.1)


def test_v_has_the_bound_of_the_noise_it_holds():
  x_0 = gaussian_pixels(jax.random.key(0), (1024, 128))
  of_v, of_eps = (shared_loop_of(mean, 'fixedlarge')(x_0) for mean in ('v', 'eps'))
  for name in ('total_bpd', 'vb', 'prior_bpd'):
    np.testing.assert_allclose(of_v[name], of_eps[name], rtol=1e-5, atol=1e-6, err_msg=name)
  # x_0 from eps is x_t over sqrt(alphas_cumprod): float32's rounding grows by as much.
  rounding = 6e-8 / SCHEDULE.sqrt_alphas_cumprod
  assert (np.abs(of_v['mse'] - of_eps['mse']) < 1e-5 * of_eps['mse'] + rounding).all()


@pytest.mark.parametrize(
  'mean', [mean for mean in MEANS if not Parameterization(mean).needs_signal]
)
def test_bound_is_finite_at_a_last_beta_of_1_and_its_prior_is_0(mean):
  schedule = make_schedule(make_betas('jsd', 20))
  x_0 = gaussian_pixels(jax.random.key(0), (4, 8))
  parameterization = Parameterization(mean, 'fixedsmall')
  denoiser = make_denoiser(lambda x_t, t: -0.1 * x_t, parameterization, schedule)
  bound = bpd_loop(schedule, denoiser, x_0, lambda t: jnp.cos(t + x_0), variance='fixedsmall')
  assert all(np.isfinite(values).all() for values in bound.values())
  np.testing.assert_array_equal(bound['prior_bpd'], 0)


def test_prior_bpd_is_the_kl_to_a_standard_normal():
  schedule = make_schedule(make_betas('linear', 100))
  x_0 = jnp.array([[[-1.0, 1.0, 0.5]], [[0.0, 0.0, 0.0]]])
  abar = schedule.alphas_cumprod[-1]
  kl = 0.5 * (abar * np.square(x_0).mean(axis=(1, 2)) + (1 - abar) - 1 - np.log(1 - abar))
  np.testing.assert_allclose(prior_bpd(schedule, x_0), kl / BITS, rtol=1e-5)


def test_total_is_the_sum_of_the_terms_and_the_prior(reference):
  arrays = reference('loops')
  network = reference_network('fixedlarge')
  bound = run_reference_loop(arrays, network, 'lin', Parameterization(), 'static')
  assert bound['vb'].shape == bound['mse'].shape == (2, 10)
  assert (bound['prior_bpd'] > 0).all()
  total = bound['vb'].sum(axis=1) + bound['prior_bpd']
  np.testing.assert_allclose(bound['total_bpd'], total, rtol=1e-6)


@pytest.mark.parametrize('clip', ['none', 'static'])
@pytest.mark.parametrize('near', [False, True])
@pytest.mark.parametrize('variance', VARIANCES)
@pytest.mark.parametrize('mean', ['eps', 'xstart', 'xprev'])
def test_terms_equal_the_original_programs(original, mean, variance, near, clip):
  arrays, schedule, x_t = original
  output = arrays[f'near_model_output/{mean}' if near else 'model_output']
  x_0, t = arrays['x0'], arrays['t']
  output = output[..., : 6 if variance == 'learned' else 3]
  prediction = predict(schedule, output, x_t, t, mean=mean, variance=variance, clip=clip)
  choices = dict(variance=Parameterization(mean, variance).fixed_variance)
  bpd = vb_terms_bpd(schedule, prediction, x_0, x_t, t, **choices)
  key = f'{"near/" if near else ""}{mean}/{variance}/clip{clip == "static":d}'
  expected = arrays[f'vb_terms_bpd/{key}/bpd']
  np.testing.assert_allclose(bpd[1:], expected[1:], rtol=1e-5)
  p_mean, _, p_log_variance = p_mean_variance(schedule, prediction, x_t, t, **choices)
  assert_decoder_bpd(bpd[:1], expected[:1], x_0[:1], p_mean[:1], p_log_variance[:1] / 2)


def test_prior_equals_the_original_programs(original):
  arrays, schedule, _ = original
  bpd = prior_bpd(schedule, arrays['x0'])
  # At T = 1000 the prior is the difference of numbers near 1 and their logarithms.
  np.testing.assert_allclose(bpd, arrays['prior_bpd'], rtol=1e-3)


def run_reference_loop(arrays, network, betas, parameterization, clip):
  q_noise = jnp.asarray(arrays['q_noise'])
  schedule = make_schedule(arrays[f'betas_{betas}'])
  denoiser = clipped(make_denoiser(network, parameterization, schedule), clip)

  @jax.jit
  def run(x_0):
    variance = parameterization.fixed_variance
    return bpd_loop(schedule, denoiser, x_0, lambda t: q_noise[t], variance=variance)

  return jax.tree.map(np.asarray, run(arrays['x0']))


def decoder_of(arrays, network, betas, parameterization, clip):
  """Mean, variance and log-variance of p(x_0 | x_1) in the reference loop."""
  schedule, t = make_schedule(arrays[f'betas_{betas}']), np.zeros(len(arrays['x0']), int)
  x_t = q_sample(schedule, arrays['x0'], t, arrays['q_noise'][0])
  prediction = clipped(make_denoiser(network, parameterization, schedule), clip)(x_t, t)
  return p_mean_variance(schedule, prediction, x_t, t, variance=parameterization.fixed_variance)


def assert_equals_reference_loop(bound, arrays, key, decoder):
  """Compares with the original's terms; `decoder` is p(x_0 | x_1), whose term is at t = 0."""
  expected = {name: arrays[f'{key}/{name}'] for name in ('terms_bpd', 'prior_bpd', 'mse')}
  expected['total_bpd'] = arrays[f'{key}/total_bpd'] - expected['terms_bpd'][:, 0]
  actual = {
    'terms_bpd': bound['vb'],
    'prior_bpd': bound['prior_bpd'],
    'mse': bound['mse'],
    'total_bpd': bound['total_bpd'] - bound['vb'][:, 0],
  }
  first, expected_first = actual['terms_bpd'][:, 0], expected['terms_bpd'][:, 0]
  mean, _, log_variance = decoder
  assert_decoder_bpd(first, expected_first, arrays['x0'], mean, log_variance / 2)
  actual['terms_bpd'], expected['terms_bpd'] = (
    actual['terms_bpd'][:, 1:],
    expected['terms_bpd'][:, 1:],
  )
  for name, values in actual.items():
    np.testing.assert_allclose(values, expected[name], rtol=1e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize('clip', ['none', 'static'])
@pytest.mark.parametrize('variance', VARIANCES)
@pytest.mark.parametrize(
  ('betas', 'mean'), [('lin', 'eps'), ('big', 'eps'), ('big', 'xstart'), ('big', 'xprev')]
)
def test_loop_equals_the_original_programs(reference, betas, mean, variance, clip):
  arrays = reference('loops')
  choices = arrays, reference_network(variance), betas, Parameterization(mean, variance), clip
  bound, decoder = run_reference_loop(*choices), decoder_of(*choices)
  key = f'analytic/{betas}/{mean}/{variance}/bpd_clip{clip == "static":d}'
  assert_equals_reference_loop(bound, arrays, key, decoder)


@pytest.fixture(scope='module')
def small_network(unet_small):
  """The original program's small network, compiled once."""
  return jax.jit(make_network(*unet_small))


@pytest.mark.parametrize(
  ('betas', 'variance'), [('lin', 'fixedlarge'), ('big', 'fixedlarge'), ('big', 'fixedsmall')]
)
def test_loop_with_the_network_equals_the_original_programs(
  reference, small_network, betas, variance
):
  arrays = reference('loops')
  choices = arrays, small_network, betas, Parameterization('eps', variance), 'static'
  bound, decoder = run_reference_loop(*choices), decoder_of(*choices)
  assert_equals_reference_loop(bound, arrays, f'unet/{betas}/eps/{variance}/bpd_clip1', decoder)


def test_strata_cut_all_timesteps_in_order_and_leave_the_first_alone():
  for num_timesteps in (1, 2, 10, 1000):
    for num_strata in {1, 2, 7, 32, num_timesteps}:
      if num_strata > num_timesteps:
        continue
      edges = timestep_strata(num_timesteps, num_strata)
      assert len(edges) == num_strata + 1
      assert (edges[0], edges[-1]) == (0, num_timesteps)
      assert (np.diff(edges) > 0).all()
      assert num_strata == 1 or edges[1] == 1
  for num_strata in (0, 11):
    with pytest.raises(UserError, match=rf'{num_strata} strata of 10 timesteps'):
      timestep_strata(10, num_strata)


def run_estimate(schedule, x_0, num_strata, seed=2):
  keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(len(x_0)))
  uniforms = jax.random.uniform(jax.random.key(seed + 1), (len(x_0), num_strata))

  @functools.partial(jax.jit, compiler_options=RUNS_LONG)
  def run(x_0):
    args = schedule, exact_denoiser(schedule, Parameterization()), x_0
    noise_fn = make_noise_fn(keys, x_0.shape[1:])
    return (
      bpd_estimate(*args, noise_fn, uniforms, variance='fixedlarge'),
      bpd_loop(*args, noise_fn, variance='fixedlarge'),
    )

  return jax.tree.map(np.asarray, run(x_0))


def test_no_sum_is_a_matrix_product():
  # By default, accelerators would round its factors to bfloat16 or TF32.
  x_0 = jnp.zeros((2, 3))
  denoiser = clipped(make_denoiser(lambda x_t, t: x_t, Parameterization(), SCHEDULE))
  args = SCHEDULE, denoiser, x_0, lambda t: x_0
  for bpd, more in ((bpd_loop, []), (bpd_estimate, [jnp.full((2, 4), 0.5)])):
    program = str(
      jax.make_jaxpr(lambda *more, bpd=bpd: bpd(*args, *more, variance='fixedlarge'))(*more)
    )
    assert 'exp' in program
    assert 'dot_general' not in program


def test_estimate_of_all_terms_is_the_loop():
  x_0 = gaussian_pixels(jax.random.key(0), (8, 32))
  estimate, loop = run_estimate(SCHEDULE, x_0, SCHEDULE.num_timesteps)
  assert (estimate['t'] == np.arange(SCHEDULE.num_timesteps)).all()
  for name in ('total_bpd', 'prior_bpd', 'vb', 'mse'):
    np.testing.assert_allclose(estimate[name], loop[name], rtol=1e-5)


def test_estimate_takes_each_term_from_its_stratum_with_the_noise_of_the_loop():
  x_0 = gaussian_pixels(jax.random.key(0), (8, 32))
  estimate, loop = run_estimate(SCHEDULE, x_0, 10)
  edges = timestep_strata(SCHEDULE.num_timesteps, 10)
  assert (estimate['t'] >= edges[:-1]).all()
  assert (estimate['t'] < edges[1:]).all()
  assert len(np.unique(estimate['t'][:, -1])) > 1  # drawn anew for each example
  for name in ('vb', 'mse'):
    expected = np.take_along_axis(loop[name], estimate['t'], axis=1)
    np.testing.assert_allclose(estimate[name], expected, rtol=1e-5)


@pytest.mark.parametrize('num_strata', [1, 5, 20])
def test_estimate_is_unbiased_and_its_error_is_that_of_independent_draws(num_strata):
  x_0 = gaussian_pixels(jax.random.key(0), (4096, 16))
  estimate, loop = run_estimate(SCHEDULE, x_0, num_strata)
  difference = estimate['total_bpd'] - loop['total_bpd']  # of the same images and noise
  error = difference.std(ddof=1) / np.sqrt(len(difference))
  assert error > 0
  assert abs(difference.mean()) < 4 * error


def test_more_strata_have_less_error():
  x_0 = gaussian_pixels(jax.random.key(0), (1024, 16))
  errors = []
  for num_strata in (5, 20, 80):
    estimate, loop = run_estimate(SCHEDULE, x_0, num_strata)
    errors.append(np.std(estimate['total_bpd'] - loop['total_bpd']))
  assert errors[1] < errors[0] / 2
  assert errors[2] < errors[1] / 2
