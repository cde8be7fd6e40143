"""--mode=ema: makes a workdir of a run with another average of its parameters."""

import contextlib
import dataclasses
from typing import Any

import jax
from ml_collections import ConfigDict

from ddpm_jax import devices, processes
from ddpm_jax.config import build, checks
from ddpm_jax.config.origins import config_of, find_folder, is_workdir, split_step
from ddpm_jax.errors import UserError
from ddpm_jax.storage.checkpoints import Checkpointer, GoneError
from ddpm_jax.storage.workdir import check_unused, locked, open_workdir, store_config
from ddpm_jax.training.averages import added_up, check_synthesis, name_of


def ema(config: ConfigDict, workdir: str) -> None:
  """Makes a workdir of config.init_from with the average that config.ema names.

  One of optim.ema_decays is taken as it was kept. One of a width is made of the power-function
  averages in all checkpoints up to the step (EDM2's post-hoc averages).

  Args:
    config: ConfigDict.
    workdir: folder of the new run, which has not begun.

  Raises:
    UserError: no such run or average, a width that cannot be made, or a workdir that cannot be
      used.
  """
  checks.prepare(config)
  width, decay = config.ema.width, config.ema.decay
  if config.init_from is None:
    raise UserError('--mode=ema needs --config.init_from=WORKDIR[@STEP], the run to average')
  if (width is None) == (decay is None):
    raise UserError('--mode=ema takes one of --config.ema.width and --config.ema.decay')
  check_unused(workdir)
  name, step = split_step(config.init_from)
  folder = find_folder(name)
  if folder is None or not is_workdir(folder):
    raise UserError(f'init_from={name} is no workdir: its checkpoints have the averages')
  origin = config_of(name)
  with build.checkpointer(origin, folder, read_only=True) as checkpoints:
    state, words = _with_average(origin, checkpoints, step, width, decay)
  step = int(state.step)
  origin = origin.copy_and_resolve_references().unlock()
  origin.init_from = f'{name}@{step}'
  origin.ema.update(width=width, decay=decay)
  path = open_workdir(workdir, saves_steps=True)
  with contextlib.ExitStack() as stack:
    if processes.is_primary():
      stack.enter_context(locked(path, 'train'))
      store_config(path, origin)
    checkpointer = stack.enter_context(build.checkpointer(origin, path))
    checkpointer.save(step, devices.replicate(state))
    checkpointer.wait()
  processes.say(f'done: {words} up to step {step}; {path / "checkpoints"}')


def _with_average(
  config: ConfigDict,
  checkpoints: Checkpointer,
  step: int | None,
  width: float | None,
  decay: float | None,
) -> tuple[Any, str]:
  """(the state of a step with another average for its ema_params, what that is)."""
  like = jax.eval_shape(lambda: build.init_state(config, build.init_params(config)))
  step, state, _ = checkpoints.restore_state(like, step)
  names = build.average_rates(config)
  if decay is not None:
    if name_of('decay', decay) not in names:
      raise UserError(
        f'ema.decay is {decay}, and the run kept {", ".join(names) or "no other averages"}: give '
        'one of optim.ema_decays'
      )
    kept_one = state.averages[name_of('decay', decay)]
    return dataclasses.replace(state, ema_params=kept_one), f'average of decay {decay}'
  assert width is not None
  widths = config.optim.ema_widths or ()
  if not widths:
    raise UserError(
      f'ema.width is {width}, and the run kept no power-function averages: a run keeps some with '
      '--config.optim.ema_widths=0.05,0.1'
    )
  steps = [at for at in checkpoints.all_steps() if 0 < at <= step]
  if not steps:
    raise GoneError('no checkpoint after the first step: train first')
  kept = [(at, one) for at in steps for one in widths]
  weights, error = check_synthesis(kept, width, step)
  restored = {step: state}

  def average(i):
    at, one = kept[i]
    if at not in restored:
      restored.clear()  # one state in memory, beside the first
      restored[at] = checkpoints.restore_state(like, at)[1]
    return restored[at].averages[name_of('width', one)]

  made = added_up(weights, average)
  words = (
    f'average of width {width}, made of {len(widths)} widths at {len(steps)} steps, error of its '
    f'profile {error:.2g},'
  )
  return dataclasses.replace(state, ema_params=made), words
