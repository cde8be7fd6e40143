"""The labels of samples: what config.sample.labels asks for, as the class of each sample."""

import re
from collections.abc import Sequence

import numpy as np

from ddpm_jax.data.labels import listed
from ddpm_jax.errors import UserError

EACH, NONE = 'each', 'none'
Pattern = tuple[tuple[int, int], ...]  # (class, how many samples in a row), one after the other
_MAX_COUNT = 10**8


def parse_labels(text: str, num_classes: int, names: Sequence[str]) -> tuple[Pattern, bool]:
  """The classes that a text asks for.

  Args:
    text: classes by name or number, `each` or `none` (without a label), one or several with commas,
      each with a count if it is asked for: 'cat', '3,5', 'each', 'cat*10,none*5'.
    num_classes: of the model; also the number of `none`.
    names: of the classes.

  Returns:
    (the pattern, which the samples repeat; whether it has counts, whose sum is then all samples).

  Raises:
    UserError: a class that is not there, or a count below 1.
  """
  runs: list[tuple[int, int]] = []
  has_counts = False
  for part in text.split(','):
    name, star, count = part.strip().rpartition('*') if part.strip() not in names else ('', '', '')
    if not star:
      name, count = part.strip(), '1'
    if not re.fullmatch('[0-9]{1,9}', count) or not 1 <= int(count) <= _MAX_COUNT:
      raise UserError(f'sample.labels has {part.strip()}; a count must be at least 1, as in cat*10')
    has_counts |= bool(star)
    classes = range(num_classes) if name == EACH else [class_of(name, num_classes, names)]
    runs += [(i, int(count)) for i in classes]
  return tuple(runs), has_counts


def class_of(name: str | int, num_classes: int, names: Sequence[str]) -> int:
  """The number of a class that is given by name or number; that of `none` is num_classes.

  Raises:
    UserError: it is not there; those that are, are named.
  """
  if name in names:
    return list(names).index(str(name))
  if name == NONE:
    return num_classes
  is_number = re.fullmatch('[0-9]{1,9}', str(name))
  if not is_number or int(name) >= num_classes:
    raise UserError(
      f'there is no class {name}; this model has {listed(names)}, and {EACH} of them, or {NONE}'
    )
  return int(name)


def expanded(pattern: Pattern) -> np.ndarray:
  """int32 [sum of the counts]: sample i has the class of row i, or of i modulo their number."""
  classes, counts = zip(*pattern, strict=True)
  return np.repeat(np.array(classes, np.int32), counts)


def in_words(pattern: Pattern, num_classes: int, names: Sequence[str]) -> str:
  """A pattern for people, such as 'labels cat, dog'."""
  called = [*names, NONE]
  if pattern == tuple((i, 1) for i in range(num_classes)):
    return 'each label in turn'
  shown = [called[i] + (f'*{count}' if count > 1 else '') for i, count in pattern[:5]]
  return f'label{"s" if len(pattern) > 1 else ""} {", ".join(shown)}' + (
    ', ...' if len(pattern) > 5 else ''
  )
