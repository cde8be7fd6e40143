"""A model with labels, the whole way: trained, gone on with, sampled, guided, measured."""

import json

import jax
import numpy as np
import PIL.Image
import pytest

import ddpm_jax
from ddpm_jax import data, trainer
from ddpm_jax.config import build, checks, classes
from ddpm_jax.config.origins import config_of, with_data
from ddpm_jax.data.digits import load_digits
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.samples import by_class
from ddpm_jax.modes.edit import edit
from ddpm_jax.modes.evaluate import evaluate
from ddpm_jax.modes.sample import sample
from ddpm_jax.storage.workdir import config_dict
from tests.tiny import tiny_config

pytestmark = pytest.mark.usefixtures('one_layer')
NAMES = tuple('0123456789')


def labelled_config(**overrides):
  """The tiny run with labels."""
  return tiny_config(**{'model.num_classes': 'data'} | overrides)


@pytest.fixture(scope='module')
def workdir(one_layer, tmp_path_factory):
  """A run of six steps."""
  path = tmp_path_factory.mktemp('labelled')
  trainer.run(labelled_config(), path)
  return path


@pytest.fixture(scope='module')
def model(workdir):
  return ddpm_jax.load(workdir)


def test_the_run_notes_its_classes_and_counts_them(workdir, model):
  assert config_of(str(workdir)).model.num_classes == 10
  assert json.loads((workdir / 'classes.json').read_text()) == list(NAMES)
  assert model.class_names == NAMES
  assert model.params['class_embedding']['embedding'].shape == (11, 1)
  assert with_data(labelled_config(), str(workdir)).model.num_classes == 10


def test_a_run_that_was_stopped_goes_on_to_the_same_end(workdir, model, tmp_path):
  for num_steps in (4, 6):
    trainer.run(labelled_config(**{'train.num_steps': num_steps}), tmp_path)
  jax.tree.map(np.testing.assert_array_equal, ddpm_jax.load(tmp_path).params, model.params)


def test_each_sample_has_the_label_that_is_asked_for(workdir, model):
  config = config_of(str(workdir))
  config.sample.labels = '3,7*2'
  sample(config, str(workdir))
  config.sample.labels = None
  sample(config, str(workdir))
  by_labels = {}
  for file in workdir.glob('samples/step_00000006/*/samples.npz'):
    with np.load(file) as arrays:
      by_labels[tuple(arrays['labels'])] = arrays['samples']
    assert (file.parent / 'grid.png').exists()
  assert set(by_labels) == {(3, 7, 7), (0, 1, 2, 3, 4, 5)}  # counts are all; otherwise sample.num_
  np.testing.assert_array_equal(model.sample(3, labels=[3, 7, 7]), by_labels[3, 7, 7])
  np.testing.assert_array_equal(model.sample(6), by_labels[0, 1, 2, 3, 4, 5])
  np.testing.assert_array_equal(model.sample(3, labels='3,7*2'), by_labels[3, 7, 7])
  ones, threes = model.sample(3, labels='1'), model.sample(3, labels=3)
  np.testing.assert_array_equal(threes[0], by_labels[3, 7, 7][0])
  assert (ones != threes).any()


def test_guidance_leads_and_a_scale_of_one_does_not(model, workdir):
  plain = model.sample(4, labels=5)
  np.testing.assert_array_equal(model.sample(4, labels=5, guidance=1.0), plain)
  led = model.sample(4, labels=5, guidance=3.0)
  assert (led != plain).any()
  nowhere = model.sample(4, labels=5, guidance=3.0, guidance_interval=(1e3, 1e4))
  np.testing.assert_allclose(nowhere.astype(int), plain, atol=1)  # of another program
  assert (model.sample(4, labels=5, guidance=3.0, guide=f'{workdir}@2') != led).any()
  by_itself = model.sample(4, labels=5, guidance=3.0, guide=str(workdir))
  np.testing.assert_allclose(by_itself.astype(int), plain, atol=1)  # u + 3 (u - u)


