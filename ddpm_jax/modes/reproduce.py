"""--mode=reproduce: writes the paper's tables and figures that config.reproduce.what names."""

import contextlib

from ml_collections import ConfigDict

from ddpm_jax import processes
from ddpm_jax.config import build, checks, codecs, fitted
from ddpm_jax.config.origins import with_data
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.figures import FIGURES
from ddpm_jax.modes.evaluate import restored
from ddpm_jax.storage.workdir import find_workdir, locked, open_workdir


def reproduce(config: ConfigDict, workdir: str) -> None:
  """Makes each figure of the step that config.eval.step says.

  Args:
    config: ConfigDict.
    workdir: folder of the run.

  Raises:
    UserError: a config, checkpoint, data set or weights that cannot be used.
  """
  config = with_data(config, workdir)
  checks.prepare(config)
  what = build.names(config.reproduce.what)
  if not what:
    raise UserError(f'reproduce.what is empty; name some of {", ".join(FIGURES)}')
  if 'codec' in what:
    checks.check_compress(config)
    codecs.check_codec(config)
  path = open_workdir(find_workdir(workdir))
  with contextlib.ExitStack() as stack:
    if processes.is_primary():
      stack.enter_context(locked(path, 'eval'))
    weights = stack.enter_context(restored(config, path, config.eval.step))
    coding = codecs.figures_coding(config, path, weights)

    def x_0_variances():
      return fitted.x_0_variances(config, weights, str(path), say=processes.say)

    run = build.figures_run(config, path, weights, coding=coding, x_0_variances=x_0_variances)
    for name in what:
      processes.say(f'{name} of step {weights.step}')
      folder = FIGURES[name](run)
      processes.say(f'done: {folder}')
