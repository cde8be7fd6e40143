"""How processes find each other and end; with real ones in test_many_processes.py."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import jax
import pytest
from jax.experimental import multihost_utils

from ddpm_jax import processes
from ddpm_jax.errors import NotFiniteError, UserError, WriteError
from ddpm_jax.processes import LOST, LOST_CODE, NOT_JOINED
from tests.modes.test_main import ROOT
from tests.test_many_processes import free_port

MESH = jax.sharding.Mesh(jax.devices(), ('x',))
JAX_ERROR = jax.errors.JaxRuntimeError

# Runs bodies of Python, each in a process of its own that has a watch; prints for each, as JSON,
# how it ended and what was on stderr once both were gone. One program starts quickly.
RUN_EACH = """
import json, os, signal, subprocess, sys
from ddpm_jax import processes

results, popen, watches = {}, subprocess.Popen, []
subprocess.Popen = lambda *args, **kwargs: watches.append(popen(*args, **kwargs)) or watches[-1]
processes.ABORT_SECS = processes.PRIMARY_STAYS_SECS = 0
processes.jax.distributed.is_initialized = lambda: True
for name, body in json.loads(sys.argv[1]).items():
  read, write = os.pipe()
  child = os.fork()
  if not child:
    os.dup2(write, 2)
    os.close(read)
    os.close(write)
    tell_watch = processes._start_watch()
    exec(body)
    sys.exit()
  os.close(write)
  with open(read) as err:
    said = err.read()
  results[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said
print(json.dumps(results))
"""
JOINED = "tell_watch(b'joined'); "
KILLED = 'os.kill(os.getpid(), signal.SIGKILL)'
MESSAGE = "os.write(2, b'many lines\\nof JAX\\n'); "
ENDS = {  # body: (exit code, stderr)
  KILLED: (-signal.SIGKILL, f'{NOT_JOINED}\n'),
  'os.abort()': (-signal.SIGABRT, f'{NOT_JOINED}\n'),
  f'{JOINED}{KILLED}': (-signal.SIGKILL, f'{LOST}\n'),
  f'{JOINED}{MESSAGE}os.abort()': (-signal.SIGABRT, f'many lines\nof JAX\n{LOST}\n'),
  f'{JOINED}os.kill(os.getpid(), signal.SIGTERM)': (-signal.SIGTERM, f'{LOST}\n'),
  f'{JOINED}os._exit(7)': (7, f'{LOST}\n'),
  'pass': (0, ''),
  f'{JOINED}pass': (0, ''),
  f'{JOINED}sys.exit(3)': (3, ''),
  f'{JOINED}processes.leave(3)': (3, ''),
  f'{JOINED}processes.is_primary = lambda: False; processes.leave(0)': (0, ''),
  'processes.leave(1)': (1, ''),
  # It is said once, whoever says it.
  f"{JOINED}os.write(2, b'{LOST}\\n'); processes.leave({LOST_CODE})": (LOST_CODE, f'{LOST}\n'),
  # A watch that was killed is no reason to fail.
  f'{JOINED}watches[0].kill(); watches[0].wait(); tell_watch(b"more"); processes.leave(3)': (3, ''),
}


def raised(error):
  """The error with the traceback of this file."""
  with pytest.raises(type(error)) as info:
    raise error
  return info.value


def run_script(script, *args):
  """Runs Python's text in a process of its own."""
  command, env = [sys.executable, '-c', script, *args], os.environ | {'PYTHONPATH': str(ROOT)}
  return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope='module')
def ends():
  """{body: [exit code, stderr]} of ENDS."""
  process = run_script(RUN_EACH, json.dumps(dict(zip(ENDS, ENDS, strict=True))))
  process.check_returncode()
  return json.loads(process.stdout)


@pytest.mark.parametrize('body', ENDS)
def test_a_process_without_a_farewell_is_told_of_in_the_last_line(ends, body):
  assert tuple(ends[body]) == ENDS[body]


