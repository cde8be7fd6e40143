"""The kernel distance between features: an unbiased MMD^2 (Binkowski et al. 2018), in float64."""

import numpy as np

from ddpm_jax.errors import UserError

MIN_SUBSETS = 10  # for the standard error
PUBLISHED_SUBSETS, PUBLISHED_SIZE = 100, 1000
PUBLISHED_SEED = 2020  # torch-fidelity's


def mmd2_unbiased(x: np.ndarray, y: np.ndarray) -> float:
  """Unbiased squared maximum mean discrepancy with the kernel (x . y / d + 1)^3.

  Args:
    x, y: float [m, d] and [n, d], m and n at least 2.

  Returns:
    a float; its expectation is 0 for equal distributions, so it may be negative.

  Raises:
    UserError: of another dimension, or not finite.
  """
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  d = x.shape[1]
  if y.shape[1] != d:
    raise UserError(f'{d} and {y.shape[1]} features: they are of different networks')
  if not (np.isfinite(x).all() and np.isfinite(y).all()):
    raise UserError('features are not finite: the images, or the network, are broken')

  def within(x):
    kernel = (x @ x.T / d + 1) ** 3
    return (kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1))

  return float(within(x) + within(y) - 2 * ((x @ y.T / d + 1) ** 3).mean())


def kid(
  real: np.ndarray, generated: np.ndarray, *, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
  """KID: the mean of MMD^2 over subsets that have no image in common.

  Published programs draw 100 subsets of 1,000 that overlap. The expectation is the same, but only
  without overlap do the subsets tell how far the mean may be off.

  Args:
    real, generated: float [N, d] and [M, d], may be mapped from files.
    subset_size: images of each set in a subset; fewer where that leaves less than ten subsets.
    seed: of the random order in which images go into subsets.

  Returns:
    (mean, standard error), the latter from the spread of the subsets.

  Raises:
    UserError: fewer than four images in a set, another dimension, or not finite.
  """
  smaller = min(len(real), len(generated))
  if smaller < 4:
    raise UserError(f'{smaller} images: the kernel distance needs four at least')
  num_subsets = min(max(MIN_SUBSETS, smaller // subset_size), smaller // 2)
  size = smaller // num_subsets
  rng = np.random.default_rng(seed)
  orders = [rng.permutation(len(features)) for features in (real, generated)]

  def subset(features, order, i):
    return features[np.sort(order[i * size : (i + 1) * size])]

  values = [
    mmd2_unbiased(subset(real, orders[0], i), subset(generated, orders[1], i))
    for i in range(num_subsets)
  ]
  return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(num_subsets))


def published_kid(
  real: np.ndarray,
  generated: np.ndarray,
  *,
  num_subsets: int = PUBLISHED_SUBSETS,
  subset_size: int = PUBLISHED_SIZE,
) -> tuple[float, float]:
  """KID as published programs have it: subsets that are drawn anew each time, and overlap.

  The numbers are those of torch-fidelity for the same features, draw for draw.

  Args:
    real, generated: float [N, d] and [M, d], subset_size rows or more; may be mapped from files.
    num_subsets: how many.
    subset_size: images of each set in a subset.

  Returns:
    (mean, standard deviation over subsets: what the mean may be off by it does not tell).

  Raises:
    UserError: too few images, another dimension, or not finite.
  """
  smaller = min(len(real), len(generated))
  if smaller < subset_size:
    raise UserError(f'{smaller} images: subsets of the published KID have {subset_size}')
  rng = np.random.RandomState(PUBLISHED_SEED)
  values = []
  for _ in range(num_subsets):
    rows = [rng.choice(len(x), subset_size, replace=False) for x in (generated, real)]
    values.append(mmd2_unbiased(generated[rows[0]], real[rows[1]]))
  return float(np.mean(values)), float(np.std(values))
