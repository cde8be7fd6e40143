"""CIFAR-10, from TFDS where it is prepared, otherwise from the official archive.

    data.source='cifar10'

Looks for a prepared TFDS `cifar10` in data.dir (any version, ArrayRecord). If there is none, takes
the archive cifar-10-binary.tar.gz from data.dir or data.dir/downloads, or downloads it there
(170 MB), verifies it, and writes TFDS `cifar10` 3.0.2 beside it, in TFDS's own order and as
PNG, without TensorFlow (40 s, 140 MB). Offline: put the archive there by hand.
"""

import hashlib
import http.client
import pathlib
import tarfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from ddpm_jax.data import tfds as tfds_source
from ddpm_jax.data.downloads import fetch
from ddpm_jax.errors import UserError

NAMES = ('cifar10', 'cifar10:3.0.2')
URL = 'https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz'
SHA256 = 'c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd'
ARCHIVE = 'cifar-10-binary.tar.gz'
LABELS = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
_MEMBERS = {
  'train': [f'data_batch_{i}.bin' for i in range(1, 6)],
  'test': ['test_batch.bin'],
}
_EXAMPLES_PER_MEMBER = 10_000
_RECORD_BYTES = 1 + 32 * 32 * 3


def make_cifar10_source(
  dataset: str, *, dir: str | None, image_size: int | Sequence[int], channels: int, split: str
) -> Any:
  """Opens CIFAR-10, preparing it first if need be; `dataset` is one of NAMES."""
  root = tfds_source.data_dir(dir)

  def prepare():
    archive = _find_archive(root) or _download(URL, root / 'downloads' / ARCHIVE)
    _verify(archive, SHA256)
    return _prepare(archive, root, _EXAMPLES_PER_MEMBER)

  tfds_source.prepare_once(dataset, root, prepare)
  return tfds_source.make_tfds_source(
    dataset, dir=dir, image_size=image_size, channels=channels, split=split
  )


def _find_archive(root):
  for path in (root / ARCHIVE, root / 'downloads' / ARCHIVE):
    if path.is_file():
      return path
  return None


def _verify(archive, sha256):
  with open(archive, 'rb') as file:
    found = hashlib.file_digest(file, 'sha256').hexdigest()
  if found != sha256:
    raise UserError(
      f'{archive} is damaged: its sha256 is {found}, it should be {sha256}; '
      f'delete it, or replace it by {URL}'
    )


def _download(url, path):
  """Downloads `url` to `path`, going on where an interrupted download stopped; returns `path`."""
  part = path.with_name(f'{path.name}.part')
  try:
    fetch(url, part, resume=True)
  except (OSError, http.client.HTTPException) as error:
    raise UserError(
      f"data.source='cifar10': not prepared in {path.parent.parent} (data.dir), and downloading "
      f'{url} failed ({error}); place the file at {path}, or set data.dir to where it is'
    ) from error
  part.rename(path)
  return path


def _read_archive(archive, examples_per_member):
  """Returns {split: (labels uint8 [N], images uint8 [N, 32, 32, 3])}.

  A record is one byte of label, then 32x32 bytes of red, green and blue each.
  """
  with tarfile.open(archive, 'r:gz') as tar:
    files = [member for member in tar if member.isfile()]
    content = {file.name.rpartition('/')[2]: tar.extractfile(file).read() for file in files}
  splits = {}
  for split, names in _MEMBERS.items():
    for name in names:
      if len(content.get(name, b'')) != examples_per_member * _RECORD_BYTES:
        raise UserError(f'{archive}: {name} is missing or not of {examples_per_member} records')
    records = np.frombuffer(b''.join(content[name] for name in names), np.uint8)
    records = records.reshape(-1, _RECORD_BYTES)
    splits[split] = records[:, 0], records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
  return splits


def _prepare(archive, root, examples_per_member):
  """Writes cifar10/3.0.2 in the form, and the order, that TFDS's builder gives it; returns it."""
  import PIL.Image
  import tensorflow_datasets as tfds

  splits = _read_archive(archive, examples_per_member)

  class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """CIFAR-10; images as PIL pictures, which TFDS encodes without TensorFlow."""

    name = 'cifar10'
    VERSION = tfds.core.Version('3.0.2')
    pkg_dir_path = None

    def _info(self):
      features = dict(
        id=tfds.features.Text(),
        image=tfds.features.Image(shape=(32, 32, 3)),
        label=tfds.features.ClassLabel(names=LABELS),
      )
      return tfds.core.DatasetInfo(
        builder=self,
        description='CIFAR-10',
        features=tfds.features.FeaturesDict(features),
        homepage=URL,
      )

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples(split) for split in splits}

    def _generate_examples(self, split):
      for i, (label, image) in enumerate(zip(*splits[split], strict=True)):
        picture = PIL.Image.fromarray(np.ascontiguousarray(image))
        yield i, {'id': f'{split}_{i:05d}', 'image': picture, 'label': int(label)}

  builder = Cifar10(data_dir=root, file_format='array_record')
  builder.download_and_prepare()
  return pathlib.Path(builder.data_dir)
