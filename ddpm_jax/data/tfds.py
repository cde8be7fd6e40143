"""Data sets of TensorFlow Datasets, read without TensorFlow.

    data.source='tfds:NAME' or 'tfds:NAME/CONFIG' or 'tfds:NAME/CONFIG:VERSION'

data.dir is TFDS's data_dir; unset, it is $TFDS_DATA_DIR or ~/tensorflow_datasets. data.split is any
TFDS split: 'train', 'test', 'train[:90%]', 'train+test', 'all'.

One feature of the examples is read, an Image or a Tensor: data.feature, or the only one that fits
data.image_size and data.channels. An Image of uint8 is a picture, which is cropped, resized and
converted, where data.channels is 1 or 3. A Tensor, of any shape and type of numbers, and any other
Image (uint16 of one channel, float32, uint8 of 2 or 4 channels) are taken as they are stored, and
have to be of data.image_size; those without an axis of channels have one channel.

Without TensorFlow only ArrayRecord files can be read. A data set that is not prepared is downloaded
and prepared, where its TFDS builder can do this without TensorFlow. Many cannot (mnist, celeb_a);
prepare those once on any machine that has TensorFlow, and copy the folder:

    tfds build NAME --file_format=array_record --data_dir=DIR
"""

import hashlib
import io
import os
import pathlib
import re
import socket
import sys
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ddpm_jax.data.labels import Labels
from ddpm_jax.data.pictures import DamagedDataError, PictureSource, check_finite, picture_axes
from ddpm_jax.data.splits import NoSplitError
from ddpm_jax.errors import UserError
from ddpm_jax.paths import expanded
from ddpm_jax.refusals import raise_refusal
from ddpm_jax.storage.files import file_lock

_NAME = re.compile(r'(?P<name>\w+)(?:/(?P<config>[\w.-]+))?(?::(?P<version>\d+\.\d+\.\d+))?')
_VERSION = re.compile(r'\d+\.\d+\.\d+')


class _Records:
  """The records of a split of a prepared data set, of which one feature is read."""

  def __init__(self, folder, records, feature, *, name, split, remarks=()):
    self.name, self.split, self.remarks = name, split, remarks
    self._folder, self._records, self._feature = folder, records, feature

  def __len__(self):
    return len(self._records)

  def labels(self, choice: str | None) -> Labels | None:
    """The class of each example, by one of the features: that named `label`, or the only one.

    Raises:
      UserError: no such feature, or several and none is named.
    """
    return _read_labels(self._folder, name=self.name, split=self.split, choice=choice)

  def version(self) -> str:
    """sha256 (hex) of the size and the time of each file of the data set."""
    digest = hashlib.sha256()
    for file in sorted(self._folder.iterdir()):
      status = file.stat()
      digest.update(f'{file.name} {status.st_size} {status.st_mtime_ns}\n'.encode())
    return digest.hexdigest()

  def _values(self, indices):
    """The feature of each of some examples."""
    try:
      records = self._records.__getitems__([int(i) for i in indices])
    except RuntimeError as error:  # array_record's, on a file that is missing or cut
      raise_refusal(self._folder, error)
      raise DamagedDataError(_damaged(self._folder, error)) from error
    return [record[self._feature] for record in records]

  def _picture_name(self, index):
    return f'{self._folder}: example {index} of split {self.split!r}'


class TfdsSource(_Records, PictureSource):
  """Pictures: encoded ones of uint8, which are decoded when they are asked for."""

  def __init__(self, *opened, image_size, channels, **named):
    _Records.__init__(self, *opened, **named)
    PictureSource.__init__(
      self, named['name'], named['split'], image_size=image_size, channels=channels
    )

  def _files(self, indices):
    return [io.BytesIO(encoded) for encoded in self._values(indices)]


