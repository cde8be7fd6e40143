"""Huge pages of memory for the arrays of a step.

XLA on the CPU takes the memory of a step's arrays anew for every step. In pages of 4 KiB, Linux has
to hand out 400,000 of them for each step of the CIFAR-10 model. Where Linux gives huge pages to
those who ask, glibc's malloc asks if its environment says so when a program starts.
"""

import os
import pathlib
import sys
from collections.abc import Mapping

TUNABLE = 'glibc.malloc.hugetlb'
POLICY = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')


def environment(environ: Mapping[str, str], policy: pathlib.Path = POLICY) -> dict[str, str]:
  """What to change in a program's environment.

  Args:
    environ: dict, that of the program. A value that it has for the tunable stays.
    policy: pathlib.Path of the file that says who gets huge pages.

  Returns:
    dict of variables: empty where there is nothing to ask for.
  """
  tunables = environ.get('GLIBC_TUNABLES', '')
  try:
    on_request = '[madvise]' in policy.read_text() and os.confstr('CS_GNU_LIBC_VERSION')
  except (OSError, ValueError):  # not Linux, or not glibc
    return {}
  if not on_request or TUNABLE in tunables:
    return {}
  return {'GLIBC_TUNABLES': ':'.join(filter(None, [tunables, f'{TUNABLE}=1']))}


def restart_with_them() -> None:
  """Begins the program again, as the same process, if its environment is to change."""
  changes = environment(os.environ)
  if changes and sys.executable:
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | changes)