def test_guided_samples_have_an_identity_of_their_own():
  config = labelled_config(**{'model.num_classes': 10})
  plain = build.drawer(config, 4).identity
  assert plain.sampler['labels'] == [[i, 1] for i in range(10)]
  config.sample.guidance = 1.0
  assert build.drawer(config, 4).identity == plain
  config.sample.update(guidance=2.0, guidance_interval=(0.3, 5.0))
  led = build.drawer(config, 4)
  assert led.identity.key() != plain.key()
  assert 'each label in turn, guidance 2 at noise levels 0.3 to 5' in led.words


def test_a_model_without_labels_has_the_identity_that_it_had():
  drawer = build.drawer(tiny_config(), 4)
  assert 'labels' not in drawer.identity.facts()['sampler']
  assert 'num_classes' not in drawer.identity.facts()['model']
  assert drawer.labels(np.arange(4)) is None


def test_bits_per_dim_given_the_label(workdir, model):
  images, labels = (array[:10] for array in load_digits('test'))
  given = model.bits_per_dim(images, labels=labels)['total_bpd']
  without = model.bits_per_dim(images)['total_bpd']
  assert (given != without).all()
  config = config_of(str(workdir))
  config.eval.update(metrics=('bpd',), bpd_splits=('test',))
  for choice, expected in ((None, given), ('none', without)):
    config.eval.bpd_labels = choice
    evaluate(config, str(workdir))
    report = max(workdir.glob('eval/*/report-*/report.json'), key=lambda file: file.stat().st_mtime)
    figure = json.loads(report.read_text())['figures'][0]
    assert figure['value'] == pytest.approx(expected.mean(), rel=1e-5)
    assert ('given the label' in figure['name']) == (choice is None)


def test_a_denoiser_takes_the_label_of_each_example_or_one_for_all(model):
  x, t = np.ones((2, 8, 8, 1), np.float32), np.array([3, 7])
  mixed, same = model.denoiser([4, 'none'])(x, t).x_0, model.denoiser('4')(x, t).x_0
  np.testing.assert_allclose(mixed[0], same[0], rtol=1e-5)
  np.testing.assert_allclose(mixed[1], model.denoiser()(x, t).x_0[1], rtol=1e-5)
  assert not np.allclose(mixed[1], same[1])


def test_pictures_are_edited_given_labels_and_guidance(workdir, model, tmp_path):
  images, mask = load_digits('test')[0][:2].reshape(2, 8, 8, 1), np.arange(64).reshape(8, 8) < 32
  ddnm = {'num': 2, 'method': 'ddnm'}
  plain = model.inpaint(images, mask, **ddnm)
  given = model.inpaint(images, mask, labels=[3, 7], **ddnm)
  np.testing.assert_array_equal(model.inpaint(images, mask, labels='none', **ddnm), plain)
  in_turn = model.inpaint(images, mask, labels='3,7', **ddnm)
  np.testing.assert_array_equal(in_turn[0, 0], given[0, 0])
  np.testing.assert_array_equal(in_turn[1, 1], given[1, 1])
  assert (given[:, :, ~mask] != plain[:, :, ~mask]).any()
  led = model.inpaint(images, mask, labels='3,7', guidance=3.0, **ddnm)
  assert (led[:, :, ~mask] != in_turn[:, :, ~mask]).any()
  with pytest.raises(UserError, match=r'guidance is 3\.0, but no labels are given'):
    model.inpaint(images, mask, guidance=3.0)
  with pytest.raises(UserError, match='there are 3 labels; there must be 2, or one for all'):
    model.inpaint(images, mask, labels=[1, 2, 3])
  with pytest.raises(UserError, match='an edit takes no counts'):
    model.inpaint(images, mask, labels='3*2')
  for i, image in enumerate(images):
    PIL.Image.fromarray(np.dstack([image, np.uint8(255 * mask)])).save(tmp_path / f'{i}.png')
  config = config_of(str(workdir))
  config.edit.update(images=str(tmp_path), num=2, method='ddnm')
  config.sample.update(labels='3,7', guidance=3.0)
  edit(config, str(workdir))
  (file,) = workdir.glob('edits/*/*/edited.npz')
  with np.load(file) as arrays:
    rows = arrays['samples'].reshape(2, 2, 8, 8, 1).swapaxes(0, 1)
  np.testing.assert_array_equal(rows, led)


