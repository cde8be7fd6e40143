"""The state and its moving average: the original program's trajectories, and what they are."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.training.averages import rates_of
from ddpm_jax.training.recipe import make_learning_rate, make_optimizer
from ddpm_jax.training.state import apply_gradients, init_train_state
from tests.training.conftest import NAMES, linear_model_loss, table


@pytest.mark.parametrize('case', ['paper', 'fast', 'linear_model'])
def test_trajectories_equal_the_original_programs(reference, run_case, relative_error, case):
  arrays = reference('optimizer')
  states, all_grads = run_case(case)
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


def test_losses_of_the_linear_model_equal_the_original_programs(reference, run_case):
  arrays = reference('optimizer')
  states, _ = run_case('linear_model')
  losses = [linear_model_loss(state.params, arrays) for state in states[:-1]]
  np.testing.assert_allclose(losses, arrays['linear_model/loss'], rtol=1e-4)


def small_state(**choices):
  optimizer = make_optimizer(make_learning_rate(0.1, 0), **choices)
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


def test_several_averages_are_those_kept_one_by_one():
  rates = rates_of((0.5,), (0.1,))
  optimizer = make_optimizer(make_learning_rate(0.1, 0), grad_clip=0)
  params = {'w': jnp.array([1.0, -2.0])}
  state, history = init_train_state(params, optimizer, rates=rates), []
  alone = init_train_state(params, optimizer)
  expected = {name: np.array(params['w']) for name in rates}
  for i in range(6):
    grads = {'w': jnp.array([1.0, i])}
    state = apply_gradients(state, grads, optimizer, ema_decay=0.8, ema_warmup=0.3, rates=rates)
    alone = apply_gradients(alone, grads, optimizer, ema_decay=0.8)
    history.append(np.asarray(state.params['w']))
    for name, rate in rates.items():
      expected[name] += float(rate(jnp.float32(i + 1))) * (history[-1] - expected[name])
  for name, average in expected.items():
    np.testing.assert_allclose(state.averages[name]['w'], average, rtol=1e-5)
  np.testing.assert_array_equal(state.params['w'], alone.params['w'])
  assert alone.averages is None
  # With a warm-up the average follows the parameters from the first step on.
  rate = 1 - 0.5 ** (1 / 0.3)
  first = init_train_state(params, optimizer)
  first = apply_gradients(first, {'w': jnp.ones(2)}, optimizer, ema_decay=0.999, ema_warmup=0.3)
  moved = np.asarray(first.ema_params['w'] - params['w'])
  np.testing.assert_allclose(moved, rate * np.asarray(first.params['w'] - params['w']), rtol=1e-4)
