"""How processes find each other and end; with real ones in test_many_processes.py."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from ddpm_jax import last_words, processes
from tests.test_main import ROOT
from tests.test_many_processes import free_port

TRACE = '*** Check failure stack trace: ***\n    @     0x7f64cf840634  absl::SendToLog()\n'
ENDS = 'F1124 15:44:19.47 25212 client.h:80] Terminating process because the JAX distributed '
ENDS += 'service detected fatal errors. This most likely indicates that another task died'
WARNS = (
  'E1124 15:44:19.47 25201 coordination_service.cc:1549] [115] Use error polling to propagate\n'
  '1\n'
  'The tasks have crashed. Check the task logs for an earlier error\n'
)
TORN = (
  'W1124 16:10:02.06 31656 preemption_sync_manager.cc:147] Failed to retrieve\n'
  'Additional GRPC error information from remote target coordination_service while calling\n'
  ':UNKNOWN:Error received from peer  {grpc_status:14, grpc_message:"Socket closed"}.\n'
  'E1124 16:10:02.07 31656 preemption_sync_manager.cc:159] Failed to cancel preemption barrier\n'
  'E1124 16:10:02.07 31656 coordination_service_agent.cc:289] Polled an error\n'
)


def raised(error):
  """The error with the traceback of this file."""
  with pytest.raises(type(error)) as info:
    raise error
  return info.value


def translated(text):
  return ''.join(last_words.translate(iter(text.splitlines(keepends=True))))


@pytest.mark.parametrize('before', ['', WARNS, TORN, WARNS + TORN])
def test_last_words_become_one_line(before):
  text = f'{before}{ENDS}. absl::Status: UNAVAILABLE: Failed\n{TRACE}'
  assert translated(f'a warning\n{text}') == f'a warning\n{last_words.LOST}\n'


@pytest.mark.parametrize(
  ('status', 'line'),
  [
    ('DEADLINE_EXCEEDED: Deadline Exceeded', 'error: the processes of this run did not all come'),
    ('ALREADY_EXISTS: Aborted connect attempt', 'error: another process has joined under the same'),
  ],
)
def test_those_who_never_met_are_told_why(status, line):
  text = translated(f'{ENDS}: {status}\n\nRPC: /xla.coordination/RegisterTask\n{TRACE}')
  assert text.startswith(line)
  assert text.count('\n') == 1


def test_other_lines_pass_unchanged():
  text = 'Traceback (most recent call last):\n  File "a.py"\nValueError: x\n'
  assert translated(text) == text
  noise = '[Gloo] Rank 1 is connected to 3 peer ranks.\n'
  noise += 'W1124 16:10:26.56 31902 preemption_notifier.cc:90] SIGTERM caught\n'
  assert translated(noise + text) == text
  # They did not end the process: it is all said, ours at once.
  assert translated(WARNS + text) == text + WARNS


def test_the_real_cause_is_said_before_the_last_words():
  text = 'Traceback (most recent call last):\n  File "a.py"\nKeyError: 1\n'
  assert translated(f'{WARNS}{text}{TORN}{ENDS}\n{TRACE}') == f'{text}{last_words.LOST}\n'


def test_a_foreboding_is_held_for_a_short_time_only():
  now = 0.0
  *begin, end = WARNS.splitlines(keepends=True)

  def lines():
    nonlocal now
    yield from begin
    now += last_words.HOLD_SECS / 2
    yield from (end, 'ours\n', None)
    now += last_words.HOLD_SECS / 2
    yield None
    yield 'late\n'

  said = list(last_words.translate(lines(), clock=lambda: now))
  assert said == ['ours\n', *begin, end, 'late\n']


def test_lines_are_read_as_they_come():
  command = [sys.executable, '-I', last_words.__file__]
  pipe = subprocess.PIPE
  with subprocess.Popen(command, stdin=pipe, stderr=pipe, bufsize=0) as process:
    process.stdin.write(f'{WARNS}ours \xff\n'.encode('latin1'))
    assert process.stderr.readline() == 'ours \ufffd\n'.encode()
    assert process.stderr.readline().decode() == WARNS.splitlines(keepends=True)[0]
    process.stdin.write(b'cut')
    process.stdin.close()
    assert process.stderr.read().decode() == ''.join(WARNS.splitlines(keepends=True)[1:]) + 'cut'


@pytest.mark.parametrize(
  ('environ', 'several'),
  [
    ({}, False),
    ({'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '4'}, False),  # within salloc, but not by srun
    ({'SLURM_STEP_NUM_TASKS': '1'}, False),
    ({'SLURM_STEP_NUM_TASKS': '4'}, True),
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
  monkeypatch.setattr(processes, '_filter_errors', lambda: None)
  monkeypatch.setattr(processes, '_has_tpu', lambda: False)
  monkeypatch.setattr('jax.distributed.initialize', lambda *args, **kwargs: joined.append(args))
  processes.join()
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
  command, env = [sys.executable, '-c', script], os.environ | {'PYTHONPATH': str(ROOT)}
  process = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
  assert (process.returncode, process.stderr) == (-signal.SIGTERM, '')


def test_sigterm_is_left_to_jax_where_several_processes_ask_it(monkeypatch):
  asked, handlers = [], []
  monkeypatch.setattr(processes, '_filter_errors', lambda: None)
  monkeypatch.setattr('jax.distributed.initialize', lambda *args, **kwargs: None)
  monkeypatch.setattr('jax.config.update', lambda *args: asked.append(args))
  monkeypatch.setattr(processes.parallel, 'connect', lambda: None)
  monkeypatch.setattr(processes.parallel, 'process_count', lambda: 2)
  monkeypatch.setattr(processes.signal, 'signal', lambda *args: handlers.append(args))
  for saves in (True, False):
    processes.join('host:1', 2, 1, saves_at_sigterm=saves)
  service = 'jax_enable_preemption_service'
  assert (asked, handlers) == ([(service, True), (service, False)], [])


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
    ((':1234', 2, 0), '--coordinator_address=:1234 must be HOST:PORT'),
    (('host:1', 2, 2), '--process_id=2 of --num_processes=2: must be one of 0, ..., 1, another'),
    (('host:1', 2, -1), '--process_id=-1 of --num_processes=2'),
    (('host:1', 0, 0), '--process_id=0 of --num_processes=0: --num_processes must be at least 1'),
  ],
)
def test_flags_that_do_not_fit_are_refused(args, message):
  with pytest.raises(ValueError, match='^' + message.replace('.', r'\.')) as info:
    processes.join(*args)
  assert '\n' not in str(info.value)


@pytest.mark.parametrize(
  ('error', 'code', 'line'),
  [
    (ValueError('from elsewhere'), 1, 'Traceback (most recent call last)'),
    (KeyError('a defect'), 1, 'Traceback (most recent call last)'),
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


def test_our_answer_is_one_line(capsys):
  with pytest.raises(ValueError, match='missing') as info:
    processes.join('host:1')
  assert processes.explain(info.value) == 1
  err = capsys.readouterr().err
  assert err.startswith('error: --num_processes and --process_id missing')
  assert err.count('\n') == 1


@pytest.mark.parametrize(
  ('message', 'code'), [('Gloo AllGather failed: Connection closed', 75), ('out of memory', 1)]
)
def test_a_broken_collective_is_a_lost_process(monkeypatch, capsys, message, code):
  monkeypatch.setattr('jax.distributed.is_initialized', lambda: True)
  assert processes.explain(raised(RuntimeError(f'UNKNOWN: {message}'))) == code
  assert (capsys.readouterr().err == f'{last_words.LOST}\n') == (code == 75)
