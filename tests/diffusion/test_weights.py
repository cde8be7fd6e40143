"""Weights of the loss: closed forms, one objective for all predictions, one minimiser for all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import (
  Parameterization,
  make_betas,
  make_schedule,
  training_losses,
)
from ddpm_jax.diffusion.losses import check_loss
from ddpm_jax.diffusion.prediction import MEANS
from ddpm_jax.diffusion.weights import WEIGHTS, check_weight, level_at, output_weight
from ddpm_jax.errors import UserError
from tests.analytic import MIXTURE, mixture_network, network_from_eps, true_output

OF_X_0 = [mean for mean in MEANS if not Parameterization(mean).is_step]


def column(values, like):
  return np.asarray(values).reshape(-1, *[1] * (like.ndim - 1))


def snr_of(schedule):
  return schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)


@pytest.mark.parametrize(
  ('name', 'number', 'expected'),
  [
    ('simple', None, lambda snr: snr),
    ('min_snr', None, lambda snr: np.minimum(snr, 5)),
    ('min_snr', 1.0, lambda snr: np.minimum(snr, 1)),
    ('p2', None, lambda snr: snr / (1 + snr)),
    ('p2', 0.5, lambda snr: snr / np.sqrt(1 + snr)),
  ],
)
def test_weights_of_the_snr_are_their_formulas(linear, name, number, expected):
  t = np.arange(1000)
  weight = output_weight(linear, Parameterization('xstart'), t, name, number)
  np.testing.assert_allclose(weight, expected(snr_of(linear)), rtol=1e-5)


@pytest.mark.parametrize('bias', [None, 0.0, -1.0])
def test_sigmoid_is_a_share_of_the_bound(linear, bias):
  t, snr = np.arange(1000), snr_of(linear)
  share = 1 / (1 + snr * np.exp(-(2.0 if bias is None else bias)))
  kl, sigmoid = (
    output_weight(linear, Parameterization('xstart'), t, *choice)
    for choice in (('kl',), ('sigmoid', bias))
  )
  np.testing.assert_allclose(sigmoid, share * np.asarray(kl), rtol=1e-5)
  np.testing.assert_allclose(kl[1:], (snr[:-1] - snr[1:]) / 2, rtol=1e-5)


@pytest.mark.parametrize('mean', OF_X_0)
def test_kl_weights_the_error_as_the_bound_does(linear, example, mean):
  x_0, noise, t, x_t = (array[1:] for array in example)
  output = true_output(mean, linear, x_0, noise, x_t, t)
  parameterization = Parameterization(mean, 'fixedsmall')

  def losses(error, **choices):
    args = linear, lambda x_t, t: output + error, x_0, t, noise
    return np.asarray(training_losses(*args, parameterization=parameterization, **choices))

  expected = losses(2.0, loss_type='kl') - losses(0.0, loss_type='kl')
  actual = losses(2.0, loss_type='mse', weight='kl') / np.log(2)
  np.testing.assert_allclose(actual, expected, rtol=1e-3)


@pytest.mark.parametrize('name', WEIGHTS)
@pytest.mark.parametrize('mean', OF_X_0)
def test_a_weight_is_of_the_error_of_x_0_whatever_is_predicted(linear, example64, mean, name):
  x_0, noise, t, x_t = example64
  error = noise[::-1]
  alpha, sigma = linear.sqrt_alphas_cumprod[t], linear.sqrt_one_minus_alphas_cumprod[t]
  eps = noise - column(alpha / sigma, x_t) * error  # of x_0 + error
  output = true_output(mean, linear, x_0 + error, eps, x_t, t)
  choices = dict(parameterization=Parameterization(mean), loss_type='mse', weight=name)
  losses = training_losses(linear, lambda x_t, t: output, x_0, t, noise, **choices)
  weight = WEIGHTS[name].function(level_at(linear, t), WEIGHTS[name].number)
  np.testing.assert_allclose(losses, weight * np.square(error).mean((1, 2, 3)), rtol=1e-6)


@pytest.mark.parametrize('name', [None, *WEIGHTS])
@pytest.mark.parametrize('mean', OF_X_0)
def test_every_weight_has_the_exact_prediction_for_its_minimum(mean, name):
  schedule, count = make_schedule(make_betas('linear', 100, beta_end=0.2)), 40_000
  rng = np.random.default_rng(0)
  component = (rng.random(count) < MIXTURE['weights'][1]).astype(int)
  means, stds = np.array(MIXTURE['means']), np.array(MIXTURE['stds'])
  x_0 = (means[component] + stds[component] * rng.standard_normal(count))[:, None]
  t, noise = rng.integers(0, 100, count), rng.standard_normal((count, 1))
  exact = network_from_eps(mean, schedule, mixture_network(schedule, **MIXTURE))

  def losses(slope, offset):
    def network(x_t, t):
      return exact(x_t, t) + slope * jnp.tanh(3 * x_t) + offset

    choices = dict(parameterization=Parameterization(mean), loss_type='mse', weight=name)
    return training_losses(schedule, network, jnp.float32(x_0), t, jnp.float32(noise), **choices)

  for direction in ((1.0, 0.0), (0.0, 1.0)):
    for away, is_minimum in ((0.0, True), (0.3, False)):
      at = tuple(away * x for x in direction)
      _, slopes = jax.jvp(losses, at, direction)
      slopes = np.asarray(slopes, np.float64)
      std_errors = slopes.mean() / (slopes.std() / np.sqrt(count))
      assert (abs(std_errors) < 5) == is_minimum, (direction, away)


def test_the_noise_of_edm_is_log_normal(linear):
  density = np.asarray(level_at(linear, np.arange(1000)).lognormal, np.float64)
  assert density.mean() == pytest.approx(1, abs=1e-6)
  log_sigma = -0.5 * np.log(snr_of(linear))
  normal = np.exp(-0.5 * ((log_sigma + 1.2) / 1.2) ** 2) / (1.2 * np.sqrt(2 * np.pi))
  inner = slice(20, 700)
  np.testing.assert_allclose(
    density[inner], 1000 * (np.gradient(log_sigma) * normal)[inner], rtol=1e-2
  )
  # Nothing is lost of it at a level without signal, or in a chain of a single step.
  for betas in (make_betas('jsd', 20), [0.5]):
    schedule = make_schedule(betas)
    t = np.arange(schedule.num_timesteps)
    assert np.mean(level_at(schedule, t).lognormal) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
  ('mean', 'loss_type', 'weight', 'number', 'message'),
  [
    (
      'eps',
      'mse',
      'snr',
      None,
      "loss_weight is 'snr'; it must be one of simple, kl, min_snr",
    ),
    ('xprev', 'mse', 'min_snr', None, 'loss_weight=min_snr weights the error of x_0, .* one step'),
    ('eps', 'kl', 'min_snr', None, 'weights an mse, and diffusion.loss_type=kl has its weight'),
    ('eps', 'mse', 'kl', 2.0, 'number is 2.0, but .*=kl has none; it goes with min_snr, p2, sig'),
    ('eps', 'mse', None, 2.0, 'loss_weight_number is 2.0, but there is no train.loss_weight'),
    ('eps', 'mse', 'min_snr', -5.0, 'is -5.0; gamma of train.loss_weight=min_snr must be above 0'),
    ('v', 'mse', 'p2', 0.0, 'is 0.0; gamma of train.loss_weight=p2 must be above 0'),
  ],
)
def test_weights_that_mean_nothing_are_refused(mean, loss_type, weight, number, message):
  with pytest.raises(UserError, match=message) as raised:
    check_loss(Parameterization(mean), loss_type, weight, number)
  assert '\n' not in str(raised.value)
  check_weight(Parameterization('v'), 'min_snr', 3.0)
  check_weight(Parameterization('v'), 'sigmoid', -3.0)  # a bias