def ignored_signals(pid):
  """The signals that a process ignores."""
  with open(f'/proc/{pid}/status') as file:
    (mask,) = [int(line.split()[1], 16) for line in file if line.startswith('SigIgn')]
  return {number for number in signal.Signals if mask >> (number - 1) & 1}


def test_what_ends_all_processes_of_a_job_leaves_the_watch():
  command = [sys.executable, '-I', '-c', processes._WATCH, NOT_JOINED, LOST]
  pipe = subprocess.PIPE
  with subprocess.Popen(command, stdin=pipe, stderr=pipe, text=True) as watch:
    numbers = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    while not ignored_signals(watch.pid) >= numbers:
      assert watch.poll() is None
      time.sleep(0.01)
    for number in numbers:
      watch.send_signal(number)
    assert watch.communicate('joined', timeout=60) == (None, f'{LOST}\n')
  assert watch.returncode == 0


@pytest.mark.parametrize(
  ('environ', 'several'),
  [
    ({}, False),
    ({'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '4'}, False),  # within salloc, but not by srun
    ({'SLURM_STEP_NUM_TASKS': '1'}, False),
    ({'SLURM_STEP_NUM_TASKS': '4'}, True),
    ({'SLURM_STEP_NUM_TASKS': ''}, False),
    ({'OMPI_COMM_WORLD_SIZE': '2'}, True),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, False),
    ({'TPU_WORKER_HOSTNAMES': 't1,t2'}, True),
  ],
)
def test_clusters_are_seen_in_the_environment(monkeypatch, environ, several):
  names = 'SLURM_JOB_ID SLURM_NTASKS SLURM_STEP_NUM_TASKS OMPI_COMM_WORLD_SIZE TPU_WORKER_HOSTNAMES'
  for name in names.split():
    monkeypatch.delenv(name, raising=False)
  for name, value in environ.items():
    monkeypatch.setenv(name, value)
  joined = []
  monkeypatch.setattr(processes, '_start_watch', lambda: lambda words: None)
  monkeypatch.setattr(processes, '_has_tpu', lambda: False)
  monkeypatch.setattr(processes, '_make_reachable', lambda address: None)
  monkeypatch.setattr('jax.distributed.initialize', lambda *args, **kwargs: joined.append(args))
  monkeypatch.setattr(processes, 'count', lambda: 4)
  assert processes.join() == several
  assert joined == [(None, None, None)] * several


@pytest.mark.parametrize('saves', [False, True])
def test_sigterm_ends_a_process_that_never_asks_for_it(saves):
  script = (
    'import os, signal\n'
    'from ddpm_jax import processes\n'
    f'processes.join("localhost:{free_port()}", 1, 0, saves_at_sigterm={saves})\n'
    'signal.raise_signal(signal.SIGTERM)\n'
    'os._exit(9)\n'
  )
  process = run_script(script)
  assert (process.returncode, process.stderr) == (-signal.SIGTERM, '')


@pytest.fixture
def join(monkeypatch):
  """Returns number of processes, ... -> (what join returned, the calls it made, in their order)."""
  calls = []

  def note(name, result=None):
    return lambda *args, **kwargs: calls.append((name, *args)) or result

  def join(count, **kwargs):
    monkeypatch.setattr(processes, 'count', lambda: count)
    calls.clear()
    return processes.join('host:1', count, count - 1, **kwargs), [*calls]

  monkeypatch.setattr(processes, '_check', note('check'))
  monkeypatch.setattr(processes, '_make_reachable', note('make reachable'))
  monkeypatch.setattr(processes, '_start_watch', note('watch', note('tell')))
  monkeypatch.setattr('jax.distributed.initialize', note('initialize'))
  monkeypatch.setattr('jax.config.update', note('update'))
  monkeypatch.setattr(processes.signal, 'signal', note('signal'))
  return join


@pytest.mark.parametrize('saves', [False, True])
def test_sigterm_is_left_to_jax_where_several_processes_ask_it(join, saves):
  several, calls = join(2, saves_at_sigterm=saves)
  assert several
  assert calls == [
    ('check', 'host:1', 2, 1),
    ('make reachable', 'host:1'),
    ('watch',),  # before JAX may end the process
    ('update', 'jax_enable_preemption_service', saves),
    ('initialize', 'host:1', 2, 1),
    ('tell', b'joined'),
  ]


def test_one_process_has_nobody_to_lose(join):
  several, calls = join(1)
  assert not several
  assert calls[-3:] == [
    ('tell', b'joined'),
    ('tell', b'farewell'),
    ('signal', signal.SIGTERM, signal.SIG_DFL),
  ]


HERE, LOOPBACK = '10.0.0.2', '127.0.0.1'
DEBIAN, UNKNOWN = '127.0.1.1', None


@pytest.mark.parametrize(
  ('named', 'coordinator', 'ways', 'own', 'told'),
  [  # of a host: what its name stands for, the coordinator, its addresses on the way to others
    (HERE, '10.0.0.1:1', {}, [], None),  # as it should be
    (DEBIAN, '10.0.0.1:1', {'10.0.0.1': HERE}, [], HERE),
    (UNKNOWN, '10.0.0.1:1', {'10.0.0.1': HERE}, [], HERE),
    (UNKNOWN, '[fe80::1]:1', {'fe80::1': 'fe80::2'}, [], 'fe80::2'),
    (DEBIAN, 'localhost:1', {'localhost': LOOPBACK}, [], None),
    (UNKNOWN, 'localhost:1', {'localhost': LOOPBACK}, [], LOOPBACK),
    (UNKNOWN, '127.0.0.1:1', {'127.0.0.1': LOOPBACK}, [], LOOPBACK),
    # The coordinator's own host, which is named by its name: the default route, or all there is.
    (DEBIAN, 'me:1', {'me': DEBIAN, '192.0.2.1': HERE}, [], HERE),
    (DEBIAN, 'me:1', {'me': DEBIAN}, [HERE], HERE),
    (DEBIAN, 'me:1', {'me': DEBIAN}, [HERE, '10.9.0.2'], 'me, stands for 127.0.1.1 in its /etc'),
    (UNKNOWN, 'me:1', {}, [], 'me, has no address in its /etc/hosts, .* addresses (none) none'),
    # Of a cluster, nothing is known of the coordinator.
    (DEBIAN, None, {'192.0.2.1': HERE}, [], HERE),
    (DEBIAN, None, {}, [HERE, '10.9.0.2'], None),
  ],
)
def test_others_are_told_of_an_address_that_leads_here(
  named, coordinator, ways, own, told, monkeypatch
):
  found = []
  monkeypatch.setattr(processes.socket, 'gethostname', lambda: 'me')
  monkeypatch.setattr(processes, '_address_of', lambda name: named)
  monkeypatch.setattr(processes, '_address_towards', lambda host, port: ways.get(host))
  monkeypatch.setattr(processes, '_addresses', lambda: own)
  monkeypatch.setattr(processes, '_listen_at', found.append)
  if told and told.startswith('me, '):
    message = told.replace('(', r'\(').replace(')', r'\)')
    with pytest.raises(UserError, match=f"^this host's name, {message}"):
      processes._make_reachable(coordinator)
    assert found == []
  else:
    processes._make_reachable(coordinator)
    assert found == [told] * (told is not None)


def test_addresses_of_this_host():
  assert processes._address_of('localhost') in (LOOPBACK, '::1')
  assert processes._address_of('192.0.2.1') is None  # of another host
  assert processes._address_of('no.such.host.invalid') is None
  assert processes._address_towards(LOOPBACK, 9) == LOOPBACK
  assert processes._address_towards('no.such.host.invalid', 9) is None


@pytest.mark.parametrize('number', [signal.SIGINT, None])
def test_waiting_for_others_is_said_and_ends_with_ctrl_c(number):
  script = (
    'import os, signal, threading\n'
    'from ddpm_jax import processes\n'
    'processes.PATIENCE_SECS, processes.JOIN_SECS = 0.5, 3\n'
    'def told(*args, **options):\n'
    '  print(*args, **options)\n'
    f'  if {number is not None}:\n'
    '    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()\n'
    'processes.print = told\n'
    'try:\n'
    f'  processes.join("no.such.host.invalid:{free_port()}", 2, 1)\n'
    'except KeyboardInterrupt as error:\n'
    '  processes.leave(processes.explain(error))\n'
  )
  process = run_script(script)
  said = re.escape('s for the other processes at no.such.host.invalid:')
  assert re.match(rf'waits up to 3 {said}\d+, but this host knows no addr', process.stdout)
  if number is None:
    assert process.stderr.splitlines()[-1] == NOT_JOINED
  else:
    assert process.stderr == 'interrupted; the same command goes on where it stopped\n'
    assert process.returncode == processes.INTERRUPTED


@pytest.mark.parametrize(
  ('environ', 'ids'),
  [
    ({}, None),
    ({'SLURM_STEP_TASKS_PER_NODE': '8(x2)', 'SLURM_GPUS_ON_NODE': '8'}, None),
    ({'SLURM_STEP_TASKS_PER_NODE': '1(x2)', 'SLURM_GPUS_ON_NODE': '4'}, [0, 1, 2, 3]),
    ({'SLURM_STEP_TASKS_PER_NODE': '1', 'SLURM_GPUS_ON_NODE': '2'}, [0, 1]),
    ({'SLURM_STEP_TASKS_PER_NODE': '1(x2)'}, None),
  ],
)
def test_one_process_a_node_takes_all_its_gpus(environ, ids):
  assert processes.local_device_ids(environ) == ids


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (('host:1', None, None), '--num_processes and --process_id missing: processes that find each'),
    ((None, None, 1), '--coordinator_address and --num_processes missing'),
    (('host', 2, 0), '--coordinator_address=host must be HOST:PORT, such as'),
    (('host:x', 2, 0), '--coordinator_address=host:x must be HOST:PORT'),
    (('host:70000', 2, 0), '--coordinator_address=host:70000 must be HOST:PORT'),
    (('host:²', 2, 0), '--coordinator_address=host:² must be HOST:PORT'),
    (('host: 1', 2, 0), '--coordinator_address=host: 1 must be HOST:PORT'),
    (('http://host:1', 2, 0), '--coordinator_address=http://host:1 must be HOST:PORT'),
    (('::1:1234', 2, 0), '--coordinator_address=::1:1234 must be HOST:PORT'),
    ((':1234', 2, 0), '--coordinator_address=:1234 must be HOST:PORT'),
    (('host:1', 2, 2), '--process_id=2 of --num_processes=2: must be one of 0, ..., 1, another'),
    (('host:1', 2, -1), '--process_id=-1 of --num_processes=2'),
    (('host:1', 0, 0), '--process_id=0 of --num_processes=0: --num_processes must be at least 1'),
  ],
)
def test_flags_that_do_not_fit_are_refused(args, message):
  with pytest.raises(UserError, match='^' + message.replace('.', r'\.')) as info:
    processes.join(*args)
  assert '\n' not in str(info.value)


