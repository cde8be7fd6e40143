"""What a model was trained on: no figure of a test split is of pictures that it has seen."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax import data, processes
from ddpm_jax.config.files import CONFIG_FILE, packaged_model
from ddpm_jax.errors import UserError
from ddpm_jax.paths import expanded
from ddpm_jax.storage.files import read_json
from ddpm_jax.storage.workdir import config_dict

_MAX_BRANCHES = 20  # a branch of a branch of ...


@dataclasses.dataclass(frozen=True)
class Trained:
  """What a run trained on.

  Attributes:
    where: words for it: of this run, or of one that it began from.
    data: its config.data; None where that is not told, as by models of other programs.
  """

  where: str
  data: dict[str, Any] | None


def trained_on(config: ConfigDict, workdir: pathlib.Path | None) -> list[Trained]:
  """What the run of a workdir trained on, and the runs that it began from.

  Args:
    config: ConfigDict, for a run that has no config on disk.
    workdir: WORKDIR, or None.

  Raises:
    UserError: the config holds out other pictures than the run did.
  """
  stored = _read(workdir)
  fields = stored or config_dict(config)
  found = [Trained('this run', fields['data'])]
  theirs, ours = fields['data'].get('holdout'), config.data.holdout
  if theirs != ours:
    raise UserError(
      f'data.holdout is {ours or "none"}, but the run in {workdir} was trained with '
      f'{theirs or "none"}: a test split is made when training begins, so leave it as it was'
    )
  for _ in range(_MAX_BRANCHES):
    origin = fields.get('init_from')
    if not origin or packaged_model(origin) is not None:  # which are of train splits
      return found
    folders = map(expanded, (origin, origin.rpartition('@')[0]))
    fields = next(filter(None, map(_read, folders)), None)
    data_of = None if fields is None else fields['data']
    found.append(Trained(f'{origin}, which this run began from,', data_of))
    if fields is None:
      return found
  return found


def _read(workdir):
  """The config of a workdir as plain values, the same on all processes; None if it has none."""
  file = None if workdir is None else workdir / CONFIG_FILE
  stored = read_json(file) if processes.is_primary() and file and file.is_file() else None
  stored = json.loads(processes.from_primary(json.dumps(stored)))
  return stored if isinstance(stored, dict) and 'data' in stored else None


def seen(config: ConfigDict, split: str, trained: Sequence[Trained]) -> str | None:
  """Says why the pictures of a split may have been trained on, if its name says the opposite.

  Args:
    config: ConfigDict, whose data the split is of.
    split: its name.
    trained: as trained_on gives it.

  Returns:
    a line, or None for a split that was not trained on, or whose name claims nothing.
  """
  if not data.is_held_out(split):
    return None
  for run in trained:
    theirs = run.data
    if theirs is None or not _same_source(config.data, theirs):
      continue
    is_made = split == 'test' and config.data.holdout is not None
    if is_made and theirs.get('holdout') == config.data.holdout and theirs['split'] == 'train':
      continue
    if is_made or data.share_pictures(theirs['split'], split):
      how = f'data.split={theirs["split"]}, data.holdout={theirs.get("holdout")}'
      return f'No figures of the split {split}: {run.where} trained on its pictures ({how})'
  return None


def _same_source(ours, theirs):
  """Whether the data of two configs may be the same; a folder may have moved."""
  names = ours.source, theirs['source']
  forms = [name.partition(':')[0] if name.startswith('folder:') else name for name in names]
  return forms[0] == forms[1]


def measured(
  config: ConfigDict,
  splits: Sequence[str],
  trained: Sequence[Trained],
  *,
  field: str,
  open_split: Callable[[str], data.Source],
) -> tuple[list[data.Source], list[str]]:
  """Opens the splits to measure, but for held-out ones that the data lack or that were trained on.

  Args:
    config: ConfigDict.
    splits: their names.
    trained: as trained_on gives it.
    field: of the config that names them, for errors.
    open_split: split -> Source.

  Returns:
    (sources, lines on what is left out).

  Raises:
    UserError: none is left.
  """
  sources, lines = [], []
  for split in splits:
    try:
      line = seen(config, split, trained)
      source = None if line else open_split(split)
    except data.NoSplitError as error:
      if not data.is_held_out(split):
        raise
      source, line = None, f'No figures of the split {split}: {error}'
    if source is not None and data.is_held_out(split):
      line = _seen_files(config, source, _split_of(trained[0]), open_split)
      unknown = [run.where for run in trained if run.data is None]
      if not line and unknown:
        lines.append(f'{unknown[0]} does not tell whether it trained on the split {split}.')
    if line:
      lines.append(line)
    elif source is not None:
      sources.append(source)
  if splits and not sources:
    raise UserError(f'{field}: {"; ".join(lines)}')
  return sources, lines


def _split_of(run):
  assert run.data is not None
  return run.data['split']


def _seen_files(config, source, trained_split, open_split):
  """A line on pictures of a held-out split that are files of the training split, by links."""
  files = data.told(source, 'picture_files')
  if files is None or not _same_source(config.data, {'source': source.name}):
    return None
  try:
    theirs = data.told(open_split(trained_split), 'picture_files') or ()
  except UserError:  # the data that were trained on are not there any more
    return None
  known = {(file.device, file.inode) for file in theirs}
  count = sum((file.device, file.inode) in known for file in files)
  if not count:
    return None
  return (
    f'No figures of the split {source.split}: {count} of its {len(files)} pictures are files of '
    f'the split {trained_split}, which was trained on'
  )
