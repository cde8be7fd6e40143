"""Makes ddpm_jax/data/brain_blocks.npz of the MNI template in the package nilearn (0.14.1).

  pip install nibabel
  pip download --no-deps nilearn==0.14.1 && unzip nilearn-*.whl 'nilearn/datasets/data/*'
  python scripts/make_brain_blocks.py \\
    nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz \\
    ddpm_jax/data/brain_blocks.npz

The template is an exact mirror of itself, left and right: one hemisphere, with the middle, is all
of it. The voxels are of 1 mm, and those outside the brain are 0; the box around the brain is kept.
"""

import sys

import nibabel
import numpy as np


def main(given: str, made: str) -> None:
  """Reads the NIfTI file, and writes the .npz file."""
  volume = np.asarray(nibabel.load(given).dataobj)
  assert volume.dtype == np.uint8
  assert np.array_equal(volume, volume[::-1])
  half = volume[: volume.shape[0] // 2 + 1]
  inside = np.argwhere(half > 0)
  low, high = inside.min(0), inside.max(0) + 1
  np.savez_compressed(made, volume=half[tuple(map(slice, low, high))])


if __name__ == '__main__':
  main(*sys.argv[1:])
