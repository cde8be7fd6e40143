"""Downloads a pipeline that was published on the Hugging Face hub, by plain https, once.

Nothing says beforehand what the bytes should be; they are read as any file, executing nothing.
"""

import http.client
import pathlib
import re
import urllib.error
import urllib.request

from ddpm_jax.convert.diffusers import SCHEDULER_CONFIG, UNET_CONFIG, WEIGHTS

HUB_URL = 'https://huggingface.co'
_ID = re.compile(r'[A-Za-z0-9][A-Za-z0-9_-]*/[A-Za-z0-9][A-Za-z0-9._-]*')
_MAX_BYTES = 1 << 33
_BLOCK_BYTES = 1 << 20
_TIMEOUT_SECS = 30


def is_hub_id(path):
  """Whether a path that does not exist may be the name of something published: OWNER/NAME."""
  return bool(_ID.fullmatch(path)) and '..' not in path


def fetch_pipeline(hub_id, cache_dir):
  """Downloads the network and the settings of a pipeline, unless they are there.

  Args:
    hub_id: such as 'google/ddpm-cifar10-32'.
    cache_dir: a folder, which is made.

  Returns:
    pathlib.Path of a folder for diffusers.read_pipeline.

  Raises:
    ValueError: no connection, or nothing of this kind there; in one line, with what to do.
  """
  folder = pathlib.Path(cache_dir) / 'hub' / hub_id.replace('/', '--')
  try:
    # The first ones published have no unet/ and scheduler/.
    unet = _fetch_first(hub_id, folder, [f'unet/{UNET_CONFIG}', UNET_CONFIG]).parent
    _fetch_first(hub_id, folder, [f'scheduler/{SCHEDULER_CONFIG}', SCHEDULER_CONFIG])
    parent = '' if unet == folder else 'unet/'
    _fetch_first(hub_id, folder, [f'{parent}{name}' for name in WEIGHTS])
  except (OSError, http.client.HTTPException) as error:
    reason = ' '.join(str(error).split())
    raise ValueError(
      f'there is no file {hub_id}, and downloading it from {HUB_URL} failed ({reason}): check the '
      'name, or get its files elsewhere and give their folder'
    ) from error
  return folder


def _fetch_first(hub_id, folder, names):
  """The path of the first of the names that is there, or published."""
  for name in names:
    if (folder / name).is_file():
      return folder / name
  for name in names:
    try:
      _fetch(f'{HUB_URL}/{hub_id}/resolve/main/{name}', folder / name)
    except urllib.error.HTTPError as error:
      if error.code != http.HTTPStatus.NOT_FOUND:
        raise
    else:
      return folder / name
  raise OSError(f'it has no {" or ".join(names)}')


def _fetch(url, path):
  import tqdm

  partial = path.with_name(f'{path.name}.partial')
  with urllib.request.urlopen(url, timeout=_TIMEOUT_SECS) as response:
    total, received = response.length, 0  # None: not told
    path.parent.mkdir(parents=True, exist_ok=True)
    bar = tqdm.tqdm(desc=path.name, total=total, unit='B', unit_scale=True)
    with bar, open(partial, 'wb') as file:
      while received <= _MAX_BYTES and (block := response.read(_BLOCK_BYTES)):
        file.write(block)
        received += len(block)
        bar.update(len(block))
  if received > _MAX_BYTES:
    raise OSError(f'{path.name} has more than {_MAX_BYTES} bytes')
  if total not in (None, received):
    raise OSError(f'the connection closed after {received} of {total} bytes')
  partial.replace(path)
