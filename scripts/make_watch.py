"""Makes ddpm_jax/data/watch.npz of the recordings in the package seglearn (1.2.5).

  pip download --no-deps seglearn==1.2.5 && unzip seglearn-*.whl seglearn/data/watch_dataset.npy
  python scripts/make_watch.py seglearn/data/watch_dataset.npy ddpm_jax/data/watch.npz

The recordings are at 50 Hz. They are low-passed and kept at 25 Hz (scipy's resample_poly), and
rounded to whole numbers: acceleration of a thousandth of g, rotation of 0.0025 radians a second.
"""

import sys

import numpy as np
import scipy.signal

UNITS = np.array([0.001, 0.001, 0.001, 0.0025, 0.0025, 0.0025])  # of a level, in g and rad/s
NAMES = {
  'PEN': 'pendulum',
  'ABD': 'abduction',
  'FEL': 'forward_elevation',
  'IR': 'internal_rotation',
  'ER': 'external_rotation',
  'TRAP': 'trapezius_extension',
  'ROW': 'upright_row',
}


def main(given: str, made: str) -> None:
  """Reads the pickle of seglearn, and writes the .npz file."""
  found = np.load(given, allow_pickle=True).item()  # a pickle: of this package alone
  recordings = [scipy.signal.resample_poly(x, 1, 2, axis=0) for x in found['X']]
  whole = [np.rint(x / UNITS).astype(np.int16) for x in recordings]
  np.savez_compressed(
    made,
    values=np.concatenate(whole),
    lengths=np.array([len(x) for x in whole], np.int32),
    people=np.asarray(found['subject'], np.uint8),
    sides=np.asarray(found['side'], np.uint8),
    labels=np.asarray(found['y'], np.uint8),
    names=np.array([NAMES[name] for name in found['y_labels']]),
  )


if __name__ == '__main__':
  main(*sys.argv[1:])
