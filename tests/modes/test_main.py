"""The command line, as a user meets it: in a process of its own."""

import functools
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ddpm_jax.storage.workdir import locked
from tests.compiling import environment

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = (
  '--config.model.ch_mult=1,',
  '--config.model.attn_resolutions=()',
  '--config.diffusion.num_timesteps=10',
  '--config.train.global_batch_size=16',
  '--config.train.sample_every_steps=0',
  '--config.train.log_every_steps=1',
  '--config.sample.num_samples=4',
  '--config.sample.batch_size=4',
)


def start(*args, **kwargs):
  return subprocess.Popen(
    [sys.executable, str(ROOT / 'main.py'), *map(str, args)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd='/',
    **{'env': environment(), **kwargs},
  )


def run(*args):
  process = start(*args)
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err


EVERY_4 = *TINY, '--config.train.checkpoint_every_steps=4'
STEPS = *EVERY_4, '--config.train.num_steps=24'


@pytest.fixture(scope='module')
def first_run(tmp_path_factory):
  """(the workdir of a run of 24 steps, which no test changes; what the run said)."""
  workdir = tmp_path_factory.mktemp('main') / 'run'
  code, out, err = run(f'--workdir={workdir}', *STEPS)
  assert (code, err) == (0, '')
  return workdir, out


@pytest.fixture
def workdir(first_run, tmp_path):
  """A copy of that workdir."""
  return shutil.copytree(first_run[0], tmp_path / 'run')


def test_trains_and_samples(first_run, workdir):
  assert 'digits train: 1497 images' in first_run[1]
  assert 'step 24/24' in first_run[1]
  code, _, err = run(f'--workdir={workdir}', *TINY, '--mode=sample')
  assert (code, err) == (0, '')
  (folder,) = (workdir / 'samples/step_00000024').glob('ancestral-10_*')
  assert np.load(folder / 'samples.npz')['samples'].shape == (4, 8, 8, 1)
  assert (folder / 'grid.png').exists()


def test_settings_of_the_environment_are_set_aside(first_run, tmp_path, monkeypatch):
  monkeypatch.setenv('JAX_ENABLE_X64', '1')
  monkeypatch.setenv('JAX_THREEFRY_PARTITIONABLE', '0')
  code, out, err = run(f'--workdir={tmp_path}', *STEPS)
  assert (code, err) == (0, '')
  assert 'set aside: JAX_ENABLE_X64=True, JAX_THREEFRY_PARTITIONABLE=False; numbers do not' in out
  lines = [
    [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]
    for path in (first_run[0], tmp_path)
  ]
  figures = [[(line['loss'], line['grad_norm']) for line in run] for run in lines]
  assert figures[0] == figures[1]


def test_workdir_knows_its_config_and_a_branch_that_of_its_origin(workdir, tmp_path):
  run_a, run_b = workdir, tmp_path / 'b'
  code, out, err = run(f'--workdir={run_a}', '--config.train.num_steps=25')
  assert (code, err) == (0, '')
  assert 'steps       24 done, 1 to do' in out
  code, out, err = run(f'--workdir={run_b}', f'--config.init_from={run_a}', '--config.seed=1')
  assert (code, err) == (0, '')
  assert f'{run_a}, step 25: weights and moving average' in out
  assert 'steps       0 done, 25 to do' in out
  code, out, err = run(f'--workdir={run_b}', '--mode=info')
  assert (code, err) == (0, '')
  assert f'began from  {run_a}@25\n' in out


def test_killed_run_goes_on_with_the_same_losses(first_run, tmp_path):
  def losses(workdir):
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    return {line['step']: (line['loss'], line['grad_norm']) for line in map(json.loads, lines)}

  process = start(f'--workdir={tmp_path}', *EVERY_4, '--config.train.num_steps=400')
  while not list((tmp_path / 'checkpoints').glob('[0-9]')) and process.poll() is None:
    time.sleep(0.01)
  process.kill()
  _, err = process.communicate()
  assert process.returncode == -signal.SIGKILL, err
  code, out, err = run(f'--workdir={tmp_path}', *STEPS)
  assert (code, err) == (0, '')
  assert 'steps       0 done' not in out
  assert losses(tmp_path) == losses(first_run[0])
  assert list(losses(tmp_path)) == list(range(1, 25))


def test_sigterm_saves_and_exits_with_0(tmp_path):
  process = start(f'--workdir={tmp_path}', *TINY, '--config.train.num_steps=100000')
  while not (tmp_path / 'metrics.jsonl').exists() or not (tmp_path / 'metrics.jsonl').read_text():
    assert process.poll() is None, process.communicate()
    time.sleep(0.05)
  process.terminate()
  out, err = process.communicate(timeout=60)
  assert (process.returncode, err) == (0, '')
  step = max(int(path.name) for path in (tmp_path / 'checkpoints').glob('[0-9]*'))
  assert f'stopped by SIGTERM at step {step}: saved; the same command goes on' in out


def test_damaged_checkpoint_is_said_and_passed_over(workdir):
  (workdir / 'checkpoints/24/MANIFEST.json').write_text('{')
  code, out, err = run(f'--workdir={workdir}', *STEPS)
  assert code == 0
  assert 'steps       20 done, 4 to do' in out
  assert 'checkpoint 24 in ' in err
  assert 'is damaged (' in err
  assert 'using checkpoint 20 instead; moved to 24.damaged' in err


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (
      ['--config.train.num_step=3'],
      'there is no config.train.num_step; did you mean num_steps? fields there: check',
    ),
    (['--config.trains.x=3'], 'there is no config.trains.x; did you mean train?'),
    (['--config.seed.x=3'], 'there is no config.seed.x; fields there: none'),
    (['--config=nothing.py'], 'there is no nothing.py; configs has brain_blocks.py, celebahq256'),
    ([f'--config={ROOT}/configs/cifar10.py:eps'], 'cifar10.py:eps is neither labels nor'),
    (['--config.train.num_steps=many'], 'many'),
    (['--config.eval.metrics=fid,is,fod'], "eval.metrics is 'fod'; it must be one of bpd, flow, "),
    (['--mode=trian'], 'be one of <train|sample|edit|compress|decompress|eval|reproduce|'),
    (['--wrokdir=x'], "Unknown command line flag 'wrokdir'. Did you mean: workdir"),
    (['stray'], "'stray' is not understood"),
    (['--config.diffusion.num_timesteps=0'], 'diffusion.num_timesteps is 0'),
    (['--config.data.source=folder:/nowhere'], '/nowhere does not exist'),
    (
      ['--config.data.source=digit'],
      "data.source='digit': must be one of digits, cifar10, cifar10:3.0.2, tfds:NAME[/CONFIG], "
      'folder:PATH, celebahq256, lsun_bedroom, lsun_church, lsun_cat, watch, brain_blocks, '
      'signals:PATH, volumes:PATH, array:PATH, frames:PATH',
    ),
    (['--mode=sample'], 'holds no checkpoint; run --mode=train first'),
    (['--config.init_from=/nowhere'], 'error: /nowhere: nothing there; give a workdir'),
    (['--mode=import', '--config.import.path=/nowhere'], '/nowhere: nothing there; give a work'),
    (['--mode=import', '--config.import.pat=/'], 'no config.import.pat; did you mean path?'),
  ],
)  # fmt: skip
def test_bad_input_is_answered_by_one_line(args, message, tmp_path):
  code, _, err = run(f'--workdir={tmp_path}', *args)
  assert code == 1
  assert err.startswith('error: ')
  assert message in err
  assert len(err.splitlines()) == 1, err


