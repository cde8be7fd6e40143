"""The package: one version, one list of dependencies, the configs inside, nothing beside it."""

import json
import os
import pathlib
import subprocess
import sys
import sysconfig
import tomllib

import pytest

import ddpm_jax

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def project():
  return tomllib.loads((ROOT / 'pyproject.toml').read_text())


def test_version_stands_in_one_place_and_is_told(project):
  assert project['tool']['setuptools']['dynamic']['version'] == {'attr': 'ddpm_jax.__version__'}
  assert f'\n## {ddpm_jax.__version__}' in (ROOT / 'CHANGELOG.md').read_text()
  command = [sys.executable, '-m', 'ddpm_jax', '--version']
  told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
  assert told == f'ddpm_jax {ddpm_jax.__version__}\n'


def test_dependencies_are_one_list(project):
  dynamic = project['tool']['setuptools']['dynamic']
  assert dynamic['dependencies'] == {'file': ['requirements.txt']}
  assert set(project['project']['optional-dependencies']) == {
    'gpu',
    'tpu',
    'lsun',
    'signals',
    'volumes',
    'features',
  }


def test_configs_of_the_package_are_those_of_the_top():
  assert (ROOT / 'ddpm_jax' / 'configs').resolve() == ROOT / 'configs'


@pytest.mark.slow
def test_installed_package_runs_from_another_folder(tmp_path):
  subprocess.run([sys.executable, '-m', 'venv', tmp_path / 'venv'], check=True)
  python = tmp_path / 'venv' / 'bin' / 'python'
  source = tmp_path / 'source'
  files = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=True)
  for name in files.stdout.splitlines():
    path = ROOT / name
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
      (source / name).symlink_to(path.readlink())
    elif path.is_file():
      (source / name).write_bytes(path.read_bytes())
  subprocess.run([python, '-m', 'pip', 'install', '-q', '--no-deps', source], check=True)
  site = subprocess.run(
    [python, '-c', 'import ddpm_jax; print(ddpm_jax.__path__[0])'],
    cwd=tmp_path, capture_output=True, text=True, check=True,
  )  # fmt: skip
  installed = pathlib.Path(site.stdout.strip())
  assert installed.is_relative_to(tmp_path / 'venv')
  names = {path.name for path in installed.parent.iterdir()}
  assert not names & {'configs', 'tests', 'main.py', 'examples'}
  shipped = sorted(path.name for path in (installed / 'configs').glob('*.py'))
  assert shipped == sorted(path.name for path in (ROOT / 'configs').glob('*.py'))
  assert json.loads((installed / 'models' / 'digits' / 'config.json').read_text())
  code = 'import ddpm_jax; print(ddpm_jax.load_config("cifar10").model.ch)'
  env = os.environ | {'PYTHONPATH': sysconfig.get_path('purelib')}  # of the dependencies
  told = subprocess.run([python, '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True)
  assert told.stdout == '128\n', told.stderr
