"""What version 1 of this program drew and measured is taken over, and not made again.

Its requests are written here as that version wrote them.
"""

import hashlib
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from ddpm_jax.config import build
from ddpm_jax.evaluation.samples import load_samples, samples_identity, write_samples
from ddpm_jax.modes.evaluate import evaluate
from ddpm_jax.modes.sample import sample
from ddpm_jax.storage import earlier, shards
from ddpm_jax.storage.identity import Identity
from tests.tiny import tiny_config
from tests.untrained import save_untrained

STEP = 'step_00000002'
DIFFUSION = {
  'schedule': 'linear', 'num_timesteps': 10, 'beta_start': 0.0001, 'beta_end': 0.02,
  'mean_type': 'eps', 'var_type': 'fixedlarge', 'loss_type': 'mse',
}  # fmt: skip
MODEL = {
  'ch': 32, 'ch_mult': [1], 'num_res_blocks': 1, 'attn_resolutions': [], 'dropout': 0.0,
  'resamp_with_conv': True, 'dtype': 'float32',
}  # fmt: skip
DDIM_FIELDS = {'sampler': 'ddim', 'num_steps': 5}
DDIM = {
  'sampler': 'ddim', 'clip': 'static', 'num_steps': 5, 'spacing': 'trailing', 'eta': 0.0,
}  # fmt: skip
SAMPLERS = [  # fields of config.sample, and what version 1 had under 'sample'
  ({}, None),
  (DDIM_FIELDS, DDIM),
  ({'sampler': 'ddim', 'num_steps': 10}, {'sampler': 'ddim', 'clip': 'static', 'eta': 0.0}),
  (DDIM_FIELDS | {'eta': 0.5, 'spacing': 'quad'}, DDIM | {'eta': 0.5, 'spacing': 'quad'}),
  ({'sampler': 'dpmpp_2m', 'clip': 'dynamic'}, {'sampler': 'dpmpp_2m', 'clip': 'dynamic'}),
  (
    {'num_steps': 4, 'spacing': 'quad'},
    {'sampler': 'ancestral', 'clip': 'static', 'num_steps': 4, 'spacing': 'quad'},
  ),
  ({'clip': 'none'}, {'sampler': 'ancestral', 'clip': 'none'}),
]


def config_of(**fields):
  return tiny_config(**{f'sample.{name}': value for name, value in fields.items()})


def samples_request(sha256, sampler, seed=0):
  request = {'seed': seed, 'diffusion': DIFFUSION, 'model': MODEL}
  return request | ({'sample': sampler} if sampler else {}) | {'ema_sha256': sha256}


def bound_request(sha256, split, terms='all'):
  data = {
    'train': '131ac49de9b5f3fc3453074a153768baa2efbd8d3b57747a06c336999c73d5f7',
    'test': '0e8c9291601b0b917ac8da776173cef9058fd81426ee876a7023ebdea006f1e4',
  }
  return {
    'parameters_sha256': sha256,
    'data': 'digits',
    'split': split,
    'data_sha256': data[split],
    'seed': 0,
    'terms': terms,
    'diffusion': DIFFUSION,
  }


@pytest.mark.parametrize(('fields', 'sampler'), SAMPLERS)
@pytest.mark.parametrize(('rounding', 'parent'), [('uint8', 'samples'), ('float', 'samples_float')])
def test_samples_have_their_request_of_version_1(fields, sampler, rounding, parent):
  identity = build.samples_identity(config_of(**fields)).but(step=2, parameters='ab')
  if rounding == 'float':
    identity = identity.but(choices={'rounding': rounding})
  folder, request = earlier.samples(pathlib.Path('run'), identity)
  assert folder == pathlib.Path('run', parent, STEP)
  assert request == samples_request('ab', sampler)


def test_type_of_the_computation_is_part_of_requests_and_float32_in_the_bound():
  config = tiny_config(**{'model.dtype': 'bfloat16'})
  identity = build.model_identity(config).but(step=2, seed=0, parameters='ab')
  sampler = {'sampler': 'ancestral', 'num_steps': 10, 'clip': 'static'}
  _, request = earlier.samples(pathlib.Path(), identity.but(sampler=sampler))
  assert request['model'] == MODEL | {'dtype': 'bfloat16'}
  (bound,) = build.bounds(config, ['test'], None)
  _, request = earlier.bound(pathlib.Path(), bound.identity.but(parameters='ab'))
  assert request == bound_request('ab', 'test')  # version 1's bound in bfloat16 is another


@pytest.mark.parametrize(('terms', 'ending'), [(None, ''), (4, '_4_terms')])
def test_bounds_have_their_request_of_version_1(terms, ending):
  for bound in build.bounds(tiny_config(), ['train', 'test'], terms):
    identity = bound.identity.but(step=2, parameters='ab')
    folder, request = earlier.bound(pathlib.Path('run/eval', STEP), identity)
    assert folder == pathlib.Path('run/eval', STEP, f'bpd_{bound.split}{ending}')
    assert request == bound_request('ab', bound.split, terms or 'all')


