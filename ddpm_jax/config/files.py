"""Where config files and models of the package are. Imports no jax: the command line reads it."""

import importlib.util
import inspect
import pathlib
import traceback

from ml_collections import ConfigDict

from ddpm_jax.config.fields import check_names
from ddpm_jax.errors import UserError
from ddpm_jax.paths import expanded

PACKAGE = pathlib.Path(__file__).parents[1]
CONFIGS = PACKAGE / 'configs'
MODELS = PACKAGE / 'models'
CONFIG_FILE = 'config.json'  # of a workdir, and of a model of the package


def find_config(given: str) -> str:
  """The file of a config: 'my/config.py', 'cifar10', 'configs/cifar10.py:eps-kl-learned'.

  Args:
    given: path of a file, or the name of one of the package; after a colon, its argument. Or a
      workdir, or its config.json.

  Returns:
    path of the file, with the argument.

  Raises:
    UserError: neither is there.
  """
  path, argument = _find(given)
  return str(path) if argument is None else f'{path}:{argument}'


def _find(given):
  """(path, argument, or None)."""
  for name, argument in ((given, None), _split(given)):
    path = expanded(name)
    if path.is_file():
      return path, argument
  packaged = CONFIGS / f'{path.stem}.py'
  if str(path.parent) in ('.', 'configs') and packaged.is_file():
    return packaged, argument
  if (stored := expanded(given) / CONFIG_FILE).is_file():
    return stored, None
  names = ', '.join(sorted(file.name for file in CONFIGS.glob('*.py')))
  raise UserError(f'there is no {name or "config without a name"}; configs has {names}')


def _split(given):
  name, colon, argument = given.partition(':')
  return name, argument if colon else None


def load_config(given: str) -> ConfigDict:
  """The config of a file that find_config finds.

  Raises:
    UserError: no config comes of it: an error in the file, with its line; no get_config, or one
      that returns something else; fields that are not known.
  """
  path, argument = _find(given)
  if path.suffix == '.json':
    from ddpm_jax.config.origins import config_of_file  # which imports jax

    return config_of_file(path)
  spec = importlib.util.spec_from_file_location('config', path)
  if spec is None or spec.loader is None:
    raise UserError(f'{path} is no config: give a .py file with get_config(), or a config.json')
  module = importlib.util.module_from_spec(spec)
  is_ours = path.resolve().parent == CONFIGS.resolve()
  try:
    spec.loader.exec_module(module)
    if not callable(getattr(module, 'get_config', None)):
      raise UserError(f'{path} has no get_config(), which returns the ConfigDict')
    takes = len(inspect.signature(module.get_config).parameters)
    if argument is not None and not takes:
      raise UserError(f'{path} takes no argument, but {argument!r} is given after a colon')
    config = module.get_config() if argument is None else module.get_config(argument)
  except (UserError, KeyboardInterrupt):
    raise
  except BaseException as error:  # as of sys.exit
    if is_ours:  # a defect
      raise
    raise UserError(_line_of(path, error)) from error
  check_names(config, str(path))
  assert isinstance(config, ConfigDict)
  return config


def _line_of(path, error):
  """'FILE:LINE: NameError: ...' of an exception in a config file."""
  lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
  line = error.lineno if isinstance(error, SyntaxError) else next(reversed(lines), 0)
  text = ' '.join(traceback.format_exception_only(error)[-1].split())
  return f'{path}:{line}: {text}'


def packaged_model(name: str) -> pathlib.Path | None:
  """The folder of a model of the package; None if there is none of that name."""
  folder = MODELS / name
  return folder if name in packaged_models() else None


def packaged_models() -> list[str]:
  """Names of the models of the package."""
  return sorted(folder.name for folder in MODELS.iterdir() if (folder / CONFIG_FILE).is_file())
