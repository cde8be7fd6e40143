"""The kernel distance against sums over pairs, its expectation, and torch-fidelity's number."""

import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.metrics.kid import kid, mmd2_unbiased, published_kid


def test_mmd2_is_the_sum_over_pairs():
  rng = np.random.default_rng(0)
  x, y = rng.standard_normal((5, 3)), rng.standard_normal((7, 3)) + 1

  def kernel(a, b):
    return (a @ b / 3 + 1) ** 3

  within = [
    np.mean([kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j])
    for z in (x, y)
  ]
  across = np.mean([kernel(a, b) for a in x for b in y])
  assert mmd2_unbiased(x, y) == pytest.approx(sum(within) - 2 * across, rel=1e-12)


def test_mmd2_is_zero_on_average_between_equal_distributions():
  rng = np.random.default_rng(1)
  values = [mmd2_unbiased(*rng.standard_normal((2, 20, 4))) for _ in range(2000)]
  error = np.std(values) / np.sqrt(len(values))
  assert abs(np.mean(values)) < 4 * error
  # The biased estimate, with the diagonal, would be seen: it is off by 2 E[k(x, x) - k(x, y)] / n,
  # more than 0.1 here.
  assert error < 0.02


def test_mmd2_equals_torch_fidelitys(reference):
  arrays = reference('fidelity_metrics')
  value = mmd2_unbiased(arrays['real'][:400], arrays['generated'][:400])
  assert value == pytest.approx(float(arrays['kid/mmd2_poly_unbiased_first_400']), rel=1e-11)


def test_kid_agrees_with_the_whole_sets(reference):
  arrays = reference('fidelity_metrics')
  whole = mmd2_unbiased(arrays['real'], arrays['generated'])
  value, error = kid(arrays['real'], arrays['generated'], subset_size=50)
  assert 0 < error < whole / 5
  assert abs(value - whole) < 4 * error


def test_kid_grows_with_the_shift():
  rng = np.random.default_rng(2)
  x, y = rng.standard_normal((2, 300, 8))
  values = [kid(x, y + shift)[0] for shift in (0, 0.3, 1)]
  assert abs(values[0]) < values[1] < values[2]


def test_kid_is_a_function_of_its_seed():
  x, y = np.random.default_rng(3).standard_normal((2, 50, 4))
  assert kid(x, y, seed=1) == kid(x, y, seed=1)
  assert kid(x, y, seed=1) != kid(x, y, seed=2)


def test_no_image_is_in_two_subsets(monkeypatch):
  seen = []
  monkeypatch.setattr(
    'ddpm_jax.evaluation.metrics.kid.mmd2_unbiased', lambda x, y: seen.append((x, y)) or 0.0
  )
  kid(np.arange(400.0)[:, None], np.arange(300.0)[:, None], subset_size=12)
  assert len(seen) == 25
  for subsets in zip(*seen, strict=True):
    assert [len(subset) for subset in subsets] == [12] * 25
    assert len(np.unique(np.concatenate(subsets))) == 300


@pytest.mark.parametrize('sizes', [(20, 20), (300, 300), (1500, 300)])
def test_the_standard_error_is_that_of_the_mean(sizes):
  rng = np.random.default_rng(4)
  draws = [kid(*(rng.standard_normal((size, 4)) for size in sizes)) for _ in range(60)]
  values, errors = np.transpose(draws)
  spread = values.std(ddof=1)
  assert np.sqrt(np.mean(errors**2)) == pytest.approx(spread, rel=0.35)
  assert abs(values.mean()) < 4 * spread / np.sqrt(60)


def test_kid_reads_mapped_files(tmp_path):
  x, y = np.random.default_rng(5).standard_normal((2, 60, 4)).astype(np.float32)
  mapped = []
  for name, array in (('x', x), ('y', y)):
    np.save(tmp_path / f'{name}.npy', array)
    mapped.append(np.load(tmp_path / f'{name}.npy', mmap_mode='r'))
  assert kid(*mapped) == kid(x, y)


def test_too_few_images_are_refused():
  with pytest.raises(UserError, match='3 images'):
    kid(np.zeros((100, 2)), np.zeros((3, 2)))


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(value):
  x, y = np.random.default_rng(6).standard_normal((2, 20, 3))
  broken = x.copy()
  broken[4, 1] = value
  for pair in ((broken, y), (y, broken)):
    with pytest.raises(UserError, match='features are not finite') as caught:
      mmd2_unbiased(*pair)
    assert '\n' not in str(caught.value)
  with pytest.raises(UserError, match='features are not finite'):
    kid(np.full_like(x, value), y)


@pytest.mark.parametrize('width', [1, 2, 4])
def test_other_dimensions_are_refused(width):
  with pytest.raises(UserError, match=f'3 and {width} features: they are of different') as caught:
    kid(np.zeros((20, 3)), np.zeros((20, width)))
  assert '\n' not in str(caught.value)


def test_the_published_protocol_draws_overlapping_subsets(reference):
  arrays = reference('fidelity_metrics')
  value, deviation = published_kid(arrays['real'], arrays['generated'], subset_size=100)
  whole = mmd2_unbiased(arrays['real'], arrays['generated'])
  assert value == pytest.approx(
    whole, abs=5 * deviation / np.sqrt(500 / 100)
  )  # what overlap leaves
  # Of torch-fidelity 0.4, for these features and subsets of 100: the same draws.
  assert value == pytest.approx(0.020929369926452637, rel=1e-5)
  assert deviation == pytest.approx(0.01664534295378813, rel=1e-5)
  with pytest.raises(UserError, match=r'500 images: subsets of the published KID have 1000'):
    published_kid(arrays['real'], arrays['generated'])
