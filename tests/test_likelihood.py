"""The bound on Gaussian data, whose exact likelihood is known; then the original's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from ddpm_jax.diffusion import MEAN_TYPES, VAR_TYPES, p_mean_variance, q_sample
from ddpm_jax.likelihood import (
  bpd_estimate,
  bpd_loop,
  prior_bpd,
  timestep_strata,
  vb_terms_bpd,
)
from ddpm_jax.samplers import make_noise_fn
from ddpm_jax.schedules import make_betas, make_schedule
from tests.analytic import analytic
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


def exact_posterior(schedule):
  """For each t: the variances of x_t, of x_0 given x_t, and of x_{t-1} given x_t."""
  noise = 1 - schedule.alphas_cumprod
  total = schedule.alphas_cumprod * SCALE**2 + noise
  of_x_start = SCALE**2 * noise / total
  return (
    total,
    of_x_start,
    schedule.posterior_variance + schedule.posterior_mean_coef1**2 * of_x_start,
  )


def exact_denoise_fn(schedule, var_type):
  """E[eps | x_t] = sqrt(1 - abar) (x_t - sqrt(abar) MEAN) / Var(x_t), with the exact variance."""
  total, _, of_x_prev = exact_posterior(schedule)
  offset = jnp.asarray(schedule.sqrt_alphas_cumprod * MEAN, jnp.float32)
  gain = jnp.asarray(schedule.sqrt_one_minus_alphas_cumprod / total, jnp.float32)
  log_variance = jnp.asarray(np.log(of_x_prev), jnp.float32)

  def denoise_fn(x_t, t):
    eps = gain[t][:, None] * (x_t - offset[t][:, None])
    if var_type != 'learned':
      return eps
    return jnp.concatenate([eps, jnp.broadcast_to(log_variance[t][:, None], x_t.shape)], axis=-1)

  return denoise_fn


def run_bpd_loop(schedule, var_type, x_start):
  def noise_fn(t):
    return jax.random.normal(jax.random.fold_in(jax.random.key(1), t), x_start.shape)

  @jax.jit
  def run(x_start):
    return bpd_loop(
      schedule,
      exact_denoise_fn(schedule, var_type),
      x_start,
      noise_fn,
      mean_type='eps',
      var_type=var_type,
      clip_denoised=False,
    )

  return jax.tree.map(np.asarray, run(x_start))


def variance_mismatch(schedule, var_type):
  """KL, for each t, from a Gaussian of the right variance to one of var_type's, in bits."""
  log_variance = {
    'learned': np.log(exact_posterior(schedule)[2]),
    'fixedsmall': schedule.posterior_log_variance_clipped,
    'fixedlarge': schedule.fixedlarge_log_variance,
  }[var_type]
  # At t = 0 both are integrated over a pixel's bin, whose variance is (2 / 255)^2 / 12.
  bin_variance = np.where(np.arange(schedule.num_timesteps) == 0, (2 / 255) ** 2 / 12, 0)
  ratio = (exact_posterior(schedule)[2] + bin_variance) / (np.exp(log_variance) + bin_variance)
  return 0.5 * (ratio - 1 - np.log(ratio)) / BITS


@pytest.mark.parametrize('var_type', VAR_TYPES)
def test_bound_of_the_exact_denoiser_meets_the_exact_likelihood_from_above(var_type):
  x_start = gaussian_pixels(jax.random.key(0), (1024, 256))
  bound = run_bpd_loop(SCHEDULE, var_type, x_start)
  excess = bound['total_bpd'] - exact_bpd(x_start).mean(axis=-1)  # of the same pixels: less noise
  error = 4 * excess.std(ddof=1) / np.sqrt(len(excess))
  assert excess.mean() > -error
  # What remains is what a wrong variance costs, and nothing with the right one.
  expected = variance_mismatch(SCHEDULE, var_type).sum()
  assert error < 0.025 * (1 + expected)
  assert excess.mean() == pytest.approx(expected, abs=error + 0.01)


@pytest.mark.parametrize('var_type', VAR_TYPES)
def test_each_term_has_its_closed_form(var_type):
  x_start = MEAN + SCALE * jax.random.normal(jax.random.key(0), (400, 64))  # no levels: t > 0
  bound = run_bpd_loop(SCHEDULE, var_type, x_start)
  _, of_x_start, of_x_prev = exact_posterior(SCHEDULE)

  def assert_means(samples, expected):  # [400, T] and [T]
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    deviation = np.abs(samples.mean(axis=0) - expected)
    assert (deviation[1:] < 5 * error[1:] + 1e-6).all()

  assert_means(bound['mse'], of_x_start)
  # KL(q(x_{t-1} | x_t, x_0) || p), in expectation over x_0 given x_t.
  log_variance = {
    'learned': np.log(of_x_prev),
    'fixedsmall': SCHEDULE.posterior_log_variance_clipped,
    'fixedlarge': SCHEDULE.fixedlarge_log_variance,
  }[var_type]
  with np.errstate(divide='ignore'):
    log_ratio = log_variance - np.log(SCHEDULE.posterior_variance)
  kl = 0.5 * (of_x_prev / np.exp(log_variance) - 1 + log_ratio)
  assert_means(bound['vb'], kl / BITS)


