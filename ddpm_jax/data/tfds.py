"""Image data sets of TensorFlow Datasets, read without TensorFlow.

    data.source='tfds:NAME' or 'tfds:NAME/CONFIG' or 'tfds:NAME/CONFIG:VERSION'

data.dir is TFDS's data_dir; unset, it is $TFDS_DATA_DIR or ~/tensorflow_datasets. data.split is any
TFDS split: 'train', 'test', 'train[:90%]', 'train+test', 'all'.

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
from ddpm_jax.data.pictures import DamagedDataError, PictureSource
from ddpm_jax.data.splits import NoSplitError
from ddpm_jax.errors import UserError
from ddpm_jax.paths import expanded
from ddpm_jax.refusals import raise_refusal
from ddpm_jax.storage.files import file_lock

_NAME = re.compile(r'(?P<name>\w+)(?:/(?P<config>[\w.-]+))?(?::(?P<version>\d+\.\d+\.\d+))?')
_VERSION = re.compile(r'\d+\.\d+\.\d+')


class TfdsSource(PictureSource):
  """A split of a prepared data set.

  Args:
    folder: the data set's version folder, which holds dataset_info.json.
  """

  def __init__(self, folder, *, name, split, image_size, channels):
    super().__init__(name, split, image_size=image_size, channels=channels)
    self._folder = folder
    self._records, self._feature, self.remarks = _open(folder, name=name, split=split)

  def __len__(self):
    return len(self._records)

  def labels(self, choice: str | None) -> Labels | None:
    """The class of each picture, by one of the features: that named `label`, or the only one.

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

  def _files(self, indices):
    try:
      records = self._records.__getitems__([int(i) for i in indices])
    except RuntimeError as error:  # array_record's, on a file that is missing or cut
      raise_refusal(self._folder, error)
      raise DamagedDataError(_damaged(self._folder, error)) from error
    return [io.BytesIO(record[self._feature]) for record in records]

  def _picture_name(self, index):
    return f'{self._folder}: example {index} of split {self.split!r}'


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
  dataset: str, *, dir: str | None, image_size: int | Sequence[int], channels: int, split: str
) -> Any:
  """Opens the TFDS data set `dataset`, 'NAME', 'NAME/CONFIG' or either with ':VERSION'."""
  root = data_dir(dir)
  folder = prepare_once(dataset, root, lambda: _prepare(dataset, root))
  return TfdsSource(
    folder, name=f'tfds:{dataset}', split=split, image_size=image_size, channels=channels
  )


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


def _open(folder, *, name, split):
  """Returns (random-access records, name of the image feature, remarks); images are left encoded.

  TFDS would decode them with OpenCV where that is installed, else with Pillow, and the two differ
  in the pixels of a JPEG; here it is always Pillow.
  """
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder_from_directory(folder)
  except Exception as error:  # unreadable JSON, protocol buffers, features
    raise_refusal(folder, error)
    raise UserError(_damaged(folder, error)) from error
  features = builder.info.features
  images = [key for key, value in features.items() if isinstance(value, tfds.features.Image)]
  if not images:
    raise UserError(f'data.source={name!r}: no image among its features {", ".join(features)}')
  _check_split(builder.info.splits, name=name, split=split)
  decoders = {key: tfds.decode.SkipDecoding() for key in images}
  try:
    records = builder.as_data_source(split=split, decoders=decoders)
  except NotImplementedError as error:
    raise UserError(
      f'data.source={name!r}: {folder} is stored as {builder.info.file_format.value}, which only '
      'TensorFlow reads; give another data.dir, or run there: tfds build --file_format=array_record'
    ) from error
  chosen = 'image' if 'image' in images else images[0]
  others = ', '.join(key for key in images if key != chosen)
  remark = f'{name}: of its images, {chosen} is read, and not {others}'
  return records, chosen, (remark,) if others else ()


def _read_labels(folder, *, name, split, choice):
  """Labels of a split, or None where there are none; reads all records, and decodes no picture."""
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(folder)
  features = builder.info.features
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
  images = [key for key, value in features.items() if isinstance(value, tfds.features.Image)]
  decoders = {key: tfds.decode.SkipDecoding() for key in images}
  records = builder.as_data_source(split=split, decoders=decoders)
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
