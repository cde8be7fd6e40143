"""Samples: image i depends on (seed, i) alone, and an interrupted run goes on."""

import functools
import json

import numpy as np
import PIL.Image
import pytest

from ddpm_jax.config import build
from ddpm_jax.errors import UserError
from ddpm_jax.modes.info import info
from ddpm_jax.modes.sample import sample
from ddpm_jax.storage import shards
from tests.tiny import tiny_config
from tests.untrained import save_untrained

pytestmark = pytest.mark.usefixtures('one_layer')
STEP = 'samples/step_00000002'
DDIM = {'sampler': 'ddim', 'num_steps': 5}


@pytest.fixture(scope='module')
def trained(one_layer, tmp_path_factory):
  """A workdir with a checkpoint, of a state that never saw a step."""
  return save_untrained(tmp_path_factory.mktemp('trained'))


@pytest.fixture
def workdir(trained, tmp_path):
  """A folder of its own with the trained checkpoints."""
  (tmp_path / 'checkpoints').symlink_to(trained / 'checkpoints')
  return tmp_path


def config_of(**fields):
  return tiny_config(**{f'sample.{name}': value for name, value in fields.items()})


@functools.cache
def parameters_sha256(checkpoints):
  return build.restore_weights(tiny_config(), checkpoints.parent).sha256


def folder_of(workdir, **fields):
  """The folder of the samples of these fields; it is there."""
  identity = build.samples_identity(config_of(**fields))
  sha256 = parameters_sha256((workdir / 'checkpoints').resolve())
  key = identity.but(step=2, parameters=sha256).key()
  (folder,) = (workdir / STEP).glob(f'*_{key}')
  return folder


def draw(workdir, **fields):
  sample(config_of(**fields), workdir)
  with np.load(folder_of(workdir, **fields) / 'samples.npz') as arrays:
    return dict(arrays)


def contents(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()
  }


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
  (folder,) = (workdir / STEP).glob('ancestral-10_????????')
  assert folder == folder_of(workdir)
  assert PIL.Image.open(folder / 'grid.png').mode == 'RGB'
  names = sorted(path.name for path in folder.iterdir())
  assert names == ['grid.png', 'request.json', 'samples.npz', 'seconds.txt']


def test_image_does_not_depend_on_batch_size_or_number(workdir, trained):
  six = draw(workdir, batch_size=4)['samples']
  ten = draw(trained, batch_size=8, num_samples=10)['samples']
  assert np.abs(six.astype(int) - ten[:6]).max() <= 1  # rounding of another compiled shape


@pytest.mark.parametrize(
  ('fields', 'name'),
  [
    ({'seed': 1}, 'ancestral-10'),
    (DDIM, 'ddim-5-trailing'),
  ],
)
def test_other_samples_lie_beside_the_earlier_which_stay_as_they_are(fields, name, workdir, capsys):
  first = draw(workdir)['samples']
  folder = folder_of(workdir)
  before = contents(folder)
  second = draw(workdir, **fields)['samples']
  assert not np.array_equal(first, second)
  assert contents(folder) == before
  other = folder_of(workdir, **fields)
  assert other.name.rpartition('_')[0] == name
  folders = [path for path in (workdir / STEP).iterdir() if path.is_dir()]
  assert sorted(folders) == sorted([folder, other])
  assert 'another request' not in capsys.readouterr().out


def test_samplers_that_take_turns_draw_nothing_twice(workdir, written_ids):
  samplers = [DDIM, {'sampler': 'dpmpp_2m', 'num_steps': 5}]
  drawn = [draw(workdir, **fields)['samples'] for fields in samplers]
  assert written_ids == [*range(6), *range(6)]
  written_ids.clear()
  before = [contents(folder_of(workdir, **fields)) for fields in samplers]
  for images, fields in zip(drawn, samplers, strict=True):
    np.testing.assert_array_equal(draw(workdir, **fields)['samples'], images)
  assert written_ids == []
  assert [contents(folder_of(workdir, **fields)) for fields in samplers] == before
  more = draw(workdir, num_samples=8, **DDIM)['samples']
  assert written_ids == [6, 7]
  np.testing.assert_array_equal(more[:6], drawn[0])
  assert contents(folder_of(workdir, **samplers[1])) == before[1]


@pytest.mark.parametrize(
  ('first', 'second'),
  [
    ({'num_steps': 10}, {}),  # all of them, which is what none says
    ({'num_steps': 10, 'spacing': 'quad'}, {}),  # there is one way to take them all
    ({'sampler': 'ddim', 'eta': 0.0}, {'sampler': 'ddim'}),
    ({'batch_size': 4}, {}),
  ],
)
def test_the_same_samples_in_other_words_have_one_identity(first, second):
  first, second = (build.samples_identity(config_of(**fields)) for fields in (first, second))
  assert first == second


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
  draw(workdir, **DDIM)
  request = json.loads((folder_of(workdir, **DDIM) / 'request.json').read_text())
  assert list(request) == [
    'step', 'parameters', 'model', 'diffusion', 'dtype', 'sampler', 'seed'
  ]  # fmt: skip
  assert (request['step'], request['seed'], request['dtype']) == (2, 0, 'float32')
  assert len(request['parameters']) == 64
  assert request['model']['ch'] == 32
  assert 'remat' not in request['model']
  assert request['diffusion']['num_timesteps'] == 10
  assert request['sampler'] == {
    'sampler': 'ddim', 'clip': 'static', 'num_steps': 5, 'spacing': 'trailing', 'eta': 0.0,
  }  # fmt: skip


def test_no_checkpoint_is_said_and_nothing_made(tmp_path):
  with pytest.raises(UserError, match='holds no checkpoint; run --mode=train first'):
    sample(tiny_config(), tmp_path / 'typo')
  assert not (tmp_path / 'typo').exists()
  (tmp_path / 'note.txt').write_text('')
  with pytest.raises(UserError, match=r'--workdir=.*note\.txt is a file; give the folder of a run'):
    sample(tiny_config(), tmp_path / 'note.txt')
  with pytest.raises(UserError, match=r'note\.txt: a file, which tells no model; give a workdir'):
    info(tiny_config(), str(tmp_path / 'note.txt'))


def test_checkpoint_of_another_model_is_refused(workdir):
  with pytest.raises(UserError, match=r'model.ch: checkpoint 32, config 64'):
    sample(tiny_config(**{'model.ch': 64}), workdir)
