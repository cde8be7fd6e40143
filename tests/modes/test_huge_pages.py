"""When a program asks for huge pages."""

import os
import pathlib
import subprocess
import sys

import pytest

from ddpm_jax.modes import huge_pages

ROOT = pathlib.Path(__file__).resolve().parents[2]
ON_REQUEST = 'always [madvise] never\n'


@pytest.fixture
def policy(tmp_path):
  """Returns words -> a file with them, as Linux has it."""

  def policy(words):
    (tmp_path / 'enabled').write_text(words)
    return tmp_path / 'enabled'

  return policy


@pytest.mark.parametrize(
  ('environ', 'changes'),
  [
    ({}, {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}),
    (
      {'GLIBC_TUNABLES': 'glibc.malloc.check=1'},
      {'GLIBC_TUNABLES': 'glibc.malloc.check=1:glibc.malloc.hugetlb=1'},
    ),
    ({'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=0'}, {}),
    ({'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}, {}),
  ],
)
def test_what_the_user_has_set_stays(environ, changes, policy, monkeypatch):
  monkeypatch.setattr(os, 'confstr', lambda name: 'glibc 2.36')
  assert huge_pages.environment(environ, policy(ON_REQUEST)) == changes


@pytest.mark.parametrize('words', ['[always] madvise never\n', 'always madvise [never]\n'])
def test_nothing_is_asked_for_where_it_makes_no_difference(words, policy):
  assert huge_pages.environment({}, policy(words)) == {}


def test_systems_without_them_are_left_alone(tmp_path, policy, monkeypatch):
  assert huge_pages.environment({}, tmp_path / 'absent') == {}

  def unknown(name):
    raise ValueError('unrecognized configuration name')

  monkeypatch.setattr(os, 'confstr', unknown)
  assert huge_pages.environment({}, policy(ON_REQUEST)) == {}


def test_the_program_begins_again_once_as_the_same_process_and_with_its_arguments(tmp_path):
  program = tmp_path / 'program.py'
  program.write_text(
    'import os, pathlib, sys\n'
    f'sys.path.insert(0, {str(ROOT)!r})\n'
    'from ddpm_jax.modes import huge_pages\n'
    'os.confstr = lambda name: "glibc 2.36"\n'
    'huge_pages.environment.__defaults__ = (pathlib.Path(sys.argv[1]),)\n'
    'print("begins", flush=True)\n'
    'huge_pages.restart_with_them()\n'
    'print(os.getpid(), sys.argv[2:], os.environ.get("GLIBC_TUNABLES"), sys.flags.optimize)\n'
  )
  policy = tmp_path / 'enabled'
  policy.write_text(ON_REQUEST)
  environ = {name: value for name, value in os.environ.items() if name != 'GLIBC_TUNABLES'}
  process = subprocess.Popen(
    [sys.executable, '-O', str(program), str(policy), 'two words', '--x'],
    stdout=subprocess.PIPE,
    text=True,
    env=environ,
  )
  out, _ = process.communicate(timeout=60)
  words = f"{process.pid} ['two words', '--x'] glibc.malloc.hugetlb=1 1"
  assert out.splitlines() == ['begins', 'begins', words]
