"""Programs that are measured in alternation, each in a process of its own, and tables of results.

One computes at a time, and all see the machine as it changes. No framework is imported here.
"""

import argparse
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
NUM_CORES = len(os.sched_getaffinity(0))
PEERS = ('eager', 'channels_last', 'compile', 'ddp')  # see peers.py
OTHER_NETWORKS = ('ddp', 'ddp+huge')
DATA_BYTES = 15_000_000  # of pictures to train on


class Contender:
  """A process that does what it is asked to, and answers; a context manager, which ends it."""

  def __init__(self, program, task, options, *, checkout=ROOT, huge_pages=True, **environment):
    """Starts it.

    Args:
      program: 'worker' or 'peers', files beside this one.
      task: of the program's tasks.
      options: its arguments, JSON values.
      checkout: whose ddpm_jax and configs are measured.
      huge_pages: whether it has huge pages of memory, as main.py asks for.
      environment: variables, beside those of this process.
    """
    environment = {
      'CHECKOUT': os.path.abspath(checkout),
      'GLIBC_TUNABLES': f'glibc.malloc.hugetlb={int(huge_pages)}',
      'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',  # frameworks share the card
      'JAX_PLATFORMS': 'cpu',  # or cuda; PyTorch has the same names
      **environment,
    }
    self._process = subprocess.Popen(
      [sys.executable, f'{ROOT}/benchmarks/{program}.py', task, json.dumps(options)],
      env=os.environ | environment,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def __enter__(self):
    return self

  def __exit__(self, *exc_info):
    self._process.communicate()  # without more to do, it ends

  def ask(self, what):
    """What the task's function of that name returns; the first answer comes once all is set up.

    Raises:
      ContenderError: the process has ended.
    """
    try:
      print(what, file=self._process.stdin, flush=True)
      answer = self._process.stdout.readline()
    except BrokenPipeError:
      answer = ''
    if not answer:
      raise ContenderError(f'its process ended with code {self._process.wait()}')
    return json.loads(answer)


class ContenderError(Exception):
  """A process has ended; its own words are on the terminal."""


def serve(tasks, **functions):
  """The process of a Contender: for each line of standard input, one of JSON on standard output.

  Args:
    tasks: {name: function that returns {what can be asked: function}}.
    functions: what can be asked of each.
  """
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # what libraries print is no answer
  _, task, options = sys.argv
  functions = {'peak_mib': peak_mib, **functions, **tasks[task](**json.loads(options))}
  for line in sys.stdin:
    print(json.dumps(functions[line.strip()]()), file=answers, flush=True)


def peak_mib():
  """Largest resident memory of this process so far, MiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts KiB


def alternate(functions, rounds):
  """{name: [result of each round]} of functions, called one after the other, to and fro."""
  results = {name: [] for name in functions}
  for number in range(rounds):
    for name in reversed(functions) if number % 2 else functions:
      results[name].append(functions[name]())
  return results


def steady(contender, uncounted, counted):
  """What a Contender answers to `counted`, right after `uncounted`.

  While a process waits, a virtual machine may give free memory back to its host. What comes first
  then waits for that memory again, which in a long run nothing does but the first step.
  """
  contender.ask(uncounted)
  return contender.ask(counted)


def seconds(function):
  """Wall time of a call."""
  start = time.perf_counter()
  function()
  return time.perf_counter() - start


def ratio(numerators, denominators):
  """Median of the ratios, round by round."""
  return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def machine():
  """The processor, its cores, and Python."""
  model = platform.processor() or platform.machine()
  cpuinfo = pathlib.Path('/proc/cpuinfo')
  if cpuinfo.exists():
    names = [line for line in cpuinfo.read_text().splitlines() if line.startswith('model name')]
    model = names[0].partition(':')[2].strip() if names else model
  load = os.getloadavg()[0]
  return f'{NUM_CORES} cores of {model}, load {load:.1f}, Python {platform.python_version()}'


def print_table(header, rows):
  """Prints a table in Markdown, row by row as they come."""
  print_row(header)
  print_row(['---'] * len(header))
  for row in rows:
    print_row(row)
  print(flush=True)


def print_row(row):
  """Prints a row of a table."""
  print(f'| {" | ".join(map(str, row))} |', flush=True)


def parse(text, **defaults):
  """The command line: options with these defaults and of their types; those of None must be given.

  Args:
    text: docstring of the program, its help.
    defaults: by name.
  """
  parser = argparse.ArgumentParser(
    description=text, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for name, default in defaults.items():
    if default is False:
      parser.add_argument(f'--{name}', action='store_true')
    else:
      kind = str if default is None else type(default)
      parser.add_argument(f'--{name}', type=kind, default=default, required=default is None)
  return parser.parse_args()


# What train_step.py and sample_step.py share: this program against an earlier one and peers.


def start_each(args, stack, start):
  """{name: Contender} of ddpm_jax, before, and what args.against names, if it runs here.

  Args:
    args: of the command line.
    stack: contextlib.ExitStack, which ends them.
    start: name -> a Contender that has answered.
  """
  own = ['ddpm_jax', *(['before'] if args.before else [])]
  against, started = [name for name in args.against.split(',') if name], {}
  for name in against:
    if plain_name(name) not in (*own, *PEERS):
      sys.exit(f'--against has {name}; the peers are {", ".join(PEERS)}')
  for name in [*own, *against]:
    try:
      started[name] = stack.enter_context(start(name))
    except ContenderError as error:
      if name in own:
        raise
      print(f'{name} does not run here: {error}', flush=True)
  return started


def plain_name(name):
  """A contender's name without what says whether it has huge pages."""
  return name.removesuffix('+huge').removesuffix('-huge')


def make_contender(name, task, options, args, **environment):
  """The Contender of a name on the command line."""
  plain = plain_name(name)
  if plain in PEERS:
    environment['huge_pages'] = name.endswith('+huge')
    return Contender('peers', task, {'name': plain, **options}, **environment)
  checkout = args.before if plain == 'before' else ROOT
  environment['huge_pages'] = not name.endswith('-huge')
  return Contender('worker', task, options, checkout=checkout, **environment)


def check_same_network(facts, batch):
  """Ends the program if a peer that should have our network counts otherwise."""
  expected = facts['ddpm_jax']
  for name, found in facts.items():
    if name in OTHER_NETWORKS:
      continue
    if found['parameters'] != expected['parameters']:
      sys.exit(f'{name} has {found["parameters"]} parameters, ddpm_jax {expected["parameters"]}')
    if abs(found['flops'] / expected['flops'] - 1) > 0.005:
      sys.exit(f'{name} has {found["flops"] / batch} FLOPs an image, not as ddpm_jax')
  print('parameters and FLOPs of the same network agree')
