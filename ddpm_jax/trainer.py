"""A training run in a workdir: builds, restores, trains, says what was done; ddpm_jax.train."""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import devices, numerics, processes
from ddpm_jax.config import build, checks
from ddpm_jax.config.fields import DATA
from ddpm_jax.config.files import load_config
from ddpm_jax.config.origins import Start, read_start, settled, split_step, with_data
from ddpm_jax.data import Encoded, Labels, batch_of_step, check_classes, keep_record
from ddpm_jax.data.digits import ArraySource
from ddpm_jax.data.labels import listed
from ddpm_jax.data.sources import Source
from ddpm_jax.errors import NotFiniteError, UserError, check_system
from ddpm_jax.evaluation.evaluator import Evaluator
from ddpm_jax.evaluation.samples import Drawer, write_samples
from ddpm_jax.evaluation.weights import make_weights
from ddpm_jax.model import Model, load
from ddpm_jax.nn.own import OwnNetwork
from ddpm_jax.signals import Signals, Stops
from ddpm_jax.storage.checkpoints import Checkpointer
from ddpm_jax.storage.files import damaged, read_json, write_text
from ddpm_jax.storage.logs import RunLog, Terminal
from ddpm_jax.storage.workdir import (
  check_config,
  has_begun,
  locked,
  open_workdir,
  steps_on_disk,
  store_arithmetic,
  store_config,
)
from ddpm_jax.training import loop
from ddpm_jax.training.state import TrainState

MAX_TABLE_LINES = 16
MAX_SKIPPED_BATCHES = 10  # a run that has more of them has another fault
SKIPPED = 'skipped_batches.json'
IMPORT = 'import.json'  # written first: a run that has it begins with the import's checkpoint
ORIGIN = 'origin.json'
OWN_DATA = 'array'  # data.source of a run on an array

Say = Callable[[str], None]


