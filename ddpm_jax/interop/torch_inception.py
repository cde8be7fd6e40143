"""The published weights of the FID Inception network as our parameters.

For each convolution the file has a kernel (OIHW there, HWIO here) and a batch norm; in inference
the latter is an affine map of each channel, which we fold into the kernel and a bias:

  scale  = bn.weight / sqrt(bn.running_var + 0.001)
  kernel = conv.weight * scale
  bias   = bn.bias - bn.running_mean * scale
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.nn.inception import IMAGE_SIZE, InceptionV3

BATCH_NORM_EPSILON = 0.001
_BATCH_NORM = ('weight', 'bias', 'running_mean', 'running_var')


def inception_params_like() -> Any:
  """The network's parameters, as a tree of ShapeDtypeStructs."""
  images = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
  return jax.eval_shape(InceptionV3().init, jax.random.key(0), images)['params']


def params_from_torch(state_dict: Mapping[str, np.ndarray]) -> Any:
  """Our parameters from the published state dict.

  Args:
    state_dict: dict of arrays by name, such as 'Mixed_5b.branch1x1.conv.weight'; exactly the
      network's, but that `num_batches_tracked`, a counter of training, is not looked at.

  Returns:
    A tree for InceptionV3().apply({'params': ...}, images), float32.

  Raises:
    UserError: tensors that are missing, unknown or of another shape; says how many, and the first.
  """
  like = inception_params_like()
  state_dict = {
    name: array for name, array in state_dict.items() if not name.endswith('num_batches_tracked')
  }
  _check_shapes(state_dict, _expected_shapes(like))

  def convert(path, leaf):
    *modules, kind = [key.key for key in path]
    if modules == ['fc']:
      return jnp.asarray(state_dict['fc.weight'].T, leaf.dtype)
    if kind == 'fc_bias':
      return jnp.asarray(state_dict['fc.bias'], leaf.dtype)
    kernel, bias = _folded(state_dict, '.'.join(modules))
    return jnp.asarray(kernel if kind == 'kernel' else bias, leaf.dtype)

  return jax.tree_util.tree_map_with_path(convert, like)


def _folded(state_dict, module):
  gamma, beta, mean, variance = (
    np.asarray(state_dict[f'{module}.bn.{name}'], np.float64) for name in _BATCH_NORM
  )
  scale = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
  kernel = np.asarray(state_dict[f'{module}.conv.weight'], np.float64).transpose(2, 3, 1, 0)
  return kernel * scale, beta - mean * scale


def _expected_shapes(like):
  """{name in the file: shape}."""
  shapes = {'fc.weight': like['fc']['kernel'].shape[::-1], 'fc.bias': like['fc_bias'].shape}
  for path, leaf in jax.tree_util.tree_leaves_with_path(like):
    *modules, kind = [key.key for key in path]
    if kind == 'kernel' and modules != ['fc']:
      module = '.'.join(modules)
      height, width, inputs, outputs = leaf.shape
      shapes[f'{module}.conv.weight'] = (outputs, inputs, height, width)
      shapes |= {f'{module}.bn.{name}': (outputs,) for name in _BATCH_NORM}
  return shapes


def _check_shapes(state_dict, expected):
  shapes = {name: np.shape(array) for name, array in state_dict.items()}
  problems = {
    'missing': [name for name in expected if name not in shapes],
    'unknown': [name for name in shapes if name not in expected],
    'of another shape': [
      f'{name} {shapes[name]}, wanted {shape}'
      for name, shape in expected.items()
      if shapes.get(name, shape) != shape
    ],
  }
  found = [f'{len(names)} {kind} (first {names[0]})' for kind, names in problems.items() if names]
  if found:
    raise UserError(
      f'not the Inception network of FID: of its {len(expected)} tensors, {"; ".join(found)}'
    )
