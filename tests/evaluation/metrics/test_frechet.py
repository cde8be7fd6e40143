"""The Frechet distance against closed forms, and the numbers of two other programs."""

import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.metrics.frechet import (
  Statistics,
  accumulate,
  frechet_distance,
  merge,
  trace_sqrt_product,
)


def features(seed, count, d, mean=0.0):
  rng = np.random.default_rng(seed)
  return mean + rng.standard_normal((count, d)) @ rng.standard_normal((d, d))


def rotation(seed, d):
  return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]


def gaussian(mean, covariance):
  return Statistics(None, np.asarray(mean, np.float64), np.asarray(covariance, np.float64))


def test_statistics_are_the_mean_and_the_covariance():
  x = features(0, 50, 7, mean=3.0)
  statistics = accumulate([x])
  assert statistics.count == 50
  np.testing.assert_allclose(statistics.mean, x.mean(axis=0), rtol=1e-13)
  np.testing.assert_allclose(statistics.covariance, np.cov(x, rowvar=False), rtol=1e-11)


@pytest.mark.parametrize('mean', [0.0, 1e6])
def test_blocks_and_merged_parts_equal_the_whole(mean, relative_error):
  x = features(1, 300, 9) + mean
  whole = accumulate([x])
  blocks = accumulate(iter([x[:1], x[1:120], x[120:120], x[120:]]))  # also one row, and none
  merged = merge(accumulate([x[:37]]), accumulate([x[37:]]))
  # A mean of 1e6 rounds the features themselves to 1e-10.
  tolerance = 1e-12 if mean == 0 else 1e-9
  for statistics in (blocks, merged):
    assert statistics.count == 300
    assert relative_error(statistics.mean, whole.mean) < 1e-12
    assert relative_error(statistics.covariance, whole.covariance) < tolerance
    assert relative_error(statistics.covariance, np.cov((x - mean).T)) < tolerance


def test_float32_features_are_summed_in_float64(relative_error):
  x = (features(2, 2000, 5) + 1000).astype(np.float32)
  statistics = accumulate(x[i : i + 100] for i in range(0, 2000, 100))
  assert statistics.covariance.dtype == np.float64
  assert relative_error(statistics.covariance, np.cov(x.astype(np.float64).T)) < 1e-12


@pytest.mark.parametrize('count', [400, 20, 2])  # of 48 dimensions: 20 and 2 are singular
def test_distance_to_itself_is_zero(count):
  statistics = accumulate([features(3, count, 48, mean=5.0)])
  assert frechet_distance(statistics, statistics) <= 1e-9 * np.trace(statistics.covariance)


def test_distance_to_itself_is_zero_with_a_steep_spectrum():
  basis = rotation(4, 256)
  covariance = (basis * np.arange(1, 257.0) ** -4) @ basis.T
  statistics = gaussian(np.ones(256), (covariance + covariance.T) / 2)
  assert frechet_distance(statistics, statistics) <= 1e-9 * np.trace(covariance)


def test_distance_in_one_dimension():
  # (mu_a - mu_b)^2 + (sigma_a - sigma_b)^2
  a, b = gaussian([1.0], [[9.0]]), gaussian([-1.0], [[0.25]])
  assert frechet_distance(a, b) == pytest.approx(2**2 + 2.5**2, rel=1e-14)


def test_distance_of_commuting_covariances():
  # |mu_a - mu_b|^2 + sum (sqrt(l_a) - sqrt(l_b))^2, over the eigenvalues in a common basis
  rng = np.random.default_rng(5)
  basis, (mean_a, mean_b) = rotation(6, 30), rng.standard_normal((2, 30))
  l_a, l_b = rng.uniform(0, 4, (2, 30))
  l_a[:10] = 0  # singular, and b is not
  a, b = gaussian(mean_a, (basis * l_a) @ basis.T), gaussian(mean_b, (basis * l_b) @ basis.T)
  expected = np.square(mean_a - mean_b).sum() + np.square(np.sqrt(l_a) - np.sqrt(l_b)).sum()
  # An eigenvalue of 0 is known to 1e-16 of the largest, and enters by its root.
  assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)


def test_distance_is_symmetric_and_does_not_see_a_rotation():
  a, b = features(7, 200, 24), features(8, 15, 24, mean=0.5)
  turn = rotation(9, 24)
  distance = frechet_distance(accumulate([a]), accumulate([b]))
  assert distance > 1
  assert frechet_distance(accumulate([b]), accumulate([a])) == pytest.approx(distance, rel=1e-11)
  turned = frechet_distance(accumulate([a @ turn]), accumulate([b @ turn]))
  assert turned == pytest.approx(distance, rel=1e-11)


def test_distance_to_a_point_is_the_trace():
  a, point = accumulate([features(10, 40, 6)]), gaussian(np.zeros(6), np.zeros((6, 6)))
  expected = np.square(a.mean).sum() + np.trace(a.covariance)
  assert frechet_distance(a, point) == pytest.approx(expected, rel=1e-13)
  assert frechet_distance(point, a) == pytest.approx(expected, rel=1e-13)
  assert frechet_distance(point, point) == 0


