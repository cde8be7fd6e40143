"""The command line: flags, and overrides of config fields, answered in one line where wrong."""

import ast
import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from ddpm_jax import __version__
from ddpm_jax.config import fields
from ddpm_jax.config.files import CONFIG_FILE, CONFIGS, load_config
from ddpm_jax.configs import default
from ddpm_jax.errors import UserError
from ddpm_jax.paths import expanded
from ddpm_jax.refusals import refusal_behind

USAGE = """\
python -m ddpm_jax [--config=CONFIG] --workdir=DIR [--mode=MODE] [--config.FIELD=VALUE ...]

Trains, samples and evaluates diffusion models.
"""
_OVERRIDE = re.compile(r'--?(no)?config\.([^=]*)(?:=(.*))?', re.DOTALL)
_NAMES = r'[\w:\[%\]+-]+( *, *[\w:\[%\]+-]+)* *,?|'  # of splits, too: train[:50%]+test
_HELP = ('h', 'help', 'helpshort', 'helpfull')
_TRUE, _FALSE = ('true', 't', 'yes', '1'), ('false', 'f', 'no', '0')


def define_flags(modes: Sequence[str]) -> None:
  """Defines every flag of the program.

  Args:
    modes: names that --mode takes; the first is its default.
  """
  flags.DEFINE_string(
    'config',
    None,
    'File of the config, or a name of configs/; by default that of --workdir, or of init_from.',
  )
  flags.DEFINE_bool('version', False, 'Prints the version and ends.')
  flags.DEFINE_string('workdir', None, 'Folder of the run: checkpoints, metrics, samples.')
  flags.DEFINE_enum('mode', modes[0], modes, 'What to do.')
  flags.DEFINE_string(
    'coordinator_address', None, 'HOST:PORT of process 0, where no cluster says it (docs/pods.md).'
  )
  flags.DEFINE_integer('num_processes', None, 'How many processes run this command.')
  flags.DEFINE_integer('process_id', None, 'Which of them this is: 0, 1, ...')
  flags.mark_flag_as_required('workdir')


def parse(argv: list[str]) -> list[str]:
  """Sets the flags; the flag `config` becomes the ConfigDict, with its overrides.

  Ends the program where something cannot be understood, in one line that says what can.
  """
  names = [arg.lstrip('-') for arg in argv[1:] if arg.startswith('-')]
  if 'version' in names:
    print(f'ddpm_jax {__version__}')
    sys.exit(0)
  if any(name in _HELP for name in names):
    _print_help()
    sys.exit(0)
  try:
    return _parse(argv)
  except (flags.Error, TypeError) as error:
    line = str(error).strip().splitlines()[-1]
    sys.exit(f'error: {re.sub(r"^[a-zA-Z_.]*Error: ", "", line)}')
  except (UserError, OSError) as error:
    if isinstance(error, UserError) and refusal_behind(error) is None:
      sys.exit(f'error: {error}')
    from ddpm_jax import processes  # not before: jax takes a second

    sys.exit(processes.explain(error))


def _parse(argv):
  others, overrides = _split(argv)
  if not any(re.fullmatch('--?workdir(=.*)?', arg, re.DOTALL) for arg in others):
    raise UserError('--workdir=DIR is missing, the folder of the run; --help has all options')
  rest = flags.FLAGS(others)
  if len(rest) > 1:
    raise UserError(f'{rest[1]!r} is not understood; options have the form --name=value')
  given = flags.FLAGS
  for name in ('workdir', 'config'):
    if given[name].value == '':
      raise UserError(
        f'--{name} is empty, as of a variable of the shell that is not set; give its path'
      )
  values = {field: _value_of(field, text) for field, text in overrides}
  config = _find_config(given.config, given.workdir, values)
  averages = [field for field in values if field.startswith('ema.')]
  if averages and given.mode != 'ema':
    raise UserError(f'config.{averages[0]} goes with --mode=ema alone: leave it out')
  for field, value in values.items():
    _set(config, field, value)
  given.config = config.lock()
  return rest


