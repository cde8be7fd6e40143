"""What a run tells: WORKDIR/metrics.jsonl, WORKDIR/tensorboard, and lines for the terminal."""

import contextlib
import datetime
import json
import os
import pathlib
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import jax
import numpy as np

from ddpm_jax import processes
from ddpm_jax.errors import NotFiniteError, WriteError
from ddpm_jax.storage.files import written_whole

LOG_EVERY_SECS = 10
SHOW_EVERY_SECS = 1.0  # on a terminal
DROPPED = 'metrics.dropped.jsonl'

Logger = Callable[[int, Mapping[str, float]], object]  # (step, {name: value}): one's own


class Terminal:
  """How a run talks: lines; and on a terminal one that is overwritten, of the work in hand."""

  def say(self, text: str) -> None:
    """Prints a line, on the first process."""
    processes.say(text)

  @property
  def is_live(self) -> bool:
    """Whether somebody looks on."""
    return processes.is_primary() and sys.stdout.isatty() and not processes.is_silent()

  def show(self, text: str) -> None:
    """Shows a line on a terminal, until another one takes its place."""
    if self.is_live:
      print(f'{text}\x1b[K\r', end='', flush=True)

  @contextlib.contextmanager
  def waiting(self, text: str) -> Iterator[None]:
    """Shows on a terminal what is waited for, once that takes a second, and for how long."""
    if not self.is_live:
      yield
      return
    start, done = time.perf_counter(), threading.Event()

    def tell():
      while not done.wait(SHOW_EVERY_SECS):
        self.show(f'{text}: {time.perf_counter() - start:.0f} s')

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
      yield
    finally:
      done.set()
      thread.join()
      self.show('')


class Progress:
  """How far a long job is: a bar on a terminal; in a log, a line every ten seconds."""

  def __init__(self, what: str, total: int, *, done: int = 0, unit: str = 'images'):
    """Begins.

    Args:
      what: a word or two on the job.
      total: number of units in the whole job.
      done: how many were there before.
      unit: what is counted.
    """
    from tqdm import tqdm

    self._what, self._total, self._before, self._done = what, total, done, done
    self._start = self._last_print = time.perf_counter()
    bar = dict(total=total, initial=done, desc=what, unit=f' {unit}', file=sys.stdout)
    self._is_silent = processes.is_silent()
    disable = True if self._is_silent else None  # None: only on a terminal
    self._bar = tqdm(**bar, disable=disable, leave=False)
    self._closed = threading.Event()
    if not self._bar.disable:  # its clock goes while a program compiles
      threading.Thread(target=self._tick, daemon=True).start()

  def add(self, count: int) -> None:
    """Counts so many more as done."""
    self._done += count
    self.reach(0)

  def reach(self, count: float) -> None:
    """Shows that of the units which `add` counts next, so much is done."""
    done = self._done + int(count)
    if not self._bar.disable:
      self._bar.update(done - self._bar.n)
      return
    if self._is_silent:
      return
    now = time.perf_counter()
    if now - self._last_print >= LOG_EVERY_SECS or self._done == self._total:
      self._last_print = now
      rate = (done - self._before) / max(now - self._start, 1e-9)
      eta = f'  {rate:.2f}/s  ETA {duration((self._total - done) / rate)}' if rate else ''
      print(f'{self._what} {done}/{self._total}{eta}', flush=True)

  def close(self) -> None:
    """Ends the bar."""
    self._closed.set()
    self._bar.close()

  def _tick(self):
    while not self._closed.wait(SHOW_EVERY_SECS):
      self._bar.refresh()


class _Completions:
  """Notes when dispatches complete, however late somebody asks.

  A dispatch may return at once, or hold its caller until it is nearly done: which time the caller
  sees the one before at says nothing. A thread that waits for each of them sees the same of all.
  """

  def __init__(self):
    self._queue = queue.SimpleQueue()
    threading.Thread(target=self._run, daemon=True, name='completions').start()

  def of(self, arrays: Any) -> futures.Future:
    """When arrays were computed, of time.perf_counter."""
    future: futures.Future = futures.Future()
    self._queue.put((arrays, future))
    return future

  def close(self) -> None:
    """Ends the thread, after what was asked for."""
    self._queue.put(None)

  def _run(self):
    while (asked := self._queue.get()) is not None:
      arrays, future = asked
      try:
        jax.block_until_ready(arrays)
        future.set_result(time.perf_counter())
      except Exception as error:
        future.set_exception(error)


