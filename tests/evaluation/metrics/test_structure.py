"""Spectra, autocorrelations and marginals, against series whose own are known."""

import numpy as np
import pytest

from ddpm_jax.evaluation.metrics import structure


def test_spectrum_of_a_sine_has_its_power_at_its_rate():
  length, cycles = 64, 5
  phases = np.random.default_rng(0).uniform(0, 2 * np.pi, (40, 1, 1))
  x = 3 * np.sin(2 * np.pi * cycles * np.arange(length)[:, None] / length + phases) + 1
  (power,) = structure.spectra(x)
  assert power.shape == (length // 2, 1)
  assert power[cycles - 1, 0] == pytest.approx(9 * length / 4)
  assert np.delete(power[:, 0], cycles - 1).max() < 1e-20


def test_spectrum_of_noise_is_flat():
  x = np.random.default_rng(0).standard_normal((500, 16, 12, 2))
  along, across = structure.spectra(x)
  assert along.shape == (8, 2)
  assert across.shape == (6, 2)
  np.testing.assert_allclose(along, 1, atol=0.05)
  np.testing.assert_allclose(across, 1, atol=0.05)


def test_autocorrelation_of_a_moving_average():
  noise = np.random.default_rng(0).standard_normal((4_000, 18, 1))
  (found,) = structure.autocorrelations(noise[:, 2:] + noise[:, 1:-1] + noise[:, :-2] + 7)
  np.testing.assert_allclose(found[:, 0], np.maximum(1 - np.arange(9) / 3, 0), atol=0.02)


def test_axes_are_told_apart():
  rng = np.random.default_rng(0)
  x = np.repeat(rng.standard_normal((300, 1, 8, 6, 1)), 10, axis=1)  # constant along the first
  first, second, third = structure.autocorrelations(x)
  np.testing.assert_allclose(first, 1, atol=1e-9)
  np.testing.assert_allclose(second[1:], 0, atol=0.05)
  np.testing.assert_allclose(third[1:], 0, atol=0.05)
  assert structure.spectra(x)[0].max() < 1e-20 < structure.spectra(x)[1].min()


def test_distances_of_scaled_and_of_shifted_examples():
  x = np.random.default_rng(0).standard_normal((200, 32, 3))
  assert structure.spectral_distance(x, 10 * x) == pytest.approx(20)
  assert structure.autocorrelation_distance(x, 10 * x) == pytest.approx(0, abs=1e-12)
  assert structure.marginal_distance(x, x + 0.5) == pytest.approx(0.5, rel=0.02)
  for distance in (
    structure.spectral_distance,
    structure.autocorrelation_distance,
    structure.marginal_distance,
    structure.channel_correlation_distance,
  ):
    assert distance(x, x) == 0


def test_channels_that_go_together_are_told_from_those_that_do_not():
  rng = np.random.default_rng(0)
  a, b = rng.standard_normal((2, 500, 8, 1))
  alone, together = np.concatenate([a, b], -1), np.concatenate([a, a], -1)
  assert structure.channel_correlation_distance(alone, together) == pytest.approx(1, abs=0.05)
  assert structure.channel_correlation_distance(a, b) == 0


def test_no_power_against_some_is_infinite():
  x = np.random.default_rng(0).standard_normal((3, 8, 1))
  assert structure.spectral_distance(x, 0 * x) == np.inf
  assert structure.spectral_distance(0 * x, 0 * x) == 0