class TfdsArraySource(_Records):
  """Examples of any shape, as they are stored.

  Args:
    opened: as of _Records.
    shape: of an example, with its channels.
    dtype: of the values.
    is_encoded: whether they are stored as pictures.
  """

  def __init__(self, *opened, shape, dtype, is_encoded, **named):
    super().__init__(*opened, **named)
    self.image_shape, self._dtype, self._is_encoded = shape, dtype, is_encoded

  def read(self, indices: np.ndarray) -> np.ndarray:
    """Returns the examples as they are stored, [N, ..., C] for int [N].

    Raises:
      DamagedDataError: an example that cannot be read, or with a value that is not finite.
      UserError: an example of another shape.
    """
    rows = np.asarray(indices)
    values = np.empty((len(rows), *self.image_shape), self._dtype)
    for row, (index, stored) in enumerate(zip(rows, self._values(rows), strict=True)):
      name = self._picture_name(index)
      value = _decode(stored, self._dtype, name) if self._is_encoded else np.asarray(stored)
      if value.shape not in _shapes(self.image_shape):
        raise UserError(
          f'{name}: {self._feature} is {list(value.shape)}, and data.image_size with data.channels '
          f'says {list(self.image_shape)}: give examples of one shape, or the data as an array '
          '(array:PATH)'
        )
      values[row] = value.reshape(self.image_shape)
      check_finite(values[row], name)
    return values


def _shapes(shape):
  """Those that an example of this shape may be stored with: the axis of one channel may lack."""
  return (shape, shape[:-1]) if shape[-1] == 1 else (shape,)


def _decode(encoded, dtype, name):
  """An encoded picture as it is stored, [H, W, C] or [H, W]."""
  import PIL.Image

  try:
    with PIL.Image.open(io.BytesIO(encoded)) as picture:
      values = np.asarray(picture)
  except MemoryError:  # of the host, not of the picture
    raise
  except Exception as error:  # on damaged files, Pillow has raised a dozen kinds of them
    reason = ' '.join(str(error).split())
    raise DamagedDataError(f'{name} cannot be read as a picture ({reason})') from error
  if dtype == np.float32 and values.dtype == np.uint8:  # TFDS keeps its bytes as four channels
    return np.ascontiguousarray(values).view(np.float32)
  if values.dtype.itemsize < dtype.itemsize:
    raise UserError(
      f'{name}: Pillow reads 8 bits a channel of it, and it should have {dtype}: give the data as '
      'an array (array:PATH)'
    )
  return values


def data_dir(dir: str | None) -> pathlib.Path:
  """Returns the folder that holds the data sets: `dir`, or TFDS's default where it is None."""
  default = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  return expanded(default if dir is None else dir).absolute()


def find_prepared(dataset: str, root: pathlib.Path) -> pathlib.Path | None:
  """Returns the folder of `dataset` ('NAME/CONFIG:VERSION') under `root`, or None.

  Without a version, the newest that is present. Looking for dataset_info.json comes before any
  call to TFDS, which answers a missing data set with an error about file formats.
  """
  parts = _parse(dataset)
  folder = root / parts['name'] / (parts['config'] or '')
  versions = [path.parent for path in folder.glob('*/dataset_info.json')]
  versions = [path for path in versions if _VERSION.fullmatch(path.name)]
  if parts['version']:
    versions = [path for path in versions if path.name == parts['version']]
  return max(versions, key=lambda path: [int(n) for n in path.name.split('.')], default=None)


def prepare_once(
  dataset: str, root: pathlib.Path, prepare: Callable[[], pathlib.Path]
) -> pathlib.Path:
  """Returns the folder of `dataset`; prepare() makes it if need be, in one process at a time."""
  if (folder := find_prepared(dataset, root)) is not None:
    return folder
  name = _parse(dataset)['name']
  with file_lock(root / f'.{name}.lock', waiting_for=f'another process that prepares {name}'):
    return find_prepared(dataset, root) or prepare()


def make_tfds_source(
  dataset: str,
  *,
  dir: str | None,
  image_size: int | Sequence[int],
  channels: int,
  split: str,
  feature: str | None = None,
) -> Any:
  """Opens the TFDS data set `dataset`, 'NAME', 'NAME/CONFIG' or either with ':VERSION'.

  Raises:
    UserError: it cannot be prepared or read, or no feature fits, or several and none is named.
    NoSplitError: no such split.
  """
  root, name = data_dir(dir), f'tfds:{dataset}'
  folder = prepare_once(dataset, root, lambda: _prepare(dataset, root))
  builder = _builder(folder, name)
  features = _features(builder)
  shape = (*picture_axes(image_size), channels)
  chosen, remarks = _choose(features, shape, feature, name)
  _check_split(builder.info.splits, name=name, split=split)
  opened = folder, _records(builder, folder, name, split), chosen
  named: dict[str, Any] = dict(name=name, split=split, remarks=remarks)
  is_encoded = _is_image(features[chosen])
  if _is_picture(features[chosen], channels):
    return TfdsSource(*opened, image_size=image_size, channels=channels, **named)
  dtype = np.dtype(features[chosen].np_dtype)
  return TfdsArraySource(*opened, shape=shape, dtype=dtype, is_encoded=is_encoded, **named)


