"""Processes that take turns, so that one framework at a time computes, and tables of the results.

The process that calls imports no framework.
"""

import importlib
import multiprocessing
import os
import pathlib
import platform
import resource
import statistics
import sys
import time
import traceback
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
NUM_CORES = len(os.sched_getaffinity(0))
HUGE = '+huge'  # after a peer's name: with huge pages, which our program asks for by itself
PLAIN_PEERS = ('eager', 'channels_last', 'compile', 'ddp')  # see peers.py
PEERS = (*PLAIN_PEERS, *(name + HUGE for name in PLAIN_PEERS))
OTHER_NETWORKS = ('ddp', 'ddp' + HUGE)
CONFIGS = ('cifar10', 'celebahq256')  # the networks that peers.py has as well
DATA_BYTES = 15_000_000  # of pictures to train on
MATMUL_SIZE = 4096  # of the product that is taken for the peak


class Worker:
  """An object in a process of its own; its methods are called from here, one at a time."""

  def __init__(
    self,
    where,
    *args,
    root=ROOT,
    cache=None,
    cores=NUM_CORES,
    platform='cpu',
    huge=False,
    **kwargs,
  ):
    """Starts the process.

    Args:
      where: 'module:Class' of the object, called with args and kwargs.
      root: the checkout whose ddpm_jax and configs it imports.
      cache: folder of compiled programs, kept between processes; None for none.
      cores: how many it may use.
      platform: of JAX, 'cpu' or 'cuda'.
      huge: whether to ask for huge pages as main.py does.
    """
    context = multiprocessing.get_context('spawn')
    self._pipe, theirs = context.Pipe()
    changes = {}
    if huge:
      from ddpm_jax import huge_pages  # here alone: the process has root's ddpm_jax

      changes = huge_pages.environment(os.environ)
    start = time.perf_counter()
    self._process = context.Process(
      target=_serve,
      args=(theirs, where, str(root), cache and str(cache), cores, platform, args, kwargs),
    )
    with mock.patch.dict(os.environ, changes):
      self._process.start()
    theirs.close()
    try:
      self._receive()
    except WorkerError:
      self.close()
      raise
    self.setup_secs = time.perf_counter() - start  # imports, network, state

  def call(self, method, *args):
    """The method's result; 'peak_mib' is one of every process."""
    self._pipe.send((method, args))
    return self._receive()

  def close(self):
    """Ends the process."""
    self._pipe.close()
    self._process.join()

  def _receive(self):
    try:
      result, error = self._pipe.recv()
    except EOFError:
      self._process.join()
      raise WorkerError(f'the process ended with code {self._process.exitcode}') from None
    if error:
      raise WorkerError(error)
    return result


class WorkerError(Exception):
  """What went wrong in a worker, in words."""


def start_each(names, start, stack):
  """{name: what start(name) gives, a worker first} of those that run here.

  Args:
    names: of PEERS, or of our own programs, which must run.
    start: name -> a tuple.
    stack: contextlib.ExitStack that closes the workers.
  """
  started = {}
  for name in names:
    try:
      started[name] = start(name)
    except WorkerError as error:
      if name not in PEERS:
        raise
      print(f'{name} does not run here: {error}', flush=True)
    else:
      stack.callback(started[name][0].close)
  return started


def _serve(pipe, where, root, cache, cores, platform, args, kwargs):
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
  os.environ['JAX_PLATFORMS'] = platform
  os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'  # frameworks share the card
  if cache:
    os.environ['JAX_COMPILATION_CACHE_DIR'] = os.environ['TORCHINDUCTOR_CACHE_DIR'] = cache
  sys.path.insert(0, root)
  served = None
  method = ''
  while True:
    try:
      if served is None:
        module, name = where.split(':')
        result, served = None, getattr(importlib.import_module(module), name)(*args, **kwargs)
      else:
        function = peak_mib if method == 'peak_mib' else getattr(served, method)
        result = function(*args)
      pipe.send((result, None))
    except Exception as error:
      pipe.send((None, f'{type(error).__name__}: {error}\n{traceback.format_exc()}'))
    try:
      method, args = pipe.recv()
    except EOFError:
      return


def peak_mib():
  """Largest resident memory of this process so far, MiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts KiB


def machine():
  """The processor, its cores, and Python."""
  model = platform.processor() or platform.machine()
  cpuinfo = pathlib.Path('/proc/cpuinfo')
  if cpuinfo.exists():
    names = [line for line in cpuinfo.read_text().splitlines() if line.startswith('model name')]
    model = names[0].partition(':')[2].strip() if names else model
  load = os.getloadavg()[0]
  return f'{NUM_CORES} cores of {model}, load {load:.1f}, Python {platform.python_version()}'


def take_turns(functions, rounds):
  """{name: [result of each round]} of functions called in turn."""
  results = {name: [] for name in functions}
  for _ in range(rounds):
    for name, function in functions.items():
      results[name].append(function())
  return results


def steady(worker, steps):
  """Seconds of so many training steps, right after one that is not counted.

  While a process waits for its turn, a virtual machine may give free memory back to its host. The
  first step then waits for that memory again, which in a training run no step does but the first.
  """
  worker.call('turn', 1)
  return worker.call('turn', steps)


def ratio(numerators, denominators):
  """Median of the ratios, round by round."""
  pairs = zip(numerators, denominators, strict=True)
  return statistics.median(numerator / denominator for numerator, denominator in pairs)


def print_row(row):
  """Prints a row of a table as docs/benchmarks.md has it."""
  print(f'| {" | ".join(map(str, row))} |', flush=True)


def print_table(header, rows):
  """Prints a table, row by row as they come."""
  print_row(header)
  print_row(['---'] * len(header))
  for row in rows:
    print_row(row)
  print(flush=True)


def add_device_options(parser):
  """--config, --platform and --dtype."""
  parser.add_argument('--config', default='cifar10', choices=CONFIGS, help='the network')
  parser.add_argument('--platform', default='cpu', choices=('cpu', 'cuda'), help='where it runs')
  parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'))


def add_peer_options(parser):
  """--peers and --ours-only."""
  parser.add_argument('--peers', default=','.join(PLAIN_PEERS), help='names of benchmarks/peers.py')
  parser.add_argument('--ours-only', action='store_true', help='no peers')


def chosen_peers(parser, args):
  """The peers that the command line asks for."""
  names = [] if args.ours_only else [name for name in args.peers.split(',') if name]
  for name in names:
    if name not in PEERS:
      parser.error(f'--peers has {name}; the peers are {", ".join(PEERS)}')
  return names


def check_same_network(facts, batch_size):
  """Ends the program if a peer that should have our network counts otherwise."""
  for name, fact in facts.items():
    if name in OTHER_NETWORKS:
      continue
    if fact['parameters'] != facts['ours']['parameters']:
      sys.exit(f'{name} has {fact["parameters"]} parameters, ours {facts["ours"]["parameters"]}')
    if abs(fact['flops'] / facts['ours']['flops'] - 1) > 0.005:
      sys.exit(f'{name} has {fact["flops"] / batch_size} FLOPs an image, not as ours')
  print('parameters and FLOPs of the same network agree')
