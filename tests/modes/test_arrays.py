"""Runs on signals and volumes, of whole numbers and of others: the whole path."""

import csv
import json
import shutil

import jax
import numpy as np
import PIL.Image
import pytest

import ddpm_jax
from ddpm_jax.config import build
from ddpm_jax.config.origins import with_data
from ddpm_jax.errors import UserError
from ddpm_jax.modes.compress import compress
from ddpm_jax.modes.decompress import decompress
from ddpm_jax.modes.edit import edit
from ddpm_jax.modes.evaluate import evaluate
from ddpm_jax.modes.export_model import export_model
from ddpm_jax.modes.reproduce import reproduce
from ddpm_jax.modes.sample import sample
from ddpm_jax.modes.train import train
from ddpm_jax.storage import shards
from ddpm_jax.storage.checkpoints import Checkpointer
from tests.tiny import tiny_config

pytestmark = pytest.mark.usefixtures('one_layer')
RNG = np.random.default_rng(0)
WAVES = np.sin(np.arange(8)[:, None] * [0.7, 1.1] + RNG.uniform(0, 6, (60, 1, 2)))
FIGURES = (
  *('bound', 'compression', 'progressive', 'shared', 'interpolation', 'neighbours', 'comparison'),
)
KINDS = {  # name: (examples, data.levels)
  'signals': (np.rint(2000 * WAVES).astype(np.int16), 4096),
  'floats': ((5 * WAVES + 3).astype(np.float32), None),
  'volumes': (RNG.integers(0, 256, (60, 4, 2, 4, 1), np.uint8), None),
}


def each_kind(*fast):
  """The kinds of data; all but some are slow."""
  slow = pytest.mark.slow
  kinds = [kind if kind in fast else pytest.param(kind, marks=slow) for kind in KINDS]
  return pytest.mark.parametrize('kind', kinds)


def write(folder, kind, values=None):
  """A folder of the two splits of the examples."""
  values = KINDS[kind][0] if values is None else values
  folder.mkdir(parents=True, exist_ok=True)
  np.save(folder / 'train.npy', values[:40])
  np.save(folder / 'test.npy', values[40:])
  return folder


def config_of(folder, kind, **fields):
  values, levels = KINDS[kind]
  return tiny_config(
    **{
      'data.source': f'array:{folder}',
      'data.image_size': values.shape[1:-1],
      'data.channels': values.shape[-1],
      'data.levels': levels,
      'model.ch': 8,
      'model.num_groups': 4,
      'train.num_steps': 4,
      'train.checkpoint_every_steps': 4,
      'eval.metrics': ('bpd',),
      'eval.network': 'random',
      'reproduce.num_samples': 8,
      **fields,
    }
  )


class Trained(dict):
  """{kind: (folder of the data, workdir)}, each trained when it is asked for."""

  def __init__(self, parent):
    self._parent = parent

  def __missing__(self, kind):
    data, workdir = write(self._parent / kind / 'data', kind), self._parent / kind / 'run'
    train(config_of(data, kind), workdir)
    self[kind] = data, workdir
    return self[kind]


@pytest.fixture(scope='module')
def trained(one_layer, tmp_path_factory):
  return Trained(tmp_path_factory.mktemp('arrays'))


class Copies(dict):
  """{kind: (folder of the data, workdir)}, each workdir a copy for the results of one test."""

  def __init__(self, trained, parent):
    self._trained, self._parent = trained, parent

  def __missing__(self, kind):
    data, workdir = self._trained[kind]
    self[kind] = data, shutil.copytree(workdir, self._parent / kind)
    return self[kind]


@pytest.fixture
def runs(trained, tmp_path_factory):
  return Copies(trained, tmp_path_factory.mktemp('copies'))


def figures_of(workdir):
  (report,) = workdir.glob('eval/**/report.json')
  return {figure['name']: figure for figure in json.loads(report.read_text())['figures']}


def assert_same_model(one, other):
  """Whether two runs have the same weights, to the bit."""
  models = [ddpm_jax.load(run) for run in (one, other)]
  assert models[0].encoding == models[1].encoding
  jax.tree.map(np.testing.assert_array_equal, *(model.params for model in models))


