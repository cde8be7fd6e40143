"""The kernel distance between features: an unbiased MMD^2 (Binkowski et al. 2018), in float64."""

import numpy as np


def mmd2_unbiased(x, y):
  """Unbiased squared maximum mean discrepancy with the kernel (x . y / d + 1)^3.

  Args:
    x, y: float [m, d] and [n, d], m and n at least 2.

  Returns:
    a float; its expectation is 0 for equal distributions, so it may be negative.
  """
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  d = x.shape[1]

  def within(x):
    kernel = (x @ x.T / d + 1) ** 3
    return (kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1))

  return float(within(x) + within(y) - 2 * ((x @ y.T / d + 1) ** 3).mean())


def kid(real, generated, *, subset_size=1000, num_subsets=100, seed=0):
  """KID: the mean of MMD^2 over random subsets.

  Args:
    real, generated: float [N, d] and [M, d], may be mapped from files.
    subset_size: of each, drawn without replacement; no more than half of the smaller set, so that
      subsets differ.
    num_subsets: how many.
    seed: of the draws.

  Returns:
    (mean, standard error): std over the subsets / sqrt(num_subsets), as published programs print
    the std; subsets overlap, so it is a little too small.

  Raises:
    ValueError: fewer than four images in a set.
  """
  smaller = min(len(real), len(generated))
  if smaller < 4:
    raise ValueError(f'{smaller} images: the kernel distance needs four at least')
  size = min(subset_size, smaller // 2)
  rng = np.random.default_rng(seed)

  def subset(features):
    return features[np.sort(rng.choice(len(features), size, replace=False))]

  values = [mmd2_unbiased(subset(real), subset(generated)) for _ in range(num_subsets)]
  return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(num_subsets))