class RunLog:
  """Collects each step's metrics, stops the run on a non-finite loss, and writes logged steps.

  A step's metrics are fetched and written while the next step runs. What an interrupted run logged
  beyond the step that it goes on from moves to metrics.dropped.jsonl: those steps are logged again.

  A rate is of the time from the completion of one dispatch to that of another. The first dispatch
  of each length is compiled, and in no rate; a line that has no other has no rate, null.
  """

  def __init__(
    self,
    workdir: pathlib.Path | None,
    *,
    start_step: int,
    num_steps: int,
    images_per_step: int,
    terminal: Terminal | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    logger: Logger | None = None,
  ):
    """Opens the files.

    Args:
      workdir: pathlib.Path, or None to check losses only (all processes but the first).
      start_step: steps done before.
      num_steps: step at which the run ends, for the ETA.
      images_per_step: global batch size.
      terminal: Terminal.
      hyperparameters: by name, for TensorBoard.
      logger: told what TensorBoard is told, but for pictures.
    """
    self._terminal = terminal or Terminal()
    self._logger = logger
    self._num_steps = num_steps
    self._images_per_step = images_per_step
    self._pending = None  # (step, metrics on device, whether to write them, their Future)
    self._losses = []  # since the last logged step
    self._file = self._tensorboard = self._completions = None
    self._lengths = set()  # of the dispatches so far, in steps
    self._counted = 0, 0.0  # (steps, seconds) of the rate since the last logged step
    self._thread_errors = []
    if workdir is not None:
      from tensorboardX import SummaryWriter

      self._previous_hook, threading.excepthook = threading.excepthook, self._note_thread_error

      _drop_after(workdir / 'metrics.jsonl', start_step)
      self._file = open(workdir / 'metrics.jsonl', 'a')  # noqa: SIM115
      self._tensorboard = SummaryWriter(
        # Absolute: a relative path such as s3:a is an address there.
        str((workdir / 'tensorboard').absolute()),
        purge_step=start_step + 1,
        max_queue=100,
      )
      if hyperparameters is not None:
        self._tell_hyperparameters(hyperparameters)
      self._completions = _Completions()
    self.restart_clock()

  def restart_clock(self) -> None:
    """Leaves the time up to now out of the rates; nothing may be running."""
    self._clock = time.perf_counter()

  def add(
    self,
    step: int,
    metrics: Mapping[str, Any],
    *,
    count: int | None = None,
    write: bool = False,
  ) -> None:
    """Takes metrics of steps that are still being computed, and checks those before them.

    Args:
      step: the last of them.
      metrics: dict of arrays [K], or of scalars for one step.
      count: the last so many of the arrays are of steps; None for all.
      write: whether the last step is one to write.

    Raises:
      as check.
    """
    self.check()
    completed = self._completions.of(metrics) if self._completions else None
    self._pending = step, metrics, write, completed, count or 0

  def check(self) -> None:
    """Waits for the newest steps, and writes the last of them where that was asked for.

    Raises:
      NotFiniteError: a metric of one of them is not finite.
      WriteError: a file cannot be written.
    """
    if self._pending is None:
      return
    step, metrics, write, completed, count = self._pending
    self._pending = None
    values = {name: np.atleast_1d(x)[-count:] for name, x in jax.device_get(metrics).items()}
    for i, loss in enumerate(values['loss'], step - len(values['loss']) + 1):
      of_step = {name: float(array[i - step - 1]) for name, array in values.items()}
      if not np.isfinite([*of_step.values()]).all():
        raise NotFiniteError(i, of_step)
      self._losses.append(float(loss))
      if self._file is not None:
        self._terminal.show(f'step {i}/{self._num_steps}')
    if completed is not None:
      self._count(len(values['loss']), completed.result())
    if write:
      self._write(step, of_step)

  def _count(self, num_steps, completed):
    """Counts a dispatch for the rate, unless it was compiled."""
    if num_steps in self._lengths:
      steps, secs = self._counted
      self._counted = steps + num_steps, secs + completed - self._clock
    self._lengths.add(num_steps)
    self._clock = completed

  def _write(self, step, values):
    """Writes a step's metrics, and loss_mean over the steps since the last written."""
    steps, secs = self._counted
    self._counted = 0, 0.0
    rate = steps / max(secs, 1e-9) if steps else None
    values = values | {
      'loss_mean': sum(self._losses) / len(self._losses),
      'steps_per_sec': rate,
      'images_per_sec': rate and rate * self._images_per_step,
    }
    self._losses.clear()
    if self._file is None:
      return
    self._check_tensorboard()
    try:
      self._file.write(json.dumps({'step': step, **values}) + '\n')
      self._file.flush()
    except OSError as error:
      raise WriteError(self._file.name, error) from error
    self._tell(step, {name: value for name, value in values.items() if value is not None})
    self._terminal.say(progress_line(step, self._num_steps, values))

  def _tell(self, step, values):
    """Tells TensorBoard, and one's own logger."""
    for name, value in values.items():
      self._tensorboard.add_scalar(name, value, step)
    if self._logger is not None:
      self._logger(step, values)

  def _tell_hyperparameters(self, given):
    """For TensorBoard's table of runs, beside the mean loss."""
    from tensorboardX.summary import hparams

    plain = {n: x if isinstance(x, bool | int | float | str) else str(x) for n, x in given.items()}
    for summary in hparams(plain, {'loss_mean': None}):
      self._tensorboard.file_writer.add_summary(summary)

  def figures(self, step: int, figures: Sequence[Mapping[str, Any]]) -> None:
    """Shows the figures of an evaluation in TensorBoard, and says them.

    Args:
      step: that was measured.
      figures: list of dicts with name and value.
    """
    if self._file is None:
      return
    self._check_tensorboard()
    self._tell(step, {f'eval/{figure["name"]}': figure['value'] for figure in figures})
    self._terminal.say(
      f'step {step}: ' + '  '.join(f'{f["name"]} {f["value"]:.4g}' for f in figures)
    )

  def picture(self, step: int, png: pathlib.Path) -> None:
    """Shows a PNG file in TensorBoard."""
    if self._file is None:
      return
    from PIL import Image

    self._check_tensorboard()
    self._tensorboard.add_image('samples', np.asarray(Image.open(png)), step, dataformats='HWC')

  def _check_tensorboard(self):
    """Raises what ended TensorBoard's writer: without it, events would pile up, and then block."""
    for error in self._thread_errors:
      if isinstance(error, OSError):
        raise WriteError(self._tensorboard.logdir, error)
      raise error

  def _note_thread_error(self, hook):
    if type(hook.thread).__module__.startswith('tensorboardX.'):
      self._thread_errors.append(hook.exc_value)
    else:
      self._previous_hook(hook)

  def close(self) -> None:
    """Writes out what is pending."""
    if self._file is None:
      return
    self._completions.close()
    try:
      with contextlib.closing(self._file):
        self._check_tensorboard()
        self._tensorboard.close()
    except OSError as error:
      raise WriteError(self._file.name, error) from error
    finally:
      threading.excepthook = self._previous_hook


