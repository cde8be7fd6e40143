"""The original program's TensorFlow variables as our parameters.

Every array keeps its shape and layout: convolutions are HWIO and 1 x 1 `nin` layers [in, out] in
both. Only names differ:

  model/down_0/block_1/conv1/W      down_0_block_1/conv1/kernel
  model/temb/dense0/b               temb_dense0/bias
  model/mid/attn_1/norm/gamma       mid_attn_1/norm/scale
  model/mid/attn_1/norm/beta        mid_attn_1/norm/bias
"""

import re

import jax
import jax.numpy as jnp
import numpy as np

MAX_LISTED = 5
_SCOPE = re.compile(r'^(temb|mid|down_\d+|up_\d+)_')
_LEAF = {'kernel': 'W', 'scale': 'gamma'}


def tf_name(path):
  """The TF variable's name for a path of our parameters, e.g. ('conv_in', 'kernel')."""
  *modules, leaf = path
  modules[0] = _SCOPE.sub(r'\1/', modules[0])
  if leaf == 'bias':
    leaf = 'beta' if modules[-1].startswith('norm') else 'b'
  return '/'.join(['model', *modules, _LEAF.get(leaf, leaf)])


def params_from_tf(variables, params_like):
  """Our parameters from the original program's variables.

  Args:
    variables: dict of arrays by TF variable name, such as 'model/conv_in/W'; exactly the model's.
    params_like: a tree of arrays or ShapeDtypeStructs of the wanted form, as UNet.init gives it.

  Returns:
    A tree like params_like, with the values of `variables`.

  Raises:
    ValueError: names that are missing, that have no place, or whose shapes differ; the first few of
      each are listed.
  """
  leaves, treedef = jax.tree_util.tree_flatten_with_path(params_like)
  wanted = {tf_name([key.key for key in path]): leaf for path, leaf in leaves}
  shapes = {name: tuple(np.shape(array)) for name, array in variables.items()}
  problems = {
    'missing': [f'{name} {like.shape}' for name, like in wanted.items() if name not in shapes],
    'unknown': [f'{name} {shape}' for name, shape in shapes.items() if name not in wanted],
    'of another shape': [
      f'{name} {shapes[name]}, wanted {like.shape}'
      for name, like in wanted.items()
      if name in shapes and shapes[name] != like.shape
    ],
  }
  if any(problems.values()):
    raise ValueError('variables do not fit the model: ' + '; '.join(_summaries(problems)))
  arrays = [jnp.asarray(variables[name], like.dtype) for name, like in wanted.items()]
  return jax.tree_util.tree_unflatten(treedef, arrays)


def _summaries(problems):
  for kind, found in problems.items():
    if found:
      rest = f', and {len(found) - MAX_LISTED} more' if len(found) > MAX_LISTED else ''
      yield f'{len(found)} {kind}: ' + ', '.join(found[:MAX_LISTED]) + rest