@pytest.mark.parametrize(
  ('statement', 'message'),
  [
    ('np.zeros(3).reshape(2, 2)', 'ValueError: cannot reshape array of size 3 into shape (2,2)'),
    ('{}["a"]', "KeyError: 'a'"),
    ('assert 1 > 2', 'AssertionError'),
  ],
)
def test_a_defect_keeps_its_traceback(statement, message, tmp_path):
  script = (
    'import runpy, sys\n'
    f'sys.argv[0] = {str(ROOT / "main.py")!r}\n'
    f'sys.path.insert(0, {str(ROOT)!r})\n'
    'import numpy as np\n'
    'from ddpm_jax.modes import sample\n'
    f'code = compile({statement!r}, sample.__file__, "exec")\n'
    'sample.sample = lambda config, workdir: exec(code)\n'
    'runpy.run_path(sys.argv[0], run_name="__main__")\n'
  )
  args = f'--workdir={tmp_path}', '--mode=sample'
  process = subprocess.run(
    [sys.executable, '-c', script, *args], capture_output=True, text=True, check=False
  )
  assert process.returncode == 1
  assert process.stderr.startswith('Traceback (most recent call last)')
  assert f'{ROOT}/ddpm_jax/modes/sample.py' in process.stderr
  assert process.stderr.endswith(f'{message}\n')


