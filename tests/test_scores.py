"""The scorer: its cache, its reference, and what it refuses before anything is drawn."""

import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from ddpm_jax import build, parallel, scores
from ddpm_jax.data.digits import load_digits
from ddpm_jax.metrics.features import FeatureNetwork
from ddpm_jax.metrics.images import open_images
from tests.tiny import tiny_config


@pytest.fixture
def as_processes(monkeypatch):
  """Returns (work, arguments) -> results, one thread a process, which may meet."""
  own, texts = threading.local(), {}

  def meet(name=None):
    own.barrier.wait(10)

  def texts_of_all(text):
    meet()
    texts[own.index] = text
    meet()
    gathered = [texts[i] for i in sorted(texts)]
    meet()
    return gathered

  def run(work, arguments):
    barrier = threading.Barrier(len(arguments))

    def one(index):
      own.index, own.barrier = index, barrier
      try:
        return work(arguments[index])
      except ValueError as error:
        return str(error)

    with monkeypatch.context() as patch, ThreadPoolExecutor(len(arguments)) as pool:
      patch.setattr(jax, 'process_count', lambda: len(arguments))
      patch.setattr(parallel, 'is_primary', lambda: own.index == 0)
      patch.setattr(parallel, 'barrier', meet)
      patch.setattr(parallel, 'texts_of_all', texts_of_all)
      return list(pool.map(one, range(len(arguments))))

  return run


def open_cache(folder):
  return scores.open_cache(tiny_config(**{'eval.cache_dir': str(folder)}))


def test_a_cache_that_processes_share_is_used(tmp_path, as_processes):
  (tmp_path / 'mount').symlink_to(tmp_path / 'a')  # the same, by another path
  folders = [tmp_path / 'a', tmp_path / 'mount', tmp_path / 'a']
  (tmp_path / 'a').mkdir()
  assert as_processes(open_cache, folders) == [folder / 'reference' for folder in folders]
  assert not list((tmp_path / 'a/reference').iterdir())
  assert open_cache(tmp_path / 'b') == tmp_path / 'b/reference'  # one process shares it with none


def test_caches_of_each_machine_are_refused_on_every_process(tmp_path, as_processes):
  folders = [tmp_path / 'a', tmp_path / 'a', tmp_path / 'b']
  for message, folder in zip(as_processes(open_cache, folders), folders, strict=True):
    assert message == (
      f'eval.cache_dir={folder} of process 2 is not the folder of process 0: give one on a file '
      'system that all processes share, such as --config.eval.cache_dir=WORKDIR/cache'
    )


def test_a_cache_that_cannot_be_written_is_answered_by_one_line(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(ValueError, match=r'cache_dir=.*/file/x cannot be written \(Not a directory'):
    open_cache(tmp_path / 'file/x')


@pytest.fixture
def scorer(tmp_path, monkeypatch):
  """Returns fields of eval -> Scorer, by the first pixels, under the name of published weights."""

  def step(params, images):
    rows = jnp.asarray(images, jnp.float32).reshape(*images.shape[:2], -1)
    return {'features': rows[..., 18:22], 'logits': rows[..., 26:30] / 255}

  network = FeatureNetwork('pixels', True, '', '', None, step)
  monkeypatch.setattr(build, 'feature_network', lambda config: network)

  def scorer(**fields):
    fields = {'cache_dir': str(tmp_path / 'cache'), 'batch_size': 512, 'metrics': ('fid',)} | fields
    return scores.Scorer(tiny_config(**{f'eval.{name}': x for name, x in fields.items()}))

  scorer.folder = tmp_path
  return scorer


def score(scorer, folder, images, **facts):
  figures, notes = scorer.score(
    folder, scores.ArrayImages(images), len(images), request={}, facts=facts
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
    with pytest.raises(ValueError, match=r'statistics of 3 features; pixels has 4$'):
      scorer(reference=str(scorer.folder / 'stats.npz'), metrics=(metric,))


def test_home_is_understood(scorer, monkeypatch):
  monkeypatch.setenv('HOME', str(scorer.folder))
  np.savez(scorer.folder / 'stats.npz', mu=np.zeros(4), sigma=np.eye(4))
  opened = scorer(reference='~/stats.npz')
  assert opened.reference['file'] == str(scorer.folder / 'stats.npz')


def test_too_few_images_are_refused_before_their_features_are_computed(scorer):
  opened = scorer(metrics=('fid', 'kid'))
  with pytest.raises(ValueError, match=r'^the set to measure has 3 images; kid \(eval'):
    score(opened, scorer.folder / 'few', load_digits('test')[0][:3])
  assert not (scorer.folder / 'few').exists()
  for metric, count in (('is', 1), ('fid', 3), ('kid', 7), ('pr', 7)):
    message = rf'^the reference has {count} images; {metric} .* needs {count + 1} at least$'
    with pytest.raises(ValueError, match=message):
      scorer(metrics=(metric,), reference_examples=count)
    opened = scorer(metrics=(metric,), reference_examples=count + 1)
    score(opened, scorer.folder / metric, load_digits('test')[0][: build.METRICS[metric]])


def test_some_of_the_real_images_are_of_its_whole_length(scorer):
  images, _ = load_digits('train')
  few = scorer(reference_examples=100)
  assert few.reference['chosen'] == '100 of 1497, evenly spaced'
  rows = np.arange(100) * 1497 // 100
  expected = images[rows].reshape(100, -1)[:, 18:22]
  np.testing.assert_array_equal(few._real['features'], expected)
  assert len(np.unique(scores.evenly_spaced(1496, 1497))) == 1496
  # Features of others, in the cache before or after, are not taken for them.
  assert len(scorer()._real['features']) == 1497
  np.testing.assert_array_equal(scorer(reference_examples=100)._real['features'], expected)


def test_precision_and_recall_tell_how_far_they_are(scorer, capsys):
  score(scorer(metrics=('pr',)), scorer.folder, load_digits('test')[0][:9])
  out = capsys.readouterr().out
  assert 'precision and recall 4/4' in out
  assert 'of halves of the real images 4/4' in out


def test_seconds_of_features_are_those_of_all_runs(scorer):
  opened = scorer()
  secs = opened.reference['feature_secs']
  assert secs >= 0
  for _ in range(2):
    figures, _ = score(opened, scorer.folder, load_digits('test')[0])
    noted = (scorer.folder / 'features/seconds.txt').read_text().split()
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
  figures, notes = opened.score(scorer.folder, images, 6, request={}, facts={})
  for what in ('real images', 'images that were measured'):
    assert f'4 files of the {what} are JPEG: its losses are part of the figures.' in notes
  assert figures[0]['jpeg_blockiness'] is None  # too small to tell
