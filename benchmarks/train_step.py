"""Time, memory and compilation of a training step of configs/cifar10.py, against PyTorch.

  python benchmarks/train_step.py [--batch=16] [--rounds=7] [--steps=2]
    [--against=eager,channels_last+huge,ddpm_jax-huge] [--before=CHECKOUT]
    [--platform=cuda --dtype=bfloat16 --config=celebahq256]

Each framework has a process of its own; a turn begins with a step that is not counted. With
--against= there are no peers, and no torch is needed. --before adds another checkout of this
repository. The peak is that of jax's product of two large matrices.
"""

import contextlib
import statistics
import tempfile
import time

from interleaved import (
  NUM_CORES,
  OTHER_NETWORKS,
  PEERS,
  Contender,
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
  """Prints machine, versions and tables."""
  args = parse(
    __doc__,
    batch=16,
    rounds=7,
    steps=2,
    against=','.join(PEERS),
    before='',
    config='cifar10',
    platform='cpu',
    dtype='float32',
  )
  print(machine())
  print(f'{args.config}, batch {args.batch}, {args.dtype}, {args.platform}, ', end='')
  print(f'{NUM_CORES} threads, {args.rounds} rounds of {args.steps} step(s) each', flush=True)
  options = {name: getattr(args, name) for name in ('config', 'batch', 'steps', 'dtype')}
  starts, cold_peaks = {}, {}

  def timed_start(name, cache):
    begun = time.perf_counter()
    contender = make_contender(
      name,
      'training',
      options,
      args,
      JAX_PLATFORMS=args.platform,
      JAX_COMPILATION_CACHE_DIR=cache,
      TORCHINDUCTOR_CACHE_DIR=cache,
    )
    contender.ask('peak_mib')  # answered once network and state are there
    setup = time.perf_counter() - begun
    starts.setdefault(name, []).append(f'{setup:.1f} + {contender.ask("step"):.1f}')
    return contender

  with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:

    def start(name):
      with timed_start(name, f'{folder}/{name}') as cold:
        cold_peaks[name] = cold.ask('peak_mib')
      return timed_start(name, f'{folder}/{name}')

    contenders = start_each(args, stack, start)
    matmul = {'library': 'jax', 'dtype': args.dtype}
    peak = stack.enter_context(Contender('worker', 'matmul', matmul, JAX_PLATFORMS=args.platform))
    functions = {
      name: lambda contender=contender: steady(contender, 'step', 'steps')
      for name, contender in contenders.items()
    }
    functions['peak'] = lambda: peak.ask('product')
    alternate(functions, 1)
    measured = alternate(functions, args.rounds)
    facts = {name: contender.ask('facts') for name, contender in contenders.items()}

  peak = statistics.median(measured.pop('peak'))
  print(f'peak {peak / 1e9:.0f} GFLOP/s')
  print(*dict.fromkeys(found['versions'] for found in facts.values()), sep='\n', end='\n\n')
  rows, more_rows = [], []
  for name, values in measured.items():
    secs, flops = statistics.median(values) / args.steps, facts[name]['flops']
    is_same = name not in OTHER_NETWORKS
    rows.append(
      [
        name,
        f'{secs:.3f} ({min(values) / args.steps:.2f}-{max(values) / args.steps:.2f})',
        f'{args.batch / secs:.2f}',
        f'{flops / secs / 1e9:.0f}',
        f'{flops / secs / peak:.2f}',
        f'{ratio(values, measured["ddpm_jax"]):.3f}' if is_same else '-',
        f'{facts[name]["peak_mib"]:.0f} ({cold_peaks[name]:.0f})',
      ]
    )
    size = f'{facts[name]["parameters"]:,}', f'{flops / args.batch / 1e9:.3f}'
    more_rows.append([name, *size, *starts[name]])
  print_table(
    [
      '',
      's/step (least-most)',
      'images/s',
      'GFLOP/s',
      'of peak',
      'its time over ddpm_jax',
      'peak MiB (cold)',
    ],
    rows,
  )
  print_table(
    ['', 'parameters', 'GFLOP/image', 'cold: start + first step, s', 'warm: the same, s'],
    more_rows,
  )
  check_same_network(facts, args.batch)


if __name__ == '__main__':
  main()
