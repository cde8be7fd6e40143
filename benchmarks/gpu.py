"""All that is measured on a GPU, the most important first, within nine minutes or so.

  python benchmarks/gpu.py [--before=CHECKOUT] [--config=cifar10] [--batch=128] [--out=DIR]
    [--only=training,profile,sampling,bound,features,start] [--minutes=9] [--tiny]
  python benchmarks/gpu.py --train=SECONDS --data=DIR --out=DIR [--config=cifar10]

Tables are printed as they come, and lines of JSON, which --out also writes to gpu.jsonl: a run that
is cut leaves what it had. What has not begun when the time is nearly over is left out, and named.

Each contender is a process of its own. One starts after the other, since tuning while another
computes chooses badly; then they take turns. `bfloat16` and `float32` are this checkout, `before`
is another one, in bfloat16, and the others are PyTorch in bfloat16 autocast (peers.py), if torch
and diffusers are here; the fastest of them is the strongest peer. The two ceilings, a large product
of matrices and an array that is read and written, take turns with the steps.

--tiny measures a tiny network without peers on a CPU, to see that all of it runs. --train trains a
config for so long on the data in a folder (data.dir), draws a grid, and writes the curve, the grid
and the moving average, in float16, in files of at most 15 MB: cat average.npz.* > average.npz.
"""

import contextlib
import functools
import importlib.util
import io
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from compare import start_up
from interleaved import (
  ROOT,
  Contender,
  ContenderError,
  alternate,
  machine,
  parse,
  print_table,
  ratio,
  steady,
)

PEERS_OF_TRAINING = ('graphs', 'compile+graphs', 'compile', 'channels_last')
PEERS_OF_SAMPLING = ('compile+graphs', 'channels_last')
ROUNDS = 5
STEPS = 20  # a turn: what the package sends in one dispatch
TIMESTEPS = 100  # of a chain
NUM_FEATURES = 2_048
START_SECS = 75  # what a contender may need to start, compilation included
PART_BYTES = 15_000_000
GRID_SAMPLES = 64

TINY_CHANGES = {'model.ch_mult': (1,), 'model.attn_resolutions': (), 'model.dropout': 0.1}
TINY_BATCH = 4
TINY_XLA_FLAGS = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'


class Measuring:
  """A run of the program: its choices, its time, its lines of JSON, and processes of contenders."""

  def __init__(self, args):
    self.args = args
    self.platform = 'cpu' if args.tiny else 'cuda'
    self.config = 'digits' if args.tiny else args.config
    self.batch = TINY_BATCH if args.tiny else args.batch
    self.rounds, self.steps, self.timesteps = (1, 2, 2) if args.tiny else (ROUNDS, STEPS, TIMESTEPS)
    self.changes = TINY_CHANGES if args.tiny else {}
    self._end = time.monotonic() + 60 * args.minutes
    self._folder = tempfile.TemporaryDirectory()
    self._started = set()
    self._lines = None
    if args.out:
      pathlib.Path(args.out).mkdir(parents=True, exist_ok=True)
      self._lines = open(pathlib.Path(args.out) / 'gpu.jsonl', 'a')  # noqa: SIM115

  def close(self):
    """Removes what compiled programs were kept in."""
    self._folder.cleanup()
    if self._lines:
      self._lines.close()

  def emit(self, what, **facts):
    """Prints a line of JSON, and writes it."""
    line = json.dumps({'what': what, **facts})
    print(line, flush=True)
    if self._lines:
      print(line, file=self._lines, flush=True)

  def has_time(self, what, secs=START_SECS):
    """Whether so many seconds are left; if not, says what is left out."""
    left = self._end - time.monotonic()
    if left < secs:
      print(f'left out, for lack of time: {what}', flush=True)
      self.emit('left out', name=what)
    return left >= secs

  def cache(self, name='programs'):
    """A folder of compiled programs."""
    return f'{self._folder.name}/{name}'

  def start(self, stack, task, name, options, uncounted):
    """Starts a contender; returns it, once it has done what is not counted, or None.

    Args:
      stack: contextlib.ExitStack, which ends it.
      task: of worker.py, or of peers.py.
      name: of the contender.
      options: of the task.
      uncounted: what it is asked first, which compiles.
    """
    own = {'bfloat16': ROOT, 'float32': ROOT, 'before': self.args.before}
    options = {'config': self.config, 'batch': self.batch, **options}
    environment = {
      'JAX_PLATFORMS': self.platform,
      'JAX_COMPILATION_CACHE_DIR': self.cache(),
      'TORCHINDUCTOR_CACHE_DIR': self.cache('inductor'),
    }
    if name in own:
      options['dtype'] = 'float32' if name == 'float32' else 'bfloat16'
      if self.changes:
        options['changes'] = self.changes
      contender = Contender('worker', task, options, checkout=own[name], **environment)
    else:
      options |= {'name': name, 'dtype': 'bfloat16'}
      contender = Contender('peers', task, options, **environment)
    begun = time.monotonic()
    try:
      stack.enter_context(contender).ask('peak_mib')  # answered once all is set up
      ready = time.monotonic()
      contender.ask(uncounted)
    except ContenderError as error:
      if name == 'bfloat16':
        raise
      print(f'{name} does not run here: {error}', flush=True)
      return None
    start, first = ready - begun, time.monotonic() - ready
    which = 'warm' if (task, name) in self._started else 'cold'  # programs are in their cache
    self._started.add((task, name))
    facts = dict(programs=which, start_secs=start, first_secs=first)
    self.emit('started', task=task, name=name, **facts)
    print(f'{name}, {task}, {which}: {start:.1f} s to set up, {first:.1f} s the first\n')
    return contender

  def start_each(self, stack, task, options, uncounted, peers, more=()):
    """{name: Contender} of this checkout, the one before, peers and more, one after the other."""
    has_peers = not self.args.tiny and all(map(importlib.util.find_spec, ('torch', 'diffusers')))
    names = ['bfloat16', *(['before'] if self.args.before else [])]
    names += [*(peers if has_peers else ()), *more]
    started = {}
    for name in names:
      if name == 'bfloat16' or self.has_time(f'{task} of {name}'):
        contender = self.start(stack, task, name, options, uncounted)
        if contender is not None:
          started[name] = contender
    return started


