"""ddpm_jax as a library: a model is loaded, sampled, measured, inverted; nothing else happens."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax import sampling
from ddpm_jax.config import build
from ddpm_jax.config.files import MODELS
from ddpm_jax.config.origins import PACKAGED_WEIGHTS, read_weights
from ddpm_jax.data.digits import load_digits
from ddpm_jax.errors import UserError, check_system
from ddpm_jax.evaluation import stepwise
from ddpm_jax.interop import diffusers
from ddpm_jax.interop.tensors import tensors_from_params
from ddpm_jax.interop.tf_ddpm import tf_name
from ddpm_jax.modes.sample import sample
from ddpm_jax.modes.train import train
from tests.tf_writer import write_bundle
from tests.tiny import tiny_config
from tests.untrained import save_untrained

pytestmark = pytest.mark.usefixtures('one_layer')
ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def workdir(one_layer, tmp_path_factory):
  """Returns a workdir of the tiny run, with steps 2, 4 and 6."""
  path = tmp_path_factory.mktemp('run')
  train(tiny_config(), path)
  return path


@pytest.fixture(scope='module')
def model(workdir):
  """Returns the Model of the tiny run."""
  return ddpm_jax.load(workdir)


@pytest.fixture(scope='module')
def digits():
  """Returns ten test digits."""
  return load_digits('test')[0][:10]


def test_importing_takes_no_jax():
  code = 'import sys, ddpm_jax; assert "jax" not in sys.modules; ddpm_jax.diffusion.make_betas'
  code += '; assert "jax" in sys.modules; assert "load" in dir(ddpm_jax)'
  subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


def test_what_is_not_there_is_said():
  with pytest.raises(AttributeError, match="'ddpm_jax' has no attribute 'lod'"):
    ddpm_jax.lod  # noqa: B018
  with pytest.raises(UserError, match='runs on Linux and macOS, not on win32; on Windows, use WSL'):
    check_system('win32')


@pytest.mark.parametrize('fields', [{}, {'sampler': 'dpmpp_2m', 'num_steps': 4}])
def test_samples_are_those_of_the_command_line(workdir, model, fields):
  config = tiny_config(**{f'sample.{name}': value for name, value in fields.items()})
  config.sample.update(seed=3, num_samples=11)
  sample(config, workdir)
  name = f'{fields.get("sampler", "ancestral")}-{fields.get("num_steps", 10)}'
  folders = (workdir / 'samples' / 'step_00000006').glob(f'{name}*')
  drawn = [np.load(folder / 'samples.npz')['samples'] for folder in folders]
  samples = model.sample(11, seed=3, **fields)
  assert samples.dtype == np.uint8
  assert any(np.array_equal(samples, other) for other in drawn)
  assert not np.array_equal(samples, model.sample(11, seed=4, **fields))


def test_steps_and_raw_weights_are_chosen(workdir, model):
  assert (model.step, ddpm_jax.load(workdir, step=4).step) == (6, 4)
  assert ddpm_jax.load(f'{workdir}@2').step == 2
  raw = ddpm_jax.load(workdir, ema=False)
  leaves = zip(jax.tree.leaves(raw.params), jax.tree.leaves(model.params), strict=True)
  assert any(not np.array_equal(a, b) for a, b in leaves)
  assert repr(model) == f'Model({workdir}, step 6, 10 parameters, 8 x 8 x 1)'


def test_an_interrupted_call_goes_on_from_where_it_was(model, monkeypatch):
  whole = model.sample(12, seed=9, batch_size=4)
  _, drawer = model._drawer(12, 9, None, sampler=None, batch_size=4)
  calls, draw = [], type(drawer).draw

  def interrupted(self, params, ids, pauses):
    calls.append(ids[0])
    if len(calls) == 3:
      raise KeyboardInterrupt
    return draw(self, params, ids, pauses)

  monkeypatch.setattr(type(drawer), 'draw', interrupted)
  with pytest.raises(KeyboardInterrupt):
    model.sample(12, seed=9, batch_size=4)
  np.testing.assert_array_equal(model.drawn, whole[:8])
  np.testing.assert_array_equal(model.sample(12, seed=9, batch_size=4), whole)
  assert calls == [0, 4, 8, 8]
  assert model.drawn is None
  model.sample(4, seed=9, batch_size=4)  # another call has nothing of it
  assert calls[-1] == 0


def test_a_batch_in_hand_goes_on_from_where_it_was(model, monkeypatch):
  monkeypatch.setattr(stepwise, 'PIECE_SECS', 0.0)  # a step each
  whole = model.sample(4, seed=9)
  steps, advance = [], stepwise.advance

  def interrupted(*args):
    steps.append(args[-2])
    if len(steps) == 5:
      raise KeyboardInterrupt
    return advance(*args)

  monkeypatch.setattr(stepwise, 'advance', interrupted)
  with pytest.raises(KeyboardInterrupt):
    model.sample(4, seed=9)
  np.testing.assert_array_equal(model.sample(4, seed=9), whole)
  assert steps[4] == steps[5] > 0


def test_bound_is_that_of_an_evaluation(workdir, model, digits, tmp_path):
  bound = model.bits_per_dim(digits)
  assert {name: (x.shape, x.dtype.name) for name, x in bound.items()} == {
    'total_bpd': ((10,), 'float64'),
    'prior_bpd': ((10,), 'float64'),
    'vb': ((10, 10), 'float64'),
    'mse': ((10, 10), 'float64'),
  }
  (of_test,) = build.bounds(tiny_config(), ['test'], None)
  figure = of_test.measure(tmp_path, read_weights(str(workdir), tiny_config()))
  assert bound['total_bpd'].mean() == pytest.approx(figure['value'], rel=1e-5)
  np.testing.assert_allclose(
    bound['total_bpd'], bound['vb'].sum(axis=1) + bound['prior_bpd'], rtol=1e-5
  )
  all_terms = model.bits_per_dim(digits, num_terms=10)
  assert np.array_equal(np.sort(all_terms['t']), np.arange(10)[None].repeat(10, 0))
  assert all_terms['t'].dtype.kind == 'i'


def test_likelihood_of_the_flow_is_that_of_an_evaluation(workdir, model, digits, tmp_path):
  found = model.flow_bits_per_dim(digits)
  assert {name: (x.shape, x.dtype.name) for name, x in found.items()} == {
    'total_bpd': ((10,), 'float64'),
    'traces': ((10, 1), 'float64'),
  }
  assert np.isfinite(found['total_bpd']).all()
  config = tiny_config(**{'eval.bpd_examples': 10})
  sources = [build.source(config, 'test')]
  (of_test,) = build.flows(config, sources)
  figure = of_test.measure(tmp_path, read_weights(str(workdir), config))
  assert figure['value'] == pytest.approx(found['total_bpd'].mean(), rel=1e-5)
  assert figure['name'] == 'bits/dim of the flow (test)'
  assert figure['terms'] == (
    "uniform dequantisation, 9 steps of Heun's method to t=0, Hutchinson's divergence, random "
    'signs: 1'
  )
  # Half of the examples alone have the same.
  again = model.flow_bits_per_dim(digits[:5])
  np.testing.assert_allclose(again['total_bpd'], found['total_bpd'][:5], rtol=1e-5)
  for choices, message in (
    ({'num_steps': 10}, r'num_steps is 10; it must lie in \[1, 9\]'),
    ({'num_probes': -1}, 'num_probes is -1; it must be at least 0'),
  ):
    with pytest.raises(UserError, match=message):
      model.flow_bits_per_dim(digits, **choices)


def test_inversion_and_decoding_go_back_and_forth(model, digits):
  x_T = model.invert(digits, num_steps=10)
  assert x_T.shape == digits.shape
  assert x_T.dtype == np.float32
  assert np.abs(model.decode(x_T, num_steps=10).astype(int) - digits).mean() < 8


def test_chain_ends_in_the_samples(model):
  *predicted, (end, x_0) = model.chain(4, seed=5)
  assert [t for t, _ in predicted] == list(range(9, -1, -1))
  assert end == -1
  assert np.abs(x_0.astype(int) - model.sample(4, seed=5)).max() <= 1
  assert [t for t, _ in model.chain(2, sampler='ddim', num_steps=2)] == [9, 4, -1]


def test_chain_of_real_times_tells_them(workdir):
  config = tiny_config(**{'sample.sampler': 'ddim', 'sample.timesteps': (0.25, 4.5, 9.0)})
  config.sample.timestep_parts = 4
  told = [t for t, _ in ddpm_jax.load(workdir, config=config).chain(2)]
  assert told == [9.0, 4.5, 0.25, -1]


def test_interpolation_runs_from_one_to_the_other(model, digits):
  mixed = model.interpolate(digits[:2], digits[2:4], num=3, num_steps=0)
  np.testing.assert_array_equal(mixed[:, 0], digits[:2])
  np.testing.assert_array_equal(mixed[:, 2], digits[2:4])
  middle = (digits[:2].astype(float) + digits[2:4]) / 2
  assert np.abs(mixed[:, 1] - middle).max() <= 1
  assert model.interpolate(digits[:1], digits[1:2]).shape == (1, 9, 8, 8, 1)


def test_denoiser_goes_with_every_sampler(model):
  denoiser = model.denoiser()
  noise_fn = sampling.make_noise_fn(jax.random.split(jax.random.key(0), 2), model.shape)
  x_T = noise_fn(10)
  assert np.abs(denoiser(x_T, np.full(2, 9)).x_0).max() > 1
  assert np.abs(model.denoiser(clip='static')(x_T, np.full(2, 9)).x_0).max() <= 1
  x_0 = sampling.SAMPLERS['ddim'](model.schedule, denoiser, x_T, noise_fn, np.array([2, 9]))
  assert x_0.shape == (2, 8, 8, 1)


def test_pictures_and_animations(model, digits, tmp_path):
  from PIL import Image

  picture = model.picture(digits, columns=5)
  assert picture.size == (5 * 66 + 2, 2 * 66 + 2)
  model.animate(tmp_path / 'chain.gif', 4, sampler='ddim', num_steps=5)
  with Image.open(tmp_path / 'chain.gif') as animation:
    assert animation.n_frames in (5, 6)


def test_a_model_is_silent_unless_asked(model, capfd):
  model.sample(5)
  assert capfd.readouterr() == ('', '')
  model.sample(5, progress=True)
  assert 'samples 5/5' in capfd.readouterr().out


@pytest.mark.usefixtures('unet')
def test_models_of_other_programs_are_loaded(tmp_path):
  model = ddpm_jax.load(save_untrained(tmp_path), config=tiny_config())
  diffusers.write_pipeline(tmp_path / 'pipeline', tiny_config(), model.params)
  of_pipeline = ddpm_jax.load(tmp_path / 'pipeline')
  np.testing.assert_array_equal(of_pipeline.sample(4), model.sample(4))
  tensors = tensors_from_params(model.params, lambda path, _: (tf_name(path), 'same'))
  write_bundle(tmp_path / 'model.ckpt-7', {'global_step': np.array(7), **tensors})
  original = ddpm_jax.load(tmp_path / 'model.ckpt-7', config=tiny_config())
  assert original.step == 7
  np.testing.assert_array_equal(original.sample(4), model.sample(4))
  with pytest.raises(UserError, match=r"its config; if it is a model, .*config='cifar10'"):
    ddpm_jax.load(tmp_path / 'model.ckpt-7')


@pytest.mark.usefixtures('unet')
def test_model_of_the_package_is_small_and_as_measured(digits):
  folder = MODELS / 'digits'
  assert (folder / PACKAGED_WEIGHTS).stat().st_size <= 1_500_000
  about = json.loads((folder / 'about.json').read_text())
  model = ddpm_jax.load('digits')
  assert model.step == about['step']
  bound = model.bits_per_dim(load_digits('test')[0][:64], num_terms=20)['total_bpd']
  error = bound.std() / 8
  assert abs(bound.mean() - about['figures']['bits/dim (test)']) < 4 * error
  samples = model.sample(64, sampler='dpmpp_2m', num_steps=10)
  real = load_digits('train')[0]
  assert np.abs(samples.mean(axis=0) - real.mean(axis=0)).mean() < 16


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda m: m.sample(0), 'num is 0; it must be an integer, at least 1'),
    (lambda m: m.sample('4'), "num is '4'; it must be an integer, at least 1"),
    (lambda m: m.sample(2.5), 'num is 2.5; it must be an integer, at least 1'),
    (lambda m: m.sample(1, batch_size=-1), 'batch_size is -1; it must be an integer, at least 1'),
    (lambda m: m.animate('no/such/chain.gif'), 'there is no folder no/such'),
    (lambda m: m.sample(1, sampler='euler'), "sample.sampler is 'euler'; it must be one of ances"),
    (lambda m: m.sample(1, num_steps=11), '11'),
    (lambda m: m.sample(1, num_steps=2.5), 'sample.num_steps is 2.5; it must be an integer'),
    (lambda m: m.sample(1, seed='a'), "sample.seed is 'a'; it must be an integer"),
    (lambda m: m.sample(1, labels=[3]), 'labels are given, but this model was trained without'),
    (lambda m: m.denoiser([3]), 'labels are given, but this model was trained without'),
    (lambda m: m.denoiser(clip='some'), "sample.clip is 'some'; it must be one of"),
    (
      lambda m: m.bits_per_dim(np.zeros((2, 8, 8, 1))),
      r'examples are float64\[2, 8, 8, 1\]; this model takes uint8 \[N, 8, 8, 1\]',
    ),
    (lambda m: m.bits_per_dim(np.zeros((8, 8), np.uint8)), r'examples are uint8\[8, 8\]; this mod'),
    (lambda m: m.bits_per_dim(np.zeros((0, 8, 8, 1), np.uint8)), 'examples are none'),
    (
      lambda m: m.bits_per_dim(np.zeros((1, 8, 8, 1), np.uint8), num_terms=11),
      r'num_terms is 11; it must lie in \[1, 10\]',
    ),
    (lambda m: m.decode(np.zeros((1, 4, 4, 1))), r'x_T is \[1, 4, 4, 1\]; this model has'),
    (
      lambda m: m.interpolate(np.zeros((2, 8, 8, 1), np.uint8), np.zeros((1, 8, 8, 1), np.uint8)),
      r'examples is \[2, 8, 8, 1\] and others \[1, 8, 8, 1\]: they are pairs',
    ),
    (lambda m: m.invert(np.zeros((1, 8, 8, 1), np.uint8), num_steps=0), '0'),
  ],
)
def test_mistakes_are_answered_in_one_line(model, call, message):
  with pytest.raises(UserError, match=message) as error:
    call(model)
  assert '\n' not in str(error.value)


def test_what_is_no_model_is_answered_in_one_line(workdir, tmp_path_factory):
  empty, file = tmp_path_factory.mktemp('empty'), tmp_path_factory.mktemp('text') / 'no.txt'
  file.write_text('a note')
  for given, choices, message in (
    ('/nowhere', {}, '/nowhere: nothing there; give a workdir, a model of the package'),
    (None, {}, 'workdir is None; it must be the path of a run, or the name of a model'),
    (empty, {}, 'is an empty folder: it holds no model'),
    (file, {}, 'no.txt does not tell its config; if it is a model, name its config'),
    (workdir, {'step': 5}, r'no checkpoint 5 in .*: it has \[2, 4, 6\]'),
    (workdir, {'config': 'cifer10'}, 'there is no cifer10; configs has'),
    (workdir, {'config': 'cifar10'}, 'is of another model: data.channels: checkpoint 1, config 3'),
    (workdir, {'network': lambda p, x, t: x}, 'network is given without params'),
  ):
    with pytest.raises(UserError, match=message) as error:
      ddpm_jax.load(given, **choices)
    assert '\n' not in str(error.value)
