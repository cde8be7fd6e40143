"""--mode=eval: measures a checkpoint's moving average, each new checkpoint, or given images."""

import contextlib
import pathlib
from collections.abc import Iterator

from ml_collections import ConfigDict

from ddpm_jax import processes
from ddpm_jax.config import build, checks
from ddpm_jax.config.fitted import Fit, fit, needs_fit
from ddpm_jax.config.origins import settled, with_data
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.evaluator import Evaluator, score_images
from ddpm_jax.evaluation.features import GREY_NOTE
from ddpm_jax.evaluation.images import open_images
from ddpm_jax.evaluation.weights import Weights
from ddpm_jax.heeding import sleep
from ddpm_jax.storage.checkpoints import GoneError, keep_steps
from ddpm_jax.storage.identity import Identity
from ddpm_jax.storage.logs import Terminal
from ddpm_jax.storage.workdir import find_workdir, locked, open_workdir

WATCH_EVERY_SECS = 10


def evaluate(config: ConfigDict, workdir: str) -> None:
  """Measures what config.eval names, and writes a report.

  Args:
    config: ConfigDict.
    workdir: folder of the run.

  Raises:
    UserError: a config, checkpoint, data set, weights or statistics that cannot be used.
  """
  config = with_data(config, workdir)
  checks.prepare(config)
  checks.check_metrics(build.names(config.eval.metrics))
  path = open_workdir(workdir if config.eval.samples else find_workdir(workdir))
  config = settled(config, path)
  with contextlib.ExitStack() as stack:
    if processes.is_primary():
      stack.enter_context(locked(path, 'eval'))
    if config.eval.samples:
      folder = evaluate_images(config, path)
    elif config.eval.watch:
      folder = watch(config, path)
    else:
      config, estimates = fitted_config(config, path)
      evaluator = make_evaluator(config, path, estimates)
      folder = evaluate_step(config, evaluator, path, config.eval.step)
    processes.say(f'done: {folder / "report.md"}')


@contextlib.contextmanager
def restored(config: ConfigDict, path: pathlib.Path, step: int | None) -> Iterator[Weights]:
  """Yields the Weights of a checkpoint, which the run in progress keeps meanwhile.

  Args:
    config: ConfigDict.
    path: WORKDIR.
    step: None for the newest.
  """
  checkpoints = path / 'checkpoints'

  def keep(steps):
    if processes.is_primary():
      keep_steps(checkpoints, 'evaluating', steps)

  if step is not None:
    keep([step])
  with Terminal().waiting('reads the checkpoint'):
    weights: Weights = build.restore_weights(config, path, step)
  keep([weights.step])  # until it is known whether it is the best
  yield weights
  keep([])


def fitted_config(config: ConfigDict, path: pathlib.Path) -> Fit:
  """The config, with what its sampler takes of the checkpoint, and what is measured for it."""
  if not needs_fit(config):
    return Fit(config)
  with restored(config, path, config.eval.step) as weights:
    return fit(config, weights, str(path), say=processes.say)


def make_evaluator(
  config: ConfigDict, path: pathlib.Path, estimates: build.Estimates = build.NO_ESTIMATES
) -> Evaluator:
  """The Evaluator of a config; what its reports note is said first."""
  with Terminal().waiting('opens pictures and networks'):
    evaluator = build.evaluator(config, path, estimates)
  for line in evaluator.remarks():
    processes.say(line)
  return evaluator


def evaluate_step(
  config: ConfigDict, evaluator: Evaluator, path: pathlib.Path, step: int | None
) -> pathlib.Path:
  """Measures one checkpoint; None is the newest. Returns the folder of its report."""
  with restored(config, path, step) as weights:
    processes.say(f'evaluates step {weights.step}')
    evaluator.measure(path, weights)
  processes.barrier('report written')
  return evaluator.folder(path, weights)


def watch(config: ConfigDict, path: pathlib.Path) -> pathlib.Path:
  """Measures each new checkpoint up to train.num_steps. Returns the last report's folder."""
  evaluator = make_evaluator(config, path)
  done, folder = set(), None
  processes.say(f'waits for checkpoints up to step {config.train.num_steps}; Ctrl-C ends it')
  while True:
    with build.checkpointer(config, path, read_only=True) as checkpoints:
      steps = [step for step in checkpoints.all_steps() if step not in done]
    for step in steps:
      done.add(step)
      try:
        folder = evaluate_step(config, evaluator, path, step)
      except GoneError as error:
        print(f'passes over step {step}: {error}', flush=True)
    if done and max(done) >= config.train.num_steps:
      if folder is None:
        raise UserError(f'{path} had each checkpoint deleted before it could be measured')
      return folder
    if not steps:
      sleep(WATCH_EVERY_SECS)


def evaluate_images(config: ConfigDict, path: pathlib.Path) -> pathlib.Path:
  """Measures given images, all of them, instead of our own. Returns the folder of the report."""
  asked = build.names(config.eval.metrics)
  metrics = [metric for metric in asked if metric not in build.LIKELIHOODS]
  if not metrics:
    raise UserError(
      f'eval.metrics={",".join(asked)} is of a model, and eval.samples are images alone: name some '
      'of fid, is, kid, pr'
    )
  images = open_images(config.eval.samples, 'eval.samples')
  num_axes = 2 if config.eval.network in build.OF_ANY_PICTURES else 3
  if images.image_shape[:num_axes] != build.image_shape(config)[:num_axes]:
    raise UserError(
      f'eval.samples={config.eval.samples} has images of {images.image_shape}; data.image_size and '
      f'data.channels say {build.image_shape(config)}'
    )
  scorer = build.scorer(config, metrics)
  if images.image_shape[2] < config.data.channels:
    images.remarks = (*images.remarks, GREY_NOTE)
  for line in (*images.remarks, *scorer.opened.notes):
    processes.say(line)
  identity = Identity(**scorer.identity(), choices=build.eval_choices(config))
  return score_images(scorer, images, path, build.about_config(config), identity)
