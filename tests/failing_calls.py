"""Single calls of the system that fail, at any place of what a run does to files.

  python -m tests.failing_calls [--count=N] [--seed=N]

prints the figures of docs/reliability.md. failing_calls.c lets the calls fail, in the program and
all of its libraries, so a C compiler is needed.
"""

import argparse
import collections
import contextlib
import dataclasses
import errno
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

import absl.logging
import numpy as np

from ddpm_jax import processes
from ddpm_jax.devices import BatchSizes
from ddpm_jax.storage import shards
from ddpm_jax.storage.checkpoints import Checkpointer
from ddpm_jax.storage.logs import RunLog
from ddpm_jax.storage.workdir import locked, open_workdir, steps_on_disk, store_config
from tests.storage.test_checkpoints import CONFIG, bits, make_state
from tests.tiny import tiny_config

SOURCE = pathlib.Path(__file__).with_suffix('.c')
STEPS = (10, 20)
NUM_ROWS = 8
OF_A_DISK = ('ENOSPC', 'EDQUOT', 'EIO')
OF_A_PATH = ('EROFS', 'EACCES', 'ESTALE', 'EIO')
ERRORS = {
  'write': OF_A_DISK,
  'fsync': OF_A_DISK,
  'read': ('EIO', 'ESTALE'),
  'open': (*OF_A_PATH, 'ENOSPC', 'EDQUOT'),
  'rename': (*OF_A_PATH, 'ENOSPC', 'EDQUOT'),
  'unlink': OF_A_PATH,
  'mkdir': (*OF_A_PATH, 'ENOSPC', 'EDQUOT'),
}


def compile_library(folder):
  """Path of the library to preload; None without a compiler."""
  compiler = shutil.which('cc')
  if compiler is None or not sys.platform.startswith('linux'):
    return None
  library = folder / 'failing_calls.so'
  command = [compiler, '-shared', '-fPIC', '-o', str(library), str(SOURCE), '-ldl']
  subprocess.run(command, check=True)
  return library


def work(folder):
  """What a run does to files, from where it stopped; says each step once it is saved."""
  path = open_workdir(folder, saves_steps=True)
  with contextlib.ExitStack() as stack:
    stack.enter_context(processes.silent())
    stack.enter_context(locked(path, 'train'))
    store_config(path, tiny_config())
    checkpointer = stack.enter_context(
      Checkpointer(path / 'checkpoints', CONFIG, keep_last=1, record=path / 'run.json')
    )
    restored = checkpointer.restore_latest(make_state(0))
    start = 0 if restored is None else int(restored.step)
    log = stack.enter_context(
      contextlib.closing(RunLog(path, start_step=start, num_steps=STEPS[-1], images_per_step=1))
    )
    for step in STEPS:
      if step > start:
        metrics = {'loss': 1 / step, 'grad_norm': 1.0, 'learning_rate': 1.0}
        log.add(step, metrics, write=True)
        log.check()
        checkpointer.save(step, make_state(step))
        checkpointer.wait()
        print(step, flush=True)
  sizes = BatchSizes(4, 4, 1)
  shards.collect(path / 'rows', 'rows', {}, NUM_ROWS, lambda i, _: {'squares': i**2}, sizes=sizes)


def work_to_the_end(folder):
  """As work(); and all is there afterwards."""
  work(folder)
  with Checkpointer(folder / 'checkpoints', CONFIG, read_only=True) as reader:
    steps = reader.all_steps()
    state = reader.restore_latest(make_state(0))
  with np.load(folder / 'rows/rows.npz') as arrays:
    rows = arrays['squares'].tolist()
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  assert steps == [STEPS[-1]]
  assert bits(state) == bits(make_state(STEPS[-1]))
  assert rows == [i**2 for i in range(NUM_ROWS)]
  assert len(lines) == len(STEPS)


