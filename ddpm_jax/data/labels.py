"""The labels of pictures: the class of each, and the names of the classes.

A source that has labels tells them by `labels(choice)`; digits and TFDS do, and a folder whose
pictures lie in a folder for each class.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.data.listing import some
from ddpm_jax.errors import UserError

FOLDERS = 'folders'  # as data.labels: the folder that a picture lies in
LEAST = 2  # pictures of a class


class Labels(NamedTuple):
  """The classes of a source's pictures.

  Attributes:
    ids: int32 [N], the class of each picture.
    names: of the classes 0, 1, ....
  """

  ids: np.ndarray
  names: tuple[str, ...]

  def sha256(self) -> str:
    """sha256 (hex) of the classes of all pictures, by name."""
    digest = hashlib.sha256('\n'.join(self.names).encode())
    digest.update(np.ascontiguousarray(self.ids, '<i4').tobytes())
    return digest.hexdigest()


def read_labels(source: Any, choice: str | None = None) -> Labels:
  """The labels of all pictures of a source.

  Args:
    source: a Source.
    choice: which, as data.labels has it; None for those that the data bring.

  Raises:
    UserError: the source has none, or none of that name.
  """
  method = getattr(source, 'labels', None)
  found = None if method is None else method(choice)
  if found is None:
    hint = (
      'data.labels=folders takes the folder that each picture lies in'
      if source.name.startswith('folder:')
      else 'leave out model.num_classes'
    )
    raise UserError(f'data.source={source.name}: its pictures have no labels; {hint}')
  return found


def renumbered(labels: Labels, names: Sequence[str]) -> Labels:
  """The same labels by the numbers that a run gives to the classes, which another split may not
  all have.

  Raises:
    UserError: a class that the run has not.
  """
  if unknown := [name for name in labels.names if name not in names]:
    raise UserError(
      f'the pictures have the class {some(unknown)}, which this model has not been trained on; it '
      f'has {listed(names)}'
    )
  numbers = np.array([list(names).index(name) for name in labels.names], np.int32)
  return Labels(numbers[labels.ids], tuple(names))


def check_classes(labels: Labels, name: str) -> None:
  """Raises a UserError for a class with too few pictures to learn it from.

  Args:
    labels: of the training pictures.
    name: of their source.
  """
  counts = np.bincount(labels.ids, minlength=len(labels.names))
  few = [f'{labels.names[i]} ({counts[i]})' for i in np.flatnonzero(counts < LEAST)]
  if len(labels.names) < 2 or few:
    found = f'too few pictures of {some(few)}' if few else f'the class {labels.names[0]} alone'
    raise UserError(
      f'data.source={name} has {found}; give {LEAST} classes at least, and {LEAST} pictures of each'
    )


def listed(names: Sequence[str]) -> str:
  """The classes for people: '0 airplane, 1 automobile, ...'."""
  most = 20
  shown = ', '.join(
    f'{i} {name}' if name != str(i) else name for i, name in enumerate(names[:most])
  )
  return shown + (f', ... ({len(names)} in all)' if len(names) > most else '')


def stand_ins(source: Any, rows: np.ndarray) -> np.ndarray:
  """The pictures that were read for these rows: others, where damaged ones are passed over."""
  method = getattr(source, 'stand_ins', None)
  return np.asarray(rows) if method is None else method(rows)