def train(
  workdir: str | os.PathLike[str],
  data: np.ndarray | None = None,
  *,
  labels: np.ndarray | None = None,
  config: str | ConfigDict | None = None,
  network: Callable[[Any, jax.Array, jax.Array], jax.Array] | None = None,
  params: Any = None,
  num_steps: int | None = None,
  progress: bool = True,
) -> Model:
  """Trains in a workdir, or goes on where it was stopped; the command line's --mode=train.

  Ctrl-C finishes the step in hand, saves, and raises KeyboardInterrupt: the same call goes on.

  Args:
    workdir: folder of the run.
    data: [N, ..., C], examples to train on, of one to three spatial axes: uint8 pictures; other
      whole numbers, of config.data.levels; or floating-point numbers. None for those of
      config.data.
    labels: int [N], the class of each picture, 0, 1, ...; None for a model without labels.
    config: name or path of a config, or a ConfigDict, such as load_config returns. With `data`, its
      data.image_size and data.channels are those of the examples. None for that of the digits,
      without samples on the way, and with attention at half the size of the examples.
    network: one's own, (params, x_t [B, H, W, C], t int [B]) -> [B, H, W, C]; None for the U-Net.
      With labels it has a fourth argument, labels int [B], the number of classes where there is
      none.
    params: its parameters before training, a tree of arrays.
    num_steps: of training; None for config.train.num_steps.
    progress: whether to print how it goes.

  Returns:
    the Model, with its moving average.

  Raises:
    UserError: data, config or network that do not fit, or a workdir of another run.
  """
  check_system(sys.platform)
  is_default = config is None
  if config is None or isinstance(config, str):
    config = load_config(config or 'digits')
  config = config.copy_and_resolve_references()
  source = None
  if is_default:
    config.train.sample_every_steps = 0
  if num_steps is not None:
    config.train.num_steps = num_steps
  if data is not None:
    source = array_source(data, labels, config.data.levels)
    *size, channels = source.image_shape
    image_size = size[0] if len(size) == 2 and size[0] == size[1] else tuple(size)
    with config.ignore_type():  # a number or a tuple
      config.data.update(source=OWN_DATA, image_size=image_size, channels=channels)
    if is_default and source.image_shape != (8, 8, 1):
      config.model.attn_resolutions = (size[0] // 2,)
      config.eval.network = 'inception'  # the digits' network takes digits alone
  elif labels is not None:
    raise UserError('labels are given without data: give the pictures that they are of, too')
  if data is not None and labels is None and config.model.num_classes is not None:
    raise UserError(
      f'model.num_classes is {config.model.num_classes}, but labels are not given: give the class '
      'of each picture'
    )
  if labels is not None and config.model.num_classes in (None, DATA):
    with config.ignore_type():  # it may be a text
      config.model.num_classes = len(source.labels(None).names)
  own = None
  if network is not None:
    if params is None:
      raise UserError('network is given without params: give its parameters before training')
    own = OwnNetwork(network, config.model.num_classes)
    config.network = own.name
    params = jax.tree.map(np.asarray, params)
    build.check_network(config, own, params)
  stops = Stops()

  def work():
    talk = contextlib.nullcontext() if progress else processes.silent()
    with numerics.pinned(), talk:
      run(config, workdir, signals=stops, source=source, network=own, params=params)

  # In a thread: Ctrl-C cannot tear a step apart, and no signal handler is needed.
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    future = pool.submit(work)
    try:
      future.result()
    except KeyboardInterrupt:
      stops.received.append(signal.SIGINT)
      future.result()
      raise
  return load(workdir, network=network, params=params)


def array_source(
  data: np.ndarray, labels: np.ndarray | None = None, levels: int | str | None = None
) -> ArraySource:
  """Examples in an array as a source, with their classes if these are given.

  Raises:
    UserError: no examples, or labels that are not theirs.
  """
  images = np.asarray(data)
  if images.dtype.kind not in 'buif' or images.ndim not in (3, 4, 5):
    raise UserError(
      f'data is {images.dtype}{list(images.shape)}; it must be [N, L, C] signals, [N, H, W, C] '
      'pictures or [N, D, H, W, C] volumes, of numbers'
    )
  if images.dtype == np.uint8 and images.ndim == 3 and levels is None:
    raise UserError(
      f'data is uint8{list(images.shape)}: give grey pictures with their axis of channels, '
      'data[..., None]; for signals of bytes, set config.data.levels=256'
    )
  if not images.size:
    raise UserError('data holds no examples')
  found = None
  if labels is not None:
    ids = np.asarray(labels)
    if ids.dtype.kind not in 'iu' or ids.shape != images.shape[:1] or ids.min() < 0:
      raise UserError(
        f'labels is {ids.dtype}{list(ids.shape)}; it must be int [{len(images)}], a class 0, 1, '
        '... for each picture'
      )
    names = tuple(str(i) for i in range(int(ids.max()) + 1))
    found = Labels(ids.astype(np.int32), names)
  return _GivenSource(OWN_DATA, 'train', images, found)


class _GivenSource(ArraySource):
  """Examples in an array, whose fingerprint is of all of them."""

  def names(self) -> bytes:
    """Their sha256, in place of names."""
    return self.version().encode()


def run(
  config: ConfigDict,
  workdir: str | os.PathLike[str],
  *,
  signals: Stops | None = None,
  source: Source | None = None,
  network: OwnNetwork | None = None,
  params: Any = None,
) -> None:
  """Trains from the newest checkpoint, or from the start, to config.train.num_steps.

  Args:
    config: ConfigDict.
    workdir: folder of the run.
    signals: not yet entered: what ends the run after the step in hand, with a checkpoint; None for
      SIGTERM and SIGINT.
    source: of the pictures; None for config.data's.
    network: one's own; None for config.model's.
    params: its parameters before training.

  Raises:
    UserError: a config, a data set or a workdir that cannot be used.
    NotFiniteError: the loss is not finite.
    WriteError: a file cannot be written.
  """
  terminal = Terminal()
  say = terminal.say
  checks.prepare(config, say, trains=True)
  if config.train.sample_every_steps or config.train.eval_every_steps:
    build.check_fit(config)
  path = open_workdir(workdir, saves_steps=True)
  plan = build.plan(config)
  with contextlib.ExitStack() as stack:
    stack.enter_context(devices.dividing(config.train.global_batch_size))
    if processes.is_primary():
      stack.enter_context(locked(path, 'train'))
    if source is not None and config.data.holdout is not None:
      raise UserError(
        'data.holdout is given, and the pictures are an array: leave out some of them'
      )
    with terminal.waiting('opens the data'):
      config = with_data(settled(config, path), path, source=source)
    if source is not None and config.data.dtype is not None:
      source = Encoded(source, build.encoding(config))
    begun = has_begun(path)
    if processes.is_primary():
      check_config(path, config)
      check_finished(path)
    with terminal.waiting('opens the pictures'):
      source = source or build.source(config)
      labels = build.labels_of(config, source)
    if labels is not None:
      check_classes(labels, source.name)
    if processes.is_primary():  # not before the pictures are there: a first try may fail
      keep_record(path, source, has_begun=begun, say=say, labels=labels)
      store_config(path, config)
      store_arithmetic(path, numerics.arithmetic())
    train_step = build.train_step(config, network)
    key = devices.replicate(build.key(config.seed, 'train'))
    init = make_init(config, params)
    compiling = None
    newest = max(steps_on_disk(path / 'checkpoints'), default=0)
    # Of several processes, arrays are needed and not only their shapes: the first step compiles.
    if newest < plan.num_steps and processes.count() == 1:
      with terminal.waiting('traces the training step'):
        block, images = build.step_shapes(config, source, labels)
        state_like = jax.eval_shape(init)
        compile_step = devices.lower_train_step(train_step, state_like, block, images, key)
      compiling = processes.in_background(compile_step)
    checkpointer = stack.enter_context(build.checkpointer(config, path))

    def restore():
      return restore_or_init(config, checkpointer, init, path=path, say=say)

    with terminal.waiting('restores the state'):
      state = restore()
    say_summary(config, path, source, state, say, labels)
    # The last step's samples may be missing: the run before may have been stopped in their midst.
    step = int(state.step)
    if step >= plan.num_steps and not (step == plan.num_steps and plan.is_visited(step)):
      say(f'nothing to do: step {step} of train.num_steps={plan.num_steps}')
      return
    signals = stack.enter_context(
      signals or Signals()
    )  # one for all attempts: none may forget a signal
    drawer = evaluator = None
    if plan.sample_every_steps:
      names = None if labels is None else labels.names
      drawer = build.drawer(config, config.train.num_samples, network, names)
    if plan.eval_every_steps:
      evaluator = build.training_evaluator(config, path)
      for line in evaluator.remarks():
        say(line)
    while True:
      skipped = read_skipped(path)
      with (
        contextlib.closing(build.batches(config, source, skipped, labels)) as batches,
        contextlib.closing(build.run_log(config, path, int(state.step), terminal)) as log,
      ):
        with terminal.waiting('reads the pictures'):
          data = build.device_data(config, batches)
        try:
          batches.check_early()
          step, stopped = loop.run(
            state,
            train_step,
            batches,
            plan=plan,
            data=data,
            key=key,
            log=log,
            checkpointer=checkpointer,
            visit=make_visit(
              plan, path, log, config.train.num_samples, drawer, evaluator, terminal
            ),
            signals=signals,
            terminal=terminal,
            compiling=compiling,
          )
          break
        except NotFiniteError as error:
          examples = batches.global_indices(error.step - 1)
          skip_batch(
            path, error, skipped, examples, may_skip=config.train.on_nonfinite == 'skip', say=say
          )
      state = restore()
    checkpointer.wait()
  if stopped:
    name = signal.Signals([*signals.received, signal.SIGTERM][0]).name
    say(f'stopped by {name} at step {step}: saved; the same command goes on from there')
  else:
    say(f'done: {step} steps; {path / "checkpoints"}')


def make_visit(
  plan: loop.Plan,
  path: pathlib.Path,
  log: RunLog,
  num_samples: int,
  drawer: Drawer | None,
  evaluator: Evaluator | None,
  terminal: Terminal,
) -> Callable[[int, TrainState], None]:
  """(step, state) -> None: draws and measures what is due; what is there already is left."""

  def visit(step, state):
    draws = drawer is not None and plan.is_due(step, plan.sample_every_steps)
    measures = evaluator is not None and plan.is_due(step, plan.eval_every_steps)
    if not draws and not measures:
      return
    weights = make_weights(step, state.ema_params)
    if draws:
      # In a log, the lines would be many.
      folder = write_samples(drawer, weights, path, num_samples, progress=terminal.is_live)
      terminal.say(f'step {step}: {folder / "grid.png"}')
      if (folder / 'grid.png').exists():  # not yet, where another process draws more samples
        log.picture(step, folder / 'grid.png')
    if measures:
      log.figures(step, evaluator.measure(path, weights))
    log.restart_clock()

  return visit


def skip_batch(
  path: pathlib.Path,
  error: NotFiniteError,
  skipped: list[int],
  examples: np.ndarray,
  *,
  may_skip: bool,
  say: Say,
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
  say(
    f'the metrics of step {error.step} are not finite: goes on from the last checkpoint, '
    f'without batch {batch} ({len(skipped) + 1} of at most {MAX_SKIPPED_BATCHES})'
  )
  processes.barrier('not finite')


def read_skipped(path: pathlib.Path) -> list[int]:
  """The batches that this run leaves out, since their steps were not finite: their numbers."""
  file = path / SKIPPED
  found = read_json(file) if processes.is_primary() and file.exists() else []
  if not isinstance(found, list) or not all(type(n) is int and n >= 0 for n in found):
    raise damaged(file, 'no list of the numbers of batches')
  return json.loads(processes.from_primary(json.dumps(found)))


def begin(
  config: ConfigDict, given: str, *, optimizer_state: bool = False, say: Say = processes.say
) -> tuple[TrainState, Start]:
  """The state of a run that begins from a model, at step 0.

  Args:
    config: ConfigDict.
    given: the model, as config.origins has it.
    optimizer_state: whether to take over the optimizer's state; otherwise it is a fresh one.
    say: prints a line.

  Returns:
    (TrainState, what it was made of).
  """
  start = read_start(given, config, optimizer_state=optimizer_state)
  sets = 'one set of weights, used as both' if start.is_one_set else 'weights and moving average'
  say(f'{given}, step {start.step}: {sets}')
  state = build.init_state(config, start.params)
  if not start.is_one_set:
    state = dataclasses.replace(state, ema_params=start.ema_params)
  if start.opt_state is not None:
    state = dataclasses.replace(state, opt_state=start.opt_state)
  return state, start


def check_finished(path: pathlib.Path) -> None:
  """Raises a UserError if WORKDIR was to begin with an import that was not finished."""
  if (path / IMPORT).exists() and not steps_on_disk(path / 'checkpoints'):
    raise UserError(
      f'--workdir={path} has no checkpoint, since its --mode=import was not finished; give the '
      'command of that import again, or another workdir'
    )


def note_origin(config: ConfigDict, path: pathlib.Path, start: Start) -> None:
  """Notes what a run begins from: with its step in config.init_from, with its sha256 on disk."""
  name, _ = split_step(config.init_from)
  if start.is_checkpoint:
    config.init_from = f'{name}@{start.step}'
  if processes.is_primary():
    found = {'path': name, 'step': start.step, 'sha256': start.sha256}
    found['optimizer'] = config.init_optimizer
    write_text(path / ORIGIN, json.dumps(found) + '\n')
    store_config(path, config)


def make_init(config: ConfigDict, params: Any = None) -> Callable[[], TrainState]:
  """() -> the state before the first step, compiled: traced once for its shapes and its values.

  Args:
    config: ConfigDict.
    params: of one's own network, before training; None for config.model's, drawn from the seed.
  """

  @jax.jit
  def init():
    fresh = build.init_params(config) if params is None else jax.tree.map(jnp.asarray, params)
    return build.init_state(config, fresh)

  return init


def restore_or_init(
  config: ConfigDict,
  checkpointer: Checkpointer,
  init: Callable[[], TrainState],
  *,
  path: pathlib.Path | None = None,
  say: Say = processes.say,
) -> TrainState:
  """The newest checkpoint's state, or config.init_from's, or a fresh one; on all devices.

  Args:
    config: ConfigDict.
    checkpointer: Checkpointer.
    init: as make_init returns it.
    path: WORKDIR, where config.init_from is noted if the run begins from it.
    say: prints a line.
  """
  state_like = jax.eval_shape(init)
  state = checkpointer.restore_latest(state_like)
  if state is None and config.init_from:
    state, start = begin(config, config.init_from, optimizer_state=config.init_optimizer, say=say)
    if path is not None:
      note_origin(config, path, start)
  return devices.replicate(init() if state is None else state)


def say_summary(
  config: ConfigDict,
  path: pathlib.Path,
  source: Source,
  state: TrainState,
  say: Say,
  labels: Labels | None = None,
) -> None:
  """Says what is about to run, on what, and where it writes."""
  from clu import parameter_overview

  sizes = devices.batch_sizes(config.train.global_batch_size, 'train.global_batch_size')
  step = int(state.step)
  leaves = jax.tree_util.tree_leaves_with_path(state.params)
  named = {jax.tree_util.keystr(key, simple=True, separator='/'): leaf for key, leaf in leaves}
  table = parameter_overview.get_parameter_overview(
    named, include_stats=False, max_lines=MAX_TABLE_LINES
  )
  used, there = len(devices.in_use()), jax.device_count()
  if used < there:
    say(
      f'trains on {used} of the {there} devices: train.global_batch_size={sizes.global_} does not '
      'divide into equal parts for more of them'
    )
  say(
    f'{table}\n'
    f'devices     {used} x {jax.devices()[0].device_kind}, '
    f'{processes.count()} process(es), jax {jax.__version__}\n'
    f'batch       {sizes.global_} global, {sizes.host} a host, {sizes.device} a device\n'
    f'data        {source.name} {source.split}: {len(source)} images of {source.image_shape}\n'
    f'steps       {step} done, {config.train.num_steps - step} to do\n'
    f'writes to   {path}'
  )
  if labels is not None:
    say(
      f'labels      {listed(labels.names)}; left out of {build.label_dropout(config):g} of the '
      'examples'
    )
  for remark in getattr(source, 'remarks', ()):
    say(remark)
  if sizes.global_ > len(source):
    say(
      f'train.global_batch_size={sizes.global_} is more than the {len(source)} images: each step '
      f'takes an image {sizes.global_ / len(source):.3g} times, on average'
    )
