"""Downloads a pipeline that was published on the Hugging Face hub, by plain https, once.

Nothing says beforehand what the bytes should be; they are read as any file, executing nothing.
"""

import http.client
import pathlib
import re
import urllib.error

from ddpm_jax.data.downloads import fetch
from ddpm_jax.errors import UserError
from ddpm_jax.interop.diffusers import SCHEDULER_CONFIG, UNET_CONFIG, WEIGHTS
from ddpm_jax.interop.weight_files import read_index
from ddpm_jax.storage.files import file_lock, sync

HUB_URL = 'https://huggingface.co'
_ID = re.compile(r'[A-Za-z0-9][A-Za-z0-9_-]*/[A-Za-z0-9][A-Za-z0-9._-]*')

# The first of these that is there: whole or in shards, and last in half the precision.
_PUBLISHED = (
  *(f'{name}{form}' for name in WEIGHTS for form in ('', '.index.json')),
  *(name.replace('.', '.fp16.') for name in WEIGHTS),
)


def is_hub_id(path: str) -> bool:
  """Whether a path that does not exist may be the name of something published: OWNER/NAME."""
  return bool(_ID.fullmatch(path)) and '..' not in path


def fetch_pipeline(hub_id: str, cache_dir: pathlib.Path) -> pathlib.Path:
  """Downloads the network and the settings of a pipeline, unless they are there.

  Args:
    hub_id: such as 'google/ddpm-cifar10-32'.
    cache_dir: a folder, which is made.

  Returns:
    pathlib.Path of a folder for diffusers.read_pipeline.

  Raises:
    UserError: no connection, or nothing of this kind there; in one line, with what to do.
  """
  folder = pathlib.Path(cache_dir) / 'hub' / hub_id.replace('/', '--')
  try:
    # The first ones published have no unet/ and scheduler/.
    unet = _fetch_first(hub_id, folder, [f'unet/{UNET_CONFIG}', UNET_CONFIG]).parent
    _fetch_first(hub_id, folder, [f'scheduler/{SCHEDULER_CONFIG}', SCHEDULER_CONFIG])
    parent = '' if unet == folder else 'unet/'
    weights = _fetch_first(hub_id, folder, [f'{parent}{name}' for name in _PUBLISHED])
    if weights.suffix == '.json':
      for shard in sorted(set(read_index(weights).values())):
        _fetch_first(hub_id, folder, [f'{parent}{shard}'])
  except (OSError, http.client.HTTPException) as error:
    reason = ' '.join(str(error).split())
    raise UserError(
      f'there is no file {hub_id}, and downloading it from {HUB_URL} failed ({reason}): check the '
      'name, or get its files elsewhere and give their folder'
    ) from error
  return folder


def _fetch_first(hub_id, folder, names):
  """The path of the first of the names that is there, or published."""
  if (found := _find_first(folder, names)) is not None:
    return found
  lock = folder.with_name(f'{folder.name}.lock')
  with file_lock(lock, waiting_for=f'another process that downloads {hub_id}'):
    return _find_first(folder, names) or _download_first(hub_id, folder, names)


def _find_first(folder, names):
  return next((folder / name for name in names if (folder / name).is_file()), None)


def _download_first(hub_id, folder, names):
  for name in names:
    path = folder / name
    partial = path.with_name(f'{path.name}.partial')
    try:
      fetch(f'{HUB_URL}/{hub_id}/resolve/main/{name}', partial)
    except urllib.error.HTTPError as error:
      if error.code != http.HTTPStatus.NOT_FOUND:
        raise
    else:
      sync(partial)
      return partial.rename(path)
  raise OSError(f'it has no {" or ".join(names)}')
