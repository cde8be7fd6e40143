"""A filter of stderr, run beside each of several processes; see processes.py.

JAX ends a process whose fellows are gone by abort(), with a page of addresses. This says the same
in one line.
"""

import os
import re
import select
import sys
import time

LOST = (
  'error: another process of this run was lost (ended, killed, or cut off from the network); start '
  'the same command on all of them again: it goes on from the newest checkpoint'
)
HOLD_SECS = 2  # milliseconds lie between a foreboding and the end
_ENDS = 'Terminating process because the JAX distributed service detected fatal errors'
_FOREBODES = re.compile(r'[WE]\d+ .*(coordination_service(_agent)?|preemption_sync_manager)\.cc:')
# What their further lines are: numbers of processes, advice, and what gRPC tells.
_GOES_ON = re.compile(r'\d+$|The tasks have crashed|Additional GRPC|:(UNKNOWN|\{)|RPC: |$')
# A line for each connection, and one for each SIGTERM, which the program answers itself.
_NOISE = re.compile(r'\[Gloo\] Rank|W\d+ .*preemption_notifier\.cc:')


def translate(lines, clock=time.monotonic):
  """Yields lines of stderr, with one line in place of JAX's last words.

  Args:
    lines: iterator of lines; of None, where there was none for some time.
    clock: returns seconds.
  """
  held, until = [], 0  # what may turn out to be the beginning of the last words
  for line in lines:
    if held and clock() >= until:
      yield from held
      held = []
    if line is None:
      continue
    if _ENDS in line:
      yield _explain(''.join([line, *filter(None, lines)]))
      return
    if _FOREBODES.match(line) or (held and _GOES_ON.match(line)):
      until = until if held else clock() + HOLD_SECS
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


def read_lines(descriptor):
  """Yields the lines of a file as they come, and None for each second without any."""
  rest = b''
  while True:
    if not select.select([descriptor], [], [], 1)[0]:
      yield None
      continue
    content = os.read(descriptor, 1 << 16)
    if not content:
      break
    *whole, rest = (rest + content).split(b'\n')
    for line in whole:
      yield line.decode(errors='replace') + '\n'
  if rest:
    yield rest.decode(errors='replace')


if __name__ == '__main__':
  for text in translate(read_lines(sys.stdin.fileno())):
    sys.stderr.write(text)
    sys.stderr.flush()