@pytest.mark.parametrize(
  ('call', 'line'),
  [
    (lambda m: m.sample(2, labels='12'), 'no class 12; this model has 0, 1, 2, .*9, and each of'),
    (lambda m: m.sample(2, labels=[1, 2, 3]), 'there are 3 labels; there must be 2, or one for'),
    (lambda m: m.sample(2, labels='3*0'), r'sample\.labels has 3\*0; a count must be at least 1'),
    (lambda m: m.sample(2, guide='digits'), r'sample\.guide is digits, but nothing is guided'),
    (lambda m: m.sample(2, guidance=2, guidance_interval=(2, 1)), 'it must be two noise levels'),
    (lambda m: m.sample(2, guidance=2, guide='digits'), r'of another shape .*model\.num_classes'),
  ],
)
def test_what_cannot_be_asked_of_a_model_with_labels(model, call, line):
  with pytest.raises(UserError, match=line):
    call(model)


@pytest.mark.parametrize(
  ('overrides', 'line'),
  [
    ({'sample.labels': '3'}, r'sample\.labels is 3, but this model was trained without labels'),
    ({'sample.guidance': 2.0}, r'sample\.guidance is 2\.0, but this model was trained without lab'),
    ({'eval.bpd_labels': 'none'}, r'eval\.bpd_labels is none, but this model was trained without'),
    ({'data.labels': 'folders'}, r'data\.labels is folders, but model\.num_classes is None'),
    (
      {'model.num_classes': 10, 'train.label_dropout': 0.0, 'sample.guidance': 2.0},
      r'trained with train\.label_dropout=0: it knows nothing without a label',
    ),
    ({'model.num_classes': 0}, r'model\.num_classes is 0; it must be at least 1'),
    (
      {'model.num_classes': 'all'},
      r"model\.num_classes is 'all'; it must be an integer, data",
    ),
    (
      {'sample.guidance': 2.0, 'sample.guidance_interval': ('a', 'b')},
      'must be a tuple of numbers',
    ),
  ],
)
def test_what_does_not_go_with_the_model_is_refused_before_anything_compiles(overrides, line):
  with pytest.raises(UserError, match=line):
    checks.check(tiny_config(**overrides))


def test_a_model_without_dropout_of_labels_has_nothing_without_them():
  config = tiny_config(**{'model.num_classes': 10, 'train.label_dropout': 0.0})
  with pytest.raises(UserError, match='has learned nothing without a label: give labels'):
    build.denoiser_of(config)(None)
  config.sample.labels = 'none'
  with pytest.raises(UserError, match='has learned nothing without a label: give labels'):
    build.sample_labels(config)


def test_other_classes_than_the_models_are_refused(tmp_path):
  with pytest.raises(UserError, match=r'is 7, but digits has 10 classes; .*=data takes'):
    trainer.run(labelled_config(**{'model.num_classes': 7}), tmp_path)


def test_labels_of_an_array_are_trained_on(tmp_path):
  rng = np.random.default_rng(0)
  images, labels = rng.integers(0, 256, (20, 8, 8, 1)).astype(np.uint8), np.arange(20) % 2
  config = labelled_config(**{'model.num_classes': None, 'train.num_steps': 1})
  model = ddpm_jax.train(tmp_path, images, labels=labels, config=config, progress=False)
  assert model.class_names == ('0', '1')
  with pytest.raises(UserError, match='under other labels'):
    ddpm_jax.train(tmp_path, images, labels=1 - labels, config=config, progress=False)
  with pytest.raises(UserError, match=r'model\.num_classes is 2, but labels are not given'):
    ddpm_jax.train(tmp_path, images, config=model.config, progress=False)


