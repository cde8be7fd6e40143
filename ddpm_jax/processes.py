"""The processes of one run: how they meet, what they agree on, and how they end."""

import atexit
import concurrent.futures
import contextlib
import errno
import fcntl
import functools
import ipaddress
import json
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from ddpm_jax.errors import DiskError, NotFiniteError, UserError
from ddpm_jax.refusals import REFUSALS, refusal_behind

HEARTBEAT_SECS = 20  # a process that is silent for so long is lost
JOIN_SECS = 300  # for the slowest to start
PATIENCE_SECS = 5  # after which a process says that it waits for others
PRIMARY_STAYS_SECS = 2
ABORT_SECS = 2  # in which JAX ends a process by abort(), if it does: that has many lines

_is_silent: ContextVar[bool] = ContextVar('is_silent', default=False)

LOST = (
  'error: another process of this run was lost (ended, killed, or cut off from the network), or '
  'this one was killed; start the same command on all of them again: it goes on from the newest '
  'checkpoint'
)
NOT_JOINED = (
  'error: the processes of this run did not meet; check that each was started, with the same '
  '--coordinator_address and --num_processes and a --process_id of its own, and can reach that host'
)
# Run beside a process: says in one line that it has gone without a farewell. What ends all
# processes of a job by SIGTERM does not end it: it goes when its process goes.
_WATCH = """
import signal, sys
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
  signal.signal(number, signal.SIG_IGN)
heard = sys.stdin.buffer.read()
if not heard.endswith(b'farewell'):
  print(sys.argv[2 if b'joined' in heard else 1], file=sys.stderr)
"""

_met = threading.Event()  # whether the processes have met
_background: list[threading.Thread] = []  # those that no end waits for
_watches = []  # functions that tell the watch something; one, if any

# Exit codes, beside 0 for done, or stopped by a signal and saved; and 134, JAX's end of a process
# whose fellows are lost.
UNUSABLE = 1  # something given, or a defect
NOT_FINITE = 3
NO_MEMORY = 71  # EX_OSERR: of the device or of the host
REFUSED = 74  # EX_IOERR: a file, by the system; with that mended, the same command goes on
LOST_CODE = 75  # EX_TEMPFAIL: the same command goes on
INTERRUPTED = 130
INTERRUPTED_WORDS = 'interrupted; the same command goes on where it stopped'


def join(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  saves_at_sigterm: bool = False,
) -> bool:
  """Joins the processes of this run, if there are several: at the very start of the program.

  TPU pods, SLURM's srun and Open MPI say by themselves who takes part; elsewhere the arguments do,
  all three of them.

  Args:
    coordinator_address: 'HOST:PORT' of process 0, where it listens.
    num_processes: number of processes.
    process_id: which of them this is, from 0.
    saves_at_sigterm: whether the program asks stop_agreed; if not, SIGTERM ends it.

  Returns:
    whether this process is one of several; devices.connect() is then to be called.

  Raises:
    UserError: arguments that do not fit together, or a port that is in use.
  """
  given = {
    '--coordinator_address': coordinator_address,
    '--num_processes': num_processes,
    '--process_id': process_id,
  }
  missing = [name for name, value in given.items() if value is None]
  if len(missing) == len(given):
    if not _in_cluster():
      return False
  else:
    if missing:
      raise UserError(
        f'{" and ".join(missing)} missing: processes that find each other by flags need '
        f'{", ".join(given)}, all three'
      )
    _check(coordinator_address, num_processes, process_id)

  _make_reachable(coordinator_address)
  tell_watch = _start_watch()
  # The service takes SIGTERM for itself, and only notes it until it is asked.
  jax.config.update('jax_enable_preemption_service', saves_at_sigterm)
  options = dict(
    local_device_ids=local_device_ids(os.environ),
    heartbeat_timeout_seconds=HEARTBEAT_SECS,
    initialization_timeout=JOIN_SECS,
  )
  _meet(coordinator_address, num_processes, process_id, options)
  _met.set()
  tell_watch(b'joined')
  if count() == 1:  # none to lose, nor to agree with: nobody will ask
    tell_watch(b'farewell')
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
  return count() > 1


