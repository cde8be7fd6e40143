"""Models of other programs, of whatever form, as our parameters."""

import os
import pathlib
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax.errors import UserError
from ddpm_jax.interop import (
  diffusers,
  hub,
  pytorch_diffusion,
  state_dicts,
  tf_bundle,
  tf_ddpm,
)
from ddpm_jax.interop.torch_file import read_torch_file
from ddpm_jax.paths import expanded

_MAX_LISTED = 5
FORMS = (
  'a checkpoint of the original program (.../model.ckpt-790000), a folder or hub name of a '
  'diffusers pipeline or of a checkpoint of its training, or a .ckpt file of pytorch_diffusion'
)


def read_foreign(
  path: str, config: ConfigDict, params_like: Any, *, cache_dir: pathlib.Path
) -> tuple[Any, Any, int]:
  """Reads a model; what lies at the path says of which form it is.

  Args:
    path: one of FORMS.
    config: ConfigDict, whose model it is to be.
    params_like: a tree of arrays or ShapeDtypeStructs, as UNet.init gives it.
    cache_dir: a folder for what is downloaded.

  Returns:
    (params, ema_params, step): of one set of weights, both are it, the same object; step is 0
      where none is told.

  Raises:
    UserError: none of these forms, damaged, or another model; in one line.
  """
  found = expanded(path)
  if (prefix := tf_bundle.find_bundle(found)) is not None:
    return tf_ddpm.read_checkpoint(prefix, params_like)
  chosen = config.import_.weights
  if os.path.isfile(found):
    return *_read_file(found, params_like, chosen), 0
  if os.path.isdir(found):
    if not diffusers.find_pipeline(found):
      raise UserError(f'{path}: {_without_model(found)}; give {FORMS}')
    return diffusers.read_models(found, config, params_like, chosen)
  if hub.is_hub_id(path):
    folder = hub.fetch_pipeline(path, cache_dir)
    return diffusers.read_models(folder, config, params_like, chosen)
  raise UserError(f'{path}: nothing there; give {FORMS}')


def _without_model(folder):
  """What a folder is; that of diffusers' training program has folders of checkpoints."""
  inner = [path.name for path in sorted(folder.glob('*')) if diffusers.find_pipeline(path)]
  hint = f', but {", ".join(inner[-_MAX_LISTED:])} in it has one' if inner else ''
  return f'a folder without a model{hint}'


def _read_file(path, params_like, chosen):
  """(params, ema_params) of a file of PyTorch's."""
  of_library = 'weights without their settings; give the folder of the pipeline'
  if path.name in diffusers.WEIGHTS or path.suffix == '.safetensors':
    raise UserError(f'{path}: {of_library}')
  root = read_torch_file(path)
  try:
    names = pytorch_diffusion.names_of(params_like)
    sets = state_dicts.find_sets(root, names, len(names))
    if not sets or '' in sets:
      library_names, num_names = diffusers.names_of(params_like)
      if state_dicts.find_sets(root, library_names, num_names).keys() - {''}:
        raise UserError(of_library)
    if not sets:
      raise UserError(f'no weights of this network, but {state_dicts.describe(root)}')
    found = [
      pytorch_diffusion.params_from_state_dict(state_dict, params_like)
      for state_dict in state_dicts.chosen_sets(sets, chosen)
    ]
  except UserError as error:
    raise UserError(f'{path}: {error}') from error
  return found[0], found[-1]