@pytest.mark.parametrize(
  ('error', 'code', 'line'),
  [
    (ValueError('a defect'), 1, 'Traceback (most recent call last)'),
    (KeyError('a defect'), 1, 'Traceback (most recent call last)'),
    (FloatingPointError('a defect'), 1, 'Traceback (most recent call last)'),
    (RuntimeError('UNAVAILABLE: Gloo NCCL'), 1, 'Traceback (most recent call last)'),
    (JAX_ERROR('UNKNOWN: Gloo'), 1, 'Traceback (most recent call last)'),  # of one process
    (KeyboardInterrupt(), 130, 'interrupted; the same command goes on where it stopped'),
  ],
)
def test_each_end_has_its_code_and_words(error, code, line, capsys):
  assert processes.explain(raised(error)) == code
  assert capsys.readouterr().err.startswith(line)


@pytest.mark.parametrize(
  ('number', 'name', 'code', 'line'),
  [
    ('ENOSPC', None, 74, 'error: a file cannot be used (No space left on device); mend that, and'),
    ('EACCES', '/a/b', 74, 'error: /a/b cannot be used (Permission denied); mend that, and the'),
    ('EROFS', '/a/b', 74, 'error: /a/b cannot be used (Read-only file system); mend that'),
    ('ENAMETOOLONG', '/a/b', 1, 'error: /a/b: File name too long; give a shorter one'),
    ('ENOENT', '/a/b', 1, 'Traceback (most recent call last)'),
    ('ECONNRESET', None, 1, 'Traceback (most recent call last)'),
  ],
)
def test_what_the_system_refuses_is_no_defect(number, name, code, line, capsys):
  number = getattr(errno, number)
  assert processes.explain(raised(OSError(number, os.strerror(number), name))) == code
  assert capsys.readouterr().err.startswith(line)


