"""Optimizer and moving average: the original program's trajectories, and where we leave them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.train_state import (
  apply_gradients,
  init_train_state,
  make_learning_rate,
  make_optimizer,
)

NAMES = ('w', 'b', 's')
STEPS = 20


def linear_model_loss(params, arrays):
  x, y = arrays['linear_model/x'], arrays['linear_model/y']
  prediction = (x @ params['w']) * params['s'] + jnp.broadcast_to(params['b'], y.shape)
  return 0.5 * jnp.mean(jnp.sum(jnp.square(prediction - y), axis=1))


def run(arrays, case):
  """Runs a case of optimizer.npz: the states, with the initial one first, and the gradients."""
  hp = {name: arrays[f'{case}/hp/{name}'].item() for name in ('warmup', 'lr', 'clip', 'ema_decay')}
  optimizer = make_optimizer(make_learning_rate(hp['lr'], hp['warmup']), grad_clip=hp['clip'])
  params = {name: jnp.asarray(arrays[f'{case}/model/{name}'][0]) for name in NAMES}
  states, all_grads = [init_train_state(params, optimizer)], []

  @jax.jit
  def step(state, grads):
    return apply_gradients(state, grads, optimizer, ema_decay=hp['ema_decay'])

  for i in range(STEPS):
    if case == 'linear_model':
      grads = jax.grad(linear_model_loss)(states[-1].params, arrays)
    else:
      grads = {name: jnp.asarray(arrays[f'{case}/raw_grad/{name}'][i]) for name in NAMES}
    all_grads.append(grads)
    states.append(step(states[-1], grads))
  return states, all_grads


def table(states, field, name):
  return np.stack([np.asarray(getattr(state, field)[name]) for state in states])


@pytest.mark.parametrize('case', ['paper', 'fast', 'linear_model'])
def test_trajectories_equal_the_original_programs(reference, relative_error, case):
  arrays = reference('optimizer')
  states, all_grads = run(arrays, case)
  assert [int(state.step) for state in states] == arrays[f'{case}/global_step'].tolist()
  for name in NAMES:
    params, ema_params = (table(states, field, name) for field in ('params', 'ema_params'))
    assert relative_error(params, arrays[f'{case}/model/{name}']) < 2e-5
    ema = arrays[f'{case}/ema_after_train/model/{name}/ExponentialMovingAverage']
    assert relative_error(ema_params, ema) < 2e-5
    # Adam's moves too, which are small beside the parameters in `paper`.
    assert relative_error(params - params[0], arrays[f'{case}/model/{name}'] - params[0]) < 1e-3
  norms = [optax.tree.norm(grads) for grads in all_grads]
  np.testing.assert_allclose(norms, arrays[f'{case}/gnorm'], rtol=1e-5)


@pytest.mark.parametrize('case', ['paper', 'fast', 'tinygrad', 'linear_model'])
def test_learning_rates_equal_the_original_programs(reference, case):
  arrays = reference('optimizer')
  rate = make_learning_rate(arrays[f'{case}/hp/lr'].item(), arrays[f'{case}/hp/warmup'].item())
  rates = [rate(jnp.asarray(step)) for step in range(STEPS)]
  np.testing.assert_allclose(rates, arrays[f'{case}/lr'], rtol=1e-6)


def test_losses_of_the_linear_model_equal_the_original_programs(reference):
  arrays = reference('optimizer')
  states, _ = run(arrays, 'linear_model')
  losses = [linear_model_loss(state.params, arrays) for state in states[:-1]]
  np.testing.assert_allclose(losses, arrays['linear_model/loss'], rtol=1e-4)


def adam(gradients, w, *, learning_rate, eps, corrected):
  """Adam in float64; epsilon beside the bias-corrected sqrt(v), or the uncorrected as in TF 1."""
  m = v = 0.0
  trajectory = [w]
  for n, g in enumerate(gradients, 1):
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    scale = np.sqrt(1 - 0.999**n)
    denominator = np.sqrt(v) / scale + eps if corrected else (np.sqrt(v) + eps) / scale
    w = w - learning_rate * m / (1 - 0.9**n) / denominator
    trajectory.append(w)
  return np.stack(trajectory)


def test_epsilon_is_optaxs_and_not_the_original_programs(reference):
  # The one difference from the original's optimizer on one device: see make_optimizer.
  arrays = reference('optimizer')
  states, _ = run(arrays, 'tinygrad')
  for name in NAMES:
    original = arrays[f'tinygrad/model/{name}']
    ours = table(states, 'params', name)
    gradients = arrays[f'tinygrad/raw_grad/{name}'].astype(np.float64)
    kwargs = {'learning_rate': 0.1, 'eps': 1e-8}
    expected = adam(gradients, original[0].astype(np.float64), corrected=True, **kwargs)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    expected = adam(gradients, original[0].astype(np.float64), corrected=False, **kwargs)
    np.testing.assert_allclose(original, expected, atol=1e-5)
    assert np.abs(ours - original).max() > 0.05
    # Where gradients are far above epsilon, the two agree.
    gradients *= 1e6
    np.testing.assert_allclose(
      adam(gradients, 0 * gradients[0], corrected=True, **kwargs),
      adam(gradients, 0 * gradients[0], corrected=False, **kwargs),
      atol=1e-4,
    )


def small_state(**kwargs):
  optimizer = make_optimizer(make_learning_rate(0.1, kwargs.pop('warmup', 0)), **kwargs)
  return init_train_state({'w': jnp.array([1.0, -2.0])}, optimizer), optimizer


def test_average_starts_at_the_initial_parameters_in_a_buffer_of_its_own():
  state, _ = small_state(grad_clip=1.0)
  np.testing.assert_array_equal(state.ema_params['w'], state.params['w'])
  pointers = {tree['w'].unsafe_buffer_pointer() for tree in (state.params, state.ema_params)}
  assert len(pointers) == 2


def test_average_is_the_geometric_mean_of_the_parameters_after_each_step():
  state, optimizer = small_state(grad_clip=0)
  decay, history = 0.8, [np.asarray(state.params['w'])]
  for i in range(6):
    state = apply_gradients(state, {'w': jnp.array([1.0, i])}, optimizer, ema_decay=decay)
    history.append(np.asarray(state.params['w']))
  weights = (1 - decay) * decay ** np.arange(5, -1, -1)
  expected = decay**6 * history[0] + weights @ np.stack(history[1:])
  np.testing.assert_allclose(state.ema_params['w'], expected, rtol=1e-5)


@pytest.mark.parametrize(('warmup', 'moves'), [(0, [0.1, 0.1]), (4, [0.0, 0.025])])
def test_warmup_starts_at_rate_zero(warmup, moves):
  # Under a constant gradient every step of Adam is as long as the rate.
  state, optimizer = small_state(grad_clip=0, warmup=warmup)
  for move in moves:
    before = state.params['w']
    state = apply_gradients(state, {'w': jnp.array([3.0, -5.0])}, optimizer, ema_decay=0.9)
    np.testing.assert_allclose(before - state.params['w'], [move, -move], atol=1e-5)


def test_clipping_bounds_the_global_norm_and_zero_switches_it_off():
  rate = optax.constant_schedule(1.0)
  grads = {'a': jnp.array([3.0, 0.0]), 'b': jnp.array([4.0])}  # of norm 5

  def first_moments(grad_clip, grads):
    optimizer = make_optimizer(rate, grad_clip=grad_clip)
    _, opt_state = optimizer.update(grads, optimizer.init(grads))
    return optax.tree_utils.tree_get(opt_state, 'mu')

  for grad_clip, expected in ((0, 5.0), (1.0, 1.0), (10.0, 5.0)):
    norm = optax.tree.norm(first_moments(grad_clip, grads)) / 0.1
    assert norm == pytest.approx(expected, rel=1e-6)
  larger = jax.tree.map(lambda g: 7 * g, grads)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
    first_moments(1.0, larger),
    first_moments(1.0, grads),
  )
