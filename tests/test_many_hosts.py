"""Processes on hosts of their own, joined by a bridge, in one machine: Linux and root alone."""

import os
import signal
import sys
import time

import numpy as np
import pytest

from ddpm_jax.processes import LOST, LOST_CODE
from tests import hosts
from tests.modes.test_main import ROOT, TINY
from tests.test_many_processes import ends, losses

pytestmark = pytest.mark.slow

TRAIN = (*TINY, '--config.train.checkpoint_every_steps=20')
NAMES = {
  'named': '{address} {name}',
  'debian': '127.0.1.1 {name}',  # as Debian and Ubuntu have it
  'nameless': '',
}


def start(made, workdir, num_steps, *, names='named', coordinator=None):
  """Starts a process of one device on each host."""
  env = os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=1'}
  joined = (
    f'--coordinator_address={coordinator or made.address(0)}:1234',
    f'--num_processes={made.count}',
  )
  command = sys.executable, ROOT / 'main.py', *TRAIN, f'--workdir={workdir}', *joined
  number = f'--config.train.num_steps={num_steps}'
  return [
    made.start(i, (*command, number, f'--process_id={i}'), names=NAMES[names], env=env)
    for i in range(made.count)
  ]


def newest(workdir):
  folder = workdir / 'checkpoints'
  steps = [int(path.name) for path in folder.glob('[0-9]*') if path.name.isdigit()]
  return max(steps, default=0)


def wait_for(workdir, step, started):
  while newest(workdir) < step:
    assert [process.poll() for process in started] == [None] * len(started)
    time.sleep(0.1)


@pytest.fixture(scope='module')
def expected(tmp_path_factory):
  """{step: (loss, gradient norm)} of two hosts whose names stand for their addresses."""
  folder = tmp_path_factory.mktemp('hosts')
  with hosts.made(2, folder) as made:
    results = ends(start(made, folder / 'run', 4))
  assert [(code, err) for code, _, err in results] == [(0, '')] * 2
  assert '2 x cpu, 2 process(es)' in results[0][1]
  return losses(folder / 'run')


@pytest.mark.parametrize(
  ('count', 'names', 'coordinator'),
  [(2, 'debian', None), (2, 'debian', 'host0'), (2, 'nameless', None), (4, 'debian', None)],
)
def test_hosts_train_whatever_their_names_stand_for(expected, count, names, coordinator, tmp_path):
  with hosts.made(count, tmp_path) as made:
    results = ends(start(made, tmp_path / 'run', 4, names=names, coordinator=coordinator))
  assert [(code, err) for code, _, err in results] == [(0, '')] * count
  found = losses(tmp_path / 'run')
  assert list(found) == list(expected)
  np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5, atol=0)


def test_a_link_that_is_cut_for_five_seconds_is_waited_for(tmp_path):
  with hosts.made(2, tmp_path) as made:
    started = start(made, tmp_path / 'run', 100_000)
    wait_for(tmp_path / 'run', 20, started)
    made.link(1, 'down')
    time.sleep(5)
    made.link(1, 'up')
    wait_for(tmp_path / 'run', newest(tmp_path / 'run') + 40, started)
    started[0].send_signal(signal.SIGTERM)
    results = ends(started)
  assert [code for code, _, _ in results] == [0, 0]
  assert 'stopped by SIGTERM at step' in results[0][1]


def test_a_link_that_is_cut_for_good_ends_all_in_one_last_line(tmp_path):
  with hosts.made(2, tmp_path) as made:
    started = start(made, tmp_path / 'run', 100_000)
    wait_for(tmp_path / 'run', 20, started)
    made.link(1, 'down')
    since = time.monotonic()
    results = ends(started)
    assert time.monotonic() - since < 60
    for code, _, err in results:
      assert code in (LOST_CODE, -signal.SIGABRT)
      assert err.splitlines()[-1] == LOST
    made.link(1, 'up')
    step = newest(tmp_path / 'run')
    results = ends(start(made, tmp_path / 'run', step + 1))
  assert [(code, err) for code, _, err in results] == [(0, '')] * 2
  assert f'steps       {step} done, 1 to do' in results[0][1]
