"""Our models as folders for other programs."""

import contextlib
import hashlib
import pathlib
import tempfile

from ml_collections import ConfigDict

from ddpm_jax import processes
from ddpm_jax.config import build, checks
from ddpm_jax.config.origins import with_data
from ddpm_jax.errors import UserError
from ddpm_jax.interop.diffusers import find_pipeline, write_pipeline
from ddpm_jax.paths import expanded
from ddpm_jax.storage.files import written_whole
from ddpm_jax.storage.workdir import find_workdir, locked


def export_model(config: ConfigDict, workdir: str) -> None:
  """--mode=export: writes the moving average as a pipeline of diffusers, to config.export.path.

  Args:
    config: ConfigDict.
    workdir: folder of the run.

  Raises:
    UserError: no checkpoint, a folder in use, or a model that diffusers has not.
    WriteError: the folder cannot be written.
  """
  config = with_data(config, workdir)
  checks.check_pictures(config, '--mode=export')
  checks.prepare(config)
  if not config.export.path:
    raise UserError('--mode=export needs --config.export.path=FOLDER, the folder to write')
  folder = expanded(config.export.path)
  taken = UserError(f'--config.export.path={folder} is there already; give a new folder')
  if folder.exists() and not find_pipeline(folder):
    raise taken
  path = find_workdir(workdir)
  weights = build.restore_weights(config, path, config.export.step)
  if not processes.is_primary():
    return
  with contextlib.ExitStack() as stack:
    stack.enter_context(locked(path, 'export'))
    if folder.exists():  # such as from this very command, killed before its last word
      other = stack.enter_context(tempfile.TemporaryDirectory(dir=folder.parent, prefix='.'))
      write_pipeline(pathlib.Path(other), config, weights.params)
      if _contents(pathlib.Path(other)) != _contents(folder):
        raise taken
    else:
      partial = stack.enter_context(written_whole(folder))
      write_pipeline(partial, config, weights.params)
  print(f'done: step {weights.step} as a pipeline of diffusers; {folder}')


def _contents(folder):
  """{path: sha256} of the files of a folder."""
  found = {}
  for file in folder.rglob('*'):
    if file.is_file():
      with open(file, 'rb') as stream:
        found[file.relative_to(folder)] = hashlib.file_digest(stream, 'sha256').digest()
  return found
