"""The original program's TensorFlow variables as our parameters.

Every array keeps its shape and layout: convolutions are HWIO and 1 x 1 `nin` layers [in, out] in
both. Only names differ:

  model/down_0/block_1/conv1/W      down_0_block_1/conv1/kernel
  model/temb/dense0/b               temb_dense0/bias
  model/mid/attn_1/norm/gamma       mid_attn_1/norm/scale
  model/mid/attn_1/norm/beta        mid_attn_1/norm/bias

A checkpoint also has their moving averages, NAME/ExponentialMovingAverage; Adam's moments,
NAME/Adam and NAME/Adam_1; and counters.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.interop.tensors import params_from_tensors
from ddpm_jax.interop.tf_bundle import read_bundle

_SCOPE = re.compile(r'^(temb|mid|down_\d+|up_\d+)_')
_LEAF = {'kernel': 'W', 'scale': 'gamma'}
_EMA = '/ExponentialMovingAverage'
_SLOTS = ('/Adam', '/Adam_1')
_STEP = 'global_step'
_MAX_STEP = 2**31 - 1


def tf_name(path: tuple[str, ...]) -> str:
  """The TF variable's name for a path of our parameters, e.g. ('conv_in', 'kernel')."""
  *modules, leaf = path
  modules[0] = _SCOPE.sub(r'\1/', modules[0])
  if leaf == 'bias':
    leaf = 'beta' if modules[-1].startswith('norm') else 'b'
  return '/'.join(['model', *modules, _LEAF.get(leaf, leaf)])


def params_from_tf(variables: Mapping[str, np.ndarray], params_like: Any) -> Any:
  """Our parameters from the original program's variables.

  Args:
    variables: dict of arrays by TF variable name, such as 'model/conv_in/W'; exactly the model's.
    params_like: a tree of arrays or ShapeDtypeStructs of the wanted form, as UNet.init gives it.

  Returns:
    A tree like params_like, with the values of `variables`.

  Raises:
    UserError: as params_from_tensors.
  """
  return params_from_tensors(variables, params_like, lambda path, _: (tf_name(path), 'same'))


def read_checkpoint(prefix: pathlib.Path, params_like: Any) -> tuple[Any, Any, int]:
  """Reads a checkpoint of the original program.

  Args:
    prefix: as tf_bundle.find_bundle gives it.
    params_like: as in params_from_tf.

  Returns:
    (params, ema_params, step): of one set of weights, both are it; step is 0 if the file has none.

  Raises:
    UserError: a damaged file, or another model's; in one line, which names the file.
  """
  variables = read_bundle(prefix, _select)
  step = variables.pop(_STEP, np.zeros((), np.int64))
  if step.shape or step.dtype.kind != 'i' or not 0 <= step <= _MAX_STEP:
    raise UserError(f'{prefix}: its global_step is {step.dtype}{list(step.shape)}, out of range')
  averages = {
    name.removesuffix(_EMA): variables.pop(name) for name in list(variables) if name.endswith(_EMA)
  }
  try:
    ema_params = params_from_tf(averages or variables, params_like)
    params = params_from_tf(variables, params_like) if averages and variables else ema_params
  except UserError as error:
    raise UserError(f'{prefix}: {error}') from error
  return params, ema_params, int(step)


def _select(shapes):
  """Weights, averages and the step; not Adam's moments, nor scalars besides the model."""
  return [
    name
    for name, shape in shapes.items()
    if not name.endswith(_SLOTS) and (name == _STEP or shape or name.startswith('model/'))
  ]