def _in_cluster():
  """Whether this process was started as one of several that JAX can tell from each other."""
  for variable in ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE'):
    value = os.environ.get(variable, '')
    if value.isdecimal() and int(value) > 1:
      return True
  return ',' in os.environ.get('TPU_WORKER_HOSTNAMES', '') or _has_tpu()


def _has_tpu():
  """Whether this host has TPUs: whether it is one of several, JAX knows."""
  import importlib.util

  devices = [*pathlib.Path('/dev').glob('accel*'), *pathlib.Path('/dev').glob('vfio/[0-9]*')]
  return bool(devices) and importlib.util.find_spec('libtpu') is not None


def local_device_ids(environ: Mapping[str, str]) -> list[int] | None:
  """SLURM's GPUs of this process if it has its node for itself: by itself, JAX takes one only."""
  alone = re.fullmatch(r'1(\(x\d+\))?', environ.get('SLURM_STEP_TASKS_PER_NODE', ''))
  gpus = environ.get('SLURM_GPUS_ON_NODE', '')
  return list(range(int(gpus))) if alone and gpus.isdigit() else None


def _check(address, num_processes, process_id):
  host, port = _split(address)
  is_number = port.isascii() and port.isdecimal()
  is_bare = ':' in host and not address.startswith('[')  # an address of IPv6 needs its brackets
  if (
    not host or re.search(r'[/\s]', host) or is_bare or not is_number or not 0 < int(port) < 1 << 16
  ):
    raise UserError(
      f'--coordinator_address={address} must be HOST:PORT, such as 10.0.0.1:1234, a port of the '
      'host of process 0'
    )
  if num_processes < 1:
    raise UserError(
      f'--process_id={process_id} of --num_processes={num_processes}: --num_processes must be at '
      'least 1'
    )
  if not 0 <= process_id < num_processes:
    raise UserError(
      f'--process_id={process_id} of --num_processes={num_processes}: must be one of 0, ..., '
      f'{num_processes - 1}, another one for each process'
    )
  if process_id == 0:
    try:
      with socket.create_server(('', int(port))):
        pass
    except OSError as error:
      raise UserError(
        f'--coordinator_address={address}: process 0 cannot listen there ({error.strerror}); is '
        'another run using the port, or another process started with --process_id=0?'
      ) from error


def _meet(coordinator_address, num_processes, process_id, options):
  """jax.distributed.initialize, in a thread: Ctrl-C is heard meanwhile, and waiting is said."""
  raised = []

  def work():
    try:
      jax.distributed.initialize(coordinator_address, num_processes, process_id, **options)
    except BaseException as error:
      raised.append(error)

  thread = threading.Thread(target=work, daemon=True)
  thread.start()
  thread.join(PATIENCE_SECS)
  if thread.is_alive():
    host = _split(coordinator_address)[0]
    unknown = host and not _knows(host)
    words = f', but this host knows no address of {host}' if unknown else ''
    where = f' at {coordinator_address}' if coordinator_address else ''
    print(f'waits up to {JOIN_SECS} s for the other processes{where}{words}', flush=True)
    thread.join()
  if raised:
    raise raised[0]


def _split(coordinator_address):
  """('10.0.0.1', '1234') of '10.0.0.1:1234', and ('::1', '1234') of '[::1]:1234'."""
  host, _, port = (coordinator_address or '').rpartition(':')
  return (host[1:-1] if host.startswith('[') and host.endswith(']') else host), port


def _knows(host):
  try:
    return bool(socket.getaddrinfo(host, None))
  except OSError:
    return False


