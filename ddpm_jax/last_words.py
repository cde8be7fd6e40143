"""A filter of stderr, run beside each of several processes; see processes.py.

JAX ends a process whose fellows are gone by abort(), with a page of addresses. This says the same
in one line.
"""

import re
import sys

LOST = (
  'error: another process of this run was lost (ended, killed, or cut off from the network); start '
  'the same command on all of them again: it goes on from the newest checkpoint'
)
_ENDS = 'Terminating process because the JAX distributed service detected fatal errors'
_FOREBODES = re.compile(r'[WE]\d+ .*(coordination_service(_agent)?|preemption_sync_manager)\.cc:')
# A line for each connection, and one for each SIGTERM, which the program answers itself.
_NOISE = re.compile(r'\[Gloo\] Rank|W\d+ .*preemption_notifier\.cc:')


def translate(lines):
  """Yields lines of stderr, with one line in place of JAX's last words; lines is an iterator."""
  held = []  # what may turn out to be their beginning
  for line in lines:
    if _ENDS in line:
      yield _explain(line + ''.join(lines))
      return
    if held or _FOREBODES.match(line):
      held.append(line)
    elif not _NOISE.match(line):
      yield line
  yield from held


def _explain(last_words):
  if 'RegisterTask' not in last_words:
    return f'{LOST}\n'
  if 'ALREADY_EXISTS' in last_words:
    return 'error: another process has joined under the same --process_id; give each its own\n'
  return (
    'error: the processes of this run did not all come in time; check that each was started, with '
    'the same --coordinator_address and --num_processes, and can reach that host\n'
  )


if __name__ == '__main__':
  for text in translate(iter(sys.stdin.readline, '')):
    sys.stderr.write(text)
    sys.stderr.flush()
