"""The folder of a run: made, locked against a second process, and tied to one config.

format.json      the version of this layout; a workdir of a newer program is refused, untouched
run.json         the name of the run, and whether it has saved a step
config.json      the config of the run
data.json        what its pictures were when it was last begun
classes.json     the names of their classes, of a model with labels
arithmetic.json  what chose another arithmetic than the usual one, if anything did
import.json      where its first checkpoint came from, if from another program
metrics.jsonl    one object a logged step; metrics.dropped.jsonl has what a run that goes on from an
                 earlier step takes out of it
tensorboard/     the same for TensorBoard, and sample grids
checkpoints/     the states of the run
samples/         step_XXXXXXXX/SAMPLER_KEY/samples.npz and grid.png
eval/            step_XXXXXXXX/: reports, bounds and features, each NAME_KEY/; best.json
reproduce/       step_XXXXXXXX/FIGURE_KEY/
"""

import contextlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax import processes
from ddpm_jax.diffusion.gaussians import levels_of
from ddpm_jax.diffusion.schedules import with_defaults
from ddpm_jax.errors import UserError, WriteError
from ddpm_jax.paths import expanded
from ddpm_jax.storage.files import (
  damaged,
  make_writable,
  read_json,
  read_object,
  try_lock,
  write_text,
)

FORMAT = 2  # 1 had one folder of results a step, and no FORMAT_FILE
FORMAT_FILE = 'format.json'

# What begins the address of a bucket, to libraries that read and write those.
_BUCKETS = ('gs:', 's3:', 'az:', 'hf:')

# How values become x_0.
ENCODING_FIELDS = ('data.levels', 'data.dtype', 'data.lowest', 'data.shift', 'data.scale')

# What decides the course of a run. Everything else (how long, how often to log, where the data lie)
# may change when it goes on.
FIXED_FIELDS = (
  'seed',
  'network',
  'data.source',
  'data.split',
  'data.holdout',
  'data.stride',
  'data.feature',
  'data.image_size',
  'data.channels',
  *ENCODING_FIELDS,
  'data.labels',
  'data.random_flip',
  'diffusion',
  'model',
  'optim',
  'train.global_batch_size',
  'train.label_dropout',
  'train.timesteps',
  'train.loss_weight',
  'train.loss_weight_number',
)


# What changes how steps are computed, but not what.
FREE_FIELDS = ('model.remat',)
# What versions before did not have, and did as with none.
LATER_FIELDS = ('diffusion.sigma_data',)


def config_dict(config: ConfigDict) -> dict[str, Any]:
  """The config as plain JSON values, with the schedule that goes with the data's levels."""
  values = json.loads(config.to_json())
  levels = levels_of(values['data']['levels'])
  return values | {'diffusion': with_defaults(values['diffusion'], levels)}


def deciding_fields(config: ConfigDict, section: str) -> dict[str, Any]:
  """A section's plain values without FREE_FIELDS, and without LATER_FIELDS that are none."""

  def decides(field, value):
    return field not in FREE_FIELDS and (field not in LATER_FIELDS or value is not None)

  values = config_dict(config)[section]
  return {name: x for name, x in values.items() if decides(f'{section}.{name}', x)}


