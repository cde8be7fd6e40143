"""The digits classifier's weights, as the package ships them."""

import hashlib
import pathlib

import jax
import numpy as np

import ddpm_jax
from ddpm_jax.digits_classifier import IMAGE_SHAPE, DigitsClassifier

FILE = pathlib.Path(ddpm_jax.__file__).with_name('digits_classifier.npz')


def flat_names(params):
  """{'Conv_0/kernel': array} of nested parameters."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


def load_digits_classifier():
  """(params, sha256 of their file).

  Raises:
    ValueError: the file is not that of this network.
  """
  images = np.zeros((1, *IMAGE_SHAPE), np.uint8)
  like = jax.eval_shape(DigitsClassifier().init, jax.random.key(0), images)['params']
  with np.load(FILE) as file:
    arrays = dict(file)
  leaves, structure = jax.tree.flatten(like)
  names = [
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, _ in jax.tree_util.tree_leaves_with_path(like)
  ]
  stored = {name: array.shape for name, array in arrays.items()}
  if stored != {name: leaf.shape for name, leaf in zip(names, leaves, strict=True)}:
    raise ValueError(f'{FILE} is of another network; scripts/train_digits_classifier.py makes it')
  params = jax.tree.unflatten(structure, [arrays[name] for name in names])
  return params, hashlib.sha256(FILE.read_bytes()).hexdigest()