@pytest.mark.parametrize(
  ('error', 'code', 'line'),
  [
    (UserError('data.source=x: no such thing'), 1, 'error: data.source=x: no such thing'),
    (
      WriteError('a/b', OSError(errno.ENOSPC, 'No space left on device')),
      74,
      'error: a/b cannot be written (No space left on device); mend that, and the same command '
      'goes on',
    ),
    (NotFiniteError(7, {'loss': float('nan')}), 3, 'error: the loss is nan at step 7; the last'),
  ],
)
def test_an_answer_to_the_user_is_one_line(error, code, line, capsys):
  assert processes.explain(raised(error)) == code
  err = capsys.readouterr().err
  assert err.startswith(line)
  assert err.count('\n') == 1


HUGE_ARRAY = 'Unable to allocate 29.1 GiB for an array with shape (5, 7) and data type float32'


@pytest.mark.parametrize(
  ('error', 'words'),
  [
    # XLA on the CPU, on GPUs and on TPUs, by their own words.
    (
      JAX_ERROR('RESOURCE_EXHAUSTED: Out of memory allocating 224941781728 bytes.'),
      ', where 209.5 GiB were asked for at once',
    ),
    (
      JAX_ERROR('RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12.50GiB.'),
      ', where 12.5 GiB were asked for at once',
    ),
    (
      JAX_ERROR('RESOURCE_EXHAUSTED: Error allocating device buffer: Attempting to allocate 1.5G.'),
      ', where 1.5 GiB were asked for at once',
    ),
    (JAX_ERROR('RESOURCE_EXHAUSTED: in words that nobody knows yet'), ''),
    (JAX_ERROR('INTERNAL: CUDA: out of memory'), ''),
    (MemoryError(), ' on the host'),
    (MemoryError(HUGE_ARRAY), ' on the host, where 29.1 GiB were asked for at once'),
    (OSError(errno.ENOMEM, 'Cannot allocate memory'), ' on the host'),
    (lambda: caused_by(MemoryError()), ' on the host'),
  ],
)
@pytest.mark.parametrize('several', [False, True])
def test_a_lack_of_memory_is_one_line_with_the_size_and_ways_out(
  monkeypatch, error, words, several, capsys
):
  monkeypatch.setattr('jax.distributed.is_initialized', lambda: several)
  error = error() if callable(error) else raised(error)
  assert processes.explain(error, less_memory='take less') == processes.NO_MEMORY == 71
  assert capsys.readouterr().err == f'error: out of memory{words}: take less\n'


