"""What images are measured against: real images, or what others published of them.

Real images' features are computed once, into a cache that all runs share. Opening a reference is
quick, and finds what cannot be used; `measure_reference` is what takes long.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax import processes
from ddpm_jax.data import Source, fingerprint, told
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.features import FeatureNetwork, collect_features, features_identity
from ddpm_jax.evaluation.images import ChosenImages, check_regular, evenly_spaced, open_images
from ddpm_jax.evaluation.metrics import jpeg
from ddpm_jax.evaluation.metrics.frechet import Statistics, accumulate, frechet_distance, merge
from ddpm_jax.evaluation.report import FULL_COUNT
from ddpm_jax.paths import expanded
from ddpm_jax.storage import shards
from ddpm_jax.storage.files import make_writable
from ddpm_jax.storage.identity import Identity
from ddpm_jax.storage.npz import open_npz

FIELD = 'eval.reference'
ROUNDING = 1e-5  # relative, of published float32 covariances
BLOCK = 1024  # features in memory at a time
JPEG_IMAGES = 512

Features = Mapping[str, np.ndarray]  # features [N, d] and logits [N, classes]


@dataclasses.dataclass(frozen=True)
class OpenReference:
  """A reference that was found to be usable; nothing is computed yet.

  Attributes:
    about: facts for the report.
    identity: of the images, or of the statistics.
    notes: lines for the report.
    departures: words on what is not as in published numbers.
    statistics: published ones, which the Frechet distance goes by; None to compute them.
    images: the images; None where there are statistics alone.
    count: number of images.
  """

  about: Mapping[str, Any]
  identity: Identity
  notes: tuple[str, ...] = ()
  departures: tuple[str, ...] = ()
  statistics: Statistics | None = None
  images: Any = None
  count: int = 0


@dataclasses.dataclass(frozen=True)
class Reference:
  """A reference, ready to measure against.

  Attributes:
    about, notes, departures: as OpenReference.
    statistics: of the features, for the Frechet distance; None where it is not asked for.
    real: features of real images; None where there are statistics alone.
    halves: features of two halves of the real images.
    sanity_fid: the Frechet distance between the halves.
    is_published: whether the statistics are a file's, and not of `real`.
  """

  about: Mapping[str, Any]
  notes: tuple[str, ...]
  departures: tuple[str, ...]
  statistics: Statistics | None
  real: Features | None = None
  halves: tuple[Features, ...] | None = None
  sanity_fid: float | None = None
  is_published: bool = False


def open_source(source: Source, num_examples: int | None) -> OpenReference:
  """A split of the data, or evenly spaced images of it."""
  departures = () if source.split == 'train' else (f'against {source.split}',)
  identity = Identity(data=source_identity(source))
  notes = getattr(source, 'remarks', ())
  return _open_images(source, identity, num_examples, len(source), departures, notes)


def open_file(
  path: pathlib.Path,
  num_examples: int | None,
  *,
  image_shape: tuple[int, ...],
  any_channels: bool = False,
) -> OpenReference:
  """What config.eval.reference names, as read_reference has it.

  Args:
    path: of the file or folder.
    num_examples: images to take, evenly spaced; None for all.
    image_shape: (H, W, C) of the data.
    any_channels: whether other C may be compared, as by a network that takes grey and colour.

  Raises:
    UserError: as read_reference; or images of another shape.
  """
  found = read_reference(path)
  if isinstance(found, Statistics):
    about = {'file': str(path), 'file_sha256': file_sha256(path), 'count': None}
    note = 'The reference file does not say which data it is of, nor how they were prepared.'
    identity = Identity(data={'name': str(path), 'sha256': about['file_sha256']})
    return OpenReference(about, identity, (note,), statistics=found)
  if found.image_shape[: 2 if any_channels else 3] != image_shape[: 2 if any_channels else 3]:
    raise UserError(
      f'{FIELD}={path} has images of {found.image_shape}; '
      f'data.image_size and data.channels say {image_shape}'
    )
  notes = [*found.remarks, *jpeg_files_note(found, 'real images')]
  if any_channels and found.image_shape != image_shape:
    notes.append(
      f'The real images are of {found.image_shape[2]} channels, and the data of {image_shape[2]}.'
    )
  facts = {'name': found.name, 'sha256': found.fingerprint()}
  if found.statistics is not None:
    arrays = (found.statistics.mean, found.statistics.covariance)
    digest = hashlib.sha256(b''.join(np.ascontiguousarray(array).tobytes() for array in arrays))
    facts['statistics_sha256'] = digest.hexdigest()
  full_count = max(len(found), FULL_COUNT)
  opened = _open_images(found, Identity(data=facts), num_examples, full_count, (), notes)
  return dataclasses.replace(opened, statistics=found.statistics)


def _open_images(images, identity, num_examples, full_count, departures, notes=()):
  """full_count: a figure's name tells of fewer."""
  total = len(images)
  count = min(total, num_examples or total)
  if count < total:  # of all classes, where a folder has one after another
    images = ChosenImages(images, evenly_spaced(count, total))
    identity = identity.but(choices={'chosen': f'{count} of {total}, evenly spaced'})
  if count < full_count:
    departures = (*departures, f'{count:,} real images')
  kind = 'data' if 'split' in identity.data else 'file'
  about = {
    name: value
    for name, value in identity.data.items()
    if name not in ('name', 'sha256', 'version')
  }
  about = {kind: identity.data['name'], **about, f'{kind}_sha256': identity.data['sha256']}
  about |= {**(identity.choices or {}), 'count': count, 'of': total}
  return OpenReference(about, identity, tuple(notes), departures, None, images, count)


