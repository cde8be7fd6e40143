"""CelebA-HQ at 256x256: 30,000 faces, all of them the training set (Ho et al. 2020).

    data.source='celebahq256' data.dir=DIR

DIR is either a folder of the pictures, or a TFDS data_dir with `celeb_a_hq/256` as ArrayRecord:

* A folder. CelebA-HQ has no direct download: it is made from CelebA and the delta files of
  https://github.com/tkarras/progressive_growing_of_gans, or obtained as ready pictures (for
  instance CelebAMask-HQ, 30,000 JPEG files of 1024x1024 in CelebA-HQ-img/). Put the pictures, in
  any size, in one folder; they are resized to data.image_size when they are read. Resizing once
  beforehand saves time: 1024x1024 JPEG takes some ten times as long to read as 256x256.
* TFDS. Its builder wants the pictures as manual_dir/data256x256.tar and TensorFlow:
  tfds build celeb_a_hq/256 --file_format=array_record --data_dir=DIR
"""

from collections.abc import Sequence
from typing import Any

from ddpm_jax.data import tfds
from ddpm_jax.data.folder import make_folder_source
from ddpm_jax.errors import UserError

NAME = 'celebahq256'
_DATASET = 'celeb_a_hq/256'


def make_celebahq256_source(
  *, dir: str | None, image_size: int | Sequence[int], channels: int, split: str
) -> Any:
  """Opens the prepared TFDS data set in `dir`, or else `dir` as a folder of pictures."""
  shape: dict[str, Any] = dict(image_size=image_size, channels=channels, split=split)
  if tfds.find_prepared(_DATASET, tfds.data_dir(dir)) is not None:
    return tfds.make_tfds_source(_DATASET, dir=dir, **shape)
  if dir is None:
    raise UserError(
      f'data.source={NAME!r}: set data.dir to a folder of the 30,000 pictures, or to a TFDS '
      f'data_dir with {_DATASET} as ArrayRecord'
    )
  return make_folder_source(dir, name=NAME, **shape)
