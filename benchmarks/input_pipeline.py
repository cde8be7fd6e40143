"""The input pipeline's images/s against what the training step of configs/cifar10.py consumes.

  python benchmarks/input_pipeline.py [--batch=16] [--rounds=7]

The pictures are noise, in the number and size of CIFAR-10, in memory; and PNG files, read as they
are needed. Pipeline and step take turns, so that each has the whole machine.
"""

import argparse
import contextlib
import pathlib
import statistics
import tempfile

from turns import Worker, machine, print_table, ratio, steady, take_turns

NUM_FILES = 5_000


def parse_args():
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--batch', type=int, default=16, help='images a step')
  parser.add_argument('--rounds', type=int, default=7, help='turns of each')
  return parser.parse_args()


def main():
  """Prints machine, versions and the table."""
  args = parse_args()
  print(machine())
  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(tempfile.TemporaryDirectory())

    def start(where, *arguments):
      worker = Worker(where, *arguments, huge=True)
      stack.callback(worker.close)
      return worker

    folder = pathlib.Path(folder)
    step = start('ours:TrainStep', args.batch)
    memory = start('ours:Pipeline', args.batch)
    files = start('ours:Pipeline', args.batch, str(folder), NUM_FILES)
    turns = {
      'training step': lambda: args.batch / steady(step, 1),
      'in memory': lambda: memory.call('turn', 4_000),
      'PNG files': lambda: files.call('turn', 100),
    }
    take_turns(turns, 1)
    rates = take_turns(turns, args.rounds)
    print(step.call('facts')['versions'], end='\n\n')
  print_table(
    ['', 'images/s', 'over the step'],
    [
      [name, f'{statistics.median(values):,.1f}', f'{ratio(values, rates["training step"]):,.0f}']
      for name, values in rates.items()
    ],
  )


if __name__ == '__main__':
  main()