def measure_training(run, profiles):
  """A training step of each contender; with `profiles`, where the time of this checkout's goes."""
  with contextlib.ExitStack() as stack:
    options = {'steps': run.steps}
    contenders = run.start_each(stack, 'training', options, 'step', PEERS_OF_TRAINING, ['float32'])
    own = contenders['bfloat16']
    functions = {
      name: functools.partial(steady, contender, 'step', 'steps')
      for name, contender in contenders.items()
    }
    for ceiling in ('matrix_peak', 'bandwidth'):
      functions[ceiling] = functools.partial(own.ask, ceiling)
    measured = alternate(functions, run.rounds)
    ceilings = {
      name: statistics.median(measured.pop(name)) for name in ('matrix_peak', 'bandwidth')
    }
    run.emit('ceilings', **ceilings)
    memory = {name: contender.ask('device_mib') for name, contender in contenders.items()}
    facts = own.ask('facts')
    print(facts['versions'])
    print_table(
      ['', 's/step (least-most)', 'images/s', 'TFLOP/s', 'of peak', 'over ours', 'device MiB'],
      [
        training_row(run, name, measured, memory, facts, ceilings['matrix_peak'])
        for name in measured
      ],
    )
    peers = [name for name in measured if name in PEERS_OF_TRAINING]
    if peers:
      strongest = min(peers, key=lambda name: statistics.median(measured[name]))
      over = ratio(measured[strongest], measured['bfloat16'])
      run.emit('strongest peer', name=strongest, over_ours=over)
      found = contenders[strongest].ask('facts')
      run.emit('peer', parameters=found['parameters'], flops=found['flops'])
      print(f'the strongest peer is {strongest}: {over:.3f} times the time of ours\n')
    if profiles:
      print_profile(run, own.ask('profile'), ceilings)


def training_row(run, name, measured, memory, facts, peak):
  """A row of the table, whose figures also go out as JSON."""
  secs = [value / run.steps for value in measured[name]]
  middle = statistics.median(secs)
  rate, over = facts['flops'] / middle, ratio(measured[name], measured['bfloat16'])
  run.emit(
    'training',
    name=name,
    secs=secs,
    images_per_sec=run.batch / middle,
    flops_per_sec=rate,
    of_peak=rate / peak,
    over_ours=over,
    device_mib=memory[name],
    parameters=facts['parameters'],
  )
  return [
    name,
    f'{middle:.4f} ({min(secs):.4f}-{max(secs):.4f})',
    f'{run.batch / middle:,.0f}',
    f'{rate / 1e12:.1f}',
    f'{rate / peak:.1%}',
    f'{over:.3f}',
    f'{memory[name]:,.0f}',
  ]