def keep(workdir, opened, has_begun=True):
  labels = data.read_labels(opened)
  data.keep_record(workdir, opened, has_begun=has_begun, say=lambda line: None, labels=labels)


def test_other_labels_of_the_same_pictures_are_refused(tmp_path):
  images = np.random.RandomState(0).randint(0, 256, (6, 4, 4, 1), np.uint8)
  labels = np.array([0, 1, 0, 1, 0, 1])
  keep(tmp_path, trainer.array_source(images, labels), has_begun=False)
  keep(tmp_path, trainer.array_source(images, labels))
  with pytest.raises(UserError, match='that this run was begun with, under other labels'):
    keep(tmp_path, trainer.array_source(images, labels[::-1]))
  keep(tmp_path, trainer.array_source(images[:4], labels[:4]))  # other pictures


@pytest.mark.parametrize('labels', [[0, 1], [0.0] * 3, [0, -1, 1], [[0], [1], [2]]])
def test_labels_of_an_array_are_its_classes(labels):
  images = np.zeros((3, 4, 4, 1), np.uint8)
  with pytest.raises(UserError, match=r'it must be int \[3\], a class 0, 1, \.\.\. for each'):
    trainer.array_source(images, np.array(labels))


@pytest.mark.parametrize(
  ('text', 'pattern', 'has_counts'),
  [
    ('cat', [(0, 1)], False),
    ('1', [(1, 1)], False),
    ('dog, cat', [(1, 1), (0, 1)], False),
    ('each', [(0, 1), (1, 1), (2, 1)], False),
    ('each*2,none', [(0, 2), (1, 2), (2, 2), (3, 1)], True),
    ('a*2', [(2, 1)], False),  # a name
    ('a*2*3', [(2, 3)], True),
  ],
)
def test_what_labels_ask_for(text, pattern, has_counts):
  parsed = classes.parse_labels(text, 3, ('cat', 'dog', 'a*2'))
  assert parsed == (tuple(pattern), has_counts)
  assert len(classes.expanded(parsed[0])) == sum(count for _, count in pattern)


@pytest.mark.parametrize('text', ['', 'cow', '3', '-1', 'cat,', 'cat*x', 'cat*-1', '*3', '1' * 20])
def test_labels_that_are_not_there_are_one_line(text):
  with pytest.raises(UserError, match=r'this model has 0 cat, 1 dog|a count must be at least 1'):
    classes.parse_labels(text, 2, ('cat', 'dog'))


def test_the_rows_of_a_grid_are_of_one_class_each():
  labels = np.array([1, 0, 1, 2, 1, 0, 3])
  rows, layout = by_class(labels, ('cat', 'dog', 'eel'), 8)
  assert layout == {'columns': 2, 'captions': ['cat', 'dog', 'eel', 'none']}
  assert rows.reshape(-1, 2).tolist() == [[1, 5], [0, 2], [3, -1], [6, -1]]
  many = by_class(np.zeros(500, int), ('cat',), 100)
  assert (many[0] == np.arange(100)).all()
  assert many[1] == {'columns': 10, 'captions': ['cat'] + [''] * 9}


def test_the_config_goes_through_its_file(workdir):
  config = config_of(str(workdir))
  config.sample.update(guidance=2.0, guidance_interval=(0.3, 5.0))
  (workdir / 'other').mkdir(exist_ok=True)
  (workdir / 'other/config.json').write_text(json.dumps(config_dict(config)))
  again = ddpm_jax.load_config(str(workdir / 'other/config.json'))
  assert again.sample.guidance_interval == (0.3, 5.0)
  assert again.model.num_classes == 10
