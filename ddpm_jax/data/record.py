"""What the pictures of a run are, noted in its workdir: a change between two commands is said."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from ddpm_jax.data.labels import Labels, listed
from ddpm_jax.data.listing import some
from ddpm_jax.data.pictures import DamagedDataError
from ddpm_jax.data.sources import Source, fingerprint
from ddpm_jax.data.splits import told
from ddpm_jax.errors import UserError
from ddpm_jax.storage.files import damaged, read_json, write_text

RECORD = 'data.json'
CLASSES = 'classes.json'
MAX_LISTED = 100_000  # pictures of a set whose files are noted one by one
_LEAST_COMMON = 0.5  # of the pictures of a folder that has moved


def keep_record(
  workdir: pathlib.Path,
  source: Source,
  *,
  has_begun: bool,
  say: Callable[[str], None],
  labels: Labels | None = None,
) -> None:
  """Says how the pictures differ from those that the run had, and notes what they are now.

  Args:
    workdir: WORKDIR.
    source: of the training pictures.
    has_begun: whether the run has; otherwise nothing is compared.
    say: prints a line.
    labels: of the pictures, which the run goes on with as they were.

  Raises:
    UserError: the folder is another one, with other pictures; or the labels are others.
  """
  file, now = workdir / RECORD, record_of(source)
  if labels is not None:
    now['labels'] = labels.sha256()
  before = read_json(file) if has_begun and file.exists() else None
  if labels is not None:
    names = read_class_names(workdir) if has_begun else None
    _check_labels(names, labels, before, now)
    write_text(workdir / CLASSES, json.dumps(list(labels.names)) + '\n')
  if before == now:
    return
  if isinstance(before, dict):
    for line in changes(before, now):
      say(line)
  write_text(file, json.dumps(now) + '\n')


def read_class_names(workdir: pathlib.Path) -> tuple[str, ...] | None:
  """The names of a run's classes; None where it has none.

  Raises:
    UserError: their file is damaged.
  """
  file = workdir / CLASSES
  if not file.exists():
    return None
  names = read_json(file)
  if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not names:
    raise damaged(file, 'no list of the names of classes')
  return tuple(names)


def _check_labels(names, labels, before, now):
  """Raises a UserError for other classes, or other labels of the same pictures."""
  if names is not None and names != labels.names:
    raise UserError(
      f'{now["source"]} has the classes {listed(labels.names)}, but this run was begun with '
      f'{listed(names)}: give the data as they were, or another workdir'
    )
  same = 'source', 'split', 'count', 'fingerprint'
  is_same = isinstance(before, dict) and all(before.get(name) == now[name] for name in same)
  if is_same and now['fingerprint'] and before.get('labels') not in (None, now['labels']):
    raise UserError(
      f'{now["source"]} has the pictures that this run was begun with, under other labels: give '
      'the labels as they were, or another workdir'
    )


def record_of(source: Source) -> dict[str, Any]:
  """What is noted of a source, as JSON values."""
  try:
    sha256 = fingerprint(source)
  except DamagedDataError:  # which is told where all of them can be named
    sha256 = None
  files = told(source, 'picture_files')
  listed = files is not None and len(files) <= MAX_LISTED
  return {
    'source': source.name,
    'split': source.split,
    'count': len(source),
    'fingerprint': sha256,
    'pictures': {file.path: [file.size, file.changed_ns] for file in files} if listed else None,
  }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """Lines on how two records differ in their pictures; none if they do not.

  Raises:
    UserError: as keep_record.
  """
  is_same = before.get('count') == now['count'] and before.get('fingerprint') == now['fingerprint']
  if not before.get('pictures') or not now['pictures']:
    if is_same:
      return []
    return [
      f'the pictures are not those that this run has had: {before.get("count")} then, '
      f'{now["count"]} now; training goes on with these'
    ]
  then, today = before['pictures'], now['pictures']
  gone, new = sorted(then.keys() - today.keys()), sorted(today.keys() - then.keys())
  common = sorted(then.keys() & today.keys())
  resized = [path for path in common if then[path][0] != today[path][0]]
  written = [path for path in common if then[path] != today[path]]
  if before['source'] != now['source'] and (len(common) - len(resized) < _LEAST_COMMON * len(then)):
    raise UserError(
      f'{now["source"]} has {len(common) - len(resized)} of the {len(then)} pictures that this run '
      f'has trained on in {before["source"]}: give the folder where they are now, or another '
      'workdir'
    )
  if len(written) == len(common) and not resized and is_same:  # a copy, whose times are its own
    written = []
  parts = [
    f'{len(paths)} {what} ({some(paths)})'
    for paths, what in ((gone, 'are gone'), (new, 'are new'), (written, 'were written anew'))
    if paths
  ]
  if not parts:
    return []
  return [
    f'the pictures are not those that this run has had, {len(then)} then and {len(today)} now: '
    f'{"; ".join(parts)}; training goes on with these'
  ]
