"""Time and memory of a training step on signals and volumes, against PyTorch's networks for them.

  python benchmarks/axes.py [--only=volumes] [--rounds=9] [--against=eager,compile]
    [--before=CHECKOUT]

Signals: our UNet and the Unet1D of denoising-diffusion-pytorch, at widths and depths with as many
parameters and FLOPs, within 5%. Volumes: our UNet and MONAI's DiffusionModelUNet with one head of
attention, which are the same network but for the sides that are padded. In float32 on a CPU; each
framework has a process of its own, and a turn begins with a step that is not counted. --before adds
another checkout of this repository.
"""

import contextlib
import functools
import statistics
import sys
import tempfile
from typing import Any, NamedTuple

from interleaved import (
  NUM_CORES,
  ROOT,
  Contender,
  alternate,
  machine,
  parse,
  print_table,
  ratio,
  steady,
)

TOLERANCE = 0.05  # of parameters and FLOPs


class Case(NamedTuple):
  """A network of ours, and another program's like it."""

  config: str  # of ours
  changes: dict[str, Any]  # of it
  shape: tuple[int, ...]  # of an example
  batch: int
  steps: int  # a turn
  peer: str  # task of peers.py
  network: dict[str, Any]  # its arguments


def make_signals(length, batch, steps):
  """The network of configs/watch.py, without attention at a level, and one level deeper."""
  changes = {'model.ch_mult': (1, 2, 4, 8), 'model.attn_resolutions': ()}
  return Case('watch', changes, (length, 6), batch, steps, 'unet1d', {'dim': 32})


def make_volumes(ch, num_groups, batch, steps):
  """The network of configs/brain_blocks.py, with other widths."""
  network = {
    'channels': (ch, 2 * ch, 4 * ch),
    'num_res_blocks': 1,
    'attention_levels': (False, False, True),
    'num_head_channels': 4 * ch,
    'norm_num_groups': num_groups,
  }
  changes = {'model.ch': ch, 'model.num_groups': num_groups}
  return Case('brain_blocks', changes, (16, 16, 16, 1), batch, steps, 'monai', network)


CASES = {
  'signals of 128': make_signals(128, batch=32, steps=10),
  'signals of 1024': make_signals(1024, batch=8, steps=5),
  'volumes of width 16': make_volumes(16, 8, batch=16, steps=3),
  'volumes of width 32': make_volumes(32, 32, batch=8, steps=3),
  'volumes of width 64': make_volumes(64, 32, batch=8, steps=1),
  'volumes of width 128': make_volumes(128, 32, batch=8, steps=1),
}


def start(name, case, before, cache):
  """The Contender of a name on the command line, for a case; cache is of compiled programs."""
  caches = {'JAX_COMPILATION_CACHE_DIR': cache, 'TORCHINDUCTOR_CACHE_DIR': cache}
  options = {'batch': case.batch, 'steps': case.steps}
  if name not in ('ddpm_jax', 'before'):
    options |= {'name': name, 'shape': case.shape, 'network': case.network}
    return Contender('peers', case.peer, options, huge_pages=False, **caches)
  *axes, channels = case.shape
  data = {'data.image_size': axes, 'data.channels': channels, 'data.levels': 256}
  options |= {'config': case.config, 'changes': data | case.changes}
  checkout = before if name == 'before' else ROOT
  return Contender('worker', 'training', options, checkout=checkout, **caches)


def measure(case, args):
  """The rows of the table, one of each contender, whose networks are alike."""
  names = ['ddpm_jax', *(['before'] if args.before else []), *filter(None, args.against.split(','))]
  with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:

    def start_warm(name):  # compiling takes memory that is not a step's
      with start(name, case, args.before, f'{folder}/{name}') as cold:
        cold.ask('step')
      return start(name, case, args.before, f'{folder}/{name}')

    contenders = {name: stack.enter_context(start_warm(name)) for name in names}
    functions = {
      name: functools.partial(steady, contender, 'step', 'steps')
      for name, contender in contenders.items()
    }
    alternate(functions, 1)
    measured = alternate(functions, args.rounds)
    facts = {name: contender.ask('facts') for name, contender in contenders.items()}
  print(*dict.fromkeys(found['versions'] for found in facts.values()), sep='\n', end='\n\n')
  rows = []
  for name, values in measured.items():
    found = facts[name]
    for what in ('parameters', 'flops'):
      share = found[what] / facts['ddpm_jax'][what]
      if abs(share - 1) > TOLERANCE:
        sys.exit(f'{name} has {share:.3f} times the {what} of ddpm_jax')
    secs, flops = statistics.median(values) / case.steps, found['flops']
    least, most = min(values) / case.steps, max(values) / case.steps
    rows.append(
      [
        name,
        f'{1e3 * secs:.1f} ({1e3 * least:.1f}-{1e3 * most:.1f})',
        f'{ratio(values, measured["ddpm_jax"]):.3f}',
        f'{flops / secs / 1e9:.0f}',
        f'{found["peak_mib"]:.0f}',
        f'{found["parameters"]:,}',
        f'{flops / case.batch / 1e9:.4f}',
      ]
    )
  return rows


def main():
  """Prints machine, versions and tables."""
  args = parse(__doc__, only='', rounds=9, against='eager,compile', before='')
  print(machine())
  print(f'float32, {NUM_CORES} threads, {args.rounds} rounds', end='\n\n', flush=True)
  header = [
    '',
    'ms/step (least-most)',
    'its time over ddpm_jax',
    'GFLOP/s',
    'peak MiB',
    'parameters',
    'GFLOP/example',
  ]
  for name, case in CASES.items():
    if args.only in name:
      print(f'{name}: {case.shape}, batch {case.batch}, {case.steps} steps a round', flush=True)
      print_table(header, measure(case, args))


if __name__ == '__main__':
  main()
