"""The state dicts of pytorch_diffusion, a port of the original models, as our parameters.

Convolutions are OIHW there, layers of the timestep linear, and 1 x 1 layers convolutions:

  down.0.block.1.conv1.weight     down_0_block_1/conv1/kernel
  temb.dense.0.bias               temb_dense0/bias
  mid.attn_1.norm.weight          mid_attn_1/norm/scale
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax.interop import tensors
from ddpm_jax.interop.tensors import params_from_tensors, torch_name

_SCOPES = (
  (re.compile(r'^(down|up)_(\d+)_(block|attn)_(\d+)'), r'\1.\2.\3.\4'),
  (re.compile(r'^(down|up)_(\d+)_'), r'\1.\2.'),
  (re.compile(r'^mid_'), 'mid.'),
  (re.compile(r'^temb_dense'), 'temb.dense.'),
)


def place(path: tuple[str, ...], ndim: int) -> tuple[str, str]:
  """(name, layout) there for a path of our parameters."""
  module = '.'.join(path[:-1])
  for pattern, replacement in _SCOPES:
    module = pattern.sub(replacement, module)
  is_linear = path[0].startswith('temb') or path[-2] == 'temb_proj'
  return torch_name(module, path, ndim, 'linear' if is_linear else 'conv_1x1')


def names_of(params_like: Any) -> set[str]:
  """The names of all tensors of our network there."""
  return tensors.names_of(params_like, place)


def params_from_state_dict(state_dict: Mapping[str, np.ndarray], params_like: Any) -> Any:
  """Our parameters from a state dict; Args, Returns and Raises as params_from_tensors."""
  return params_from_tensors(state_dict, params_like, place)
