"""The training step on one device: what is drawn, and what is learnt."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.diffusion import Parameterization, make_betas, make_schedule
from ddpm_jax.diffusion.forward import scale_levels
from ddpm_jax.diffusion.timesteps import DRAWS, HISTORY
from ddpm_jax.training.recipe import make_optimizer
from ddpm_jax.training.state import init_train_state
from ddpm_jax.training.step import make_train_step
from tests.tiny import MODEL, SCHEDULE, fresh_params, random_params


class Blank:
  """In place of a UNet: predicts params['image'], moved by params['slope'] times t."""

  def apply(self, variables, x, t, train=False, rows=None, rngs=None):
    params = variables['params']
    image = jnp.broadcast_to(params['image'][None], x.shape)
    return image + params['slope'] * t.astype(jnp.float32).reshape(-1, 1, 1, 1)


def make_blank_loss(*, num_timesteps=10, random_flip=False):
  """Returns (batch, prediction, slope, seed, data) -> loss of the blank network for x_0."""
  optimizer = optax.sgd(0.0)
  step = jax.jit(
    make_train_step(
      Blank(),
      make_schedule(make_betas('linear', num_timesteps)),
      optimizer,
      optax.constant_schedule(0.0),
      parameterization=Parameterization('xstart', 'fixedlarge'),
      loss_type='mse',
      ema_decay=0.9,
      random_flip=random_flip,
    )
  )

  def loss(batch, prediction, slope=0.0, seed=0, data=None):
    state = init_train_state({'image': prediction, 'slope': jnp.float32(slope)}, optimizer)
    return float(step(state, batch, data, jax.random.key(seed))[1]['loss'])

  return loss


def test_images_are_scaled_to_the_interval_from_minus_one_to_one():
  scaled = scale_levels(np.array([0, 51, 255], np.uint8))
  assert scaled.dtype == jnp.float32
  np.testing.assert_allclose(scaled, [-1, -0.6, 1], rtol=1e-6)


def test_half_of_the_images_are_mirrored_left_to_right():
  count = 2000
  row = np.random.default_rng(0).integers(0, 256, (1, 6, 3), np.uint8)
  picture = np.repeat(row, 4, axis=0)  # upside down it is the same
  images = np.broadcast_to(picture, (count, 4, 6, 3))
  prediction = scale_levels(picture)
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


def test_another_key_draws_other_timesteps():
  loss = make_blank_loss(num_timesteps=100)
  images = np.zeros((8, 2, 2, 1), np.uint8)
  assert len({loss(images, jnp.zeros((2, 2, 1)), slope=1.0, seed=seed) for seed in range(5)}) == 5


def test_a_batch_of_indices_is_gathered_from_the_data():
  data = np.random.default_rng(0).integers(0, 256, (20, 2, 3, 1), np.uint8)
  indices = np.array([3, 19, 0, 3], np.int32)
  loss, prediction = make_blank_loss(random_flip=True), jnp.zeros((2, 3, 1))
  expected = np.square(np.asarray(scale_levels(data[indices]))).mean()
  assert loss(indices, prediction, data=data) == loss(data[indices], prediction)
  assert loss(indices, prediction, data=data) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('timesteps', DRAWS)
def test_the_objective_is_that_of_a_uniform_timestep_however_it_is_drawn(timesteps):
  total, count = 10, 4096
  schedule, optimizer = make_schedule(make_betas('linear', total)), optax.sgd(0.0)
  step = make_train_step(
    Blank(),
    schedule,
    optimizer,
    optax.constant_schedule(0.0),
    parameterization=Parameterization('xstart', 'fixedlarge'),
    loss_type='mse',
    ema_decay=0.9,
    random_flip=False,
    timesteps=timesteps,
    grad_accum_steps=2,
  )
  params = {'image': -jnp.ones((1, 1, 1)), 'slope': jnp.float32(1.0)}
  by_loss = total if timesteps == 'loss' else None
  state = init_train_state(params, optimizer, timesteps_by_loss=by_loss)
  images, found = np.zeros((count, 1, 1, 1), np.uint8), []  # x_0 = -1: the error is t
  step = jax.jit(step)
  for _ in range(8):
    state, metrics = step(state, images, None, jax.random.key(3))
    found.append(float(metrics['loss']))
    assert metrics['grad_norm'] > 0
  expected = np.mean(np.arange(total) ** 2)
  error = {'stratified': 0.02}.get(timesteps, np.std(found))
  assert np.mean(found) == pytest.approx(expected, abs=5 * error / np.sqrt(8))
  assert np.std(found) < 0.1 * expected
  if by_loss:  # a loss of t^2 at each t, and none at 0
    np.testing.assert_allclose(
      state.loss_history.squares, np.repeat(np.arange(total)[:, None] ** 4, HISTORY, 1), rtol=1e-5
    )
  else:
    assert state.loss_history is None


RATE = optax.constant_schedule(1e-2)
# Not the usual epsilon, with which rounding noise would move parameters by the whole rate.
OPTIMIZER = make_optimizer(RATE, grad_clip=1.0, eps=1e-3)


@functools.cache
def unet_step(grad_accum_steps=1):
  return jax.jit(
    make_train_step(
      MODEL,
      SCHEDULE,
      OPTIMIZER,
      RATE,
      parameterization=Parameterization('eps', 'fixedlarge'),
      loss_type='mse',
      ema_decay=0.9,
      random_flip=True,
      grad_accum_steps=grad_accum_steps,
    )
  )


def test_training_lowers_the_loss_on_a_fixed_set():
  step = unet_step()
  images = np.random.default_rng(0).integers(0, 2, (16, 4, 4, 1)).astype(np.uint8) * 255
  state = init_train_state(fresh_params(), OPTIMIZER)
  key = jax.random.key(1)
  _, before = step(state, images, None, key)
  for _ in range(60):
    state, metrics = step(state, images, None, key)
  # The same timesteps and noise as at first: they are drawn from the key and the step's number.
  _, after = step(state.replace(step=jnp.zeros((), jnp.int32)), images, None, key)
  # The network starts at 0, and the noise has size 1.
  assert before['loss'] == pytest.approx(1, abs=0.2)
  assert after['loss'] < 0.7 * before['loss']
  assert int(state.step) == 60
  assert metrics['learning_rate'] == pytest.approx(1e-2)
  assert metrics['grad_norm'] > 0
  assert all(value.shape == () for value in metrics.values())


def test_gradients_of_parts_add_up_to_those_of_the_batch(relative_error):
  images = np.random.default_rng(1).integers(0, 256, (16, 4, 4, 1), np.uint8)
  state, key = init_train_state(random_params(MODEL), OPTIMIZER), jax.random.key(2)
  whole, whole_metrics = unet_step()(state, images, None, key)
  accumulated, metrics = unet_step(grad_accum_steps=4)(state, images, None, key)
  assert relative_error(metrics['loss'], whole_metrics['loss']) < 1e-6
  assert relative_error(metrics['grad_norm'], whole_metrics['grad_norm']) < 1e-5
  for of_parts, of_batch in zip(
    jax.tree.leaves(accumulated.params), jax.tree.leaves(whole.params), strict=True
  ):
    np.testing.assert_allclose(of_parts, of_batch, rtol=1e-4, atol=1e-6)


class Label:
  """In place of a UNet: predicts the label, as a level of x_0."""

  def apply(self, variables, x, t, train=False, rows=None, rngs=None, labels=None):
    del t, train, rows, rngs
    level = variables['params']['levels'][labels].reshape(-1, 1, 1, 1)
    return jnp.broadcast_to(level, x.shape)


def label_loss(batch, data, *, label_dropout, levels=(0.0, 0.2, 0.4, 1.0), seed=0):
  """The loss of Label for images of level 0, whose classes are 0, 1, 2, and 3 for none."""
  optimizer = optax.sgd(0.0)
  step = jax.jit(
    make_train_step(
      Label(),
      SCHEDULE,
      optimizer,
      optax.constant_schedule(0.0),
      parameterization=Parameterization('xstart', 'fixedlarge'),
      loss_type='mse',
      ema_decay=0.9,
      random_flip=False,
      num_classes=3,
      label_dropout=label_dropout,
    )
  )
  state = init_train_state({'levels': jnp.array(levels) - 1}, optimizer)
  return float(step(state, batch, data, jax.random.key(seed))[1]['loss'])


def test_each_example_goes_with_its_label():
  images = np.zeros((4, 1, 1, 1), np.uint8)  # x_0 = -1
  batch = {'images': images, 'labels': np.array([0, 1, 2, 2], np.int32)}
  expected = np.mean(np.square([0.0, 0.2, 0.4, 0.4]))
  assert label_loss(batch, None, label_dropout=0.0) == pytest.approx(expected, rel=1e-5)
  indices = np.array([1, 1, 3, 0], np.int32)
  expected = np.mean(np.square([0.2, 0.2, 0.4, 0.0]))
  assert label_loss(indices, batch, label_dropout=0.0) == pytest.approx(expected, rel=1e-5)


def test_a_label_is_left_out_with_its_probability():
  count, rate = 20_000, 0.1
  batch = {
    'images': np.zeros((count, 1, 1, 1), np.uint8),
    'labels': np.zeros(count, np.int32),  # whose loss is 0; without a label it is 1
  }
  losses = [label_loss(batch, None, label_dropout=rate, seed=seed) for seed in (0, 1)]
  std_error = np.sqrt(rate * (1 - rate) / count)
  assert losses == pytest.approx([rate, rate], abs=5 * std_error)
  assert losses[0] != losses[1]