def _drop_after(path, step):
  """Moves the lines of later steps to DROPPED, and what is no line, as after a kill."""
  if not path.exists():
    return
  kept, dropped = [], []
  for line in path.read_bytes().splitlines():
    (kept if _is_of_step_up_to(step, line) else dropped).append(line + b'\n')
  if not dropped:
    return
  with open(path.with_name(DROPPED), 'ab') as copy:
    copy.write(b''.join(dropped))
    copy.flush()
    os.fsync(copy.fileno())
  with written_whole(path) as partial:
    partial.write_bytes(b''.join(kept))


def _is_of_step_up_to(step, line):
  try:
    return bool(json.loads(line)['step'] <= step)
  except (ValueError, TypeError, KeyError, RecursionError):
    return False


def duration(seconds: float) -> str:
  """'1:02:03'."""
  return str(datetime.timedelta(seconds=round(seconds)))


def progress_line(step: int, num_steps: int, values: Mapping[str, Any]) -> str:
  """One line on how a run stands, in the words of metrics.jsonl."""
  line = (
    f'step {step}/{num_steps}  loss_mean {values["loss_mean"]:.4f}  '
    f'grad_norm {values["grad_norm"]:.3f}  lr {values["learning_rate"]:.2e}'
  )
  if values['steps_per_sec'] is None:
    return line
  eta = duration((num_steps - step) / values['steps_per_sec'])
  rates = f'{values["steps_per_sec"]:.2f} steps/s  {values["images_per_sec"]:.0f} images/s'
  return f'{line}  {rates}  ETA {eta}'
