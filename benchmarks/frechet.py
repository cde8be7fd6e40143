"""Times of the Frechet distance, and the memory of statistics: python benchmarks/frechet.py."""

import multiprocessing
import os
import pathlib
import platform
import resource
import statistics
import sys
import time

import numpy as np
import scipy

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from ddpm_jax.metrics.frechet import accumulate, frechet_distance

DIMENSIONS = 2048  # of Inception's pool_3
COUNT = 10_000
BLOCK = 1000
REPEATS = 7


def blocks(count, *, seed):
  """Features as a network gives them: float32, at least 0, with a spectrum that falls."""
  scales = np.arange(1, DIMENSIONS + 1, dtype=np.float32) ** -0.5
  for first in range(0, count, BLOCK):
    rng = np.random.default_rng([seed, first])
    yield np.abs(rng.standard_normal((BLOCK, DIMENSIONS), dtype=np.float32)) * scales


def median_secs(function):
  """Median wall time of the repeats."""
  times = []
  for _ in range(REPEATS):
    start = time.perf_counter()
    function()
    times.append(time.perf_counter() - start)
  return statistics.median(times)


def peak_mib(count):
  """Largest resident memory of a process that accumulates so many rows."""
  accumulate(blocks(count, seed=0))
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts KiB


def main():
  """Prints the table."""
  print(f'{platform.platform()}, {platform.machine()}, {os.cpu_count()} cores')
  print(f'python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}')

  # Each in a process of its own: a process's peak never falls.
  context = multiprocessing.get_context('spawn')
  for count in (COUNT // 2, 4 * COUNT):
    with context.Pool(1) as pool:
      peak = pool.apply(peak_mib, (count,))
    print(f'accumulate {count} x {DIMENSIONS}: peak {peak:.0f} MiB')

  rows = list(blocks(COUNT, seed=0))
  secs = median_secs(lambda: accumulate(rows))
  print(f'accumulate {COUNT} x {DIMENSIONS}: {secs:.2f} s (median of {REPEATS})')
  a, b = accumulate(rows), accumulate(blocks(COUNT, seed=1))
  secs = median_secs(lambda: frechet_distance(a, b))
  print(f'frechet_distance, d = {DIMENSIONS}: {secs:.2f} s (median of {REPEATS})')


if __name__ == '__main__':
  main()