def _parse(dataset):
  parts = _NAME.fullmatch(dataset)
  if parts is None:
    raise UserError(
      f"data.source='tfds:{dataset}': write tfds:NAME, tfds:NAME/CONFIG or tfds:NAME/CONFIG:VERSION"
    )
  return parts


def _check_configs(dataset, root):
  """Raises where only configs of the data set are prepared and none is named."""
  parts = _parse(dataset)
  if parts['config']:
    return
  infos = root.glob(f'{parts["name"]}/*/*/dataset_info.json')
  present = sorted({info.parent.parent.name for info in infos})
  if present:
    raise UserError(
      f"data.source='tfds:{dataset}': {root / parts['name']} has the configs {', '.join(present)}; "
      f'write tfds:{parts["name"]}/{present[0]}'
    )


def _prepare(dataset, root):
  """Downloads and prepares `dataset` as ArrayRecord; returns its folder."""
  import tensorflow_datasets as tfds

  _check_configs(dataset, root)
  print(f'tfds:{dataset} is not prepared in {root}: trying to download it', file=sys.stderr)
  try:
    builder = tfds.builder(dataset, data_dir=root, file_format='array_record')
    _check_network(builder.url_infos)
    builder.download_and_prepare()
  except Exception as error:  # whatever a third party's builder may raise
    reason = f'{type(error).__name__}: {error}'.splitlines()[0][:200]
    raise UserError(
      f"data.source='tfds:{dataset}': not prepared in {root} (data.dir), and preparing it here "
      f'failed ({reason}); with TensorFlow, run: tfds build {dataset} --file_format=array_record '
      f'--data_dir={root}'
    ) from error
  return pathlib.Path(builder.data_dir)


def _check_network(urls):
  """Raises where no host of `urls` has an address: TFDS would retry for minutes."""
  hosts = {urllib.parse.urlparse(url).hostname for url in urls}
  errors = []
  for host in hosts:
    try:
      socket.getaddrinfo(host, 443)
    except OSError as error:
      errors.append(f'{host}: {error.strerror}')
  if hosts and len(errors) == len(hosts):
    raise OSError('no network: ' + errors[0])


def _builder(folder, name):
  """Of a prepared data set."""
  import tensorflow_datasets as tfds

  try:
    return tfds.builder_from_directory(folder)
  except ImportError as error:  # of TensorFlow
    raise UserError(
      f'data.source={name!r}: it has a feature, such as Audio or Video, that TFDS reads with '
      'TensorFlow alone; give the data as signals:PATH, frames:PATH or array:PATH'
    ) from error
  except Exception as error:  # unreadable JSON, protocol buffers, features
    raise_refusal(folder, error)
    raise UserError(_damaged(folder, error)) from error


def _features(builder):
  """By name, in the order of the names: TFDS has them in another one each time."""
  return dict(sorted(builder.info.features.items()))


def _is_image(feature):
  import tensorflow_datasets as tfds

  return isinstance(feature, tfds.features.Image)


def _is_picture(feature, channels):
  """Whether a feature is cropped, resized and converted."""
  return _is_image(feature) and feature.np_dtype == np.uint8 and channels in (1, 3)


def _records(builder, folder, name, split):
  """Random-access records of a split; images are left encoded.

  TFDS would decode them with OpenCV where that is installed, else with Pillow, and the two differ
  in the pixels of a JPEG; here it is always Pillow.
  """
  import tensorflow_datasets as tfds

  images = [key for key, value in _features(builder).items() if _is_image(value)]
  decoders = {key: tfds.decode.SkipDecoding() for key in images}
  try:
    return builder.as_data_source(split=split, decoders=decoders)
  except NotImplementedError as error:
    raise UserError(
      f'data.source={name!r}: {folder} is stored as {builder.info.file_format.value}, which only '
      'TensorFlow reads; give another data.dir, or run there: tfds build --file_format=array_record'
    ) from error