def test_missing_workdir_is_answered_by_one_line():
  code, _, err = run('--mode=train')
  assert code == 1
  assert err.startswith('error: --workdir=DIR is missing, the folder of the run')
  assert len(err.splitlines()) == 1


@pytest.mark.parametrize('args', [('--help',), ('--config.train.num_steps=100000', *TINY)])
def test_output_that_nobody_reads_ends_the_program_in_silence(args, tmp_path):
  process = start(f'--workdir={tmp_path}', *args)
  process.stdout.close()
  assert process.stderr.read() == ''
  assert process.wait(timeout=120) == 128 + signal.SIGPIPE


def test_second_process_on_a_workdir_is_refused(tmp_path):
  with locked(tmp_path, 'train'):
    code, _, err = run(f'--workdir={tmp_path}', *TINY)
  assert code == 1
  assert f'is in use by another --mode=train (process {os.getpid()})' in err


def test_help_loads_no_accelerator_and_a_run_no_other_framework(tmp_path):
  script = (
    'import atexit, runpy, sys\n'
    'heavy = {"jax", "tensorflow", "torch"}\n'
    'atexit.register(lambda: print("LOADED", *sorted(heavy & sys.modules.keys())))\n'
    f'sys.argv[0] = {str(ROOT / "main.py")!r}\n'
    f'sys.path.insert(0, {str(ROOT)!r})\n'
    'runpy.run_path(sys.argv[0], run_name="__main__")\n'
  )

  def loaded(*args):
    command = [sys.executable, '-c', script, *args]
    out = subprocess.run(
      command, env=environment(), capture_output=True, text=True, check=False
    ).stdout
    assert 'LOADED' in out
    return out.split('LOADED')[1].split()

  assert loaded('--help') == []
  assert loaded(f'--workdir={tmp_path}', *TINY, '--config.train.num_steps=1') == ['jax']


def test_evaluates_and_reproduces(workdir, tmp_path):
  eval_args = ('--config.eval.num_samples=4', '--config.eval.bpd_examples=4')
  cache = f'--config.eval.cache_dir={tmp_path}/cache'
  code, out, err = run(f'--workdir={workdir}', *TINY, *eval_args, cache, '--mode=eval')
  assert (code, err) == (0, '')
  assert 'report.md' in out
  assert len(list((workdir / 'eval/step_00000024').glob('report-*/report.json'))) == 1
  code, out, err = run(
    f'--workdir={workdir}', *TINY, *eval_args, cache,
    '--mode=reproduce', '--config.reproduce.what=bound,compression',
  )  # fmt: skip
  assert (code, err) == (0, '')
  reproduced = workdir / 'reproduce/step_00000024'
  assert len(list(reproduced.glob('compression_*/compression.png'))) == 1
  assert len(list(reproduced.glob('bound_*/bound.png'))) == 1


@pytest.mark.parametrize(
  ('args', 'most_bytes', 'what'),
  [
    pytest.param(
      '--config.train.checkpoint_every_steps=2',
      100_000,
      'checkpoint 2 in ',
      marks=pytest.mark.slow,
    ),
    pytest.param('--config.train.checkpoint_every_steps=999', 1_000, '', marks=pytest.mark.slow),
    pytest.param('--mode=sample', 200, 'samples', marks=pytest.mark.slow),
  ],
  ids=['saving', 'logging', 'sampling'],
)
def test_a_disk_that_takes_no_more_has_its_line_and_code(tmp_path, args, most_bytes, what):
  """By a limit of the size of files, whose errors are those of a full disk but for their number."""
  full, other = ((f'--workdir={tmp_path / x}', *TINY, args) for x in ('full', 'other'))
  nine = '--config.train.num_steps=9'
  for workdir, mode in ((other, '--mode=train'), (other, args), (full, '--mode=train')):
    if workdir == other or what == 'samples':  # the first ones leave the compiled programs
      assert run(*workdir, nine, mode)[0] == 0
  limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
  process = start(*full, nine, preexec_fn=limit)
  _, err = process.communicate(timeout=300)
  assert process.returncode == 74, err
  line = rf'error: .*{what}.* cannot be written \(File too large\); mend .*\n'
  assert re.search(line, err), err  # search: Orbax's own writer may have its say beside it
  code, _, err = run(*full, nine)
  assert (code, err) == (0, '')
  assert not list(tmp_path.rglob('*.partial'))