@each_kind('signals')
def test_samples_are_as_the_data_are_stored(runs, kind):
  data, workdir = runs[kind]
  values, levels = KINDS[kind]
  sample(config_of(data, kind, **{'sample.files': 'png', 'sample.animate': True}), workdir)
  (file,) = workdir.glob('samples/*/*/samples.npz')
  stored = np.load(file)['samples']
  assert (stored.shape, stored.dtype) == ((6, *values.shape[1:]), values.dtype)
  if levels:
    assert np.abs(stored).max() <= levels // 2
  assert min(PIL.Image.open(file.with_name('grid.png')).size) > 64
  files = sorted(workdir.glob('samples/*/*/pictures/*.png'))
  assert len(files) == 6
  model = ddpm_jax.load(workdir)
  samples = model.sample(6, batch_size=8)
  np.testing.assert_array_equal(samples, stored)
  assert model.picture(samples).size[0] > 64


@each_kind('signals')
def test_samples_that_were_interrupted_go_on_bit_for_bit(runs, kind, tmp_path, monkeypatch):
  data, workdir = runs[kind]
  for name in ('stopped', 'whole'):
    shutil.copytree(workdir, tmp_path / name)
  config = config_of(data, kind, **{'sample.num_samples': 12})
  save, written_ids = shards.save, []

  def save_once(*args):
    save(*args)
    raise KeyboardInterrupt

  def save_noting(file, ids, arrays):
    written_ids.extend(ids.tolist())
    save(file, ids, arrays)

  monkeypatch.setattr(shards, 'save', save_once)
  with pytest.raises(KeyboardInterrupt):
    sample(config, tmp_path / 'stopped')
  (shard,) = tmp_path.glob('stopped/samples/*/*/shards/*.npz')
  with np.load(shard) as arrays:
    assert arrays['samples'].dtype == KINDS[kind][0].dtype
  monkeypatch.setattr(shards, 'save', save_noting)
  sample(config, tmp_path / 'stopped')
  assert written_ids == [8, 9, 10, 11]
  monkeypatch.undo()
  sample(config, tmp_path / 'whole')
  (resumed,) = tmp_path.glob('stopped/samples/*/*/samples.npz')
  (undisturbed,) = tmp_path.glob('whole/samples/*/*/samples.npz')
  assert resumed.read_bytes() == undisturbed.read_bytes()


@each_kind('floats', 'signals')
def test_the_bound_is_of_the_values_as_they_are_stored(runs, kind):
  data, workdir = runs[kind]
  evaluate(config_of(data, kind), workdir)
  figures = figures_of(workdir)
  unit = 'nats/dim' if kind == 'floats' else 'bits/dim'
  assert set(figures) == {f'{unit} (train)', f'{unit} (test)'}
  model = ddpm_jax.load(workdir)
  bound = model.bits_per_dim(KINDS[kind][0][40:50])
  value = bound['total_bpd'].mean()
  if kind == 'floats':
    width = np.ptp(KINDS[kind][0][:40], axis=(0, 1)) / 2
    value = value * np.log(2) + np.log(width).mean()
  assert figures[f'{unit} (test)']['value'] == pytest.approx(value, rel=1e-5)
  parts = sum(figures[f'{unit} (test)'][name] for name in ('L_T', 'L_1..T-1', 'L_0'))
  assert parts == pytest.approx(value, rel=1e-5)