def measure_reference(
  opened: OpenReference,
  network: FeatureNetwork,
  *,
  cache: pathlib.Path,
  batch_size: int,
  with_distance: bool,
  with_real: bool = True,
) -> Reference:
  """Computes the features that the cache lacks, and what is needed of them.

  Args:
    opened: OpenReference.
    network: FeatureNetwork.
    cache: as open_cache.
    batch_size: images at a time, over all devices.
    with_distance: whether the Frechet distance is asked for.
    with_real: whether other metrics are: published statistics are enough for the distance.
  """
  is_published = opened.statistics is not None
  if opened.images is None or (is_published and not with_real):
    facts = opened.about, opened.notes, opened.departures, opened.statistics
    return Reference(*facts, is_published=is_published)
  about, notes = dict(opened.about), list(opened.notes)
  ratio = blockiness_of(opened.images, opened.count)
  about['jpeg_blockiness'] = ratio
  if ratio is not None and ratio > jpeg.LIMIT:
    notes.append(
      f'The real images went through JPEG (blockiness {ratio:.2f}, not 1): figures do not '
      'compare with those against the original data set.'
    )
  real, about['feature_secs'] = real_features(
    network, opened.images, opened.count, opened.identity, cache=cache, batch_size=batch_size
  )
  halves = tuple({name: array[start::2] for name, array in real.items()} for start in (0, 1))
  statistics = sanity_fid = None
  if with_distance:
    of_halves = [statistics_of(half['features']) for half in halves]
    statistics, sanity_fid = merge(*of_halves), frechet_distance(*of_halves)
  if is_published:
    statistics = opened.statistics
  return Reference(
    about, tuple(notes), opened.departures, statistics, real, halves, sanity_fid, is_published
  )


def real_features(
  network: FeatureNetwork,
  images: Any,
  count: int,
  identity: Identity,
  *,
  cache: pathlib.Path,
  batch_size: int,
) -> tuple[Features, float | None]:
  """(features of real images, seconds they took); computed once, and kept in the cache."""
  assert identity.data is not None
  identity = features_identity(identity, network)
  name = identity.data['name'] if 'split' in identity.data else 'file'
  folder = identity.folder(cache, name.replace(':', '_').replace('/', '_'))
  features = collect_features(
    folder,
    network,
    images,
    count,
    identity=identity,
    batch_size=batch_size,
    what='features of real images',
  )
  return features, shards.seconds(folder)


def open_cache(cache_dir: pathlib.Path) -> pathlib.Path:
  """The folder of real images' features, which all processes share.

  Raises:
    UserError: it cannot be written, or one of them has another.
  """
  field, folder = f'eval.cache_dir={cache_dir}', cache_dir / 'reference'
  try:
    make_writable(folder)
  except OSError as error:
    raise UserError(
      f'{field} cannot be written ({error.strerror}); give a folder that can'
    ) from error
  blind = processes.not_shared_with(folder)
  if blind is not None:
    raise UserError(
      f'{field} of process {blind} is not the folder of process 0: give one on a file system that '
      'all processes share, such as --config.eval.cache_dir=WORKDIR/cache'
    )
  return folder


