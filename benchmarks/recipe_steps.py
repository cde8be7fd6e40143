"""What recipes of training cost a step, beside the paper's: a table for docs/benchmarks.md.

  python benchmarks/recipe_steps.py [--config=cifar10_small] [--batch=32] [--steps=8] [--rounds=7]
    [--recipes=v,cosine]

All of them take turns of so many steps, each in a process of its own.
"""

import contextlib
import functools
import statistics

from interleaved import Contender, alternate, machine, parse, print_table, ratio, steady
from recipes import RECIPES, fields_of

BASE = 'paper'
NUM_STEPS = 1_000_000  # of the training that the schedules of the rate go by


def main():
  """Prints machine, versions and the table."""
  args = parse(
    __doc__, config='cifar10_small', batch=32, steps=8, rounds=7, recipes=','.join(RECIPES)
  )
  names = [BASE, *(name for name in args.recipes.split(',') if name != BASE)]
  print(machine(), flush=True)
  with contextlib.ExitStack() as stack:
    turns = {}
    for name in names:
      options = {
        'config': args.config,
        'batch': args.batch,
        'steps': args.steps,
        'changes': fields_of(name, NUM_STEPS),
      }
      contender = stack.enter_context(Contender('worker', 'training', options))
      turns[name] = functools.partial(steady, contender, 'step', 'steps')
      turns[name]()
      if name == BASE:
        print(contender.ask('facts')['versions'], end='\n\n', flush=True)
    found = alternate(turns, args.rounds)
  rows = [
    [
      name,
      f'{statistics.median(values) / args.steps:.4f}',
      f'{ratio(values, found[BASE]):.3f}',
      f'{min(values) / min(found[BASE]):.3f}',
    ]
    for name, values in found.items()
  ]
  print_table(['Recipe', 's/step', "of the paper's", 'best turns'], rows)


if __name__ == '__main__':
  main()
