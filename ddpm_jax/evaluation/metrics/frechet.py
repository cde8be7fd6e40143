"""The Frechet distance between Gaussians fitted to features (Heusel et al. 2017), in float64."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ddpm_jax.errors import UserError


class Statistics(NamedTuple):
  """What the distance needs of a set of features.

  Attributes:
    count: N, or None where a published file does not say it.
    mean: float64 [d].
    covariance: float64 [d, d], divided by N - 1.
  """

  count: int | None
  mean: np.ndarray
  covariance: np.ndarray


def accumulate(blocks: Iterable[np.ndarray]) -> Statistics:
  """Statistics of features that come in blocks, one block in memory at a time.

  Args:
    blocks: iterable of float [n, d], N rows in all; n may be 0.

  Raises:
    UserError: fewer than two rows, rows of different lengths, or values that are not finite.
  """
  total = None
  for block in blocks:
    block = np.asarray(block, np.float64)
    if not np.isfinite(block).all():
      raise UserError('features are not finite: the images, or the network, are broken')
    if total is not None and block.shape[1:] != total[1].shape:
      raise UserError(f'blocks of {len(total[1])} and of {block.shape[1]} features cannot be mixed')
    if not len(block):
      continue
    mean = block.mean(axis=0)
    centred = block - mean
    part = len(block), mean, centred.T @ centred
    total = part if total is None else _add(total, part)
  if total is None or total[0] < 2:
    raise UserError(f'{total[0] if total else 0} image(s): a covariance needs two at least')
  count, mean, scatter = total
  return Statistics(count, mean, scatter / (count - 1))


def merge(a: Statistics, b: Statistics) -> Statistics:
  """Statistics of two sets together, as if they had been computed at once."""
  parts = [(s.count, s.mean, s.covariance * (s.count - 1)) for s in (a, b)]
  count, mean, scatter = _add(*parts)
  return Statistics(count, mean, scatter / (count - 1))


def _add(a, b):
  """Adds (count, mean, scatter about the mean) of two sets (Chan, Golub, LeVeque 1983)."""
  count = a[0] + b[0]
  shift = b[1] - a[1]
  mean = a[1] + shift * (b[0] / count)
  return count, mean, a[2] + b[2] + np.outer(shift, shift) * (a[0] * b[0] / count)


def frechet_distance(a: Statistics, b: Statistics) -> float:
  """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)).

  The last trace is the sum of the singular values of L_a' L_b, for S_a = L_a L_a' and likewise
  S_b: real and not negative, so few samples and singular covariances do no harm. The eigenvalues
  of L_a' S_b L_a are their squares, whose rounding would enter by its root.

  Args:
    a, b: Statistics.

  Returns:
    a float, at least 0.

  Raises:
    UserError: of another dimension, or not finite.
  """
  if a.mean.shape != b.mean.shape or a.covariance.shape != b.covariance.shape:
    raise UserError(
      f'statistics of {len(a.mean)} and of {len(b.mean)} features: they are of different networks'
    )
  for statistics in (a, b):
    if not (np.isfinite(statistics.mean).all() and np.isfinite(statistics.covariance).all()):
      raise UserError('statistics are not finite')
  shift = np.square(a.mean - b.mean).sum()
  traces = np.trace(a.covariance) + np.trace(b.covariance)
  return float(max(shift + traces - 2 * trace_sqrt_product(a.covariance, b.covariance), 0.0))


def trace_sqrt_product(a: np.ndarray, b: np.ndarray) -> float:
  """tr((A B)^(1/2)) for symmetric positive semi-definite A and B [d, d]."""
  import scipy.linalg  # here: it takes a while, and few need it

  return float(scipy.linalg.svdvals(_factor(a).T @ _factor(b)).sum())


def _factor(covariance):
  """L [d, r] with L L' = covariance, r its numerical rank."""
  import scipy.linalg

  # Cholesky with pivots, in a fortieth of the time of eigh.
  factor, pivots, rank, _ = scipy.linalg.lapack.dpstrf(covariance, lower=1)
  lower = np.zeros_like(covariance)
  lower[pivots - 1] = np.tril(factor)
  return lower[:, :rank]
