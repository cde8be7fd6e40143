"""Reads and writes files of the safetensors format, which hold tensors and nothing else.

The package does it, and refuses headers that lie: tensors that overlap, leave gaps, or lie outside
the file. Here are the bounds on the header, and its errors in one line.
"""

import pathlib
from collections.abc import Mapping

import numpy as np
import safetensors
from safetensors.numpy import save_file

from ddpm_jax.errors import UserError
from ddpm_jax.refusals import raise_refusal

_MAX_HEADER_BYTES = 1 << 24  # a thousand tensors take 0.1 MB
_MAX_REASON = 400
_DTYPES = ('F64', 'F32', 'F16', 'BF16')


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads all tensors of a file.

  Args:
    path: the file.

  Returns:
    dict of arrays by name, of floating-point numbers.

  Raises:
    UserError: no such file, damaged, or with tensors of other types; in one line, which names it.
    DiskError: the system fails to read it.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f'{path}: no such file')
  try:
    return _read(path)
  except (ValueError, OSError, safetensors.SafetensorError) as error:
    raise_refusal(path, error)
    reason = ' '.join(str(error).split())
    raise UserError(f'{path}: not a whole safetensors file ({reason[:_MAX_REASON]})') from error


def _read(path):
  with open(path, 'rb') as file:
    header_bytes = int.from_bytes(file.read(8), 'little')
  if header_bytes > min(_MAX_HEADER_BYTES, path.stat().st_size):
    raise UserError(f'its header says that it has {header_bytes} bytes')
  with safetensors.safe_open(path, framework='np') as file:
    names = list(file.keys())
    for name in names:
      dtype = file.get_slice(name).get_dtype()
      if dtype not in _DTYPES:
        raise UserError(f'{name} is of type {dtype}, and no weight is')
    return {name: file.get_tensor(name) for name in names}


def write_safetensors(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes a dict of C-ordered NumPy arrays by name."""
  assert all(array.flags.c_contiguous for array in tensors.values()), 'safetensors would reorder'
  # The metadata is what the package's PyTorch side writes, and some readers ask for.
  save_file({name: np.asarray(array) for name, array in tensors.items()}, path, {'format': 'pt'})
