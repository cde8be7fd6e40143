"""The training loop: build, restore, step, write."""

import contextlib
import json
import signal

import jax
import numpy as np

from ddpm_jax import build, logs, parallel
from ddpm_jax.checkpoints import Checkpointer
from ddpm_jax.data import batch_of_step
from ddpm_jax.evaluate import training_evaluator
from ddpm_jax.files import read_json, write_text
from ddpm_jax.import_model import check_finished, read_state
from ddpm_jax.logs import NotFiniteError
from ddpm_jax.sample import Sampler, write_samples
from ddpm_jax.train_state import init_train_state
from ddpm_jax.workdir import config_dict, locked, open_workdir, store_config

MAX_TABLE_LINES = 16
MAX_SKIPPED_BATCHES = 10  # a run that has more of them has another fault
SKIPPED = 'skipped_batches.json'
LEAVE_AGAIN_SECS = 0.2
SWALLOWERS = ('__del__', '_xla_gc_callback')  # functions whose exceptions Python only prints


def train(config, workdir):
  """--mode=train: runs from the newest checkpoint, or from the start, to config.train.num_steps.

  SIGTERM and SIGINT end the run after the step in hand, with a checkpoint.

  Args:
    config: ConfigDict.
    workdir: folder of the run.

  Raises:
    ValueError: a config, a data set or a workdir that cannot be used.
    NotFiniteError: the loss is not finite.
    WriteError: a file cannot be written.
  """
  build.begin(config)
  path = open_workdir(workdir)
  with contextlib.ExitStack() as stack:
    if parallel.is_primary():
      stack.enter_context(locked(path, 'train'))
      store_config(path, config)
      check_finished(path)
    source = build.source(config)
    checkpointer = stack.enter_context(
      Checkpointer(
        path / 'checkpoints',
        config_dict(config),
        keep_last=config.train.keep_last_checkpoints,
        keep_every_steps=config.train.keep_checkpoint_every_steps or None,
        is_primary=parallel.is_primary(),
      )
    )
    state = restore_or_init(config, checkpointer)
    if parallel.is_primary():
      print_summary(config, path, source, state)
    step, num_steps = int(state.step), config.train.num_steps
    # The last step's samples may be missing: the run before may have been stopped in their midst.
    looks = step == num_steps and (config.train.sample_every_steps or config.train.eval_every_steps)
    if step >= num_steps and not looks:
      if parallel.is_primary():
        print(f'nothing to do: step {step} of train.num_steps={num_steps}')
      return
    signals = stack.enter_context(Signals())  # one for all attempts: none may forget a signal
    while not run_to_the_end(config, path, source, checkpointer, state, signals):
      state = restore_or_init(config, checkpointer)


def run_to_the_end(config, path, source, checkpointer, state, signals):
  """Trains as run_steps does.

  Returns:
    True; or False if a step was not finite, and the run is to go on from its last checkpoint
    without that batch.
  """
  skipped = read_skipped(path)
  with contextlib.closing(build.batches(config, source, skipped)) as batches:
    try:
      run_steps(config, path, batches, checkpointer, state, signals)
      return True
    except NotFiniteError as error:
      batch = batch_of_step(error.step - 1, skipped)
      skips = config.train.on_nonfinite == 'skip' and len(skipped) < MAX_SKIPPED_BATCHES
      if parallel.is_primary():
        note_not_finite(path, error, batch, batches.global_indices(error.step - 1))
        if skips:
          write_text(path / SKIPPED, json.dumps([*skipped, batch]) + '\n')
          print(
            f'the metrics of step {error.step} are not finite: goes on from the last checkpoint, '
            f'without batch {batch} ({len(skipped) + 1} of at most {MAX_SKIPPED_BATCHES})',
            flush=True,
          )
      parallel.barrier('not finite')
      if not skips:
        raise
      return False


