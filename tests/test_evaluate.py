"""The evaluation: its figures, what it says of them, and that it goes on."""

import json
import math

import numpy as np
import PIL.Image
import pytest

from ddpm_jax import bounds, evaluate, shards
from ddpm_jax.data.digits import load_digits
from ddpm_jax.metrics.frechet import frechet_distance
from ddpm_jax.scores import statistics_of
from ddpm_jax.train import train
from tests.tiny import tiny_config

STEP = 'eval/step_00000004'


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
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
    config = tiny_config(**{f'eval.{name}': value for name, value in fields.items()})
    evaluate.evaluate(config, workdir)

  return run


def report(workdir, folder=STEP):
  (file,) = workdir.glob(f'{folder}/report.json')
  return json.loads(file.read_text())


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
  text = (workdir / STEP / 'report.md').read_text()
  assert '| Frechet distance (digits classifier), 12 images |' in text
  assert 'FID' not in text.replace('published FID', '')


def test_figures_are_those_of_the_arrays_on_disk(workdir, run):
  run(workdir)
  figures = {figure['metric']: figure for figure in report(workdir)['figures']}
  with np.load(workdir / STEP / 'bpd_test/bpd.npz') as arrays:
    total = arrays['total_bpd'].astype(np.float64)
    whole = arrays['vb'].sum(axis=1, dtype=np.float64) + arrays['prior_bpd']
  assert figures['bpd']['value'] == pytest.approx(total.mean())
  assert figures['bpd']['standard_error'] == pytest.approx(total.std(ddof=1) / np.sqrt(10))
  np.testing.assert_allclose(total, whole, rtol=1e-6)
  lines = (workdir / STEP / 'bpd_test.csv').read_text().splitlines()
  assert len(lines) == 11
  assert sum(float(line.split(',')[1]) for line in lines[1:]) + figures['bpd'][
    'L_T'
  ] == pytest.approx(figures['bpd']['value'])
  with np.load(workdir / STEP / 'features/features.npz') as arrays:
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
  run(workdir, metrics=('bpd',), bpd_splits=('test',))
  (whole,) = report(workdir)['figures']
  assert whole['secs'] == shards.seconds(workdir / STEP / 'bpd_test')
  run(workdir, metrics=('bpd',), bpd_splits=('test',), bpd_terms=4, bpd_examples=300)
  (estimate,) = report(workdir)['figures']
  assert (whole['terms'], estimate['terms']) == ('all, one draw each', '4 of 10, stratified')
  assert abs(whole['value'] - estimate['value']) < 0.5
  for name in ('bpd_test', 'bpd_test_4_terms'):  # none in the way of the other
    assert (workdir / STEP / name / 'bpd.npz').exists()


def test_another_step_can_be_chosen_and_one_that_is_not_there_is_said(workdir, run):
  run(workdir, step=2, metrics=('bpd',))
  assert report(workdir, 'eval/step_00000002')['about']['step'] == 2
  with pytest.raises(ValueError, match=r'no checkpoint 3 in .*: it has \[2, 4\]'):
    run(workdir, step=3)


def test_samples_that_are_not_rounded_are_measured_as_they_are(workdir, run):
  run(workdir, metrics=('fid',))
  rounded = report(workdir)['figures'][0]
  run(workdir, metrics=('fid',), rounding='float')
  exact = report(workdir)['figures'][0]
  assert exact['rounding'] == 'float'
  assert exact['value'] != rounded['value']
  assert exact['value'] == pytest.approx(rounded['value'], rel=0.02)


def test_real_images_given_as_samples_are_near_the_reference(tmp_path, run):
  images, _ = load_digits('test')
  np.savez(tmp_path / 'real.npz', arr_0=images)
  run(tmp_path, samples=str(tmp_path / 'real.npz'))
  figures = {f['metric']: f for f in report(tmp_path, 'eval/samples_real_????????')['figures']}
  assert 'bpd' not in figures
  assert figures['fid']['value'] < 3 * figures['fid']['sanity']
  assert figures['precision']['value'] > 0.8
  assert figures['is']['value'] > 8


