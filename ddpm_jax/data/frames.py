"""Moving pictures in files, in windows of frames: a folder of GIFs, APNGs or WebPs.

    data.source='frames:/data/clips'   data.image_size=(16, 64, 64)   data.channels=3

All files of a kind in the folder and its subfolders, sorted by relative path; splits as those of a
folder of pictures (clips/train, clips/test, or data.holdout, by the file). An example is a window
of data.image_size[0] frames of one file; windows begin every data.stride frames, by default one
after the other. Files with fewer frames than a window, such as still pictures, are left out, and
counted. Each frame is the whole picture that is shown then, whatever part of it the file renews,
and is cropped, resized and converted as a picture of a folder is. How long a frame is shown is of
no account. With data.labels='folders' the folder that a file lies in is its class.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ddpm_jax.data.folder import files_of_split
from ddpm_jax.data.listing import list_pictures
from ddpm_jax.data.pictures import DamagedDataError, picture_axes, prepare_picture
from ddpm_jax.data.windows import WindowsSource, long_enough
from ddpm_jax.errors import UserError
from ddpm_jax.refusals import raise_refusal

EXTENSIONS = ('.apng', '.gif', '.png', '.webp')
_WHAT = 'moving pictures'


class FramesSource(WindowsSource):
  """Windows of moving pictures, [N, frames, H, W, C]."""

  def read(self, indices: np.ndarray) -> np.ndarray:
    """Returns uint8 [N, T, H, W, C] for int [N].

    Raises:
      DamagedDataError: a file that cannot be read.
    """
    rows = np.asarray(indices)
    num_frames, *size, channels = self.image_shape
    values = np.empty((len(rows), *self.image_shape), np.uint8)
    files, starts = self._file_of[rows], self._starts[rows]
    for number in np.unique(files):  # a frame is what it changes of those before it: all are read
      of_file = np.flatnonzero(files == number)
      stop = int(starts[of_file].max()) + num_frames
      frames = _read(self._path(number), stop, image_size=size, channels=channels)
      for row in of_file:
        values[row] = frames[starts[row] : starts[row] + num_frames]
    return values


def _read(path, stop, *, image_size, channels):
  """The first frames of a file, uint8 [stop, H, W, C]."""
  import PIL.Image

  frames = np.empty((stop, *image_size, channels), np.uint8)
  try:
    with PIL.Image.open(path) as moving:
      first = _first_frame(moving)
      for number in range(stop):
        moving.seek(first + number)
        frames[number] = prepare_picture(moving, image_size=image_size, channels=channels)
  except MemoryError:  # of the host, not of the file
    raise
  except Exception as error:  # on damaged files, Pillow has raised a dozen kinds of them
    raise _damaged(path, error) from error
  return frames


def _num_frames(path) -> int:
  """Of a file."""
  import PIL.Image

  try:
    with PIL.Image.open(path) as moving:
      return getattr(moving, 'n_frames', 1) - _first_frame(moving)
  except Exception as error:  # as in _read
    raise _damaged(path, error) from error


def _first_frame(moving):
  """1 where a picture for programs that know no APNG comes before the frames."""
  return int(bool(moving.info.get('default_image')))


def _damaged(path, error):
  raise_refusal(path, error)
  reason = ' '.join(str(error).split())
  return DamagedDataError(f'{path} is no moving picture, or damaged ({reason})')


def make_frames_source(
  path: str,
  *,
  name: str,
  image_size: int | Sequence[int],
  channels: int,
  split: str,
  stride: int | None = None,
) -> Any:
  """Opens the moving pictures of a split; see the module's docstring.

  Raises:
    UserError: no folder, no moving pictures, or windows longer than any.
    NoSplitError: no such split.
  """
  axes = picture_axes(image_size)
  if len(axes) != 3:
    raise UserError(
      f'data.image_size is {image_size}, but data.source={name} has moving pictures: give frames, '
      'height and width, as in --config.data.image_size=16,64,64'
    )
  if channels not in (1, 3):
    raise UserError(f'data.channels={channels}: must be 1 (grey) or 3 (RGB)')
  folder, listing = files_of_split(
    path, name=name, split=split, extensions=EXTENSIONS, what=_WHAT, listed=list_pictures
  )
  lengths = [_num_frames(folder / file.path) for file in listing.pictures]
  long, left_out = long_enough(
    listing.pictures, lengths, axes, folder=folder, what=_WHAT, unit='frames'
  )
  return FramesSource(
    folder,
    [listing.pictures[i] for i in long],
    [lengths[i] for i in long],
    name=name,
    split=split,
    shape=(*axes, channels),
    stride=stride or axes[0],
    what=_WHAT,
    remarks=listing.remarks(folder) + left_out,
  )
