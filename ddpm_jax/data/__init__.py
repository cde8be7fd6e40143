"""Data: sources of uint8 pictures and the input pipeline. Imports neither jax nor flax."""

from ddpm_jax.data.pictures import BrokenPicturesError, prepare_picture
from ddpm_jax.data.pipeline import Batches, batch_indices, make_batches, read_all
from ddpm_jax.data.sources import Source, fingerprint, make_source

__all__ = [
  'Batches',
  'BrokenPicturesError',
  'Source',
  'batch_indices',
  'fingerprint',
  'make_batches',
  'make_source',
  'prepare_picture',
  'read_all',
]
