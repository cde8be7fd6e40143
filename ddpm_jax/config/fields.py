"""The type and the range of every field of a config, so that no later code meets another value."""

import difflib
import math
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from ddpm_jax.configs import default
from ddpm_jax.data.encoding import CONTINUOUS, MAX_LEVELS
from ddpm_jax.errors import UserError

MAX_SEED = 2**32 - 1  # beyond it, JAX makes keys that smaller seeds have, too
_MAX_EMA_WIDTH = 0.28  # that of training.averages, which is not imported: jax takes a second
_MAX_INT = 2**31 - 1  # of what JAX counts
_MAX_FLOAT = 3.4e38  # of float32
_MAX_IMAGES = 10**8  # drawn at once; their ids and pixels lie in memory
_BELOW_ONE = 1 - 2**-24  # in float32
_MIN_EPS = 1e-30  # a square root of float32 and more: 0 / 0 where a gradient is 0, otherwise
_MAX_SHOWN = 100  # characters
_MIN_BETA = 1e-10  # below it, 1 - beta has lost the digits of beta

# Least and greatest value, both allowed; of a tuple, those of its elements.
LIMITS: dict[str, tuple[float, float]] = {
  'seed': (0, MAX_SEED),
  'data.image_size': (1, 2**16),
  'data.channels': (1, 2**10),
  'data.levels': (2, MAX_LEVELS),
  'data.lowest': (-(2**31), 2**31),
  'data.shift': (-_MAX_FLOAT, _MAX_FLOAT),
  'data.scale': (1e-37, _MAX_FLOAT),
  'data.rate': (1e-9, 1e12),
  'data.holdout': (0, 1),
  'data.stride': (1, _MAX_INT),
  'data.memory_limit_gib': (0, 2**30),
  'data.device_limit_gib': (0, 2**30),
  'data.num_workers': (0, 1024),
  'diffusion.num_timesteps': (1, 10**6),
  'diffusion.beta_start': (_MIN_BETA, 1),
  'diffusion.beta_end': (_MIN_BETA, 1),
  'model.ch': (1, 2**16),
  'model.ch_mult': (1, 2**10),
  'model.num_groups': (1, 2**16),
  'model.num_res_blocks': (1, 2**10),
  'model.attn_resolutions': (1, 2**16),
  'model.dropout': (0, _BELOW_ONE),
  'model.num_classes': (1, 10**6),
  'optim.learning_rate': (0, _MAX_FLOAT),
  'optim.warmup_steps': (0, _MAX_INT),
  'optim.grad_clip': (0, _MAX_FLOAT),
  'optim.ema_decay': (0, _BELOW_ONE),
  'optim.decay_steps': (1, _MAX_INT),
  'optim.weight_decay': (0, 10**3),
  'optim.ema_warmup': (1e-6, 10**3),
  'optim.ema_decays': (0, _BELOW_ONE),
  'optim.ema_widths': (1e-3, _MAX_EMA_WIDTH),
  'ema.width': (1e-3, _MAX_EMA_WIDTH),
  'ema.decay': (0, _BELOW_ONE),
  'optim.adam_b1': (0, _BELOW_ONE),
  'optim.adam_b2': (0, _BELOW_ONE),
  'diffusion.sigma_data': (1e-4, 100),
  'optim.adam_eps': (_MIN_EPS, 1),
  'train.global_batch_size': (1, _MAX_INT),
  'train.grad_accum_steps': (1, _MAX_INT),
  'train.loss_weight_number': (-100, 100),
  'train.label_dropout': (0, _BELOW_ONE),
  'train.num_steps': (0, _MAX_INT),
  'train.steps_per_dispatch': (1, _MAX_INT),
  'train.log_every_steps': (1, _MAX_INT),
  'train.checkpoint_every_steps': (1, _MAX_INT),
  'train.keep_last_checkpoints': (1, _MAX_INT),
  'train.keep_checkpoint_every_steps': (0, _MAX_INT),
  'train.sample_every_steps': (0, _MAX_INT),
  'train.num_samples': (1, _MAX_IMAGES),
  'train.eval_every_steps': (0, _MAX_INT),
  'train.eval_num_samples': (2, _MAX_IMAGES),
  'train.eval_bpd_examples': (1, _MAX_INT),
  'train.eval_bpd_terms': (1, _MAX_INT),
  'sample.step': (0, _MAX_INT),
  'sample.num_samples': (1, _MAX_IMAGES),
  'sample.batch_size': (1, _MAX_INT),
  'sample.seed': (0, MAX_SEED),
  'sample.num_steps': (1, 10**6),
  'sample.timesteps': (0, 10**6),
  'sample.timestep_parts': (1, 64),
  'sample.eta': (0, 1),
  'sample.churn': (0, 10**6),
  'sample.churn_interval': (0, _MAX_FLOAT),
  'sample.churn_noise': (0, 10),
  'edit.num': (1, 10**6),
  'edit.seed': (0, MAX_SEED),
  'edit.scale': (2, 2**16),
  'edit.blur': (1e-3, 2**10),
  'edit.depth': (0, 1),
  'edit.jump_length': (1, 10**6),
  'edit.resamplings': (1, 10**6),
  'compress.search_bits': (0, 24),
  'compress.seed': (0, MAX_SEED),
  'compress.margin_bits': (4, 24),
  'decompress.realism': (0, 1),
  'decompress.seed': (0, MAX_SEED),
  'sample.guidance': (0, 10**6),
  'sample.guidance_interval': (0, _MAX_FLOAT),
  'sample.guidance_rescale': (0, 1),
  'eval.step': (0, _MAX_INT),
  'eval.batch_size': (1, _MAX_INT),
  'eval.seed': (0, MAX_SEED),
  'eval.bpd_examples': (1, _MAX_INT),
  'eval.flow_steps': (1, 10**6),
  'eval.flow_probes': (0, 10**4),
  'eval.bpd_terms': (1, _MAX_INT),
  'eval.num_samples': (2, _MAX_IMAGES),
  'eval.reference_examples': (1, _MAX_INT),
  'reproduce.num_samples': (2, _MAX_IMAGES),
  'reproduce.num_slots': (1, _MAX_INT),
  'reproduce.num_images': (1, 10**4),
  'reproduce.num_coded': (1, 10**6),
  'export.step': (0, _MAX_INT),
}
NUMBERS = {int: 'an integer', float: 'a number'}
TUPLES_OF_INTS = ('model.ch_mult', 'model.attn_resolutions')  # the others are of strings
TUPLES_OF_FLOATS = (
  'optim.ema_decays',
  'optim.ema_widths',
  'sample.guidance_interval',
  'sample.timesteps',
  'sample.churn_interval',
  'data.shift',
  'data.scale',
)
DATA = 'data'  # in place of a number: as many as the data have
AUTO = 'auto'  # in place of a name: as the devices have it
# Of fields whose type is object: what they take in place of an integer.
WORDS = {'model.num_classes': DATA, 'data.levels': CONTINUOUS}
SIZES = ('data.image_size',)  # or a tuple of integers, the length of each axis
MAX_AXES = 3
MAY_BE_EMPTY = ('data.source',)  # of a model that does not tell its data


