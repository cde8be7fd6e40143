"""Hosts made of network namespaces: a bridge joins them, and each has an address of its own."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest

# In namespaces of its own: the host's name, and its /etc/hosts.
_AS_HOST = 'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'


def ip(*args):
  subprocess.run(['ip', *args], check=True, capture_output=True)


class Hosts:
  """Hosts 0, ..., count - 1, called host0, ..., with the addresses 10.77.0.1, ...."""

  def __init__(self, count: int, folder: pathlib.Path):
    self.count, self._folder = count, folder
    self._prefix = f'ddpm{os.getpid()}'
    self._started: list[subprocess.Popen] = []

  def address(self, i: int) -> str:
    return f'10.77.0.{i + 1}'

  def add(self) -> None:
    ip('netns', 'add', f'{self._prefix}b')
    ip('-n', f'{self._prefix}b', 'link', 'add', 'bridge0', 'type', 'bridge')
    ip('-n', f'{self._prefix}b', 'link', 'set', 'bridge0', 'up')
    for i in range(self.count):
      name = f'{self._prefix}h{i}'
      ip('netns', 'add', name)
      ip('-n', f'{self._prefix}b', 'link', 'add', f'port{i}', 'type', 'veth', 'peer', 'eth0',
         'netns', name)  # fmt: skip
      ip('-n', f'{self._prefix}b', 'link', 'set', f'port{i}', 'master', 'bridge0', 'up')
      ip('-n', name, 'addr', 'add', f'{self.address(i)}/24', 'dev', 'eth0')
      ip('-n', name, 'link', 'set', 'eth0', 'up')
      ip('-n', name, 'link', 'set', 'lo', 'up')

  def delete(self) -> None:
    for process in self._started:
      process.kill()  # if a test failed; otherwise it has ended
    for name in [f'{self._prefix}b', *(f'{self._prefix}h{i}' for i in range(self.count))]:
      with contextlib.suppress(subprocess.CalledProcessError):
        ip('netns', 'del', name)

  def link(self, i: int, state: str) -> None:
    """Plugs the cable of a host in ('up') or out ('down')."""
    ip('-n', f'{self._prefix}b', 'link', 'set', f'port{i}', state)

  def start(
    self, i: int, command: Sequence[str], *, names: str = '{address} {name}', **kwargs
  ) -> subprocess.Popen:
    """Starts a command on a host.

    Args:
      i: which.
      command: words.
      names: the line of its /etc/hosts about itself.
    """
    file = self._folder / f'hosts{i}'
    own = names.format(address=self.address(i), name=f'host{i}')
    others = [f'{self.address(j)} host{j}' for j in range(self.count) if j != i]
    file.write_text('\n'.join(['127.0.0.1 localhost', own, *others]) + '\n')
    namespace = ['ip', 'netns', 'exec', f'{self._prefix}h{i}', 'unshare', '--mount', '--uts']
    process = subprocess.Popen(
      [*namespace, 'sh', '-c', _AS_HOST, 'sh', f'host{i}', str(file), *map(str, command)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      **kwargs,
    )
    self._started.append(process)
    return process


@contextlib.contextmanager
def made(count: int, folder: pathlib.Path) -> Iterator[Hosts]:
  """Yields so many Hosts; skips the test where they cannot be made."""
  if sys.platform != 'linux' or os.geteuid() or not shutil.which('ip'):
    pytest.skip('hosts need Linux, root and iproute2')
  hosts = Hosts(count, folder)
  try:
    try:
      hosts.add()
    except subprocess.CalledProcessError as error:
      pytest.skip(f'no network namespaces: {error.stderr.decode()}')
    yield hosts
  finally:
    hosts.delete()
