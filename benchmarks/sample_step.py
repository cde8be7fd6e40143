"""Sampling with the network of configs/cifar10.py, against PyTorch: the network and whole chains.

  python benchmarks/sample_step.py [--batch=16] [--timesteps=20] [--rounds=7]

A peer's name may end in +huge: with huge pages of memory, as our program has them.
A round is, for each framework in turn, so many evaluations of the network, and a whole chain of as
many timesteps. --ours-only needs no torch.
"""

import argparse
import contextlib
import statistics

from turns import (
  HUGE,
  NUM_CORES,
  OTHER_NETWORKS,
  Worker,
  WorkerError,
  add_peer_options,
  check_same_network,
  chosen_peers,
  machine,
  print_table,
  ratio,
  start_each,
  take_turns,
)


def parse_args():
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--batch', type=int, default=16, help='images a chain')
  parser.add_argument('--timesteps', type=int, default=20, help='length of a chain')
  parser.add_argument('--rounds', type=int, default=7, help='turns of each')
  add_peer_options(parser)
  args = parser.parse_args()
  args.peers = chosen_peers(parser, args)
  return args


def start(name, args):
  """A worker that has compiled what it will run."""
  where = 'ours:SampleStep' if name == 'ours' else 'peers:SampleStep'
  arguments = (args.batch, args.timesteps)
  if name == 'ours':
    worker = Worker(where, *arguments, huge=True)
  else:
    worker = Worker(where, name.removesuffix(HUGE), *arguments, huge=name.endswith(HUGE))
  try:
    worker.call('network', 1)
    worker.call('chain')
  except WorkerError:
    worker.close()
    raise
  return worker


def main():
  """Prints machine, versions and the table."""
  args = parse_args()
  print(machine())
  with contextlib.ExitStack() as stack:
    started = start_each(['ours', *args.peers], lambda name: (start(name, args),), stack)
    print(f'batch {args.batch}, {args.timesteps} timesteps, float32, {NUM_CORES} threads, ', end='')
    print(f'{args.rounds} rounds', flush=True)

    def turn(worker):
      worker.call('network', 1)  # not counted, see turns.steady
      return worker.call('network', args.timesteps), worker.call('chain')

    turns = {name: lambda worker=worker: turn(worker) for name, (worker,) in started.items()}
    pairs = take_turns(turns, args.rounds)
    facts = {name: worker.call('facts') for name, (worker,) in started.items()}

  print(*dict.fromkeys(fact['versions'] for fact in facts.values()), sep='\n', end='\n\n')
  network = {name: [pair[0] for pair in values] for name, values in pairs.items()}
  chain = {name: [pair[1] for pair in values] for name, values in pairs.items()}
  rows = []
  for name in pairs:
    other = name in OTHER_NETWORKS
    per_evaluation = statistics.median(network[name]) / args.timesteps
    rows.append(
      [
        name,
        f'{facts[name]["flops"] / args.batch / 1e9:.3f}',
        f'{args.batch / per_evaluation:.1f}',
        '-' if other else f'{ratio(network[name], network["ours"]):.3f}',
        f'{args.batch * args.timesteps / statistics.median(chain[name]):.1f}',
        '-' if other else f'{ratio(chain[name], chain["ours"]):.3f}',
        f'{ratio(network[name], chain[name]):.3f}',
      ]
    )
  print_table(
    [
      '',
      'GFLOP/image',
      'network, images/s',
      'ours over it',
      'chain, image steps/s',
      'ours over it',
      'chain over network',
    ],
    rows,
  )
  check_same_network(facts, args.batch)


if __name__ == '__main__':
  main()
