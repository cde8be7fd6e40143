"""Going on where pictures of a data set are damaged."""

import sys

import numpy as np

from ddpm_jax.data.pictures import DamagedDataError
from ddpm_jax.data.splits import Part, told

_MOST = 0.01  # of the pictures; with more of them damaged, it is not the data set any more


class Substitutes(Part):
  """A source in which the next intact picture takes the place of a damaged one.

  So the batch of a step stays a function of the step and of the data as they lie on the disk. Each
  damaged picture is named once, and counted, by each process that meets it.
  """

  def __init__(self, source):
    super().__init__(source, np.arange(len(source)), split=source.split)
    self._damaged = set()

  def names(self) -> bytes | None:
    """As the source's."""
    return told(self._source, 'names')

  def read(self, indices: np.ndarray) -> np.ndarray:
    """Returns uint8 [N, H, W, C] for int [N]; DamagedDataError where too many are damaged."""
    try:
      return self._source.read(indices)
    except DamagedDataError:
      return np.stack([self._read_one(int(index)) for index in indices])

  def stand_ins(self, rows: np.ndarray) -> np.ndarray:
    """The pictures that `read` has returned for these rows."""
    return np.array([self._intact(int(row)) for row in rows], np.int64)

  def _intact(self, index):
    while index in self._damaged:
      index = (index + 1) % len(self)
    return index

  def _read_one(self, index):
    while True:
      try:
        return self._source.read([index])[0]
      except DamagedDataError as error:
        self._note(index, error)
        index = (index + 1) % len(self)

  def _note(self, index, error):
    if index in self._damaged:
      return
    self._damaged.add(index)
    if len(self._damaged) > max(1, _MOST * len(self)):
      raise DamagedDataError(
        f'{self.name} {self.split}: {len(self._damaged)} of {len(self)} pictures are damaged, more '
        f'than data.on_damage=skip passes over ({_MOST:.0%}); the last: {error}'
      ) from error
    print(
      f'damaged picture {len(self._damaged)} of {len(self)}, another takes its place: {error}',
      file=sys.stderr,
      flush=True,
    )
