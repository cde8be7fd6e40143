"""Our models as folders for other programs."""

import contextlib
import pathlib

from ddpm_jax import build, parallel
from ddpm_jax.convert.diffusers import write_pipeline
from ddpm_jax.files import written_whole
from ddpm_jax.sample import restore_ema
from ddpm_jax.workdir import find_workdir, locked


def export_model(config, workdir):
  """--mode=export: writes the moving average as a pipeline of diffusers, to config.export.path.

  Args:
    config: ConfigDict.
    workdir: folder of the run.

  Raises:
    ValueError: no checkpoint, a folder in use, or a model that diffusers has not.
    WriteError: the folder cannot be written.
  """
  build.begin(config)
  if not config.export.path:
    raise ValueError('--mode=export needs --config.export.path=FOLDER, the folder to write')
  folder = pathlib.Path(config.export.path).expanduser()
  if folder.exists():
    raise ValueError(f'--config.export.path={folder} is there already; give a new folder')
  path = find_workdir(workdir)
  step, ema_params, _ = restore_ema(config, path, config.export.step)
  if not parallel.is_primary():
    return
  with contextlib.ExitStack() as stack:
    stack.enter_context(locked(path, 'export'))
    partial = stack.enter_context(written_whole(folder))
    write_pipeline(partial, config, ema_params)
  print(f'done: step {step} as a pipeline of diffusers; {folder}')
