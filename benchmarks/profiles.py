"""Where a training step's time goes: XLA's own events, sorted by what an op computes."""

import collections
import gzip
import json
import os
import pathlib
import re
import tempfile

import jax
from ours import TrainStep, flops_by_primitive, inner_jaxprs, matmul_flops

_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%([\w.\-]+) = .*? ([a-z][a-z0-9\-]*)\(')
_COMPUTATION = re.compile(r'^(?:ENTRY )?%([\w.\-]+) .*\{$')
_CALLED = re.compile(r'(?:calls|to_apply)=%([\w.\-]+)')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_MINIMAL_FILTERING = 'conv3x3'  # in the names of winograd.py's functions

FILTERING_PRODUCTS = 'minimal filtering, products'
FILTERING_TRANSFORMS = 'minimal filtering, transforms'
CONVOLUTIONS = 'other convolutions'
MATMULS = 'other matrix products'


class Profile(TrainStep):
  """A training step whose ops are timed."""

  def __init__(self, *args, **kwargs):
    # The program that runs is known by what XLA writes when it compiles it.
    self._programs = tempfile.TemporaryDirectory()
    flags = f'--xla_dump_to={self._programs.name} --xla_dump_hlo_as_text'
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flags}'
    super().__init__(*args, **kwargs)
    self.turn(1)

  def profile(self, num_steps):
    """(seconds of each kind of op, seconds in all), each a step."""
    with tempfile.TemporaryDirectory() as folder:
      with jax.profiler.trace(folder):
        seconds = self.turn(num_steps)
      (file,) = pathlib.Path(folder).rglob('*.trace.json.gz')
      with gzip.open(file) as trace:
        events = json.load(trace)['traceEvents']
    kinds = op_kinds(self._program())
    totals = collections.Counter()
    for op, secs in self_times(events).items():
      totals[kinds.get(op, 'other')] += secs / num_steps
    return dict(totals.most_common()), seconds / num_steps

  def flops_of_kinds(self):
    """FLOPs a step of the kinds that have most, as they are computed."""
    jaxpr = self.traced().jaxpr
    flops, filtering = flops_by_primitive(jaxpr), filtering_flops(jaxpr)
    return {
      FILTERING_PRODUCTS: filtering,
      CONVOLUTIONS: flops['conv_general_dilated'],
      MATMULS: flops['dot_general'] - filtering,
    }

  def _program(self):
    """The step's optimised HLO: the largest program that was compiled."""
    files = pathlib.Path(self._programs.name).glob('*after_optimizations.txt')
    return max(files, key=lambda file: file.stat().st_size).read_text()


def filtering_flops(jaxpr):
  """FLOPs of the products in winograd.py's functions, none of which is within a loop."""
  total = 0
  for eqn in jaxpr.eqns:
    is_filtering = _MINIMAL_FILTERING in str(eqn.params.get('name', ''))
    count = matmul_flops if is_filtering else filtering_flops
    total += sum(count(inner) for inner in inner_jaxprs(eqn.params))
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
