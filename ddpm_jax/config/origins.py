"""Models that a run or a Python session starts from: where they are, their configs, their weights.

A model is given as one of

  WORKDIR or WORKDIR@STEP   a run of this program
  digits                    a model of the package (models/NAME/)
  anything else             a model of another program, as interop.foreign has it
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import devices, processes
from ddpm_jax.config import build
from ddpm_jax.config.fields import AUTO, DATA, check_value
from ddpm_jax.config.files import CONFIG_FILE, packaged_model, packaged_models
from ddpm_jax.configs import default
from ddpm_jax.data import Source, find_encoding, read_class_names, read_labels
from ddpm_jax.data.encoding import CONTINUOUS
from ddpm_jax.data.sources import takes_pictures
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.weights import Weights, make_weights, parameters_sha256
from ddpm_jax.interop import diffusers, hub, tf_bundle
from ddpm_jax.interop.foreign import FORMS, read_foreign
from ddpm_jax.interop.safetensors_file import read_safetensors
from ddpm_jax.interop.tensors import params_from_tensors
from ddpm_jax.paths import expanded
from ddpm_jax.storage.checkpoints import named_leaves
from ddpm_jax.storage.files import damaged, default_cache_dir, read_json, read_object
from ddpm_jax.storage.workdir import (
  ENCODING_FIELDS,
  check_format,
  config_dict,
  differences,
  flatten,
  has_begun,
  workdir_path,
)

PACKAGED_WEIGHTS = 'ema_params.safetensors'
PACKAGED_ABOUT = 'about.json'
MAX_LISTED = 5


@dataclasses.dataclass(frozen=True)
class Start:
  """What a run starts from.

  Attributes:
    params, ema_params: the weights and their moving average; of one set, the same object.
    opt_state: of the optimizer, where it is taken over; otherwise None.
    step: of the model, 0 where none is told.
    sha256: of the checkpoint's manifest or of the parameters.
    is_checkpoint: whether it is one of this program.
  """

  params: Any
  ema_params: Any
  opt_state: Any
  step: int
  sha256: str
  is_checkpoint: bool = False

  @property
  def is_one_set(self) -> bool:
    """Whether the moving average is the weights themselves."""
    return self.ema_params is self.params


def split_step(given: str) -> tuple[str, int | None]:
  """('runs/a', 800) of 'runs/a@800' or 'runs/a/checkpoints/800'; other paths as they stand."""
  inside = re.fullmatch(r'(.+)/checkpoints(?:/(\d+))?/?', given)
  if inside is not None and is_workdir(expanded(inside[1])):
    return inside[1], None if inside[2] is None else int(inside[2])
  match = re.fullmatch(r'(.+)@(\d+)', given)
  if match is None or os.path.exists(os.path.expanduser(given)):
    return given, None
  return match[1], int(match[2])


def is_workdir(folder: pathlib.Path) -> bool:
  """Whether a folder has checkpoints of this program."""
  return os.path.isdir(folder / 'checkpoints')  # False of a name that is too long


def kept_folder(given: str, name: str) -> pathlib.Path:
  """Where what is measured of a model once is kept: in its workdir, or in the user's cache.

  Args:
    given: the model.
    name: of the folder there.
  """
  folder = find_folder(given)
  workdir = folder if folder is not None and is_workdir(folder) else None
  return (workdir or default_cache_dir()) / name


def find_folder(given: str) -> pathlib.Path | None:
  """The folder of a workdir, of a model of the package or of a pipeline; None of anything else."""
  name, _ = split_step(given)
  path = workdir_path(name)
  if os.path.exists(path):
    return path if path.is_dir() else None
  if (packaged := packaged_model(name)) is not None:
    return packaged
  return hub.fetch_pipeline(name, default_cache_dir()) if hub.is_hub_id(name) else None


def config_of(given: str) -> ConfigDict:
  """The config that a model brings.

  Raises:
    UserError: nothing is there, or nothing that tells its config.
  """
  folder = find_folder(given)
  if folder is None and not _is_something(given):
    raise nothing_at(given)
  if folder is not None and not any(folder.iterdir()):
    raise UserError(f'{given} is an empty folder: it holds no model')
  config = None
  if folder is not None:
    check_format(folder)
    config = read_config(folder)
  if config is None:
    raise UserError(
      f'{given} does not tell its config; if it is a model, name its config, as in '
      "--config=configs/cifar10.py or ddpm_jax.load(..., config='cifar10')"
    )
  return config


def config_from(stored: Any, name: str) -> ConfigDict:
  """A config from its JSON values; a field that they lack, as those of earlier versions do, has its
  default.

  Args:
    stored: nested dicts of plain values, as JSON has them.
    name: of their file, for errors.

  Raises:
    UserError: no dict, a field that is not known, or a value of another type or out of range.
  """
  if not isinstance(stored, Mapping):
    raise damaged(pathlib.Path(name), 'it is no config')
  config = default.get_config()
  values = flatten(stored)
  known = set(flatten(config.to_dict()))
  if unknown := sorted(values.keys() - known):
    raise UserError(f'{name} has fields that this version does not know: {", ".join(unknown)}')
  try:
    for field, value in values.items():
      value = tuple(value) if isinstance(value, list) else value
      config.update_from_flattened_dict({field: value})
      check_value(field, value)
  except UserError as error:
    raise UserError(f'{name}: {error}') from error
  except (TypeError, ValueError, AttributeError, OverflowError) as error:
    raise UserError(f'{name}: {field} is {value!r} ({error})') from error
  return config


def read_config(folder: pathlib.Path) -> ConfigDict | None:
  """The config of a workdir, of a model of the package or of a pipeline; None if it has none."""
  if (file := folder / CONFIG_FILE).is_file():
    stored = read_json(file)
    if is_workdir(folder) or (isinstance(stored, dict) and 'diffusion' in stored):
      return config_from(stored, str(file))
  if folder.is_dir() and diffusers.find_pipeline(folder):
    return diffusers.read_config(folder, default.get_config())
  return None


def config_of_file(file: pathlib.Path) -> ConfigDict:
  """The config of a config.json, or of the pipeline whose file it is."""
  config = read_config(file.parent) if file.name == CONFIG_FILE else None
  return config_from(read_json(file), str(file)) if config is None else config


def _is_something(given):
  """Whether a path is that of a file, or of a checkpoint of TensorFlow."""
  path = os.path.expanduser(given)
  return os.path.exists(path) or tf_bundle.find_bundle(pathlib.Path(path)) is not None


def nothing_at(given: str) -> UserError:
  """The error of a path without a model."""
  found = 'a file, which tells no model' if os.path.isfile(given) else 'nothing there'
  return UserError(
    f'{given}: {found}; give a workdir, a model of the package '
    f'({", ".join(packaged_models())}), {FORMS}'
  )


def read_weights(
  given: str,
  config: ConfigDict,
  *,
  step: int | None = None,
  ema: bool = True,
  params_like: Any = None,
) -> Weights:
  """The parameters of a model, on all devices.

  Args:
    given: the model.
    config: ConfigDict, whose model it is to be.
    step: of a workdir's checkpoints; None for that of `given`, or else the newest.
    ema: the moving average, or the weights themselves.
    params_like: a tree of arrays or ShapeDtypeStructs, of one's own network; None for the U-Net's.

  Raises:
    UserError: a step that is not there, another model, or a file that cannot be read.
  """
  name, own_step = split_step(given)
  step = own_step if step is None else step
  folder = find_folder(given)
  if folder is not None and is_workdir(folder):
    if ema:
      return build.restore_weights(config, folder, step, params_like)
    start = _read_workdir(folder, config, step, params_like)
  else:
    if step is not None:
      raise UserError(f'{name} has no steps to choose from, and step is {step}; leave it out')
    if not ema and packaged_model(name) == folder:
      raise UserError(f'{name} has its moving average alone; leave out ema=False')
    start = _read_other(given, folder, config)
  params = start.ema_params if ema else start.params
  return make_weights(start.step, devices.replicate(params), start.sha256)


def read_start(given: str, config: ConfigDict, *, optimizer_state: bool) -> Start:
  """What a run begins with that starts from a model.

  Args:
    given: the model.
    config: ConfigDict of the new run.
    optimizer_state: whether to take over the state of the optimizer, which workdirs alone have.

  Raises:
    UserError: as read_weights; the first tensors that differ are named.
  """
  name, step = split_step(given)
  folder = find_folder(given)
  if folder is None or not is_workdir(folder):
    if optimizer_state:
      raise UserError(f'init_optimizer is True, but {name} has no optimizer state; leave it out')
    return _read_other(given, folder, config)
  theirs = config_of(given)
  start = _read_workdir(folder, theirs, step)
  like = jax.eval_shape(lambda: build.init_params(config))
  _check_same_shapes(given, start.params, like)
  if not optimizer_state:
    return dataclasses.replace(start, opt_state=None)
  ours = jax.eval_shape(build.optimizer(config).init, like)
  if jax.tree.structure(ours) != jax.tree.structure(start.opt_state):
    one, other = (flatten({'optim': config_dict(x)['optim']}) for x in (theirs, config))
    differing = '; '.join(differences(one, other, ('there', 'here')))
    raise UserError(
      f'init_optimizer is True, but {name} has the state of another optimizer ({differing}): leave '
      'init_optimizer out, or give the fields of that one'
    )
  return start


def _read_workdir(folder, config, step, params_like=None):
  """The Start of a checkpoint."""
  state_like = jax.eval_shape(
    lambda like: build.init_state(config, build.init_params(config) if like is None else like),
    params_like,
  )
  with build.checkpointer(config, folder, read_only=True) as checkpoints:
    step, state, checksum = checkpoints.restore_state(state_like, step)
  return Start(state.params, state.ema_params, state.opt_state, step, checksum, True)


def _read_other(given, folder, config):
  """The Start of a model of the package, or of another program."""
  like = jax.eval_shape(lambda: build.init_params(config))
  if folder is not None and (file := folder / PACKAGED_WEIGHTS).is_file():
    params, step = read_packaged(file, like), read_json(folder / PACKAGED_ABOUT)['step']
    ema_params = params
  else:
    if folder is None and not _is_something(given):
      raise nothing_at(given)
    cache_dir = build.cache_dir(config)
    path = given if folder is None else str(folder)
    params, ema_params, step = read_foreign(path, config, like, cache_dir=cache_dir)
  return Start(params, ema_params, None, step, parameters_sha256(ema_params))


def read_packaged(file: pathlib.Path, params_like: Any) -> Any:
  """The parameters of a model of the package, in float32."""
  tensors = {name: array.astype(np.float32) for name, array in read_safetensors(file).items()}
  try:
    return params_from_tensors(tensors, params_like, lambda path, _: ('.'.join(path), 'same'))
  except UserError as error:
    raise UserError(f'{file}: {error}') from error


def _check_same_shapes(given, params, like):
  """Raises a UserError that names the first tensors whose shapes differ."""

  theirs, ours = (
    {name: list(x.shape) for name, x in named_leaves(tree).items()} for tree in (params, like)
  )
  differing = differences(theirs, ours, ('there', 'here'))
  if differing:
    more = f'; and {len(differing) - MAX_LISTED} more' if len(differing) > MAX_LISTED else ''
    raise UserError(
      f'init_from={given} has a model of another shape '
      f'({"; ".join(differing[:MAX_LISTED])}{more}): leave the model, the channels and '
      'the kind of variance as they are there'
    )


def class_names(given: str | os.PathLike[str]) -> tuple[str, ...] | None:
  """The names of a model's classes; None where it has none, or tells none."""
  folder = _local_folder(given)
  return None if folder is None else read_class_names(folder)


