"""--mode=train: builds, restores, trains, and says what was done."""

import contextlib
import json
import pathlib
import signal
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import devices, processes
from ddpm_jax.config import build, checks
from ddpm_jax.data import batch_of_step
from ddpm_jax.data.sources import Source
from ddpm_jax.errors import NotFiniteError
from ddpm_jax.evaluation.evaluator import Evaluator
from ddpm_jax.evaluation.samples import Drawer, write_samples
from ddpm_jax.evaluation.weights import make_weights
from ddpm_jax.modes.import_model import check_finished, read_state
from ddpm_jax.storage.checkpoints import Checkpointer
from ddpm_jax.storage.files import read_json, write_text
from ddpm_jax.storage.logs import RunLog
from ddpm_jax.storage.workdir import locked, open_workdir, store_config
from ddpm_jax.training import loop
from ddpm_jax.training.signals import Signals
from ddpm_jax.training.state import TrainState, init_train_state

MAX_TABLE_LINES = 16
MAX_SKIPPED_BATCHES = 10  # a run that has more of them has another fault
SKIPPED = 'skipped_batches.json'


def train(config: ConfigDict, workdir: str) -> None:
  """Trains from the newest checkpoint, or from the start, to config.train.num_steps.

  SIGTERM and SIGINT end the run after the step in hand, with a checkpoint.

  Args:
    config: ConfigDict.
    workdir: folder of the run.

  Raises:
    UserError: a config, a data set or a workdir that cannot be used.
    NotFiniteError: the loss is not finite.
    WriteError: a file cannot be written.
  """
  checks.prepare(config)
  path = open_workdir(workdir)
  plan = build.plan(config)
  with contextlib.ExitStack() as stack:
    if processes.is_primary():
      stack.enter_context(locked(path, 'train'))
      store_config(path, config)
      check_finished(path)
    source = build.source(config)
    checkpointer = stack.enter_context(build.checkpointer(config, path))
    state = restore_or_init(config, checkpointer)
    say_summary(config, path, source, state)
    # The last step's samples may be missing: the run before may have been stopped in their midst.
    step = int(state.step)
    if step >= plan.num_steps and not (step == plan.num_steps and plan.is_visited(step)):
      processes.say(f'nothing to do: step {step} of train.num_steps={plan.num_steps}')
      return
    signals = stack.enter_context(Signals())  # one for all attempts: none may forget a signal
    train_step = build.train_step(config)
    key = devices.replicate(build.key(config.seed, 'train'))
    drawer = evaluator = None
    if plan.sample_every_steps:
      drawer = build.drawer(config, config.train.num_samples)
    if plan.eval_every_steps:
      evaluator = build.training_evaluator(config)
    while True:
      skipped = read_skipped(path)
      with (
        contextlib.closing(build.batches(config, source, skipped)) as batches,
        contextlib.closing(build.run_log(config, path, int(state.step))) as log,
      ):
        try:
          step, stopped = loop.run(
            state,
            train_step,
            batches,
            plan=plan,
            data=build.device_data(config, batches),
            key=key,
            log=log,
            checkpointer=checkpointer,
            visit=make_visit(plan, path, log, config.train.num_samples, drawer, evaluator),
            signals=signals,
          )
          break
        except NotFiniteError as error:
          examples = batches.global_indices(error.step - 1)
          skip_batch(path, error, skipped, examples, may_skip=config.train.on_nonfinite == 'skip')
      state = restore_or_init(config, checkpointer)
    checkpointer.wait()
  if stopped:
    name = signal.Signals([*signals.received, signal.SIGTERM][0]).name
    processes.say(f'stopped by {name} at step {step}: saved; the same command goes on from there')
  else:
    processes.say(f'done: {step} steps; {path / "checkpoints"}')


def make_visit(
  plan: loop.Plan,
  path: pathlib.Path,
  log: RunLog,
  num_samples: int,
  drawer: Drawer | None,
  evaluator: Evaluator | None,
) -> Callable[[int, TrainState], None]:
  """(step, state) -> None: draws and measures what is due; what is there already is left."""

  def visit(step, state):
    draws = drawer is not None and plan.is_due(step, plan.sample_every_steps)
    measures = evaluator is not None and plan.is_due(step, plan.eval_every_steps)
    if not draws and not measures:
      return
    weights = make_weights(step, state.ema_params)
    if draws:
      folder = write_samples(drawer, weights, path, num_samples)
      processes.say(f'step {step}: {folder / "grid.png"}')
      log.picture(step, folder / 'grid.png')
    if measures:
      log.figures(step, evaluator.measure(path, weights))
    log.restart_clock(step)

  return visit


def skip_batch(
  path: pathlib.Path,
  error: NotFiniteError,
  skipped: list[int],
  examples: np.ndarray,
  *,
  may_skip: bool,
) -> None:
  """Notes a step that was not finite, and that no step takes its batch; or raises the error."""
  batch = batch_of_step(error.step - 1, skipped)
  skips = may_skip and len(skipped) < MAX_SKIPPED_BATCHES
  if processes.is_primary():
    metrics = {name: str(value) for name, value in error.metrics.items()}
    found = {'step': error.step, 'metrics': metrics, 'batch': batch, 'examples': examples.tolist()}
    write_text(path / f'not_finite_step_{error.step:08d}.json', json.dumps(found) + '\n')
    if skips:
      write_text(path / SKIPPED, json.dumps([*skipped, batch]) + '\n')
  if not skips:
    processes.barrier('not finite')
    raise error
  processes.say(
    f'the metrics of step {error.step} are not finite: goes on from the last checkpoint, '
    f'without batch {batch} ({len(skipped) + 1} of at most {MAX_SKIPPED_BATCHES})'
  )
  processes.barrier('not finite')


def read_skipped(path: pathlib.Path) -> list[int]:
  """The batches that this run leaves out, since their steps were not finite: their numbers."""
  file = path / SKIPPED
  found = read_json(file) if processes.is_primary() and file.exists() else []
  return json.loads(processes.from_primary(json.dumps(found)))


def restore_or_init(config: ConfigDict, checkpointer: Checkpointer) -> TrainState:
  """The newest checkpoint's state, or config.init_from's, or a fresh one; on all devices."""

  @jax.jit  # here, so that it is traced once for its shapes and for its values
  def init():
    return init_train_state(build.init_params(config), build.optimizer(config))

  state_like = jax.eval_shape(init)
  state = checkpointer.restore_latest(state_like)
  if state is None and config.init_from:
    state, _ = read_state(config, config.init_from)
  return devices.replicate(init() if state is None else state)


def say_summary(config: ConfigDict, path: pathlib.Path, source: Source, state: TrainState) -> None:
  """Says what is about to run, on what, and where it writes."""
  from clu import parameter_overview

  sizes = devices.batch_sizes(config.train.global_batch_size, 'train.global_batch_size')
  step = int(state.step)
  table = parameter_overview.get_parameter_overview(
    state.params, include_stats=False, max_lines=MAX_TABLE_LINES
  )
  processes.say(
    f'{table}\n'
    f'devices     {jax.device_count()} x {jax.devices()[0].device_kind}, '
    f'{processes.count()} process(es), jax {jax.__version__}\n'
    f'batch       {sizes.global_} global, {sizes.host} a host, {sizes.device} a device\n'
    f'data        {source.name} {source.split}: {len(source)} images of {source.image_shape}\n'
    f'steps       {step} done, {config.train.num_steps - step} to do\n'
    f'writes to   {path}'
  )
