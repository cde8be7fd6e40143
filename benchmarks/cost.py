"""How a training step's cost grows with batch, width and image size.

  python benchmarks/cost.py [--rounds=7] [--only=batch]

The network is that of configs/cifar10.py; --only names one of batch, model.ch, data.image_size.
The peak is the better of jax's and NumPy's product of two large matrices in float32. It takes turns
with every step, and so does the first row's step with those of the others, from which the power
follows: the cost goes with that power of the size.
"""

import contextlib
import functools
import math
import statistics

from interleaved import Contender, alternate, machine, parse, print_table, ratio, steady

BASE = {'batch': 8, 'model.ch': 128, 'data.image_size': 32}
VARIED = {
  'batch': (2, 4, 16, 32),
  'model.ch': (32, 64, 96),
  'data.image_size': (16, 64),
}


def start_step(sizes):
  """The Contender of a training step with other sizes than configs/cifar10.py."""
  changes = {name: value for name, value in sizes.items() if name != 'batch'}
  options = {'config': 'cifar10', 'batch': sizes['batch'], 'steps': 1, 'changes': changes}
  return Contender('worker', 'training', options)


def measure(contender, others, rounds):
  """The contender's facts, and what was measured in alternation: step, peak, base."""
  functions = {'step': functools.partial(steady, contender, 'step', 'steps'), **others}
  alternate(functions, 1)
  found = alternate(functions, rounds)
  found['peak'] = [max(pair) for pair in zip(found['jax'], found['numpy'], strict=True)]
  return {**found, **contender.ask('facts')}


def make_row(what, found, power=''):
  """A row of the table."""
  secs, flops = statistics.median(found['step']), found['flops']
  of_peak = ratio([flops / secs for secs in found['step']], found['peak'])
  return [
    what,
    f'{flops / 1e9:.0f}',
    f'{secs:.3f}',
    power,
    f'{flops / secs / 1e9:.0f}',
    f'{of_peak:.2f}',
    f'{found["peak_mib"]:.0f}',
  ]


def main():
  """Prints machine, versions and the table."""
  args = parse(__doc__, rounds=7, only='')
  print(machine(), flush=True)
  with contextlib.ExitStack() as stack:
    others = {}
    for library in ('jax', 'numpy'):
      product = stack.enter_context(Contender('worker', 'matmul', {'library': library}))
      others[library] = functools.partial(product.ask, 'product')
    for library, values in alternate(others, args.rounds).items():
      print(f'{library}: {statistics.median(values) / 1e9:.0f} GFLOP/s in a large product')
    base = stack.enter_context(start_step(BASE))
    found = measure(base, others, args.rounds)
    print(found['versions'], end='\n\n')
    others['base'] = functools.partial(steady, base, 'step', 'steps')

    def rows():
      yield make_row(', '.join(f'{name} = {value}' for name, value in BASE.items()), found)
      for name in [args.only] if args.only else VARIED:
        for value in VARIED[name]:
          with start_step(BASE | {name: value}) as contender:
            found_here = measure(contender, others, args.rounds)
          growth = ratio(found_here['step'], found_here['base'])
          power = math.log(growth) / math.log(value / BASE[name])
          yield make_row(f'{name} = {value}', found_here, f'{power:.2f}')

    header = ['', 'GFLOP/step', 's/step', 'power', 'GFLOP/s', 'of peak', 'peak MiB']
    print_table(header, rows())


if __name__ == '__main__':
  main()
