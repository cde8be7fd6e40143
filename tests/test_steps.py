"""Steps on one device: what is drawn, what is learnt, and what a sample depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax import steps
from ddpm_jax.schedules import make_betas, make_schedule
from ddpm_jax.train_state import init_train_state, make_optimizer
from ddpm_jax.unet import UNet

KEY = jax.random.key(0, impl='unsafe_rbg')


class Blank:
  """In place of a UNet: predicts params['image'], moved by params['slope'] times t."""

  def apply(self, variables, x, t, train=False, rows=None, rngs=None):
    params = variables['params']
    image = jnp.broadcast_to(params['image'][None], x.shape)
    return image + params['slope'] * t.astype(jnp.float32).reshape(-1, 1, 1, 1)


def make_blank_loss(*, num_timesteps=10, random_flip=False):
  """Returns (images, prediction, slope, seed) -> loss of the blank network that predicts x_0."""
  optimizer = optax.sgd(0.0)
  step = jax.jit(
    steps.make_train_step(
      Blank(),
      make_schedule(make_betas('linear', num_timesteps)),
      optimizer,
      optax.constant_schedule(0.0),
      mean_type='xstart',
      var_type='fixedlarge',
      loss_type='mse',
      ema_decay=0.9,
      random_flip=random_flip,
    )
  )

  def loss(images, prediction, slope=0.0, seed=0):
    state = init_train_state({'image': prediction, 'slope': jnp.float32(slope)}, optimizer)
    return float(step(state, images, jax.random.key(seed))[1]['loss'])

  return loss


def test_images_are_scaled_to_the_interval_from_minus_one_to_one():
  scaled = steps.scale_images(np.array([0, 51, 255], np.uint8))
  assert scaled.dtype == jnp.float32
  np.testing.assert_allclose(scaled, [-1, -0.6, 1], rtol=1e-6)


def test_half_of_the_images_are_mirrored_left_to_right():
  count = 2000
  row = np.random.default_rng(0).integers(0, 256, (1, 6, 3), np.uint8)
  picture = np.repeat(row, 4, axis=0)  # upside down it is the same
  images = np.broadcast_to(picture, (count, 4, 6, 3))
  prediction = steps.scale_images(picture)
  mirrored = jnp.mean(jnp.square(prediction[:, ::-1] - prediction))
  assert make_blank_loss()(images, prediction) < 1e-12
  share = make_blank_loss(random_flip=True)(images, prediction) / mirrored
  assert share == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(count))


def test_timesteps_are_uniform_from_zero_to_the_last():
  count, T = 20_000, 4
  images = np.full((count, 1, 1, 1), 255, np.uint8)  # x_0 = 1; the loss is (1 - t)^2
  squares = np.square(1 - np.arange(T))
  loss = make_blank_loss(num_timesteps=T)(images, jnp.zeros((1, 1, 1)), slope=1.0)
  std_error = squares.std() / np.sqrt(count)
  assert loss == pytest.approx(squares.mean(), abs=5 * std_error)
  # A single timestep is always the first.
  loss = make_blank_loss(num_timesteps=1)(images, jnp.ones((1, 1, 1)), slope=1.0)
  assert loss < 1e-12


@pytest.fixture(scope='module')
def tiny():
  """Returns a tiny UNet with all its parameters alive, and its schedule."""
  model = UNet(32, (1,), 1, (), 1)
  x = jnp.zeros((1, 4, 4, 1))
  params = jax.jit(model.init)(KEY, x, jnp.zeros(1, jnp.int32))['params']
  return model, params, make_schedule(make_betas('linear', 10, beta_start=0.1, beta_end=0.5))


def test_training_lowers_the_loss_on_a_fixed_set(tiny):
  model, params, schedule = tiny
  rate = optax.constant_schedule(1e-2)
  optimizer = make_optimizer(rate, grad_clip=1.0)
  step = jax.jit(
    steps.make_train_step(
      model,
      schedule,
      optimizer,
      rate,
      mean_type='eps',
      var_type='fixedlarge',
      loss_type='mse',
      ema_decay=0.9,
      random_flip=True,
    )
  )
  images = np.random.default_rng(0).integers(0, 2, (16, 4, 4, 1)).astype(np.uint8) * 255
  state = init_train_state(params, optimizer)
  key = jax.random.key(1)
  _, before = step(state, images, key)
  for _ in range(60):
    state, metrics = step(state, images, key)
  # The same timesteps and noise as at first: they are drawn from the key and the step's number.
  _, after = step(state.replace(step=jnp.zeros((), jnp.int32)), images, key)
  assert before['loss'] == pytest.approx(
    1, abs=0.2
  )  # the network starts at 0, the noise has size 1
  assert after['loss'] < 0.7 * before['loss']
  assert int(state.step) == 60
  assert metrics['learning_rate'] == pytest.approx(1e-2)
  assert metrics['grad_norm'] > 0
  assert all(value.shape == () for value in metrics.values())


def test_another_key_draws_other_timesteps():
  loss = make_blank_loss(num_timesteps=100)
  images = np.zeros((8, 2, 2, 1), np.uint8)
  assert len({loss(images, jnp.zeros((2, 2, 1)), slope=1.0, seed=seed) for seed in range(5)}) == 5


@pytest.fixture(scope='module')
def draw_samples(tiny):
  """Returns (ids, key) -> samples of the tiny network."""
  model, params, schedule = tiny
  params = jax.tree.map(lambda p: p + 0.02, params)
  step = jax.jit(
    steps.make_sample_step(model, schedule, (4, 4, 1), mean_type='eps', var_type='fixedlarge')
  )
  return lambda ids, seed=0: np.asarray(step(params, jnp.asarray(ids), jax.random.key(seed)))


def test_sample_depends_on_its_id_and_the_key_alone(draw_samples):
  samples = draw_samples([0, 1, 2, 7])
  np.testing.assert_allclose(draw_samples([7, 2, 0, 1]), samples[[3, 2, 0, 1]], atol=1e-5)
  np.testing.assert_allclose(draw_samples([2]), samples[[2]], atol=1e-5)
  np.testing.assert_array_equal(draw_samples([0, 1, 2, 7]), samples)


def test_samples_of_other_ids_and_keys_are_others(draw_samples):
  samples = np.concatenate([draw_samples([0, 1, 2, 7]), draw_samples([0, 1, 2, 7], seed=1)])
  distances = np.abs(samples[:, None] - samples[None]).max(axis=(2, 3, 4))
  assert (distances + np.eye(8) > 0.1).all()
