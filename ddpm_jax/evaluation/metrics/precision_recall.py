"""Improved precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al.
2020): by balls about points, a block of distances at a time."""

import contextlib

import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.storage import logs

# Distances^2 come from |x|^2 + |y|^2 - 2 x.y, which rounds in the last digits of |x|^2 + |y|^2: as
# much is forgiven at the edge of a ball, in the radius and in the distance, so that a point at the
# edge is within.
_FORGIVEN = 1e-9  # relative; float64 rounds by 2e-13 at d = 2048, at the very most


def precision_recall(
  real: np.ndarray,
  generated: np.ndarray,
  *,
  k: int = 3,
  block_size: int = 2048,
  what: str | None = None,
) -> tuple[float, float]:
  """Shares of images that lie within the other set's manifold.

  The manifold of a set is the union of balls about its points, each reaching to the k-th nearest of
  the others.

  Args:
    real, generated: float [N, d] and [M, d], more than k rows each; may be mapped from files.
    k: neighbour that gives a ball its radius.
    block_size: points compared at a time: block_size^2 distances are in memory.
    what: word for the progress; None for silence.

  Returns:
    (precision, recall): the share of generated points in the real manifold, and of real points in
    the generated one.

  Raises:
    UserError: too few points, of another dimension, or not finite.
  """
  a, b = _both(real, generated, k, block_size, 'precision and recall')
  with _counted(what, (len(a.starts) + len(b.starts)) ** 2) as count_pair:
    return _share_within(b, a, k, count_pair), _share_within(a, b, k, count_pair)


def density_coverage(
  real: np.ndarray,
  generated: np.ndarray,
  *,
  k: int = 5,
  block_size: int = 2048,
  what: str | None = None,
) -> tuple[float, float]:
  """How many real balls generated points lie in, and how many real balls have any (Naeem et al.).

  The balls are those of precision_recall, about real points alone: an outlier among the generated
  ones changes neither much, as it may change recall.

  Args:
    real, generated, block_size, what: as precision_recall has them.
    k: neighbour that gives a ball its radius.

  Returns:
    (density, coverage): real balls that a generated point lies in, on average and over k, of which
    the expectation is 1 for equal distributions; and the share of real balls that hold a generated
    point.

  Raises:
    UserError: as precision_recall.
  """
  a, b = _both(real, generated, k, block_size, 'density and coverage')
  covered, total = np.zeros(a.count, bool), 0
  with _counted(what, len(a.starts) * (len(a.starts) + len(b.starts))) as count_pair:
    for (start, _), within in _pairs_within(b, a, k, count_pair):
      total += int(within.sum())
      covered[start : start + within.shape[1]] |= within.any(axis=0)
  return total / (k * b.count), float(covered.mean())


def _both(real, generated, k, block_size, what):
  """The _Points of both sets."""
  smaller = min(len(real), len(generated))
  if smaller <= k:
    raise UserError(f'{smaller} images: {what} with k = {k} need {k + 1}')
  if real.shape[1:] != generated.shape[1:]:
    raise UserError(
      f'{real.shape[1]} and {generated.shape[1]} features: they are of different networks'
    )
  centre = _mean(real, block_size)  # fewer digits are lost near the origin
  return [_Points(features, centre, block_size) for features in (real, generated)]


@contextlib.contextmanager
def _counted(what, total):
  """Yields () -> None, to be called for each of so many pairs of blocks."""
  if not what:
    yield lambda: None
    return
  with contextlib.closing(logs.Progress(what, total, unit='blocks')) as progress:
    yield lambda: progress.add(1)


def _mean(features, block_size):
  starts = range(0, len(features), block_size)
  blocks = (np.asarray(features[start : start + block_size], np.float64) for start in starts)
  return sum(block.sum(axis=0) for block in blocks) / len(features)


class _Points:
  """Features and their squared norms, by blocks."""

  def __init__(self, features, centre, block_size):
    self._features, self._centre = features, centre
    self.starts = range(0, len(features), block_size)
    self._block_size = block_size
    self.count = len(features)

  def block(self, start):
    with np.errstate(invalid='ignore'):  # the centre is not finite either
      x = np.asarray(self._features[start : start + self._block_size], np.float64) - self._centre
    if not np.isfinite(x).all():
      raise UserError('features are not finite: the images, or the network, are broken')
    return x, np.square(x).sum(axis=1)


def _squared_distances(a, b):
  (x, x_norms), (y, y_norms) = a, b
  return x_norms[:, None] + y_norms - 2 * x @ y.T


def _squared_radii(points, start, k, count_pair):
  """Distance^2 of each point of a block to its k-th nearest neighbour, itself not counted.

  With what is forgiven: the neighbour is at most |x| + radius from the origin, so its |y|^2 is at
  most 2 |x|^2 + 2 radius^2.
  """
  own = points.block(start)
  nearest = np.full((len(own[0]), 0), np.inf)
  for other in points.starts:
    squares = _squared_distances(own, points.block(other))
    if other == start:
      np.fill_diagonal(squares, np.inf)
    nearest = np.concatenate([nearest, squares], axis=1)
    if nearest.shape[1] > k:
      nearest = np.partition(nearest, k - 1, axis=1)[:, :k]
    count_pair()
  radii = nearest.max(axis=1)
  return radii + _FORGIVEN * (3 * own[1] + 2 * radii)


def _pairs_within(points, others, k, count_pair):
  """For each pair of blocks, ((start of the others, start of the points), bool [points, others]):
  which points lie within which balls of the others; count_pair() is called for each pair."""
  for other in others.starts:
    balls = others.block(other)
    radii = _squared_radii(others, other, k, count_pair)
    for start in points.starts:
      queries = points.block(start)
      squares = _squared_distances(queries, balls)
      squares -= _FORGIVEN * (queries[1][:, None] + balls[1])
      yield (other, start), squares <= radii
      count_pair()


def _share_within(points, others, k, count_pair):
  """Share of points within a ball of the others."""
  found = np.zeros(points.count, bool)
  for (_, start), within in _pairs_within(points, others, k, count_pair):
    found[start : start + len(within)] |= within.any(axis=1)
  return float(found.mean())