def run(function, folder, **environ):
  """Runs it in a process of its own: (exit code, stdout, stderr)."""
  files = [folder.with_name(f'{folder.name}.{name}') for name in ('out', 'err')]
  child = os.fork()
  if child == 0:
    code = processes.UNUSABLE
    try:
      for descriptor, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
      os.environ.update(environ)
      absl.logging.get_absl_logger().setLevel('CRITICAL')  # as __main__ does
      function(folder)
      code = 0
    except BaseException as error:
      code = processes.explain(error)
    finally:
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(code)
  status = os.waitpid(child, 0)[1]
  return os.waitstatus_to_exitcode(status), *(file.read_text() for file in files)


@dataclasses.dataclass
class Failure:
  """A call that failed, and what became of the run.

  Attributes:
    call, error: such as 'write' and 'ENOSPC'.
    where: the path of the call.
    code, err: of the run in which it failed.
    lost: a step that this run said it had saved, if neither it nor a later one is there.
    ends_well: whether the same command then ended as an undisturbed one.
  """

  call: str
  error: str
  where: str
  code: int
  err: str
  lost: int | None
  ends_well: bool

  @property
  def is_passed_over(self):
    """Whether the run did without the call."""
    return self.code == 0

  @property
  def is_proper(self):
    """Whether nothing is lost, and the end is one line and its code."""
    # Threads of Orbax may have their say before.
    last_line = self.err.splitlines()[-1:]
    is_told = self.code == processes.REFUSED and last_line[0].startswith('error: ')
    return self.lost is None and self.ends_well and (is_told or self.is_passed_over)


def fail_calls(folder, count, seed):
  """Yields `count` Failures; this process has the library preloaded."""
  rng = random.Random(seed)
  log = folder / 'calls.txt'

  def begin():
    workdir = folder / 'failing'
    shutil.rmtree(workdir, ignore_errors=True)
    log.unlink(missing_ok=True)
    return workdir, {'FAIL_BELOW': str(workdir), 'FAIL_LOG': str(log)}

  workdir, environ = begin()
  code, _, err = run(work_to_the_end, workdir, **environ)
  assert (code, err) == (0, ''), err
  lines = log.read_text(errors='replace').splitlines()
  numbers = collections.Counter(line.split()[0] for line in lines)
  names = rng.sample(list(ERRORS), len(ERRORS))
  for i in range(count):
    call = names[i % len(names)]
    error = rng.choice(ERRORS[call])
    at = rng.randint(1, numbers[call])
    workdir, environ = begin()
    number = str(getattr(errno, error))
    code, out, err = run(
      work, workdir, FAIL_CALL=call, FAIL_AT=str(at), FAIL_ERRNO=number, **environ
    )
    lines = log.read_text(errors='replace').splitlines()
    where = lines[at - 1].replace(str(workdir), '') if at <= len(lines) else 'not reached'
    said, there = map(int, out.split()), steps_on_disk(workdir / 'checkpoints')
    lost = max((step for step in said if step > max(there, default=0)), default=None)
    ends_well = run(work_to_the_end, workdir)[0] == 0
    yield Failure(call, error, where, code, err, lost, ends_well)


def _main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--count', type=int, default=300)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--dir', type=pathlib.Path, help='for a temporary folder')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory(dir=args.dir) as temporary:
    folder = pathlib.Path(temporary)
    if 'FAIL_LIBRARY' not in os.environ:
      library = compile_library(folder)
      if library is None:
        sys.exit('there is no C compiler, or this is not Linux')
      preload = {'LD_PRELOAD': str(library), 'FAIL_LIBRARY': str(library), 'JAX_PLATFORMS': 'cpu'}
      command = [sys.executable, '-m', 'tests.failing_calls', *sys.argv[1:]]
      sys.exit(subprocess.run(command, env=os.environ | preload).returncode)
    tally = collections.Counter()
    for failure in fail_calls(folder, args.count, args.seed):
      kind = 'passed over' if failure.is_passed_over else f'exit {failure.code}'
      if not failure.is_proper:
        kind = 'WRONG'
        print(failure)
      tally[failure.call, kind] += 1
  for (call, kind), number in sorted(tally.items()):
    print(f'{call:7s} {kind}: {number}')
  sys.exit(any(kind == 'WRONG' for _, kind in tally))


if __name__ == '__main__':
  _main()
