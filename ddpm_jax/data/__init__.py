"""Data: sources of uint8 pictures and the input pipeline. Imports neither jax nor flax."""

from ddpm_jax.data.decoded import DecodedFile, decoded_file
from ddpm_jax.data.encoding import PICTURES, Encoded, Encoding, find_encoding
from ddpm_jax.data.labels import Labels, check_classes, read_labels, renumbered, stand_ins
from ddpm_jax.data.pictures import BrokenPicturesError, DamagedDataError, prepare_picture
from ddpm_jax.data.pipeline import (
  Batches,
  batch_indices,
  batch_of_step,
  dtype_of,
  make_batches,
  num_bytes,
)
from ddpm_jax.data.record import keep_record, read_class_names
from ddpm_jax.data.sources import Source, fingerprint, make_source, takes_pictures
from ddpm_jax.data.splits import NoSplitError, is_held_out, share_pictures, told
from ddpm_jax.data.substitutes import Substitutes

__all__ = [
  'PICTURES',
  'Batches',
  'BrokenPicturesError',
  'DamagedDataError',
  'DecodedFile',
  'Encoded',
  'Encoding',
  'Labels',
  'NoSplitError',
  'Source',
  'Substitutes',
  'batch_indices',
  'batch_of_step',
  'check_classes',
  'decoded_file',
  'dtype_of',
  'find_encoding',
  'fingerprint',
  'is_held_out',
  'keep_record',
  'make_batches',
  'make_source',
  'num_bytes',
  'prepare_picture',
  'read_class_names',
  'read_labels',
  'renumbered',
  'share_pictures',
  'stand_ins',
  'takes_pictures',
  'told',
]