def read_skipped(path):
  """The batches that this run leaves out, since their steps were not finite: a list of numbers."""
  file = path / SKIPPED
  found = read_json(file) if parallel.is_primary() and file.exists() else []
  return json.loads(parallel.from_primary(json.dumps(found)))


def note_not_finite(path, error, batch, examples):
  """Writes what a step that was not finite had: its metrics, and the examples of its batch."""
  metrics = {name: str(value) for name, value in error.metrics.items()}
  found = {'step': error.step, 'metrics': metrics, 'batch': batch, 'examples': examples.tolist()}
  write_text(path / f'not_finite_step_{error.step:08d}.json', json.dumps(found) + '\n')


def restore_or_init(config, checkpointer):
  """The newest checkpoint's state, or config.init_from's, or a fresh one; on all devices."""

  @jax.jit  # here, so that it is traced once for its shapes and for its values
  def init():
    return init_train_state(build.init_params(config), build.optimizer(config))

  state_like = jax.eval_shape(init)
  state = checkpointer.restore_latest(state_like)
  if state is None and config.init_from:
    state, _ = read_state(config, config.init_from)
  return parallel.replicate(init() if state is None else state)


def print_summary(config, path, source, state):
  """Says what is about to run, on what, and where it writes."""
  from clu import parameter_overview

  sizes = parallel.batch_sizes(config.train.global_batch_size, 'train.global_batch_size')
  step = int(state.step)
  table = parameter_overview.get_parameter_overview(
    state.params, include_stats=False, max_lines=MAX_TABLE_LINES
  )
  print(
    f'{table}\n'
    f'devices     {jax.device_count()} x {jax.devices()[0].device_kind}, '
    f'{parallel.process_count()} process(es), jax {jax.__version__}\n'
    f'batch       {sizes.global_} global, {sizes.host} a host, {sizes.device} a device\n'
    f'data        {source.name} {source.split}: {len(source)} images of {source.image_shape}\n'
    f'steps       {step} done, {config.train.num_steps - step} to do\n'
    f'writes to   {path}',
    flush=True,
  )


class Interrupted(BaseException):
  """A signal came during Signals.leave_at."""


class Signals:
  """Notes SIGTERM and SIGINT instead of ending the process; a context manager.

  Of several processes, none may stop alone: SIGTERM is left to JAX, which tells all of them.
  """

  def __enter__(self):
    self.received = []
    self._leaving = False
    self._asked, self._stops = 0, False
    handlers = dict.fromkeys((signal.SIGTERM, signal.SIGINT), self._note)
    handlers[signal.SIGALRM] = self._leave
    if parallel.process_count() > 1:
      handlers = {signal.SIGINT: lambda *_: signal.raise_signal(signal.SIGTERM)}
    self._previous = {number: signal.signal(number, new) for number, new in handlers.items()}
    return self

  def __exit__(self, *exc_info):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def stop_agreed(self):
    """Whether the run stops now, and does not go on; all processes ask, equally often."""
    # JAX says it once only, at one count.
    self._stops |= parallel.stop_agreed(self._asked, bool(self.received))
    self._asked += 1
    return self._stops

  def leave_at(self, work):
    """Calls work(), which a signal may leave at any point."""
    try:
      self._leaving = True
      if not self.received:
        work()
    except Interrupted:
      pass
    finally:
      self._leaving = False
      signal.setitimer(signal.ITIMER_REAL, 0)

  def _note(self, number, frame):
    self.received.append(number)
    self._leave(number, frame)

  def _leave(self, _, frame):
    """Leaves the work; where an exception would be swallowed, a moment later."""
    if not self._leaving:
      return
    signal.setitimer(signal.ITIMER_REAL, LEAVE_AGAIN_SECS)
    while frame is not None:
      if frame.f_code.co_name in SWALLOWERS:
        return
      frame = frame.f_back
    raise Interrupted


