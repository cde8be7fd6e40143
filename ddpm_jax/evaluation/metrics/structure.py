"""Structure of examples along their axes: spectra, autocorrelations, marginals, nearest examples.

Everything is of examples float [N, ..., C] with any number of spatial axes, in float64.
"""

import numpy as np

NUM_QUANTILES = 1024


def spectra(x: np.ndarray) -> list[np.ndarray]:
  """Power along each spatial axis, of lines of one length.

  Args:
    x: float [N, ..., C].

  Returns:
    for each axis, float64 [L // 2, C]: the mean over examples and lines of |DFT|^2 / L at 1, ...,
    L // 2 cycles a line. A line of one has none.
  """
  found = []
  for axis in range(1, x.ndim - 1):
    length = x.shape[axis]
    power = np.abs(np.fft.rfft(np.asarray(x, np.float64), axis=axis)) ** 2 / length
    found.append(_lines(power, axis).mean(axis=0)[1:])
  return found


def autocorrelations(x: np.ndarray) -> list[np.ndarray]:
  """Correlation of values that lie some positions apart, along each spatial axis.

  Args:
    x: float [N, ..., C].

  Returns:
    for each axis, float64 [L // 2 + 1, C], at lags 0, ..., L // 2; deviations are from the mean of
    a channel over all positions and examples.
  """
  centred = np.asarray(x, np.float64) - np.mean(x, axis=tuple(range(x.ndim - 1)), dtype=np.float64)
  variance = np.square(centred).reshape(-1, x.shape[-1]).mean(axis=0)
  variance[variance == 0] = 1.0
  found = []
  for axis in range(1, x.ndim - 1):
    lines = _lines(centred, axis)
    length = lines.shape[1]
    rows = [
      np.mean(lines[:, : length - lag] * lines[:, lag:], axis=(0, 1)) / variance
      for lag in range(length // 2 + 1)
    ]
    found.append(np.stack(rows))
  return found


def _lines(x, axis):
  """[N, ..., C] -> [lines, L, C]."""
  moved = np.moveaxis(x, axis, -2)
  return moved.reshape(-1, *moved.shape[-2:])


def quantiles(x: np.ndarray) -> np.ndarray:
  """Of each channel's values, float64 [NUM_QUANTILES, C], at the middles of equal shares."""
  shares = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
  return np.quantile(np.asarray(x, np.float64).reshape(-1, x.shape[-1]), shares, axis=0)


def spectral_distance(real: np.ndarray, other: np.ndarray) -> float:
  """Mean of the absolute difference of the spectra, in decibels, over axes, rates and channels.

  Args:
    real, other: float [N, ..., C] and [M, ..., C].

  Returns:
    a float; infinite where one has power and the other none.
  """
  differences = []
  for a, b in zip(spectra(real), spectra(other), strict=True):
    both = (a > 0) & (b > 0)
    decibels = np.where(a == b, 0.0, np.inf)
    decibels[both] = np.abs(10 * np.log10(a[both] / b[both]))
    differences.append(decibels.ravel())
  return float(np.concatenate(differences).mean()) if differences else 0.0


def autocorrelation_distance(real: np.ndarray, other: np.ndarray) -> float:
  """Mean absolute difference of the autocorrelations, over axes, lags and channels."""
  pairs = zip(autocorrelations(real), autocorrelations(other), strict=True)
  return float(np.concatenate([np.abs(a - b)[1:].ravel() for a, b in pairs]).mean())


def marginal_distance(real: np.ndarray, other: np.ndarray) -> float:
  """Wasserstein distance of the values, in standard deviations of the real ones.

  The mean over channels of the distance of order 1, all positions together.
  """
  deviation = np.asarray(real, np.float64).reshape(-1, real.shape[-1]).std(axis=0)
  deviation[deviation == 0] = 1.0
  return float((np.abs(quantiles(real) - quantiles(other)).mean(axis=0) / deviation).mean())


def channel_correlation_distance(real: np.ndarray, other: np.ndarray) -> float:
  """Mean absolute difference of the correlations between channels, at the same position.

  Returns:
    a float; 0 for one channel.
  """
  channels = real.shape[-1]
  if channels == 1:
    return 0.0
  pairs = np.triu_indices(channels, 1)
  a, b = (_correlations(x)[pairs] for x in (real, other))
  return float(np.abs(a - b).mean())


def _correlations(x):
  flat = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
  centred = flat - flat.mean(axis=0)
  covariance = centred.T @ centred / len(flat)
  deviation = np.sqrt(np.diag(covariance))
  deviation[deviation == 0] = 1.0
  return covariance / np.outer(deviation, deviation)
