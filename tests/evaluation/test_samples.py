"""A sample is a function of its id, the key and the parameters, whatever draws it and with whom."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import devices
from ddpm_jax.evaluation import stepwise
from ddpm_jax.evaluation.samples import Drawer, make_chain_fns
from ddpm_jax.sampling import CHAINS, SAMPLERS
from ddpm_jax.storage.identity import Identity
from tests.tiny import SCHEDULE, SHAPE, denoiser_of, draw_samples, live_params, make_sample_fn


def test_sample_depends_on_its_id_and_the_key_alone():
  samples = draw_samples([0, 1, 2, 7])
  np.testing.assert_allclose(draw_samples([7, 2, 0, 1]), samples[[3, 2, 0, 1]], atol=1e-5)
  np.testing.assert_allclose(draw_samples([2]), samples[[2]], atol=1e-5)
  np.testing.assert_array_equal(draw_samples([0, 1, 2, 7]), samples)


def test_samples_of_other_ids_and_keys_are_others():
  samples = np.concatenate([draw_samples([0, 1, 2, 7]), draw_samples([0, 1, 2, 7], seed=1)])
  distances = np.abs(samples[:, None] - samples[None]).max(axis=(2, 3, 4))
  assert (distances + np.eye(8) > 0.1).all()


@pytest.mark.parametrize('name', SAMPLERS)
def test_sample_of_any_sampler_depends_on_its_id_alone(name):
  step = make_sample_fn(name, timesteps=[1, 4, 9])
  samples = np.asarray(step(live_params(), jnp.array([0, 1, 7]), jax.random.key(0)))
  again = step(live_params(), jnp.array([7, 5, 0]), jax.random.key(0))
  np.testing.assert_allclose(again[jnp.array([2, 0])], samples[[0, 2]], atol=1e-5)
  assert np.abs(samples[0] - samples[1]).max() > 0.1


def make_drawer(name, monkeypatch, piece_secs):
  monkeypatch.setattr(stepwise, 'PIECE_SECS', piece_secs)
  make_chain = functools.partial(CHAINS[name], timesteps=[1, 3, 4, 6, 9], variance='fixedlarge')
  chain = make_chain_fns(denoiser_of, SCHEDULE, SHAPE, make_chain)
  return Drawer(
    chain=stepwise.compiled(chain),
    timesteps=make_chain(SCHEDULE, None, None).timesteps,
    key=devices.replicate(jax.random.key(0)),
    sizes=devices.batch_sizes(4, 'batch_size'),
    identity=Identity(),
    words=name,
  )


@pytest.mark.parametrize('name', ['ancestral', 'dpmpp_3m_sde', 'heun', 'unipc_3'])
def test_chain_in_pieces_is_the_whole_chain(name, monkeypatch):
  params, ids = devices.replicate(live_params()), np.arange(4)
  drawer = make_drawer(name, monkeypatch, 100.0)
  whole = drawer.draw(params, ids)
  monkeypatch.setattr(stepwise, 'PIECE_SECS', 0.0)  # a step each
  np.testing.assert_array_equal(drawer.draw(params, ids), whole)
  *predicted, (end, x_0) = drawer.predictions(params, ids)
  np.testing.assert_array_equal(x_0, whole)
  assert end == -1
  times = [t for t, _ in predicted]
  assert sorted(set(times), reverse=True) == [9, 6, 4, 3, 1]
  assert times == sorted(times, reverse=True)
  # The last prediction of x_0 is what the last step goes to, but for the noise of none.
  np.testing.assert_allclose(predicted[-1][1], whole, atol=1e-5)
