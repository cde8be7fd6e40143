"""A batch whose x_0 and noise are known, and 64 bits."""

import jax
import numpy as np
import pytest

from ddpm_jax.diffusion import make_betas, make_schedule, q_sample


@pytest.fixture(scope='session')
def linear():
  """Returns the linear schedule of 1000 timesteps."""
  return make_schedule(make_betas('linear', 1000))


@pytest.fixture
def example(linear):
  """Returns x_0, noise, t and x_t for a batch of five, each [5, 3, 4, 2]."""
  rng = np.random.default_rng(0)
  x_0 = rng.uniform(-1, 1, (5, 3, 4, 2)).astype(np.float32)
  noise = rng.standard_normal(x_0.shape, np.float32)
  t = np.array([0, 1, 10, 500, 999])
  return x_0, noise, t, q_sample(linear, x_0, t, noise)


@pytest.fixture
def example64(linear):
  """Returns the same in float64, for the time of a test in which JAX has 64 bits."""
  with jax.enable_x64(True):
    rng = np.random.default_rng(0)
    x_0 = rng.uniform(-1, 1, (5, 3, 4, 2))
    noise = rng.standard_normal(x_0.shape)
    t = np.array([0, 1, 10, 500, 999])
    yield x_0, noise, t, q_sample(linear, x_0, t, noise)


@pytest.fixture
def original(reference):
  """Returns the arrays of gaussian.npz, their schedule, and x_t."""
  arrays = reference('gaussian')
  return arrays, make_schedule(arrays['betas']), arrays['q_sample']
