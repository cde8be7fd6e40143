"""Precision and recall against all pairs, at the edges of balls, and torch-fidelity's numbers."""

import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.metrics.precision_recall import density_coverage, precision_recall


def by_all_pairs(real, generated, k):
  """The definition, with differences instead of products."""

  def distances(a, b):
    return np.square(a[:, None] - b[None]).sum(axis=2)

  def share(points, others):
    radii = np.sort(distances(others, others), axis=1)[:, k]  # the first is the point itself
    return (distances(points, others) <= radii).any(axis=1).mean()

  return share(generated, real), share(real, generated)


@pytest.mark.parametrize('k', [1, 3, 5])
@pytest.mark.parametrize('block_size', [1, 7, 2048])
def test_equals_all_pairs(k, block_size):
  rng = np.random.default_rng(0)
  real = rng.standard_normal((60, 3))
  generated = rng.standard_normal((45, 3)) * 0.7 + 1
  expected = by_all_pairs(real, generated, k)
  assert 0 < expected[0] < 1
  assert 0 < expected[1] < 1
  assert precision_recall(real, generated, k=k, block_size=block_size) == expected


def test_progress_ends_with_the_last_pair_of_blocks(capsys):
  rng = np.random.default_rng(0)
  precision_recall(*rng.standard_normal((2, 30, 3)), block_size=7, what='both')
  assert capsys.readouterr().out.startswith('both 100/100  ')


def test_a_block_is_in_memory_at_a_time():
  class Rows:
    def __init__(self, array):
      self._array, self.shape = array, array.shape

    def __array__(self, *args, **kwargs):
      raise AssertionError('all rows at once')

    def __len__(self):
      return len(self._array)

    def __getitem__(self, part):
      assert part.stop - part.start == 8
      return self._array[part]

  x, y = np.random.default_rng(7).standard_normal((2, 20, 3)).astype(np.float32)
  expected = precision_recall(x, y)
  assert precision_recall(Rows(x), Rows(y), block_size=8) == expected


def test_identical_sets_are_within_each_other():
  x = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32) + 100
  assert precision_recall(x, x.copy(), block_size=16) == (1, 1)


def test_duplicates_have_balls_of_radius_zero():
  # Every point is there k + 1 times, so that only an equal point is within its ball.
  x = np.repeat(np.random.default_rng(1).standard_normal((10, 8)), 4, axis=0) + 1000
  assert precision_recall(x, x.copy(), block_size=16) == (1, 1)
  assert precision_recall(x, x + 1e-2, block_size=16) == (0, 0)


def test_distant_sets_are_apart_and_a_point_is_not_its_own_neighbour():
  rng = np.random.default_rng(2)
  x, y = rng.standard_normal((2, 30, 4))
  assert precision_recall(x, y + 100) == (0, 0)
  # With k = 1, balls of radius zero would hold nothing.
  assert precision_recall(x, y, k=1)[0] > 0


def test_collapsed_samples_are_precise_and_recall_little():
  rng = np.random.default_rng(3)
  real = rng.standard_normal((200, 2))
  precision, recall = precision_recall(real, 0.01 * rng.standard_normal((200, 2)))
  assert precision == 1
  assert recall < 0.1


@pytest.mark.parametrize('offset', [0.0, 3.0, -250.0])
@pytest.mark.parametrize(('point', 'within'), [(0.0, 1), (1e-6, 1), (1.5, 1), (1.5 + 1e-6, 0)])
def test_the_edge_of_a_ball_is_within(point, within, offset):
  # Balls of radius 0.5 about -1, -0.5, 0.5 and 1, with 0 at the edge of two of them. The neighbour
  # that gives a radius is further from the origin than the point at the edge.
  real = np.array([[-1.0], [-0.5], [0.5], [1.0]]) + offset
  generated = np.full((2, 1), point) + offset
  assert precision_recall(real, generated, k=1)[0] == within