def print_profile(run, found, ceilings):
  """The table of a step by kind of operation, against the two ceilings."""
  kinds = {**found['kinds']}
  busy = sum(secs for secs, _ in kinds.values())
  kinds['gaps'] = (max(found['seconds'] - busy, 0.0), 0)
  run.emit('profile', **(found | {'kinds': kinds}))
  rows = []
  for kind, (secs, num_bytes) in kinds.items():
    flops = found['flops'].get(kind, 0)
    row = [kind, f'{1e3 * secs:.3f}', f'{secs / (busy + kinds["gaps"][0]):.1%}', '', '', '', '']
    if num_bytes and secs > 0:
      row[3] = f'{num_bytes / 1e6:,.1f}'
      row[4] = f'{num_bytes / secs / ceilings["bandwidth"]:.1%}'
    if flops and secs > 0:
      row[5] = f'{flops / 1e9:,.1f}'
      row[6] = f'{flops / secs / ceilings["matrix_peak"]:.1%}'
    rows.append(row)
  print(f'{1e3 * found["seconds"]:.3f} ms a step while it is profiled', end='')
  if found['program_mib'] is not None:
    print(f'; its program needs {found["program_mib"]:,.0f} MiB at once', end='')
  print('; bytes are those of operands and results\n')
  header = ['', 'ms/step', 'share', 'MB', 'of bandwidth', 'GFLOP', 'of matrix peak']
  print_table(header, rows)


def measure_sampling(run, has_bound):
  """A chain of each contender; with has_bound, a bound against the bare network."""
  batch = run.batch if run.args.tiny else 2 * run.batch
  options = {'batch': batch, 'timesteps': run.timesteps}
  with contextlib.ExitStack() as stack:
    contenders = run.start_each(stack, 'inference', options, 'chain', PEERS_OF_SAMPLING)
    functions = {
      name: functools.partial(contender.ask, 'chain') for name, contender in contenders.items()
    }
    measured = alternate(functions, run.rounds)
    own = contenders['bfloat16']
    count = batch * run.timesteps
    rows = []
    for name, secs in measured.items():
      rate, over = count / statistics.median(secs), ratio(secs, measured['bfloat16'])
      memory = contenders[name].ask('device_mib')
      facts = dict(evaluations_per_sec=rate, over_ours=over, device_mib=memory)
      run.emit('sampling', name=name, secs=secs, batch=batch, **facts)
      rows.append([name, f'{rate:,.0f}', f'{over:.3f}', f'{memory:,.0f}'])
    print(f'a chain of {run.timesteps} steps, batch {batch}\n')
    print_table(['', 'evaluations/s', 'over ours', 'device MiB'], rows)
    if has_bound and run.has_time('bound'):
      functions = {name: functools.partial(own.ask, name) for name in ('evaluations', 'bound')}
      print_against_network(run, 'bound', functions, count)


def measure_features(run):
  """Features of images against the bare network."""
  count = 16 if run.args.tiny else NUM_FEATURES
  options = {'config': run.config, 'batch': run.batch, 'count': count}
  environment = {'JAX_PLATFORMS': run.platform, 'JAX_COMPILATION_CACHE_DIR': run.cache()}
  with Contender('worker', 'features', options, **environment) as contender:
    functions = {name: functools.partial(contender.ask, name) for name in ('network', 'evaluation')}
    print_against_network(run, 'features', functions, count)


def print_against_network(run, what, functions, count):
  """A table of the bare network, which is the first of two functions, and what is built on it."""
  alternate(functions, 1)
  network, whole = alternate(functions, run.rounds).values()
  rates = [count / statistics.median(secs) for secs in (network, whole)]
  over = ratio(network, whole)
  run.emit(what, network_per_sec=rates[0], per_sec=rates[1], over_network=over)
  row = [what, *(f'{rate:,.0f}' for rate in rates), f'{over:.3f}']
  print_table(['', 'bare network, 1/s', 'with all around it, 1/s', 'ratio'], [row])


def measure_start(run):
  """A second start of the training step; main.py's first step, without and with its programs."""
  with contextlib.ExitStack() as stack:
    run.start(stack, 'training', 'bfloat16', {'steps': run.steps}, 'step')
  for which in ('cold', 'warm'):
    if run.has_time(f"main.py's {which} start", 2 * START_SECS if which == 'cold' else START_SECS):
      changes = {'model.dtype': 'bfloat16', **run.changes}
      options = dict(platform=run.platform, batch=run.batch, changes=changes)
      secs = start_up(ROOT, run.config, run.cache('main'), **options)
      run.emit('main.py', start=which, secs=secs)
      print(f'main.py, {which}: {secs:.1f} s from the command to its first step\n')


