"""EDM's preconditioning on the chain: its formulas in sigma, v as a case, inputs of deviation 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import (
  Parameterization,
  make_betas,
  make_denoiser,
  make_schedule,
  q_sample,
  training_losses,
)
from ddpm_jax.diffusion.weights import output_weight

EDM = Parameterization('edm')


def column(values):
  return values[:, None, None, None]


def test_it_is_the_preconditioning_of_the_paper_in_sigma(linear, example64):
  _, _, t, x_t = example64
  sigma = column(np.sqrt(1 / linear.alphas_cumprod[t] - 1))
  x = np.asarray(x_t) / column(linear.sqrt_alphas_cumprod[t])  # x_0 + sigma eps
  data = 0.5
  c_skip = data**2 / (sigma**2 + data**2)
  c_out = sigma * data / np.sqrt(sigma**2 + data**2)
  c_in = 1 / np.sqrt(sigma**2 + data**2)
  c_noise = np.log(sigma) / 4
  asked = []

  def network(x, time):
    asked.append((x, time))
    return jnp.tanh(x) + 0.1 * column(time)

  x_0 = make_denoiser(network, EDM, linear)(x_t, t).x_0
  expected = c_skip * x + c_out * (np.tanh(c_in * x) + 0.1 * c_noise)
  np.testing.assert_allclose(x_0, expected, rtol=1e-9, atol=1e-12)
  np.testing.assert_allclose(asked[0][0], c_in * x, rtol=1e-9)
  np.testing.assert_allclose(asked[0][1], c_noise[:, 0, 0, 0], rtol=1e-9)


def test_with_data_of_deviation_1_it_is_minus_v(linear, example64):
  unit = Parameterization('edm', sigma_data=1.0)
  x_0, noise, t, x_t = example64
  v = Parameterization('v')
  np.testing.assert_allclose(
    unit.target(linear, x_0, noise, x_t, t), -v.target(linear, x_0, noise, x_t, t), rtol=1e-9
  )
  np.testing.assert_allclose(unit.input(linear, x_t, t), x_t, rtol=1e-9)
  of_edm, of_v = (one.read(linear, sign * noise, x_t, t) for one, sign in ((unit, -1), (v, 1)))
  np.testing.assert_allclose(of_edm.x_0, of_v.x_0, rtol=1e-9)


@pytest.mark.parametrize('t', [0, 20, 500, 999])
def test_of_data_of_its_deviation_inputs_and_targets_have_deviation_1(linear, t):
  rng, count = np.random.default_rng(0), 100_000
  x_0, eps = 0.5 * rng.standard_normal((count, 1)), rng.standard_normal((count, 1))
  with jax.enable_x64(True):
    steps = np.full(count, t)
    x_t = q_sample(linear, x_0, steps, eps)
    for values in (EDM.input(linear, x_t, steps), EDM.target(linear, x_0, eps, x_t, steps)):
      assert np.std(values) == pytest.approx(1, rel=5 / np.sqrt(2 * count))


def test_a_level_without_signal_is_finite():
  schedule = make_schedule(make_betas('jsd', 20))
  t = np.array([0, 19])
  x_t = jnp.ones((2, 1))
  assert np.isfinite(EDM.time(schedule, t)).all()
  np.testing.assert_allclose(EDM.input(schedule, x_t, t)[1], 1, rtol=1e-6)
  np.testing.assert_allclose(EDM.read(schedule, 3 * x_t, x_t, t).x_0[1], 1.5, rtol=1e-6)


def test_the_edm_weight_is_the_noise_alone_on_its_own_prediction(linear, example):
  # Eq. 8, Karras et al. 2022: the error of the network counts as often as its noise is drawn.
  x_0, noise, t, _ = example
  weight = output_weight(linear, EDM, np.arange(1000), 'edm')
  log_sigma = 0.5 * np.log(1 / linear.alphas_cumprod - 1)
  normal = np.exp(-0.5 * ((log_sigma + 1.2) / 1.2) ** 2) / (1.2 * np.sqrt(2 * np.pi))
  expected = 1000 * np.gradient(log_sigma) * normal
  np.testing.assert_allclose(weight[20:700], expected[20:700], rtol=1e-2)
  losses = training_losses(
    linear,
    lambda x, time: 0 * x,
    x_0,
    t,
    noise,
    parameterization=EDM,
    loss_type='mse',
    weight='edm',
  )
  target = EDM.target(linear, x_0, noise, q_sample(linear, x_0, t, noise), t)
  np.testing.assert_allclose(
    losses, weight[t] * np.square(target).mean((1, 2, 3)), rtol=1e-4, atol=1e-7
  )


@pytest.mark.parametrize('sigma_data', [0.08, 0.5, 3.0])
def test_input_and_target_are_of_deviation_1_for_data_of_that_deviation(linear, sigma_data):
  """And neither goes with the other: the network predicts what x_t does not hold."""
  meaning = Parameterization('edm', sigma_data=sigma_data)
  rng = np.random.default_rng(0)
  x_0, noise = rng.standard_normal((2, 4, 50_000, 1)).astype(np.float32)
  x_0 *= np.float32(sigma_data)
  t = np.array([0, 100, 500, 999])
  x_t = q_sample(linear, x_0, t, noise)
  target, given = (
    np.asarray(x)[..., 0]
    for x in (meaning.target(linear, x_0, noise, x_t, t), meaning.input(linear, x_t, t))
  )
  np.testing.assert_allclose(target.std(axis=1), 1, atol=0.02)
  np.testing.assert_allclose(given.std(axis=1), 1, atol=0.02)
  np.testing.assert_allclose((target * given).mean(axis=1), 0, atol=0.02)
  x_0_back = meaning.read(linear, meaning.target(linear, x_0, noise, x_t, t), x_t, t).x_0
  np.testing.assert_allclose(x_0_back, x_0, atol=2e-3 * sigma_data)
