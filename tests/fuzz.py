"""Seeded mutations of files, and what a reader of foreign bytes may do with them."""

import contextlib
import tracemalloc

import numpy as np

from ddpm_jax.errors import UserError

MAX_PEAK_BYTES = 32 << 20
SLOW_FACTOR = 50  # how many more inputs the slow tests try
TELLING = (0, 1, 0x7F, 0x80, 0xFF)


def mutate(content, rng):
  """One to three changes: bits, telling bytes, spans removed, repeated or moved, an end cut off."""
  content = bytearray(content)
  for _ in range(rng.integers(1, 4)):
    if not content:
      break
    start = int(rng.integers(len(content)))
    stop = start + int(rng.integers(1, 9))
    match rng.integers(6):
      case 0 | 1:
        content[start] ^= 1 << rng.integers(8)
      case 2:
        content[start] = TELLING[rng.integers(len(TELLING))]
      case 3:
        del content[start:stop]
      case 4:
        content[start:start] = content[start:stop]
      case 5 if rng.random() < 0.2:
        del content[start:]
      case 5:
        to = int(rng.integers(len(content)))
        content[to : to + stop - start] = content[start:stop]
  return bytes(content)


@contextlib.contextmanager
def little_memory():
  """Fails what takes much memory. It takes five times as long."""
  tracemalloc.start()
  try:
    yield
    assert tracemalloc.get_traced_memory()[1] < MAX_PEAK_BYTES
  finally:
    tracemalloc.stop()


def count_refusals(read, judge, inputs, *, bound=little_memory):
  """How many of the inputs `read` answers with a ValueError of one line.

  What it returns for the others, judge(it) has to find right. Any other exception fails
  the test, and so does what takes much memory, unless bound is contextlib.nullcontext.
  """
  refused = 0
  with bound():
    for content in inputs:
      try:
        answer = read(content)
      except ValueError as error:
        assert type(error) is UserError, repr(error)  # noqa: PT017
        assert '\n' not in str(error), error  # noqa: PT017
        refused += 1
      else:
        judge(answer)
  return refused


def mutations(content, num_inputs, seed=0):
  """Yields num_inputs mutations."""
  rng = np.random.default_rng(seed)
  return (mutate(content, rng) for _ in range(num_inputs))