def _make_reachable(coordinator_address):
  """Has the other hosts told of an address that leads here, if this host's name has none.

  Gloo, which moves data between CPUs, tells them the first of its name's addresses. On Debian and
  Ubuntu that is 127.0.1.1, by /etc/hosts, and in a container there may be none.

  Raises:
    UserError: several addresses that could be the one.
  """
  name = socket.gethostname()
  named = _address_of(name)
  if named is not None and not ipaddress.ip_address(named).is_loopback:
    return
  coordinator, port = _split(coordinator_address)
  address = _address_towards(coordinator, int(port or 0)) if coordinator else None
  if address is not None and ipaddress.ip_address(address).is_loopback:
    if coordinator == 'localhost' or _is_address(coordinator):  # all processes are on this host
      if named is None:
        _listen_at(address)
      return
    address = None  # it is this host's own name
  if address is None:
    address = _address_towards('192.0.2.1', 9)  # of no host (RFC 5737): by the default route
  if address is None:
    found = _addresses()
    if len(found) != 1 and not coordinator:
      return  # of a cluster: accelerators have networks of their own
    if len(found) != 1:
      stands_for = f'stands for {named}' if named else 'has no address'
      raise UserError(
        f"this host's name, {name}, {stands_for} in its /etc/hosts, which other hosts cannot "
        f'reach, and of its addresses ({", ".join(found) or "none"}) none stands out: give '
        '--coordinator_address with the address of the first host, not with a name, or write an '
        f'address for {name} into /etc/hosts'
      )
    (address,) = found
  _listen_at(address)


def _is_address(host):
  try:
    ipaddress.ip_address(host)
  except ValueError:
    return False
  return True


def _address_of(name):
  """The first address of a host's name that is one of this host; None if there is none."""
  try:
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
  except OSError:
    return None
  for family, kind, _, _, address in found:
    with contextlib.suppress(OSError), socket.socket(family, kind) as probe:
      probe.bind(address)
      return address[0]
  return None


def _address_towards(host, port):
  """This host's address on the way to another; None if there is no way. Nothing is sent."""
  try:
    for family, kind, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
      with socket.socket(family, kind) as probe:
        probe.connect(address)
        return probe.getsockname()[0]
  except OSError:
    pass
  return None


def _addresses():
  """The IPv4 addresses of this host's network interfaces, without the loopback; on Linux."""
  found, get_address = [], 0x8915  # SIOCGIFADDR
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    for _, name in socket.if_nameindex():
      with contextlib.suppress(OSError):  # an interface without an address
        answer = fcntl.ioctl(probe, get_address, struct.pack('256s', name.encode()))
        found.append(socket.inet_ntoa(answer[20:24]))
  return [address for address in found if not ipaddress.ip_address(address).is_loopback]


def _listen_at(address):
  """Has Gloo listen at an address, and tell the others of it."""
  from jaxlib import _jax  # private: JAX has no setting for it

  make = getattr(_jax, 'make_gloo_tcp_collectives', None)
  if make is None:  # a later version
    raise UserError(
      f'this host has no name that leads to it: write the line "{address} {socket.gethostname()}" '
      'into its /etc/hosts, in place of 127.0.1.1'
    )
  _jax.make_gloo_tcp_collectives = functools.partial(make, hostname=address)


def _start_watch():
  """Starts a process that says why this one is gone: JAX ends it by abort(), if others are lost.

  Returns:
    words -> None, which tells it something; at the end of Python it hears a farewell.
  """
  command = [sys.executable, '-I', '-c', _WATCH, NOT_JOINED, LOST]
  watch = subprocess.Popen(
    command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
  )

  def tell_watch(words):
    with contextlib.suppress(OSError):  # killed, it says nothing, and that is all
      os.write(watch.stdin.fileno(), words)

  atexit.register(tell_watch, b'farewell')
  _watches.append(tell_watch)
  return tell_watch


