"""A workdir of version 1 of this program: it loads, and nothing in it is lost or computed again.

tests/workdirs/version1.tar.xz was made by commit 8fcf02b: one training step, six samples, the bound
of four images a split, and their report.
"""

import hashlib
import json
import pathlib
import shutil
import tarfile

import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.config import build
from ddpm_jax.errors import UserError
from ddpm_jax.modes.evaluate import evaluate
from ddpm_jax.modes.sample import sample
from ddpm_jax.modes.train import train
from ddpm_jax.storage import shards
from tests.tiny import tiny_config

ARCHIVE = pathlib.Path(__file__).parents[1] / 'workdirs/version1.tar.xz'
STEP = 'step_00000001'


def config_of_archive(**overrides):
  fields = {
    'optim.warmup_steps': 1,
    'optim.ema_decay': 0.995,
    'train.num_steps': 1,
    'train.checkpoint_every_steps': 1,
    'sample.num_samples': 6,
    'eval.bpd_examples': 4,
    'eval.metrics': ('bpd',),
  }
  return tiny_config(**(fields | overrides))


@pytest.fixture
def workdir(tmp_path):
  with tarfile.open(ARCHIVE) as archive:
    archive.extractall(tmp_path, filter='data')
  return tmp_path / 'run'


@pytest.fixture
def computed(monkeypatch):
  """The names of the files that get computed rows."""
  written = []
  save = shards.save
  monkeypatch.setattr(shards, 'save', lambda file, *args: written.append(file) or save(file, *args))
  return written


def files_of(folder):
  return {
    file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
    for file in folder.rglob('*')
    if file.is_file()
  }


def test_training_goes_on(workdir, capsys):
  train(config_of_archive(**{'train.num_steps': 2}), workdir)
  assert 'steps       1 done, 1 to do' in capsys.readouterr().out
  steps = [json.loads(line)['step'] for line in (workdir / 'metrics.jsonl').open()]
  assert steps == [1, 2]
  assert json.loads((workdir / 'format.json').read_text()) == {'format': 2}


def test_another_config_is_refused_as_before(workdir):
  with pytest.raises(UserError, match=r'another config \(optim\.learning_rate: workdir 0\.002'):
    train(config_of_archive(**{'optim.learning_rate': 1e-3}), workdir)


def test_samples_are_taken_over_and_completed(workdir, computed):
  with np.load(workdir / 'samples' / STEP / 'samples.npz') as arrays:
    before = arrays['samples'].copy()
  sample(config_of_archive(), workdir)
  assert not computed
  (file,) = (workdir / 'samples' / STEP).glob('ancestral-10_*/samples.npz')
  with np.load(file) as arrays:
    np.testing.assert_array_equal(arrays['samples'], before)
  assert not (workdir / 'samples' / STEP / 'request.json').exists()
  sample(config_of_archive(**{'sample.num_samples': 8}), workdir)
  with np.load(file) as arrays:
    np.testing.assert_array_equal(arrays['samples'][:6], before)
    assert len(arrays['samples']) == 8


def test_samples_of_another_kind_leave_them_alone(workdir):
  before = files_of(workdir / 'samples' / STEP)
  sample(config_of_archive(**{'sample.seed': 1}), workdir)
  after = files_of(workdir / 'samples' / STEP)
  assert before.items() <= after.items()
  assert len(after) > len(before)


def test_the_bound_is_taken_over(workdir, computed):
  report = json.loads((workdir / 'eval' / STEP / 'report.json').read_text())
  evaluate(config_of_archive(), workdir)
  assert not computed
  (file,) = (workdir / 'eval' / STEP).glob('report-bpd_*/report.json')
  figures = json.loads(file.read_text())['figures']
  assert [f['value'] for f in figures] == [f['value'] for f in report['figures']]
  assert (workdir / 'eval' / STEP / 'report.json').exists()
  best = json.loads((workdir / 'eval/best.json').read_text())
  assert {record['step'] for record in best.values()} == {1}
  assert len(best) == 2  # version 1's record stays


def test_the_bound_is_what_is_computed_today(workdir):
  with np.load(workdir / 'eval' / STEP / 'bpd_test/bpd.npz') as arrays:
    before = dict(arrays)
  config = config_of_archive()
  weights = build.restore_weights(config, workdir)
  (bound,) = build.bounds(config, ['test'], None)
  after = bound.collect(workdir / 'other', weights)
  for name in ('prior_bpd', 'mse'):
    np.testing.assert_allclose(after[name], before[name], rtol=1e-4)
  # The decoder's tails were those of two float32 CDFs.
  np.testing.assert_allclose(after['vb'][:, 1:], before['vb'][:, 1:], rtol=1e-4)
  np.testing.assert_allclose(after['vb'][:, 0], before['vb'][:, 0], rtol=2e-2)


@pytest.mark.parametrize('mode', [train, sample, evaluate])
def test_a_workdir_of_a_newer_program_is_refused_untouched(workdir, mode):
  (workdir / 'format.json').write_text('{"format": 3}')
  before = files_of(workdir)
  with pytest.raises(UserError, match=r'newer version of this program \(format 3; this one knows'):
    mode(config_of_archive(**{'train.num_steps': 2}), workdir)
  assert files_of(workdir) == before


@pytest.mark.parametrize('text', ['{"format": "x"}', '[]', 'null', '{'])
def test_a_damaged_format_is_told_in_one_line(workdir, text):
  (workdir / 'format.json').write_text(text)
  with pytest.raises(UserError, match=r'format\.json is damaged'):
    sample(config_of_archive(), workdir)


def test_the_archive_is_of_version_1(workdir):
  assert not (workdir / 'format.json').exists()
  assert (workdir / 'samples' / STEP / 'request.json').exists()
  shutil.rmtree(workdir)


def test_it_is_loaded_without_its_config(workdir):
  model = ddpm_jax.load(workdir)
  assert model.step == 1
  (file,) = (workdir / 'samples').rglob('samples.npz')
  drawn = np.load(file)['samples']
  np.testing.assert_array_equal(model.sample(len(drawn)), drawn)
