"""Long computations in pieces: left between two of them, and gone on with, bit for bit."""

import functools

import jax
import numpy as np
import pytest

from ddpm_jax import devices, processes
from ddpm_jax.devices import BatchSizes
from ddpm_jax.evaluation import stepwise
from ddpm_jax.evaluation.samples import make_chain_fns
from ddpm_jax.sampling import CHAINS
from ddpm_jax.signals import Stops
from ddpm_jax.storage import shards
from ddpm_jax.storage.shards import Pauses
from tests.tiny import SCHEDULE, SHAPE, denoiser_of, live_params

IDS = np.arange(4)


@pytest.fixture(autouse=True)
def a_step_a_piece(monkeypatch):
  """But for the second piece of a run, whose length is a guess: of two steps."""
  monkeypatch.setattr(stepwise, 'PIECE_SECS', 0.0)


@functools.cache
def chain():
  make_chain = functools.partial(CHAINS['dpmpp_3m_sde'], variance='fixedlarge')
  return stepwise.compiled(make_chain_fns(denoiser_of, SCHEDULE, SHAPE, make_chain))


class Watched:
  """The chain, and the steps it made; at the step `stop_at`, `stop` is called."""

  def __init__(self, stop_at=None, stop=None):
    self.params, self.key = devices.replicate((live_params(), jax.random.key(0)))
    self.steps, self._stop_at, self._stop = [], stop_at, stop

  def __call__(self, ids, pauses=None):
    work = chain()._replace(advance=self._advance)
    return {'samples': stepwise.run(work, self.params, ids, self.key, pauses=pauses).x}

  def _advance(self, *args):
    self.steps.append(int(args[-2]))
    if self.steps[-1] == self._stop_at:
      self._stop()
    return chain().advance(*args)


def raise_interrupt():
  raise KeyboardInterrupt


class Noting(Pauses):
  def __init__(self):
    self.shares = []

  def pause(self, step, num_steps, state):
    self.shares.append(step / num_steps)
    assert len(state()[0]) == len(IDS)


def test_pauses_are_told_how_far_the_batch_is():
  noting = Noting()
  Watched()(IDS, noting)
  assert noting.shares == [i / 10 for i in (0, 1, 3, 4, 5, 6, 7, 8, 9)]


def collect(folder, job, num_rows=4):
  file = shards.collect(folder, 'samples', {'a': 1}, num_rows, job, sizes=BatchSizes(4, 4, 4))
  with np.load(file) as arrays:
    return arrays['samples']


def left_at(folder, step):
  """The job, left by a signal during a step."""
  stops = Stops()
  job = Watched(step, lambda: stops.received.append(15))
  stops.leave_at(lambda: collect(folder, job))
  assert job.steps == [0, 1, step]  # the piece in hand is finished
  return folder / 'unfinished.npz'


def test_a_batch_that_a_signal_left_is_gone_on_with(tmp_path):
  whole = collect(tmp_path / 'whole', Watched())
  unfinished = left_at(tmp_path / 'left', 3)
  assert unfinished.exists()
  rest = Watched()
  np.testing.assert_array_equal(collect(tmp_path / 'left', rest), whole)
  assert rest.steps == [4, 5, 7, 8, 9]
  files = {file.name for file in (tmp_path / 'left').iterdir()}
  assert files == {file.name for file in (tmp_path / 'whole').iterdir()}
  assert not unfinished.exists()


def test_a_batch_that_was_killed_is_gone_on_with_from_a_minute_before(tmp_path, monkeypatch):
  whole = collect(tmp_path / 'whole', Watched())
  monkeypatch.setattr(shards, 'KEEP_EVERY_SECS', 0)
  with pytest.raises(KeyboardInterrupt):
    collect(tmp_path / 'left', Watched(3, raise_interrupt))
  rest = Watched()
  np.testing.assert_array_equal(collect(tmp_path / 'left', rest), whole)
  assert rest.steps == [3, 4, 6, 7, 8, 9]


@pytest.mark.parametrize('change', ['damaged', 'empty', 'other ids'])
def test_what_cannot_be_gone_on_with_is_made_anew(tmp_path, change, capsys):
  unfinished = left_at(tmp_path, 3)
  content = bytearray(unfinished.read_bytes())
  content[len(content) // 2] ^= 1
  if change == 'other ids':
    shards.save(unfinished, IDS + 4, dict(np.load(unfinished)) | {'ids': IDS + 4})
  else:
    unfinished.write_bytes(content if change == 'damaged' else b'')
  job = Watched()
  collect(tmp_path, job)
  assert job.steps == [0, 1, 3, 4, 5, 6, 7, 8, 9]
  assert ('unfinished.npz is damaged' in capsys.readouterr().out) == (change != 'other ids')


def test_several_processes_keep_no_batch(tmp_path, monkeypatch):
  monkeypatch.setattr(shards, 'KEEP_EVERY_SECS', 0)
  batch = shards._Batch(tmp_path / 'unfinished.npz', IDS, 4, None)
  monkeypatch.setattr(processes, 'count', lambda: 2)
  alone = shards._Batch(tmp_path / 'unfinished.npz', IDS, 4, None)
  for one, is_kept in ((alone, False), (batch, True)):
    one.pause(1, 10, lambda: [np.zeros(4)])
    assert (tmp_path / 'unfinished.npz').exists() == is_kept
