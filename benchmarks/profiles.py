"""Where a training step's time goes: XLA's own events, sorted by what an op computes.

  taskset -c 0 python benchmarks/profiles.py [--batch=16] [--config=cifar10]

It runs on one core: with more, XLA's events of ops that run in its pool of threads end before the
ops do. The peak is the better of jax's and NumPy's product of two large matrices.
"""

import collections
import gzip
import json
import os
import pathlib
import re
import statistics
import sys
import tempfile

import jax
from interleaved import NUM_CORES, alternate, machine, parse, print_table
from worker import (
  Training,
  build,
  flops_by_primitive,
  inner_jaxprs,
  make_config,
  matmul,
  training_jaxpr,
  versions,
)

from ddpm_jax.modes import huge_pages

NUM_STEPS = 3
_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%([\w.\-]+) = .*? ([a-z][a-z0-9\-]*)\(')
_COMPUTATION = re.compile(r'^(?:ENTRY )?%([\w.\-]+) .*\{$')
_CALLED = re.compile(r'(?:calls|to_apply)=%([\w.\-]+)')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_MINIMAL_FILTERING = 'conv3'  # in the names of winograd.py's functions

FILTERING_PRODUCTS = 'minimal filtering, products'
FILTERING_TRANSFORMS = 'minimal filtering, transforms'
CONVOLUTIONS = 'other convolutions'
MATMULS = 'other matrix products'


def profile(training):
  """({op: seconds a step}, seconds of a step)."""
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      seconds = training.seconds(NUM_STEPS)
    (file,) = pathlib.Path(folder).rglob('*.trace.json.gz')
    with gzip.open(file) as trace:
      events = json.load(trace)['traceEvents']
  times = self_times(events)
  return {op: secs / NUM_STEPS for op, secs in times.items()}, seconds / NUM_STEPS


def main():
  """Prints machine, versions and the table."""
  huge_pages.restart_with_them()
  args = parse(__doc__, batch=16, rounds=7, config='cifar10')
  if NUM_CORES != 1:
    sys.exit('run it on one core: taskset -c 0 python benchmarks/profiles.py')
  print(machine(), versions(), sep='\n')
  with tempfile.TemporaryDirectory() as programs:
    # The program that runs is known by what XLA writes when it compiles it.
    flags = f'--xla_dump_to={programs} --xla_dump_hlo_as_text'
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flags}'
    jax.config.update('jax_compilation_cache_dir', None)
    config = make_config(args.config, args.batch)
    training = Training(config)
    training.seconds(2)
    times, step_secs = profile(training)
    files = pathlib.Path(programs).glob('*after_optimizations.txt')
    kinds = op_kinds(max(files, key=lambda file: file.stat().st_size).read_text())
  products = {library: matmul(library)['product'] for library in ('jax', 'numpy')}
  rates = alternate(products, args.rounds)
  peak = statistics.median(max(pair) for pair in zip(*rates.values(), strict=True))

  totals = collections.Counter()
  for op, secs in times.items():
    totals[kinds.get(op, 'other')] += secs
  jaxpr = training_jaxpr(config, winograd=build.model(config).winograd)
  flops, filtering = flops_by_primitive(jaxpr), filtering_flops(jaxpr)
  flops_of_kinds = {
    FILTERING_PRODUCTS: filtering,
    CONVOLUTIONS: flops['conv_general_dilated'],
    MATMULS: flops['dot_general'] - filtering,
  }
  rows = []
  for kind, secs in totals.most_common():
    row = [kind, f'{secs:.3f}', f'{secs / totals.total():.1%}', '', '']
    if kind in flops_of_kinds:
      rate = flops_of_kinds[kind] / secs
      row[3:] = f'{rate / 1e9:.0f}', f'{rate / peak:.2f}'
    rows.append(row)
  print(f'{args.config}, batch {args.batch}: {step_secs:.3f} s a step, ', end='')
  print(f'ops {totals.total():.3f} s, peak {peak / 1e9:.0f} GFLOP/s\n')
  print_table(['', 's/step', 'share', 'GFLOP/s', 'of peak'], rows)


def filtering_flops(jaxpr):
  """FLOPs of the products in winograd.py's functions, none of which is within a loop."""
  total = 0
  for eqn in jaxpr.eqns:
    is_filtering = _MINIMAL_FILTERING in str(eqn.params.get('name', ''))
    for inner in inner_jaxprs(eqn.params):
      total += flops_by_primitive(inner).total() if is_filtering else filtering_flops(inner)
  return total


def self_times(events):
  """{op: seconds}, less those of the ops within it."""
  by_thread = collections.defaultdict(list)
  for event in events:
    if 'hlo_op' in event.get('args', {}):
      by_thread[event['pid'], event['tid']].append(event)
  totals = collections.Counter()
  for thread in by_thread.values():
    within = []  # (op, end) of the events that are open
    for event in sorted(thread, key=lambda event: (event['ts'], -event['dur'])):
      while within and within[-1][1] <= event['ts']:
        within.pop()
      op = event['args']['hlo_op']
      totals[op] += event['dur'] / 1e6
      if within:
        totals[within[-1][0]] -= event['dur'] / 1e6
      within.append((op, event['ts'] + event['dur']))
  return totals


def op_kinds(program):
  """{instruction: what it computes} of optimised HLO text."""
  bodies, lines = collections.defaultdict(set), {}
  computation = None
  for line in program.splitlines():
    if match := _COMPUTATION.match(line):
      computation = match[1]
    elif match := _INSTRUCTION.match(line):
      bodies[computation].add(match[2])
      lines[match[1]] = (match[2], line)
  return {name: _kind(opcode, line, bodies) for name, (opcode, line) in lines.items()}


def _kind(opcode, line, bodies):
  """What an instruction computes, by its opcode, those it calls, and its place in the program."""
  opcodes = {opcode}
  if called := _CALLED.search(line):
    opcodes |= bodies[called[1]]
  op_name = _OP_NAME.search(line)
  place = op_name[1] if op_name else ''
  if _MINIMAL_FILTERING in place:
    return FILTERING_PRODUCTS if 'dot' in opcodes else FILTERING_TRANSFORMS
  if 'convolution' in opcodes:
    return CONVOLUTIONS
  if 'dot' in opcodes:
    return MATMULS
  if '/dropout' in place:
    return 'dropout'
  if '/norm' in place:
    return 'group norms (and what is fused with them)'
  if 'UNet' in place:
    return 'the rest of the network'
  if opcode in ('copy', 'transpose', 'bitcast') or '_copy_' in line.partition('=')[0]:
    return 'copies and transposes'
  return 'loss, clipping, Adam, EMA and random numbers'


if __name__ == '__main__':
  main()