def explain(error: BaseException, *, less_memory: str = 'lower the batch size') -> int:
  """Says what ended the program: in one line, unless it is a defect.

  Args:
    error: exception.
    less_memory: what takes less memory, for the line about a lack of it.

  Returns:
    the exit code.
  """
  if isinstance(error, KeyboardInterrupt):
    print(INTERRUPTED_WORDS, file=sys.stderr)
    return INTERRUPTED
  if isinstance(error, UserError | NotFiniteError):
    print(f'error: {error}', file=sys.stderr)
    if refusal_behind(error) is not None or isinstance(error, DiskError):
      return REFUSED
    return NOT_FINITE if isinstance(error, NotFiniteError) else UNUSABLE
  if (asked := _memory_asked(error)) is not None:
    print(f'error: out of memory{asked}: {less_memory}', file=sys.stderr)
    return NO_MEMORY
  if isinstance(error, OSError) and error.errno in REFUSALS:
    print(f'error: {DiskError(error.filename or "a file", error)}', file=sys.stderr)
    return REFUSED
  if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
    print(f'error: {error.filename}: {error.strerror}; give a shorter one', file=sys.stderr)
    return UNUSABLE
  traceback.print_exception(error)  # not our answer to the user, but a defect
  if not _is_of_collective(error):
    return UNUSABLE
  time.sleep(ABORT_SECS)  # then the watch says the same
  print(LOST, file=sys.stderr)
  return LOST_CODE


def _memory_asked(error: BaseException | None) -> str | None:
  """The words on the memory that there was not; None if the error has another reason.

  Those who raise it tell the size in words of their own, or not at all.
  """
  while error is not None:
    text, of_device = str(error), isinstance(error, jax.errors.JaxRuntimeError)
    if of_device:
      lacks = text.startswith('RESOURCE_EXHAUSTED') or 'out of memory' in text.lower()
    else:
      lacks = isinstance(error, MemoryError) or getattr(error, 'errno', None) == errno.ENOMEM
    if lacks:
      where = '' if of_device else ' on the host'
      size = re.search(r'allocat\D*?(\d[\d.]*) ?([KMGT]?)(i?)B?(ytes)?\b', text, re.IGNORECASE)
      if size is None:
        return where
      count = float(size[1].rstrip('.')) * 1024 ** ' KMGT'.index(size[2].upper() or ' ')
      return f'{where}, where {_in_words(count)} were asked for at once'
    error = error.__cause__  # such as of a checkpoint that failed in the background
  return None


def _in_words(num_bytes):
  for unit in ('bytes', 'KiB', 'MiB', 'GiB', 'TiB'):
    if num_bytes < 1024 or unit == 'TiB':
      break
    num_bytes /= 1024
  return f'{num_bytes:.4g} {unit}'


def _is_of_collective(error):
  """Whether one of several processes failed in what it does together with the others."""
  if not jax.distributed.is_initialized():
    return False
  while error is not None:
    if isinstance(error, jax.errors.JaxRuntimeError):
      return True
    frames = traceback.extract_tb(error.__traceback__)
    if any(pathlib.Path(frame.filename).name == 'multihost_utils.py' for frame in frames):
      return True
    error = error.__cause__  # such as of a checkpoint that failed in the background
  return False


def in_background(work: Callable[[], object]) -> concurrent.futures.Future[object]:
  """Does work in a thread; leave() ends the program in the midst of the work, and any other end
  waits: a thread that comes back from XLA into a Python that is gone aborts the process.
  """
  future: concurrent.futures.Future[object] = concurrent.futures.Future()

  def run():
    try:
      future.set_result(work())
    except BaseException as error:
      future.set_exception(error)

  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  atexit.register(thread.join)
  _background.append(thread)
  return future


def has_background() -> bool:
  """Whether work of in_background goes on."""
  return any(thread.is_alive() for thread in _background)