def test_the_reference_against_itself_has_distance_zero(tmp_path, run):
  images, _ = load_digits('train')
  np.savez(tmp_path / 'same.npz', samples=images)
  run(tmp_path, samples=str(tmp_path / 'same.npz'), metrics=('fid', 'pr'))
  fid, precision, recall = report(tmp_path, 'eval/samples_same_????????')['figures']
  assert fid['value'] == pytest.approx(0, abs=1e-6)
  assert (precision['value'], recall['value']) == (1, 1)


def test_reference_may_be_statistics_or_images(tmp_path, run):
  images, _ = load_digits('test')
  folder = tmp_path / 'pictures'
  folder.mkdir()
  for i, image in enumerate(images[:50]):
    PIL.Image.fromarray(image[..., 0]).save(folder / f'{i:03d}.png')
  run(tmp_path, samples=str(folder), reference=str(folder), metrics=('fid',))
  figure = report(tmp_path, 'eval/samples_pictures_????????')['figures'][0]
  assert figure['value'] == pytest.approx(0, abs=1e-6)
  (file,) = tmp_path.glob('eval/samples_pictures_*/features/features.npz')
  features = np.load(file)['features']
  statistics = statistics_of(features)
  np.savez(tmp_path / 'stats.npz', mu=statistics.mean, sigma=statistics.covariance)
  run(tmp_path, samples=str(folder), reference=str(tmp_path / 'stats.npz'), metrics=('fid',))
  again = report(tmp_path, 'eval/samples_pictures_????????')
  assert again['figures'][0]['value'] == pytest.approx(0, abs=1e-6)
  assert 'sanity' not in again['figures'][0]
  with pytest.raises(ValueError, match='no images as kid and pr need: leave them out'):
    run(tmp_path, samples=str(folder), reference=str(tmp_path / 'stats.npz'))
  np.savez(tmp_path / 'stats.npz', mu=np.zeros(3), sigma=np.eye(3))
  with pytest.raises(ValueError, match='statistics of 3 features; digits classifier has 64'):
    run(tmp_path, samples=str(folder), reference=str(tmp_path / 'stats.npz'), metrics=('fid',))


def test_bits_per_dim_of_images_alone_are_refused(tmp_path, run):
  np.savez(tmp_path / 'x.npz', samples=np.zeros((5, 8, 8, 1), np.uint8))
  with pytest.raises(ValueError, match=r'eval.metrics=bpd is of a model'):
    run(tmp_path, samples=str(tmp_path / 'x.npz'), metrics=('bpd',))


@pytest.mark.parametrize('field', ['samples', 'reference'])
def test_images_of_another_size_are_refused(field, tmp_path, run):
  np.savez(tmp_path / 'large.npz', samples=np.zeros((5, 16, 16, 1), np.uint8))
  np.savez(tmp_path / 'right.npz', samples=np.zeros((5, 8, 8, 1), np.uint8))
  paths = {'samples': str(tmp_path / 'right.npz')} | {field: str(tmp_path / 'large.npz')}
  with pytest.raises(ValueError, match=rf'eval.{field}=.* \(16, 16, 1\); data.image_size'):
    run(tmp_path, **paths)


def test_best_step_is_noted_and_its_checkpoint_kept(workdir, run, capsys):
  run(workdir, step=2, metrics=('bpd',))
  run(workdir, step=4, metrics=('bpd',))
  best = best_of(workdir)
  values = {
    step: report(workdir, f'eval/step_{step:08d}')['figures'][-1]['value'] for step in (2, 4)
  }
  assert best['step'] == min(values, key=values.get)
  assert (workdir / 'checkpoints/KEEP.best').read_text() == f'{best["step"]}\n'
  assert (workdir / 'checkpoints/KEEP.evaluating').read_text() == ''
  assert 'best so far: step 2' in capsys.readouterr().out


