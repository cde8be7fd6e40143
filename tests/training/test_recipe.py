"""Learning rate, clipping and Adam: the original program's numbers, and where we leave them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.training.recipe import (
  check_decay,
  make_learning_rate,
  make_optimizer,
  schedule_count,
)
from ddpm_jax.training.state import apply_gradients, init_train_state
from tests.training.conftest import NAMES, STEPS, table


@pytest.mark.parametrize('case', ['paper', 'fast', 'tinygrad', 'linear_model'])
def test_learning_rates_equal_the_original_programs(reference, case):
  arrays = reference('optimizer')
  rate = make_learning_rate(arrays[f'{case}/hp/lr'].item(), arrays[f'{case}/hp/warmup'].item())
  rates = [rate(jnp.asarray(step)) for step in range(STEPS)]
  np.testing.assert_allclose(rates, arrays[f'{case}/lr'], rtol=1e-6)


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


def test_epsilon_is_optaxs_and_not_the_original_programs(reference, run_case):
  # The one difference from the original's optimizer on one device: see make_optimizer.
  arrays = reference('optimizer')
  states, _ = run_case('tinygrad')
  for name in NAMES:
    original = arrays[f'tinygrad/model/{name}']
    params = table(states, 'params', name)
    gradients = arrays[f'tinygrad/raw_grad/{name}'].astype(np.float64)
    kwargs = {'learning_rate': 0.1, 'eps': 1e-8}
    expected = adam(gradients, original[0].astype(np.float64), corrected=True, **kwargs)
    np.testing.assert_allclose(params, expected, atol=1e-5)
    expected = adam(gradients, original[0].astype(np.float64), corrected=False, **kwargs)
    np.testing.assert_allclose(original, expected, atol=1e-5)
    assert np.abs(params - original).max() > 0.05
    # Where gradients are far above epsilon, the two agree.
    gradients *= 1e6
    np.testing.assert_allclose(
      adam(gradients, 0 * gradients[0], corrected=True, **kwargs),
      adam(gradients, 0 * gradients[0], corrected=False, **kwargs),
      atol=1e-4,
    )


@pytest.mark.parametrize(('warmup', 'moves'), [(0, [0.1, 0.1]), (4, [0.0, 0.025])])
def test_warmup_starts_at_rate_zero(warmup, moves):
  # Under a constant gradient every step of Adam is as long as the rate.
  optimizer = make_optimizer(make_learning_rate(0.1, warmup), grad_clip=0)
  state = init_train_state({'w': jnp.array([1.0, -2.0])}, optimizer)
  for count, move in enumerate(moves):
    assert schedule_count(state.opt_state) == count
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


def test_cosine_falls_from_the_warm_up_to_zero_and_stays_there():
  rate = make_learning_rate(0.1, 10, decay='cosine', decay_steps=110)
  found = [float(rate(jnp.asarray(step))) for step in (0, 5, 10, 35, 60, 110, 200)]
  expected = [0, 0.05, 0.1, 0.05 * (1 + np.cos(np.pi / 4)), 0.05, 0, 0]
  np.testing.assert_allclose(found, expected, atol=1e-7)
  without_warmup = make_learning_rate(0.1, 0, decay='cosine', decay_steps=100)
  assert float(without_warmup(jnp.asarray(0))) == pytest.approx(0.1)


def test_the_inverse_square_root_begins_to_fall_at_its_step():
  rate = make_learning_rate(0.1, 10, decay='inverse_sqrt', decay_steps=100)
  found = [float(rate(jnp.asarray(step))) for step in (5, 10, 100, 400, 10_000)]
  np.testing.assert_allclose(found, [0.05, 0.1, 0.1, 0.05, 0.01], rtol=1e-6)


@pytest.mark.parametrize(
  ('choices', 'message'),
  [
    (('linear', 10, 0), "optim.decay is 'linear'; it must be one of None, cosine, inverse_sqrt"),
    (('cosine', None, 0), 'optim.decay is cosine, and optim.decay_steps None: give both'),
    ((None, 10, 0), 'optim.decay is None, and optim.decay_steps 10: give both'),
    (
      ('cosine', 10, 10),
      'decay_steps is 10; it must be more than the optim.warmup_steps, 10',
    ),
  ],
)
def test_a_decay_without_its_steps_is_refused(choices, message):
  check_decay(None, None, 10)
  check_decay('cosine', 11, 10)
  with pytest.raises(UserError, match=message):
    check_decay(*choices)


def test_weight_decay_takes_its_part_of_the_parameters_beside_adams_step():
  params, grads = {'w': jnp.array([1.0, -2.0])}, {'w': jnp.array([3.0, -5.0])}
  moves = {}
  for weight_decay in (None, 0.0, 0.5):
    optimizer = make_optimizer(make_learning_rate(0.1, 0), grad_clip=0, weight_decay=weight_decay)
    state = init_train_state(params, optimizer)
    assert schedule_count(state.opt_state) == 0
    after = apply_gradients(state, grads, optimizer, ema_decay=0.9)
    moves[weight_decay] = np.asarray(after.params['w'] - params['w'])
  np.testing.assert_allclose(moves[0.0], moves[None], rtol=1e-6)
  np.testing.assert_allclose(moves[0.5] - moves[None], -0.1 * 0.5 * params['w'], rtol=1e-5)
