"""Finds the sets of weights in what a file holds: nested, with prefixes, or several of them.

{'conv_in.weight': ...}                                   one, without a name
{'module.conv_in.weight': ..., '_orig_mod....': ...}      of wrappers: module, _orig_mod
{'state_dict': {...}, 'ema': {...}, 'optimizer': {...}}   of training programs: state_dict, ema
[{'module....': ...}, {...}, 3, 800, {...}]               of DDIM's program: 0.module, 4
"""

import collections
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np

from ddpm_jax.errors import UserError

OPTION = 'import.weights'
StateDict = dict[str, np.ndarray]

_MAX_LISTED = 8
_MAX_SHOWN = 60  # characters


def find_sets(root: Any, names: Set[str], num_names: int) -> dict[str, StateDict]:
  """The sets that have half of a network's tensors or more, by where they lie.

  Args:
    root: dicts, lists and arrays, as torch_file.read_torch_file returns them.
    names: of the network's tensors, in any spelling.
    num_names: how many tensors the network has.

  Returns:
    {name of the set: {name of the tensor, without the set's prefix: array}}. A file that has one
    dict of tensors alone, and of another network, is that set: what differs can be named.
  """
  found, others = {}, []
  for path, tensors in _tensor_dicts(root, (), set()):
    others.append(tensors)
    prefixes = _prefixes(tensors, names, num_names)
    for prefix in prefixes:
      longer = tuple(p for p in prefixes if len(p) > len(prefix) and p.startswith(prefix))
      found['.'.join(filter(None, (*path, prefix.rstrip('.'))))] = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix) and not (longer and name.startswith(longer))
      }
  if not found and len(others) == 1 and others[0].keys() == getattr(root, 'keys', set)():
    return {'': others[0]}
  return found


def _tensor_dicts(value, path, seen) -> Iterator[tuple[tuple[str, ...], StateDict]]:
  """(keys on the way, tensors) of every dict that has some itself."""
  if id(value) in seen or not isinstance(value, dict | list | tuple):
    return
  seen.add(id(value))
  items = value.items() if isinstance(value, dict) else enumerate(value)
  tensors = {key: x for key, x in items if isinstance(key, str) and isinstance(x, np.ndarray)}
  if tensors:
    yield path, tensors
  for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
    yield from _tensor_dicts(inner, (*path, str(key)), seen)


def _prefixes(tensors, names, num_names):
  """What stands before the names of a network, of which half at least are there."""
  counts: collections.Counter[str] = collections.Counter()
  for name in tensors:
    start = 0
    while True:
      if name[start:] in names:
        counts[name[:start]] += 1
      start = name.find('.', start) + 1
      if not start:
        break
  return [prefix for prefix, count in counts.items() if 2 * count >= num_names]


def describe(root: Any) -> str:
  """What a file holds, for an error: 'model (412 tensors, such as conv1.weight), epoch'."""
  dicts = list(_tensor_dicts(root, (), set()))
  if not dicts:
    return f'a {type(root).__name__} without tensors'
  shown = [
    f'{".".join(path) or "a dict"} ({len(tensors)} tensors, such as {next(iter(tensors))})'
    for path, tensors in sorted(dicts, key=lambda item: -len(item[1]))[:_MAX_LISTED]
  ]
  return _listed([' '.join(text.split())[: 2 * _MAX_SHOWN] for text in shown], len(dicts))


def chosen_sets(sets: Mapping[str, Any], chosen: str | None) -> Sequence[Any]:
  """The set that is there alone, or those that are chosen.

  Args:
    sets: by name.
    chosen: NAME, or NAME,NAME of the weights and of their moving average; None for the only one.

  Returns:
    one or two of the values of `sets`.

  Raises:
    UserError: several, and none is chosen; or the chosen one is not there.
  """
  if chosen is None:
    if len(sets) == 1:
      return list(sets.values())
    raise UserError(several(sets))
  parts = chosen.split(',')
  if len(parts) > 2:
    raise UserError(f'{OPTION}={chosen} names {len(parts)} sets; name one, or two')
  return [_chosen(sets, part) for part in parts]


def several(sets: Mapping[str, Any]) -> str:
  """What to say of several sets of which none is chosen."""
  return (
    f'it has {len(sets)} sets of weights: {_names(sets)}; choose one by --config.{OPTION}=NAME, '
    f'or the weights and their moving average by --config.{OPTION}=NAME,NAME'
  )


def _chosen(sets, name):
  """The set of a name, or of the only name that begins so: 'state_dict' of state_dict.module."""
  if name in sets:
    return sets[name]
  near = [known for known in sets if known.startswith(f'{name}.')]
  if len(near) != 1:
    raise UserError(f'{OPTION} is {name}, and the sets of weights there are {_names(sets)}')
  return sets[near[0]]


def _names(sets):
  shown = [' '.join(name.split())[:_MAX_SHOWN] or 'one without a name' for name in sets]
  return _listed(shown[:_MAX_LISTED], len(shown))


def _listed(shown, total):
  return ', '.join(shown) + (f', and {total - len(shown)} more' if total > len(shown) else '')
