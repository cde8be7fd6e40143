"""The processes of one run: how they find each other, and how they end when one is lost."""

import errno
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import traceback

from ddpm_jax import last_words, parallel
from ddpm_jax.files import DiskError

HEARTBEAT_SECS = 20  # a process that is silent for so long is lost
JOIN_SECS = 300  # for the slowest to start
PRIMARY_STAYS_SECS = 2
_LOST_WORDS = ('Gloo', 'NCCL', 'UNAVAILABLE', 'ABORTED', 'DEADLINE_EXCEEDED')  # in JAX's errors

# Exit codes, beside 0 for done, or stopped by a signal and saved; and 134, JAX's end of a process
# whose fellows are lost.
UNUSABLE = 1  # something given, or a defect
NOT_FINITE = 3
REFUSED = 74  # EX_IOERR: a file, by the system; with that mended, the same command goes on
LOST = 75  # EX_TEMPFAIL: the same command goes on
INTERRUPTED = 130

_OF_THE_SYSTEM = {
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EFBIG,
  errno.EROFS,
  errno.EACCES,
  errno.EPERM,
  errno.ENOTDIR,
  errno.EIO,
  errno.ESTALE,
}  # any other OSError that nothing expects is a defect


def join(coordinator_address=None, num_processes=None, process_id=None, *, saves_at_sigterm=False):
  """Joins the processes of this run, if there are several: at the very start of the program.

  TPU pods, SLURM's srun and Open MPI say by themselves who takes part; elsewhere the arguments do,
  all three of them.

  Args:
    coordinator_address: 'HOST:PORT' of process 0, where it listens.
    num_processes: number of processes.
    process_id: which of them this is, from 0.
    saves_at_sigterm: whether the program asks parallel.stop_agreed; if not, SIGTERM ends it.

  Raises:
    ValueError: arguments that do not fit together, or a port that is in use.
  """
  given = {
    '--coordinator_address': coordinator_address,
    '--num_processes': num_processes,
    '--process_id': process_id,
  }
  missing = [name for name, value in given.items() if value is None]
  if len(missing) == len(given):
    if not _in_cluster():
      return
  else:
    if missing:
      raise ValueError(
        f'{" and ".join(missing)} missing: processes that find each other by flags need '
        f'{", ".join(given)}, all three'
      )
    _check(coordinator_address, num_processes, process_id)

  import jax

  _filter_errors()
  # The service takes SIGTERM for itself, and only notes it until it is asked.
  jax.config.update('jax_enable_preemption_service', saves_at_sigterm)
  jax.distributed.initialize(
    coordinator_address,
    num_processes,
    process_id,
    local_device_ids=local_device_ids(os.environ),
    heartbeat_timeout_seconds=HEARTBEAT_SECS,
    initialization_timeout=JOIN_SECS,
  )
  parallel.connect()
  if parallel.process_count() == 1:  # none to agree with: nobody will ask
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _in_cluster():
  """Whether this process was started as one of several that JAX can tell from each other."""
  for count in ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE'):
    if int(os.environ.get(count, 1)) > 1:
      return True
  return ',' in os.environ.get('TPU_WORKER_HOSTNAMES', '') or _has_tpu()


def _has_tpu():
  """Whether this host has TPUs: whether it is one of several, JAX knows."""
  import importlib.util

  devices = [*pathlib.Path('/dev').glob('accel*'), *pathlib.Path('/dev').glob('vfio/[0-9]*')]
  return bool(devices) and importlib.util.find_spec('libtpu') is not None


def local_device_ids(environ):
  """SLURM's GPUs of this process if it has its node for itself: by itself, JAX takes one only."""
  alone = re.fullmatch(r'1(\(x\d+\))?', environ.get('SLURM_STEP_TASKS_PER_NODE', ''))
  gpus = environ.get('SLURM_GPUS_ON_NODE', '')
  return list(range(int(gpus))) if alone and gpus.isdigit() else None


def _check(address, num_processes, process_id):
  host, _, port = address.rpartition(':')
  if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
    raise ValueError(
      f'--coordinator_address={address} must be HOST:PORT, such as 10.0.0.1:1234, a port of the '
      'host of process 0'
    )
  if num_processes < 1:
    raise ValueError(
      f'--process_id={process_id} of --num_processes={num_processes}: --num_processes must be at '
      'least 1'
    )
  if not 0 <= process_id < num_processes:
    raise ValueError(
      f'--process_id={process_id} of --num_processes={num_processes}: must be one of 0, ..., '
      f'{num_processes - 1}, another one for each process'
    )
  if process_id == 0:
    try:
      with socket.create_server(('', int(port))):
        pass
    except OSError as error:
      raise ValueError(
        f'--coordinator_address={address}: process 0 cannot listen there ({error.strerror}); is '
        'another run using the port, or another process started with --process_id=0?'
      ) from error


def _filter_errors():
  """Sends this process's stderr through last_words.py."""
  command = [sys.executable, '-I', last_words.__file__]
  beside = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
  os.dup2(beside.stdin.fileno(), sys.stderr.fileno())


def explain(error):
  """Says what ended the program: in one line, unless it is a defect.

  Args:
    error: exception.

  Returns:
    the exit code.
  """
  if isinstance(error, KeyboardInterrupt):
    print('interrupted; the same command goes on where it stopped', file=sys.stderr)
    return INTERRUPTED
  if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM:
    print(f'error: {DiskError(error.filename or "a file", error)}', file=sys.stderr)
    return REFUSED
  if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
    print(f'error: {error.filename}: {error.strerror}; give a shorter one', file=sys.stderr)
    return UNUSABLE
  raised_in = pathlib.Path(traceback.extract_tb(error.__traceback__)[-1].filename)
  ours = raised_in.is_relative_to(pathlib.Path(__file__).parent)
  if not ours and _of_a_lost_process(error):
    print(last_words.LOST, file=sys.stderr)
    return LOST
  if not ours or not isinstance(error, (ValueError, FloatingPointError)):
    traceback.print_exception(error)  # not our answer to the user, but a defect
    return UNUSABLE
  print(f'error: {error}', file=sys.stderr)
  if isinstance(error, DiskError):
    return REFUSED
  return NOT_FINITE if isinstance(error, FloatingPointError) else UNUSABLE


def _of_a_lost_process(error):
  import jax

  # JAX raises a RuntimeError or a ValueError, as the collective is a step's or one of its own.
  return jax.distributed.is_initialized() and any(word in str(error) for word in _LOST_WORDS)


def leave(code):
  """Ends the program; one of several processes at once, without waiting for the others."""
  import jax

  several = jax.distributed.is_initialized()
  if not several and code != REFUSED:  # writers would try once more, and say so at length
    sys.exit(code)
  sys.stdout.flush()
  sys.stderr.flush()
  if several and parallel.is_primary():
    time.sleep(PRIMARY_STAYS_SECS)  # when it goes, the others are ended: they may have words to say
  os._exit(code)
