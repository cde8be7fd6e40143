"""The Gaussian and the marginals that samples stand beside, against exact likelihoods."""

import itertools

import numpy as np
import pytest
import scipy.stats

from ddpm_jax.evaluation import baselines


def correlated(rng, num, shape):
  """Gaussian examples whose neighbours along the first axis go together."""
  noise = rng.standard_normal((num, shape[0] + 2, *shape[1:]))
  return 0.1 * (noise[:, 2:] + noise[:, 1:-1] + noise[:, :-2])


@pytest.mark.parametrize('shape', [(6, 2), (3, 4, 1), (2, 3, 2, 1)])
def test_gaussian_of_values_has_the_density_of_scipy(shape):
  rng = np.random.default_rng(0)
  x_0, others = correlated(rng, 400, shape), correlated(rng, 20, shape)
  for name, model in baselines.gaussians(x_0, None):
    if model is None:
      continue
    covariance = model.factor @ model.factor.T
    exact = scipy.stats.multivariate_normal(model.mean.ravel(), covariance)
    expected = -exact.logpdf(others.reshape(20, -1))
    np.testing.assert_allclose(model.nats(others), expected, rtol=1e-8, err_msg=name)


def test_gaussian_of_levels_is_the_mean_over_noise_within_a_level():
  rng = np.random.default_rng(0)
  levels, width = 5, 0.5
  x_0 = rng.integers(0, levels, (300, 2, 1)) / 2 - 1
  _, model = next(baselines.gaussians(x_0, levels))
  offsets = (np.arange(400) + 0.5) / 400 * width - width / 2
  noise = np.stack(np.meshgrid(offsets, offsets), -1).reshape(-1, 2, 1)
  exact = scipy.stats.multivariate_normal(model.mean.ravel(), model.factor @ model.factor.T)
  for example in x_0[:3]:
    expected = -(exact.logpdf((example + noise).reshape(-1, 2)) + 2 * np.log(width)).mean()
    assert model.nats(example[None])[0] == pytest.approx(expected, rel=1e-4)


def test_code_of_levels_is_no_shorter_than_a_code_can_be():
  """Kraft: the probabilities that the code lengths stand for sum to at most one."""
  rng = np.random.default_rng(1)
  levels = 4
  x_0 = rng.integers(0, levels, (200, 2, 1)) * 2 / 3 - 1
  every = np.array(list(itertools.product(range(levels), repeat=2))).reshape(-1, 2, 1) * 2 / 3 - 1
  for _, model in baselines.gaussians(x_0, levels):
    assert model is None or np.exp(-model.nats(every)).sum() < 1
  for name, model in baselines.marginals(x_0, levels):
    assert np.exp(-model.nats(every)).sum() == pytest.approx(1, abs=1e-12), name


def test_stationary_target_is_the_covariance_of_a_stationary_process():
  rng = np.random.default_rng(0)
  centred = correlated(rng, 20_000, (5, 1))
  found = baselines._stationary(np.empty((5, 5)), centred)
  lags = np.abs(np.arange(5)[:, None] - np.arange(5))
  np.testing.assert_allclose(found, 0.01 * np.maximum(3 - lags, 0), atol=6e-4)
  np.testing.assert_allclose(found, found.T, atol=1e-12)
  assert found[0, 1] == pytest.approx(found[3, 4])


def test_stationary_target_has_the_mean_over_pairs_of_each_distance():
  """Two axes of other lengths, two channels: pair by pair."""
  centred = np.random.default_rng(0).standard_normal((3, 2, 3, 2))
  found = baselines._stationary(np.empty((12, 12)), centred).reshape(2, 3, 2, 2, 3, 2)
  for y, x in itertools.product((-1, 0, 1), (-2, -1, 0, 1, 2)):
    pairs = [
      ((i, j), (i + y, j + x))
      for i, j in itertools.product(range(2), range(3))
      if 0 <= i + y < 2 and 0 <= j + x < 3
    ]
    for a, b in itertools.product(range(2), repeat=2):
      expected = np.mean([centred[:, *p, a] * centred[:, *q, b] for p, q in pairs])
      for p, q in pairs:
        assert found[(*p, a, *q, b)] == pytest.approx(expected)


