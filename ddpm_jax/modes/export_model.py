"""Our models as folders for other programs."""

import contextlib
import pathlib

from ml_collections import ConfigDict

from ddpm_jax import processes
from ddpm_jax.config import build, checks
from ddpm_jax.errors import UserError
from ddpm_jax.interop.diffusers import write_pipeline
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
  checks.prepare(config)
  if not config.export.path:
    raise UserError('--mode=export needs --config.export.path=FOLDER, the folder to write')
  folder = pathlib.Path(config.export.path).expanduser()
  if folder.exists():
    raise UserError(f'--config.export.path={folder} is there already; give a new folder')
  path = find_workdir(workdir)
  weights = build.restore_weights(config, path, config.export.step)
  if not processes.is_primary():
    return
  with contextlib.ExitStack() as stack:
    stack.enter_context(locked(path, 'export'))
    partial = stack.enter_context(written_whole(folder))
    write_pipeline(partial, config, weights.params)
  print(f'done: step {weights.step} as a pipeline of diffusers; {folder}')