def test_another_unit_changes_the_density_by_its_logarithm_and_nothing_else(runs, tmp_path):
  data, workdir = runs['floats']
  other = write(tmp_path / 'data', 'floats', 8 * KINDS['floats'][0] - 32)
  train(config_of(other, 'floats'), tmp_path / 'run')
  for ours, theirs in zip(
    map(np.asarray, ddpm_jax.load(workdir).params['Conv_0'].values()),
    map(np.asarray, ddpm_jax.load(tmp_path / 'run').params['Conv_0'].values()),
    strict=True,
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
  evaluate(config_of(other, 'floats'), tmp_path / 'run')
  evaluate(config_of(data, 'floats'), workdir)
  ours, theirs = figures_of(workdir), figures_of(tmp_path / 'run')
  for name, figure in ours.items():
    assert theirs[name]['value'] == pytest.approx(figure['value'] + np.log(8), abs=1e-3)


def test_levels_from_another_first_one_are_the_same_run(runs, tmp_path):
  _, workdir = runs['signals']
  other = write(tmp_path / 'data', 'signals', (KINDS['signals'][0] + 2048).astype(np.uint16))
  train(config_of(other, 'signals'), tmp_path / 'run')
  samples = [ddpm_jax.load(run).sample(3) for run in (workdir, tmp_path / 'run')]
  assert [x.dtype for x in samples] == [np.int16, np.uint16]
  np.testing.assert_array_equal(samples[0].astype(int) + 2048, samples[1])


@each_kind('signals')
def test_a_run_goes_on_bit_for_bit(runs, kind, tmp_path):
  data, workdir = runs[kind]
  for num_steps in (2, 4):
    fields = {'train.num_steps': num_steps, 'train.checkpoint_every_steps': 2}
    train(config_of(data, kind, **fields), tmp_path / 'run')
  states = []
  for run in (workdir, tmp_path / 'run'):
    losses = [json.loads(x)['loss'] for x in (run / 'metrics.jsonl').read_text().splitlines()]
    states.append((losses, ddpm_jax.load(run).sample(2).tobytes()))
  assert states[0] == states[1]


@each_kind()
def test_every_figure_is_drawn(runs, kind):
  data, workdir = runs[kind]
  reproduce(config_of(data, kind, **{'reproduce.what': FIGURES}), workdir)
  pictures = {path.name for path in workdir.glob('reproduce/**/*.png')}
  assert pictures >= {
    'bound.png', 'compression.png', 'progressive.png', 'shared.png',
    'interpolation_figure8.png', 'neighbours_pixels.png', 'neighbours_features.png',
    'progressive_metrics.png', 'comparison.png', 'structure.png', 'examples.png',
  }  # fmt: skip
  (file,) = workdir.glob('reproduce/**/interpolation.npz')
  with np.load(file) as arrays:
    rows, ids = arrays['figure_8'], arrays['ids']
  assert rows.dtype == KINDS[kind][0].dtype
  test_split = KINDS[kind][0][40:]
  np.testing.assert_allclose(rows[:, 0], test_split[ids[0]], rtol=1e-5)
  np.testing.assert_allclose(rows[:, -1], test_split[ids[1]], rtol=1e-5)


@each_kind('signals')
def test_samples_stand_between_real_data_and_simple_models(runs, kind):
  """Columns of real examples are near to the training examples; the model has learned nothing."""
  data, workdir = runs[kind]
  reproduce(config_of(data, kind, **{'reproduce.what': ('comparison',)}), workdir)
  (file,) = workdir.glob('reproduce/*/comparison*/comparison.csv')
  with open(file, newline='') as stream:
    rows = {row.pop('figure'): row for row in csv.DictReader(stream)}
  evaluate(config_of(data, kind, **{'eval.bpd_splits': ('test',)}), workdir)
  (bound,) = figures_of(workdir).values()
  (name,) = (name for name in rows if '/dim of' in name)
  assert name.startswith('nats/dim of 10 test' if kind == 'floats' else 'bits/dim of 10 test')
  assert float(rows[name]['samples']) == pytest.approx(bound['value'])
  terms = sum(float(rows[f'of which {term}']['samples']) for term in ('L_T', 'L_1..T-1', 'L_0'))
  assert terms == pytest.approx(bound['value'])
  if kind != 'volumes':  # of independent values; a sine knows its next
    assert float(rows[name]['Gaussian']) < float(rows[name]['marginals'])
  for figure in ('Frechet distance', 'marginals apart, deviations', 'autocorrelations apart'):
    values = {column: float(x) for column, x in rows[figure].items() if column != 'better'}
    assert max(values['test'], values['half of training']) < values['samples']
  assert rows['RMS distance to the nearest training example, median']['half of training'] == ''


@each_kind('signals')
def test_distances_are_in_the_features_of_random_convolutions(runs, kind):
  data, workdir = runs[kind]
  fields = {'eval.metrics': ('fid', 'kid', 'pr'), 'eval.num_samples': 8}
  evaluate(config_of(data, kind, **fields), workdir)
  (file,) = workdir.glob('eval/**/report.json')
  report = json.loads(file.read_text())
  assert report['about']['network_name'] == 'random convolutions'
  assert {figure['metric'] for figure in report['figures']} == {'fid', 'kid', 'precision', 'recall'}
  assert all('random convolutions' in figure['name'] for figure in report['figures'])
  assert any('compare with no published' in note for note in report['notes'])


@each_kind('signals')
def test_the_model_takes_and_gives_the_data_as_they_are_stored(runs, kind):
  values = KINDS[kind][0]
  model = ddpm_jax.load(runs[kind][1])
  assert model.shape == values.shape[1:]
  x_T = model.invert(values[:3], num_steps=5)
  back = model.decode(x_T, num_steps=5)
  assert (back.shape, back.dtype) == (values[:3].shape, values.dtype)
  between = model.interpolate(values[:2], values[2:4], num=3)
  assert (between.shape[2:], between.dtype) == (values.shape[1:], values.dtype)
  unmixed = model.interpolate(values[:2], values[2:4], num=2, num_steps=0)
  np.testing.assert_allclose(unmixed[:, 0], values[:2], rtol=1e-5)
  np.testing.assert_allclose(unmixed[:, 1], values[2:4], rtol=1e-5)
  with pytest.raises(UserError, match=r'examples are .*; this model takes '):
    model.bits_per_dim(values[:2].astype(str))
  if kind == 'signals':
    with pytest.raises(UserError, match=r'example 1 has values from .* holds -2048 to 2047'):
      model.bits_per_dim(np.stack([values[0], values[0] + 2048]))
  if kind != 'volumes':
    with pytest.raises(UserError, match='edits take values of 256 levels in uint8, and this'):
      model.sdedit(values[:1])


@each_kind('signals')
def test_what_is_for_pictures_alone_says_so(runs, kind, tmp_path):
  data, workdir = runs[kind]
  for mode, fields in ((edit, {}), (export_model, {'export.path': str(tmp_path / 'out')})):
    with pytest.raises(UserError, match='is for pictures of 256 levels, and these data are'):
      mode(config_of(data, kind, **fields), workdir)
  for fields, message in (
    ({'eval.network': 'inception'}, r'give --config\.eval\.network=random'),
    ({'eval.network': 'efficientnet_lite0'}, 'of pictures of 256 levels, in grey or colour'),
    ({'eval.network': 'watch', 'data.channels': 2}, 'watch takes signals of 6 channels'),
    ({'eval.metrics': ('is',)}, 'no classes, which the metric is goes by'),
    ({'eval.rounding': 'float'}, 'eval.rounding=float is for pictures of 256 levels'),
    ({'eval.reference': 'statistics.npz'}, r'eval\.reference is of pictures of 256 levels'),
  ):
    fields = {'eval.metrics': ('bpd', 'kid'), **fields}
    with pytest.raises(UserError, match=message):
      evaluate(config_of(data, kind, **fields), workdir)


@each_kind('signals', 'floats')
def test_compressed_examples_come_back_as_they_are_stored(runs, kind, tmp_path):
  data, workdir = runs[kind]
  given = KINDS[kind][0][40:44]
  np.save(tmp_path / 'own.npy', given)
  target = 'rmse:0.2' if kind == 'floats' else 'lossless'
  fields = {'compress.images': str(tmp_path / 'own.npy'), 'compress.target': target}
  compress(config_of(data, kind, **fields), workdir)
  (folder,) = workdir.glob('compressed/*/*')
  assert len([*folder.glob('own-0000?.ddpc')]) == 4
  decompress(config_of(data, kind, **{'decompress.files': str(folder)}), workdir)
  (file,) = workdir.glob('decompressed/*/*/examples.npz')
  with np.load(file) as arrays:
    found, names = arrays['samples'], arrays['names'].tolist()
  assert names == [f'own-0000{i}' for i in range(4)]
  assert found.dtype == given.dtype
  if kind == 'floats':
    half = np.ptp(KINDS[kind][0][:40], axis=(0, 1)) / 2
    assert np.sqrt(np.mean(np.square((found - given) / half))) < 0.2
  else:
    np.testing.assert_array_equal(found, given)
  assert min(PIL.Image.open(file.with_name('sheet.png')).size) > 64
  for name, content, message in (
    ('own.npy', given[:, 1:], r'own\.npy has .*; this model takes'),
    ('own.txt', None, 'is no .npy or .npz file'),
    ('none.npy', None, 'does not exist; give a .npy or .npz file'),
  ):
    path = tmp_path / 'bad' / name
    path.parent.mkdir(exist_ok=True)
    if content is not None:
      np.save(path, content)
    elif name == 'own.txt':
      path.write_text('1')
    with pytest.raises(UserError, match=message):
      compress(config_of(data, kind, **{'compress.images': str(path)}), workdir)


def test_a_test_split_beyond_the_levels_is_named(runs, tmp_path):
  _, workdir = runs['signals']
  other = write(tmp_path / 'data', 'signals')
  np.save(other / 'test.npy', KINDS['signals'][0][40:] * 2)
  with pytest.raises(UserError, match=r'\(test\): example [0-9]+ has values .* data.levels=4096'):
    evaluate(config_of(other, 'signals', **{'data.source': f'array:{other}'}), workdir)


def test_an_array_that_changed_since_the_run_began_is_said_or_refused(runs, tmp_path, capsys):
  data, workdir = runs['signals']
  values = KINDS['signals'][0]
  other = write(tmp_path / 'data', 'signals')
  fields = {'data.source': f'array:{data}', 'train.num_steps': 5}
  config = config_of(data, 'signals', **fields)

  def go_on(changed):
    np.save(other / 'train.npy', changed)
    shutil.copy(other / 'train.npy', data / 'train.npy')
    train(config, workdir)

  try:
    for changed, message in (
      (values[:40] * 2, r'example [0-9]+ has values from .* data\.levels=4096 holds -2048 to 2047'),
      (values[:40].astype(np.float32), 'has float32, and data.levels=4096 holds whole numbers: gi'),
      (values[:40, :6], r'are int16\[6, 2\]; data.image_size=\(8,\) and data.channels=2 say'),
    ):
      with pytest.raises(UserError, match=message) as error:
        go_on(changed)
      assert '\n' not in str(error.value)
      assert 'compiling' not in capsys.readouterr().out
    go_on(values[1:40])
    assert 'not those that this run has had: 40 then, 39 now; training' in capsys.readouterr().out
  finally:
    write(data, 'signals')


def test_recordings_with_a_value_that_is_not_finite_are_refused_or_passed_over(tmp_path, capfd):
  soundfile = pytest.importorskip('soundfile')
  for i, values in enumerate(0.3 * WAVES):
    values[2, 1] = np.nan if i == 30 else values[2, 1]
    soundfile.write(tmp_path / f'{i:02d}.wav', values, 8000, subtype='FLOAT')
  fields = {'data.source': f'signals:{tmp_path}', 'train.num_steps': 1}
  with pytest.raises(UserError, match=r'30\.wav, samples 0 to 7: a value is not finite\. '):
    train(config_of(tmp_path, 'floats', **fields), tmp_path / 'run')
  assert not (tmp_path / 'run/config.json').exists()
  fields['data.on_damage'] = 'skip'
  train(config_of(tmp_path, 'floats', **fields), tmp_path / 'run')
  err = capfd.readouterr().err
  assert 'damaged picture 1 of 60, another takes its place: ' in err
  assert 'damaged picture 2' not in err
  assert (tmp_path / 'run/checkpoints/1').exists()


@pytest.mark.slow
def test_moving_pictures_train_as_the_same_volumes_do(runs, tmp_path):
  _, workdir = runs['volumes']
  for i, volume in enumerate(KINDS['volumes'][0][:40, ..., 0]):
    first, *others = map(PIL.Image.fromarray, volume)
    first.save(tmp_path / f'{i:02d}.png', save_all=True, append_images=others)
  config = config_of(tmp_path, 'volumes', **{'data.source': f'frames:{tmp_path}'})
  train(config, tmp_path / 'run')
  assert_same_model(workdir, tmp_path / 'run')
  assert json.loads((tmp_path / 'run/config.json').read_text())['data']['dtype'] is None


def test_tensors_of_tfds_train_as_the_same_array_does(tmp_path):
  tfds = pytest.importorskip('tensorflow_datasets')

  class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    name = 'tiny'
    VERSION = tfds.core.Version('1.0.0')
    pkg_dir_path = None

    def _info(self):
      features = {'x': tfds.features.Tensor(shape=(8, 2), dtype=np.int16)}
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      yield from ((i, {'x': x}) for i, x in enumerate(KINDS['signals'][0][:40]))

  Tiny(data_dir=tmp_path, file_format='array_record').download_and_prepare()
  fields = {'data.source': 'tfds:tiny', 'data.dir': str(tmp_path)}
  config = config_of(tmp_path, 'signals', **fields)
  in_their_order = build.source(with_data(config)).source.read(np.arange(40))
  data = write(tmp_path / 'data', 'signals', in_their_order)
  train(config, tmp_path / 'run')
  train(config_of(data, 'signals'), tmp_path / 'other')
  assert_same_model(tmp_path / 'run', tmp_path / 'other')


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'data.random_flip': True}, 'data.random_flip=True would turn signals back to front'),
    ({'data.levels': None}, 'data.levels is not given, and .* int16 from -2000 to 2000'),
    ({'data.levels': 2**17}, 'data.levels is 131072; it must be at most 65536'),
    ({'data.levels': 'many'}, "data.levels is 'many'; it must be an integer, continuous or None"),
    ({'data.image_size': (7,)}, r'image_size is 7; .* it must be a multiple of 2; .* \(8,\)'),
    ({'data.shift': (1.0,)}, 'data.shift is given, which goes with data.levels=continuous'),
    ({'data.dtype': 'int5'}, "data.dtype is 'int5'; it must be one of "),
  ],
)  # fmt: skip
def test_fields_that_do_not_go_together_are_named_and_leave_nothing(fields, message, tmp_path):
  data = write(tmp_path / 'data', 'signals')
  config = config_of(data, 'signals', **{'model.ch_mult': (1, 2)})
  with config.ignore_type():
    config.update_from_flattened_dict(fields)
  with pytest.raises(UserError, match=message) as error:
    train(config, tmp_path / 'run')
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'run/config.json').exists()


