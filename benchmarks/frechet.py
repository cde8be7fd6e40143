"""Times of the Frechet distance, and the memory of its statistics.

python benchmarks/frechet.py [--rounds=7]
"""

import multiprocessing
import pathlib
import statistics
import sys

import numpy as np
import scipy
from interleaved import machine, parse, peak_mib, seconds

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from ddpm_jax.evaluation.metrics.frechet import accumulate, frechet_distance

DIMENSIONS = 2048  # of Inception's pool_3
COUNT = 10_000
BLOCK = 1000


def blocks(count, *, seed):
  """Features as a network gives them: float32, at least 0, with a spectrum that falls."""
  scales = np.arange(1, DIMENSIONS + 1, dtype=np.float32) ** -0.5
  for first in range(0, count, BLOCK):
    rng = np.random.default_rng([seed, first])
    yield np.abs(rng.standard_normal((BLOCK, DIMENSIONS), dtype=np.float32)) * scales


def peak_of(count):
  """Largest resident memory of a process that accumulates so many rows, MiB."""
  accumulate(blocks(count, seed=0))
  return peak_mib()


def main():
  """Prints machine, versions and results."""
  rounds = parse(__doc__, rounds=7).rounds
  print(f'{machine()}, numpy {np.__version__}, scipy {scipy.__version__}')

  # Each in a process of its own: a process's peak never falls.
  context = multiprocessing.get_context('spawn')
  for count in (COUNT // 2, 4 * COUNT):
    with context.Pool(1) as pool:
      print(f'accumulate {count} x {DIMENSIONS}: peak {pool.apply(peak_of, (count,)):.0f} MiB')

  rows = list(blocks(COUNT, seed=0))
  secs = statistics.median(seconds(lambda: accumulate(rows)) for _ in range(rounds))
  print(f'accumulate {COUNT} x {DIMENSIONS}: {secs:.2f} s (median of {rounds})')
  a, b = accumulate(rows), accumulate(blocks(COUNT, seed=1))
  secs = statistics.median(seconds(lambda: frechet_distance(a, b)) for _ in range(rounds))
  print(f'frechet_distance, d = {DIMENSIONS}: {secs:.2f} s (median of {rounds})')


if __name__ == '__main__':
  main()
