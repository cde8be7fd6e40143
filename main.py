"""Trains, samples and evaluates diffusion models.

python main.py --config=configs/cifar10.py --workdir=DIR [--config.train.num_steps=100 ...]
               [--mode=train|sample|eval|reproduce|import|export]
"""

import difflib
import importlib
import pathlib
import sys
import traceback

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

ROOT = pathlib.Path(__file__).resolve().parent
DEFAULT = f'--config={ROOT / "configs" / "digits.py"}'

LOOPS = {'train': 'train', 'sample': 'sample', 'eval': 'evaluate', 'reproduce': 'reproduce'}
LOOPS |= {'import': 'import_model', 'export': 'export_model'}

CONFIG = config_flags.DEFINE_config_file('config', None, 'The run; by default configs/digits.py.')
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run: checkpoints, metrics, samples.')
MODE = flags.DEFINE_enum('mode', 'train', list(LOOPS), 'What to do.')
flags.mark_flag_as_required('workdir')


def main(argv):
  """Hands over to the loop of the mode."""
  if len(argv) > 1:
    sys.exit(f'error: {argv[1]!r} is not understood; options have the form --name=value')
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # Orbax writes a page at each save
  try:
    loop = LOOPS[MODE.value]
    run = getattr(importlib.import_module(f'ddpm_jax.{loop}'), loop)
    run(CONFIG.value, WORKDIR.value)
  except (ValueError, FloatingPointError) as error:
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    if not pathlib.Path(raised_in).is_relative_to(ROOT / 'ddpm_jax'):
      raise  # not our answer to the user, but a defect
    sys.exit(f'error: {error}')
  except KeyboardInterrupt:
    sys.exit('interrupted; the same command goes on where it stopped')


def parse_flags(argv):
  """Parses in two passes, so that a field that does not exist is answered by those that do."""
  if not any(arg.partition('=')[0].lstrip('-') == 'config' for arg in argv):
    argv = [argv[0], DEFAULT, *argv[1:]]
  # A field cannot be called by a word of Python: on the command line, this section can.
  argv = [arg.replace('--config.import.', '--config.import_.') for arg in argv]
  try:
    for sys.argv in ([arg for arg in argv if not arg.startswith('--config.')], argv):
      rest = flags.FLAGS(sys.argv)
      if not isinstance(CONFIG.value, ConfigDict):
        names = ', '.join(sorted(path.name for path in (ROOT / 'configs').glob('*.py')))
        sys.exit(f'error: there is no {flags.FLAGS["config"].config_filename}; configs has {names}')
      check_fields(argv, CONFIG.value)
    return rest
  except (flags.Error, TypeError) as error:
    sys.exit(f'error: {str(error).strip().splitlines()[-1].removeprefix("ValueError: ")}')


def check_fields(argv, config):
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


if __name__ == '__main__':
  app.run(main, flags_parser=parse_flags)
