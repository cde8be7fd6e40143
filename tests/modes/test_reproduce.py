"""The paper's tables and figures: every one is written, and holds what it should."""

import csv
import shutil

import numpy as np
import PIL.Image
import pytest

from ddpm_jax.config import checks
from ddpm_jax.data.digits import load_digits
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.evaluator import Evaluator
from ddpm_jax.evaluation.figures import FIGURES, paper
from ddpm_jax.modes import reproduce
from ddpm_jax.storage import shards
from tests.tiny import tiny_config

pytestmark = pytest.mark.usefixtures('one_layer')
FOLDER = 'reproduce/step_00000002'


@pytest.fixture(scope='module')
def run(workdir, tmp_path_factory):
  """Returns (what, fields) -> folder with it, of one workdir, whose model never saw a step."""
  cache = tmp_path_factory.mktemp('cache')

  def run(what, **fields):
    fields = {'reproduce.what': (what,), 'eval.cache_dir': str(cache)} | fields
    folders, figure = [], FIGURES[what]
    with pytest.MonkeyPatch.context() as patch:
      patch.setitem(FIGURES, what, lambda run: folders.append(figure(run)) or folders[-1])
      reproduce.reproduce(tiny_config(**fields), workdir)
    (folder,) = folders
    assert folder.parent == workdir / FOLDER
    name, _, key = folder.name.rpartition('_')
    assert (name, len(key)) == (what, 8)
    return folder

  return run


def folder_of(parent, figure):
  """The one folder of a figure."""
  (folder,) = parent.glob(f'{figure}_????????')
  return folder


def read_csv(file):
  with open(file, newline='') as stream:
    return list(csv.DictReader(stream))


def is_picture(file):
  return PIL.Image.open(file).size[0] > 32


def test_tables_show_this_model_beside_the_papers(run, monkeypatch):
  measure, calls = Evaluator.measure, []

  def counted(*args, **kwargs):
    calls.append(args)
    return measure(*args, **kwargs)

  monkeypatch.setattr(Evaluator, 'measure', counted)
  folder = run('table1', **{'reproduce.what': ('table1', 'table2')})
  assert len(calls) == 1
  rows = read_csv(folder / 'table1.csv')
  assert len(rows) == len(paper.TABLE_1) + 1
  assert rows[-2]['FID'] == '3.17'
  assert rows[-1]['Model'] == 'this model, step 2'
  assert '[Frechet distance (digits classifier), 12 images]' in rows[-1]['FID']
  assert '[bits/dim (test), 10 images]' in rows[-1]['NLL test (train)']
  assert is_picture(folder / 'table1.png')
  folder = folder_of(folder.parent, 'table2')
  rows = read_csv(folder / 'table2.csv')
  (this_model,) = [row for row in rows if row['FID, this model']]
  assert (this_model['Prediction'], this_model['Loss'], this_model['FID']) == ('eps', 'mse', '3.17')
  assert is_picture(folder / 'table2.png')


def test_an_ablation_that_the_paper_has_not_gets_a_row_of_its_own(run, monkeypatch):
  monkeypatch.setattr(paper, 'TABLE_2', paper.TABLE_2[:2])
  rows = read_csv(run('table2') / 'table2.csv')
  assert rows[-1]['FID'] == 'not in the paper'
  assert rows[-1]['FID, this model']


def test_bound_has_each_term_of_each_split(run):
  folder = run('bound')
  rows = read_csv(folder / 'bound.csv')
  assert [(row['split'], row['t']) for row in rows[:11]] == [
    *(('train', str(t)) for t in range(10)),
    ('train', 'prior'),
  ]
  assert len(rows) == 22
  assert is_picture(folder / 'bound.png')


