"""The command line: flags, and overrides of config fields, answered in one line where wrong."""

import difflib
import pathlib
import re
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / 'configs'


def define_flags(modes: Sequence[str]) -> None:
  """Defines every flag of the program.

  Args:
    modes: names that --mode takes; the first is its default.
  """
  config_flags.DEFINE_config_file('config', None, 'The run; by default configs/digits.py.')
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
  if not any(arg.partition('=')[0].lstrip('-') == 'config' for arg in argv):
    argv = [argv[0], f'--config={CONFIGS / "digits.py"}', *argv[1:]]
  # A field cannot be called by a word of Python: on the command line, this section can.
  argv = [arg.replace('--config.import.', '--config.import_.') for arg in argv]
  try:
    _read([arg for arg in argv if not arg.startswith('--config.')])
    config = flags.FLAGS.config
    _check_fields(argv, config)
    rest = _read([_quote_names(arg, config) for arg in argv])
  except (flags.Error, TypeError) as error:
    sys.exit(f'error: {str(error).strip().splitlines()[-1].removeprefix("ValueError: ")}')
  if len(rest) > 1:
    sys.exit(f'error: {rest[1]!r} is not understood; options have the form --name=value')
  return rest


def _read(argv):
  """Sets the flags; what is none of them is returned."""
  sys.argv = argv  # which config_flags reads
  rest = flags.FLAGS(argv)
  if not isinstance(flags.FLAGS.config, ConfigDict):
    names = ', '.join(sorted(path.name for path in CONFIGS.glob('*.py')))
    sys.exit(f'error: there is no {flags.FLAGS["config"].config_filename}; configs has {names}')
  return rest


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