def _local_folder(given):
  """As find_folder, but nothing is fetched."""
  name, _ = split_step(os.fspath(given))
  path = workdir_path(name)
  return path if os.path.isdir(path) else packaged_model(name)  # False of a name that is too long


def with_data(
  config: ConfigDict, *models: str | os.PathLike[str] | None, source: Source | None = None
) -> ConfigDict:
  """The config with what is left to the data: how values are stored, and the number of classes.

  Args:
    config: ConfigDict.
    models: the first that is there, and has classes, decides: a run that has begun. Where there is
      none, the data of config.data tell.
    source: of the training split; None for that of config.data.
  """
  config = with_dtype(config, *models)
  return _with_classes(_with_encoding(config, models, source), models)


def with_dtype(config: ConfigDict, *models: str | os.PathLike[str] | None) -> ConfigDict:
  """The config with a name for model.dtype=auto: that of a model, or what suits the devices.

  Args:
    config: ConfigDict.
    models: the first that is there decides, so that a run keeps its dtype on other devices.
  """
  if config.model.dtype != AUTO:
    return config
  config = config.copy_and_resolve_references()
  config.model.dtype = build.dtype_name(config)
  for given in filter(None, models):
    folder = _local_folder(given)
    stored = read_config(folder) if folder is not None and _has_model(folder) else None
    if stored is not None and stored.model.dtype != AUTO:
      config.model.dtype = stored.model.dtype
      break
  return config


