"""The weights of the FID Inception network on disk: found, downloaded once, verified, read.

They are torch-fidelity's port of the TensorFlow graph of 2015-12-05, which the published FIDs use.
Other weights give other numbers, so another file is used only if its sha256 is given with it.
"""

import hashlib
import http.client
import pathlib
from typing import Any

from ddpm_jax.data.downloads import fetch
from ddpm_jax.errors import UserError
from ddpm_jax.interop.torch_file import read_state_dict
from ddpm_jax.interop.torch_inception import params_from_torch
from ddpm_jax.paths import expanded
from ddpm_jax.storage.files import file_lock

INCEPTION_URL = (
  'https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/'
  'weights-inception-2015-12-05-6726825d.pth'
)
INCEPTION_SHA256 = '6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2'
INCEPTION_BYTES = 95_628_359


def load_inception(
  path: str | None = None, *, cache_dir: pathlib.Path, sha256: str = INCEPTION_SHA256
) -> tuple[Any, str]:
  """Finds and reads the weights.

  Args:
    path: as in find_inception_weights.
    cache_dir: as there.
    sha256: as there.

  Returns:
    (params of InceptionV3, sha256 of their file, to be noted beside the numbers).

  Raises:
    UserError: no weights, or none of this network; in one line.
  """
  file = find_inception_weights(path, cache_dir=cache_dir, sha256=sha256)
  state_dict = read_state_dict(file)
  try:
    return params_from_torch(state_dict), sha256.lower()
  except UserError as error:
    raise UserError(f'{file}: {error}') from error


def find_inception_weights(
  path: str | pathlib.Path | None = None, *, cache_dir: pathlib.Path, sha256: str = INCEPTION_SHA256
) -> pathlib.Path:
  """Finds the file of weights, or downloads it (96 MB); verifies it either way.

  Args:
    path: the file to use; None looks into cache_dir, and downloads it there.
    cache_dir: a folder, see files.default_cache_dir.
    sha256: what the file's is to be, in hexadecimal digits.

  Returns:
    pathlib.Path.

  Raises:
    UserError: no such file, another sha256, or no connection; in one line, with what to do.
  """
  if path is None:
    path = pathlib.Path(cache_dir) / INCEPTION_URL.rpartition('/')[2]
    if not path.is_file():
      _download(path, sha256)
  path = expanded(path)
  if not path.is_file():
    raise UserError(f'--config.eval.inception_weights={path}: no such file')
  _verify(path, sha256)
  return path


def _verify(path, sha256):
  with open(path, 'rb') as file:
    found = hashlib.file_digest(file, 'sha256').hexdigest()
  if found != sha256.lower():
    raise UserError(
      f'{path} ({path.stat().st_size} bytes) has sha256 {found}, expected is {sha256} (the '
      f'published file has {INCEPTION_BYTES} bytes): delete it if it is damaged; if it is another '
      f'file that you mean to use, --config.eval.inception_sha256={found} accepts it'
    )


def _download(path, sha256):
  """Downloads the file, unless another process does so meanwhile."""
  partial = path.with_name(f'{path.name}.partial')
  try:
    with file_lock(path.with_name(f'{path.name}.lock'), waiting_for=f'the download of {path.name}'):
      if path.is_file():
        return
      fetch(INCEPTION_URL, partial)
      _verify(partial, sha256)
      partial.replace(path)
  except (OSError, http.client.HTTPException) as error:
    reason = ' '.join(str(error).split())
    raise UserError(
      f'no Inception weights in {path.parent}, and downloading {INCEPTION_URL} failed ({reason}): '
      f'get that file (sha256 {sha256}) and pass --config.eval.inception_weights=FILE'
    ) from error
