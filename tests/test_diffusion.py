"""The process: moments, Bayes' rule and inverses first, then the original program's numbers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import diffusion
from ddpm_jax.diffusion import LOSS_TYPES, MEAN_TYPES, VAR_TYPES
from ddpm_jax.schedules import make_betas, make_schedule
from tests.decoder import assert_decoder_bpd

MEAN_VAR = list(itertools.product(MEAN_TYPES, VAR_TYPES))
SCHEDULE = make_schedule(make_betas('linear', 1000))


@pytest.fixture
def example():
  """Returns x_start, noise, t and x_t for a batch of five, each [5, 3, 4, 2]."""
  rng = np.random.default_rng(0)
  x_start = rng.uniform(-1, 1, (5, 3, 4, 2)).astype(np.float32)
  noise = rng.standard_normal(x_start.shape, np.float32)
  t = np.array([0, 1, 10, 500, 999])
  return x_start, noise, t, diffusion.q_sample(SCHEDULE, x_start, t, noise)


def truth(mean_type, x_start, noise, t, x_t):
  """What a network that knew x_0 would return."""
  return {
    'eps': noise,
    'xstart': x_start,
    'xprev': diffusion.q_posterior_mean_variance(SCHEDULE, x_start, x_t, t)[0],
  }[mean_type]


def column(values, like):
  return values.reshape(-1, *[1] * (like.ndim - 1))


@pytest.mark.parametrize('t', [0, 9, 999])
def test_q_sample_has_the_moments_of_eq_4(t):
  count = 100_000
  x_start = jnp.broadcast_to(jnp.array([-1.0, 0.5]), (count, 2))
  noise = jax.random.normal(jax.random.key(t), x_start.shape)
  t = jnp.full(count, t)
  x_t = np.asarray(diffusion.q_sample(SCHEDULE, x_start, t, noise))
  mean, variance, log_variance = diffusion.q_mean_variance(SCHEDULE, x_start, t)
  std_error = np.sqrt(variance[0] / count)
  np.testing.assert_allclose(x_t.mean(axis=0), mean[0], atol=5 * std_error[0])
  np.testing.assert_allclose(x_t.var(axis=0) / variance[0], 1, atol=5 * np.sqrt(2 / count))
  np.testing.assert_allclose(np.exp(log_variance), variance, rtol=1e-5)


def test_posterior_is_bayes_rule(example):
  x_start, _, t, x_t = example
  t, x_start, x_t = t[1:], x_start[1:], x_t[1:]  # at t = 0 it is a point
  mean, variance, log_variance = diffusion.q_posterior_mean_variance(SCHEDULE, x_start, x_t, t)
  beta = column(SCHEDULE.betas[t], x_t)
  abar_prev = column(SCHEDULE.alphas_cumprod[t - 1], x_t)
  precision = (1 - beta) / beta + 1 / (1 - abar_prev)
  from_x_t = np.sqrt(1 - beta) * x_t / beta
  from_x_start = np.sqrt(abar_prev) * x_start / (1 - abar_prev)
  np.testing.assert_allclose(mean, (from_x_t + from_x_start) / precision, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(variance, 1 / precision, rtol=1e-5)
  np.testing.assert_allclose(log_variance, -np.log(precision), rtol=1e-5)


def test_posterior_at_the_first_step_is_x_start(example):
  x_start, _, _, x_t = example
  t = np.zeros(5, int)
  mean, variance, log_variance = diffusion.q_posterior_mean_variance(SCHEDULE, x_start, x_t, t)
  np.testing.assert_allclose(mean, x_start, rtol=1e-6)
  assert (variance == 0).all()
  assert jnp.isfinite(log_variance).all()


@pytest.mark.parametrize('mean_type', MEAN_TYPES)
def test_the_true_prediction_gives_x_start_and_the_posterior_mean(example, mean_type):
  x_start, noise, t, x_t = example
  p = diffusion.p_mean_variance(
    SCHEDULE,
    truth(mean_type, x_start, noise, t, x_t),
    x_t,
    t,
    mean_type=mean_type,
    var_type='fixedsmall',
    clip_denoised=False,
  )
  # x_0 is x_t over sqrt(alphas_cumprod), or xprev over coef1: rounding grows by as much.
  gain = 1 / SCHEDULE.sqrt_alphas_cumprod + 1 / SCHEDULE.posterior_mean_coef1
  assert (np.abs(p.pred_xstart - x_start) < 1e-6 * column(gain[t], x_t)).all()
  mean, variance, log_variance = diffusion.q_posterior_mean_variance(SCHEDULE, x_start, x_t, t)
  np.testing.assert_allclose(p.mean, mean, atol=2e-6)
  np.testing.assert_array_equal(p.variance, np.broadcast_to(variance, x_t.shape))
  np.testing.assert_array_equal(p.log_variance, np.broadcast_to(log_variance, x_t.shape))


def test_eps_prediction_gives_the_mean_of_eq_11(example):
  _, noise, t, x_t = example
  eps = noise + 0.3
  p = diffusion.p_mean_variance(
    SCHEDULE, eps, x_t, t, mean_type='eps', var_type='fixedlarge', clip_denoised=False
  )
  beta, abar = column(SCHEDULE.betas[t], x_t), column(SCHEDULE.alphas_cumprod[t], x_t)
  expected = (x_t - beta / np.sqrt(1 - abar) * eps) / np.sqrt(1 - beta)
  np.testing.assert_allclose(p.mean, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(p.variance, np.broadcast_to(beta, x_t.shape), rtol=1e-6)


def test_fixed_variances_are_the_ends_of_the_range_of_sec_3_2(example):
  _, noise, t, x_t = example
  kwargs = {'mean_type': 'eps', 'clip_denoised': True}
  small = diffusion.p_mean_variance(SCHEDULE, noise, x_t, t, var_type='fixedsmall', **kwargs)
  large = diffusion.p_mean_variance(SCHEDULE, noise, x_t, t, var_type='fixedlarge', **kwargs)
  np.testing.assert_array_equal(small.mean, large.mean)
  assert (small.variance < large.variance).all()


@pytest.mark.parametrize('mean_type', MEAN_TYPES)
def test_clipping_bounds_pred_xstart_and_the_mean_that_follows_from_it(example, mean_type):
  _, noise, t, x_t = example
  kwargs = {'mean_type': mean_type, 'var_type': 'fixedsmall'}
  p = diffusion.p_mean_variance(SCHEDULE, 5 * noise, x_t, t, clip_denoised=True, **kwargs)
  assert np.abs(p.pred_xstart).max() == 1
  expected = 5 * noise
  if mean_type != 'xprev':
    expected = diffusion.q_posterior_mean_variance(SCHEDULE, p.pred_xstart, x_t, t)[0]
  np.testing.assert_array_equal(p.mean, expected)


@pytest.mark.parametrize(('mean_type', 'var_type'), MEAN_VAR)
def test_p_sample_adds_noise_of_its_variance_but_at_the_first_step(example, mean_type, var_type):
  _, noise, t, x_t = example
  output = np.concatenate([noise] * (2 if var_type == 'learned' else 1), axis=-1)
  kwargs = {'mean_type': mean_type, 'var_type': var_type, 'clip_denoised': True}
  p = diffusion.p_mean_variance(SCHEDULE, output, x_t, t, **kwargs)
  sample, pred_xstart = diffusion.p_sample(SCHEDULE, output, x_t, t, 2 * noise, **kwargs)
  std = np.exp(0.5 * np.asarray(p.log_variance))
  np.testing.assert_allclose(sample[1:], (p.mean + std * 2 * noise)[1:], rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(sample[0], p.mean[0])
  np.testing.assert_array_equal(pred_xstart, p.pred_xstart)


@pytest.mark.parametrize('mean_type', MEAN_TYPES)
def test_mse_is_the_mean_square_of_the_error_in_what_is_predicted(example, mean_type):
  x_start, noise, t, x_t = example
  error = np.arange(1, 6, dtype=np.float32)  # one size an example
  target = truth(mean_type, x_start, noise, t, x_t)
  losses = diffusion.training_losses(
    SCHEDULE,
    lambda x_t, t: target + column(error, target),
    x_start,
    t,
    noise,
    mean_type=mean_type,
    var_type='fixedlarge',
    loss_type='mse',
  )
  np.testing.assert_allclose(losses, error**2, rtol=1e-5)


@pytest.mark.parametrize('var_type', ['fixedsmall', 'fixedlarge'])
def test_kl_of_eps_is_the_mse_weighted_as_in_eq_12(example, var_type):
  x_start, noise, t, _ = example
  x_start, noise, t = x_start[1:], noise[1:], t[1:]
  kl, perfect, mse = (
    diffusion.training_losses(
      SCHEDULE,
      lambda x_t, t, error=error: noise + error,
      x_start,
      t,
      noise,
      mean_type='eps',
      var_type=var_type,
      loss_type=loss_type,
    )
    for error, loss_type in ((2.0, 'kl'), (0.0, 'kl'), (2.0, 'mse'))
  )
  beta, abar = SCHEDULE.betas[t], SCHEDULE.alphas_cumprod[t]
  variance = beta if var_type == 'fixedlarge' else SCHEDULE.posterior_variance[t]
  weight = beta**2 / (2 * variance * (1 - beta) * (1 - abar)) / np.log(2)
  np.testing.assert_allclose(kl - perfect, weight * mse, rtol=1e-3)


@pytest.mark.parametrize('loss_type', LOSS_TYPES)
@pytest.mark.parametrize('shape', [(5, 24), (5, 12, 2), (5, 1, 3, 4, 2)])
def test_shapes_other_than_images_give_the_same_losses(example, shape, loss_type):
  x_start, noise, t, _ = example

  def losses(shape):
    return diffusion.training_losses(
      SCHEDULE,
      lambda x_t, t: jnp.tanh(x_t),
      x_start.reshape(shape),
      t,
      noise.reshape(shape),
      mean_type='eps',
      var_type='fixedlarge',
      loss_type=loss_type,
    )

  np.testing.assert_allclose(losses(shape), losses(x_start.shape), rtol=1e-5)


@pytest.mark.parametrize(('mean_type', 'var_type'), MEAN_VAR)
def test_schedule_may_be_an_argument_of_a_compiled_function(example, mean_type, var_type):
  x_start, noise, t, x_t = example
  target = truth(mean_type, x_start, noise, t, x_t) + 0.1 * noise[::-1]
  output = np.concatenate([target, -5 + noise], -1) if var_type == 'learned' else target

  def everything(schedule, x_start, t, noise):
    kwargs = {'mean_type': mean_type, 'var_type': var_type}
    losses = diffusion.training_losses(
      schedule, lambda x_t, t: output, x_start, t, noise, loss_type='kl', **kwargs
    )
    p = diffusion.p_mean_variance(schedule, output, x_t, t, clip_denoised=True, **kwargs)
    return losses, p, diffusion.q_mean_variance(schedule, x_start, t)

  actual = jax.jit(everything)(SCHEDULE, x_start, t, noise)
  expected = everything(SCHEDULE, x_start, t, noise)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected
  )
  np.testing.assert_allclose(actual[2][1], expected[2][1], rtol=1e-5)  # variances start at 1e-4


@pytest.mark.parametrize('log_variance', [-100.0, -80.0, -8.0, 0.0, 100.0])
@pytest.mark.parametrize('mean_type', MEAN_TYPES)
def test_kl_loss_has_finite_gradients_for_any_learned_variance(example, mean_type, log_variance):
  x_start, noise, t, x_t = example
  if log_variance == -100.0:
    t = np.zeros_like(t)  # a KL to a variance of e^-100 is itself beyond float32
  prediction = truth(mean_type, x_start, noise, t, x_t) + 0.1
  output = jnp.concatenate([prediction, jnp.full_like(prediction, log_variance)], axis=-1)
  assert_finite_kl_gradient(example, t, output, mean_type, 'learned')


@pytest.mark.parametrize('var_type', ['fixedsmall', 'fixedlarge'])
@pytest.mark.parametrize('mean_type', MEAN_TYPES)
def test_kl_loss_has_finite_gradients_for_any_prediction(example, mean_type, var_type):
  x_start, noise, t, x_t = example
  for error in (0.0, 0.1, 1e4):
    output = truth(mean_type, x_start, noise, t, x_t) + error
    assert_finite_kl_gradient(example, t, output, mean_type, var_type)


def assert_finite_kl_gradient(example, t, output, mean_type, var_type):
  x_start, noise, _, _ = example

  def loss(output):
    return diffusion.training_losses(
      SCHEDULE,
      lambda x_t, t: output,
      x_start,
      t,
      noise,
      mean_type=mean_type,
      var_type=var_type,
      loss_type='kl',
    ).sum()

  value, gradient = jax.value_and_grad(loss)(output)
  assert jnp.isfinite(value)
  assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize(
  ('kwargs', 'message'),
  [
    ({'mean_type': 'score'}, "mean_type is 'score'.*eps, xstart, xprev"),
    ({'var_type': 'fixed'}, "var_type is 'fixed'.*fixedsmall, fixedlarge, learned"),
    ({'loss_type': 'l1'}, "loss_type is 'l1'.*mse, kl"),
    ({'var_type': 'learned', 'loss_type': 'mse'}, 'var_type=learned; use loss_type=kl'),
    ({'var_type': 'learned'}, r'returned \(5, 3, 4, 2\).*learned needs 4 channels'),
  ],
)
def test_training_losses_refuses(example, kwargs, message):
  x_start, noise, t, _ = example
  kwargs = {'mean_type': 'eps', 'var_type': 'fixedlarge', 'loss_type': 'kl', **kwargs}
  with pytest.raises(ValueError, match=message):
    diffusion.training_losses(SCHEDULE, lambda x_t, t: x_t, x_start, t, noise, **kwargs)


@pytest.mark.parametrize('var_type', ['fixedsmall', 'fixedlarge'])
def test_broadcasting_model_output_is_refused(example, var_type):
  _, _, t, x_t = example
  with pytest.raises(ValueError, match='needs 2 channels'):
    diffusion.p_mean_variance(
      SCHEDULE, x_t[..., :1], x_t, t, mean_type='eps', var_type=var_type, clip_denoised=True
    )


@pytest.fixture
def original(reference):
  """Returns the arrays of gaussian.npz, their schedule, and x_t."""
  arrays = reference('gaussian')
  return arrays, make_schedule(arrays['betas']), arrays['q_sample']


def test_q_equals_the_original_programs(original, relative_error):
  arrays, schedule, x_t = original
  x_start, t = arrays['x0'], arrays['t']
  assert relative_error(diffusion.q_sample(schedule, x_start, t, arrays['noise']), x_t) < 1e-6
  for function, names in (
    ('q_mean_variance', ('mean', 'variance', 'log_variance')),
    ('q_posterior_mean_variance', ('mean', 'variance', 'log_variance_clipped')),
  ):
    arguments = (x_start, t) if function == 'q_mean_variance' else (x_start, x_t, t)
    results = getattr(diffusion, function)(schedule, *arguments)
    for name, result in zip(names, results, strict=True):
      np.testing.assert_allclose(result, arrays[f'{function}/{name}'], rtol=1e-5, atol=1e-6)
  pred_xstart = diffusion.predict_xstart_from_eps(schedule, x_t, t, arrays['noise'])
  assert relative_error(pred_xstart, arrays['predict_xstart_from_eps']) < 1e-6


@pytest.mark.parametrize('clip_denoised', [False, True])
@pytest.mark.parametrize(('mean_type', 'var_type'), MEAN_VAR)
def test_p_equals_the_original_programs(
  original, relative_error, mean_type, var_type, clip_denoised
):
  arrays, schedule, x_t = original
  output = arrays['model_output'][..., : 6 if var_type == 'learned' else 3]
  kwargs = {'mean_type': mean_type, 'var_type': var_type, 'clip_denoised': clip_denoised}
  key = f'{mean_type}/{var_type}/clip{clip_denoised:d}'
  p = diffusion.p_mean_variance(schedule, output, x_t, arrays['t'], **kwargs)
  for name, result in p._asdict().items():
    assert relative_error(result, arrays[f'p_mean_variance/{key}/{name}']) < 1e-5, name
  sample, _ = diffusion.p_sample(
    schedule, output, x_t, arrays['t'], arrays['p_sample_noise'], **kwargs
  )
  assert relative_error(sample, arrays[f'p_sample/{key}/sample']) < 1e-5


@pytest.mark.parametrize('near', [False, True])
@pytest.mark.parametrize(
  ('mean_type', 'var_type', 'loss_type'),
  [(*types, 'kl') for types in MEAN_VAR]
  + [(*types, 'mse') for types in MEAN_VAR if types[1] != 'learned'],
)
def test_losses_equal_the_original_programs(original, mean_type, var_type, loss_type, near):
  arrays, schedule, _ = original
  output = arrays[f'near_model_output/{mean_type}' if near else 'model_output']
  losses = diffusion.training_losses(
    schedule,
    lambda x_t, t: output[..., : 6 if var_type == 'learned' else 3],
    arrays['x0'],
    arrays['t'],
    arrays['noise'],
    mean_type=mean_type,
    var_type=var_type,
    loss_type=loss_type,
  )
  key = f'{loss_type}/{"near/" if near else ""}{mean_type}/{var_type}'
  expected = arrays[f'training_losses/{key}/losses']
  np.testing.assert_allclose(losses[1:], expected[1:], rtol=1e-5)
  if loss_type == 'mse':
    np.testing.assert_allclose(losses[0], expected[0], rtol=1e-5)
    return
  p = diffusion.p_mean_variance(
    schedule,
    output[..., : 6 if var_type == 'learned' else 3],
    arrays['q_sample'],
    arrays['t'],
    mean_type=mean_type,
    var_type=var_type,
    clip_denoised=False,
  )
  assert_decoder_bpd(losses[:1], expected[:1], arrays['x0'][:1], p.mean[:1], p.log_variance[:1] / 2)


@pytest.mark.parametrize('clip_denoised', [False, True])
def test_fixedsmall_noise_prediction_equals_the_originals_first_class(
  reference, relative_error, clip_denoised
):
  # Its log-variance at t = 0 is log 1e-20, ours that of t = 1; no sample depends on it.
  arrays = reference('gaussian_v1')
  schedule, t = make_schedule(arrays['betas']), arrays['t']
  x_t = diffusion.q_sample(schedule, arrays['x0'], t, arrays['noise'])
  assert relative_error(x_t, arrays['q_sample']) < 1e-6
  kwargs = {'mean_type': 'eps', 'var_type': 'fixedsmall'}
  p = diffusion.p_mean_variance(
    schedule, arrays['model_output'], x_t, t, clip_denoised=clip_denoised, **kwargs
  )
  key = f'clip{clip_denoised:d}'
  assert relative_error(p.mean, arrays[f'p_mean_variance/{key}/mean']) < 1e-5
  for field in ('variance', 'log_variance'):
    result = getattr(p, field)[1:, :1, :1, :1]
    expected = arrays[f'p_mean_variance/{key}/{field}'][1:]
    np.testing.assert_allclose(result, expected, rtol=1e-5)
  sample, _ = diffusion.p_sample(
    schedule,
    arrays['model_output'],
    x_t,
    t,
    arrays['p_sample_noise'],
    clip_denoised=clip_denoised,
    **kwargs,
  )
  assert relative_error(sample, arrays[f'p_sample/{key}']) < 1e-5
  losses = diffusion.training_losses(
    schedule,
    lambda x_t, t: arrays['model_output'],
    arrays['x0'],
    t,
    arrays['noise'],
    loss_type='mse',
    **kwargs,
  )
  np.testing.assert_allclose(losses, arrays['p_losses'], rtol=1e-5)
