"""Splits of the data by their names, and a test split that is held out where there is none."""

import hashlib
import re
from typing import Any

import numpy as np

from ddpm_jax.data.labels import Labels
from ddpm_jax.errors import UserError

HELD_OUT = ('test', 'val', 'valid', 'validation')  # what a held-out split is called
SPLITS = ('train', *HELD_OUT)
_WORD = 1 << 64


class NoSplitError(UserError):
  """The data have no split of the name."""


def base_names(split: str) -> set[str]:
  """{'train', 'test'} of 'train[:90%]+test'."""
  return {re.sub(r'\[.*', '', part).strip() for part in split.split('+')}


def is_held_out(split: str) -> bool:
  """Whether a split's name says that it was not trained on."""
  return bool(base_names(split) & set(HELD_OUT))


def share_pictures(one: str, other: str) -> bool:
  """Whether two splits of the same data may share pictures, by their names."""
  names = base_names(one), base_names(other)
  return any('all' in bases for bases in names) or bool(names[0] & names[1])


def check_holdout(fraction: float | None) -> None:
  """Raises a UserError for a config.data.holdout that is no part of the data."""
  if fraction is not None and not 0 < fraction < 1:
    raise UserError(
      f'data.holdout is {fraction}; it must lie between 0 and 1, or be left out for none'
    )


def told(source: Any, what: str) -> Any:
  """What a source tells by an optional method, such as 'picture_names'; None if it does not."""
  method = getattr(source, what, None)
  return None if method is None else method()


class Part:
  """Some of a source's pictures, as a source."""

  def __init__(self, source: Any, rows: np.ndarray, *, split: str, remarks: tuple[str, ...] = ()):
    self.name, self.split, self.image_shape = source.name, split, source.image_shape
    self.remarks = (*getattr(source, 'remarks', ()), *remarks)
    self.rate = getattr(source, 'rate', None)
    self.channel_names = getattr(source, 'channel_names', None)
    self.decodes = getattr(source, 'decodes', False)
    self._source, self._rows = source, rows

  def __len__(self):
    return len(self._rows)

  def read(self, indices: np.ndarray) -> np.ndarray:
    """Returns uint8 [N, H, W, C] for int [N]."""
    return self._source.read(self._rows[np.asarray(indices)])

  def names(self) -> bytes | None:
    """The names of all pictures."""
    return b'\n'.join(self.picture_names() or ())

  def picture_names(self) -> list[bytes] | None:
    """The name of each picture."""
    return self._chosen(told(self._source, 'picture_names'))

  def picture_files(self) -> list[Any] | None:
    """The PictureFile of each picture."""
    return self._chosen(told(self._source, 'picture_files'))

  def labels(self, choice: str | None) -> Labels | None:
    """The class of each picture."""
    method = getattr(self._source, 'labels', None)
    found = None if method is None else method(choice)
    return None if found is None else found._replace(ids=found.ids[self._rows])

  def version(self) -> str | None:
    """As the source's."""
    return told(self._source, 'version')

  def _chosen(self, values):
    return None if values is None else [values[row] for row in self._rows]


def hold_out(source: Any, split: str, fraction: float) -> Part:
  """The pictures of a source that are trained on, or those that are not.

  A picture is held out by a hash of its name, whatever others there are: it stays on its side when
  pictures are added, and when the folder moves.

  Args:
    source: a Source whose pictures have names.
    split: 'train' or 'test'.
    fraction: of the pictures to hold out, about; in (0, 1).

  Raises:
    UserError: the pictures have no names, or one of the sides has none.
  """
  names = told(source, 'picture_names')
  if names is None:
    raise UserError(
      f'data.holdout={fraction}: the pictures of {source.name} have no file names to go by; leave '
      "it out. With TFDS, data.split='train[:90%]' and eval.bpd_splits=\"('train[:90%]', "
      "'train[90%:]')\" do the same"
    )
  limit = int(fraction * _WORD)
  is_test = np.array([_hash(name) < limit for name in names], bool)
  count = int(is_test.sum())
  if count in (0, len(is_test)):
    raise UserError(
      f'data.holdout={fraction} holds out {count} of the {len(is_test)} pictures of {source.name}: '
      'give another fraction, or more pictures'
    )
  remark = (
    f'data.holdout={fraction}: {count} of the {len(is_test)} pictures of {source.name} are the '
    'test split, by a hash of their names, and are not trained on'
  )
  rows = np.flatnonzero(is_test if split == 'test' else ~is_test)
  return Part(source, rows, split=split, remarks=(remark,))


def _hash(name):
  """A whole number below _WORD."""
  return int.from_bytes(hashlib.sha256(name).digest()[:8], 'big')
