"""The files of weights in a folder of diffusers: whole or in shards, and their variants.

diffusion_pytorch_model.safetensors, .bin                      ''
diffusion_pytorch_model.fp16.safetensors                       fp16
diffusion_pytorch_model.non_ema.safetensors                    non_ema
diffusion_pytorch_model.safetensors.index.json                 '', in shards that it names
diffusion_pytorch_model.safetensors.index.fp16.json            fp16, likewise
"""

import json
import pathlib
import re
from typing import Any

from ddpm_jax.errors import UserError
from ddpm_jax.interop.safetensors_file import read_safetensors
from ddpm_jax.interop.torch_file import read_torch_file

_NAME = re.compile(
  r'(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>\w+))?\.(?:safetensors|bin)'
)
_INDEX = re.compile(
  r'(?:diffusion_pytorch_model|pytorch_model|model)\.(?:safetensors|bin)\.index'
  r'(?:\.(?P<variant>\w+))?\.json'
)
_SHARD = re.compile(r'[\w-][\w.-]*\.(?:safetensors|bin)')
_LFS_POINTER = b'version https://git-lfs'
_MAX_JSON_BYTES = 1 << 20
_MAX_LISTED = 8


def find_weights(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """{variant: file, or index}; safetensors come before other files, whole ones before shards."""
  found: dict[str, pathlib.Path] = {}
  files = sorted(path for path in folder.iterdir() if path.is_file())
  for path in sorted(files, key=lambda path: ('.bin' in path.name, path.suffix == '.json')):
    match = _NAME.fullmatch(path.name) or _INDEX.fullmatch(path.name)
    if match:
      found.setdefault(match['variant'] or '', path)
  return found


def read_weights(path: pathlib.Path) -> Any:
  """What a file, or all shards of an index, hold: most often a dict of arrays by name.

  Raises:
    UserError: no such file, damaged, or a shard that lacks; in one line, which names the file.
  """
  if path.suffix == '.json':
    return _read_shards(path)
  with open(path, 'rb') as file:
    if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
      raise UserError(f'{path}: not the weights, but a pointer to them: run git lfs pull')
  return read_safetensors(path) if path.suffix == '.safetensors' else read_torch_file(path)


def _read_shards(index):
  places = read_index(index)
  shards = sorted(set(places.values()))
  missing = [name for name in shards if not (index.parent / name).is_file()]
  if missing:
    more = f', and {len(missing) - _MAX_LISTED} more' if len(missing) > _MAX_LISTED else ''
    raise UserError(
      f'{index}: {len(missing)} of its {len(shards)} shards are not there: '
      f'{", ".join(missing[:_MAX_LISTED])}{more}'
    )
  tensors = {}
  for shard in shards:
    found = read_weights(index.parent / shard)
    expected = {name for name, place in places.items() if place == shard}
    if not isinstance(found, dict) or set(found) != expected:
      raise UserError(f'{index.parent / shard}: its tensors are not those that {index.name} says')
    tensors |= found
  return tensors


def read_index(index: pathlib.Path) -> dict[str, str]:
  """{name of a tensor: name of its shard, a file beside the index}."""
  if index.stat().st_size > _MAX_JSON_BYTES:
    raise UserError(f'{index}: an index of more than {_MAX_JSON_BYTES} bytes')
  try:
    places = json.loads(index.read_bytes())['weight_map']
    is_right = bool(places) and all(_SHARD.fullmatch(shard) for shard in places.values())
  except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
    is_right = False
  if not is_right:
    raise UserError(f'{index}: no index of shards: it is damaged')
  return places