def _choose(features, shape, choice, name):
  """(name of the feature that is read, remarks).

  Args:
    features: of the data set, by name.
    shape: of an example, as the config has it.
    choice: data.feature.
    name: of the source.
  """
  import tensorflow_datasets as tfds

  # Others, such as labels, are Tensors of a class of their own.
  found = {
    key: feature
    for key, feature in features.items()
    if _is_image(feature)
    or (type(feature) is tfds.features.Tensor and feature.shape and feature.np_dtype.kind in 'buif')
  }
  told = {key: f'{key} ({x.np_dtype}{_shown(x.shape)})' for key, x in found.items()}
  if not found or choice not in (None, *found):
    which = f'no {choice}' if choice else 'no image and no tensor'
    others = [told.get(key, key) for key in features]
    raise UserError(f'data.source={name!r}: {which} among its features {", ".join(others)}')
  fits = [key for key, feature in found.items() if _fits(feature, shape)]
  if choice is not None:
    if choice not in fits:
      raise _no_fit(name, [told[choice]], shape)
    return choice, ()
  if not fits:
    raise _no_fit(name, list(told.values()), shape)
  images = [key for key in fits if _is_picture(found[key], shape[-1])]
  if len(fits) > 1 and not images:
    raise UserError(
      f'data.source={name!r}: several of its features are {_shown(shape)}: '
      f'{", ".join(told[key] for key in fits)}; name one, as in --config.data.feature={fits[0]}'
    )
  chosen = 'image' if 'image' in images else (images or fits)[0]
  others = [key for key in fits if key != chosen]
  if not others:
    return chosen, ()
  return chosen, (
    f'{name}: {chosen} is read, and not {", ".join(others)}; --config.data.feature={others[0]} '
    'reads that one',
  )


def _fits(feature, shape):
  """Whether a feature may have examples of a shape; of pictures any size has."""
  if _is_picture(feature, shape[-1]):
    return len(shape) == 3
  return any(
    len(feature.shape) == len(stored)
    and all(a in (None, b) for a, b in zip(feature.shape, stored, strict=True))
    for stored in _shapes(shape)
  )


def _shown(shape):
  """[8, ?, 2] of a shape with an axis of any length."""
  return f'[{", ".join("?" if n is None else str(n) for n in shape)}]'


def _no_fit(name, told, shape):
  return UserError(
    f'data.source={name!r} has {", ".join(told)}, and data.image_size with data.channels says '
    f'{_shown(shape)}: give them as the data have them'
  )


def _read_labels(folder, *, name, split, choice):
  """Labels of a split, or None where there are none; reads all records, and decodes no picture."""
  import tensorflow_datasets as tfds

  builder = _builder(folder, name)
  features = _features(builder)
  found = [key for key, value in features.items() if isinstance(value, tfds.features.ClassLabel)]
  if choice is None:
    if len(found) > 1 and 'label' not in found:
      raise UserError(
        f'data.source={name}: it has the labels {", ".join(found)}; name one, as in '
        f'data.labels={found[0]}'
      )
    choice = 'label' if 'label' in found else next(iter(found), None)
  if choice is None:
    return None
  if choice not in found:
    has = f'the labels {", ".join(found)}' if found else 'no labels'
    raise UserError(f'data.labels={choice}: {name} has {has}')
  records = _records(builder, folder, name, split)
  ids, chunk = np.empty(len(records), np.int32), 1024
  try:
    for first in range(0, len(records), chunk):
      rows = list(range(first, min(first + chunk, len(records))))
      ids[rows] = [record[choice] for record in records.__getitems__(rows)]
  except RuntimeError as error:  # array_record's, on a file that is missing or cut
    raise_refusal(folder, error)
    raise DamagedDataError(_damaged(folder, error)) from error
  if ids.min() < 0:  # as TFDS has it where a split's labels are kept back
    raise UserError(f'data.source={name}: pictures of {split} have no label; take another split')
  return Labels(ids, tuple(features[choice].names))


def _check_split(splits, *, name, split):
  choices = f"{name} has {', '.join(splits)}, and slices of them, such as 'train[:90%]'"
  try:
    num_examples = splits[split].num_examples
  except ValueError as error:
    raise NoSplitError(f'data.split={split!r}: unknown; {choices}') from error
  if num_examples < 1:
    raise UserError(f'data.split={split!r}: holds no pictures; {choices}')


def _damaged(folder, error):
  reason = str(error).splitlines()[0]
  return f'{folder} is damaged ({reason}); delete it, and it will be prepared again'
