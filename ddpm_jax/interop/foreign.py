"""Models of other programs, of whatever form, as our parameters."""

import os
import pathlib
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax.errors import UserError
from ddpm_jax.interop import diffusers, hub, pytorch_diffusion, tf_bundle, tf_ddpm
from ddpm_jax.interop.torch_file import read_state_dict
from ddpm_jax.paths import expanded

FORMS = (
  'a checkpoint of the original program (.../model.ckpt-790000), a folder or hub name of a '
  'diffusers pipeline, or a .ckpt file of pytorch_diffusion'
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
  if os.path.isfile(found):
    params = _read_file(found, params_like)
  elif os.path.isdir(found):
    if not diffusers.find_pipeline(found):
      raise UserError(f'{path}: a folder without a model; give {FORMS}')
    params = diffusers.read_pipeline(found, config, params_like)
  elif hub.is_hub_id(path):
    params = diffusers.read_pipeline(hub.fetch_pipeline(path, cache_dir), config, params_like)
  else:
    raise UserError(f'{path}: nothing there; give {FORMS}')
  return params, params, 0


def _read_file(path, params_like):
  if path.name in diffusers.WEIGHTS or path.suffix == '.safetensors':
    raise UserError(f'{path}: weights without their settings; give the folder of the pipeline')
  state_dict = read_state_dict(path)
  try:
    return pytorch_diffusion.params_from_state_dict(state_dict, params_like)
  except UserError as error:
    raise UserError(f'{path}: {error}') from error
