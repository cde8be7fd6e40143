"""Time, memory and compilation of a training step of configs/cifar10.py, against PyTorch.

  python benchmarks/train_step.py [--batch=16] [--rounds=7] [--peers=eager,channels_last]
    [--platform=cuda --dtype=bfloat16 --config=celebahq256 --steps=100]

Each framework has a process of its own and they take turns, so that one computes at a time and a
change of the machine's speed meets all. A turn begins with a step that is not counted. A peer's
name may end in +huge: with huge pages of memory, as our program has them. --ours-only leaves the
peers out and needs no torch; --before=PATH adds another checkout of this repository. The peak is
that of jax's product of two large matrices.
"""

import argparse
import contextlib
import pathlib
import statistics
import tempfile

from turns import (
  HUGE,
  MATMUL_SIZE,
  NUM_CORES,
  OTHER_NETWORKS,
  PEERS,
  ROOT,
  Worker,
  WorkerError,
  add_device_options,
  add_peer_options,
  check_same_network,
  chosen_peers,
  machine,
  print_table,
  ratio,
  start_each,
  steady,
  take_turns,
)


def parse_args():
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--batch', type=int, default=16, help='images a step')
  parser.add_argument('--rounds', type=int, default=7, help='turns of each')
  parser.add_argument('--steps', type=int, default=2, help='steps a turn')
  add_device_options(parser)
  add_peer_options(parser)
  parser.add_argument('--before', type=pathlib.Path, help='another checkout, to compare with')
  args = parser.parse_args()
  args.peers = chosen_peers(parser, args)
  return args


def start(name, args, cache):
  """(worker, seconds of its first step)."""
  if name in PEERS:
    what = args.config, args.platform, args.dtype
    peer, huge = name.removesuffix(HUGE), name.endswith(HUGE)
    worker = Worker('peers:TrainStep', peer, args.batch, *what, cache=cache, huge=huge)
  else:
    root = args.before.resolve() if name == 'before' else ROOT
    changes = {'model.dtype': args.dtype}
    worker = Worker(
      'ours:TrainStep',
      args.batch,
      changes,
      args.config,
      cache=cache,
      root=root,
      platform=args.platform,
      huge=name == 'ours',
    )
  try:
    return worker, worker.call('turn', 1)
  except WorkerError:
    worker.close()
    raise


def start_cold_and_warm(name, args, folder):
  """(worker, seconds of (setup, first step) without and with a cache, peak MiB without)."""
  cache = pathlib.Path(folder) / name
  cold, cold_step = start(name, args, cache)
  cold_peak = cold.call('peak_mib')
  cold.close()
  warm, warm_step = start(name, args, cache)
  return warm, ((cold.setup_secs, cold_step), (warm.setup_secs, warm_step)), cold_peak


def main():
  """Prints machine, versions and tables."""
  args = parse_args()
  print(machine())
  with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
    names = ['ours', *(['before'] if args.before else []), *args.peers]
    started = start_each(names, lambda name: start_cold_and_warm(name, args, folder), stack)
    print(f'{args.config}, batch {args.batch}, {args.dtype}, {args.platform}, ', end='')
    print(f'{NUM_CORES} threads, {args.rounds} rounds of ', end='')
    print(f'{args.steps} step(s) each', flush=True)

    matmul = Worker('ours:Matmul', 'jax', MATMUL_SIZE, args.dtype, platform=args.platform)
    stack.callback(matmul.close)
    turns = {
      name: lambda worker=worker: steady(worker, args.steps)
      for name, (worker, *_) in started.items()
    }
    turns['peak'] = lambda: matmul.call('turn')
    take_turns(turns, 1)
    seconds = take_turns(turns, args.rounds)
    peak = statistics.median(seconds.pop('peak'))
    print(f'peak {peak / 1e9:.0f} GFLOP/s')
    peaks = {name: worker.call('peak_mib') for name, (worker, *_) in started.items()}
    # Counting FLOPs takes memory, so it comes last.
    facts = {name: worker.call('facts') for name, (worker, *_) in started.items()}

  print(*dict.fromkeys(fact['versions'] for fact in facts.values()), sep='\n', end='\n\n')
  rows = []
  for name, values in seconds.items():
    _, _, cold_peak = started[name]
    secs = statistics.median(values) / args.steps
    spread = f'{min(values) / args.steps:.2f}-{max(values) / args.steps:.2f}'
    rows.append(
      [
        name,
        f'{secs:.3f} ({spread})',
        f'{args.batch / secs:.2f}',
        f'{facts[name]["flops"] / secs / 1e9:.0f}',
        f'{facts[name]["flops"] / secs / peak:.2f}',
        '-' if name in OTHER_NETWORKS else f'{ratio(values, seconds["ours"]):.3f}',
        f'{peaks[name]:.0f} ({cold_peak:.0f})',
      ]
    )
  print_table(
    ['', 's/step (least-most)', 'images/s', 'GFLOP/s', 'of peak', 'ours over it', 'peak MiB'], rows
  )
  print_table(
    ['', 'parameters', 'GFLOP/image', 'cold: start + first step, s', 'warm: the same, s'],
    [
      [
        name,
        f'{facts[name]["parameters"]:,}',
        f'{facts[name]["flops"] / args.batch / 1e9:.3f}',
        *(f'{setup:.1f} + {first:.1f}' for setup, first in started[name][1]),
      ]
      for name in seconds
    ],
  )
  check_same_network(facts, args.batch)


if __name__ == '__main__':
  main()
