"""Faults put in on purpose: kills, damaged checkpoints, and a long run whose memory is watched.

  python -m tests.faults kills|damage|growth [--count=N] [--seed=N] [--dir=DIR]

prints the figures of docs/reliability.md; test_faults.py judges the same. DIR is made, and kept.
"""

import argparse
import collections
import dataclasses
import logging
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from ddpm_jax.config import build
from ddpm_jax.storage import checkpoints
from ddpm_jax.storage.checkpoints import Checkpointer
from ddpm_jax.storage.manifest import MANIFEST
from ddpm_jax.storage.workdir import config_dict
from ddpm_jax.training.state import init_train_state
from tests.modes.test_main import ROOT, TINY
from tests.tiny import tiny_config

START_UP_SHARE = 0.25  # of the kills: before the first step, or the first image, of a process
SAMPLE_SHARE = 0.25  # of the kills: in --mode=sample, after the training
STEPS_PER_KILL = 30
IMAGES_PER_KILL = 40
PARTS = ('arrays', 'metadata', MANIFEST)  # of a checkpoint
BEGUN = {'train': r'^step \d+/', 'sample': r'^\d+ samples of step'}  # stdout, past the start-up


def start(command, out, err):
  """Starts main.py on one device; its stdout and stderr go to the files given."""
  env = os.environ | {
    'XLA_FLAGS': '--xla_force_host_platform_device_count=1',
    'PYTHONUNBUFFERED': '1',
  }
  command = [sys.executable, str(ROOT / 'main.py'), *command]
  with open(out, 'w') as stdout, open(err, 'w') as stderr:
    return subprocess.Popen(command, stdout=stdout, stderr=stderr, cwd='/', env=env)


@dataclasses.dataclass
class Death:
  """One kill: of what, by what, in the midst of what, and how the process took it."""

  mode: str
  number: signal.Signals
  doing: str
  code: int
  out: str
  err: str