def measure(args):
  """All of it, or what args.only names."""
  run = Measuring(args)
  chosen = args.only.split(',')
  sections = {
    'training': lambda: measure_training(run, 'profile' in chosen),
    'sampling': lambda: measure_sampling(run, 'bound' in chosen),
    'features': lambda: measure_features(run),
    'start': lambda: measure_start(run),
  }
  if unknown := set(chosen) - {*sections, 'profile', 'bound'}:
    sys.exit(f'--only has {", ".join(sorted(unknown))}')
  print(machine())
  print(f'{run.config}, batch {run.batch}, on {run.platform}\n', flush=True)
  run.emit('run', config=run.config, batch=run.batch, platform=run.platform, machine=machine())
  has_failed = False
  with contextlib.closing(run):
    for name, section in sections.items():
      needed = {name, *{'training': ['profile'], 'sampling': ['bound']}.get(name, [])}
      if needed & set(chosen) and run.has_time(name):
        try:
          section()
        except ContenderError as error:  # the others are measured all the same
          print(f'{name}: {error}\n', flush=True)
          run.emit('failed', name=name)
          has_failed = True
  if has_failed:
    sys.exit(1)


def train(args):
  """Trains for a while; writes the curve, a grid and the moving average."""
  out, config = pathlib.Path(args.out), 'digits' if args.tiny else args.config
  out.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory() as workdir:
    settings = {'model.dtype': 'bfloat16', 'train.sample_every_steps': 0}
    if args.data:
      settings['data.dir'] = args.data
    if args.tiny:
      settings |= TINY_CHANGES | {'train.global_batch_size': TINY_BATCH, 'train.log_every_steps': 1}
    else:
      settings['train.num_steps'] = 10**8  # the time ends it
    command = [sys.executable, 'main.py', f'--config=configs/{config}.py', f'--workdir={workdir}']
    command += [f'--config.{name}={value}' for name, value in settings.items()]
    environment = os.environ | ({'JAX_PLATFORMS': 'cpu'} if args.tiny else {})
    curve, end = pathlib.Path(workdir) / 'metrics.jsonl', time.monotonic() + args.train
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
      # Not before there is a line of the curve: until it trains, a signal just ends it.
      while process.poll() is None and (time.monotonic() < end or not has_lines(curve)):
        time.sleep(0.2)
      process.send_signal(signal.SIGTERM)  # saves, and ends
    if process.returncode:
      sys.exit(f'main.py ended with code {process.returncode}')
    shutil.copy(curve, out / 'curve.jsonl')
    os.environ.update(environment)
    sys.path.insert(0, str(ROOT))
    write_results(workdir, out, 4 if args.tiny else GRID_SAMPLES)


def has_lines(file):
  """Whether a file is there, and not empty."""
  return file.exists() and file.stat().st_size > 0


def write_results(workdir, out, num_samples):
  """A grid of samples of a run, and its moving average in float16."""
  import numpy as np

  import ddpm_jax

  model = ddpm_jax.load(workdir)
  samples = model.sample(num_samples)
  model.picture(samples).save(out / 'grid.png')
  arrays = {}

  def collect(tree, place):
    for name, value in tree.items():
      if isinstance(value, dict):
        collect(value, f'{place}{name}/')
      else:
        arrays[f'{place}{name}'] = np.asarray(value, np.float16)

  collect(model.params, '')
  file = io.BytesIO()
  np.savez(file, **arrays)
  names = write_parts(out / 'average.npz', file.getvalue(), PART_BYTES)
  print(f'step {model.step}: {out}/curve.jsonl, grid.png, {", ".join(names)}')


def write_parts(file, content, most):
  """Writes FILE.00, FILE.01, ... of so many bytes at most, which one after the other are it."""
  names = []
  for number, first in enumerate(range(0, len(content), most)):
    part = file.with_name(f'{file.name}.{number:02d}')
    part.write_bytes(content[first : first + most])
    names.append(part.name)
  return names


def main():
  """Measures, or trains."""
  args = parse(
    __doc__,
    before='',
    config='cifar10',
    batch=128,
    only='training,profile,sampling,bound,features,start',
    minutes=9.0,
    out='',
    tiny=False,
    train=0,
    data='',
  )
  if args.tiny:  # which is compiled fast, and for one device
    os.environ['XLA_FLAGS'] = TINY_XLA_FLAGS
  if args.train and not args.out:
    sys.exit('--train needs --out=DIR, where it writes')
  train(args) if args.train else measure(args)


if __name__ == '__main__':
  main()
