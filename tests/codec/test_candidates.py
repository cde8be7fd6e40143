"""The shared numbers: Threefry's published vectors, Gaussians, and the same from NumPy and JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ddpm_jax.codec.candidates import cosine_and_sine, gaussian_pairs, gaussians, threefry

ONES = 0xFFFFFFFF


@pytest.mark.parametrize('xp', [np, jnp])
@pytest.mark.parametrize(
  ('key', 'counter', 'expected'),
  [  # the known answers of the Random123 library
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((ONES, ONES), (ONES, ONES), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
  ],
)
def test_threefry_has_its_published_answers(xp, key, counter, expected):
  key, counter = (tuple(xp.asarray([x], xp.uint32) for x in pair) for pair in (key, counter))
  assert [int(x[0]) for x in threefry(xp, key, counter)] == list(expected)


def test_the_numbers_are_independent_gaussians():
  z = gaussians(3, 7, np.arange(20_000)[:, None], np.arange(5)[None])
  for column in z.T:
    assert stats.kstest(column, 'norm').pvalue > 1e-4
  correlations = np.corrcoef(np.concatenate([z.T, np.square(z.T)]))
  assert np.abs(correlations - np.eye(10)).max() < 5 / np.sqrt(20_000)


@pytest.mark.parametrize('xp', [np, jnp])
def test_cosine_and_sine_are_exact_to_float32_all_the_way_round(xp):
  eighths = np.arange(9, dtype=np.int64)[:, None] * 2**29 + np.arange(-2, 3)
  anywhere = np.random.default_rng(0).integers(0, 2**32, 100_000)
  turns = np.concatenate([eighths.ravel() % 2**32, anywhere]).astype(np.uint32)
  with np.errstate(over='ignore'):
    found = cosine_and_sine(xp, xp.asarray(turns))
  angle = 2 * np.pi * turns / 2**32
  for values, exact in zip(found, (np.cos(angle), np.sin(angle)), strict=True):
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, exact, atol=1.5e-7)


@pytest.mark.parametrize('change', ['seed', 'key', 'candidate'])
def test_other_addresses_have_other_numbers(change):
  address = {'seed': 1, 'key': 2, 'candidate': 3}
  first = gaussians(address['seed'], address['key'], address['candidate'], np.arange(4000))
  address[change] += 1
  other = gaussians(address['seed'], address['key'], address['candidate'], np.arange(4000))
  assert abs(np.corrcoef(first, other)[0, 1]) < 0.08


def test_numpy_and_jax_agree():
  pairs = np.arange(50_000, dtype=np.uint32)
  key = np.uint32(5), np.uint32(6)
  of_jax = jax.jit(lambda p: gaussian_pairs(jnp, key, jnp.uint32(9), p))(pairs)
  of_numpy = gaussians(5, 6, 9, np.arange(100_000)).reshape(-1, 2)
  np.testing.assert_allclose(np.stack(of_jax, -1), of_numpy, atol=2e-6)