def _split(argv):
  """(arguments that are no overrides, [(field, its text, or a bool)])."""
  others, overrides, args = argv[:1], [], iter(argv[1:])
  for arg in args:
    match = _OVERRIDE.fullmatch(arg)
    if match is None:
      others.append(arg)
      continue
    no, name, text = match.groups()
    # A field cannot be called by a word of Python: on the command line, this section can.
    field = re.sub(r'^import\.', 'import_.', name)
    _check_field(field)
    if text is None:  # '--config.eval.watch', '--noconfig.eval.watch', '--config.seed 3'
      text = not no if fields.TYPES[field] is bool else next(args, None)
    if text is None or (no and not isinstance(text, bool)):
      raise UserError(f'{arg} needs a value: --config.{name}=VALUE')
    overrides.append((field, text))
  return others, overrides


def _check_field(field):
  """Raises a UserError, with the nearest name, for a field that does not exist."""
  if field in fields.TYPES:
    return
  section: Any = default.get_config()
  for part in field.split('.'):
    inner = list(section) if isinstance(section, ConfigDict) else []
    if part in inner:
      section = section[part]
      continue
    near = difflib.get_close_matches(part, inner, 1) or [
      known for known in fields.TYPES if known.rpartition('.')[2] == field.rpartition('.')[2]
    ]
    hint = f'did you mean {fields.shown(near[0])}? ' if near else ''
    listed = ', '.join(map(fields.shown, inner)) or 'none'
    raise UserError(f'there is no config.{fields.shown(field)}; {hint}fields there: {listed}')
  raise UserError(
    f'config.{fields.shown(field)} is a section; fields there: {", ".join(map(str, section))}'
  )


def _value_of(field, text):
  """The value that a text stands for, checked."""
  value = text
  if text == 'None' and (field in fields.OPTIONAL or fields.TYPES[field] is not str):
    value = None
  elif isinstance(text, str):
    of_numbers = fields.TUPLES_OF_INTS + fields.TUPLES_OF_FLOATS + fields.SIZES
    value = _read(fields.TYPES[field], text, is_of_names=field not in of_numbers)
  fields.check_value(field, value)
  return value


def _read(kind, text, *, is_of_names):
  """The value of a text; the text itself where it is none of the kind."""
  if kind is bool:
    return {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}.get(text.lower(), text)
  try:
    if kind in (int, float):
      return kind(text)
    if kind is object and re.fullmatch(r'\s*[+-]?[0-9_]+\s*', text):
      return int(text)
    if kind is object and is_of_names:
      return text
    if kind in (object, tuple):
      # `is` is a word of Python, too: 'fid,is' is not one of its tuples.
      if is_of_names and re.fullmatch(_NAMES, text):
        return tuple(name for name in text.replace(' ', '').split(',') if name)
      value = ast.literal_eval(text)
      return tuple(value) if isinstance(value, list | tuple) else (value,)
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    pass
  return text


def _set(config, field, value):
  *sections, name = field.split('.')
  for section in sections:
    config = config[section]
  config[name] = value


def _find_config(given, workdir, values):
  """The config that is given, or --workdir's, or that of what a run begins with, or the digits'."""
  if given is not None:
    return load_config(given)
  folder = expanded(workdir)
  origin, imported = values.get('init_from'), values.get('import_.path')
  # A pipeline tells its config, and so does a workdir.
  if imported and expanded(re.sub(r'@\d+$', '', imported)).is_dir():
    origin = imported
  # A first command that failed leaves a config, which does not stand above what another names.
  has_begun = any(folder.glob('checkpoints/[0-9]*'))
  is_new = not ((folder / CONFIG_FILE).is_file() and (has_begun or not origin))
  if is_new and not origin:
    return load_config(str(CONFIGS / 'digits.py'))
  from ddpm_jax.config.origins import config_of  # not before: jax takes a second

  config = config_of(origin if is_new else workdir)
  if is_new:  # and has the average that it trains
    config.ema.update(width=None, decay=None)
  return config


def _print_help():
  print(USAGE)
  for line in _help_lines():
    print(line)


def _help_lines() -> Iterator[str]:
  for flag in flags.FLAGS.get_flags_for_module(__name__):
    choices = getattr(flag.parser, 'enum_values', None)
    words = f'{flag.help} One of {", ".join(choices)}.' if choices else flag.help
    yield f'  --{flag.name:<20} {words}'
  yield ''
  yield 'Fields, with their defaults, which a config changes; configs/default.py says what each is:'
  yield ''
  for field, value in fields.DEFAULTS.items():
    text = ','.join(map(str, value)) if isinstance(value, tuple) else value
    yield f'  --config.{fields.shown(field)}={text}'