def run_steps(config, path, batches, checkpointer, state, signals):
  """Trains from state.step to config.train.num_steps, logging, saving and measuring on the way."""
  every = config.train
  start_step = int(state.step)
  steps_fn = build.train_steps(config)
  data = build.device_data(config, batches)
  key = parallel.replicate(build.key(config.seed, 'train'))
  sampler = Sampler(config, every.num_samples) if every.sample_every_steps else None
  evaluator = training_evaluator(config) if every.eval_every_steps else None

  def is_due(step, every_steps):
    return every_steps and step and (step % every_steps == 0 or step == every.num_steps)

  with contextlib.ExitStack() as stack:
    log = logs.RunLog(
      path if parallel.is_primary() else None,
      start_step=start_step,
      num_steps=every.num_steps,
      images_per_step=every.global_batch_size,
    )
    stack.callback(log.close)

    def look(step):
      """Draws and measures what is due; what is there already is not done again."""
      if is_due(step, every.sample_every_steps):
        draw_samples(sampler, state, path, step, every.num_samples, log)
      if is_due(step, every.eval_every_steps):
        folder = path / 'eval' / f'training_{step:08d}'
        log.figures(step, evaluator.measure(folder, path, step, state.ema_params))
        log.restart_clock(step)

    signals.leave_at(lambda: look(start_step))  # the run before may have been stopped there
    # A signal during that stops the run here: after another step, nobody would make up for it.
    step, stops = start_step, signals.stop_agreed()
    gather = data is not None
    blocks = [] if stops else dispatches(config, batches, start_step, gather=gather)
    for step, block in blocks:
      state, metrics = steps_fn(state, block, data, key)
      log.add(step, metrics, write=bool(is_due(step, every.log_every_steps)))
      if is_due(step, every.checkpoint_every_steps) or is_due(step, every.eval_every_steps):
        save(checkpointer, log, step, state)
      if is_due(step, every.sample_every_steps) or is_due(step, every.eval_every_steps):
        log.check()  # before the time that looking takes
      signals.leave_at(lambda: look(step))  # noqa: B023
      stops = signals.stop_agreed()
      if stops:
        break
    log.check()
    if stops:
      save(checkpointer, log, step, state)
  checkpointer.wait()
  if parallel.is_primary():
    if stops:
      name = signal.Signals([*signals.received, signal.SIGTERM][0]).name
      print(
        f'stopped by {name} at step {step}: saved; the same command goes on from there',
        flush=True,
      )
    else:
      print(f'done: {step} steps; {path / "checkpoints"}', flush=True)


def dispatches(config, batches, start_step, *, gather):
  """Yields what each dispatch takes, from start_step to config.train.num_steps.

  Args:
    config: ConfigDict.
    batches: data.Batches.
    start_step: steps done.
    gather: whether the devices have the data, and want indices.

  Yields:
    (step after it, batches [K, D, B, ...] of images or of indices). K is config's, but less where
    the run starts between its multiples, and at the end.
  """
  per_dispatch, step = build.steps_per_dispatch(config), start_step
  images = None if gather else batches.iterate(start_step)
  while step < config.train.num_steps:
    count = min(per_dispatch - step % per_dispatch, config.train.num_steps - step)
    if gather:
      block = [batches.indices(s).astype(np.int32) for s in range(step, step + count)]
    else:
      block = [next(images) for _ in range(count)]
    step += count
    yield step, parallel.split_over_devices(np.stack(block), axis=1)


def save(checkpointer, log, step, state):
  """Saves the state, unless its step failed."""
  log.check()
  checkpointer.save(step, parallel.as_global(state))


def draw_samples(sampler, state, path, step, num_samples, log):
  """Writes samples of the EMA, and their grid to TensorBoard."""
  folder = write_samples(sampler, state.ema_params, path, step, num_samples)
  if parallel.is_primary():
    print(f'step {step}: {folder / "grid.png"}', flush=True)
    log.picture(step, folder / 'grid.png')
  log.restart_clock(step)
