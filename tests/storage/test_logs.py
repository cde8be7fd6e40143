"""What a run tells."""

import contextlib
import errno
import io
import json
import sys
import threading
import time

import numpy as np
import pytest

from ddpm_jax import processes
from ddpm_jax.errors import WriteError
from ddpm_jax.storage import logs


def make_log(workdir, start_step=0, **more):
  return logs.RunLog(workdir, start_step=start_step, num_steps=10, images_per_step=4, **more)


def metrics(loss):
  """Of one step, or of those of a list of losses."""
  losses = np.atleast_1d(loss)
  return {
    'loss': losses,
    'grad_norm': np.full(losses.shape, 2.0),
    'learning_rate': np.full(losses.shape, 0.1),
  }


def lines(workdir):
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def test_logged_step_has_its_own_loss_and_the_mean_since_the_last(tmp_path, capsys):
  log = make_log(tmp_path)
  for step, loss in enumerate([1.0, 2.0, 6.0, 8.0], start=1):
    log.add(step, metrics(loss), write=step in (3, 4))
  log.check()
  log.close()
  assert [(line['step'], line['loss'], line['loss_mean']) for line in lines(tmp_path)] == [
    (3, 6.0, 3.0),
    (4, 8.0, 8.0),
  ]
  for line in lines(tmp_path):
    assert line['images_per_sec'] == pytest.approx(4 * line['steps_per_sec'])
  out = capsys.readouterr().out
  assert 'step 3/10  loss_mean 3.0000' in out
  assert 'ETA' in out


def test_resumed_log_drops_later_steps_and_a_cut_off_line(tmp_path):
  log = make_log(tmp_path)
  for step in range(1, 6):
    log.add(step, metrics(float(step)), write=True)
  log.check()
  log.close()
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('7\n{}\n{"step": 6, "lo')
  log = make_log(tmp_path, start_step=3)
  log.add(4, metrics(40.0), write=True)
  log.check()
  log.close()
  assert [(line['step'], line['loss']) for line in lines(tmp_path)] == [
    (1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)
  ]  # fmt: skip


