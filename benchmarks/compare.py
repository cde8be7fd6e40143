"""This checkout against another: training step, sampling chain, bound and start-up.

  python benchmarks/compare.py --before=CHECKOUT [--turns=9] [--small]

Each checkout has processes of its own, which take turns; what is given is a median of the turns,
and the median of the ratios, turn by turn. A start-up is the whole of main.py, from the command to
the end of its first step, with compiled programs in their cache; it takes long, and has a third of
the turns. The network is that of configs/cifar10.py, or with --small of configs/cifar10_small.py.
All of it takes ten minutes or so on two cores.
"""

import concurrent.futures
import contextlib
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time

from interleaved import ROOT, Contender, alternate, machine, parse, print_table, ratio, steady

TRAINING = {'batch': 16, 'steps': 5}  # a turn, after one that is not counted
INFERENCE = {'batch': 4, 'timesteps': 3}


def start_up(checkout, config, cache, *, platform='cpu', batch=TRAINING['batch'], changes=()):
  """Seconds from the command to the line of main.py on its first step.

  Args:
    checkout: folder with main.py.
    config: name.
    cache: folder of compiled programs.
    platform: as of JAX_PLATFORMS.
    batch: of training.
    changes: of the config's fields.
  """
  with tempfile.TemporaryDirectory() as workdir:
    command = [sys.executable, 'main.py', f'--config=configs/{config}.py', f'--workdir={workdir}']
    settings = {
      'compilation_cache': cache,
      'data.source': 'digits',  # which need no download; they are resized
      'train.global_batch_size': batch,
      'train.num_steps': 1,
      'train.log_every_steps': 1,
      'train.sample_every_steps': 0,
      **dict(changes),
    }
    command += [f'--config.{name}={value}' for name, value in settings.items()]
    environment = os.environ | {'JAX_PLATFORMS': platform}
    begun = time.perf_counter()
    with subprocess.Popen(
      command, cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
      for line in process.stdout:
        if line.startswith('step 1/1 '):
          taken = time.perf_counter() - begun
          process.kill()  # what it would save is not needed
          return taken
  sys.exit(f'{checkout}/main.py ended without a step')


def main():
  """Prints machine and table."""
  args = parse(__doc__, before=None, turns=9, small=False)
  config = 'cifar10_small' if args.small else 'cifar10'
  checkouts = {'before': os.path.abspath(args.before), 'now': ROOT}
  print(machine())
  print(f'{config}: {args.before} and {ROOT}', end='\n\n', flush=True)

  def start(stack, folder, task, options):
    """{name: Contender}; they set up at the same time."""
    return {
      name: stack.enter_context(
        Contender(
          'worker',
          task,
          {'config': config, **options},
          checkout=checkout,
          JAX_COMPILATION_CACHE_DIR=f'{folder}/{name}',
        )
      )
      for name, checkout in checkouts.items()
    }

  def measure_each(contenders, uncounted, counted):
    with concurrent.futures.ThreadPoolExecutor() as pool:  # both compile at the same time
      list(pool.map(lambda contender: contender.ask(uncounted), contenders.values()))
    functions = {
      name: functools.partial(steady, contender, uncounted, counted)
      for name, contender in contenders.items()
    }
    return alternate(functions, args.turns)

  def measure_start_up(folder):
    functions = {
      name: functools.partial(start_up, checkout, config, f'{folder}/{name}')
      for name, checkout in checkouts.items()
    }
    alternate(functions, 1)  # which fills the cache
    return alternate(functions, max(args.turns // 3, 1))

  def make_row(what, measured, count=1):
    before, now = (statistics.median(values) / count for values in measured.values())
    ratios = [a / b for a, b in zip(*measured.values(), strict=True)]
    spread = f'{min(ratios):.3f}-{max(ratios):.3f}'
    over = f'{ratio(*measured.values()):.3f} ({spread})'
    return [what, len(ratios), f'{before:.3f}', f'{now:.3f}', over]

  def rows():
    with tempfile.TemporaryDirectory() as folder:
      with contextlib.ExitStack() as stack:
        contenders = start(stack, folder, 'training', TRAINING)
        measured = measure_each(contenders, 'step', 'steps')
      batch, steps = TRAINING['batch'], TRAINING['steps']
      yield make_row(f'training step, batch {batch}, {steps + 1} a turn', measured, steps)
      with contextlib.ExitStack() as stack:
        contenders = start(stack, folder, 'inference', INFERENCE)
        for what in ('chain', 'bound'):
          measured = measure_each(contenders, what, what)
          batch, timesteps = INFERENCE['batch'], INFERENCE['timesteps']
          yield make_row(f'{what}, batch {batch}, {timesteps} timesteps', measured)
      yield make_row(f'start-up, batch {TRAINING["batch"]}', measure_start_up(folder))

  print_table(['', 'turns', 'before, s', 'now, s', 'before / now (least-most)'], rows())


if __name__ == '__main__':
  main()
