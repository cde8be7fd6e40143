"""--mode=info: says what a workdir, or another model, holds."""

import datetime
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from ddpm_jax import processes
from ddpm_jax.config import build, origins
from ddpm_jax.config.files import CONFIG_FILE
from ddpm_jax.errors import DiskError, UserError
from ddpm_jax.storage import shards
from ddpm_jax.storage.files import read_json, read_object
from ddpm_jax.storage.workdir import check_format, steps_on_disk

MAX_STEPS = 8  # that are named


def info(_: ConfigDict, workdir: str) -> None:
  """Prints the model, its data, checkpoints, samples, reports and figures; writes nothing.

  Args:
    workdir: folder of a run, or another model that has a config.

  Raises:
    UserError: nothing of the kind is there.
  """
  folder = origins.find_folder(workdir)
  if folder is None:
    raise origins.nothing_at(workdir)
  check_format(folder)
  parts = [*_of_config(folder), *_of_run(folder), *_of_results(folder)]
  if not parts:
    raise UserError(f'--workdir={workdir} is no workdir: it has neither a config nor results')
  processes.say(str(folder))
  for name, text in parts:
    processes.say(f'{name:<12}{text}')


def _of_config(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
  config = origins.read_config(folder)
  if config is None:
    return
  params = jax.eval_shape(lambda: build.init_params(config))
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  data = config.data
  yield 'parameters', f'{count:,}'
  yield 'model', _fields(config.model)
  yield 'diffusion', _fields(config.diffusion)
  shape = ' x '.join(map(str, build.image_shape(config)))
  yield 'data', f'{data.source or "not told"}, split {data.split}, {shape}'
  yield (
    'training',
    f'{config.train.num_steps:,} steps of {config.train.global_batch_size}, learning rate '
    f'{config.optim.learning_rate:g}, average of decay {config.optim.ema_decay:g}',
  )
  if config.init_from:
    yield 'began from', config.init_from


def _fields(section):
  return ', '.join(f'{name} {value}' for name, value in section.items())


def _of_run(folder):
  steps = steps_on_disk(folder / 'checkpoints')
  if steps:
    size = sum(f.stat().st_size for f in (folder / 'checkpoints').rglob('*') if f.is_file())
    shown = ', '.join(map(str, steps[-MAX_STEPS:]))
    more = f'{len(steps) - MAX_STEPS} earlier, ' if len(steps) > MAX_STEPS else ''
    yield 'checkpoints', f'{more}{shown} ({size / 2**20:.1f} MiB)'
  elif (folder / CONFIG_FILE).is_file() and (folder / 'metrics.jsonl').exists():
    yield 'checkpoints', 'none yet'
  logged = folder / 'metrics.jsonl'
  if logged.is_file() and (lines := logged.read_text(errors='replace').splitlines()):
    try:
      last: dict[str, Any] = json.loads(lines[-1])
      when = datetime.datetime.fromtimestamp(logged.stat().st_mtime).isoformat(' ', 'minutes')
      yield 'logged', f'step {last["step"]}, loss_mean {last["loss_mean"]:.4f}; {when}'
    except (ValueError, TypeError, KeyError, RecursionError):
      yield 'logged', f'{logged.name} is cut off'
  if (about := folder / origins.PACKAGED_ABOUT).is_file():
    yield from read_object(about).items()


def _of_results(folder):
  for place, name in (('samples', 'samples'), ('edits', 'edited')):
    for file in sorted(folder.glob(f'{place}/step_*/*/{name}.npz')):
      where = file.parent.relative_to(folder)
      try:
        yield name, f'{len(shards.load_ids(file)):,} in {where}'
      except DiskError:
        raise
      except (UserError, KeyError):
        yield name, f'{file.name} in {where} is damaged'
  for file in sorted(folder.glob('eval/**/report.json')):
    try:
      report = read_json(file)
      figures = ', '.join(f'{f["name"]} {f["value"]:.4g}' for f in report['figures'])
    except (UserError, ValueError, TypeError, KeyError):
      figures = f'{file.name} is damaged'
    yield 'report', f'{file.parent.relative_to(folder)}: {figures}'
  for path in sorted(folder.glob('reproduce/step_*/*')):
    if path.is_dir() and not path.name.startswith('.'):
      yield 'figure', f'{path.relative_to(folder)}'
