"""The scorer: its reference, its names, and what it refuses before anything is drawn."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from ddpm_jax.config import build
from ddpm_jax.data.digits import load_digits
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import scores
from ddpm_jax.evaluation.features import FeatureNetwork
from ddpm_jax.evaluation.images import ArrayImages, evenly_spaced, open_images
from ddpm_jax.evaluation.metrics.kid import published_kid
from ddpm_jax.evaluation.scores import METRICS
from ddpm_jax.storage.identity import Identity
from tests.tiny import tiny_config


@pytest.fixture
def scorer(tmp_path, monkeypatch):
  """Returns fields of eval -> Scorer, by the first pixels, under the name of published weights.

  scorer.measured has the number of images of each batch whose features were computed.
  """

  def step(params, images):
    if not isinstance(images, jax.core.Tracer):
      scorer.measured.append(images.shape[0] * images.shape[1])
    rows = jnp.asarray(images, jnp.float32).reshape(*images.shape[:2], -1)
    return {'features': rows[..., 18:22], 'logits': rows[..., 26:30] / 255}

  network = FeatureNetwork('pixels', True, '', '', None, step)
  monkeypatch.setattr(build, 'feature_network', lambda config: network)

  def scorer(**fields):
    fields = {'cache_dir': str(tmp_path / 'cache'), 'batch_size': 512, 'metrics': ('fid',)} | fields
    config = tiny_config(**{f'eval.{name}': x for name, x in fields.items()})
    return build.scorer(config, config.eval.metrics)

  scorer.folder, scorer.measured = tmp_path, []
  return scorer


def score(scorer, folder, images, **facts):
  figures, notes = scorer.score(
    folder, 'features', ArrayImages(images), len(images), identity=Identity(), facts=facts
  )
  return {figure['metric']: figure for figure in figures}, notes


@pytest.mark.parametrize(
  ('fields', 'departures'),
  [
    ({}, ''),
    ({'reference_examples': 1497}, ''),
    ({'reference_examples': 500}, ' (500 real images)'),
    ({'reference_split': 'test'}, ' (against test)'),
    ({'reference_split': 'test', 'reference_examples': 9}, ' (against test, 9 real images)'),
    ({'reference': 'real.npz'}, ' (300 real images)'),
    ({'reference': 'stats.npz'}, ''),
  ],
)
def test_names_tell_of_references_other_than_published_ones(fields, departures, scorer):
  images, _ = load_digits('test')
  np.savez(scorer.folder / 'real.npz', arr_0=images)
  np.savez(scorer.folder / 'stats.npz', mu=np.zeros(4), sigma=np.eye(4))
  if 'reference' in fields:
    fields = {'reference': str(scorer.folder / fields['reference'])}
  opened = scorer(metrics=('fid', 'is'), **fields)
  figures, _ = score(opened, scorer.folder / 'rounded', images[:12], rounding='uint8')
  assert figures['fid']['name'] == f'FID-12{departures}'
  assert figures['is']['name'] == 'Inception score of 12 images'
  figures, _ = score(opened, scorer.folder / 'exact', images[:12], rounding='float')
  unrounded = f'{departures[:-1]}, unrounded)' if departures else ' (unrounded)'
  assert figures['fid']['name'] == f'FID-12{unrounded}'
  assert figures['is']['name'] == 'Inception score of 12 images (unrounded)'


def test_statistics_of_another_network_are_refused_before_anything_is_measured(scorer):
  np.savez(scorer.folder / 'stats.npz', mu=np.zeros(3), sigma=np.eye(3))
  for metric in ('fid', 'is'):
    with pytest.raises(UserError, match=r'statistics of 3 features; pixels has 4$'):
      scorer(reference=str(scorer.folder / 'stats.npz'), metrics=(metric,))


def test_statistics_beside_images_are_what_the_distance_is_to(scorer):
  images, _ = load_digits('test')
  train = load_digits('train')[0].reshape(1497, -1)[:, 18:22].astype(np.float64)
  mean, covariance = train.mean(0), np.cov(train.T)
  np.savez(scorer.folder / 'adm.npz', arr_0=images[:40], mu=mean, sigma=covariance)
  np.savez(scorer.folder / 'stats.npz', mu=mean, sigma=covariance)
  np.savez(scorer.folder / 'images.npz', arr_0=images[:40])
  found, notes = {}, {}
  for name, metrics in (('adm', ('fid', 'pr')), ('stats', ('fid',)), ('images', ('fid', 'pr'))):
    opened = scorer(reference=str(scorer.folder / f'{name}.npz'), metrics=metrics)
    found[name], notes[name] = score(opened, scorer.folder / name, images[100:200])
  assert found['adm']['fid']['value'] == found['stats']['fid']['value']
  assert found['adm']['fid']['value'] != found['images']['fid']['value']
  for metric in ('precision', 'recall'):
    assert found['adm'][metric]['value'] == found['images'][metric]['value']
  assert found['adm']['fid']['name'] == 'FID-100'
  assert found['adm']['precision']['name'] == 'Precision of 100 images (40 real images)'
  assert any('against mu and sigma of' in note for note in notes['adm'])
  scorer.measured.clear()
  scorer(reference=str(scorer.folder / 'adm.npz')).reference()
  assert scorer.measured == []  # the distance needs none of the images


def test_statistics_of_another_network_beside_images_are_left_aside(scorer):
  images, _ = load_digits('test')
  np.savez(scorer.folder / 'both.npz', arr_0=images, mu=np.zeros(3), sigma=np.eye(3))
  np.savez(scorer.folder / 'images.npz', arr_0=images)
  values = []
  for name in ('both', 'images'):
    opened = scorer(reference=str(scorer.folder / f'{name}.npz'))
    figures, _ = score(opened, scorer.folder / name, images[:20])
    values.append((figures['fid']['value'], figures['fid']['name']))
  assert values[0] == values[1]
  assert opened.opened.notes == ()
  (note,) = scorer(reference=str(scorer.folder / 'both.npz')).opened.notes
  assert note.endswith('of 3 features, and pixels has 4: all metrics are against its images.')


def test_home_is_understood(scorer, monkeypatch):
  monkeypatch.setenv('HOME', str(scorer.folder))
  np.savez(scorer.folder / 'stats.npz', mu=np.zeros(4), sigma=np.eye(4))
  opened = scorer(reference='~/stats.npz')
  assert opened.opened.about['file'] == str(scorer.folder / 'stats.npz')


def test_too_few_images_are_refused_before_their_features_are_computed(scorer):
  opened = scorer(metrics=('fid', 'kid'))
  with pytest.raises(UserError, match=r'^the set to measure has 3 images; kid \(eval'):
    score(opened, scorer.folder / 'few', load_digits('test')[0][:3])
  assert not (scorer.folder / 'few').exists()
  for metric, count in (('is', 1), ('fid', 3), ('kid', 7), ('pr', 7)):
    message = rf'^the reference has {count} images; {metric} .* needs {count + 1} at least$'
    with pytest.raises(UserError, match=message):
      scorer(metrics=(metric,), reference_examples=count)
    opened = scorer(metrics=(metric,), reference_examples=count + 1)
    score(opened, scorer.folder / metric, load_digits('test')[0][: METRICS[metric].least_images])


def test_some_of_the_real_images_are_of_its_whole_length(scorer):
  images, _ = load_digits('train')
  few = scorer(reference_examples=100)
  assert few.opened.about['chosen'] == '100 of 1497, evenly spaced'
  rows = np.arange(100) * 1497 // 100
  expected = images[rows].reshape(100, -1)[:, 18:22]
  np.testing.assert_array_equal(few.reference().real['features'], expected)
  assert len(np.unique(evenly_spaced(1496, 1497))) == 1496
  # Features of others, in the cache before or after, are not taken for them.
  assert len(scorer().reference().real['features']) == 1497
  np.testing.assert_array_equal(
    scorer(reference_examples=100).reference().real['features'], expected
  )


def test_precision_and_recall_tell_how_far_they_are(scorer, capsys):
  score(scorer(metrics=('pr',)), scorer.folder, load_digits('test')[0][:9])
  out = capsys.readouterr().out
  assert 'precision and recall 4/4' in out
  assert 'of halves of the real images 4/4' in out


def test_seconds_of_features_are_those_of_all_runs(scorer):
  opened = scorer()
  secs = opened.reference().about['feature_secs']
  assert secs >= 0
  for _ in range(2):
    figures, _ = score(opened, scorer.folder, load_digits('test')[0])
    (file,) = scorer.folder.glob('features_*/seconds.txt')
    noted = file.read_text().split()
    assert figures['fid']['feature_secs'] == round(sum(map(float, noted)), 1)
  assert scorer().about()['reference_feature_secs'] == secs  # from the cache


def test_a_score_of_few_real_images_is_not_split(scorer):
  opened = scorer(metrics=('is',), reference_examples=9)
  figures, _ = score(opened, scorer.folder, np.resize(load_digits('train')[0], (5000, 8, 8, 1)))
  assert figures['is']['splits'] == 10
  assert figures['is']['value_of_real_images'] >= 1


def test_jpeg_files_are_noted_on_either_side(scorer):
  folder = scorer.folder / 'pictures'
  folder.mkdir()
  for i, image in enumerate(load_digits('test')[0][:6]):
    PIL.Image.fromarray(image[..., 0]).save(folder / f'{i}.{"jpg" if i < 4 else "png"}')
  opened = scorer(reference=str(folder))
  images = open_images(folder, 'eval.samples')
  figures, notes = opened.score(scorer.folder, 'features', images, 6, identity=Identity(), facts={})
  for what in ('real images', 'images that were measured'):
    assert f'4 files of the {what} are JPEG: its losses are part of the figures.' in notes
  assert figures[0]['jpeg_blockiness'] is None  # too small to tell


class CountingSource:
  """A source, with the indices of each reading."""

  def __init__(self, source):
    self._source, self.readings = source, []

  def __getattr__(self, name):
    return getattr(self._source, name)

  def __len__(self):
    return len(self._source)

  def read(self, indices):
    self.readings.append(list(indices))
    return self._source.read(indices)


def test_nothing_is_measured_before_it_is_asked_for(scorer, monkeypatch):
  sources, open_source = [], build.source

  def counted(*args):
    sources.append(CountingSource(open_source(*args)))
    return sources[-1]

  monkeypatch.setattr(build, 'source', counted)
  opened = scorer(metrics=('fid', 'is', 'kid', 'pr', 'dc'))
  (source,) = sources
  fingerprinted = np.unique(np.linspace(0, 1496, 64).astype(int)).tolist()
  assert source.readings == [fingerprinted]
  assert scorer.measured == []
  assert not list((scorer.folder / 'cache/reference').iterdir())
  assert opened.identity()['data']['reference']['data']['split'] == 'train'
  assert source.readings == [fingerprinted]
  reference = opened.reference()
  assert {i for indices in source.readings[1:] for i in indices} == set(range(1497))
  measured = list(scorer.measured)
  assert sum(measured) >= 1497
  assert opened.reference() is reference  # and is not measured again
  assert scorer.measured == measured
  score(opened, scorer.folder, load_digits('test')[0][:8])
  assert sum(scorer.measured) == sum(measured) + 8


def test_statistics_are_opened_without_a_batch_of_images(scorer):
  np.savez(scorer.folder / 'stats.npz', mu=np.zeros(4), sigma=np.eye(4))
  opened = scorer(reference=str(scorer.folder / 'stats.npz'))
  opened.reference()
  assert scorer.measured == []


def test_identity_changes_with_reference_and_network(scorer):
  images, _ = load_digits('test')
  np.savez(scorer.folder / 'real.npz', arr_0=images)
  np.savez(scorer.folder / 'other.npz', arr_0=images[::-1])
  np.savez(scorer.folder / 'stats.npz', mu=np.zeros(4), sigma=np.eye(4))
  fields = [
    {},
    {'reference_examples': 500},
    {'reference_split': 'test'},
    *({'reference': str(scorer.folder / f'{name}.npz')} for name in ('real', 'other', 'stats')),
  ]
  scorers = [scorer(**given) for given in fields]
  other = dataclasses.replace(scorers[0].network, sha256='0')
  scorers.append(dataclasses.replace(scorers[0], network=other))
  keys = [Identity(**opened.identity()).key() for opened in scorers]
  assert len(set(keys)) == len(fields) + 1
  assert Identity(**scorer().identity()).key() == keys[0]
  assert Identity(**scorer(batch_size=8, metrics=('is',)).identity()).key() == keys[0]


def test_every_metric_has_its_figures_under_its_names(scorer, monkeypatch):
  with pytest.raises(UserError, match=r'1497 images; kid100 .* needs 2000 at least'):
    scorer(metrics=('kid100',))
  small = dataclasses.replace(METRICS['kid100'], least_images=10)
  monkeypatch.setitem(METRICS, 'kid100', small)
  monkeypatch.setattr(scores, 'published_kid', functools.partial(published_kid, subset_size=10))
  opened = scorer(metrics=tuple(METRICS))
  figures, _ = score(opened, scorer.folder, load_digits('test')[0][:12])
  names = {key: names for metric in METRICS.values() for key, names in metric.names.items()}
  assert list(figures) == list(names)
  for key, figure in figures.items():
    assert figure['name'] in (f'{names[key][0]} of 12 images', f'{names[key][0]}-12')
    assert np.isfinite(figure['value'])
