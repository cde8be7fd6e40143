"""The published weights of the FID Inception network as our parameters.

Each convolution there is followed by a batch norm, which is folded into it: see batch_norm.py.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.interop import batch_norm
from ddpm_jax.interop.tensors import check_shapes
from ddpm_jax.nn.inception import IMAGE_SIZE, InceptionV3


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
  state_dict = batch_norm.without_counters(state_dict)
  check_shapes(state_dict, _expected_shapes(like), 'not the Inception network of FID')

  def convert(path, leaf):
    *modules, kind = [key.key for key in path]
    if modules == ['fc']:
      return jnp.asarray(state_dict['fc.weight'].T, leaf.dtype)
    if kind == 'fc_bias':
      return jnp.asarray(state_dict['fc.bias'], leaf.dtype)
    module = '.'.join(modules)
    kernel, bias = batch_norm.folded(state_dict, f'{module}.conv', f'{module}.bn')
    return jnp.asarray(kernel if kind == 'kernel' else bias, leaf.dtype)

  return jax.tree_util.tree_map_with_path(convert, like)


def _expected_shapes(like):
  """{name in the file: shape}."""
  shapes = {'fc.weight': like['fc']['kernel'].shape[::-1], 'fc.bias': like['fc_bias'].shape}
  for path, leaf in jax.tree_util.tree_leaves_with_path(like):
    *modules, kind = [key.key for key in path]
    if kind == 'kernel' and modules != ['fc']:
      module = '.'.join(modules)
      shapes |= batch_norm.shapes(f'{module}.conv', f'{module}.bn', leaf.shape)
  return shapes
