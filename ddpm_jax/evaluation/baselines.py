"""What simple models reach on the same data: a Gaussian, and independent marginals.

Both are fitted to the training split alone. What they leave open (how much a covariance is shrunk,
how fine a histogram is, whether classes are told apart) is what suits the last fifth of the split
best, after which they are fitted to all of it. Their code lengths are exact for the Gaussian of
values of any kind and for the marginals; for whole numbers the Gaussian's is that of x_0 with
uniform noise of a level's width, which no code of the levels is longer than (Theis et al. 2016).
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

MAX_GAUSSIAN_DIMS = 8192  # whose covariance has half a GiB
MAX_VALUES = 1 << 24  # of the training examples; more are thinned out evenly
CHUNK = 256  # examples whose spectra are in memory at a time
SHRINKAGES = (0.01, 0.03, 0.1, 0.3, 0.9)
NUM_BINS = (8, 16, 32, 64, 128, 256, 1024)
REACH = 16.0  # of the outermost bins of values of any kind, on both sides, in x_0


class Baseline(Protocol):
  """A fitted model."""

  def nats(self, x_0: np.ndarray, classes: np.ndarray | None = None) -> np.ndarray:
    """Minus the logarithm of the probability (density, for values of any kind) of each example.

    Args:
      x_0: float64 [N, ..., C].
      classes: int [N], of a model that was fitted with them.

    Returns:
      float64 [N], nats for all dimensions.
    """

  def sample(self, rng: np.random.Generator, num: int, classes: np.ndarray | None) -> np.ndarray:
    """x_0 float64 [num, ..., C]; of the given classes, int [num], where it was fitted with some."""

  @property
  def words(self) -> str:
    """What was chosen, for a report."""


def _width(levels):
  """Of a level in x_0; 0 for values of any kind."""
  return 0.0 if levels is None else 2 / (levels - 1)


def thinned(count: int, dims: int) -> np.ndarray:
  """Which of so many examples baselines are fitted to, evenly spaced."""
  most = max(2, min(count, MAX_VALUES // dims))
  return np.arange(most) * count // most


# The Gaussian.


@dataclasses.dataclass(frozen=True)
class Gaussian:
  """N(mean, L L'), of x_0, in levels of a width or of any values.

  Attributes:
    mean: float64 [..., C].
    factor: L, float64 [d, d], lower triangular.
    width: of a level in x_0; 0 for values of any kind.
    words: what was chosen.
  """

  mean: np.ndarray
  factor: np.ndarray
  width: float
  words: str = ''

  def nats(self, x_0: np.ndarray, classes: np.ndarray | None = None) -> np.ndarray:
    """As Baseline; for levels, the mean over uniform noise within one, in closed form."""
    import scipy.linalg

    dims = len(self.factor)
    centred = (x_0 - self.mean).reshape(len(x_0), dims)
    whitened = scipy.linalg.solve_triangular(self.factor, centred.T, lower=True)
    nats = 0.5 * np.square(whitened).sum(axis=0) + np.log(np.diag(self.factor)).sum()
    nats += 0.5 * dims * np.log(2 * np.pi)
    if self.width:
      inverse, _ = scipy.linalg.lapack.dtrtri(self.factor, lower=1)
      nats += np.square(inverse).sum() * self.width**2 / 24 - dims * np.log(self.width)
    return nats

  def sample(self, rng: np.random.Generator, num: int, classes: np.ndarray | None) -> np.ndarray:
    """As Baseline."""
    noise = rng.standard_normal((num, len(self.factor)))
    return self.mean + (noise @ self.factor.T).reshape(num, *self.mean.shape)


def gaussians(
  x_0: np.ndarray, levels: int | None, only: str | None = None
) -> Iterator[tuple[str, Gaussian | None]]:
  """Gaussians with the mean and the covariance of examples, the latter shrunk in several ways.

  Args:
    x_0: float64 [N, ..., C].
    levels: of the data; None for values of any kind.
    only: the name of the only one that is wanted.

  Yields:
    (name, Gaussian), or None where the covariance is none.
  """
  width, mean, targets = _width(levels), x_0.mean(axis=0), {}
  covariance = _covariance(x_0 - mean)
  for target, make in (('its diagonal', _diagonal), ('a stationary one', _stationary)):
    for amount in SHRINKAGES:
      name = f'covariance shrunk by {amount:g} to {target}'
      if only not in (None, name):
        continue
      if target not in targets:
        targets = {target: make(covariance, x_0 - mean)}
      mixed = (1 - amount) * covariance + amount * targets[target]
      mixed[np.diag_indices_from(mixed)] += width**2 / 12 + 1e-12
      try:
        yield name, Gaussian(mean, np.linalg.cholesky(mixed), width)
      except np.linalg.LinAlgError:
        yield name, None


def _covariance(centred):
  flat = centred.reshape(len(centred), -1)
  return flat.T @ flat / len(flat)


def _diagonal(covariance, centred):
  return np.diag(np.diag(covariance))


def _stationary(covariance, centred):
  """The covariance averaged over all pairs of positions of the same distance."""
  num, *axes, channels = centred.shape
  padded, spatial = [2 * length for length in axes], tuple(range(1, len(axes) + 1))
  cross = np.zeros((channels, channels, *padded[:-1], padded[-1] // 2 + 1), complex)
  for first in range(0, num, CHUNK):
    spectra = np.fft.rfftn(centred[first : first + CHUNK], padded, axes=spatial)
    cross += np.einsum('n...a,n...b->ab...', np.conj(spectra), spectra) / num
  every_axis = tuple(range(len(axes)))
  pairs = np.abs(np.fft.rfftn(np.ones(axes), padded, axes=every_axis)) ** 2
  num_pairs = np.maximum(np.fft.irfftn(pairs, padded, axes=every_axis).round(), 1)
  by_lag = np.fft.irfftn(cross, padded, axes=tuple(range(2, cross.ndim))) / num_pairs
  grids = [(np.arange(n)[None] - np.arange(n)[:, None]) % (2 * n) for n in axes]  # j - i
  shape = (*axes, channels) * 2
  found, every = np.empty(shape), [slice(None)] * len(axes)
  for a, b in itertools.product(range(channels), repeat=2):
    found[(*every, a, *every, b)] = _of_pairs(by_lag[a, b], grids)
  return found.reshape(covariance.shape)


def _of_pairs(by_lag, grids):
  """[i_1, ..., i_n, j_1, ..., j_n] -> by_lag[j_1 - i_1, ..., j_n - i_n]."""
  num_axes, indices = len(grids), []
  for axis, grid in enumerate(grids):
    shape = [1] * (2 * num_axes)
    shape[axis], shape[num_axes + axis] = grid.shape
    indices.append(grid.reshape(shape))
  return by_lag[tuple(indices)]


# Independent marginals.


@dataclasses.dataclass(frozen=True)
class Marginals:
  """A histogram of each dimension, by itself.

  Attributes:
    edges: of the bins of each channel, float64 [B + 1] each, in x_0.
    shares: of each channel, float64 [P, B]; P is 1 or the number of positions.
    width: of a level in x_0; 0 for values of any kind.
    shape: of an example.
    words: what was chosen.
  """

  edges: tuple[np.ndarray, ...]
  shares: tuple[np.ndarray, ...]
  width: float
  shape: tuple[int, ...]
  words: str = ''

  def nats(self, x_0: np.ndarray, classes: np.ndarray | None = None) -> np.ndarray:
    """As Baseline; within a bin all values are as likely."""
    values = x_0.reshape(len(x_0), -1, self.shape[-1])
    nats = np.zeros(len(values))
    for channel, (edges, shares) in enumerate(zip(self.edges, self.shares, strict=True)):
      bins, outside = _bins_of(values[..., channel], edges)
      rows = np.arange(values.shape[1]) % len(shares)
      log_density = (np.log(shares) - np.log(np.diff(edges)))[rows, bins]
      nats -= np.where(outside, -np.inf, log_density).sum(axis=1)
    return nats - (int(np.prod(self.shape)) * np.log(self.width) if self.width else 0.0)

  def sample(self, rng: np.random.Generator, num: int, classes: np.ndarray | None) -> np.ndarray:
    """As Baseline."""
    positions = int(np.prod(self.shape[:-1]))
    found = np.empty((num, positions, self.shape[-1]))
    for channel, (edges, shares) in enumerate(zip(self.edges, self.shares, strict=True)):
      sums = np.cumsum(shares, axis=1)
      for position in range(positions):
        of_position = sums[position % len(sums)]
        bins = np.searchsorted(of_position, rng.random(num) * of_position[-1], side='right')
        low, high = edges[bins], edges[bins + 1]
        found[:, position, channel] = low + (high - low) * rng.random(num)
    return found.reshape(num, *self.shape)


def marginals(
  x_0: np.ndarray, levels: int | None, only: str | None = None
) -> Iterator[tuple[str, Marginals]]:
  """Histograms of several numbers of bins, of each channel or of each dimension.

  Bins have as many training values each, about; the outermost reach to the last level, or by REACH
  beyond values of any kind. Each bin counts one value more than was found in it.

  Args and Yields: as gaussians.
  """
  choices = [count for count in NUM_BINS if levels is None or count < levels]
  if levels is not None and levels <= NUM_BINS[-1]:
    choices.append(levels)
  for count, by_position in itertools.product(choices, (False, True)):
    name = f'{"each dimension" if by_position else "each channel"} in {count} bins'
    if only in (None, name):
      yield name, _marginals(x_0, levels, count, by_position)


def _marginals(x_0, levels, count, by_position):
  num, *_, channels = x_0.shape
  values = x_0.reshape(num, -1, channels)
  positions = values.shape[1] if by_position else 1
  edges, shares = [], []
  for c in range(channels):
    edges.append(_edges(values[..., c], count, levels))
    bins, _ = _bins_of(values[..., c], edges[c])
    rows, num_bins = np.arange(values.shape[1]) % positions, len(edges[c]) - 1
    cells = (rows * num_bins + bins).ravel()
    counts = np.bincount(cells, minlength=positions * num_bins).reshape(positions, num_bins) + 1.0
    shares.append(counts / counts.sum(axis=1, keepdims=True))
  return Marginals(tuple(edges), tuple(shares), _width(levels), x_0.shape[1:])


def _edges(values, count, levels):
  """Increasing float64 [B + 1], B at most `count`: quantiles, at the boundaries of levels."""
  inner = np.quantile(values, np.arange(1, count) / count)
  if levels is None:
    return np.unique([values.min() - REACH, *inner, values.max() + REACH])
  if count == levels:
    return (np.arange(levels + 1) - 0.5) * 2 / (levels - 1) - 1
  boundaries = np.floor((inner + 1) * (levels - 1) / 2) + 0.5  # between levels
  return np.unique([-0.5, *boundaries, levels - 0.5]) * 2 / (levels - 1) - 1


def _bins_of(values, edges):
  """(bins int, whether values lie outside of all), of values of any shape."""
  bins = np.searchsorted(edges, values, side='right') - 1
  outside = (bins < 0) | (bins >= len(edges) - 1)
  return np.clip(bins, 0, len(edges) - 2), outside


# By class, and the choice.


@dataclasses.dataclass(frozen=True)
class ByClass:
  """A model a class.

  Attributes:
    models: of each class.
    words: what was chosen.
  """

  models: tuple[Baseline, ...]
  words: str = ''

  def nats(self, x_0: np.ndarray, classes: np.ndarray | None = None) -> np.ndarray:
    """As Baseline."""
    assert classes is not None
    nats = np.empty(len(x_0))
    for class_, model in enumerate(self.models):
      chosen = classes == class_
      if chosen.any():
        nats[chosen] = model.nats(x_0[chosen])
    return nats

  def sample(self, rng: np.random.Generator, num: int, classes: np.ndarray | None) -> np.ndarray:
    """As Baseline."""
    assert classes is not None
    found = None
    for class_, model in enumerate(self.models):
      of_class = model.sample(rng, num, None)
      found = np.zeros_like(of_class) if found is None else found
      found[classes == class_] = of_class[classes == class_]
    assert found is not None
    return found


def fitted(
  candidates: Callable[..., Iterator[tuple[str, Baseline | None]]],
  x_0: np.ndarray,
  levels: int | None,
  classes: np.ndarray | None = None,
) -> Baseline | None:
  """The best of some models; None where there is none.

  Args:
    candidates: gaussians or marginals.
    x_0: float64 [N, ..., C], of the training split, in its order.
    levels: of the data; None for values of any kind.
    classes: int [N], by which models may differ; None for one model of all.
  """
  split = len(x_0) - len(x_0) // 5
  fit_to, judged_by = slice(split), slice(split, None)

  def models(rows, by_class, only=None):
    if not by_class:
      yield from candidates(x_0[rows], levels, only)
      return
    of_class = [x_0[rows][classes[rows] == i] for i in range(classes.max() + 1)]
    if min(map(len, of_class)) < 2:
      return
    for found in zip(*(candidates(x, levels, only) for x in of_class), strict=True):
      failed = any(model is None for _, model in found)
      yield found[0][0], None if failed else ByClass(tuple(model for _, model in found))

  best = None
  for by_class in (False,) if classes is None else (False, True):
    for name, model in models(fit_to, by_class):
      if model is not None:
        of_them = None if classes is None else classes[judged_by]
        score = model.nats(x_0[judged_by], of_them).mean()
        best = min(best or (score, name, by_class), (score, name, by_class))
  if best is None:
    return None
  _, name, by_class = best
  words = name if classes is None else f'{name}, {"by class" if by_class else "for all classes"}'
  chosen = next(iter(models(slice(None), by_class, only=name)))[1]
  return None if chosen is None else dataclasses.replace(chosen, words=words)
