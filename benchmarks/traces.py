"""What XLA's profiles and programs say: time of each op, what it computes, and its bytes.

No framework is imported here. profiles.py and worker.py read with it.
"""

import collections
import gzip
import json
import math
import pathlib
import re

_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)')
_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) .*\{$')
_CALLED = re.compile(r'(?:calls|to_apply)=%?([\w.\-]+)')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_ARRAY = re.compile(r'\b(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]')
_OPERAND = re.compile(r'%([\w.\-]+)')
MINIMAL_FILTERING = 'conv3'  # in the names of winograd.py's functions
ATTENTION_SCOPE = '_attn'  # in the names of the network's blocks

FILTERING_PRODUCTS = 'minimal filtering, products'
FILTERING_TRANSFORMS = 'minimal filtering, transforms'
CONVOLUTIONS = 'other convolutions'
MATMULS = 'other matrix products'
ATTENTION = 'attention'
DROPOUT = 'dropout'
NORMS = 'group norms (and what is fused with them)'
NETWORK = 'the rest of the network'
COPIES = 'copies and transposes'
REST = 'loss, clipping, Adam, EMA and random numbers'
UNKNOWN = 'other'


def read_events(folder):
  """The events of the one trace in a folder, as jax.profiler writes it."""
  (file,) = pathlib.Path(folder).rglob('*.trace.json.gz')
  with gzip.open(file) as trace:
    return json.load(trace)['traceEvents']


def op_times(events):
  """{op: (seconds, how often)}, less the time of the ops within it.

  On an accelerator they are the kernels of its streams; those without an op have their own name.
  """
  names = collections.defaultdict(str)
  for event in events:
    if event.get('name') == 'process_name':
      names[event['pid']] = event['args']['name']
    elif event.get('name') == 'thread_name':
      names[event['pid'], event['tid']] = event['args']['name']
  streams = {
    key
    for key, name in names.items()
    if isinstance(key, tuple) and '/device:' in names[key[0]] and name.startswith('Stream')
  }
  by_thread = collections.defaultdict(list)
  for event in events:
    if event.get('ph') != 'X':
      continue
    op = event.get('args', {}).get('hlo_op')
    thread = event['pid'], event['tid']
    if thread in streams:
      by_thread[thread].append((event['ts'], -event.get('dur', 0), op or event['name']))
    elif not streams and op:
      by_thread[thread].append((event['ts'], -event.get('dur', 0), op))
  seconds, counts = collections.Counter(), collections.Counter()
  for thread in by_thread.values():
    within = []  # (op, end) of the events that are open
    for start, negative, op in sorted(thread):
      while within and within[-1][1] <= start:
        within.pop()
      seconds[op] -= negative / 1e6
      counts[op] += 1
      if within:
        seconds[within[-1][0]] += negative / 1e6
      within.append((op, start - negative))
  return {op: (seconds[op], counts[op]) for op in seconds}


def read_program(text):
  """{instruction: (what it computes, bytes of its operands and results)} of optimised HLO text."""
  bodies, lines, sizes = collections.defaultdict(set), {}, {}
  computation = None
  for line in text.splitlines():
    if match := _INSTRUCTION.match(line):
      name, result, opcode, rest = match.groups()
      bodies[computation].add(opcode)
      lines[name] = opcode, line, rest.partition('), ')[0]
      sizes[name] = _num_bytes(result)
    elif match := _COMPUTATION.match(line):
      computation = match[1]
  return {
    name: (
      _kind(opcode, line, bodies),
      sizes[name] + sum(sizes.get(operand, 0) for operand in _OPERAND.findall(operands)),
    )
    for name, (opcode, line, operands) in lines.items()
  }


def _num_bytes(type_text):
  """Of an array, or of those of a tuple, in HLO's notation."""
  return sum(
    math.prod(int(n) for n in shape.split(',') if n) * max(1, int(bits or 8) // 8)
    for _, bits, shape in _ARRAY.findall(type_text)
  )


def _kind(opcode, line, bodies):
  """What an instruction computes, by its opcode, those it calls, and its place in the program."""
  opcodes = {opcode}
  if called := _CALLED.search(line):
    opcodes |= bodies[called[1]]
  op_name, target = _OP_NAME.search(line), _TARGET.search(line)
  place, library = (op_name[1] if op_name else ''), (target[1].lower() if target else '')
  if MINIMAL_FILTERING in place:
    return FILTERING_PRODUCTS if 'dot' in opcodes else FILTERING_TRANSFORMS
  if 'convolution' in opcodes or 'conv' in library:
    return CONVOLUTIONS
  if '/norm' in place:
    return NORMS
  if ATTENTION_SCOPE in place or 'fmha' in library:
    return ATTENTION
  if 'dot' in opcodes or 'blas' in library or 'gemm' in line.partition('=')[0]:
    return MATMULS
  if '/dropout' in place:
    return DROPOUT
  if 'UNet' in place:
    return NETWORK
  if opcode in ('copy', 'transpose', 'bitcast') or '_copy_' in line.partition('=')[0]:
    return COPIES
  return REST


def by_kind(times, program, num_steps):
  """{kind: (seconds, bytes)} a step of op_times, each op as read_program has it.

  A kernel that names no op of the program is known by its own name, and its bytes are not.
  """
  known = {_plain(name): found for name, found in program.items()}
  seconds, num_bytes = collections.Counter(), collections.Counter()
  for op, (secs, count) in times.items():
    kind, size = known.get(_plain(op)) or (_kind_of_kernel(op), 0)
    seconds[kind] += secs / num_steps
    num_bytes[kind] += size * count / num_steps
  return {kind: (secs, num_bytes[kind]) for kind, secs in seconds.most_common()}


def _plain(name):
  """An instruction's name as the kernel of it is called."""
  return re.sub(r'\W', '_', name)


def _kind_of_kernel(name):
  words = name.lower()
  if 'memcpy' in words or 'memset' in words:
    return COPIES
  if any(word in words for word in ('conv', 'fprop', 'dgrad', 'wgrad')):
    return CONVOLUTIONS
  return MATMULS if 'gemm' in words else UNKNOWN
