"""The evaluator: what it does before it measures, and the best step that it notes."""

import json
import math

import numpy as np
import pytest

from ddpm_jax import devices
from ddpm_jax.config import build
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.evaluator import note_best
from ddpm_jax.evaluation.weights import make_weights
from ddpm_jax.storage.identity import Identity
from tests.tiny import tiny_config

FIGURES = [{'metric': 'bpd', 'name': 'bits/dim (test)', 'value': 3.0}]
OLD_REQUEST = {  # of version 1
  'metrics': ['bpd', 'fid'], 'seed': 0, 'bpd_splits': ['train', 'test'], 'bpd_examples': 10,
  'bpd_terms': None, 'num_samples': 1000, 'samples': None, 'rounding': 'uint8',
  'network': 'digits', 'inception_sha256': None, 'reference': None, 'reference_split': 'train',
  'reference_examples': None,
}  # fmt: skip


def identity_of(num_samples):
  return Identity(choices={'num_samples': num_samples})


def note(workdir, step, value, num_samples=1000, figure='FID'):
  figures = [*FIGURES, {'metric': 'fid', 'name': figure, 'value': value}]
  note_best(workdir, step, figures, identity_of(num_samples))


def records_of(workdir):
  return json.loads(
    (workdir / 'eval/best.json').read_text(),
    parse_constant=lambda word: pytest.fail(f'{word} is no JSON'),
  )


def kept(workdir):
  return (workdir / 'checkpoints/KEEP.best').read_text().split()


@pytest.fixture
def workdir(tmp_path):
  (tmp_path / 'checkpoints').mkdir()
  return tmp_path


def test_each_identity_has_a_best_step_of_its_own(workdir, capsys):
  for step, value in ((1, math.nan), (2, 5.0), (3, 7.0), (4, math.nan), (5, math.inf)):
    note(workdir, step, value, 1000)
  note(workdir, 3, 4.0, 50_000)
  note(workdir, 4, 4.5, 50_000)
  records = records_of(workdir)
  found = {best['request']['choices']['num_samples']: best['step'] for best in records.values()}
  assert found == {1000: 2, 50_000: 3}
  assert kept(workdir) == ['2', '3']
  assert capsys.readouterr().out.count('best so far') == 2
  (old,) = [best for best in records.values() if best['step'] == 2]
  (workdir / 'eval/best.json').write_text(json.dumps(old))  # as it was without keys
  note(workdir, 7, 9.0, 50_000)
  assert kept(workdir) == ['2', '7']
  (workdir / 'eval/best.json').write_text('{')
  with pytest.raises(UserError, match=r'best.json is damaged'):
    note(workdir, 6, 1.0, 1000)


def test_a_step_that_is_measured_anew_takes_its_own_place(workdir):
  note(workdir, 2, 5.0)
  note(workdir, 2, 6.0)
  (best,) = records_of(workdir).values()
  assert (best['step'], best['value'], best['figure']) == (2, 6.0, 'FID')
  note(workdir, 3, 5.5)
  (best,) = records_of(workdir).values()
  assert (best['step'], best['value']) == (3, 5.5)


def test_figures_of_other_names_do_not_compare(workdir):
  note(workdir, 2, 5.0, figure='FID-1000')
  note(workdir, 3, 7.0, figure='FID-1000 (against test)')
  assert kept(workdir) == ['2', '3']


def test_the_bound_decides_where_there_is_no_distance(workdir):
  for step, value in ((1, 4.0), (2, 3.0), (3, 3.5)):
    figures = [
      {'metric': 'bpd', 'name': 'bits/dim (train)', 'value': 9 - value},
      {'metric': 'bpd', 'name': 'bits/dim (test)', 'value': value},
    ]
    note_best(workdir, step, figures, identity_of(10))
  (best,) = records_of(workdir).values()
  assert (best['step'], best['figure']) == (2, 'bits/dim (test)')
  note_best(workdir, 4, [{'metric': 'is', 'name': 'Inception score', 'value': 9.0}], identity_of(5))
  assert kept(workdir) == ['2']


def test_records_of_version_1_stay_and_so_do_their_checkpoints(workdir):
  old = {
    '3860f95986b5': {'step': 40, 'figure': 'FID-1000', 'value': 3.5, 'request': OLD_REQUEST},
    '62db5ab3ba36': {'step': 20, 'figure': 'bits/dim (test)', 'value': 7.2, 'request': OLD_REQUEST},
  }
  (workdir / 'eval').mkdir()
  (workdir / 'eval/best.json').write_text(json.dumps(old, indent=2) + '\n')
  note(workdir, 60, 9.0)
  records = records_of(workdir)
  assert len(records) == 3
  assert old.items() <= records.items()
  assert kept(workdir) == ['20', '40', '60']
  note(workdir, 80, 8.0)
  assert old.items() <= records_of(workdir).items()
  assert kept(workdir) == ['20', '40', '80']


def test_the_single_record_of_the_first_versions_stays_and_so_does_its_checkpoint(workdir):
  old = {'step': 40, 'figure': 'FID-1000', 'value': 3.5, 'request': OLD_REQUEST}
  (workdir / 'eval').mkdir()
  (workdir / 'eval/best.json').write_text(json.dumps(old, indent=2) + '\n')
  for step, value in ((60, 9.0), (80, 8.0)):
    note(workdir, step, value)
    assert old in records_of(workdir).values()
    assert len(records_of(workdir)) == 2
    assert kept(workdir) == ['40', f'{step}']


