"""Samples: image i depends on (seed, i) alone, and an interrupted run goes on."""

import json

import numpy as np
import PIL.Image
import pytest

from ddpm_jax import sample as sample_module
from ddpm_jax.sample import sample
from ddpm_jax.train import train
from tests.tiny import tiny_config

FOLDER = 'samples/step_00000002'


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A workdir with a checkpoint."""
  workdir = tmp_path_factory.mktemp('trained')
  train(tiny_config(**{'train.num_steps': 2}), workdir)
  return workdir


@pytest.fixture
def workdir(trained, tmp_path):
  """A folder of its own with the trained checkpoints."""
  (tmp_path / 'checkpoints').symlink_to(trained / 'checkpoints')
  return tmp_path


def load(workdir, folder=FOLDER):
  with np.load(workdir / folder / 'samples.npz') as arrays:
    return dict(arrays)


def draw(workdir, **overrides):
  sample(tiny_config(**{f'sample.{name}': value for name, value in overrides.items()}), workdir)
  return load(workdir)


@pytest.fixture
def drawn_ids(monkeypatch):
  """The ids that are drawn, as they are drawn."""
  ids_drawn = []
  original = sample_module.Sampler.draw

  def recorded(self, params, ids):
    ids_drawn.extend(ids.tolist())
    return original(self, params, ids)

  monkeypatch.setattr(sample_module.Sampler, 'draw', recorded)
  return ids_drawn


def test_writes_samples_ids_and_a_grid(workdir):
  arrays = draw(workdir)
  assert arrays['samples'].shape == (6, 8, 8, 1)
  assert arrays['samples'].dtype == np.uint8
  assert arrays['ids'].tolist() == [0, 1, 2, 3, 4, 5]
  assert len({image.tobytes() for image in arrays['samples']}) == 6
  assert PIL.Image.open(workdir / FOLDER / 'grid.png').mode == 'RGB'
  names = sorted(path.name for path in (workdir / FOLDER).iterdir())
  assert names == ['grid.png', 'request.json', 'samples.npz']


def test_image_does_not_depend_on_batch_size_or_number(workdir, trained):
  six = draw(workdir, batch_size=4)['samples']
  ten = draw(trained, batch_size=8, num_samples=10)['samples']
  assert np.abs(six.astype(int) - ten[:6]).max() <= 1  # rounding of another compiled shape


def test_other_seed_gives_other_samples_and_keeps_the_earlier(workdir, capsys):
  first = draw(workdir)['samples']
  second = draw(workdir, seed=1)['samples']
  assert not np.array_equal(first, second)
  assert 'held other samples' in capsys.readouterr().out
  np.testing.assert_array_equal(load(workdir, FOLDER + '.earlier1')['samples'], first)


def test_more_samples_complete_those_that_are_there(workdir, drawn_ids):
  first = draw(workdir)['samples']
  drawn_ids.clear()
  more = draw(workdir, num_samples=9)
  assert drawn_ids == [6, 7, 8]
  assert more['ids'].tolist() == list(range(9))
  np.testing.assert_array_equal(more['samples'][:6], first)


def test_complete_samples_are_not_drawn_again(workdir, drawn_ids):
  draw(workdir)
  drawn_ids.clear()
  draw(workdir)
  assert drawn_ids == []


def test_interrupted_run_goes_on_where_it_stopped(workdir, trained, drawn_ids, monkeypatch):
  save = sample_module._save

  def save_once(file, samples, ids):
    save(file, samples, ids)
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(sample_module, '_save', save_once)
    with pytest.raises(KeyboardInterrupt):
      draw(workdir, num_samples=10, batch_size=4)
  drawn_ids.clear()
  resumed = draw(workdir, num_samples=10, batch_size=4)['samples']
  assert drawn_ids == [4, 5, 6, 7, 8, 9]
  undisturbed = draw(trained, num_samples=10)['samples']
  assert np.abs(resumed.astype(int) - undisturbed).max() <= 1


def test_damaged_shard_is_drawn_anew(workdir, drawn_ids, monkeypatch, capsys):
  with monkeypatch.context() as patch:
    patch.setattr(sample_module, '_merge', lambda *_: None)
    sample(tiny_config(**{'sample.batch_size': 4}), workdir)
  shard = workdir / FOLDER / 'shards/00000004.npz'
  shard.write_bytes(shard.read_bytes()[:100])
  drawn_ids.clear()
  assert draw(workdir, batch_size=4)['ids'].tolist() == [0, 1, 2, 3, 4, 5]
  assert drawn_ids == [4, 5]
  assert 'is incomplete' in capsys.readouterr().out


def test_request_says_what_the_samples_are(workdir):
  draw(workdir)
  request = json.loads((workdir / FOLDER / 'request.json').read_text())
  assert request['seed'] == 0
  assert len(request['ema_sha256']) == 64


def test_no_checkpoint_is_said_and_nothing_made(tmp_path):
  with pytest.raises(ValueError, match='holds no checkpoint; run --mode=train first'):
    sample(tiny_config(), tmp_path / 'typo')
  assert not (tmp_path / 'typo').exists()


def test_checkpoint_of_another_model_is_refused(workdir):
  with pytest.raises(ValueError, match=r'model.ch: checkpoint 32, config 64'):
    sample(tiny_config(**{'model.ch': 64}), workdir)