def flat(config: ConfigDict) -> dict[str, Any]:
  """{'section.field': value}."""
  values = {}
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      values |= {f'{name}.{inner}': x for inner, x in flat(value).items()}
    else:
      values[name] = value
  return values


def _types(config, prefix=''):
  """{field: type}, also of those that are None by default."""
  types = {}
  for name, value in config.items():
    inner = isinstance(value, ConfigDict)
    types |= _types(value, f'{prefix}{name}.') if inner else {prefix + name: config.get_type(name)}
  return types


DEFAULTS = flat(default.get_config())
TYPES = _types(default.get_config())
OPTIONAL = tuple(field for field, value in DEFAULTS.items() if value is None)


def shown(field: str) -> str:
  """The name of a field as the command line has it: import.path of import_.path."""
  return field.replace('import_', 'import')


def check_names(config: Any, name: str) -> None:
  """Raises a UserError if a config has not the fields of the default config.

  Args:
    config: what a config file returns.
    name: of the file, for the message.
  """
  if not isinstance(config, ConfigDict):
    raise UserError(
      f'{name}: get_config returns a {type(config).__name__}; it must return a ConfigDict, such as '
      'a changed ddpm_jax.configs.default.get_config()'
    )
  given = flat(config)
  for field in given:
    if field not in DEFAULTS:
      raise UserError(f'{name}: there is no field {shown(field)}; {nearest(field, list(DEFAULTS))}')
  if missing := [field for field in DEFAULTS if field not in given]:
    raise UserError(
      f'{name}: it lacks {len(missing)} fields, {missing[0]} first; begin with '
      'ddpm_jax.configs.default.get_config(), which has them all'
    )