def leave(code: int) -> None:
  """Ends the program; one of several processes at once, without waiting for the others."""
  several = jax.distributed.is_initialized()
  for tell_watch in _watches:  # it is said already why
    tell_watch(b'farewell')
  meets = bool(_watches) and not _met.is_set()
  # At a refusal, writers would try once more, and say so at length.
  if not several and not meets and code != REFUSED and not has_background():
    sys.exit(code)
  sys.stdout.flush()
  sys.stderr.flush()
  if several and _met.is_set() and code != LOST_CODE:
    with contextlib.suppress(RuntimeError):  # there are no devices that could tell
      if is_primary():  # when it goes, the others are ended: they may have words to say
        time.sleep(PRIMARY_STAYS_SECS)
  os._exit(code)


def end_now(words: str) -> None:
  """Ends the program from any thread, though another one is in the midst of work."""
  for tell_watch in _watches:
    tell_watch(b'farewell')
  print(words, file=sys.stderr, flush=True)
  os._exit(INTERRUPTED)


def is_primary() -> bool:
  """Whether this is the process that writes logs, pictures and metrics."""
  return jax.process_index() == 0


@contextlib.contextmanager
def silent() -> Iterator[None]:
  """Nothing is said meanwhile, nor shown of how far work is, in this thread."""
  token = _is_silent.set(True)
  try:
    yield
  finally:
    _is_silent.reset(token)


def is_silent() -> bool:
  """Whether nothing is said."""
  return _is_silent.get()


def say(text: str) -> None:
  """Prints a line on the first process."""
  if is_primary() and not is_silent():
    print(text, flush=True)


def index() -> int:
  """This process's number."""
  return jax.process_index()


def count() -> int:
  """How many processes take part."""
  return jax.process_count()


def barrier(name: str) -> None:
  """Waits until every process is here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def from_primary(text: str) -> str:
  """The first process's text, on every process; all call it, in the same order."""
  return texts_of_all(text)[0]


def texts_of_all(text: str) -> list[str]:
  """What every process gives, a list in their order; all call it, in the same order."""
  if jax.process_count() == 1:
    return [text]
  content = np.frombuffer(text.encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.int32(len(content)))
  padded = np.zeros(lengths.max(), np.uint8)
  padded[: len(content)] = content
  contents = multihost_utils.process_allgather(padded)
  return [bytes(x[:n]).decode() for x, n in zip(contents, lengths, strict=True)]


def check_same(what: str, facts: Mapping) -> None:
  """Compares the processes, once all of them call it.

  Args:
    what: word for the error.
    facts: dict of JSON values, which must be the same everywhere.

  Raises:
    UserError: on every process, where one has other facts than the first.
  """
  first, *others = [json.loads(text) for text in texts_of_all(json.dumps(facts))]
  for process, other in enumerate(others, 1):
    differing = [
      f'{name}: {first.get(name)} and {other.get(name)}'
      for name in sorted(first.keys() | other.keys())
      if first.get(name) != other.get(name)
    ]
    if differing:
      raise UserError(
        f'processes 0 and {process} differ in their {what} ({"; ".join(differing)}): start all '
        'with the same command, program and data'
      )


def not_shared_with(folder: pathlib.Path) -> int | None:
  """The first process for which a folder's path names another than the first process's.

  All processes call it, in the same order.

  Args:
    folder: pathlib.Path, which each of them can write.

  Returns:
    its number; None if all share the folder.
  """
  if jax.process_count() == 1:
    return None
  token = from_primary(uuid.uuid4().hex)
  file = folder / f'.shared.{token}'
  if is_primary():
    file.touch()
  barrier('folder marked')  # its path may be another elsewhere
  blind = [i for i, seen in enumerate(texts_of_all('yes' if file.exists() else '')) if not seen]
  if is_primary():
    file.unlink(missing_ok=True)
  return blind[0] if blind else None


def stop_agreed(times_asked: int, received: bool) -> bool:
  """Whether all processes stop now, since a signal came to one of them.

  Args:
    times_asked: 0, 1, ...: how often this was asked before; the same on every process.
    received: whether a signal came to this one; of several, JAX listens for SIGTERM itself.
  """
  if jax.process_count() == 1:
    return received
  return multihost_utils.reached_preemption_sync_point(times_asked)
