"""Decoded pictures of a source, kept on disk: the next start reads them instead of decoding.

Two files in a folder, named by the source: NAME.npy has the pictures, NAME.json what they are of
and the sha256 of each chunk. What is not as it should be is decoded anew, chunk by chunk, and a
folder that cannot be used costs time and a line.
"""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ddpm_jax.data.labels import stand_ins
from ddpm_jax.data.pictures import DamagedDataError
from ddpm_jax.data.pipeline import dtype_of
from ddpm_jax.data.sources import fingerprint
from ddpm_jax.data.splits import told
from ddpm_jax.errors import DiskError
from ddpm_jax.storage.files import read_object, try_lock, write_text, written_whole

_FORMAT = 1  # of the files: those of another one are written anew


class DecodedFile:
  """Where the decoded pictures of a source are kept.

  Args:
    folder: which is made when something is written.
    source: a Source whose `version` changes when its pictures may have changed.
    say: prints a line.

  Raises:
    DamagedDataError: of a picture that the fingerprint is made of.
  """

  def __init__(self, folder: pathlib.Path, source: Any, *, say: Callable[[str], None]):
    self._source, self._say = source, say
    self._shape, self._dtype = (len(source), *source.image_shape), dtype_of(source)
    self._facts = {
      'format': _FORMAT,
      'version': told(source, 'version'),
      'fingerprint': fingerprint(source),
      'encoding': repr(getattr(source, 'encoding', None)),
      'shape': list(self._shape),
      'dtype': str(self._dtype),
    }
    name = f'{source.name} {source.split} {source.image_shape} {self._dtype}'
    self._array = folder / f'{hashlib.sha256(name.encode()).hexdigest()[:24]}.npy'
    self._about = self._array.with_suffix('.json')

  def open(self, num_chunks: int) -> tuple[np.ndarray, list[str]] | None:
    """(the pictures, to be written to as if in memory; sha256 of each chunk); None if not there.

    Args:
      num_chunks: of the pictures.
    """
    try:
      about = read_object(self._about)
      if about.get('facts') != self._facts:  # of data that have changed
        return None
      images, digests = np.load(self._array, mmap_mode='c'), about.get('chunks', [])
    except FileNotFoundError:
      return None
    except (OSError, ValueError, EOFError) as error:  # a UserError is a ValueError
      reason = str(error)
    else:
      is_whole = isinstance(digests, list) and len(digests) == num_chunks
      if is_whole and (images.shape, images.dtype) == (self._shape, self._dtype):
        return images, digests
      reason = 'it is of another form'
    self._say(f'decodes the pictures anew: {self._array} cannot be used ({reason})')
    return None

  def store(self, images: np.ndarray, digests: list[str]) -> None:
    """Keeps the pictures, if they can be kept: not where others stand in for damaged ones."""
    if not np.array_equal(stand_ins(self._source, np.arange(len(images))), np.arange(len(images))):
      return
    try:
      self._array.parent.mkdir(parents=True, exist_ok=True)
      with open(self._array.with_suffix('.lock'), 'a') as lock:
        if not try_lock(lock):  # another run writes them
          return
        with contextlib.suppress(FileNotFoundError):
          self._about.unlink()
        with written_whole(self._array) as partial, open(partial, 'wb') as file:
          np.save(file, images)
        write_text(self._about, json.dumps({'facts': self._facts, 'chunks': digests}) + '\n')
    except (OSError, DiskError) as error:
      self._say(f'decoded pictures are not kept for the next start: {error}')


def decoded_file(
  folder: pathlib.Path, source: Any, say: Callable[[str], None]
) -> DecodedFile | None:
  """Where a source's decoded pictures are kept; None of one that decodes none, or damaged ones."""
  if not getattr(source, 'decodes', False) or told(source, 'version') is None:
    return None
  try:
    return DecodedFile(folder, source, say=say)
  except DamagedDataError:  # which is told where all of them can be named
    return None
