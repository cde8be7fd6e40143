"""The runs of the original program's optimizer, repeated with this one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.training.recipe import make_learning_rate, make_optimizer
from ddpm_jax.training.state import apply_gradients, init_train_state

NAMES = ('w', 'b', 's')
STEPS = 20


def linear_model_loss(params, arrays):
  x, y = arrays['linear_model/x'], arrays['linear_model/y']
  prediction = (x @ params['w']) * params['s'] + jnp.broadcast_to(params['b'], y.shape)
  return 0.5 * jnp.mean(jnp.sum(jnp.square(prediction - y), axis=1))


@pytest.fixture(scope='session')
def run_case(reference):
  """Returns case of optimizer.npz -> the states, with the initial one first, and the gradients."""
  arrays = reference('optimizer')

  @functools.cache
  def run(case):
    hp = {
      name: arrays[f'{case}/hp/{name}'].item() for name in ('warmup', 'lr', 'clip', 'ema_decay')
    }
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

  return run


def table(states, field, name):
  """One parameter over time, [STEPS + 1, ...]."""
  return np.stack([np.asarray(getattr(state, field)[name]) for state in states])
