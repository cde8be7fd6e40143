"""The folder of a run: made, locked against a second process, and tied to one config.

config.json      the config of the run
import.json      where its first checkpoint came from, if from another program
metrics.jsonl    one object a logged step
tensorboard/     the same for TensorBoard, and sample grids
checkpoints/     the states of the run
samples/         step_XXXXXXXX/samples.npz and grid.png
"""

import contextlib
import fcntl
import json
import os
import pathlib

from ddpm_jax import parallel
from ddpm_jax.files import WriteError, make_writable, read_json, write_text

# What decides the course of a run. Everything else (how long, how often to log, where the data lie)
# may change when it goes on.
FIXED_FIELDS = (
  'seed',
  'data.source',
  'data.split',
  'data.image_size',
  'data.channels',
  'data.random_flip',
  'diffusion',
  'model',
  'optim',
  'train.global_batch_size',
)


# What changes how steps are computed, but not what.
FREE_FIELDS = ('model.remat',)


def config_dict(config):
  """The config as plain JSON values."""
  return json.loads(config.to_json())


def deciding_fields(config, section):
  """A section's plain values without FREE_FIELDS."""
  values = config_dict(config)[section]
  return {name: x for name, x in values.items() if f'{section}.{name}' not in FREE_FIELDS}


def open_workdir(workdir):
  """Makes the folder, or says why it cannot be used.

  Returns:
    its pathlib.Path.

  Raises:
    ValueError: not a folder, or not writable.
  """
  path = pathlib.Path(workdir).expanduser()
  try:
    make_writable(path)
  except OSError as error:
    raise ValueError(
      f'--workdir={workdir} cannot be written ({error.strerror}); give a folder that can'
    ) from error
  blind = parallel.not_shared_with(path)
  if blind is not None:
    raise ValueError(
      f'--workdir={path} of process {blind} is not the folder of process 0: give one on a file '
      'system that all processes share'
    )
  return path


def find_workdir(workdir):
  """The folder of a run that has been trained.

  Raises:
    ValueError: it holds no checkpoints.
  """
  path = pathlib.Path(workdir).expanduser()
  if not (path / 'checkpoints').is_dir():
    raise ValueError(
      f'--workdir={workdir} holds no checkpoint; run --mode=train first, or check the path'
    )
  return path


@contextlib.contextmanager
def locked(path, mode):
  """Holds WORKDIR for one process of a mode; the lock goes with the process, however it ends.

  Raises:
    ValueError: another process holds it.
  """
  with open(path / f'.{mode}.lock', 'a+') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      file.seek(0)
      raise ValueError(
        f'--workdir={path} is in use by another --mode={mode} (process {file.read().strip()}); '
        'wait for it, stop it, or give another workdir'
      ) from error
    try:
      file.truncate(0)
      os.write(file.fileno(), str(os.getpid()).encode())
    except OSError as error:
      raise WriteError(file.name, error) from error
    yield


def flatten(tree, prefix=''):
  """{'section.field': value} of nested dicts."""
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat |= flatten(value, f'{prefix}{name}.')
    else:
      flat[prefix + name] = value
  return flat


def differing_fields(stored, current, fields, *, stored_name, free=FREE_FIELDS):
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
  stored, current = flatten(stored), flatten(current)
  names = sorted(
    name
    for name in stored.keys() | current.keys()
    if name not in free and any(f'{name}.'.startswith(f'{field}.') for field in fields)
  )
  return [
    f'{name}: {stored_name} {stored.get(name, "absent")}, config {current.get(name, "absent")}'
    for name in names
    if stored.get(name, 'absent') != current.get(name, 'absent')
  ]


def store_config(path, config):
  """Writes config.json, once the run that is already there, if any, is found to be the same one.

  Raises:
    ValueError: a field that decides the course of the run differs; all such are named.
  """
  file = path / 'config.json'
  current = config_dict(config)
  if file.exists():
    stored = read_json(file)
    differing = differing_fields(stored, current, FIXED_FIELDS, stored_name='workdir')
    if differing:
      raise ValueError(
        f'--workdir={path} holds a run of another config ({"; ".join(differing)}); '
        'give another workdir, or the config of that run'
      )
  write_text(file, json.dumps(current, indent=2) + '\n')