def test_what_is_taken_out_of_the_log_is_kept_beside_it(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  lines = [b'{"step": 1}', b'{"step": 2}', b'\xff\xfe', b'{"step": 3, "loss": 0.5}', b'{"ste']
  path.write_bytes(b'\n'.join(lines))
  make_log(tmp_path, start_step=2).close()
  dropped = tmp_path / 'metrics.dropped.jsonl'
  assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
  assert dropped.read_bytes() == b'\n'.join(lines[2:]) + b'\n'
  make_log(tmp_path, start_step=0).close()
  assert path.read_bytes() == b''
  assert dropped.read_bytes() == b'\n'.join([*lines[2:], *lines[:2]]) + b'\n'


def test_a_step_is_fetched_and_written_while_the_next_one_runs(tmp_path, monkeypatch):
  fetched = []
  monkeypatch.setattr(logs.jax, 'device_get', lambda tree: fetched.append(tree) or tree)
  log = make_log(tmp_path)
  first = metrics(1.0)
  log.add(1, first, write=True)
  assert (fetched, lines(tmp_path)) == ([], [])
  log.add(2, metrics(2.0))  # which has been dispatched
  assert (fetched, [line['step'] for line in lines(tmp_path)]) == ([first], [1])
  log.close()


@pytest.mark.parametrize('loss', [float('nan'), float('inf')])
def test_non_finite_loss_is_raised_with_its_step(tmp_path, loss):
  log = make_log(tmp_path)
  log.add(1, metrics(1.0))
  log.add(2, metrics(loss))
  with pytest.raises(FloatingPointError, match=f'the loss is {loss} at step 2'):
    log.add(3, metrics(1.0))


def test_steps_that_were_not_taken_do_not_count(tmp_path):
  log = make_log(tmp_path)
  log.add(2, metrics([float('nan'), 2.0, 6.0]), count=2, write=True)
  log.check()
  log.close()
  assert [(line['step'], line['loss'], line['loss_mean']) for line in lines(tmp_path)] == [
    (2, 6.0, 4.0)
  ]


def test_steps_of_one_dispatch_count_one_by_one(tmp_path):
  log = make_log(tmp_path)
  log.add(3, metrics([1.0, 2.0, 6.0]), write=True)
  log.add(6, metrics([4.0, float('nan'), 1.0]))
  with pytest.raises(FloatingPointError, match='nan at step 5'):
    log.check()
  log.close()
  assert [(line['step'], line['loss'], line['loss_mean']) for line in lines(tmp_path)] == [
    (3, 6.0, 3.0)
  ]


def test_process_that_does_not_write_still_checks():
  log = make_log(None)
  log.add(1, metrics(float('nan')))
  with pytest.raises(FloatingPointError, match='step 1'):
    log.check()


@pytest.mark.parametrize('name', ['loss', 'grad_norm'])
def test_any_metric_may_be_the_one_that_is_not_finite(tmp_path, name):
  log = make_log(tmp_path)
  log.add(1, metrics(1.0) | {name: np.array([np.inf])})
  with pytest.raises(logs.NotFiniteError, match=f'the {name} is inf at step 1') as info:
    log.check()
  assert (info.value.step, info.value.metrics['learning_rate']) == (1, 0.1)
  log.close()


def events(workdir):
  """The records of TensorBoard's file: a length, its checksum, the event and its checksum each."""
  from tensorboardX.proto.event_pb2 import Event

  (file,) = (workdir / 'tensorboard').iterdir()
  content, place = file.read_bytes(), 0
  while place < len(content):
    length = int.from_bytes(content[place : place + 8], 'little')
    yield Event.FromString(content[place + 12 : place + 12 + length])
    place += length + 16


def test_ones_own_logger_is_told_what_tensorboard_is(tmp_path):
  told = []
  log = make_log(tmp_path, logger=lambda step, values: told.append((step, values)))
  log.add(1, metrics(1.0), write=True)
  log.add(2, metrics(3.0), write=True)
  log.check()
  log.figures(2, [{'name': 'FID', 'value': 5.0}])
  log.close()
  shown = {}
  for event in events(tmp_path):
    for value in event.summary.value:
      shown.setdefault(event.step, {})[value.tag] = value.simple_value
  assert [step for step, _ in told] == [1, 2, 2]
  assert told[1][1]['loss'] == 3
  assert told[2] == (2, {'eval/FID': 5.0})
  for step in (1, 2):
    of_step = {name: x for at, values in told if at == step for name, x in values.items()}
    assert of_step == pytest.approx(shown[step])


def test_tensorboard_has_the_hyperparameters(tmp_path):
  make_log(tmp_path, hyperparameters={'optim.lr': 0.1, 'model.mult': (1, 2), 'none': None}).close()
  values = [value for event in events(tmp_path) for value in event.summary.value]
  contents = {value.tag: value.metadata.plugin_data.content for value in values}
  assert {'_hparams_/experiment', '_hparams_/session_start_info'} <= contents.keys()
  started = contents['_hparams_/session_start_info']
  for word in (b'optim.lr', b'(1, 2)', b'None'):
    assert word in started


def test_full_disk_is_said_in_one_line(tmp_path):
  log = make_log(tmp_path)
  (tmp_path / 'metrics.jsonl').unlink()
  (tmp_path / 'metrics.jsonl').symlink_to('/dev/full')
  log._file = open(tmp_path / 'metrics.jsonl', 'a')  # noqa: SIM115
  log.add(1, metrics(1.0), write=True)
  with pytest.raises(WriteError, match=r'metrics\.jsonl cannot be written \(No space left'):
    log.check()
  with pytest.raises(WriteError, match=r'metrics\.jsonl cannot be written \(No space left'):
    log.close()


@pytest.mark.parametrize(
  ('error', 'raised', 'words'),
  [
    (
      OSError(errno.ENOSPC, 'No space left on device'),
      WriteError,
      r'tensorboard cannot be written \(No space left',
    ),
    (RuntimeError('a defect'), RuntimeError, 'a defect'),
  ],
)
def test_end_of_the_background_writer_ends_the_run(tmp_path, monkeypatch, error, raised, words):
  from tensorboardX.record_writer import RecordWriter

  def fail(*args):
    raise error

  hook = threading.excepthook
  log = make_log(tmp_path)
  monkeypatch.setattr(RecordWriter, 'write', fail)

  def write_on():
    for step in range(1, 500):
      log.add(step, metrics(1.0), write=True)
      time.sleep(0.01)

  with pytest.raises(raised, match=words):
    write_on()
  monkeypatch.undo()
  with pytest.raises(raised, match=words):
    log.figures(1, [{'name': 'fid', 'value': 1.0}])
  with pytest.raises(raised, match=words):
    log.close()
  assert threading.excepthook is hook


def test_another_threads_error_is_not_tensorboards(tmp_path, monkeypatch):
  seen = []
  monkeypatch.setattr(threading, 'excepthook', lambda hook: seen.append(hook.exc_value))
  log = make_log(tmp_path)
  thread = threading.Thread(target=(tmp_path / 'gone').unlink)
  thread.start()
  thread.join()
  log.close()
  assert [type(error) for error in seen] == [FileNotFoundError]


class Dispatch:
  """Metrics of a dispatch that is computed when the test says so, at a time of its clock."""

  def __init__(self, num_steps=1):
    self.shape, self._num_steps = (num_steps,), num_steps
    self._done = threading.Event()

  def __array__(self, dtype=None, copy=None):
    return np.ones(self._num_steps)

  def block_until_ready(self):
    assert self._done.wait(60)
    return self

  def complete(self):
    self._done.set()


def test_rates_are_of_completions_however_late_they_are_asked_for(tmp_path, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(logs.time, 'perf_counter', lambda: now[0])
  monkeypatch.setattr(
    logs.jax, 'device_get', lambda tree: {k: np.asarray(x) for k, x in tree.items()}
  )
  log = make_log(tmp_path)
  step = 0

  def dispatch(num_steps, done_at, *, asked_at):
    """Dispatches, completes at a time, and goes on at another, as a call that blocks does."""
    nonlocal step
    step += num_steps
    computed = Dispatch(num_steps)
    others = dict.fromkeys(('grad_norm', 'learning_rate'), np.ones(num_steps))
    log.add(step, {'loss': computed, **others}, write=True)
    now[0] = done_at
    computed.complete()
    log._pending[3].result()
    now[0] = asked_at

  dispatch(4, 100, asked_at=102)  # which was compiled
  dispatch(4, 102, asked_at=104)  # returns when the next one is done, as XLA's loops on GPUs do
  dispatch(4, 104, asked_at=104)
  log.check()  # before a checkpoint, which takes a second
  now[0] = 105
  dispatch(4, 107, asked_at=107)
  log.check()
  now[0] = 1000  # a visit
  log.restart_clock()
  dispatch(4, 1002, asked_at=1002)
  dispatch(2, 1010, asked_at=1010)  # of another length, compiled
  log.check()
  log.close()
  rates = [line['steps_per_sec'] for line in lines(tmp_path)]
  assert rates == [None, 2, 2, pytest.approx(4 / 3), 2, None]
  assert [line['images_per_sec'] for line in lines(tmp_path)][1] == 8


def test_a_line_without_a_rate_has_no_eta(tmp_path, capsys):
  log = make_log(tmp_path)
  log.add(1, metrics(1.0), write=True)
  log.check()
  log.close()
  out = capsys.readouterr().out
  assert 'step 1/10  loss_mean 1.0000' in out
  assert 'steps/s' not in out
  assert 'ETA' not in out


def test_duration():
  assert logs.duration(3723.4) == '1:02:03'


class Screen(io.StringIO):
  """A stdout that somebody looks at; `seen` is set once a text was shown."""

  def __init__(self, awaited):
    super().__init__()
    self._awaited, self.seen = awaited, threading.Event()

  def isatty(self):
    return True

  def write(self, text):
    if self._awaited in text:
      self.seen.set()
    return super().write(text)


@pytest.fixture
def screen(monkeypatch):
  def make(awaited):
    monkeypatch.setattr(logs, 'SHOW_EVERY_SECS', 0.01)
    monkeypatch.setattr(sys, 'stdout', Screen(awaited))
    return sys.stdout

  return make


def test_what_is_waited_for_is_shown_on_a_terminal(screen):
  shown = screen('compiles: 0 s')
  with logs.Terminal().waiting('compiles'):
    assert shown.seen.wait(30)
  assert shown.getvalue().endswith('\x1b[K\r')  # nothing is left of the line


def test_the_clock_of_a_bar_goes_before_anything_is_done(screen):
  shown = screen('7/64')
  progress = logs.Progress('samples', 64)
  bars = shown.getvalue().count('0/64')
  deadline = time.monotonic() + 30
  while shown.getvalue().count('0/64') < bars + 2:
    assert time.monotonic() < deadline
    time.sleep(0.01)
  progress.reach(7.9)
  assert shown.seen.wait(30)
  progress.add(64)
  progress.close()


def test_in_a_log_and_in_silence_nothing_is_shown(capsys, screen):
  terminal = logs.Terminal()
  for talk in (contextlib.nullcontext(), processes.silent()):
    with talk, terminal.waiting('compiles'):
      time.sleep(0.05)
      terminal.show('step 1/10')
      shown = screen('anything')
  with processes.silent():
    terminal.say('a line')
    progress = logs.Progress('samples', 2)
    progress.add(2)
    progress.close()
  assert capsys.readouterr().out == shown.getvalue() == ''


def test_in_a_log_the_steps_within_a_batch_count(monkeypatch, capsys):
  monkeypatch.setattr(logs, 'LOG_EVERY_SECS', 0)
  progress = logs.Progress('samples', 64)
  progress.reach(0)
  progress.reach(16.5)
  progress.add(64)
  progress.close()
  told = capsys.readouterr().out.splitlines()
  assert [line.split()[1] for line in told] == ['0/64', '16/64', '64/64']
  assert ['ETA' in line for line in told] == [False, True, True]
