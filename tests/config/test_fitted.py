"""What a sampler takes of its checkpoint, on Gaussian data, whose denoiser is exact."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import devices
from ddpm_jax.config import build, fitted, origins
from ddpm_jax.config.predictions import predict_of
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.weights import make_weights
from ddpm_jax.model import Model
from ddpm_jax.nn.own import OwnNetwork
from ddpm_jax.trainer import run
from tests.tiny import tiny_config

STD = 0.3  # of x_0
T = 40


@pytest.fixture(scope='module')
def model_of(tmp_path_factory):
  """(fields of config.sample) -> the Model whose predictions are exact for its Gaussian data."""
  folder = tmp_path_factory.mktemp('fitted')
  pixels = 127.5 * (1 + STD * np.random.default_rng(0).standard_normal((512, 4, 4, 1)))
  np.save(folder / 'x.npy', np.clip(np.rint(pixels), 0, 255).astype(np.uint8))

  def make(**fields):
    config = tiny_config(
      **{
        'data.source': f'array:{folder / "x.npy"}',
        'data.image_size': (4, 4),
        'diffusion.num_timesteps': T,
        'diffusion.beta_start': 1e-3,
        'diffusion.beta_end': 0.4,
        'sample.batch_size': 512,
        **{f'sample.{name}': value for name, value in fields.items()},
      }
    )
    signal = jnp.asarray(build.schedule(config).alphas_cumprod, jnp.float32)

    def network(params, x, t):
      kept = jnp.interp(t.astype(jnp.float32), jnp.arange(T), signal)[:, None, None, None]
      return params * jnp.sqrt(1 - kept) / (kept * STD**2 + 1 - kept) * x

    weights = make_weights(0, devices.replicate(np.float32(1)))
    return Model(config, weights, name='exact', network=OwnNetwork(network))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(origins, 'default_cache_dir', lambda: folder)
    yield make


def fit(model, **choices):
  return fitted.fit(model.config, model._weights, 'exact', network=model._network, **choices)


def posterior_variance(schedule):
  """Of x_0 given x_t."""
  signal = schedule.alphas_cumprod
  return STD**2 * (1 - signal) / (signal * STD**2 + 1 - signal)


def test_the_analytic_variance_makes_few_steps_right(model_of):
  model = model_of(variance='analytic', num_steps=4)
  variances = fit(model).estimates['x_0_variances']
  np.testing.assert_allclose(variances, posterior_variance(model.schedule), rtol=0.05)

  def std(**fields):
    samples = model_of(num_steps=4, spacing='linspace', **fields).sample(512)
    return np.std(samples / 127.5 - 1)

  assert std(variance='analytic') == pytest.approx(STD, rel=0.02)
  # The fixed ones are too small or too large for such steps.
  assert std(variance='fixedsmall') < 0.97 * STD
  assert std(variance='fixedlarge') > 1.03 * STD


def test_fitted_timesteps_are_taken_and_kept(model_of, monkeypatch):
  model, said = model_of(sampler='dpmpp_2m', spacing='least_error', num_steps=3), []
  found = fit(model, say=said.append).config.sample.timesteps
  assert len(found) == 3
  assert found[-1] == T - 1
  assert said[0] == 'fits the sampler to the checkpoint, once'
  assert said[1].startswith('keeps it in ')

  def far(model):
    fine = model_of(sampler='dpmpp_2m', num_steps=T).sample(64)
    return np.abs(model.sample(64) - fine.astype(float)).mean()

  errors = [far(model_of(sampler='dpmpp_2m', spacing=x, num_steps=3)) for x in ('trailing', 'quad')]
  assert far(model) < 0.8 * min(errors)
  monkeypatch.setattr(fitted, 'predict_of', None)  # nothing is measured again
  assert fit(model, say=said.append).config.sample.timesteps == found
  assert len(said) == 2


def test_a_bespoke_solver_is_fitted_to_timesteps_that_are_fitted_too(model_of, monkeypatch):
  model, said = model_of(sampler='bespoke', num_steps=3), []
  found = fit(model, say=said.append)
  assert found.config.sample.spacing == 'least_error'
  assert len(found.config.sample.timesteps) == 3
  assert found.estimates['coefficients'].shape == (3, 4)
  assert any(line.startswith('x_0 differs from a fine solution by ') for line in said)
  fine = model_of(sampler='dpmpp_2m', num_steps=T).sample(64).astype(float)

  def far(model):
    return np.abs(model.sample(64) - fine).mean()

  error = far(model)
  # Of Gaussian data all is linear, and so nothing is left but the fine solution's own error.
  assert error < 0.25 * far(model_of(sampler='dpmpp_2m', spacing='least_error', num_steps=3))
  assert error < 0.4  # of 255
  given = model_of(sampler='bespoke', timesteps=(3, 15, 39))
  assert far(given) < 0.4
  assert build.spacing(fit(given).config) == 'given'

  monkeypatch.setattr(fitted, 'predict_of', None)  # nothing is measured again
  assert np.array_equal(fit(model).estimates['coefficients'], found.estimates['coefficients'])
  clips = []

  def predict(*args, clip, **choices):
    clips.append(clip)
    return predict_of(*args, clip=clip, **choices)

  monkeypatch.setattr(fitted, 'predict_of', predict)  # but for another clip
  fit(model_of(sampler='bespoke', num_steps=3, clip='none'))
  assert clips == ['none']
  drawer = build.drawer(found.config, 4, model._network, estimates=found.estimates)
  facts = drawer.identity.facts()['sampler']
  assert (facts['sampler'], facts['spacing'], facts['num_steps']) == ('bespoke', 'least_error', 3)
  assert len(facts['coefficients']) == 64
  assert drawer.words == 'bespoke, 3 of 40 steps (least_error)'


def test_least_bound_takes_both_ends_and_real_times(model_of):
  model = model_of(spacing='least_bound', num_steps=6, timestep_parts=4)
  found = np.array(fit(model).config.sample.timesteps)
  assert found[[0, -1]].tolist() == [0, T - 1]
  assert (found * 4 % 1 == 0).all()
  assert (found % 1 != 0).any()
  identity = build.samples_identity(fit(model).config).facts()['sampler']
  assert identity['timesteps'] == found.tolist()
  assert identity['timestep_parts'] == 4


def test_what_is_fitted_is_not_had_without_a_checkpoint(model_of):
  for fields in (
    {'spacing': 'least_error', 'num_steps': 3},
    {'sampler': 'bespoke', 'timesteps': (3, 15, 39)},
    {'variance': 'analytic'},
  ):
    config = model_of(**fields).config
    with pytest.raises(UserError, match='fitted to a checkpoint, which --mode=sample and'):
      build.drawer(config, 4)
  config = tiny_config(**{'diffusion.mean_type': 'xprev', 'sample.variance': 'analytic'})
  with pytest.raises(UserError, match='predicts xprev, one step of the whole chain'):
    fitted.fit(config, model_of()._weights, 'exact')


def test_a_damaged_measurement_is_said(model_of):
  model = model_of(variance='analytic', num_steps=4)
  fit(model)
  file = next(origins.default_cache_dir().glob('fitted/moments_*.npz'))
  whole = file.read_bytes()
  file.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UserError, match=r'moments_.*npz'):
    fit(model)
  file.write_bytes(whole)


def test_training_that_draws_on_the_way_refuses_what_is_fitted(tmp_path):
  config = tiny_config(**{'sample.spacing': 'least_error', 'sample.num_steps': 3})
  config.train.sample_every_steps = 2
  with pytest.raises(UserError, match=r'training, eval\.watch and --mode=edit do not'):
    run(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
