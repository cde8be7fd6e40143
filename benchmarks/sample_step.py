"""Sampling with the network of configs/cifar10.py, against PyTorch: the network and whole chains.

  python benchmarks/sample_step.py [--batch=16] [--timesteps=20] [--rounds=7]
    [--against=eager,channels_last+huge,ddpm_jax-huge] [--before=CHECKOUT]

A round is, for each framework in turn, an evaluation of the network that is not counted, as many as
there are timesteps, and a whole chain. With --against= there are no peers, and no torch is needed.
"""

import contextlib
import statistics

from interleaved import (
  NUM_CORES,
  OTHER_NETWORKS,
  PEERS,
  alternate,
  check_same_network,
  machine,
  make_contender,
  parse,
  print_table,
  ratio,
  start_each,
  steady,
)


def main():
  """Prints machine, versions and the table."""
  args = parse(
    __doc__, batch=16, timesteps=20, rounds=7, against=','.join(PEERS), before='', config='cifar10'
  )
  print(machine())
  print(f'batch {args.batch}, {args.timesteps} timesteps, float32, {NUM_CORES} threads, ', end='')
  print(f'{args.rounds} rounds', flush=True)
  options = {name: getattr(args, name) for name in ('config', 'batch', 'timesteps')}

  def start(name):
    contender = make_contender(name, 'inference', options, args)
    contender.ask('evaluation')  # which compiles it
    contender.ask('chain')
    return contender

  def measure(contender):
    return steady(contender, 'evaluation', 'evaluations'), contender.ask('chain')

  with contextlib.ExitStack() as stack:
    contenders = start_each(args, stack, start)
    functions = {name: lambda c=contender: measure(c) for name, contender in contenders.items()}
    measured = alternate(functions, args.rounds)
    facts = {name: contender.ask('facts') for name, contender in contenders.items()}

  print(*dict.fromkeys(found['versions'] for found in facts.values()), sep='\n', end='\n\n')
  networks = {name: [network for network, _ in pairs] for name, pairs in measured.items()}
  chains = {name: [chain for _, chain in pairs] for name, pairs in measured.items()}
  rows = []
  for name, network in networks.items():
    chain, is_same = chains[name], name not in OTHER_NETWORKS
    images = args.batch * args.timesteps
    rows.append(
      [
        name,
        f'{facts[name]["flops"] / args.batch / 1e9:.3f}',
        f'{images / statistics.median(network):.1f}',
        f'{ratio(network, networks["ddpm_jax"]):.3f}' if is_same else '-',
        f'{images / statistics.median(chain):.1f}',
        f'{ratio(chain, chains["ddpm_jax"]):.3f}' if is_same else '-',
        f'{ratio(network, chain):.3f}',
      ]
    )
  print_table(
    [
      '',
      'GFLOP/image',
      'network, images/s',
      'its time over ddpm_jax',
      'chain, image steps/s',
      'its time over ddpm_jax',
      'chain over network',
    ],
    rows,
  )
  check_same_network(facts, args.batch)


if __name__ == '__main__':
  main()