def test_marginals_of_values_integrate_to_one():
  rng = np.random.default_rng(0)
  x_0 = rng.standard_normal((500, 1, 2)) * (0.1, 0.3)
  grid = np.linspace(-20, 20, 400_001)
  for name, model in baselines.marginals(x_0, None):
    edges, shares = model.edges[0], model.shares[0]
    bins = np.clip(np.searchsorted(edges, grid, side='right') - 1, 0, len(edges) - 2)
    density = np.where(
      (grid < edges[0]) | (grid >= edges[-1]), 0, (shares / np.diff(edges))[0][bins]
    )
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=2e-2), name


def test_marginals_know_channels_and_positions():
  rng = np.random.default_rng(0)
  x_0 = np.stack([rng.normal(-0.5, 0.1, (600, 4)), rng.normal(0.5, 0.02, (600, 4))], axis=-1)
  x_0[:, 0] += 0.2
  model = baselines.fitted(baselines.marginals, x_0, None)
  assert 'each dimension' in model.words
  drawn = model.sample(np.random.default_rng(1), 4_000, None)
  inside = np.abs(drawn) < 2  # and not in the outermost bins
  for position, channel in itertools.product(range(4), range(2)):
    of_one = drawn[:, position, channel][inside[:, position, channel]]
    assert np.median(of_one) == pytest.approx(np.median(x_0[:, position, channel]), abs=0.03)


def test_best_shrinkage_is_judged_by_the_last_fifth():
  """Few examples of many dimensions are shrunk a lot, many of few hardly at all."""
  rng = np.random.default_rng(0)
  few = baselines.fitted(baselines.gaussians, correlated(rng, 30, (20, 1)), None)
  many = baselines.fitted(baselines.gaussians, correlated(rng, 5_000, (4, 1)), None)

  def amount(model):
    return float(model.words.split()[3])

  assert amount(few) > 0.05 > amount(many)


def test_samples_of_the_gaussian_have_its_moments():
  rng = np.random.default_rng(0)
  x_0 = correlated(rng, 3_000, (4, 2)) + 0.3
  model = baselines.fitted(baselines.gaussians, x_0, None)
  drawn = model.sample(np.random.default_rng(1), 40_000, None)
  flat = drawn.reshape(len(drawn), -1)
  np.testing.assert_allclose(drawn.mean(0), model.mean, atol=5e-3)
  np.testing.assert_allclose(np.cov(flat.T), model.factor @ model.factor.T, atol=1e-3)


def test_models_of_classes_are_taken_where_classes_differ():
  rng = np.random.default_rng(0)
  classes = np.arange(900) % 3
  x_0 = 0.05 * rng.standard_normal((900, 3, 1)) + 0.3 * (classes - 1)[:, None, None]
  for kind in (baselines.gaussians, baselines.marginals):
    apart = baselines.fitted(kind, x_0, None, classes)
    together = baselines.fitted(kind, x_0, None)
    assert apart.words.endswith('by class')
    assert apart.nats(x_0, classes).mean() < together.nats(x_0).mean() - 1
    drawn = apart.sample(np.random.default_rng(1), 6, np.array([0, 1, 2, 0, 1, 2]))
    assert drawn.shape == (6, 3, 1)
  same = baselines.fitted(
    baselines.gaussians, 0.1 * rng.standard_normal((900, 3, 1)), None, classes
  )
  assert same.words.endswith('for all classes')


def test_examples_are_thinned_out_evenly():
  assert baselines.thinned(10, 4).tolist() == list(range(10))
  dims = baselines.MAX_VALUES // 5
  assert baselines.thinned(10, dims).tolist() == [0, 2, 4, 6, 8]
