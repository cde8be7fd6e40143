"""Models of other programs as runs of ours, and as the start of training."""

import contextlib
import dataclasses
import json
import pathlib

import jax
from ml_collections import ConfigDict

from ddpm_jax import devices, processes
from ddpm_jax.config import build, checks
from ddpm_jax.errors import UserError
from ddpm_jax.interop.foreign import FORMS, read_foreign
from ddpm_jax.storage.checkpoints import steps_on_disk
from ddpm_jax.storage.files import write_text
from ddpm_jax.storage.workdir import locked, open_workdir, store_config
from ddpm_jax.training.state import TrainState, init_train_state

IMPORT = 'import.json'  # written first: a run that has it begins with the import's checkpoint


def import_model(config: ConfigDict, workdir: str) -> None:
  """--mode=import: makes a workdir of config.import.path, to sample, measure and train from.

  Its checkpoint has the file's step, weights and moving average, and a fresh optimizer. What was
  stopped before that is on disk is done by the same command.

  Args:
    config: ConfigDict.
    workdir: folder of the run, which has not begun.

  Raises:
    UserError: a file that cannot be read, another model, or a workdir that cannot be used.
  """
  checks.prepare(config)
  source = config.import_.path
  if not source:
    raise UserError(f'--mode=import needs --config.import.path=PATH: {FORMS}')
  path = pathlib.Path(workdir).expanduser()
  if steps_on_disk(path / 'checkpoints') or (path / 'metrics.jsonl').exists():
    raise UserError(f'--workdir={workdir} holds a run already; give another workdir')
  state, step = read_state(config, source)
  path = open_workdir(workdir)
  with contextlib.ExitStack() as stack:
    if processes.is_primary():
      stack.enter_context(locked(path, 'train'))
      store_config(path, config)
      write_text(path / IMPORT, json.dumps({'path': source, 'step': step}) + '\n')
    checkpointer = stack.enter_context(build.checkpointer(config, path))
    state = dataclasses.replace(state, step=state.step + step)
    checkpointer.save(step, devices.replicate(state))
    checkpointer.wait()
  num_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  processes.say(f'done: {source}, {num_params:,} parameters of step {step}; {path / "checkpoints"}')


def check_finished(path: pathlib.Path) -> None:
  """Raises a UserError if WORKDIR was to begin with an import that was not finished."""
  if (path / IMPORT).exists() and not steps_on_disk(path / 'checkpoints'):
    raise UserError(
      f'--workdir={path} has no checkpoint, since its --mode=import was not finished; give the '
      'command of that import again, or another workdir'
    )


def read_state(config: ConfigDict, source: str) -> tuple[TrainState, int]:
  """The state that starts from another program's model.

  Args:
    config: ConfigDict.
    source: path of the model, as read_foreign has it.

  Returns:
    (TrainState of step 0, with a fresh optimizer; the step that the model tells, or 0).
  """
  params_like = jax.eval_shape(lambda: build.init_params(config))
  params, ema_params, step = read_foreign(
    source, config, params_like, cache_dir=build.cache_dir(config)
  )
  one = ema_params is params
  sets = 'one set of weights, used as both' if one else 'weights and moving average'
  processes.say(f'{source}: {sets}')
  state = init_train_state(params, build.optimizer(config))
  if ema_params is not params:
    state = dataclasses.replace(state, ema_params=ema_params)
  return state, step