@pytest.mark.parametrize('rank_a', [0, 1, 5, 12])
@pytest.mark.parametrize('rank_b', [0, 1, 12])
@pytest.mark.parametrize('scale', [1e-8, 1, 1e8])
def test_distance_of_any_ranks_and_scales_is_within_its_bounds(rank_a, rank_b, scale):
  # 0 <= tr (S_a S_b)^(1/2) <= sqrt(tr S_a tr S_b)
  rng = np.random.default_rng(12)
  a, b = (rng.standard_normal((12, rank)) for rank in (rank_a, rank_b))
  b *= scale
  mean_a, mean_b = rng.standard_normal((2, 12))
  distance = frechet_distance(gaussian(mean_a, a @ a.T), gaussian(mean_b, b @ b.T))
  traces = np.square(a).sum(), np.square(b).sum()
  shift = np.square(mean_a - mean_b).sum()
  highest = shift + sum(traces)
  rounding = 1e-12 * highest
  assert distance <= highest + rounding
  assert distance >= highest - 2 * np.sqrt(traces[0] * traces[1]) - rounding
  if rank_a == rank_b == 1:  # the root's trace is |a . b|
    expected = highest - 2 * abs(a.ravel() @ b.ravel())
    assert distance == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize('block_size', [1, 2, 7, 64, 300])
def test_statistics_do_not_depend_on_the_size_of_blocks(block_size, relative_error):
  x = features(13, 300, 9, mean=1e3)
  statistics = accumulate(x[i : i + block_size] for i in range(0, 300, block_size))
  assert statistics.count == 300
  assert relative_error(statistics.mean, x.mean(axis=0)) < 1e-13
  assert relative_error(statistics.covariance, np.cov(x.T)) < 1e-11


@pytest.mark.parametrize('case', ['fullrank', 'rankdef', 'pool2048'])
def test_distance_equals_the_original_programs(reference, case):
  # The original takes roots of singular values of 1e-10 and more, and leaves the smaller as they
  # are. In a singular case those are rounding noise, 1e-15 of the largest: d of them, unrooted,
  # add at most d * 1e-10 (6e-10 of pool2048's distance), and as stored 1e-13; here they are
  # dropped. Hence one tolerance for all.
  arrays = reference('metrics')
  a, b = (accumulate([arrays[f'{case}/{name}']]) for name in ('real', 'gen'))
  distance = frechet_distance(a, b)
  assert distance == pytest.approx(arrays[f'{case}/fid_float64_in'], rel=1e-11)
  assert distance == pytest.approx(arrays[f'{case}/fid_float32_in'], rel=1e-7)


def test_distance_of_the_originals_identical_sets(reference):
  arrays = reference('metrics')
  a, b = (accumulate([arrays[f'identical/{name}']]) for name in ('real', 'gen'))
  assert abs(frechet_distance(a, b) - arrays['identical/fid_float64_in']) < 1e-11


def test_trace_equals_the_original_programs(reference, relative_error):
  arrays = reference('metrics')
  sigma, sigma_w = arrays['sqrtm/sigma'], arrays['sqrtm/sigma_w']
  expected = arrays['sqrtm/trace_sqrt_product']
  assert trace_sqrt_product(sigma, sigma_w) == pytest.approx(expected, rel=1e-12)
  # tr (S I)^(1/2) is the trace of the root.
  root = arrays['sqrtm/symmetric_sqrt_sigma']
  assert relative_error(root @ root, sigma) < 1e-12
  assert trace_sqrt_product(sigma, np.eye(48)) == pytest.approx(np.trace(root), rel=1e-12)


def test_statistics_equal_torch_fidelitys(reference, relative_error):
  arrays = reference('fidelity_metrics')
  for name in ('real', 'generated'):
    statistics = accumulate([arrays[name]])
    assert relative_error(statistics.covariance, arrays[f'fid/sigma_{name}']) < 1e-13
    assert relative_error(statistics.mean, arrays[f'fid/mu_{name}']) < 1e-6  # its mean is float32


def test_distance_equals_torch_fidelitys(reference):
  # It keeps the means, and the dot product of their difference, in float32: 3e-8 of the result.
  # With that product in the place of ours, they agree to rounding.
  arrays = reference('fidelity_metrics')
  real, generated = accumulate([arrays['real']]), accumulate([arrays['generated']])
  distance = frechet_distance(real, generated)
  assert distance == pytest.approx(arrays['fid'], rel=1e-7)
  shift32 = arrays['fid/mu_generated'] - arrays['fid/mu_real']
  corrected = distance - np.square(real.mean - generated.mean).sum() + float(shift32 @ shift32)
  assert corrected == pytest.approx(arrays['fid'], rel=1e-12)

  few = accumulate([arrays['generated'][:24]])
  assert frechet_distance(few, real) == pytest.approx(arrays['fid/few_generated'], rel=1e-7)


@pytest.mark.parametrize('blocks', [[], [np.zeros((0, 3))], [np.zeros((1, 3))]])
def test_fewer_than_two_rows_are_refused(blocks):
  with pytest.raises(UserError, match='two at least'):
    accumulate(blocks)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value):
  x = features(11, 10, 3)
  good = accumulate([x])
  x[4, 1] = value
  with pytest.raises(UserError, match='not finite'):
    accumulate([x])
  with pytest.raises(UserError, match='not finite'):
    frechet_distance(good, good._replace(mean=x[4]))
  covariance = good.covariance.copy()
  covariance[1, 1] = value
  for pair in ((good, good._replace(covariance=covariance)), (good._replace(mean=x[4]), good)):
    with pytest.raises(UserError, match='not finite'):
      frechet_distance(*pair)


def test_other_dimensions_are_refused():
  with pytest.raises(UserError, match='of 3 and of 4 features cannot'):
    accumulate([np.zeros((5, 3)), np.zeros((5, 4))])
  with pytest.raises(UserError, match='of 3 and of 4 features'):
    frechet_distance(gaussian(np.zeros(3), np.eye(3)), gaussian(np.zeros(4), np.eye(4)))