def test_a_flag_that_is_missing_is_told_in_one_line(capsys):
  with pytest.raises(UserError, match='missing') as info:
    processes.join('host:1')
  assert processes.explain(info.value) == 1
  err = capsys.readouterr().err
  assert err.startswith('error: --num_processes and --process_id missing')
  assert err.count('\n') == 1


def from_a_helper():
  """A ValueError of JAX's helpers for several processes."""
  with pytest.raises(ValueError, match='pspecs') as info:
    multihost_utils.host_local_array_to_global_array(0, MESH, None)
  return info.value


def caused_by(cause):
  """As a checkpoint that failed in the background is raised."""
  with pytest.raises(RuntimeError) as info:
    raise RuntimeError('saving failed') from raised(cause)
  return info.value


@pytest.mark.parametrize(
  ('error', 'lost'),
  [
    (JAX_ERROR('UNKNOWN: Gloo AllGather failed: Connection closed by peer'), True),
    (JAX_ERROR('in words that nobody knows yet'), True),
    (from_a_helper, True),
    (lambda: caused_by(JAX_ERROR('UNAVAILABLE: ...')), True),
    (RuntimeError('UNKNOWN: Gloo AllGather failed: Connection closed by peer'), False),
    (lambda: caused_by(KeyError('a defect')), False),
    (ValueError('a defect'), False),
  ],
)
def test_a_broken_collective_is_a_lost_process(monkeypatch, capsys, error, lost):
  monkeypatch.setattr('jax.distributed.is_initialized', lambda: True)
  monkeypatch.setattr(processes, 'ABORT_SECS', 0)
  error = error() if callable(error) else raised(error)
  assert processes.explain(error) == (LOST_CODE if lost else 1)
  err = capsys.readouterr().err
  assert err.startswith('Traceback (most recent call last)')
  assert err.endswith(f'\n{LOST}\n') == lost
  assert err.count(LOST) == lost


