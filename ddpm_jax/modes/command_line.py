"""The command line: flags, and overrides of config fields, answered in one line where wrong."""

import difflib
import pathlib
import re
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from ddpm_jax import __version__
from ddpm_jax.config.files import CONFIG_FILE, CONFIGS, find_config
from ddpm_jax.errors import UserError

STORED = CONFIGS.parent / 'config' / 'stored.py'


def define_flags(modes: Sequence[str]) -> None:
  """Defines every flag of the program.

  Args:
    modes: names that --mode takes; the first is its default.
  """
  config_flags.DEFINE_config_file(
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
  """Parses in two passes, so that a field that does not exist is answered by those that do."""
  if '--version' in argv:
    print(f'ddpm_jax {__version__}')
    sys.exit(0)
  asks_for_help = any(arg.lstrip('-').startswith('help') for arg in argv[1:])
  if _option(argv, 'workdir') is None and not asks_for_help:
    sys.exit('error: --workdir=DIR is missing, the folder of the run; --help has all options')
  try:
    argv = _with_config(argv)
  except UserError as error:
    sys.exit(f'error: {error}')
  # A field cannot be called by a word of Python: on the command line, this section can.
  argv = [arg.replace('--config.import.', '--config.import_.') for arg in argv]
  try:
    _read([arg for arg in argv if not arg.startswith('--config.')])
    config = flags.FLAGS.config
    _check_fields(argv, config)
    rest = _read([_quote_names(arg, config) for arg in argv])
  except (flags.Error, TypeError) as error:
    line = str(error).strip().splitlines()[-1]
    sys.exit(f'error: {re.sub(r"^[a-zA-Z_.]*Error: ", "", line)}')
  if len(rest) > 1:
    sys.exit(f'error: {rest[1]!r} is not understood; options have the form --name=value')
  return rest


def _with_config(argv):
  """The arguments with a config: that given, or --workdir's, or init_from's, or the digits'."""
  given = _option(argv, 'config')
  if given is not None:
    rest = [arg for arg in argv[1:] if not arg.startswith(('--config=', '-config='))]
    if len(rest) == len(argv) - 1:  # '--config FILE', two arguments
      at = rest.index('--config') if '--config' in rest else rest.index('-config')
      del rest[at : at + 2]
    return [argv[0], f'--config={find_config(given)}', *rest]
  workdir, origin = _option(argv, 'workdir'), _option(argv, 'config.init_from')
  imported = _option(argv, 'config.import.path') or _option(argv, 'config.import_.path')
  if imported and pathlib.Path(imported).expanduser().is_dir():  # a pipeline tells its config
    origin = imported
  folder = pathlib.Path(workdir or '').expanduser()
  # A first command that failed leaves a config, which does not stand above what another names.
  has_begun = any(folder.glob('checkpoints/[0-9]*'))
  if workdir and (folder / CONFIG_FILE).is_file() and (has_begun or not origin):
    return [argv[0], f'--config={STORED}:{workdir}', *argv[1:]]
  if origin:
    return [argv[0], f'--config={STORED}:{origin}', *argv[1:]]
  return [argv[0], f'--config={CONFIGS / "digits.py"}', *argv[1:]]


def _option(argv, name):
  """The value of an option of the command line, in either form; None if it is not given."""
  for i, arg in enumerate(argv[1:], 1):
    option, equals, value = arg.partition('=')
    if arg.startswith('-') and option.lstrip('-') == name:
      return value if equals else next(iter(argv[i + 1 :]), None)
  return None


def _read(argv):
  """Sets the flags; what is none of them is returned."""
  sys.argv = argv  # which config_flags reads
  return flags.FLAGS(argv)


def _quote_names(arg, config):
  """'--config.eval.metrics=fid,is' as the tuple that it means: `is` is a word of Python, too."""
  match = re.fullmatch(r'--config\.([\w.]+)=([A-Za-z]\w*(?:,\w+)*)', arg)
  if not match:
    return arg
  *sections, field = match[1].split('.')
  for section in sections:
    config = config[section]
  names = isinstance(config[field], tuple) and all(isinstance(x, str) for x in config[field])
  return f'--config.{match[1]}={tuple(match[2].split(","))!r}' if names else arg


def _check_fields(argv, config):
  """Ends the program at the first override of a field that does not exist."""
  for arg in argv:
    path = arg.partition('=')[0].removeprefix('--config.')
    if not arg.startswith('--config.'):
      continue
    section = config
    for part in path.split('.'):
      fields = list(section) if isinstance(section, ConfigDict) else []
      if part not in fields:
        near = difflib.get_close_matches(part, fields, 1)
        hint = f'did you mean {near[0]}? ' if near else ''
        known = ', '.join(fields) or 'none'
        sys.exit(f'error: there is no config.{path}; {hint}fields there: {known}')
      section = section[part]
