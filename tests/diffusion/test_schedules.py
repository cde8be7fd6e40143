"""Schedules: Bayes' rule, the recursions behind the tables, and the original program's numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import (
  NoiseSchedule,
  Parameterization,
  make_betas,
  make_denoiser,
  make_schedule,
  refined,
  timestep_subsequence,
)
from ddpm_jax.diffusion.bound import prior_bpd
from ddpm_jax.diffusion.schedules import (
  SCHEDULES,
  SPACINGS,
  check_timesteps,
  default_choices,
  prior_bpd_range,
  respace,
  sigmas,
)
from ddpm_jax.errors import UserError

ORIGINAL_SCHEDULES = ('linear', 'quad', 'warmup10', 'warmup50', 'const', 'jsd')
TABLES = tuple(x.name for x in dataclasses.fields(NoiseSchedule) if x.name != 'times')


@pytest.mark.parametrize('num_timesteps', [50, 200])
def test_range_of_the_prior_is_that_of_the_bound(num_timesteps):
  s = make_schedule(make_betas('linear', num_timesteps))
  pixels = np.linspace(-1, 1, 21, dtype=np.float32)[:, None]
  bits = np.asarray(prior_bpd(s, pixels))
  np.testing.assert_allclose(prior_bpd_range(s), (bits.min(), bits.max()), rtol=1e-5)


@pytest.mark.parametrize('num_timesteps', [1, 2, 1000])
@pytest.mark.parametrize('name', SCHEDULES)
def test_posterior_is_bayes_rule(name, num_timesteps):
  s = make_schedule(make_betas(name, num_timesteps))
  # q(x_{t-1} | x_t, x_0) is the product of N(x_t; sqrt(alpha) x_{t-1}, beta) and
  # N(x_{t-1}; sqrt(abar') x_0, 1 - abar'), as functions of x_{t-1}: precisions add.
  beta, abar_prev = s.betas[1:], s.alphas_cumprod_prev[1:]
  variance = 1 / ((1 - beta) / beta + 1 / (1 - abar_prev))
  np.testing.assert_allclose(s.posterior_variance[1:], variance, rtol=1e-9)
  coef1 = variance * np.sqrt(abar_prev) / (1 - abar_prev)
  np.testing.assert_allclose(s.posterior_mean_coef1[1:], coef1, rtol=1e-9)
  coef2 = variance * np.sqrt(1 - beta) / beta
  np.testing.assert_allclose(s.posterior_mean_coef2[1:], coef2, rtol=1e-9)
  # At t = 0 x_{t-1} is x_0 itself.
  assert s.posterior_variance[0] == 0
  assert s.posterior_mean_coef1[0] == pytest.approx(1, rel=1e-12)
  assert s.posterior_mean_coef2[0] == 0


@pytest.mark.parametrize('name', SCHEDULES)
def test_single_steps_compose_to_the_marginal(name):
  s = make_schedule(make_betas(name, 1000))
  mean, variance = 1.0, 0.0  # of x_t given x_0 = 1, after x_t = sqrt(1 - beta) x_{t-1} + ...
  for t, beta in enumerate(s.betas):
    mean, variance = np.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
    assert s.sqrt_alphas_cumprod[t] == pytest.approx(mean, rel=1e-9)
    assert s.sqrt_one_minus_alphas_cumprod[t] == pytest.approx(np.sqrt(variance), rel=1e-9)


@pytest.mark.filterwarnings('ignore:divide by zero')  # jsd ends at beta = 1
@pytest.mark.parametrize('name', SCHEDULES)
def test_tables_obey_their_definitions(name):
  s = make_schedule(make_betas(name, 100))
  np.testing.assert_array_equal(s.alphas_cumprod_prev, [1, *s.alphas_cumprod[:-1]])
  np.testing.assert_allclose(s.alphas_cumprod, s.alphas_cumprod_prev * (1 - s.betas), rtol=1e-12)
  np.testing.assert_allclose(s.sqrt_alphas_cumprod**2, s.alphas_cumprod, rtol=1e-12)
  noise = 1 - s.alphas_cumprod
  np.testing.assert_allclose(s.sqrt_one_minus_alphas_cumprod**2, noise, rtol=1e-12)
  np.testing.assert_allclose(np.exp(s.log_one_minus_alphas_cumprod), noise, rtol=1e-12)
  np.testing.assert_allclose(s.sqrt_recip_alphas_cumprod**2, 1 / s.alphas_cumprod, rtol=1e-12)
  np.testing.assert_allclose(s.sqrt_recipm1_alphas_cumprod**2, 1 / s.alphas_cumprod - 1, rtol=1e-9)
  assert ((s.posterior_variance < s.betas) | (s.betas == 1)).all()


@pytest.mark.parametrize('name', SCHEDULES)
def test_log_variances_take_the_second_posterior_variance_for_the_first(name):
  s = make_schedule(make_betas(name, 100))
  second = np.log(s.posterior_variance[1])
  assert s.posterior_log_variance_clipped[0] == s.fixedlarge_log_variance[0] == second
  np.testing.assert_allclose(
    np.exp(s.posterior_log_variance_clipped[1:]), s.posterior_variance[1:], rtol=1e-12
  )
  np.testing.assert_allclose(np.exp(s.fixedlarge_log_variance[1:]), s.betas[1:], rtol=1e-12)


@pytest.mark.parametrize('prefix', ['', 'alt/'])
@pytest.mark.parametrize('name', ORIGINAL_SCHEDULES)
def test_tables_equal_the_original_programs(reference, name, prefix):
  arrays = reference('schedules')
  betas = make_betas(
    name,
    int(arrays[f'{prefix}T']),
    beta_start=float(arrays[f'{prefix}beta_start']),
    beta_end=float(arrays[f'{prefix}beta_end']),
  )
  schedule = make_schedule(betas)
  for field in TABLES:
    table = getattr(schedule, field)
    assert table.dtype == np.float64
    expected = arrays[f'{prefix}{name}/{field}']
    np.testing.assert_allclose(table, expected, rtol=1e-12, err_msg=field)


@pytest.mark.parametrize('name', ORIGINAL_SCHEDULES)
def test_first_class_of_the_original_differs_in_the_first_log_variance_only(reference, name):
  # Its log(max(variance, 1e-20)) is used at t = 0 by nothing but a decoder it does not have.
  expected = reference('schedules')[f'{name}/v1_posterior_log_variance_clipped_f32']
  actual = make_schedule(make_betas(name, 1000)).posterior_log_variance_clipped
  np.testing.assert_allclose(actual[1:], expected[1:], rtol=1e-6)
  assert expected[0] == pytest.approx(np.log(1e-20), rel=1e-6)


@pytest.mark.parametrize('num_timesteps', [50, 1000, 4000])
def test_cosine_follows_its_formula(num_timesteps):
  betas = make_betas('cosine', num_timesteps)

  def f(t):  # Eq. 17, Nichol & Dhariwal 2021, with t from 0 to T
    return np.cos((t / num_timesteps + 0.008) / 1.008 * np.pi / 2) ** 2

  t = np.arange(1, num_timesteps + 1)
  unclipped = betas < 0.999
  assert unclipped[:-1].all()
  np.testing.assert_allclose(
    np.cumprod(1 - betas)[unclipped], (f(t) / f(0))[unclipped], rtol=1e-9, atol=1e-15
  )
  assert betas[-1] == 0.999
  assert (np.diff(betas) > 0).all()


def test_scaled_betas_leave_as_much_signal_whatever_the_number_of_timesteps():
  linear = make_betas('linear', 1000, beta_start=2e-4, beta_end=0.03)
  np.testing.assert_array_equal(
    make_betas('linear_scaled', 1000, beta_start=2e-4, beta_end=0.03), linear
  )
  log_signal = [np.log1p(-make_betas('linear_scaled', n)).sum() for n in (100, 1000, 4000)]
  np.testing.assert_allclose(log_signal, log_signal[1], rtol=0.1)
  np.testing.assert_allclose(make_betas('linear_scaled', 4000)[[0, -1]], [2.5e-5, 0.005])
  few = make_betas('linear_scaled', 10)  # whose last betas would be 1 and more
  assert few[0] == 0.01
  assert few[-1] == few.max() == 0.999


@pytest.mark.parametrize('num_timesteps', [50, 1000])
def test_sigmoid_follows_its_formula(num_timesteps):
  u = np.arange(1, num_timesteps + 1) / num_timesteps
  start, end = 1 / (1 + np.exp(3.0)), 1 / (1 + np.exp(-3.0))  # Chen 2023
  expected = (end - 1 / (1 + np.exp(-(u * 6 - 3)))) / (end - start)
  betas = make_betas('sigmoid', num_timesteps)
  np.testing.assert_allclose(np.cumprod(1 - betas)[:-1], expected[:-1], rtol=1e-9)
  assert betas[-1] == 0.999


@pytest.mark.filterwarnings('ignore:divide by zero')
@pytest.mark.parametrize('name', [name for name in SCHEDULES if name.endswith('_zero_snr')])
def test_zero_snr_is_algorithm_1_of_its_paper(name):
  before = np.sqrt(np.cumprod(1 - make_betas(name.removesuffix('_zero_snr'), 100)))
  after = make_schedule(make_betas(name, 100)).sqrt_alphas_cumprod
  assert after[-1] == 0
  assert after[0] == pytest.approx(before[0], rel=1e-12)
  # A line in the one before.
  slope = before[0] / (before[0] - before[-1])
  np.testing.assert_allclose(after, slope * (before - before[-1]), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(('levels', 'beta_start'), [(4096, None), (65536, None), (None, 1e-6)])
def test_logsnr_is_even_from_the_width_of_a_level_to_the_papers_end(levels, beta_start):
  name, start = default_choices(levels)
  assert name == 'logsnr'
  assert start == pytest.approx(beta_start or (2 / (levels - 1)) ** 2)
  betas = make_betas(name, 1000, beta_start=start)
  assert betas[0] == pytest.approx(start, rel=1e-6)
  schedule = make_schedule(betas, decoder_variance=betas[0])
  signal = schedule.alphas_cumprod
  assert signal[-1] == pytest.approx(4e-5, rel=1e-6)
  steps = np.diff(np.log(signal / (1 - signal)))
  np.testing.assert_allclose(steps, steps[0], rtol=1e-4)
  for table in (schedule.posterior_log_variance_clipped, schedule.fixedlarge_log_variance):
    assert table[0] == pytest.approx(np.log(start), rel=1e-6)


@pytest.mark.parametrize('levels', [2, 16, 256])
def test_the_papers_schedule_is_the_default_for_pictures_and_fewer_levels(levels):
  assert default_choices(levels) == ('linear', 1e-4)


def test_cosine_starts_below_the_width_of_a_pixels_bin():
  # What the offset s was chosen for: Nichol & Dhariwal 2021, Sec. 3.2.
  assert 0.5 / 127.5 < np.sqrt(make_betas('cosine', 1000)[0]) < 1 / 127.5


def test_schedules_have_the_ends_asked_for():
  for name in ('linear', 'quad', 'warmup10', 'warmup50'):
    betas = make_betas(name, 100, beta_start=0.01, beta_end=0.5)
    np.testing.assert_allclose(betas[[0, -1]], [0.01, 0.5], rtol=1e-12)
  np.testing.assert_array_equal(make_betas('const', 3, beta_end=0.5), [0.5, 0.5, 0.5])
  np.testing.assert_allclose(make_betas('jsd', 4), [1 / 4, 1 / 3, 1 / 2, 1], rtol=1e-12)


@pytest.mark.parametrize('name', ORIGINAL_SCHEDULES)
def test_one_timestep_has_its_beta_in_place_of_the_missing_second_variance(name):
  s = make_schedule(make_betas(name, 1))
  assert s.num_timesteps == 1
  assert s.posterior_log_variance_clipped == s.fixedlarge_log_variance == np.log(s.betas)


def test_schedule_is_a_tree_of_its_tables():
  schedule = make_schedule(make_betas('linear', 10))
  assert len(jax.tree.leaves(schedule)) == len(TABLES)
  halved = jax.tree.map(lambda table: table[:5], schedule)
  assert isinstance(halved, NoiseSchedule)
  assert halved.num_timesteps == 5


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'name': 'sqrt'}, f"schedule is 'sqrt'.*{', '.join(SCHEDULES)}"),
    ({'num_timesteps': 0}, 'num_timesteps is 0'),
    ({'beta_start': 0.0}, r'beta_start is 0\.0'),
    ({'beta_end': 1.5}, r'beta_end is 1\.5'),
    ({'beta_end': float('nan')}, 'beta_end is nan'),
  ],
)
def test_make_betas_refuses(arguments, message):
  with pytest.raises(UserError, match=message):
    make_betas(**{'name': 'linear', 'num_timesteps': 10, **arguments})


@pytest.mark.parametrize('betas', [[], [[0.1]], [0.1, 0.0], [0.1, 1.5], [0.1, np.nan]])
def test_make_schedule_refuses(betas):
  with pytest.raises(UserError, match='betas'):
    make_schedule(betas)


LINEAR = make_schedule(make_betas('linear', 1000))


@pytest.mark.parametrize('betas', ['linear', 'cosine'])
@pytest.mark.parametrize('spacing', SPACINGS)
def test_subsequences_are_distinct_timesteps_and_all_of_them_at_last(spacing, betas):
  for total in (1, 2, 37):
    schedule = make_schedule(make_betas(betas, total))
    for num_steps in range(1, total + 1):
      timesteps = timestep_subsequence(schedule, num_steps, spacing)
      assert timesteps.dtype == np.int64
      assert len(timesteps) == num_steps
      assert (np.diff(timesteps) > 0).all()
      assert timesteps[0] >= 0
      assert timesteps[-1] < total
    np.testing.assert_array_equal(timesteps, np.arange(total))


def test_subsequences_lie_where_their_names_say():
  def subsequence(spacing, num_steps=5):
    return timestep_subsequence(LINEAR, num_steps, spacing)

  assert subsequence('linspace').tolist() == [0, 250, 500, 749, 999]
  assert subsequence('leading').tolist() == [0, 200, 400, 600, 800]
  assert subsequence('leading', 501)[[0, 1, -1]].tolist() == [0, 2, 998]
  assert subsequence('trailing').tolist() == [199, 399, 599, 799, 999]
  np.testing.assert_allclose(np.sqrt(subsequence('quad')), np.linspace(0, 31.6, 5), atol=0.1)
  for spacing in SPACINGS:
    assert subsequence(spacing, 1).tolist() == ([0] if spacing == 'leading' else [999])


def test_karras_is_edms_discretisation_rounded_to_timesteps():
  num_steps, rho = 20, 7
  table = sigmas(LINEAR)
  np.testing.assert_allclose(table**2, (1 - LINEAR.alphas_cumprod) / LINEAR.alphas_cumprod)
  # Eq. 5, Karras et al. 2022: from sigma_max = 80 down to sigma_min.
  i = np.arange(num_steps)
  ends = 80 ** (1 / rho), table[0] ** (1 / rho)
  exact = (ends[0] + i / (num_steps - 1) * (ends[1] - ends[0])) ** rho
  timesteps = timestep_subsequence(LINEAR, num_steps, 'karras')[::-1]
  for timestep, sigma in zip(timesteps, exact, strict=True):
    distances = np.abs(np.log(table) - np.log(sigma))
    assert timestep in np.argsort(distances)[:2]
  # Without a sigma of 80, it goes to the end.
  mild = make_schedule(make_betas('linear', 100, beta_end=0.05))
  assert timestep_subsequence(mild, 5, 'karras')[[0, -1]].tolist() == [0, 99]


def test_logsnr_is_even_in_the_logarithm():
  timesteps = timestep_subsequence(LINEAR, 6, 'logsnr')
  steps = np.diff(np.log(sigmas(LINEAR)[timesteps]))
  # A timestep is a large part of a step near t = 0: 0.6 from t = 0 to 1.
  np.testing.assert_allclose(steps, steps.mean(), atol=0.1)


@pytest.mark.parametrize('name', SCHEDULES)
def test_respaced_process_keeps_the_marginals(name):
  schedule = make_schedule(make_betas(name, 100))
  timesteps = np.array([2, 3, 50, 99])
  kept = respace(schedule, timesteps)
  np.testing.assert_allclose(
    kept.alphas_cumprod, schedule.alphas_cumprod[timesteps], rtol=1e-12, atol=1e-15
  )
  # A longer step is the single ones one after the other.
  alphas = 1 - schedule.betas
  expected = [np.prod(alphas[:3]), alphas[3], np.prod(alphas[4:51]), np.prod(alphas[51:])]
  np.testing.assert_allclose(1 - kept.betas, expected, rtol=1e-9, atol=1e-12)
  whole = respace(schedule, np.arange(100))
  np.testing.assert_allclose(whole.betas, schedule.betas, rtol=1e-9)


@pytest.mark.parametrize('name', ['linear', 'cosine', 'logsnr'])
def test_refined_tables_have_the_timesteps_and_the_same_process_between_them(name):
  schedule = make_schedule(make_betas(name, 50))
  fine = refined(schedule, 4)
  np.testing.assert_array_equal(fine.times, np.arange(197) / 4)
  for table in TABLES:
    of_whole = getattr(fine, table)[::4]
    np.testing.assert_allclose(of_whole, getattr(schedule, table), rtol=1e-11, atol=1e-15)
  # A row is a step of length 1: it goes out from the row that lies 4 before it.
  np.testing.assert_allclose(fine.alphas_cumprod_prev[4:], fine.alphas_cumprod[:-4], rtol=1e-12)
  np.testing.assert_allclose(1 - fine.betas, fine.alphas_cumprod / fine.alphas_cumprod_prev)
  assert (np.diff(fine.alphas_cumprod) < 0).all()
  assert (np.diff(fine.alphas_cumprod_prev) < 0).all()
  log_snr = np.log(fine.alphas_cumprod / (1 - fine.alphas_cumprod))
  np.testing.assert_allclose(log_snr[2::4], (log_snr[0:-4:4] + log_snr[4::4]) / 2, rtol=1e-6)


def test_a_network_is_told_the_real_time_of_a_refined_row():
  fine = refined(LINEAR, 8)
  told = []
  meaning = Parameterization('eps')
  denoiser = make_denoiser(lambda x, t: told.append(t) or x, meaning, fine)
  denoiser(jnp.ones((2, 1)), jnp.array([4, 96]))
  assert told[0].tolist() == [0.5, 12.0]
  expected = np.log(sigmas(fine)[[4, 96]]) / 4
  np.testing.assert_allclose(Parameterization('edm').time(fine, jnp.array([4, 96])), expected, 1e-6)


def test_spacings_of_refined_times_lie_closer_to_where_they_belong():
  fine = refined(LINEAR, 16)
  for spacing in ('logsnr', 'karras'):
    warp = np.log if spacing == 'logsnr' else (lambda sigma: sigma ** (1 / 7))

    def unevenness(schedule, warp=warp, spacing=spacing):
      places = warp(sigmas(schedule)[timestep_subsequence(schedule, 12, spacing)])
      return np.ptp(np.diff(places)) / np.diff(places).mean()

    assert unevenness(fine) < 0.3 * unevenness(LINEAR)


def test_refined_refuses():
  with pytest.raises(UserError, match=r'sample\.timestep_parts is 0; it must be at least 1'):
    refined(LINEAR, 0)
  with pytest.raises(UserError, match='schedule with a last beta of 1'):
    refined(make_schedule(make_betas('linear_zero_snr', 20)), 2)


@pytest.mark.filterwarnings('ignore:divide by zero')
@pytest.mark.parametrize(
  ('num_steps', 'spacing', 'message'),
  [
    (5, 'cubic', f"sample.spacing is 'cubic'; it must be one of {', '.join(SPACINGS)}"),
    (0, 'quad', r'sample.num_steps is 0; it must lie in \[1, 20\], the diffusion.num_timesteps'),
    (21, 'quad', r'sample.num_steps is 21; it must lie in \[1, 20\]'),
    (5, 'karras', 'ends at beta 1: use linspace'),
    (5, 'logsnr', 'ends at beta 1: use linspace'),
  ],
)
def test_subsequence_refuses(num_steps, spacing, message):
  with pytest.raises(UserError, match=message):
    timestep_subsequence(make_schedule(make_betas('jsd', 20)), num_steps, spacing)


def test_timesteps_are_checked():
  assert check_timesteps(LINEAR, [0, 999]).tolist() == [0, 999]
  with pytest.raises(UserError, match='must increase strictly'):
    check_timesteps(LINEAR, [5, 5])


@pytest.mark.parametrize('end', [4e-5, 1e-2])
def test_logsnr_ends_at_the_signal_that_is_asked_for(end):
  betas = make_betas('logsnr', 200, beta_start=1e-6, end_signal=end)
  assert np.prod(1 - betas) == pytest.approx(end)
  assert betas[0] == pytest.approx(1e-6)