def _with_encoding(config, models, source):
  """The config with data.dtype and what goes with it, and with data.rate and data.channel_names,
  of data that are no pictures."""
  if config.data.dtype is not None or takes_pictures(config.data.source):
    return config
  config = config.copy_and_resolve_references()
  for given in filter(None, models):
    folder = _local_folder(given)
    stored = read_config(folder) if folder is not None and _has_model(folder) else None
    if stored is not None:
      facts = {name: stored.data[name] for name in _OF_ENCODING}
      return _with_facts(config, facts, stored.data.rate, stored.data.channel_names)
  if source is None:
    source = build.stored_source(config)
  return _with_facts(
    config,
    _encoding_facts(config.data, source),
    getattr(source, 'rate', None),
    getattr(source, 'channel_names', None),
  )


def _encoding_facts(fields, source):
  """The fields of config.data that say how the values of a source are stored."""
  if fields.shift is not None and fields.scale is not None:
    return {'dtype': 'float32', 'levels': CONTINUOUS}
  found = find_encoding(source, fields.levels, fields.lowest, fields.channels)
  if found.is_of_pictures:
    return {}
  facts = {'dtype': found.dtype, 'levels': found.levels, 'lowest': found.lowest}
  if found.levels is None:
    facts |= {'levels': CONTINUOUS, 'lowest': None, 'shift': found.shift, 'scale': found.scale}
  return facts


