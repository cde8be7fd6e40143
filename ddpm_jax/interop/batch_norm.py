"""PyTorch's batch norms, folded into the convolutions that they follow.

For each convolution a state dict has a kernel (OIHW there, HWIO here) and a batch norm. In
inference the norm is an affine map of each channel, which is folded into the kernel and a bias:

  scale  = bn.weight / sqrt(bn.running_var + 0.001)
  kernel = conv.weight * scale
  bias   = bn.bias - bn.running_mean * scale

0.001 is the epsilon of TensorFlow's networks, from which both of ours were taken.
"""

from collections.abc import Mapping

import numpy as np

EPSILON = 0.001
_NAMES = ('weight', 'bias', 'running_mean', 'running_var')


def folded(
  state_dict: Mapping[str, np.ndarray], conv: str, norm: str
) -> tuple[np.ndarray, np.ndarray]:
  """(kernel [H, W, in, out], bias [out]), float64, of a convolution and its norm.

  Args:
    state_dict: dict of arrays by name.
    conv, norm: names of the modules.
  """
  gamma, beta, mean, variance = (
    np.asarray(state_dict[f'{norm}.{name}'], np.float64) for name in _NAMES
  )
  scale = gamma / np.sqrt(variance + EPSILON)
  kernel = np.asarray(state_dict[f'{conv}.weight'], np.float64).transpose(2, 3, 1, 0)
  return kernel * scale, beta - mean * scale


def shapes(conv: str, norm: str, kernel_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
  """{name: shape} of a convolution's tensors and its norm's, whose kernel is [H, W, in, out]."""
  height, width, inputs, outputs = kernel_shape
  of_norm = {f'{norm}.{name}': (outputs,) for name in _NAMES}
  return {f'{conv}.weight': (outputs, inputs, height, width), **of_norm}


def without_counters(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """A state dict but for num_batches_tracked, which training alone goes by."""
  return {
    name: array for name, array in state_dict.items() if not name.endswith('num_batches_tracked')
  }