@pytest.mark.parametrize('block_size', [5, 64])
def test_the_edge_of_a_ball_is_within_whatever_the_rounding(block_size):
  # Points of a rotated grid: many distances are equal in mathematics, and none in float64.
  rng = np.random.default_rng(4)
  basis = np.linalg.qr(rng.standard_normal((64, 64)))[0]
  grid = np.stack(np.meshgrid(*[np.arange(4.0)] * 3), axis=-1).reshape(-1, 3)
  real, generated = grid @ basis[:3], (grid + np.eye(3)[0]) @ basis[:3]
  # Every grid point has 3 neighbours at distance 1; one step to the side is at the edge.
  assert precision_recall(real, generated, block_size=block_size) == (1, 1)


def test_equals_torch_fidelitys(reference):
  arrays = reference('fidelity_metrics')
  precision, recall = precision_recall(arrays['real'], arrays['generated'], k=3, block_size=128)
  assert precision == pytest.approx(float(arrays['precision']), abs=1e-7)  # float32 of 434 / 600
  assert recall == pytest.approx(float(arrays['recall']), abs=1e-7)  # of 387 / 500


def test_too_few_points_are_refused():
  with pytest.raises(UserError, match=r'3 images.*k = 3 need 4'):
    precision_recall(np.zeros((10, 2)), np.zeros((3, 2)))


@pytest.mark.parametrize('value', [np.nan, np.inf])
@pytest.mark.parametrize('row', [0, 19])  # in the first block and in the last
def test_features_that_are_not_finite_are_refused(row, value):
  x, y = np.random.default_rng(5).standard_normal((2, 20, 3))
  broken = x.copy()
  broken[row, 1] = value
  for pair in ((broken, y), (y, broken)):
    with pytest.raises(UserError, match='features are not finite') as caught:
      precision_recall(*pair, block_size=8)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('width', [1, 2, 4])  # one feature would be broadcast against the centre
def test_other_dimensions_are_refused(width):
  x = np.random.default_rng(6).standard_normal((20, 3))
  with pytest.raises(UserError, match=f'3 and {width} features: they are of different') as caught:
    precision_recall(x, np.resize(x, (20, width)))
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('k', [1, 5])
@pytest.mark.parametrize('block_size', [7, 2048])
def test_density_and_coverage_equal_all_pairs(k, block_size):
  rng = np.random.default_rng(0)
  real = rng.standard_normal((60, 3))
  generated = rng.standard_normal((45, 3)) * 0.7 + 1
  among = np.square(real[:, None] - real[None]).sum(axis=2)
  across = np.square(generated[:, None] - real[None]).sum(axis=2)
  within = across <= np.sort(among, axis=1)[:, k]  # the first is the point itself
  expected = within.sum() / (k * len(generated)), within.any(axis=0).mean()
  assert density_coverage(real, generated, k=k, block_size=block_size) == pytest.approx(expected)


def test_density_and_coverage_of_equal_distributions_are_those_of_their_theory():
  """1, and for as many of each 1 - prod (N - i) / (2 N - i), i = 1, ..., k (Naeem et al. 2020)."""
  rng, n, k = np.random.default_rng(0), 300, 5
  found = [density_coverage(*rng.standard_normal((2, n, 2)), k=k) for _ in range(20)]
  expected = 1 - np.prod([(n - i) / (2 * n - i) for i in range(1, k + 1)])
  density, coverage = np.mean(found, axis=0)
  assert density == pytest.approx(1, abs=0.05)
  assert coverage == pytest.approx(expected, abs=0.01)


def test_an_outlier_changes_recall_more_than_density_and_coverage():
  rng = np.random.default_rng(1)
  real, generated = rng.standard_normal((2, 100, 2))
  generated *= 0.05
  moved = generated.copy()
  moved[:4] += 1000 * rng.standard_normal((4, 2))  # whose balls reach over all real points
  assert precision_recall(real, moved)[1] > precision_recall(real, generated)[1] + 0.1
  for a, b in zip(density_coverage(real, moved), density_coverage(real, generated), strict=True):
    assert a == pytest.approx(b, abs=0.08)
