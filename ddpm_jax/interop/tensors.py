"""Other programs' tensors as our parameters and back, by names and layouts.

A layout says how another program stores one of our kernels; all else is stored alike everywhere.

  same        [H, W, in, out], [in, out]     as we do
  conv        [out, in, H, W]                of ours [H, W, in, out]
  linear      [out, in]                      of ours [in, out]
  conv_1x1    [out, in, 1, 1]                of ours [in, out]
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UserError

Place = Callable[[tuple[str, ...], int], tuple[str, str]]  # as params_from_tensors has it

MAX_LISTED = 5
MAX_SHOWN = 200  # characters


def path_of(key_path: Any) -> tuple[str, ...]:
  """('conv_in', 'kernel') of JAX's key path."""
  return tuple(key.key for key in key_path)


def torch_name(module: str, path: tuple[str, ...], ndim: int, dense: str) -> tuple[str, str]:
  """The (name, layout) that PyTorch gives to a leaf of ours.

  Args:
    module: what it calls the leaf's module.
    path: the leaf's path, e.g. ('conv_in', 'kernel').
    ndim: dimensions of the leaf.
    dense: the layout of its dense layers, linear or conv_1x1.
  """
  if path[-1] != 'kernel':
    return f'{module}.{"bias" if path[-1] == "bias" else "weight"}', 'same'
  return f'{module}.weight', 'conv' if ndim == 4 else dense


def to_layout(array: np.ndarray, layout: str) -> np.ndarray:
  """A view of our array as the other program stores it."""
  match layout:
    case 'conv':
      return array.transpose(3, 2, 0, 1)
    case 'linear':
      return array.T
    case 'conv_1x1':
      return array.T[:, :, None, None]
  return array


def from_layout(array: np.ndarray, layout: str) -> np.ndarray:
  """The inverse of to_layout."""
  match layout:
    case 'conv':
      return array.transpose(2, 3, 1, 0)
    case 'linear':
      return array.T
    case 'conv_1x1':
      return array[:, :, 0, 0].T
  return array


def params_from_tensors(tensors: Mapping[str, np.ndarray], params_like: Any, place: Place) -> Any:
  """Our parameters from another program's tensors.

  Args:
    tensors: dict of arrays by name; exactly the model's.
    params_like: a tree of arrays or ShapeDtypeStructs of the wanted form, as UNet.init gives it.
    place: (path of our leaf, its number of dimensions) -> (name there, layout there).

  Returns:
    A tree like params_like, with the values of `tensors`.

  Raises:
    UserError: names that are missing, that have no place, or whose shapes differ (the first few of
      each are listed, with both shapes); numbers that are not real or not finite.
  """
  leaves, treedef = jax.tree_util.tree_flatten_with_path(params_like)
  places = [place(path_of(key_path), len(leaf.shape)) for key_path, leaf in leaves]
  expected = {
    name: to_layout(np.broadcast_to(np.float32(0), leaf.shape), layout).shape
    for (name, layout), (_, leaf) in zip(places, leaves, strict=True)
  }
  check_shapes(tensors, expected, 'variables do not fit the model')
  arrays = []
  for (name, layout), (_, leaf) in zip(places, leaves, strict=True):
    tensor = np.asarray(tensors[name])
    array = np.asarray(from_layout(tensor, layout), leaf.dtype)
    if not jnp.issubdtype(tensor.dtype, jnp.floating) or not np.isfinite(array).all():
      raise UserError(f'{name} has other than finite real numbers: the file is damaged')
    arrays.append(jnp.asarray(array))
  return jax.tree_util.tree_unflatten(treedef, arrays)


def names_of(params_like: Any, place: Place) -> set[str]:
  """The names that another program gives to the tensors of a network of ours."""
  leaves = jax.tree_util.tree_leaves_with_path(params_like)
  return {place(path_of(key_path), len(leaf.shape))[0] for key_path, leaf in leaves}


def tensors_from_params(params: Any, place: Place) -> dict[str, np.ndarray]:
  """Another program's tensors from our parameters: the inverse, of NumPy arrays in C order."""
  tensors = {}
  for key_path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name, layout = place(path_of(key_path), leaf.ndim)
    tensors[name] = np.ascontiguousarray(to_layout(np.asarray(leaf), layout))
  return tensors


def check_shapes(
  tensors: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], what: str
) -> None:
  """Raises a UserError if tensors are missing, unknown or of another shape; lists the first few.

  Args:
    tensors: dict of arrays by name.
    expected: {name: shape}.
    what: the words before the list.
  """
  shapes = {name: np.shape(tensor) for name, tensor in tensors.items()}
  problems = {
    'missing': [f'{name} {shape}' for name, shape in expected.items() if name not in shapes],
    'unknown': [f'{name} {shape}' for name, shape in shapes.items() if name not in expected],
    'of another shape': [
      f'{name} {shapes[name]}, wanted {shape}'
      for name, shape in expected.items()
      if shapes.get(name, shape) != shape
    ],
  }
  if any(problems.values()):
    raise UserError(f'{what}: ' + '; '.join(_summaries(problems)))


def _summaries(problems):
  for kind, found in problems.items():
    if found:
      shown = [' '.join(line.split())[:MAX_SHOWN] for line in found[:MAX_LISTED]]
      rest = f', and {len(found) - MAX_LISTED} more' if len(found) > MAX_LISTED else ''
      yield f'{len(found)} {kind}: ' + ', '.join(shown) + rest