def test_an_answer_to_the_user_is_no_lost_process(monkeypatch, capsys):
  monkeypatch.setattr('jax.distributed.is_initialized', lambda: True)
  with pytest.raises(UserError) as info:
    raise UserError('a mistake') from from_a_helper()
  assert processes.explain(info.value) == 1
  assert capsys.readouterr().err == 'error: a mistake\n'


@pytest.mark.parametrize(
  ('several', 'primary', 'code', 'stays'),
  [
    (True, True, 1, True),
    (True, False, 1, False),
    (True, True, LOST_CODE, False),  # explain has waited
    (False, True, processes.REFUSED, False),
  ],
)
def test_processes_leave_at_once_but_for_the_first(monkeypatch, several, primary, code, stays):
  calls, met = [], threading.Event()
  met.set()
  monkeypatch.setattr('jax.distributed.is_initialized', lambda: several)
  monkeypatch.setattr(processes, '_met', met)
  monkeypatch.setattr(processes, 'is_primary', lambda: primary)
  monkeypatch.setattr(processes, '_watches', [lambda words: calls.append(words)])
  monkeypatch.setattr(processes.time, 'sleep', lambda secs: calls.append(secs))
  monkeypatch.setattr(processes.os, '_exit', lambda code: calls.append(code))
  processes.leave(code)
  assert calls == [b'farewell', *[processes.PRIMARY_STAYS_SECS] * stays, code]


def test_one_process_leaves_as_python_does(monkeypatch):
  monkeypatch.setattr(processes.os, '_exit', lambda code: pytest.fail('in haste'))
  with pytest.raises(SystemExit) as info:
    processes.leave(1)
  assert info.value.code == 1


def test_the_end_does_not_wait_for_work_in_the_background(monkeypatch):
  begun, released = threading.Event(), threading.Event()

  def work():
    begun.set()
    released.wait()
    raise ValueError('of the work')

  codes = []
  monkeypatch.setattr(processes, '_background', [])
  monkeypatch.setattr(os, '_exit', codes.append)
  future = processes.in_background(work)
  begun.wait()
  assert processes.has_background()
  processes.leave(3)
  assert codes == [3]  # and not by SystemExit, at which Python waits, or tears down what works
  released.set()
  with pytest.raises(ValueError, match='of the work'):
    future.result()
  while processes.has_background():
    time.sleep(0.01)
  with pytest.raises(SystemExit):
    processes.leave(3)


def test_python_ends_after_what_goes_on_in_the_background():
  code = (
    'import time; from ddpm_jax import processes; '
    "processes.in_background(lambda: (time.sleep(0.5), print('done', flush=True)))"
  )
  ended = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
  assert (ended.returncode, ended.stdout) == (0, 'done\n')