class Killer:
  """Runs the same commands in two workdirs, `whole` undisturbed and `killed` not."""

  def __init__(self, folder, num_kills, seed):
    """folder: pathlib.Path for the workdirs; num_kills: in all, over training and sampling."""
    self.whole, self.killed = folder / 'whole', folder / 'killed'
    self._files = folder / 'out.txt', folder / 'err.txt'
    self._rng = np.random.default_rng(seed)
    self._num_kills = {'sample': round(SAMPLE_SHARE * num_kills)}
    self._num_kills['train'] = num_kills - self._num_kills['sample']
    self.num_steps = STEPS_PER_KILL * self._num_kills['train']
    self.num_images = IMAGES_PER_KILL * self._num_kills['sample']
    numbers = [signal.SIGKILL, signal.SIGTERM] * num_kills
    self._numbers = list(self._rng.permutation(numbers[:num_kills]))
    self.deaths = []

  def run(self):
    """Trains, then samples; in both workdirs."""
    for mode in ('train', 'sample'):
      work_secs = self._run_whole(self._command(mode, self.whole), mode)
      # So that even the longest lives together do not reach the end.
      life_secs = 0.8 * work_secs / self._num_kills[mode]
      start_up_secs = 1.0
      for _ in range(self._num_kills[mode]):
        start_up_secs = self._kill_once(mode, start_up_secs, life_secs)
      self._run_whole(self._command(mode, self.killed), mode)

  def _command(self, mode, workdir):
    return (
      f'--workdir={workdir}',
      f'--mode={mode}',
      *TINY,
      f'--config.train.num_steps={self.num_steps}',
      '--config.train.checkpoint_every_steps=20',
      '--config.train.sample_every_steps=15',
      '--config.train.num_samples=16',
      f'--config.sample.num_samples={self.num_images}',
    )

  def _run_whole(self, command, mode):
    """Runs to the end; about how many seconds it worked, without start-up and compilation."""
    out, err = self._files
    process = start(command, *self._files)
    times = []  # of the lines that BEGUN matches
    while process.poll() is None:
      seen = len(re.findall(BEGUN[mode], out.read_text(), re.MULTILINE))
      times += [time.monotonic()] * (seen - len(times))
      time.sleep(0.01)
    end = time.monotonic()
    assert (process.returncode, err.read_text()) == (0, '')
    late = times[len(times) // 2 :]
    return (end - late[0]) * len(times) / len(late)

  def _kill_once(self, mode, start_up_secs, life_secs):
    """Adds one death; returns how long this start-up took, or if that is not known, the other."""
    out, err = self._files
    number = signal.Signals(self._numbers[len(self.deaths)])
    in_start_up = self._rng.random() < START_UP_SHARE
    moment = self._rng.random()
    since = time.monotonic()
    process = start(self._command(mode, self.killed), *self._files)
    if in_start_up:
      time.sleep(moment * start_up_secs)
    else:
      while not self._has_begun(mode) and process.poll() is None:
        time.sleep(0.005)
      start_up_secs = time.monotonic() - since
      time.sleep(moment * life_secs)
    process.send_signal(signal.SIGSTOP)  # nothing moves while one looks
    time.sleep(0.02)
    doing = self._doing(mode)
    assert process.poll() is None, f'ended before it was killed: {out.read_text()[-500:]}'
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    code = process.wait(timeout=60)
    self.deaths.append(Death(mode, number, doing, code, out.read_text(), err.read_text()))
    return start_up_secs

  def _has_begun(self, mode):
    return re.search(BEGUN[mode], self._files[0].read_text(), re.MULTILINE) is not None

  def _doing(self, mode):
    """What the stopped process is doing, by its files; those of the life before do not count."""
    if not self._has_begun(mode):
      return 'starting'
    if mode == 'sample':
      return 'sampling'
    step = int(re.findall(r'^step (\d+)/', self._files[0].read_text(), re.MULTILINE)[-1])
    samples = self.killed / 'samples' / f'step_{step:08d}'
    draws = samples.exists() and not list(samples.glob('*/grid.png'))
    saves = [p for p in (self.killed / 'checkpoints').iterdir() if not p.name.isdigit()]
    return ' and '.join(['saving'] * bool(saves) + ['sampling'] * draws) or 'training'


def table(deaths):
  """How many processes died how, and in the midst of what."""
  classes = collections.Counter((d.mode, d.doing, d.number.name, d.code) for d in deaths)
  return '\n'.join(
    f'{mode:7s} {doing:20s} {name} exit {code:3d}: {count}'
    for (mode, doing, name, code), count in sorted(classes.items())
  )


def contents(workdir):
  """What a run leaves but for clocks and Orbax's names: {path: bytes, or None if they may differ}.

  Steps are left out: SIGTERM saves where it comes, so a killed run may keep others.
  """
  found = {}
  for path in sorted(workdir.rglob('*')):
    name = path.relative_to(workdir)
    if name.parts[0] in ('tensorboard', 'metrics.dropped.jsonl'):
      continue
    if name.parts[0] == 'checkpoints' and len(name.parts) > 1 and name.parts[1].isdigit():
      continue
    varies = (
      path.is_dir()
      or name.suffix == '.lock'
      or name.name in ('metrics.jsonl', 'seconds.txt', 'run.json')
    )
    found[name.as_posix()] = None if varies else path.read_bytes()
  return found


def perturbed_states(config, steps):
  """States of the config's model, one for each step, that have no value in common."""
  state = jax.jit(lambda: init_train_state(build.init_params(config), build.optimizer(config)))()
  for step in steps:
    other = jax.tree.map(lambda x: x + step, state)  # noqa: B023
    yield step, other.replace(step=np.int32(step))


class Vandal:
  """Damages one place of the newest of three checkpoints, sees it restored, and mends it."""

  STEPS = (10, 20, 30)

  def __init__(self, directory, seed):
    """Saves the three. directory: pathlib.Path."""
    self._config = tiny_config()
    self._directory = directory
    self._newest = directory / str(self.STEPS[-1])
    self._rng = np.random.default_rng(seed)
    with Checkpointer(directory, config_dict(self._config)) as checkpointer:
      for step, state in perturbed_states(self._config, self.STEPS):
        checkpointer.save(step, state)
        if step == self.STEPS[-2]:
          self.expected = jax.device_get(state)
    self._like = jax.eval_shape(lambda: state)
    self.files = {p: p.stat().st_size for p in sorted(self._newest.rglob('*')) if p.is_file()}

  def damage(self):
    """Damages a place; returns (file, kind, content before).

    Half of the places are uniform over the bytes, so mostly in arrays; the others spread evenly
    over the parts.
    """
    rng, files = self._rng, list(self.files)
    sizes = np.array(list(self.files.values()))
    if rng.random() < 0.5:
      file = files[rng.choice(len(files), p=sizes / sizes.sum())]
    else:
      where = PARTS[rng.integers(len(PARTS))]
      of_it = [file for file in files if part(file) == where]
      file = of_it[rng.integers(len(of_it))]
    good = file.read_bytes()
    kind = rng.choice(['flipped', 'cut', 'longer'], p=[0.6, 0.3, 0.1]) if good else 'longer'
    bad = bytearray(good)
    if kind == 'flipped':
      bad[rng.integers(len(good))] ^= 1 << rng.integers(8)
    elif kind == 'cut':
      del bad[rng.integers(len(good)) :]
    else:
      bad += rng.bytes(rng.integers(1, 65))
    file.write_bytes(bad)
    return file, str(kind), good

  def restore(self):
    """What a run that begins now would go on from."""
    with Checkpointer(self._directory, config_dict(self._config)) as checkpointer:
      return jax.device_get(checkpointer.restore_latest(self._like))

  def mend(self, file, good):
    """Puts the newest step back in its place, as it was."""
    self._newest.with_name(f'{self._newest.name}.damaged').rename(self._newest)
    file.write_bytes(good)

  def names(self):
    """Names in the directory."""
    return sorted(p.name for p in self._directory.iterdir())


def part(file):
  """Which part of a checkpoint a file is."""
  if file.name == MANIFEST:
    return MANIFEST
  return 'arrays' if file.parent.name == 'd' else 'metadata'


def vandalise(directory, count, seed, judge):
  """Damages `count` places, one at a time.

  Args:
    directory: pathlib.Path, new.
    count: number of places.
    seed: of the places.
    judge: called with (Vandal, file, kind) while the place is damaged.

  Returns:
    Counter of (kind, part).
  """
  vandal = Vandal(directory, seed)
  done = collections.Counter()
  for _ in range(count):
    file, kind, good = vandal.damage()
    judge(vandal, file, kind)
    vandal.mend(file, good)
    done[kind, part(file)] += 1
  return done


@dataclasses.dataclass
class Usage:
  """What a process holds at a step.

  Its memory, kB, is what it has allocated, in RAM or swapped out. RSS would also count pages of
  files, which the kernel drops and reads again as it likes.
  """

  step: int
  memory: int
  files: int
  threads: int


def watch(folder, num_steps):
  """Trains the tiniest model; its Usage about every half second, from its first step on."""
  command = (
    f'--workdir={folder / "run"}', *TINY,
    '--config.model.num_res_blocks=1', '--config.diffusion.num_timesteps=4',
    '--config.train.global_batch_size=4', '--config.train.log_every_steps=10',
    '--config.train.checkpoint_every_steps=500', '--config.train.keep_last_checkpoints=2',
    '--config.train.sample_every_steps=500', '--config.train.num_samples=4',
    f'--config.train.num_steps={num_steps}',
  )  # fmt: skip
  out, err = folder / 'out.txt', folder / 'err.txt'
  process = start(command, out, err)
  proc = pathlib.Path('/proc') / str(process.pid)
  usages = []
  while process.poll() is None:
    time.sleep(0.5)
    steps = re.findall(r'^step (\d+)/', out.read_text(), re.MULTILINE)
    try:
      status = (proc / 'status').read_text()
      files = len(list((proc / 'fd').iterdir()))
    except OSError:  # it has just ended
      continue
    if steps and 'RssAnon' in status:
      in_ram, swapped, threads = (
        int(re.search(rf'{name}:\s+(\d+)', status)[1]) for name in ('RssAnon', 'VmSwap', 'Threads')
      )
      usages.append(Usage(int(steps[-1]), in_ram + swapped, files, threads))
  assert (process.returncode, err.read_text()) == (0, '')
  return usages


def median_between(usages, first, last, field):
  """The median of a field over the steps from first to last."""
  return statistics.median(getattr(u, field) for u in usages if first <= u.step <= last)


def usage_table(usages, num_steps):
  """The medians of ten stretches of a run."""
  lines = ['steps       memory MiB  open files  threads']
  for first in range(0, num_steps, num_steps // 10):
    last = first + num_steps // 10
    memory, files, threads = (
      median_between(usages, first, last, field) for field in ('memory', 'files', 'threads')
    )
    lines.append(f'{first:5d}-{last:<5d} {memory / 1024:10.1f} {files:11.0f} {threads:8.0f}')
  return '\n'.join(lines)


def _print_kills(folder, count, seed):
  killer = Killer(folder, count, seed)
  killer.run()
  print(f'{killer.num_steps} steps, {killer.num_images} images, {len(killer.deaths)} kills')
  print(table(killer.deaths))
  for death in killer.deaths:
    if death.err:
      print(f'{death.mode}, {death.doing}, {death.number.name}, exit {death.code}: {death.err}')


def _print_damage(folder, count, seed):
  caught = []
  logging.getLogger(checkpoints.logger.name).setLevel(logging.ERROR)

  def judge(vandal, file, kind):
    step = int(vandal.restore().step)
    caught.append(step == vandal.STEPS[-2])
    if not caught[-1]:
      sys.exit(f'{kind} {file}: step {step} was restored')

  for (kind, where), number in sorted(
    vandalise(folder / 'checkpoints', count, seed, judge).items()
  ):
    print(f'{kind:8s} {where:14s}: {number}')
  print(f'{sum(caught)} of {len(caught)} noticed')


def _print_growth(folder, count, _):
  print(usage_table(watch(folder, count), count))


def _main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('what', choices=['kills', 'damage', 'growth'])
  parser.add_argument('--count', type=int, help='kills, places or steps')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--dir', type=pathlib.Path, help='new folder; by default a temporary one')
  args = parser.parse_args()
  report, count = {
    'kills': (_print_kills, 100),
    'damage': (_print_damage, 400),
    'growth': (_print_growth, 10_000),
  }[args.what]
  folder = args.dir or pathlib.Path(tempfile.mkdtemp(prefix='ddpm_jax_faults_'))
  folder.mkdir(parents=True, exist_ok=True)
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(folder / 'programs'))
  since = time.monotonic()
  report(folder.absolute(), args.count or count, args.seed)
  print(f'{time.monotonic() - since:.0f} s')
  if not args.dir:
    shutil.rmtree(folder)


if __name__ == '__main__':
  _main()
