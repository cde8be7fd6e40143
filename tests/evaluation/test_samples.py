"""A sample is a function of its id, the key and the parameters, whatever draws it and with whom."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.evaluation.samples import make_sample_fn
from ddpm_jax.sampling import SAMPLERS
from tests.tiny import SCHEDULE, SHAPE, denoiser_of, draw_samples, live_params


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
  sampler = functools.partial(SAMPLERS[name], timesteps=[1, 4, 9], variance='fixedlarge')
  step = jax.jit(make_sample_fn(denoiser_of, SCHEDULE, SHAPE, sampler))
  samples = np.asarray(step(live_params(), jnp.array([0, 1, 7]), jax.random.key(0)))
  again = step(live_params(), jnp.array([7, 5, 0]), jax.random.key(0))
  np.testing.assert_allclose(again[jnp.array([2, 0])], samples[[0, 2]], atol=1e-5)
  assert np.abs(samples[0] - samples[1]).max() > 0.1