@pytest.mark.parametrize(
  ('name', 'source'),
  [
    ('tfds:cifar10', 'cifar10'),
    ('tfds:cifar10:3.0.2', 'cifar10:3.0.2'),
    ('tfds:celeb_a_hq/256', 'celebahq256'),
    ('lsun_church', 'lsun_church'),
    ('folder:/data/tfds:cifar10', 'folder:/data/tfds:cifar10'),
  ],
)
def test_bounds_of_version_1_have_the_name_that_the_config_gives(name, source):
  data = {'name': name, 'split': 'test', 'sha256': 'cd'}
  identity = Identity(parameters='ab', data=data, seed=0, dtype='float32', diffusion=DIFFUSION)
  assert earlier.bound(pathlib.Path(), identity)[1]['data'] == source


# The whole way, in a workdir as version 1 left it.


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A workdir with the checkpoint 2, of a state that never saw a step."""
  return save_untrained(tmp_path_factory.mktemp('trained'))


@pytest.fixture(scope='module')
def weights(trained):
  return build.restore_weights(tiny_config(), trained)


@pytest.fixture(scope='module')
def sha256(weights):
  """As version 1 computed it."""
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(weights.params):
    digest.update(np.asarray(leaf).tobytes())
  return digest.hexdigest()


@pytest.fixture
def workdir(trained, tmp_path):
  (tmp_path / 'checkpoints').symlink_to(trained / 'checkpoints')
  return tmp_path


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


def write_job(folder, request, name, **arrays):
  """A finished job of version 1."""
  folder.mkdir(parents=True)
  (folder / 'request.json').write_text(json.dumps(request, indent=2) + '\n')
  (folder / 'seconds.txt').write_text('12.500\n')
  count = len(next(iter(arrays.values())))
  np.savez(folder / f'{name}.npz', ids=np.arange(count), **arrays)
  if name == 'samples':
    (folder / 'grid.png').write_bytes(b'a picture of version 1')


def some_samples(rounding='uint8', count=6):
  """Images that no model draws, so that one knows them again."""
  rng = np.random.default_rng(0)
  if rounding == 'float':
    return rng.uniform(-1, 1, (count, 8, 8, 1)).astype(np.float32)
  return rng.integers(0, 256, (count, 8, 8, 1), np.uint8)


def some_bound(count=10):
  rng = np.random.default_rng(1)
  vb, mse = rng.random((2, count, 10)).astype(np.float32)
  prior = rng.random(count).astype(np.float32)
  return {'total_bpd': vb.sum(axis=1) + prior, 'prior_bpd': prior, 'vb': vb, 'mse': mse}


def contents(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob('*')
    if path.is_file() and path.suffix != '.lock'
  }


@pytest.mark.parametrize('rounding', ['uint8', 'float'])
@pytest.mark.parametrize(('fields', 'sampler'), SAMPLERS[:2])
def test_samples_are_taken_over_and_completed(
  fields, sampler, rounding, workdir, weights, sha256, written
):
  parent = 'samples' if rounding == 'uint8' else 'samples_float'
  request, images = samples_request(sha256, sampler), some_samples(rounding)
  write_job(workdir / parent / STEP, request, 'samples', samples=images)
  drawer = build.drawer(config_of(**fields), 6)
  folder = write_samples(drawer, weights, workdir, 6, rounding=rounding)
  assert written == {}
  np.testing.assert_array_equal(load_samples(folder), images)
  assert folder.parent == workdir / 'samples' / STEP
  assert shards.seconds(folder) == 12.5
  names = ['grid.png', 'request.json', 'samples.npz', 'seconds.txt']
  assert sorted(contents(folder)) == names
  assert sorted(contents(workdir / 'samples')) == [f'{STEP}/{folder.name}/{x}' for x in names]
  assert not (workdir / 'samples_float' / STEP).exists()
  facts = json.loads((folder / 'request.json').read_text())
  assert facts == samples_identity(drawer, weights, rounding).facts()
  write_samples(drawer, weights, workdir, 8, rounding=rounding)
  assert list(written.values()) == [[6, 7]]
  np.testing.assert_array_equal(load_samples(folder, 6), images)


@pytest.mark.parametrize(
  ('sampler', 'seed', 'changed'),
  [(DDIM, 0, ''), (None, 1, ''), (None, 0, '0'), (None, 0, 'model')],
)
def test_samples_of_another_request_stay_where_they_are(
  sampler, seed, changed, workdir, sha256, written
):
  request = samples_request(changed if changed == '0' else sha256, sampler, seed)
  if changed == 'model':
    request |= {'model': MODEL | {'dtype': 'bfloat16'}}
  write_job(workdir / 'samples' / STEP, request, 'samples', samples=some_samples())
  before = contents(workdir / 'samples')
  sample(config_of(), workdir)
  assert written == {'ancestral': [0, 1, 2, 3, 4, 5]}
  after = contents(workdir / 'samples')
  assert before.items() <= after.items()
  (folder,) = (workdir / 'samples' / STEP).glob('ancestral-10_*')
  assert not np.array_equal(load_samples(folder), some_samples())


def test_the_earlier_of_two_samplers_is_drawn_and_the_other_taken_over(workdir, sha256, written):
  write_job(
    workdir / 'samples' / STEP, samples_request(sha256, DDIM), 'samples', samples=some_samples()
  )
  sample(config_of(), workdir)
  assert written == {'ancestral': [0, 1, 2, 3, 4, 5]}
  sample(config_of(**DDIM_FIELDS), workdir)
  assert written == {'ancestral': [0, 1, 2, 3, 4, 5]}
  (folder,) = (workdir / 'samples' / STEP).glob('ddim-5-trailing_*')
  np.testing.assert_array_equal(load_samples(folder), some_samples())


@pytest.mark.parametrize('dies_in', [0, 1, 2])
def test_samples_whose_move_is_killed_are_moved_by_the_next_run(
  dies_in, workdir, weights, sha256, written, monkeypatch
):
  request, rename, moved = samples_request(sha256, None), pathlib.Path.rename, []
  write_job(workdir / 'samples' / STEP, request, 'samples', samples=some_samples())
  drawer = build.drawer(config_of(), 6)

  def killed(path, target):
    if len(moved) == dies_in:
      raise KeyboardInterrupt
    moved.append(path.name)
    return rename(path, target)

  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, 'rename', killed)
    with pytest.raises(KeyboardInterrupt):
      write_samples(drawer, weights, workdir, 6)
  assert moved == ['grid.png', 'seconds.txt'][:dies_in]
  folder = write_samples(drawer, weights, workdir, 6)
  assert written == {}
  np.testing.assert_array_equal(load_samples(folder), some_samples())
  assert shards.seconds(folder) == 12.5
  assert len(contents(workdir / 'samples')) == 4


def test_an_evaluation_takes_over_bounds_and_unrounded_samples(
  workdir, weights, sha256, written, tmp_path
):
  step = workdir / 'eval' / STEP
  for split in ('train', 'test'):
    write_job(step / f'bpd_{split}', bound_request(sha256, split), 'bpd', **some_bound())
  write_job(step / 'bpd_test_4_terms', bound_request(sha256, 'test', 4), 'bpd', **some_bound())
  request = samples_request(sha256, None)
  images = some_samples('float', 12)
  write_job(workdir / 'samples_float' / STEP, request, 'samples', samples=images)
  (step / 'report.json').write_text('the report of version 1')
  fields = {'metrics': ('bpd', 'fid'), 'rounding': 'float', 'cache_dir': str(tmp_path / 'cache')}
  evaluate(tiny_config(**{f'eval.{name}': value for name, value in fields.items()}), workdir)
  # The features of the reference, in the cache; and of the samples.
  assert written == {'digits': list(range(1497)), 'features': list(range(12))}
  (file,) = step.glob('report-bpd-fid-ancestral-10_*/report.json')
  figures = json.loads(file.read_text())['figures']
  total = some_bound()['total_bpd'].astype(np.float64)
  assert [figure['value'] for figure in figures[:2]] == pytest.approx([total.mean()] * 2)
  assert [figure['secs'] for figure in figures[:2]] == [12.5, 12.5]
  assert figures[2]['sampling_secs'] == 12.5
  assert (step / 'report.json').read_text() == 'the report of version 1'
  names = {path.name for path in step.iterdir() if not path.name.startswith('.')}
  kinds = {name.partition('_')[0] for name in names}
  assert kinds == {
    'bpd-train', 'bpd-test', 'bpd', 'features-ancestral-10-float', 'report-bpd-fid-ancestral-10',
    'report.json',
  }  # fmt: skip
  assert 'bpd_test_4_terms' in names  # it was not asked for
  evaluate(
    tiny_config(**{'eval.metrics': ('bpd',), 'eval.bpd_splits': ('test',), 'eval.bpd_terms': 4}),
    workdir,
  )
  assert len(written) == 2
  assert written['features'] == list(range(12))
  (file,) = step.glob('report-bpd_*/report.json')
  assert json.loads(file.read_text())['figures'][0]['value'] == pytest.approx(total.mean())
  assert not (step / 'bpd_test_4_terms').exists()


def test_a_bound_of_another_request_stays_where_it_is(workdir, weights, sha256, written):
  step = workdir / 'eval' / STEP
  request = bound_request(sha256, 'test') | {'seed': 1}
  write_job(step / 'bpd_test', request, 'bpd', **some_bound())
  before = contents(step)
  (bound,) = build.bounds(tiny_config(), ['test'], None)
  arrays = bound.collect(step, weights)
  assert written == {'bpd': list(range(10))}
  assert not np.array_equal(arrays['vb'], some_bound()['vb'])
  assert before.items() <= contents(step).items()