def test_prior_bpd_is_the_kl_to_a_standard_normal():
  schedule = make_schedule(make_betas('linear', 100))
  x_start = jnp.array([[[-1.0, 1.0, 0.5]], [[0.0, 0.0, 0.0]]])
  abar = schedule.alphas_cumprod[-1]
  kl = 0.5 * (abar * np.square(x_start).mean(axis=(1, 2)) + (1 - abar) - 1 - np.log(1 - abar))
  np.testing.assert_allclose(prior_bpd(schedule, x_start), kl / BITS, rtol=1e-5)


def test_total_is_the_sum_of_the_terms_and_the_prior(reference):
  arrays = reference('loops')
  bound = run_reference_loop(arrays, analytic, 'lin', 'eps', 'fixedlarge', clip_denoised=True)
  assert bound['vb'].shape == bound['mse'].shape == (2, 10)
  assert (bound['prior_bpd'] > 0).all()
  total = bound['vb'].sum(axis=1) + bound['prior_bpd']
  np.testing.assert_allclose(bound['total_bpd'], total, rtol=1e-6)


@pytest.mark.parametrize('clip_denoised', [False, True])
@pytest.mark.parametrize('near', [False, True])
@pytest.mark.parametrize('var_type', VAR_TYPES)
@pytest.mark.parametrize('mean_type', MEAN_TYPES)
def test_terms_equal_the_original_programs(reference, mean_type, var_type, near, clip_denoised):
  arrays = reference('gaussian')
  output = arrays[f'near_model_output/{mean_type}' if near else 'model_output']
  schedule, x_t, t = make_schedule(arrays['betas']), arrays['q_sample'], arrays['t']
  output = output[..., : 6 if var_type == 'learned' else 3]
  choices = dict(mean_type=mean_type, var_type=var_type, clip_denoised=clip_denoised)
  bpd, _ = vb_terms_bpd(schedule, output, arrays['x0'], x_t, t, **choices)
  key = f'{"near/" if near else ""}{mean_type}/{var_type}/clip{clip_denoised:d}'
  expected = arrays[f'vb_terms_bpd/{key}/bpd']
  np.testing.assert_allclose(bpd[1:], expected[1:], rtol=1e-5)
  p = p_mean_variance(schedule, output, x_t, t, **choices)
  assert_decoder_bpd(bpd[:1], expected[:1], arrays['x0'][:1], p.mean[:1], p.log_variance[:1] / 2)


def test_prior_equals_the_original_programs(reference):
  arrays = reference('gaussian')
  bpd = prior_bpd(make_schedule(arrays['betas']), arrays['x0'])
  # At T = 1000 the prior is the difference of numbers near 1 and their logarithms.
  np.testing.assert_allclose(bpd, arrays['prior_bpd'], rtol=1e-3)


def run_reference_loop(arrays, net, betas, mean_type, var_type, *, clip_denoised):
  q_noise = jnp.asarray(arrays['q_noise'])

  @jax.jit
  def run(x_start):
    return bpd_loop(
      make_schedule(arrays[f'betas_{betas}']),
      net(var_type),
      x_start,
      lambda t: q_noise[t],
      mean_type=mean_type,
      var_type=var_type,
      clip_denoised=clip_denoised,
    )

  return jax.tree.map(np.asarray, run(arrays['x0']))