def test_each_request_has_a_best_step_of_its_own(tmp_path, capsys):
  (tmp_path / 'checkpoints').mkdir()

  def note(step, value, request):
    figures = [{'metric': 'fid', 'name': 'FID', 'value': value}]
    evaluate.note_best(tmp_path, step, figures, {'num_samples': request})

  for step, value in ((1, math.nan), (2, 5.0), (3, 7.0), (4, math.nan), (5, math.inf)):
    note(step, value, 1000)
  note(3, 4.0, 50_000)
  note(4, 4.5, 50_000)
  records = json.loads(
    (tmp_path / 'eval/best.json').read_text(),
    parse_constant=lambda word: pytest.fail(f'{word} is no JSON'),
  )
  found = {best['request']['num_samples']: best['step'] for best in records.values()}
  assert found == {1000: 2, 50_000: 3}
  assert (tmp_path / 'checkpoints/KEEP.best').read_text() == '2\n3\n'
  assert capsys.readouterr().out.count('best so far') == 2
  (old,) = [best for best in records.values() if best['step'] == 2]
  (tmp_path / 'eval/best.json').write_text(json.dumps(old))  # as it was without keys
  note(7, 9.0, 50_000)
  assert (tmp_path / 'checkpoints/KEEP.best').read_text() == '2\n7\n'
  (tmp_path / 'eval/best.json').write_text('{')
  with pytest.raises(ValueError, match=r'best.json is damaged'):
    note(6, 1.0, 1000)


def test_watch_measures_each_checkpoint_and_passes_over_deleted_ones(workdir, run, monkeypatch):
  restore = evaluate.restore_step

  def deleted(config, path, step):
    if step == 2:
      raise ValueError('checkpoint 2 was deleted by the run in progress')
    return restore(config, path, step)

  monkeypatch.setattr(evaluate, 'restore_step', deleted)
  config = tiny_config(**{'train.num_steps': 4, 'eval.metrics': ('bpd',), 'eval.watch': True})
  evaluate.evaluate(config, workdir)
  assert sorted(path.name for path in (workdir / 'eval').glob('step_*')) == ['step_00000004']


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
    step: report(tmp_path, f'eval/training_{step:08d}')['figures'][-1]['value']
    for step in (2, 4, 6)
  }
  assert best['step'] == min(values, key=values.get)
  steps = {int(path.name) for path in (tmp_path / 'checkpoints').glob('[0-9]*')}
  assert steps == {best['step'], 6}


def test_full_disk_is_answered_by_one_line(workdir, run, monkeypatch):
  def full(*args, **kwargs):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(np, 'savez', full)
  with pytest.raises(ValueError, match=r'cannot be written \(No space left on device\)'):
    run(workdir)


def test_bits_per_dim_of_one_image_has_no_error():
  assert bounds.mean_and_error([2.0]) == (2.0, None)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'metrics': ('fdi',)}, "eval.metrics is 'fdi'; it must be one of bpd, fid, is, kid, pr"),
    ({'bpd_terms': 11}, 'eval.bpd_terms is 11; there are 10 terms'),
    ({'num_samples': 1}, 'eval.num_samples is 1; it must be at least 2'),
    ({'network': 'resnet'}, "eval.network is 'resnet'; it must be one of inception, digits"),
    ({'watch': True, 'step': 3}, 'eval.watch goes with neither'),
    ({'reference': '/nowhere.npz'}, 'eval.reference=/nowhere.npz does not exist'),
    ({'samples': '/nowhere'}, 'eval.samples=/nowhere does not exist'),
    ({'network': 'inception'}, 'eval.network=inception takes images of three channels'),
  ],
)
def test_bad_input_is_answered_by_one_line(fields, message, workdir, run):
  with pytest.raises(ValueError, match=message) as caught:
    run(workdir, **fields)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(('split', 'said'), [('train', False), ('all', True)])
def test_report_says_when_test_images_were_trained_on(workdir, split, said):
  fields = {'eval.metrics': ('bpd',), 'eval.bpd_examples': 2, 'data.split': split}
  evaluate.evaluate(tiny_config(**fields), workdir)
  line = 'The test images were trained on: data.split is all.'
  assert (line in report(workdir)['notes']) == said