def test_compression_has_a_row_for_each_reverse_step(run):
  folder = run('compression')
  rows = read_csv(folder / 'compression.csv')
  assert [int(row['reverse_steps']) for row in rows] == list(range(1, 11))
  rate = [float(row['rate_bpd']) for row in rows]
  assert rate == sorted(rate)
  assert float(rows[-1]['rmse']) < float(rows[0]['rmse'])
  assert rows[0]['paper_rmse'] == ''  # it is of CIFAR-10
  assert is_picture(folder / 'compression.png')
  assert is_picture(folder / 'compression_table.png')


def test_progressive_predictions_are_measured_step_by_step(run):
  folder = run('progressive')
  rows = read_csv(folder / 'progressive.csv')
  assert [int(row['reverse_steps']) for row in rows] == [2, 2, 4, 4, 6, 6, 8, 8, 10, 10]
  assert {row['images'] for row in rows} == {'12'}
  predictions = folder_of(folder.parent, 'predictions')
  with np.load(predictions / 'predictions.npz') as arrays:
    assert arrays['predictions'].shape == (12, 5, 8, 8, 1)
  for slot in range(5):
    features = folder_of(predictions, f'features-slot-{slot:03d}') / 'features.npz'
    assert len(shards.load_ids(features)) == 12
  assert not list(folder.parent.glob('features*'))
  assert is_picture(folder / 'progressive.png')
  assert is_picture(folder / 'progressive_metrics.png')


def test_no_more_predictions_are_kept_than_were_asked_for(run):
  folder = run('progressive', **{'reproduce.num_slots': 6})
  rows = read_csv(folder / 'progressive.csv')
  assert sorted({int(row['reverse_steps']) for row in rows}) == [2, 4, 6, 8, 10]


def test_shared_chains_part_the_more_the_earlier(run):
  folder = run('shared')
  with np.load(folder / 'shared.npz') as arrays:
    samples = arrays['samples'].astype(float)
    assert arrays['timesteps'].tolist() == [9, 7, 4, 1]
  assert samples.shape == (2, 4, 10, 8, 8, 1)
  spread = samples.std(axis=2).mean(axis=(0, 2, 3, 4))
  assert spread[0] > spread[3] > 0
  assert is_picture(folder / 'shared.png')


def test_interpolation_has_real_images_at_its_ends(run):
  folder = run('interpolation')
  with np.load(folder / 'interpolation.npz') as arrays:
    figure_8, figure_9 = arrays['figure_8'], arrays['figure_9']
    depths, ids = arrays['depths'].tolist(), arrays['ids']
  assert figure_8.shape == (2, 13, 8, 8, 1)
  assert depths[0] == 0
  assert depths[-1] == 10
  assert len(figure_9) == len(depths)
  images, _ = load_digits('test')
  np.testing.assert_array_equal(figure_8[:, 0], images[ids[0]])
  np.testing.assert_array_equal(figure_8[:, -1], images[ids[1]])
  # Without steps a reconstruction is the image; half-way lies the mean of both.
  np.testing.assert_array_equal(figure_9[0, 1], figure_9[0, 0])
  mean = (figure_9[0, 0].astype(float) + figure_9[0, -1]) / 2
  assert np.abs(figure_9[0, 6] - mean).max() <= 0.5
  assert is_picture(folder / 'interpolation_figure8.png')