@pytest.mark.parametrize(
  'text',
  [
    '', '{', '[]', '[1]', '3', 'null', '"request"', '{"a": 1}', '{"a": {"value": 2.0}}',
    '{"a": {"step": "2", "value": 2.0}}', '{"a": {"step": 2}}', '{"request": {}}',
    '{"a": {"step": 2, "value": "low"}}',
  ],
)  # fmt: skip
def test_a_damaged_file_is_said_in_one_line_and_stays(workdir, text):
  file = workdir / 'eval/best.json'
  file.parent.mkdir()
  file.write_text(text)
  with pytest.raises(UserError, match=r'best.json is damaged.*: put back') as caught:
    note(workdir, 6, 1.0)
  assert '\n' not in str(caught.value)
  assert file.read_text() == text


# Evaluators of configs.


class CountingSource:
  """A source, with the number of images of each reading."""

  def __init__(self, source):
    self._source, self.readings = source, []

  def __getattr__(self, name):
    return getattr(self._source, name)

  def __len__(self):
    return len(self._source)

  def read(self, indices):
    self.readings.append(len(indices))
    return self._source.read(indices)


@pytest.fixture
def evaluator(tmp_path, monkeypatch):
  """Returns fields of the config -> Evaluator; evaluator.sources has what it opened."""
  open_source = build.source

  def counted(*args):
    evaluator.sources.append(CountingSource(open_source(*args)))
    return evaluator.sources[-1]

  def evaluator(**fields):
    fields = {'eval.cache_dir': str(tmp_path / 'cache')} | fields
    return build.evaluator(tiny_config(**fields))

  monkeypatch.setattr(build, 'source', counted)
  evaluator.sources = []
  return evaluator


def test_nothing_is_read_but_for_fingerprints_before_the_first_measurement(evaluator, tmp_path):
  made = evaluator()
  splits = [source.split for source in evaluator.sources]
  assert splits == ['train', 'test', 'train']  # of both bounds, and of the reference
  assert [source.readings for source in evaluator.sources] == [[64], [64], [64]]
  assert not list((tmp_path / 'cache/reference').iterdir())
  assert [bound.split for bound in made.bounds] == ['train', 'test']
  made.scorer.reference()
  assert [len(source.readings) for source in evaluator.sources[:2]] == [1, 1]
  assert sum(evaluator.sources[2].readings) >= 64 + 1497


def test_only_what_is_asked_for_is_made(evaluator):
  of_bound = evaluator(**{'eval.metrics': ('bpd',), 'eval.bpd_splits': ('test',)})
  assert [bound.split for bound in of_bound.bounds] == ['test']
  assert of_bound.scorer is of_bound.drawer is None
  of_images = evaluator(**{'eval.metrics': ('fid', 'pr')})
  assert of_images.bounds == []
  assert of_images.scorer.metrics == ['fid', 'pr']


def test_a_folder_of_a_report_can_be_read(evaluator, tmp_path):
  weights = make_weights(4, devices.replicate({'w': np.zeros(3, np.float32)}))

  def folder(**fields):
    found = evaluator(**fields).folder(tmp_path, weights)
    assert found.parent == tmp_path / 'eval/step_00000004'
    name, _, key = found.name.rpartition('_')
    assert len(key) == 8
    return name

  assert folder() == 'report-bpd-fid-is-kid-pr-ancestral-10'
  assert folder(**{'eval.metrics': ('bpd',), 'sample.sampler': 'ddim'}) == 'report-bpd'
  ddim = {'sample.sampler': 'ddim', 'sample.num_steps': 5}
  assert folder(**{'eval.metrics': ('fid',), **ddim}) == 'report-fid-ddim-5-trailing'


def test_reports_of_other_measurements_have_other_folders(evaluator, tmp_path):
  np.savez(tmp_path / 'stats.npz', mu=np.zeros(64), sigma=np.eye(64))
  weights = make_weights(4, devices.replicate({'w': np.zeros(3, np.float32)}))
  other_weights = make_weights(4, devices.replicate({'w': np.ones(3, np.float32)}))
  fields = [
    {},
    {'eval.num_samples': 13},
    {'eval.bpd_examples': 9},
    {'eval.bpd_terms': 4},
    {'eval.bpd_splits': ('test',)},
    {'eval.seed': 1},
    {'eval.rounding': 'float'},
    {'eval.reference_split': 'test'},
    {'eval.reference_examples': 100},
    {'eval.metrics': ('bpd', 'fid'), 'eval.reference': str(tmp_path / 'stats.npz')},
    {'sample.seed': 1},
    {'sample.clip': 'none'},
    {'sample.sampler': 'dpmpp_2m'},
    {'diffusion.beta_end': 0.03},
  ]
  folders = [evaluator(**given).folder(tmp_path, weights) for given in fields]
  assert len(set(folders)) == len(fields)
  first = evaluator()
  assert first.folder(tmp_path, weights) == folders[0]
  assert first.folder(tmp_path, other_weights) != folders[0]
  # What changes how it is measured, but not what.
  same = {'eval.batch_size': 16, 'sample.batch_size': 16, 'eval.step': 4, 'model.remat': True}
  assert evaluator(**same).folder(tmp_path, weights) == folders[0]