def _with_facts(config, facts, rate, channel_names):
  """The config with fields of config.data, and with these two unless it says them itself."""
  with config.ignore_type():
    config.data.update(facts)
  if config.data.rate is None and rate is not None:
    config.data.rate = float(rate)
  if config.data.channel_names is None and channel_names is not None:
    config.data.channel_names = tuple(channel_names)
  return config.lock()


def _with_classes(config, models):
  if config.model.num_classes != DATA:
    return config
  config = config.copy_and_resolve_references()
  for given in filter(None, models):
    folder = _local_folder(given)
    stored = read_config(folder) if folder is not None and _has_model(folder) else None
    if stored is not None and isinstance(stored.model.num_classes, int):
      return _with_number(config, stored.model.num_classes)
  labels = read_labels(build.source(config), config.data.labels)
  return _with_number(config, len(labels.names))


def _with_number(config, number):
  with config.ignore_type():  # of the text that was there
    config.model.num_classes = number
  return config.lock()


_OF_ENCODING = tuple(name.removeprefix('data.') for name in ENCODING_FIELDS)


def _has_model(folder):
  return has_begun(folder) if is_workdir(folder) else packaged_model(folder.name) == folder


def settled(config: ConfigDict, workdir: pathlib.Path) -> ConfigDict:
  """The config with init_from and the average of --mode=ema as the run in this workdir has them.

  Raises:
    UserError: the run began from another model, or has another average.
  """
  config = config.copy_and_resolve_references()
  given = config.init_from
  if given and os.path.exists(path := os.path.expanduser(split_step(given)[0])):
    step = split_step(given)[1]
    given = os.path.realpath(path) + ('' if step is None else f'@{step}')
  file = workdir / CONFIG_FILE
  stored = read_object(file) if processes.is_primary() and file.exists() else None
  stored = json.loads(processes.from_primary(json.dumps(stored)))
  averages = (stored or {}).get('ema') or {}
  if not isinstance(averages, dict):
    raise damaged(file, f'ema is {averages!r}')
  for field, asked in config.ema.items():
    own = averages.get(field)
    if asked not in (None, own):
      raise UserError(
        f'ema.{field} is {asked}, which makes another workdir with --mode=ema, and the average of '
        f'{workdir} has {own}: leave it out'
      )
    config.ema[field] = own
  if stored is not None:
    begun_from = stored.get('init_from')
    if not isinstance(begun_from, str | None):
      raise damaged(file, f'init_from is {begun_from!r}')
    is_same = given is None or given in (begun_from, split_step(begun_from or '')[0])
    if not is_same and has_begun(workdir):
      began = f'began from {begun_from}' if begun_from else 'did not begin from another model'
      raise UserError(
        f'init_from is {given}, but the run in {workdir} {began}: leave it out, or give another '
        'workdir for a new branch'
      )
    given = begun_from if is_same else given
  config.init_from = given
  return config