def test_an_array_from_python_trains_as_its_file_does(runs, tmp_path):
  data, workdir = runs['signals']
  config = config_of(data, 'signals')
  model = ddpm_jax.train(tmp_path / 'run', KINDS['signals'][0][:40], config=config, progress=False)
  np.testing.assert_array_equal(model.sample(3), ddpm_jax.load(workdir).sample(3))


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['floats', 'volumes'])
def test_an_array_from_python_needs_no_config(kind, tmp_path):
  values = KINDS[kind][0]
  model = ddpm_jax.train(tmp_path / 'run', values, num_steps=1, progress=False)
  samples = model.sample(2)
  assert (samples.shape[1:], samples.dtype) == (values.shape[1:], values.dtype)


@pytest.mark.usefixtures('unet')
def test_the_network_itself_takes_signals_and_labels(tmp_path):
  values = KINDS['signals'][0]
  config = config_of(tmp_path, 'signals', **{'train.num_steps': 1})
  model = ddpm_jax.train(
    tmp_path / 'run', values, labels=np.arange(len(values)) % 2, config=config, progress=False
  )
  assert model.params['class_embedding']['embedding'].shape == (3, 32)
  samples = model.sample(2, labels=[0, 1])
  assert (samples.shape, samples.dtype) == ((2, 8, 2), np.int16)
  assert (samples[0] != samples[1]).any()


def test_a_checkpoint_belongs_to_the_encoding_of_its_values(runs):
  _, workdir = runs['floats']
  config = json.loads((workdir / 'config.json').read_text())
  assert config['data']['dtype'] == 'float32'
  assert len(config['data']['shift']) == len(config['data']['scale']) == 2
  assert config['diffusion']['schedule'] == 'logsnr'
  config['data']['scale'][0] *= 2
  with Checkpointer(workdir / 'checkpoints', config, read_only=True) as checkpointer:
    params = ddpm_jax.load(workdir).params
    with pytest.raises(UserError, match=r'is of another model: data\.scale'):
      checkpointer.restore_ema(params)
