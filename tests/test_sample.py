"""Samples: image i depends on (seed, i) alone, and an interrupted run goes on."""

import json

import numpy as np
import PIL.Image
import pytest

from ddpm_jax import shards
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
def written_ids(monkeypatch):
  """The ids of the samples that are written, as they are written."""
  ids_written = []
  original = shards.save

  def recorded(file, ids, arrays):
    ids_written.extend(ids.tolist())
    original(file, ids, arrays)

  monkeypatch.setattr(shards, 'save', recorded)
  return ids_written


def test_writes_samples_ids_and_a_grid(workdir):
  arrays = draw(workdir)
  assert arrays['samples'].shape == (6, 8, 8, 1)
  assert arrays['samples'].dtype == np.uint8
  assert arrays['ids'].tolist() == [0, 1, 2, 3, 4, 5]
  assert len({image.tobytes() for image in arrays['samples']}) == 6
  assert PIL.Image.open(workdir / FOLDER / 'grid.png').mode == 'RGB'
  names = sorted(path.name for path in (workdir / FOLDER).iterdir())
  assert names == ['grid.png', 'request.json', 'samples.npz', 'seconds.txt']


def test_image_does_not_depend_on_batch_size_or_number(workdir, trained):
  six = draw(workdir, batch_size=4)['samples']
  ten = draw(trained, batch_size=8, num_samples=10)['samples']
  assert np.abs(six.astype(int) - ten[:6]).max() <= 1  # rounding of another compiled shape


def test_other_seed_gives_other_samples_and_keeps_the_earlier(workdir, capsys):
  first = draw(workdir)['samples']
  second = draw(workdir, seed=1)['samples']
  assert not np.array_equal(first, second)
  assert 'of another request' in capsys.readouterr().out
  np.testing.assert_array_equal(load(workdir, FOLDER + '.earlier1')['samples'], first)


def test_other_sampler_gives_other_samples_and_keeps_the_earlier(workdir, written_ids):
  whole = draw(workdir)['samples']
  fields = {'sampler': 'ddim', 'num_steps': 5}
  first = draw(workdir, **fields)['samples']
  assert not np.array_equal(whole, first)
  np.testing.assert_array_equal(load(workdir, FOLDER + '.earlier1')['samples'], whole)
  request = json.loads((workdir / FOLDER / 'request.json').read_text())
  assert request['sample'] == {
    'sampler': 'ddim', 'clip': 'static', 'num_steps': 5, 'spacing': 'trailing', 'eta': 0.0,
  }  # fmt: skip
  written_ids.clear()
  more = draw(workdir, num_samples=8, **fields)['samples']
  assert written_ids == [6, 7]
  np.testing.assert_array_equal(more[:6], first)


def test_more_samples_complete_those_that_are_there(workdir, written_ids):
  first = draw(workdir)['samples']
  written_ids.clear()
  more = draw(workdir, num_samples=9)
  assert written_ids == [6, 7, 8]
  assert more['ids'].tolist() == list(range(9))
  np.testing.assert_array_equal(more['samples'][:6], first)


def test_interrupted_run_goes_on_where_it_stopped(workdir, trained, written_ids, monkeypatch):
  save = shards.save

  def save_once(*args):
    save(*args)
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(shards, 'save', save_once)
    with pytest.raises(KeyboardInterrupt):
      draw(workdir, num_samples=10, batch_size=4)
  written_ids.clear()
  resumed = draw(workdir, num_samples=10, batch_size=4)['samples']
  assert written_ids == [4, 5, 6, 7, 8, 9]
  undisturbed = draw(trained, num_samples=10, batch_size=4)['samples']
  np.testing.assert_array_equal(resumed, undisturbed)


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
