"""Where a training step's time goes: XLA's own events, sorted by what an op computes.

  taskset -c 0 python benchmarks/profiles.py [--batch=16] [--config=cifar10]

It runs on one core: with more, XLA's events of ops that run in its pool of threads end before the
ops do. The peak is the better of jax's and NumPy's product of two large matrices.
"""

import os
import pathlib
import statistics
import sys
import tempfile

import jax
from interleaved import NUM_CORES, alternate, machine, parse, print_table
from traces import by_kind, read_program
from worker import Training, make_config, matmul, trace, training_flops, versions

from ddpm_jax.modes import huge_pages

NUM_STEPS = 3


def main():
  """Prints machine, versions and the table."""
  huge_pages.restart_with_them()
  args = parse(__doc__, batch=16, rounds=7, config='cifar10')
  if NUM_CORES != 1:
    sys.exit('run it on one core: taskset -c 0 python benchmarks/profiles.py')
  print(machine(), versions(), sep='\n')
  with tempfile.TemporaryDirectory() as programs:
    # The program that runs is known by what XLA writes when it compiles it.
    flags = f'--xla_dump_to={programs} --xla_dump_hlo_as_text'
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flags}'
    jax.config.update('jax_compilation_cache_dir', None)
    config = make_config(args.config, args.batch)
    training = Training(config)
    training.seconds(2)
    times, step_secs = trace(training, NUM_STEPS)
    files = pathlib.Path(programs).glob('*after_optimizations.txt')
    program = read_program(max(files, key=lambda file: file.stat().st_size).read_text())
  products = {library: matmul(library)['product'] for library in ('jax', 'numpy')}
  rates = alternate(products, args.rounds)
  peak = statistics.median(max(pair) for pair in zip(*rates.values(), strict=True))

  kinds = by_kind(times, program, NUM_STEPS)
  all_secs = sum(secs for secs, _ in kinds.values())
  flops = training_flops(config)
  rows = []
  for kind, (secs, _) in kinds.items():
    row = [kind, f'{secs:.3f}', f'{secs / all_secs:.1%}', '', '']
    if flops.get(kind):
      rate = flops[kind] / secs
      row[3:] = f'{rate / 1e9:.0f}', f'{rate / peak:.2f}'
    rows.append(row)
  print(f'{args.config}, batch {args.batch}: {step_secs:.3f} s a step, ', end='')
  print(f'ops {all_secs:.3f} s, peak {peak / 1e9:.0f} GFLOP/s\n')
  print_table(['', 's/step', 'share', 'GFLOP/s', 'of peak'], rows)


if __name__ == '__main__':
  main()