def test_interpolation_goes_on_where_it_stopped(run, monkeypatch):
  folder = run('interpolation')
  file = folder / 'interpolation.npz'
  whole = file.read_bytes()
  file.unlink()
  jobs = sorted(path for path in folder.iterdir() if path.is_dir())
  assert [job.name for job in jobs] == [f'steps_{n:04d}' for n in (0, 1, 2, 4, 5, 6, 8, 9, 10)]
  for job in jobs:
    shutil.rmtree(job)
  save, ids = shards.save, []

  def save_two(*args):
    if len(ids) == 2:
      raise KeyboardInterrupt
    ids.append(save(*args))

  with monkeypatch.context() as patch:
    patch.setattr(shards, 'save', save_two)
    with pytest.raises(KeyboardInterrupt):
      run('interpolation')
  assert not file.exists()
  monkeypatch.setattr(shards, 'save', lambda *args: ids.append(save(*args)))
  run('interpolation')
  assert len(ids) == sum(-(-len(shards.load_ids(job / 'samples.npz')) // 8) for job in jobs)
  assert file.read_bytes() == whole


def test_more_pairs_than_the_split_has_are_refused(run):
  with pytest.raises(UserError, match=r'reproduce.num_images=151: .* 300; give at most 150$'):
    run('interpolation', **{'reproduce.num_images': 151})


def test_neighbours_are_the_nearest_training_images(run):
  folder = run('neighbours')
  rows = read_csv(folder / 'neighbours.csv')
  drawn = folder_of(folder.parents[2] / 'samples/step_00000002', 'ancestral-10')
  with np.load(drawn / 'samples.npz') as arrays:
    sample = arrays['samples'][1].astype(float)
  images, _ = load_digits('train')
  distances = np.sqrt(np.square(images - sample).sum(axis=(1, 2, 3)))
  nearest = [row for row in rows if (row['space'], row['sample']) == ('pixels', '1')]
  np.testing.assert_allclose([float(row['distance']) for row in nearest], np.sort(distances)[:9])
  assert [int(row['training_image']) for row in nearest] == np.argsort(distances)[:9].tolist()
  assert is_picture(folder / 'neighbours_pixels.png')
  assert is_picture(folder / 'neighbours_features.png')


def test_files_of_the_codec_stand_beside_theory_and_formats(run):
  folder = run('codec', **{'reproduce.num_coded': 6, 'compress.search_bits': 2})
  rows = read_csv(folder / 'codec.csv')
  programs = {row['program'] for row in rows}
  assert programs >= {'files', 'PNG', 'JPEG'}
  of_files = [row for row in rows if row['program'] == 'files']
  assert of_files[-1]['setting'] == 'lossless'
  assert float(of_files[-1]['rmse']) == 0
  sizes = [float(row['bpd']) for row in of_files]
  assert sizes == sorted(sizes)
  assert all(float(row['data_bpd']) < float(row['bpd']) for row in of_files)
  theory = read_csv(run('compression', **{'eval.bpd_examples': 6}) / 'compression.csv')
  for row in of_files[:-1]:
    of_theory = theory[9 - int(row['timestep'])]
    assert float(row['theory_rmse']) == pytest.approx(float(of_theory['rmse']))
    assert float(row['theory_bpd']) == pytest.approx(float(of_theory['rate_bpd']))
  assert '6 of 6 were decoded exactly' in (folder / 'codec.md').read_text()
  for name in ('codec.png', 'sheet.png', 'sheet_completed.png'):
    assert is_picture(folder / name)
  before = [(folder / name).read_bytes() for name in ('examples.ddpa', 'seconds.json')]
  assert run('codec', **{'reproduce.num_coded': 6, 'compress.search_bits': 2}) == folder
  after = [(folder / name).read_bytes() for name in ('examples.ddpa', 'seconds.json')]
  assert after == before  # compressed once


def contents(folder):
  return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_figures_of_other_choices_lie_beside_the_first(run):
  folder = run('compression')
  before = contents(folder)
  other = run('compression', **{'reproduce.split': 'train'})
  assert other != folder
  assert contents(folder) == before
  rows, other_rows = (read_csv(path / 'compression.csv') for path in (folder, other))
  assert rows[-1]['rmse'] != other_rows[-1]['rmse']
  assert run('compression') == folder
  assert contents(folder) == before


def test_all_reproductions_are_offered_by_the_config():
  assert {*tiny_config().reproduce.what} == {*FIGURES} - {'codec', 'few_steps'}  # long
  with pytest.raises(UserError, match=r"reproduce.what is 'table3'; it must be one of table1"):
    checks.check(tiny_config(**{'reproduce.what': ('table3',)}))
