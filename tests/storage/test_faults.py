"""Killed at any moment, or its newest checkpoint damaged anywhere: the end is the same."""

import logging
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from ddpm_jax.storage import checkpoints
from ddpm_jax.storage.manifest import MANIFEST
from tests import faults
from tests.compiling import SHORT_TO_COMPILE
from tests.modes.test_main import ROOT
from tests.modes.test_train import final_state, losses
from tests.storage.test_checkpoints import assert_same_bits


def assert_died_properly(death):
  """SIGTERM is answered by a checkpoint in training, and never by a traceback."""
  assert death.err == '', death
  codes = {-death.number}
  if death.number == signal.SIGTERM and death.mode == 'train':
    codes = {0} if death.doing != 'starting' else {0, -signal.SIGTERM}
  assert death.code in codes, death
  if death.code == 0:
    assert 'stopped by SIGTERM at step' in death.out


@pytest.mark.slow
@pytest.mark.parametrize(
  # Seed 69: SIGKILL and SIGTERM in training, SIGKILL in sampling, none of them in a start-up.
  ('num_kills', 'seed'),
  [(3, 69), (100, 0)],
)
def test_killed_again_and_again_a_run_ends_as_an_undisturbed_one(tmp_path, num_kills, seed):
  killer = faults.Killer(tmp_path, num_kills, seed)
  killer.run()
  assert len(killer.deaths) == num_kills
  print(faults.table(killer.deaths))
  for death in killer.deaths:
    assert_died_properly(death)

  whole, killed = (final_state(path) for path in (killer.whole, killer.killed))
  assert whole['.step'] == killer.num_steps
  assert killed.keys() == whole.keys()
  for path, array in whole.items():
    np.testing.assert_array_equal(killed[path], array, err_msg=path)
  assert [step for step, _, _ in losses(killer.whole)] == list(range(1, killer.num_steps + 1))
  assert losses(killer.killed) == losses(killer.whole)

  expected = faults.contents(killer.whole)
  (last,) = killer.whole.glob(f'samples/step_{killer.num_steps:08d}/*/samples.npz')
  assert len(np.load(last)['samples']) == killer.num_images
  found = faults.contents(killer.killed)
  assert found.keys() == expected.keys()
  assert [name for name in expected if found[name] != expected[name]] == []
  if num_kills > 50:
    doing = {death.doing for death in killer.deaths if death.mode == 'train'}
    assert doing >= {'starting', 'training', 'saving', 'sampling'}


@pytest.mark.parametrize('count', [15, pytest.param(400, marks=pytest.mark.slow)])
def test_damage_anywhere_in_the_newest_checkpoint_is_noticed(tmp_path, caplog, count):
  caplog.set_level(logging.WARNING, logger=checkpoints.logger.name)

  def judge(vandal, file, kind):
    caplog.clear()
    restored = vandal.restore()
    assert int(restored.step) == vandal.STEPS[-2], f'{kind} {file}'
    assert_same_bits(restored, vandal.expected)
    (record,) = [r for r in caplog.records if r.name == checkpoints.logger.name]
    assert record.getMessage().startswith('checkpoint 30 in '), record
    assert record.getMessage().endswith('using checkpoint 20 instead; moved to 30.damaged'), record
    assert vandal.names() == ['10', '20', '30.damaged']

  done = faults.vandalise(tmp_path / 'checkpoints', count, 0, judge)
  assert sum(done.values()) == count
  assert {kind for kind, _ in done} == {'flipped', 'cut', 'longer'}
  assert {where for _, where in done} == {'arrays', 'metadata', MANIFEST}


@pytest.mark.skipif(
  not sys.platform.startswith('linux') or shutil.which('cc') is None, reason='needs a C compiler'
)
@pytest.mark.parametrize('count', [2, pytest.param(300, marks=pytest.mark.slow)])
def test_a_single_call_that_fails_costs_nothing_that_was_saved(tmp_path, count):
  command = [sys.executable, '-m', 'tests.failing_calls', f'--count={count}', f'--dir={tmp_path}']
  process = subprocess.run(
    command,
    cwd=ROOT,
    capture_output=True,
    text=True,
    env=os.environ | {'XLA_FLAGS': SHORT_TO_COMPILE},
  )
  print(process.stdout)
  assert (process.returncode, process.stderr) == (0, ''), process.stdout
  assert sum(int(n) for n in re.findall(r': (\d+)$', process.stdout, re.MULTILINE)) == count
  assert 'exit 74' in process.stdout


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path('/proc/self/fd').exists(), reason='needs /proc')
def test_memory_and_open_files_stay_flat_over_ten_thousand_steps(tmp_path):
  usages = faults.watch(tmp_path, 10_000)
  print(faults.usage_table(usages, 10_000))
  early, late = (
    {x: faults.median_between(usages, first, last, x) for x in ('memory', 'files', 'threads')}
    for first, last in ((4_000, 6_000), (8_000, 10_000))  # it is steady by then
  )
  assert late['memory'] - early['memory'] < 16 << 10, (early, late)
  assert late['files'] <= early['files'] + 1, (early, late)
  assert late['threads'] <= early['threads'] + 2, (early, late)
