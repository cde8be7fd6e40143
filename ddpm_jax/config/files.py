"""Where config files and models of the package are. Imports no jax: the command line reads it."""

import importlib.util
import pathlib

from ml_collections import ConfigDict

from ddpm_jax.errors import UserError

PACKAGE = pathlib.Path(__file__).parents[1]
CONFIGS = PACKAGE / 'configs'
MODELS = PACKAGE / 'models'
CONFIG_FILE = 'config.json'  # of a workdir, and of a model of the package


def find_config(given: str) -> str:
  """The file of a config: 'my/config.py', 'cifar10', 'configs/cifar10.py:eps-kl-learned'.

  Args:
    given: path of a file, or the name of one of the package; after a colon, its argument.

  Returns:
    path of the file, with the argument.

  Raises:
    UserError: neither is there.
  """
  name, colon, argument = given.partition(':')
  path = pathlib.Path(name).expanduser()
  if not path.is_file():
    if str(path.parent) not in ('.', 'configs') or not (CONFIGS / f'{path.stem}.py').is_file():
      names = ', '.join(sorted(file.name for file in CONFIGS.glob('*.py')))
      raise UserError(f'there is no {name}; configs has {names}')
    path = CONFIGS / f'{path.stem}.py'
  return f'{path}{colon}{argument}'


def load_config(given: str) -> ConfigDict:
  """The config of a file that find_config finds."""
  name, colon, argument = find_config(given).partition(':')
  spec = importlib.util.spec_from_file_location('config', name)
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(argument) if colon else module.get_config()


def packaged_model(name: str) -> pathlib.Path | None:
  """The folder of a model of the package; None if there is none of that name."""
  folder = MODELS / name
  return folder if name in packaged_models() else None


def packaged_models() -> list[str]:
  """Names of the models of the package."""
  return sorted(folder.name for folder in MODELS.iterdir() if (folder / CONFIG_FILE).is_file())