def nearest(field: str, known: Sequence[str]) -> str:
  """'did you mean train.num_steps?', or where all fields are listed."""
  near = difflib.get_close_matches(field, known, 1)
  return f'did you mean {shown(near[0])}?' if near else 'ddpm_jax/configs/default.py has them all'


def check_fields(config: ConfigDict) -> None:
  """Raises a UserError, naming the field, for the first value of a wrong type or out of range."""
  check_names(config, 'config')
  for field, value in flat(config).items():
    check_value(field, value)


def check_value(field: str, value: Any) -> None:
  """Raises a UserError, naming the field, for a value of a wrong type or out of range."""
  name, kind = shown(field), TYPES[field]
  if value is None:
    if field not in OPTIONAL:
      raise UserError(f'{name} is None; it must be {_words(field, kind)}')
  elif kind is tuple:
    if not isinstance(value, list | tuple):
      raise UserError(f'{name} is {_short(value)}; it must be {_words(field, kind)}')
    inner = str
    if field in (*TUPLES_OF_INTS, *TUPLES_OF_FLOATS):
      inner = int if field in TUPLES_OF_INTS else float
    for element in value:
      if not _is(element, inner):
        raise UserError(f'{name} has {_short(element)}; it must be {_words(field, kind)}')
      if inner is not str:
        _check_range(f'{name} has', field, element)
  elif kind is object:
    lengths = [value]
    if field in SIZES and isinstance(value, list | tuple):
      lengths = list(value) if len(value) <= MAX_AXES else []
    is_word = isinstance(value, str) and value == WORDS.get(field)
    if not is_word and not (lengths and all(_is(x, int) for x in lengths)):
      raise UserError(f'{name} is {_short(value)}; it must be {_words(field, kind)}')
    for length in () if is_word else lengths:
      _check_range(f'{name} is' if length is value else f'{name} has', field, length)
  elif not _is(value, kind):
    raise UserError(f'{name} is {_short(value)}; it must be {_words(field, kind)}')
  elif kind is str:
    _check_text(name, value, may_be_empty=field in MAY_BE_EMPTY)
  elif kind is not bool:
    _check_range(f'{name} is', field, value)


def _is(value, kind):
  """Whether a value is of a type: True is no number, and an integer is one."""
  if kind in NUMBERS:
    return isinstance(value, int | kind) and not isinstance(value, bool)
  return isinstance(value, kind)


def _words(field, kind):
  """What a field takes."""
  if field in TUPLES_OF_FLOATS:
    return 'a tuple of numbers, such as (0.3, 5.0), or None'
  if kind is tuple:
    example = '(1, 2, 2)' if field in TUPLES_OF_INTS else "('a', 'b')"
    inner = 'integers' if field in TUPLES_OF_INTS else 'names'
    return f'a tuple of {inner}, such as {example}'
  if field in SIZES:
    return f'an integer, or the lengths of 1 to {MAX_AXES} axes, such as (48, 64)'
  if kind is object:
    return f'an integer, {WORDS[field]} or None'
  words = {str: 'text', bool: 'True or False', **NUMBERS}[kind]
  return f'{words}, or None' if field in OPTIONAL else words


def _check_range(name_is, field, value):
  least, most = LIMITS[field]
  if least <= value <= most:
    return
  allowed = 'be a finite number'  # of what is none
  if most == _BELOW_ONE:
    allowed = 'lie in [0, 1)'
  elif value < least:
    allowed = f'be at least {least:g}'
  elif value > most and value != math.inf:
    allowed = f'be at most {most:.10g}'
  raise UserError(f'{name_is} {_short(value)}; it must {allowed}')


def _short(value):
  """What Python shows of a value, cut off where that is long."""
  try:
    text = repr(value)
  except ValueError:  # an integer of thousands of digits
    return 'a huge number'
  return text if len(text) <= _MAX_SHOWN else f'{text[:_MAX_SHOWN]}...'


def _check_text(name, value, *, may_be_empty):
  if not value and not may_be_empty:
    raise UserError(f'{name} is empty; leave it out, or give a value')
  if any(character in value for character in '\0\n\r'):
    raise UserError(f'{name} is {_short(value)}; it cannot have a line break or a zero byte')