def source_identity(source: Source) -> dict[str, Any]:
  """What a data source is: the data of an Identity."""
  return {
    'name': source.name,
    'split': source.split,
    'image_shape': list(source.image_shape),
    'sha256': fingerprint(source),
    # Hosts may have copies of their own, whose files are of other times.
    'version': processes.from_primary(told(source, 'version') or '') or None,
  }


def statistics_of(features: Any) -> Statistics:
  """Mean and covariance, a block of features in memory at a time."""
  return accumulate(features[i : i + BLOCK] for i in range(0, len(features), BLOCK))


def blockiness_of(images: Any, count: int) -> float | None:
  """The blockiness of some of `count` images; None where they are too small to have one.

  And of what is no picture of 256 levels.
  """
  some = images.read(evenly_spaced(min(count, JPEG_IMAGES), count))
  if some.ndim != 4 or some.dtype not in (np.uint8, np.float32):
    return None
  ratio = jpeg.blockiness(some)
  return None if np.isnan(ratio) else round(ratio, 3)


def jpeg_files_note(images: Any, what: str) -> list[str]:
  """A line for the notes, in a list, if images come from JPEG files."""
  count = getattr(images, 'jpeg_files', 0)
  if not count:
    return []
  return [f'{count:,} files of the {what} are JPEG: its losses are part of the figures.']


def read_reference(path: pathlib.Path) -> Any:
  """Opens what config.eval.reference names.

  Args:
    path: an .npz file with `mu` and `sigma` (as the programs of TTUR and EDM write them), an .npz
      file of images (ADM's reference batches; `arr_0`), or a folder of pictures. A file
      may have both, as ADM's do.

  Returns:
    Statistics with no count, or images as images.open_images gives them; where a file has both,
    images with an attribute `statistics`.

  Raises:
    UserError: anything else.
  """
  path = expanded(path)
  if not path.exists():
    raise UserError(f'{FIELD}={path} does not exist')
  check_regular(path, FIELD)
  if path.is_dir():
    return open_images(path, FIELD)
  arrays = open_npz(path)
  if {'arr_0', 'samples'} & arrays.keys():
    images = open_images(path, FIELD)
    if {'mu', 'sigma'} <= arrays.keys():
      images.statistics = _check_statistics(path, arrays['mu'], arrays['sigma'])
    return images
  if not {'mu', 'sigma'} <= arrays.keys():
    found = ', '.join(arrays) or 'nothing'
    raise UserError(f'{FIELD}={path} has {found}; it must have mu and sigma, or images in arr_0')
  return _check_statistics(path, arrays['mu'], arrays['sigma'])


def file_sha256(path: pathlib.Path) -> str:
  """sha256 (hex) of a file."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _check_statistics(path, mean, covariance):
  if mean.ndim != 1 or not mean.size or covariance.shape != (len(mean), len(mean)):
    raise UserError(
      f'{FIELD}={path}: mu has shape {mean.shape} and sigma {covariance.shape}; '
      'they must be [d] and [d, d]'
    )
  if not all(np.issubdtype(array.dtype, np.floating) for array in (mean, covariance)):
    raise UserError(
      f'{FIELD}={path}: mu is {mean.dtype} and sigma {covariance.dtype}; they must be floats'
    )
  mean, covariance = (np.asarray(array, np.float64) for array in (mean, covariance))
  if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
    raise UserError(f'{FIELD}={path}: mu or sigma is not finite')
  size = np.abs(covariance).max()
  if np.abs(covariance - covariance.T).max() > ROUNDING * size:
    raise UserError(f'{FIELD}={path}: sigma is not symmetric, so it is no covariance')
  covariance = (covariance + covariance.T) / 2
  if np.linalg.eigvalsh(covariance)[0] < -ROUNDING * size:
    raise UserError(f'{FIELD}={path}: sigma has negative eigenvalues, so it is no covariance')
  return Statistics(None, mean, covariance)
