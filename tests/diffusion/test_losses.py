"""Losses: closed forms and finite gradients, then the original program's numbers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import (
  Parameterization,
  make_schedule,
  p_mean_variance,
  training_losses,
)
from ddpm_jax.diffusion.losses import check_loss
from ddpm_jax.diffusion.prediction import MEANS
from ddpm_jax.errors import UserError
from tests.analytic import ORIGINAL_VARIANCES as VARIANCES
from tests.analytic import predict, true_output
from tests.decoder import assert_decoder_bpd

LOSS_TYPES = ('mse', 'kl')  # the original program's
ORIGINAL_PARAMETERIZATIONS = list(itertools.product(('eps', 'xstart', 'xprev'), VARIANCES))


def column(values, like):
  return values.reshape(-1, *[1] * (like.ndim - 1))


def losses_of(schedule, output, x_0, t, noise, *, mean='eps', variance='fixedlarge', loss_type):
  """training_losses of a network that returns `output`, whatever it is given."""
  return training_losses(
    schedule,
    lambda x_t, t: output,
    x_0,
    t,
    noise,
    parameterization=Parameterization(mean, variance),
    loss_type=loss_type,
  )


@pytest.mark.parametrize('mean', MEANS)
def test_mse_is_the_mean_square_of_the_error_in_what_is_predicted(linear, example, mean):
  x_0, noise, t, x_t = example
  error = np.arange(1, 6, dtype=np.float32)  # one size an example
  output = true_output(mean, linear, x_0, noise, x_t, t) + column(error, x_t)
  losses = losses_of(linear, output, x_0, t, noise, mean=mean, loss_type='mse')
  np.testing.assert_allclose(losses, error**2, rtol=1e-5)


@pytest.mark.parametrize('mean', MEANS)
def test_mse_weights_the_error_of_x_0(linear, example64, mean):
  x_0, noise, t, x_t = example64
  output = noise[::-1] + 0.3
  losses = losses_of(linear, output, x_0, t, noise, mean=mean, loss_type='mse')
  predicted = predict(linear, output, x_t, t, mean=mean, variance='fixedlarge').x_0
  abar = linear.alphas_cumprod[t]
  snr = abar / (1 - abar)
  weight = {
    'eps': snr,
    'xstart': 1,
    'xprev': linear.posterior_mean_coef1[t] ** 2,
    'v': snr + 1,  # that of eps and that of xstart together
    'edm': snr + 4,  # 1 / c_out^2
  }[mean]
  squared_error = np.square(np.asarray(predicted) - x_0).mean(axis=(1, 2, 3))
  np.testing.assert_allclose(losses, weight * squared_error, rtol=1e-8)


@pytest.mark.parametrize('variance_type', ['fixedsmall', 'fixedlarge'])
def test_kl_of_eps_is_the_mse_weighted_as_in_eq_12(linear, example, variance_type):
  x_0, noise, t, _ = example
  x_0, noise, t = x_0[1:], noise[1:], t[1:]
  kl, perfect, mse = (
    losses_of(linear, noise + error, x_0, t, noise, variance=variance_type, loss_type=loss_type)
    for error, loss_type in ((2.0, 'kl'), (0.0, 'kl'), (2.0, 'mse'))
  )
  beta, abar = linear.betas[t], linear.alphas_cumprod[t]
  variance = beta if variance_type == 'fixedlarge' else linear.posterior_variance[t]
  weight = beta**2 / (2 * variance * (1 - beta) * (1 - abar)) / np.log(2)
  np.testing.assert_allclose(kl - perfect, weight * mse, rtol=1e-3)


@pytest.mark.parametrize('loss_type', LOSS_TYPES)
@pytest.mark.parametrize('shape', [(5, 24), (5, 12, 2), (5, 1, 3, 4, 2)])
def test_shapes_other_than_images_give_the_same_losses(linear, example, shape, loss_type):
  x_0, noise, t, _ = example

  def losses(shape):
    return training_losses(
      linear,
      lambda x_t, t: jnp.tanh(x_t),
      x_0.reshape(shape),
      t,
      noise.reshape(shape),
      parameterization=Parameterization(),
      loss_type=loss_type,
    )

  np.testing.assert_allclose(losses(shape), losses(x_0.shape), rtol=1e-5)


@pytest.mark.parametrize('variance', VARIANCES)
@pytest.mark.parametrize('mean', MEANS)
def test_schedule_may_be_an_argument_of_a_compiled_function(linear, example, mean, variance):
  x_0, noise, t, x_t = example
  output = true_output(mean, linear, x_0, noise, x_t, t) + 0.1 * noise[::-1]
  if variance == 'learned':
    output = np.concatenate([output, -5 + noise], -1)

  def losses(schedule, x_0, t, noise):
    choices = dict(mean=mean, variance=variance, loss_type='kl')
    return losses_of(schedule, output, x_0, t, noise, **choices)

  actual, expected = jax.jit(losses)(linear, x_0, t, noise), losses(linear, x_0, t, noise)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('log_variance', [-100.0, -80.0, -8.0, 0.0, 100.0])
@pytest.mark.parametrize('mean', MEANS)
def test_kl_loss_has_finite_gradients_for_any_learned_variance(linear, example, mean, log_variance):
  x_0, noise, t, x_t = example
  if log_variance == -100.0:
    t = np.zeros_like(t)  # a KL to a variance of e^-100 is itself beyond float32
  output = true_output(mean, linear, x_0, noise, x_t, t) + 0.1
  output = jnp.concatenate([output, jnp.full_like(output, log_variance)], axis=-1)
  assert_finite_kl_gradient(linear, example, t, output, mean, 'learned')


@pytest.mark.parametrize('variance', ['fixedsmall', 'fixedlarge'])
@pytest.mark.parametrize('mean', MEANS)
def test_kl_loss_has_finite_gradients_for_any_prediction(linear, example, mean, variance):
  x_0, noise, t, x_t = example
  for error in (0.0, 0.1, 1e4):
    output = true_output(mean, linear, x_0, noise, x_t, t) + error
    assert_finite_kl_gradient(linear, example, t, output, mean, variance)


def assert_finite_kl_gradient(schedule, example, t, output, mean, variance):
  x_0, noise, _, _ = example

  def loss(output):
    choices = dict(mean=mean, variance=variance, loss_type='kl')
    return losses_of(schedule, output, x_0, t, noise, **choices).sum()

  value, gradient = jax.value_and_grad(loss)(output)
  assert jnp.isfinite(value)
  assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize(
  ('choices', 'message'),
  [
    ({'mean': 'score'}, "mean_type is 'score'.*eps, xstart, xprev"),
    ({'variance': 'fixed'}, "var_type is 'fixed'.*fixedsmall, fixedlarge, learned"),
    ({'loss_type': 'l1'}, "loss_type is 'l1'.*mse, kl"),
    ({'variance': 'learned', 'loss_type': 'mse'}, 'var_type=learned; use loss_type=kl'),
    ({'variance': 'learned'}, r'returned \(5, 3, 4, 2\).*learned needs 4 channels'),
  ],
)
def test_training_losses_refuses(linear, example, choices, message):
  x_0, noise, t, x_t = example
  with pytest.raises(UserError, match=message):
    losses_of(linear, x_t, x_0, t, noise, **{'loss_type': 'kl', **choices})


@pytest.mark.parametrize('shape', [(5, 3, 4, 1), (5, 3, 4, 4), (1, 3, 4, 2), (5, 1, 4, 2)])
@pytest.mark.parametrize('loss_type', LOSS_TYPES)
@pytest.mark.parametrize('mean', MEANS)
def test_no_loss_broadcasts_an_output_of_another_shape(linear, example, mean, loss_type, shape):
  x_0, noise, t, _ = example
  with pytest.raises(UserError, match=r'for x_t of \(5, 3, 4, 2\); .* needs 2 channels') as refusal:
    losses_of(linear, jnp.zeros(shape), x_0, t, noise, mean=mean, loss_type=loss_type)
  assert f'the network returned {shape}' in str(refusal.value)


def test_a_loss_is_checked_against_the_parameterization():
  for mean, variance, loss_type in itertools.product(MEANS, VARIANCES, LOSS_TYPES):
    if (variance, loss_type) != ('learned', 'mse'):
      check_loss(Parameterization(mean, variance), loss_type)
  for variance in ('learned', 'learned_range'):
    for loss_type in ('kl', 'hybrid'):
      check_loss(Parameterization('v', variance), loss_type)
    with pytest.raises(UserError, match=rf'mse does not train .*var_type={variance}; use'):
      check_loss(Parameterization('v', variance), 'mse')
  with pytest.raises(UserError, match=r'hybrid trains .*, and var_type=fixedlarge is fixed'):
    check_loss(Parameterization('v', 'fixedlarge'), 'hybrid')
  with pytest.raises(UserError, match=r"loss_type is 'l1'; it must be one of mse, kl, hybrid$"):
    check_loss(Parameterization(), 'l1')


@pytest.mark.parametrize('near', [False, True])
@pytest.mark.parametrize(
  ('mean', 'variance', 'loss_type'),
  [(*choice, 'kl') for choice in ORIGINAL_PARAMETERIZATIONS]
  + [(*choice, 'mse') for choice in ORIGINAL_PARAMETERIZATIONS if choice[1] != 'learned'],
)
def test_losses_equal_the_original_programs(original, mean, variance, loss_type, near):
  arrays, schedule, x_t = original
  output = arrays[f'near_model_output/{mean}' if near else 'model_output']
  output = output[..., : 6 if variance == 'learned' else 3]
  x_0, t = arrays['x0'], arrays['t']
  choices = dict(mean=mean, variance=variance)
  losses = losses_of(schedule, output, x_0, t, arrays['noise'], loss_type=loss_type, **choices)
  key = f'{loss_type}/{"near/" if near else ""}{mean}/{variance}'
  expected = arrays[f'training_losses/{key}/losses']
  np.testing.assert_allclose(losses[1:], expected[1:], rtol=1e-5)
  if loss_type == 'mse':
    np.testing.assert_allclose(losses[0], expected[0], rtol=1e-5)
    return
  p_mean, _, p_log_variance = p_mean_variance(
    schedule,
    predict(schedule, output, x_t, t, **choices),
    x_t,
    t,
    variance=Parameterization(**choices).fixed_variance,
  )
  assert_decoder_bpd(losses[:1], expected[:1], x_0[:1], p_mean[:1], p_log_variance[:1] / 2)


def test_mse_of_noise_equals_that_of_the_originals_first_class(reference):
  arrays = reference('gaussian_v1')
  losses = losses_of(
    make_schedule(arrays['betas']),
    arrays['model_output'],
    arrays['x0'],
    arrays['t'],
    arrays['noise'],
    variance='fixedsmall',
    loss_type='mse',
  )
  np.testing.assert_allclose(losses, arrays['p_losses'], rtol=1e-5)
