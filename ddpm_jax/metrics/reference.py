"""References that others published: statistics of features, or batches of images."""

import hashlib
import pathlib

import numpy as np

from ddpm_jax.metrics.frechet import Statistics
from ddpm_jax.metrics.images import open_images
from ddpm_jax.npz import open_npz

_FIELD = 'eval.reference'
_ROUNDING = 1e-5  # relative, of published float32 covariances


def open_reference(path):
  """Opens what config.eval.reference names.

  Args:
    path: an .npz file with `mu` and `sigma` (as the programs of TTUR and EDM write them), an .npz
      file of images (ADM's reference batches; `arr_0`), or a folder of pictures. Where a file has
      both, the images are taken, and measured here.

  Returns:
    Statistics with no count, or images as metrics.images.open_images gives them.

  Raises:
    ValueError: anything else.
  """
  path = pathlib.Path(path).expanduser()
  if not path.exists():
    raise ValueError(f'{_FIELD}={path} does not exist')
  if path.is_dir():
    return open_images(path, _FIELD)
  arrays = open_npz(path)
  if {'arr_0', 'samples'} & arrays.keys():
    return open_images(path, _FIELD)
  if not {'mu', 'sigma'} <= arrays.keys():
    found = ', '.join(arrays) or 'nothing'
    raise ValueError(f'{_FIELD}={path} has {found}; it must have mu and sigma, or images in arr_0')
  return _check_statistics(path, arrays['mu'], arrays['sigma'])


def file_sha256(path):
  """sha256 (hex) of a file."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _check_statistics(path, mean, covariance):
  if mean.ndim != 1 or not mean.size or covariance.shape != (len(mean), len(mean)):
    raise ValueError(
      f'{_FIELD}={path}: mu has shape {mean.shape} and sigma {covariance.shape}; '
      'they must be [d] and [d, d]'
    )
  if not all(np.issubdtype(array.dtype, np.floating) for array in (mean, covariance)):
    raise ValueError(
      f'{_FIELD}={path}: mu is {mean.dtype} and sigma {covariance.dtype}; they must be floats'
    )
  mean, covariance = (np.asarray(array, np.float64) for array in (mean, covariance))
  if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
    raise ValueError(f'{_FIELD}={path}: mu or sigma is not finite')
  size = np.abs(covariance).max()
  if np.abs(covariance - covariance.T).max() > _ROUNDING * size:
    raise ValueError(f'{_FIELD}={path}: sigma is not symmetric, so it is no covariance')
  covariance = (covariance + covariance.T) / 2
  if np.linalg.eigvalsh(covariance)[0] < -_ROUNDING * size:
    raise ValueError(f'{_FIELD}={path}: sigma has negative eigenvalues, so it is no covariance')
  return Statistics(None, mean, covariance)