def workdir_path(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """The path of a workdir, which need not be there.

  Raises:
    UserError: nothing is given, since '' would be the current folder; or an address, such as
      gs://bucket/run.
  """
  if not os.fspath(workdir):
    raise UserError('the path of the workdir is empty; give a folder')
  if '://' in os.fspath(workdir):
    raise UserError(f'--workdir={workdir} is an address; give a local folder')
  return expanded(workdir)


def check_path(path: str | os.PathLike[str], *, writes: bool) -> None:
  """Raises a UserError for a path that the library of checkpoints takes for another one.

  Args:
    path: of a folder of checkpoints, or of one above.
    writes: whether steps are written there: a step that is there can be read below a name such as
      lr=[1e-3], but what is written there is lost.
  """
  path = pathlib.Path(path).absolute()
  try:
    str(path).encode()
  except UnicodeEncodeError:
    raise UserError(f'{str(path)!a} is not UTF-8; give a folder whose path is') from None
  found = [c for c in ('\\[]*?' if writes else '\\') if c in str(path)]
  found += [f'{name}/' for name in path.parts if name in _BUCKETS]
  if path.parts[1:2] and f'{path.parts[1]}:' in _BUCKETS:  # /gs/bucket
    found.append(f'/{path.parts[1]}/')
  if found:
    raise UserError(
      f'{path} has {" and ".join(found)} in it, which the library of checkpoints takes for '
      'something else, a pattern or an address; give a folder without'
    )


def steps_on_disk(directory: pathlib.Path) -> list[int]:
  """The finished steps in a folder of checkpoints, ascending; none where it is not there."""
  if not directory.is_dir():
    return []
  # 007 is not the name of step 7.
  is_step = re.compile('0|[1-9][0-9]*').fullmatch
  return sorted(int(p.name) for p in directory.iterdir() if is_step(p.name) and p.is_dir())


def open_workdir(workdir: str | os.PathLike[str], *, saves_steps: bool = False) -> pathlib.Path:
  """Makes the folder, or says why it cannot be used.

  Args:
    workdir: its path.
    saves_steps: whether checkpoints are written there.

  Returns:
    its pathlib.Path.

  Raises:
    UserError: not a folder, not writable, or a path that checkpoints cannot have.
  """
  path = workdir_path(workdir)
  check_path(path, writes=saves_steps)
  check_format(path)
  try:
    make_writable(path)
  except OSError as error:
    raise UserError(
      f'--workdir={workdir} cannot be written ({error.strerror}); give a folder that can'
    ) from error
  blind = processes.not_shared_with(path)
  if blind is not None:
    raise UserError(
      f'--workdir={path} of process {blind} is not the folder of process 0: give one on a file '
      'system that all processes share'
    )
  return path


def check_unused(workdir: str | os.PathLike[str]) -> None:
  """Raises a UserError for a folder that cannot have a new run, or that holds one."""
  path = workdir_path(workdir)
  check_path(path, writes=True)
  if steps_on_disk(path / 'checkpoints') or (path / 'metrics.jsonl').exists():
    raise UserError(f'--workdir={workdir} holds a run already; give another workdir')


def find_workdir(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """The folder of a run that has been trained.

  Raises:
    UserError: it holds no checkpoints.
  """
  path = workdir_path(workdir)
  if path.is_file():
    raise UserError(f'--workdir={workdir} is a file; give the folder of a run')
  if not (path / 'checkpoints').is_dir():
    raise UserError(
      f'--workdir={workdir} holds no checkpoint; run --mode=train first, or check the path'
    )
  check_format(path)
  return path


def check_format(path: pathlib.Path) -> None:
  """Raises a UserError for a workdir of a newer program. One without a version is of the first."""
  file = path / FORMAT_FILE
  if not file.is_file():
    return
  found = read_json(file)
  version = found.get('format') if isinstance(found, dict) else None
  if not isinstance(version, int):
    raise damaged(file, 'no version')
  if version > FORMAT:
    raise UserError(
      f'--workdir={path} is of a newer version of this program (format {version}; this one knows '
      f'up to {FORMAT}): update the program, or give another workdir'
    )


@contextlib.contextmanager
def locked(path: pathlib.Path, mode: str) -> Iterator[None]:
  """Holds WORKDIR for one process of a mode; the lock goes with the process, however it ends.

  Raises:
    UserError: another process holds it.
  """
  with open(path / f'.{mode}.lock', 'a+', errors='replace') as file:
    if not try_lock(file):
      file.seek(0)
      raise UserError(
        f'--workdir={path} is in use by another --mode={mode} (process {file.read().strip()}); '
        'wait for it, stop it, or give another workdir'
      )
    try:
      file.truncate(0)
      os.write(file.fileno(), str(os.getpid()).encode())
    except OSError as error:
      raise WriteError(file.name, error) from error
    yield


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """{'section.field': value} of nested dicts."""
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat |= flatten(value, f'{prefix}{name}.')
    else:
      flat[prefix + name] = value
  return flat


def differences(
  one: Mapping[str, Any], other: Mapping[str, Any], called: tuple[str, str]
) -> list[str]:
  """Compares two flat dicts.

  Args:
    one, other: dicts.
    called: what to call the two.

  Returns:
    a line for each name that differs, such as 'model.ch: checkpoint 64, config 128'; sorted.
  """
  return [
    f'{name}: {called[0]} {one.get(name, "absent")}, {called[1]} {other.get(name, "absent")}'
    for name in sorted(one.keys() | other.keys())
    if one.get(name, 'absent') != other.get(name, 'absent')
  ]


def differing_fields(
  stored: Mapping[str, Any],
  current: Mapping[str, Any],
  fields: Sequence[str],
  *,
  stored_name: str,
  free: Sequence[str] = FREE_FIELDS,
) -> list[str]:
  """Compares two configs.

  Args:
    stored: dict of plain values, as config_dict gives it.
    current: likewise.
    fields: paths of the sections or fields to compare.
    stored_name: what to call the first in the lines.
    free: fields of them that may differ.

  Returns:
    a line for each field that differs, such as 'model.ch: checkpoint 64, config 128'; sorted.
  """
  # An earlier version had not all of today's fields: those that it lacked are None in its runs.
  stored, current = flatten(stored), flatten(current)
  current = {name: x for name, x in current.items() if x is not None or name in stored}

  def is_compared(name):
    return name not in free and any(f'{name}.'.startswith(f'{field}.') for field in fields)

  stored, current = (
    {name: x for name, x in tree.items() if is_compared(name)} for tree in (stored, current)
  )
  return differences(stored, current, (stored_name, 'config'))


def has_begun(path: pathlib.Path) -> bool:
  """Whether WORKDIR has something of a run: a checkpoint, or logged steps."""
  log = path / 'metrics.jsonl'
  return bool(steps_on_disk(path / 'checkpoints')) or (log.exists() and log.stat().st_size > 0)


def _unmoved(config):
  """The config without the place of a folder of pictures, which may move: data.json has them."""
  data = config.get('data') if isinstance(config, dict) else None
  if not isinstance(data, dict) or not str(data.get('source')).startswith('folder:'):
    return config
  return {**config, 'data': {**data, 'source': 'folder:'}}


def check_config(path: pathlib.Path, config: ConfigDict) -> None:
  """Raises a UserError if the run that has begun there, if any, is one of another config.

  All fields are named that decide the course of the run and differ.
  """
  file = path / 'config.json'
  if file.exists() and has_begun(path):
    stored, current = _unmoved(read_object(file)), _unmoved(config_dict(config))
    differing = differing_fields(stored, current, FIXED_FIELDS, stored_name='workdir')
    if differing:
      raise UserError(
        f'--workdir={path} holds a run of another config ({"; ".join(differing)}); '
        'give the config of that run, or another workdir, with init_from for a branch of that run'
      )


def store_config(path: pathlib.Path, config: ConfigDict) -> None:
  """Writes config.json; the config of a run that has begun is not replaced by another one.

  Raises:
    UserError: as check_config.
  """
  check_config(path, config)
  write_text(path / FORMAT_FILE, json.dumps({'format': FORMAT}) + '\n')
  write_text(path / 'config.json', json.dumps(config_dict(config), indent=2) + '\n')


def store_arithmetic(path: pathlib.Path, facts: Mapping[str, Any]) -> None:
  """Notes what chooses an arithmetic from outside; a run that has begun goes on with the same.

  Args:
    path: WORKDIR.
    facts: as numerics.arithmetic has them; usually none, and then there is no file.

  Raises:
    UserError: others than those that the run began with.
  """
  file = path / 'arithmetic.json'
  stored = read_json(file) if file.exists() else {}
  if not isinstance(stored, dict):
    raise UserError(f'{file} is damaged: put back what it had')
  if stored == facts:
    return
  if has_begun(path):
    differing = differences(stored, facts, ('then', 'now'))
    raise UserError(
      f'--workdir={path} holds a run of another arithmetic ({"; ".join(differing)}): set that as '
      'it was, or give another workdir'
    )
  write_text(file, json.dumps(facts, indent=2) + '\n')
