"""How a training step's cost grows with batch, width and image size, and where its time goes.

  python benchmarks/cost.py [--rounds=7] [--profile-batch=16]

The network is that of configs/cifar10.py. The peak is the better of jax's and NumPy's product of
two matrices of 4096 x 4096 in float32. It takes turns with every step, and so does the first row's
step with those of the others, from which the power follows.
"""

import argparse
import contextlib
import math
import statistics

from turns import MATMUL_SIZE, Worker, machine, print_table, ratio, steady, take_turns

PROFILED_STEPS = 3
BASE = {'batch': 8, 'model.ch': 128, 'data.image_size': 32}
VARIED = {
  'batch': (2, 4, 16, 32),
  'model.ch': (32, 64, 96),
  'data.image_size': (16, 64),
}


def parse_args():
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=7, help='turns of each')
  parser.add_argument('--profile-batch', type=int, default=16, help='images of a profiled step')
  return parser.parse_args()


def start_step(config):
  """The process of a training step with config."""
  changes = {name: value for name, value in config.items() if name != 'batch'}
  return Worker('ours:TrainStep', config['batch'], changes, huge=True)


def measure(worker, rounds, matmuls, base=None):
  """Medians of a worker's step, of what it reaches of the peak, and of it over another's step."""
  turns = {'step': lambda: steady(worker, 1), **matmuls}
  if base is not None:
    turns['base'] = lambda: steady(base, 1)
  take_turns(turns, 1)
  results = take_turns(turns, rounds)
  peak_mib = worker.call('peak_mib')
  facts = worker.call('facts')  # counting FLOPs takes memory, so it comes last
  flops = facts['flops']
  rates = [flops / secs for secs in results['step']]
  return {
    'secs': statistics.median(results['step']),
    'flops': flops,
    'of_peak': ratio(rates, peaks(results)),
    'peak_mib': peak_mib,
    'over_base': ratio(results['step'], results['base']) if base is not None else None,
    'versions': facts['versions'],
  }


def peaks(results):
  """FLOP/s of the better product of matrices, round by round."""
  return [max(pair) for pair in zip(results['jax'], results['numpy'], strict=True)]


def growth(rounds, matmuls):
  """Prints the table of growth: the cost goes with that power of the size."""

  def row(what, found, power):
    return [
      what,
      f'{found["flops"] / 1e9:.0f}',
      f'{found["secs"]:.3f}',
      power,
      f'{found["flops"] / found["secs"] / 1e9:.0f}',
      f'{found["of_peak"]:.2f}',
      f'{found["peak_mib"]:.0f}',
    ]

  def rows():
    yield row(', '.join(f'{name} = {value}' for name, value in BASE.items()), measured, '')
    for name, values in VARIED.items():
      for value in values:
        with contextlib.closing(start_step(BASE | {name: value})) as worker:
          found = measure(worker, rounds, matmuls, base)
        power = math.log(found['over_base']) / math.log(value / BASE[name])
        yield row(f'{name} = {value}', found, f'{power:.2f}')

  header = ['', 'GFLOP/step', 's/step', 'power', 'GFLOP/s', 'of peak', 'peak MiB']
  with contextlib.closing(start_step(BASE)) as base:
    measured = measure(base, rounds, matmuls)
    print(measured['versions'], end='\n\n')
    print_table(header, rows())


def profile(batch_size, rounds):
  """Prints what kinds of ops a step's time goes to, and their distance to the peak, on one core.

  With more, XLA's events of ops that run in its pool of threads end before the ops do.
  """
  with contextlib.ExitStack() as stack:
    worker = Worker('profiles:Profile', batch_size, cores=1, huge=True)
    stack.callback(worker.close)
    worker.call('turn', 1)
    kinds, secs = worker.call('profile', PROFILED_STEPS)
    flops = worker.call('flops_of_kinds')
    peak = statistics.median(peaks(take_turns(start_matmuls(stack, cores=1), rounds)))
  total = sum(kinds.values())
  rows = []
  for kind, kind_secs in kinds.items():
    rate = flops[kind] / kind_secs if kind in flops else None
    rows.append(
      [
        kind,
        f'{kind_secs:.3f}',
        f'{kind_secs / total:.1%}',
        f'{rate / 1e9:.0f}' if rate else '',
        f'{rate / peak:.2f}' if rate else '',
      ]
    )
  print(f'one core, batch {batch_size}: {secs:.3f} s a step, ops {total:.3f} s, ', end='')
  print(f'peak {peak / 1e9:.0f} GFLOP/s\n')
  print_table(['', 's/step', 'share', 'GFLOP/s', 'of peak'], rows)


def start_matmuls(stack, **kwargs):
  """{library: a large product of its own process, which the stack will end}, in FLOP/s."""
  matmuls = {}
  for library in ('jax', 'numpy'):
    worker = Worker('ours:Matmul', library, MATMUL_SIZE, **kwargs)
    stack.callback(worker.close)
    matmuls[library] = lambda worker=worker: worker.call('turn')
  return matmuls


def main():
  """Prints machine, versions and both tables."""
  args = parse_args()
  print(machine(), flush=True)
  with contextlib.ExitStack() as stack:
    matmuls = start_matmuls(stack)
    for library, values in take_turns(matmuls, args.rounds).items():
      print(f'{library}: {statistics.median(values) / 1e9:.0f} GFLOP/s in a large product')
    print(flush=True)
    profile(args.profile_batch, args.rounds)
    growth(args.rounds, matmuls)


if __name__ == '__main__':
  main()