def decoder_of(arrays, net, betas, mean_type, var_type, *, clip_denoised):
  """p(x_0 | x_1) of the reference loop."""
  schedule, t = make_schedule(arrays[f'betas_{betas}']), np.zeros(len(arrays['x0']), int)
  x_t = q_sample(schedule, arrays['x0'], t, arrays['q_noise'][0])
  choices = dict(mean_type=mean_type, var_type=var_type, clip_denoised=clip_denoised)
  return p_mean_variance(schedule, net(var_type)(x_t, t), x_t, t, **choices)


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
  assert_decoder_bpd(first, expected_first, arrays['x0'], decoder.mean, decoder.log_variance / 2)
  actual['terms_bpd'], expected['terms_bpd'] = (
    actual['terms_bpd'][:, 1:],
    expected['terms_bpd'][:, 1:],
  )
  for name, values in actual.items():
    np.testing.assert_allclose(values, expected[name], rtol=1e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize('clip_denoised', [False, True])
@pytest.mark.parametrize('var_type', VAR_TYPES)
@pytest.mark.parametrize(
  ('betas', 'mean_type'), [('lin', 'eps'), ('big', 'eps'), ('big', 'xstart'), ('big', 'xprev')]
)
def test_loop_equals_the_original_programs(reference, betas, mean_type, var_type, clip_denoised):
  arrays = reference('loops')
  choices = arrays, analytic, betas, mean_type, var_type
  bound = run_reference_loop(*choices, clip_denoised=clip_denoised)
  decoder = decoder_of(*choices, clip_denoised=clip_denoised)
  key = f'analytic/{betas}/{mean_type}/{var_type}/bpd_clip{clip_denoised:d}'
  assert_equals_reference_loop(bound, arrays, key, decoder)


@pytest.mark.parametrize(
  ('betas', 'var_type'), [('lin', 'fixedlarge'), ('big', 'fixedlarge'), ('big', 'fixedsmall')]
)
def test_loop_with_the_network_equals_the_original_programs(reference, unet_small, betas, var_type):
  arrays = reference('loops')
  model, params = unet_small

  def net(var_type):
    return jax.jit(lambda x_t, t: model.apply({'params': params}, x_t, t))

  choices = arrays, net, betas, 'eps', var_type
  bound = run_reference_loop(*choices, clip_denoised=True)
  decoder = decoder_of(*choices, clip_denoised=True)
  assert_equals_reference_loop(bound, arrays, f'unet/{betas}/eps/{var_type}/bpd_clip1', decoder)


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
    with pytest.raises(ValueError, match=rf'{num_strata} strata of 10 timesteps'):
      timestep_strata(10, num_strata)


def run_estimate(schedule, x_start, num_strata, seed=2):
  keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(len(x_start)))
  uniforms = jax.random.uniform(jax.random.key(seed + 1), (len(x_start), num_strata))

  @jax.jit
  def run(x_start):
    args = schedule, exact_denoise_fn(schedule, 'fixedlarge'), x_start
    noise_fn = make_noise_fn(keys, x_start.shape[1:])
    choices = dict(mean_type='eps', var_type='fixedlarge', clip_denoised=False)
    return bpd_estimate(*args, noise_fn, uniforms, **choices), bpd_loop(*args, noise_fn, **choices)

  return jax.tree.map(np.asarray, run(x_start))


def test_no_sum_is_a_matrix_product():
  # By default, accelerators would round its factors to bfloat16 or TF32.
  x_start = jnp.zeros((2, 3))
  args = SCHEDULE, lambda x_t, t: x_t, x_start, lambda t: x_start
  choices = dict(mean_type='eps', var_type='fixedlarge', clip_denoised=True)
  for bpd, more in ((bpd_loop, []), (bpd_estimate, [jnp.full((2, 4), 0.5)])):
    program = str(jax.make_jaxpr(lambda *more, bpd=bpd: bpd(*args, *more, **choices))(*more))
    assert 'exp' in program
    assert 'dot_general' not in program


def test_estimate_of_all_terms_is_the_loop():
  x_start = gaussian_pixels(jax.random.key(0), (8, 32))
  estimate, loop = run_estimate(SCHEDULE, x_start, SCHEDULE.num_timesteps)
  assert (estimate['t'] == np.arange(SCHEDULE.num_timesteps)).all()
  for name in ('total_bpd', 'prior_bpd', 'vb', 'mse'):
    np.testing.assert_allclose(estimate[name], loop[name], rtol=1e-5)


def test_estimate_takes_each_term_from_its_stratum_with_the_noise_of_the_loop():
  x_start = gaussian_pixels(jax.random.key(0), (8, 32))
  estimate, loop = run_estimate(SCHEDULE, x_start, 10)
  edges = timestep_strata(SCHEDULE.num_timesteps, 10)
  assert (estimate['t'] >= edges[:-1]).all()
  assert (estimate['t'] < edges[1:]).all()
  assert len(np.unique(estimate['t'][:, -1])) > 1  # drawn anew for each example
  for name in ('vb', 'mse'):
    expected = np.take_along_axis(loop[name], estimate['t'], axis=1)
    np.testing.assert_allclose(estimate[name], expected, rtol=1e-5)


@pytest.mark.parametrize('num_strata', [1, 5, 20])
def test_estimate_is_unbiased_and_its_error_is_that_of_independent_draws(num_strata):
  x_start = gaussian_pixels(jax.random.key(0), (4096, 16))
  estimate, loop = run_estimate(SCHEDULE, x_start, num_strata)
  difference = estimate['total_bpd'] - loop['total_bpd']  # of the same images and noise
  error = difference.std(ddof=1) / np.sqrt(len(difference))
  assert error > 0
  assert abs(difference.mean()) < 4 * error


def test_more_strata_have_less_error():
  x_start = gaussian_pixels(jax.random.key(0), (1024, 16))
  errors = []
  for num_strata in (5, 20, 80):
    estimate, loop = run_estimate(SCHEDULE, x_start, num_strata)
    errors.append(np.std(estimate['total_bpd'] - loop['total_bpd']))
  assert errors[1] < errors[0] / 2
  assert errors[2] < errors[1] / 2
