"""Models of other programs as runs of ours, and as the start of training."""

import contextlib
import dataclasses
import json

import jax
from ml_collections import ConfigDict

from ddpm_jax import devices, processes
from ddpm_jax.config import build, checks
from ddpm_jax.config.origins import find_folder, is_workdir, with_dtype
from ddpm_jax.errors import UserError
from ddpm_jax.interop import diffusers
from ddpm_jax.interop.foreign import FORMS
from ddpm_jax.storage.files import write_text
from ddpm_jax.storage.workdir import check_unused, locked, open_workdir, store_config
from ddpm_jax.trainer import IMPORT, begin


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
  config = with_dtype(config, config.import_.path)
  checks.prepare(config)
  source = config.import_.path
  if not source:
    raise UserError(f'--mode=import needs --config.import.path=PATH: a workdir, {FORMS}')
  check_unused(workdir)
  state, start = begin(config, source)
  step = start.step
  _say_clip(source, config)
  path = open_workdir(workdir, saves_steps=True)
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


def _say_clip(source, config):
  """Says where a pipeline was sampled with another clipping, which is no part of the model."""
  folder = find_folder(source)
  if folder is None or is_workdir(folder) or not diffusers.find_pipeline(folder):
    return
  ours = config.sample.clip
  try:
    theirs = diffusers.clip_of(folder)
  except UserError as error:
    processes.say(f'{error}; this config says sample.clip={ours}')
    return
  if theirs not in (None, ours):
    processes.say(
      f'{source}: its scheduler clips as sample.clip={theirs} does; this config says '
      f'sample.clip={ours}'
    )
