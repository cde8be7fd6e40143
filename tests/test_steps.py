"""Steps on one device: what is drawn, what is learnt, and what a sample depends on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax import samplers, steps
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


@pytest.mark.parametrize('name', samplers.SAMPLERS)
def test_sample_of_any_sampler_depends_on_its_id_alone(tiny, name):
  model, params, schedule = tiny
  params = jax.tree.map(lambda p: p + 0.02, params)
  sampler = functools.partial(samplers.SAMPLERS[name], timesteps=[1, 4, 9])
  step = jax.jit(steps.make_sample_step(model, schedule, (4, 4, 1), sampler=sampler, **PREDICTIONS))
  samples = np.asarray(step(params, jnp.array([0, 1, 7]), jax.random.key(0)))
  again = step(params, jnp.array([7, 5, 0]), jax.random.key(0))
  np.testing.assert_allclose(again[jnp.array([2, 0])], samples[[0, 2]], atol=1e-5)
  assert np.abs(samples[0] - samples[1]).max() > 0.1


PREDICTIONS = dict(mean_type='eps', var_type='fixedlarge')


@pytest.fixture(scope='module')
def alive(tiny):
  """Returns the tiny network with parameters that make all of it matter."""
  model, params, schedule = tiny
  return model, jax.tree.map(lambda p: p + 0.02, params), schedule


def test_progressive_predictions_end_in_the_sample(alive, draw_samples):
  model, params, schedule = alive
  step = jax.jit(
    steps.make_progressive_step(model, schedule, (4, 4, 1), every_steps=2, **PREDICTIONS)
  )
  predictions = np.asarray(step(params, jnp.arange(3), jax.random.key(0)))
  assert predictions.shape == (3, 5, 4, 4, 1)
  # The last step's mean is its prediction, clipped.
  samples = np.clip(draw_samples([0, 1, 2]), -1, 1)
  np.testing.assert_allclose(predictions[:, 0], samples, atol=1e-5)
  changes = np.abs(np.diff(predictions, axis=1)).max(axis=(0, 2, 3, 4))
  assert (changes > 1e-3).all()


def test_branches_share_the_chain_down_to_their_timestep(alive, draw_samples):
  model, params, schedule = alive
  step = jax.jit(steps.make_branch_step(model, schedule, (4, 4, 1), **PREDICTIONS))

  def draw(ids, branches, timesteps):
    arrays = map(jnp.asarray, (ids, branches, timesteps))
    batch = dict(zip(('ids', 'branches', 'timesteps'), arrays, strict=True))
    return np.asarray(step(params, batch, jax.random.key(0)))

  # All of the chain: the sample of this id, whatever the branch.
  whole = draw([5, 5, 6], [0, 1, 0], [0, 0, 0])
  np.testing.assert_allclose(whole, draw_samples([5, 5, 6]), atol=1e-5)
  # The fewer steps are one's own, the closer are the branches of one chain.
  distances = []
  for timestep in (1, 9):
    branches = draw([0] * 8, list(range(8)), [timestep] * 8)
    distances.append(branches.std(axis=0).mean())
  assert 0.01 < distances[0] < 0.6 * distances[1]


def test_interpolation_at_the_ends_is_a_reconstruction_and_without_steps_the_mean(alive):
  model, params, schedule = alive
  step = jax.jit(steps.make_interpolate_step(model, schedule, **PREDICTIONS))
  images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1), np.uint8)
  weights = np.float32([0, 0.5, 1])

  def interpolate(first, second, num_steps):
    batch = {
      'images': np.repeat(images[[first]], 3, axis=0),
      'other_images': np.repeat(images[[second]], 3, axis=0),
      'weights': weights,
      'ids': np.zeros(3, np.int32),
    }
    extras = jax.random.key(0), jnp.int32(num_steps)
    return np.asarray(step(params, jax.tree.map(jnp.asarray, batch), extras))

  mixed = interpolate(0, 1, 0)
  expected = steps.scale_images(images)
  np.testing.assert_allclose(mixed[[0, 2]], expected, atol=1e-6)
  np.testing.assert_allclose(mixed[1], expected.mean(axis=0), atol=1e-6)
  for num_steps in (1, 5, 10):
    there = interpolate(0, 1, num_steps)
    np.testing.assert_allclose(there, interpolate(1, 0, num_steps)[::-1], atol=1e-5)
    # The noise is the same for both images: mixing an image with itself changes nothing.
    alone = interpolate(0, 0, num_steps)
    np.testing.assert_allclose(alone, np.repeat(there[:1], 3, axis=0), atol=1e-5)
  # After one step of little noise, an image comes back nearly as it was; after all, it does not.
  errors = [np.abs(interpolate(0, 1, n)[0] - expected[0]).mean() for n in (1, 10)]
  assert errors[0] < errors[1]


@pytest.mark.parametrize('num_terms', [None, 4])
def test_bound_of_an_image_depends_on_it_its_id_and_the_key_alone(alive, num_terms):
  model, params, schedule = alive
  step = jax.jit(steps.make_bpd_step(model, schedule, num_terms=num_terms, **PREDICTIONS))
  images = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 1), np.uint8)

  def bound(rows, seed=0):
    batch = {'images': images[rows], 'ids': np.asarray(rows, np.int32)}
    return jax.tree.map(np.asarray, step(params, batch, jax.random.key(seed)))

  all_rows = bound([0, 1, 2, 3])
  assert all_rows['vb'].shape == (4, num_terms or 10)
  for rows in ([3, 1], [2]):
    for name, values in bound(rows).items():
      np.testing.assert_allclose(values, all_rows[name][rows], rtol=1e-4, atol=1e-6)
  assert (bound([0, 1, 2, 3], seed=1)['total_bpd'] != all_rows['total_bpd']).all()


def test_feature_step_names_what_it_takes():
  class Network:
    def apply(self, variables, images):
      mean = images.mean(axis=(1, 2))
      return {'pool': mean, 'last': mean * variables['params'], 'other': mean}

  step = steps.make_feature_step(Network(), 'pool', 'last')
  output = step(2.0, jnp.ones((3, 4, 4, 1)))
  assert output.keys() == {'features', 'logits'}
  np.testing.assert_array_equal(output['logits'], 2 * np.ones((3, 1)))
