"""Several processes on this machine, joined by loopback, do what one does."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.processes import LOST, LOST_CODE, NOT_JOINED
from tests.compiling import SHORT_TO_COMPILE
from tests.modes import test_main
from tests.modes.test_main import ROOT, TINY

TRAIN = (*TINY, '--config.train.checkpoint_every_steps=3', '--config.train.num_steps=6')
EVAL = (
  *TINY,
  '--mode=eval',
  '--config.eval.num_samples=9',  # which no number of processes divides
  '--config.eval.bpd_examples=9',
  '--config.eval.batch_size=8',
)


def free_port():
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


def start(args, *, processes, devices):
  """Starts processes of so many devices each; args may be one tuple, or one for each."""
  flags = f'--xla_force_host_platform_device_count={devices} {SHORT_TO_COMPILE}'
  env = os.environ | {'XLA_FLAGS': flags}
  joined = f'--coordinator_address=localhost:{free_port()}', f'--num_processes={processes}'
  started = []
  for i in range(processes):
    own = args[i] if isinstance(args, list) else args
    if processes > 1:
      own = (*own, *joined, f'--process_id={i}')
    started.append(test_main.start(*own, env=env))
  return started


def ends(started):
  """[(exit code, stdout, stderr)] of each, stdout without the lines of the CPU's transport, and
  of those who wait for the others to start."""
  results = []
  for process in started:
    out, err = process.communicate(timeout=300)
    out = re.sub(r'(\[Gloo\]|waits up to).*\n', '', out)
    results.append((process.returncode, out, err))
  return results


def run(args, **kwargs):
  """Runs to the end and expects it good; stdout of each."""
  results = ends(start(args, **kwargs))
  assert [(code, err) for code, _, err in results] == [(0, '')] * len(results)
  return [out for _, out, _ in results]


def losses(workdir):
  lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return {line['step']: (line['loss'], line['grad_norm']) for line in lines}


def assert_same_losses(workdir, expected):
  assert list(losses(workdir)) == list(expected)
  np.testing.assert_allclose(
    list(losses(workdir).values()), list(expected.values()), rtol=1e-5, atol=0
  )


@pytest.fixture(scope='module')
def two(tmp_path_factory):
  """A run of 6 steps by two processes of two devices, and the first's and second's stdout."""
  workdir = tmp_path_factory.mktemp('many') / 'two'
  return workdir, run((*TRAIN, f'--workdir={workdir}'), processes=2, devices=2)


@pytest.fixture(scope='module')
def one(tmp_path_factory):
  """A run of 9 steps by one process of one device."""
  workdir = tmp_path_factory.mktemp('many') / 'one'
  run((*TRAIN, f'--workdir={workdir}', '--config.train.num_steps=9'), processes=1, devices=1)
  return workdir


@pytest.fixture
def copied(two, tmp_path):
  return shutil.copytree(two[0], tmp_path / 'copied')


def test_two_processes_train_as_one_and_one_writes(one, two):
  workdir, (first, second) = two
  assert_same_losses(workdir, {step: x for step, x in losses(one).items() if step <= 6})
  assert '4 x cpu, 2 process(es)' in first
  assert 'batch       16 global, 8 a host, 4 a device' in first
  assert second == ''
  steps = {path.name for path in (workdir / 'checkpoints').iterdir()}
  assert steps == {'3', '6'}
  assert not list(workdir.rglob('*.partial'))


def test_one_process_goes_on_from_two(one, copied):
  args = (*TRAIN, f'--workdir={copied}', '--config.train.num_steps=9')
  (out,) = run(args, processes=1, devices=1)
  assert 'steps       6 done, 3 to do' in out
  assert_same_losses(copied, losses(one))


@pytest.mark.slow
def test_four_processes_go_on_from_two(one, copied):
  args = (*TRAIN, f'--workdir={copied}', '--config.train.num_steps=9')
  assert 'steps       6 done, 3 to do' in run(args, processes=4, devices=1)[0]
  assert_same_losses(copied, losses(one))


def only(pattern, *workdirs):
  """The path of the only file of a pattern; it has the same name in all workdirs."""
  ((name,),) = {tuple(file.relative_to(x) for file in x.glob(pattern)) for x in workdirs}
  return name


def assert_same_evaluation(workdir, expected):
  for pattern in ('samples/step_00000006/*/samples.npz', 'eval/step_00000006/bpd-test_*/bpd.npz'):
    name = only(pattern, workdir, expected)
    assert (workdir / name).read_bytes() == (expected / name).read_bytes(), name
  report = only('eval/step_00000006/report-*/report.json', workdir, expected)
  figures = [json.loads((path / report).read_text())['figures'] for path in (workdir, expected)]
  values = [{figure['name']: figure['value'] for figure in report} for report in figures]
  assert values[0].keys() == values[1].keys()
  np.testing.assert_allclose(
    list(values[0].values()), list(values[1].values()), rtol=1e-5, atol=1e-6
  )


@pytest.fixture(scope='module')
def evaluated(two, tmp_path_factory):
  """The run, evaluated by one process."""
  workdir = shutil.copytree(two[0], tmp_path_factory.mktemp('many') / 'evaluated')
  cache = f'--config.eval.cache_dir={workdir}/cache'
  run((*EVAL, f'--workdir={workdir}', cache), processes=1, devices=1)
  return workdir


@pytest.mark.parametrize(
  ('processes', 'devices'), [(2, 2), pytest.param(4, 1, marks=pytest.mark.slow)]
)
def test_images_and_figures_do_not_depend_on_processes(evaluated, copied, processes, devices):
  cache = f'--config.eval.cache_dir={copied}/cache'
  run((*EVAL, f'--workdir={copied}', cache), processes=processes, devices=devices)
  assert_same_evaluation(copied, evaluated)


@pytest.mark.parametrize(
  ('victim', 'number'),
  [
    pytest.param(1, signal.SIGKILL, marks=pytest.mark.slow),
    pytest.param(0, signal.SIGKILL, marks=pytest.mark.slow),
    pytest.param(1, signal.SIGTERM, marks=pytest.mark.slow),
  ],
  ids=['killed', 'first killed', 'terminated'],
)
def test_one_process_ends_and_so_do_the_others(copied, victim, number):
  args = (*TRAIN, f'--workdir={copied}', '--config.train.num_steps=100000')
  started = start(args, processes=2, devices=2)
  while not (copied / 'checkpoints/9').exists():
    assert [process.poll() for process in started] == [None, None]
    time.sleep(0.05)
  started[victim].send_signal(number)
  since = time.monotonic()
  results = ends(started)
  assert time.monotonic() - since < 60
  if number == signal.SIGTERM:
    assert [code for code, _, _ in results] == [0, 0]
    for _, _, err in results:
      assert not re.search('error|Traceback', err), err  # JAX notes the signal
    assert 'stopped by SIGTERM at step' in results[0][1]
  else:
    code, _, err = results[1 - victim]
    assert code in (LOST_CODE, -signal.SIGABRT)
    assert err.splitlines()[-1] == LOST  # whatever JAX said before
    assert err.count(LOST) == 1
    assert results[victim][::2] == (-signal.SIGKILL, f'{LOST}\n')
  newest = max(int(p.name) for p in (copied / 'checkpoints').iterdir() if p.name.isdigit())
  more = f'--config.train.num_steps={newest + 1}'
  out = run((*TRAIN, f'--workdir={copied}', more), processes=2, devices=2)[0]
  assert f'steps       {newest} done, 1 to do' in out


@pytest.mark.parametrize(
  ('others', 'message'),
  [
    (
      ('--config.optim.learning_rate=0.5',),
      'error: processes 0 and 1 differ in their config (optim.learning_rate: 0.002 and 0.5): start',
    ),
    (('--workdir=other',), 'of process 1 is not the folder of process 0: give one on a file'),
  ],
  ids=['config', 'workdir'],
)
def test_processes_that_differ_are_refused(tmp_path, others, message):
  args = (*TRAIN, f'--workdir={tmp_path / "run"}')
  others = [arg.replace('=other', f'={tmp_path / "other"}') for arg in others]
  results = ends(start([args, (*args, *others)], processes=2, devices=1))
  for code, _, err in results:
    assert code == 1
    assert message in err
    assert err.count('\n') == 1


def test_processes_of_other_data_are_refused(tmp_path):
  args = (*TRAIN, '--config.data.source=celebahq256', f'--workdir={tmp_path / "run"}')
  for seed in (0, 1):
    pictures = np.random.default_rng(seed).integers(0, 256, (16, 8, 8), np.uint8)
    (tmp_path / str(seed)).mkdir()
    for i, picture in enumerate(pictures):
      Image.fromarray(picture).save(tmp_path / str(seed) / f'{i:02d}.png')
  own = [(*args, f'--config.data.dir={tmp_path / str(seed)}') for seed in (0, 1)]
  for code, _, err in ends(start(own, processes=2, devices=1)):
    assert code == 1
    assert re.match(
      r'error: processes 0 and 1 differ in their data \(celebahq256: 16 images, sha256 \w+ and 16 '
      r'images, sha256 \w+\): start all with the same command, program and data\n$',
      err,
    )


def test_second_first_process_is_refused(tmp_path):
  with socket.create_server(('', free_port())) as taken:
    port = taken.getsockname()[1]
    args = f'--coordinator_address=localhost:{port}', '--num_processes=2', '--process_id=0'
    ((code, _, err),) = ends(
      start((*TRAIN, f'--workdir={tmp_path}', *args), processes=1, devices=1)
    )
  assert code == 1
  assert f'--coordinator_address=localhost:{port}: process 0 cannot listen there' in err
  assert err.count('\n') == 1


def test_a_process_that_waits_in_vain_says_so():
  script = (
    'from ddpm_jax import processes\n'
    'processes.JOIN_SECS = 1\n'
    f'processes.join("localhost:{free_port()}", 2, 0)\n'
  )
  command, env = [sys.executable, '-c', script], os.environ | {'PYTHONPATH': str(ROOT)}
  process = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
  assert process.returncode != 0
  assert process.stderr.splitlines()[-1] == NOT_JOINED  # whatever JAX said before
  assert process.stderr.count('error: ') == 1


@pytest.mark.slow
@pytest.mark.parametrize('levels', [4096, 'continuous'])
def test_signals_in_an_array_train_and_are_drawn_as_by_one_process(tmp_path, levels):
  rng = np.random.default_rng(0)
  waves = np.sin(np.arange(16)[:, None] * [0.7, 1.1] + rng.uniform(0, 6, (40, 1, 2)))
  np.save(tmp_path / 'waves.npy', np.rint(2000 * waves).astype(np.int16))
  fields = {
    'data.source': f'array:{tmp_path}/waves.npy', 'data.image_size': '16,', 'data.channels': 2,
    'data.levels': levels, 'data.holdout': 0.2, 'data.random_flip': False, 'eval.metrics': 'bpd',
    'model.ch': 8, 'model.num_groups': 4, 'sample.num_samples': 5,
  }  # fmt: skip
  args = [f'--config.{field}={value}' for field, value in fields.items()]
  one, two, copied = (tmp_path / name for name in ('one', 'two', 'copied'))
  run((*TRAIN, *args, f'--workdir={one}'), processes=1, devices=1)
  run((*TRAIN, *args, f'--workdir={two}'), processes=2, devices=2)
  assert_same_losses(two, losses(one))
  shutil.copytree(two, copied)
  for mode in ('sample', 'eval'):
    of_mode = (*EVAL, *args, f'--mode={mode}')
    run((*of_mode, f'--workdir={copied}'), processes=1, devices=1)
    run((*of_mode, f'--workdir={two}'), processes=2, devices=2)
  name = only('samples/*/*/samples.npz', two, copied)
  assert (two / name).read_bytes() == (copied / name).read_bytes()
  with np.load(two / name) as arrays:
    dtype = np.int16 if levels == 4096 else np.float32
    assert (arrays['samples'].shape, arrays['samples'].dtype) == ((5, 16, 2), dtype)
  for name in (only(f'eval/*/bpd-{split}_*/bpd.npz', two, copied) for split in ('train', 'test')):
    with np.load(two / name) as ours, np.load(copied / name) as theirs:
      for term in ours:  # sums of few numbers, whose order goes by the batch of a device
        np.testing.assert_allclose(ours[term], theirs[term], atol=1e-7, err_msg=term)
