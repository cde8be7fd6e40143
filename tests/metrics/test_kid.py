"""The kernel distance against sums over pairs, its expectation, and torch-fidelity's number."""

import numpy as np
import pytest

from ddpm_jax.metrics.kid import kid, mmd2_unbiased


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
  value, error = kid(arrays['real'], arrays['generated'], subset_size=100, num_subsets=200)
  assert 0 < error < whole / 5
  assert abs(value - whole) < 4 * error


def test_kid_grows_with_the_shift():
  rng = np.random.default_rng(2)
  x, y = rng.standard_normal((2, 300, 8))
  values = [kid(x, y + shift, num_subsets=20)[0] for shift in (0, 0.3, 1)]
  assert abs(values[0]) < values[1] < values[2]


def test_kid_is_a_function_of_its_seed():
  x, y = np.random.default_rng(3).standard_normal((2, 50, 4))
  settings = dict(subset_size=10, num_subsets=5)
  assert kid(x, y, seed=1, **settings) == kid(x, y, seed=1, **settings)
  assert kid(x, y, seed=1, **settings) != kid(x, y, seed=2, **settings)


def test_subsets_are_drawn_without_replacement(monkeypatch):
  seen = []
  monkeypatch.setattr('ddpm_jax.metrics.kid.mmd2_unbiased', lambda x, y: seen.append((x, y)) or 0.0)
  kid(np.arange(40.0)[:, None], np.arange(30.0)[:, None], subset_size=12, num_subsets=6)
  assert len(seen) == 6
  for pair in seen:
    assert [len(np.unique(subset)) for subset in pair] == [12, 12]


def test_subsets_of_small_sets_still_differ():
  x, y = np.random.default_rng(4).standard_normal((2, 20, 4))
  _, error = kid(x, y)  # of 1000 by default
  assert error > 0


def test_kid_reads_mapped_files(tmp_path):
  x, y = np.random.default_rng(5).standard_normal((2, 60, 4)).astype(np.float32)
  mapped = []
  for name, array in (('x', x), ('y', y)):
    np.save(tmp_path / f'{name}.npy', array)
    mapped.append(np.load(tmp_path / f'{name}.npy', mmap_mode='r'))
  assert kid(*mapped, num_subsets=5) == kid(x, y, num_subsets=5)


def test_too_few_images_are_refused():
  with pytest.raises(ValueError, match='3 images'):
    kid(np.zeros((100, 2)), np.zeros((3, 2)))
