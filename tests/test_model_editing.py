"""The Model edits pictures: what is known stays or fits, and other things are refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import devices, sampling
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.weights import make_weights
from ddpm_jax.model import Model
from ddpm_jax.nn.own import OwnNetwork
from tests.tiny import tiny_config

RNG = np.random.default_rng(0)
EXAMPLES = RNG.integers(0, 256, (3, 8, 8, 3), np.uint8)
MASK = RNG.random((3, 8, 8)) < 0.5
FAST = {'sampler': 'ddim', 'num_steps': 4}


@pytest.fixture(scope='module')
def model():
  """A Model of 8 x 8 colour pictures that was never trained."""
  config = tiny_config(**{'data.channels': 3, 'data.source': 'folder:none'})
  network = OwnNetwork(lambda params, x, t: params * jnp.tanh(x))
  weights = make_weights(0, devices.replicate(np.float32(0.8)))
  return Model(config, weights, name='new', network=network)


@pytest.mark.parametrize('method', ['ddnm', 'pigdm', 'repaint'])
def test_known_pixels_stay_byte_for_byte(model, method):
  choices = {'num_steps': 5, 'resamplings': 2, 'jump_length': 2} if method == 'repaint' else FAST
  found = model.inpaint(EXAMPLES, MASK, method=method, num=2, **choices)
  assert found.shape == (3, 2, 8, 8, 3)
  known = np.broadcast_to(MASK[:, None], (3, 2, 8, 8))
  np.testing.assert_array_equal(found[known], np.repeat(EXAMPLES[:, None], 2, 1)[known])
  assert (found[~known] != np.repeat(EXAMPLES[:, None], 2, 1)[~known]).mean() > 0.9
  assert (found[:, 0] != found[:, 1]).any()
  if method == 'ddnm':  # the compiled program is one
    compiled = len(model._compiled)
    again = model.inpaint(EXAMPLES, MASK, method=method, num=2, seed=1, **choices)
    assert len(model._compiled) == compiled
    assert (again != found).any()


def test_what_is_found_fits_what_was_measured(model):
  small = EXAMPLES[:, :4, :4] // 2 + 64
  found = model.superresolve(small, method='ddnm', **FAST)[:, 0].astype(float)
  means = found.reshape(3, 4, 2, 4, 2, 3)
  inside = ((means > 0) & (means < 255)).all((2, 4))  # not clipped
  assert inside.mean() > 0.2
  assert np.abs(means.mean((2, 4)) - small)[inside].max() <= 0.5
  grey = EXAMPLES[..., :1] // 2 + 64
  found = model.colourise(grey, method='ddnm', **FAST)[:, 0].astype(float)
  inside = ((found > 0) & (found < 255)).all(-1)
  assert inside.mean() > 0.2
  assert np.abs(found.mean(-1) - grey[..., 0])[inside].max() <= 0.5


def test_any_linear_operator_will_do(model):
  operator = sampling.linear_operator(lambda x: x.mean(axis=1), model.shape)
  y = np.asarray(operator.apply(np.float32(EXAMPLES) / 255 - 0.5))
  found = model.edit(y, operator, method='ddnm', num=2, **FAST)
  assert found.shape == (3, 2, 8, 8, 3)
  inside = ((found > 0) & (found < 255)).all(2)
  back = found.mean(2) / 127.5 - 1
  assert np.abs(back - y[:, None])[inside].max() < 0.02


def test_the_depth_of_sdedit_says_how_far_it_goes(model):
  near, far = (
    np.abs(model.sdedit(EXAMPLES, depth=d)[:, 0] - EXAMPLES.astype(float)).mean() for d in (0.1, 1)
  )
  assert near < far


@pytest.mark.parametrize(
  ('call', 'words'),
  [
    (lambda model: model.inpaint(EXAMPLES[:, :4], MASK), 'examples are uint8'),
    (lambda model: model.inpaint(EXAMPLES, MASK[:2]), r'masks are \[2, 8, 8\]'),
    (lambda model: model.inpaint(EXAMPLES, MASK | True), 'all is known of picture 0'),
    (lambda model: model.inpaint(EXAMPLES, MASK & False), 'nothing is known of picture 0'),
    (lambda model: model.inpaint(EXAMPLES, MASK, method='dps'), "edit.method is 'dps'"),
    (lambda model: model.inpaint(EXAMPLES, MASK, num=0), 'num is 0'),
    (
      lambda model: model.inpaint(EXAMPLES, MASK, method='repaint', sampler='ddim'),
      'goes with sample.sampler=ancestral alone',
    ),
    (
      lambda model: model.inpaint(EXAMPLES, MASK, method='repaint', jump_length=0),
      'jump_length is 0',
    ),
    (lambda model: model.superresolve(EXAMPLES), r'examples are \[3, 8, 8, 3\]'),
    (lambda model: model.superresolve(EXAMPLES[:, :3, :3]), 'small ones have sides'),
    (lambda model: model.colourise(EXAMPLES), r"it must be uint8 or float \['N', 8, 8, 1\]"),
    (lambda model: model.sdedit(EXAMPLES, depth=2), 'depth is 2.0'),
  ],
)
def test_mistakes_are_answered_in_one_line(model, call, words):
  with pytest.raises(UserError, match=words):
    call(model)
