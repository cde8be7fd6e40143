"""What outputs mean: targets and readings are inverse; then the original program's numbers."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import (
  Parameterization,
  make_betas,
  make_denoiser,
  make_network,
  make_schedule,
  q_sample,
)
from ddpm_jax.diffusion.prediction import MEANS
from ddpm_jax.errors import UserError
from tests.analytic import ORIGINAL_VARIANCES as VARIANCES
from tests.analytic import predict, true_output


def column(values, like):
  return values.reshape(-1, *[1] * (like.ndim - 1))


@pytest.mark.parametrize('mean', MEANS)
def test_the_target_is_what_a_network_that_knew_x_0_would_return(linear, example64, mean):
  x_0, noise, t, x_t = example64
  target = Parameterization(mean).target(linear, x_0, noise, x_t, t)
  assert target.shape == x_t.shape
  expected = true_output(mean, linear, x_0, noise, x_t, t)
  np.testing.assert_allclose(target, expected, rtol=1e-9)


@pytest.mark.parametrize('mean', MEANS)
def test_the_true_output_is_read_as_x_0(linear, example, mean):
  x_0, noise, t, x_t = example
  output = true_output(mean, linear, x_0, noise, x_t, t)
  prediction = Parameterization(mean).read(linear, output, x_t, t)
  # x_0 is x_t over sqrt(alphas_cumprod), or xprev over coef1: rounding grows by as much.
  gain = 1 / linear.sqrt_alphas_cumprod + 1 / linear.posterior_mean_coef1
  assert (np.abs(prediction.x_0 - x_0) < 1e-6 * column(gain[t], x_t)).all()


@pytest.mark.parametrize('mean', MEANS)
def test_the_target_made_of_what_is_read_is_the_output(linear, example64, mean):
  # Of any output: with the x_0 read from it goes the noise that makes x_t of that x_0.
  _, noise, t, x_t = example64
  parameterization, output = Parameterization(mean), noise[::-1] + 0.3
  x_0 = parameterization.read(linear, output, x_t, t).x_0
  alpha, sigma = (
    column(table[t], x_t)
    for table in (linear.sqrt_alphas_cumprod, linear.sqrt_one_minus_alphas_cumprod)
  )
  eps = (x_t - alpha * x_0) / sigma
  target = parameterization.target(linear, x_0, eps, x_t, t)
  np.testing.assert_allclose(target, output, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('mean', MEANS)
def test_x_0_is_read_at_a_last_beta_of_1_unless_that_needs_a_signal(example, mean):
  schedule = make_schedule(make_betas('jsd', 20))
  assert schedule.alphas_cumprod[-1] == 0
  x_0, noise, _, _ = example
  t = np.full(len(x_0), 19)
  x_t = q_sample(schedule, x_0, t, noise)
  np.testing.assert_array_equal(x_t, noise)
  parameterization = Parameterization(mean)
  output = parameterization.target(schedule, x_0, noise, x_t, t)
  assert np.isfinite(output).all()
  prediction = parameterization.read(schedule, output, x_t, t)
  if parameterization.needs_signal:
    assert not np.isfinite(prediction.x_0).any()
  else:
    np.testing.assert_allclose(prediction.x_0, x_0, atol=1e-6)


def test_noise_alone_needs_a_signal_and_the_previous_state_alone_is_a_step():
  assert [mean for mean in MEANS if Parameterization(mean).needs_signal] == ['eps']
  assert [mean for mean in MEANS if Parameterization(mean).is_step] == ['xprev']


def test_v_is_noise_where_x_t_is_data_and_minus_x_0_where_x_t_is_noise(example):
  schedule = make_schedule([1e-12, 1.0])
  x_0, noise, _, _ = example
  for t, expected in ((0, noise), (1, -x_0)):
    t = np.full(len(x_0), t)
    x_t = q_sample(schedule, x_0, t, noise)
    v = Parameterization('v').target(schedule, x_0, noise, x_t, t)
    np.testing.assert_allclose(v, expected, atol=1e-5)


@pytest.mark.parametrize('variance', VARIANCES)
@pytest.mark.parametrize('mean', MEANS)
def test_a_learned_variance_and_the_mean_of_a_step_are_read_as_they_are(
  linear, example, mean, variance
):
  _, noise, t, x_t = example
  parameterization = Parameterization(mean, variance)
  channels = parameterization.channels(2)
  assert channels == (4 if variance == 'learned' else 2)
  output = np.concatenate([noise, 3 * noise], axis=-1)[..., :channels]
  prediction = parameterization.read(linear, output, x_t, t)
  x_0 = Parameterization(mean).read(linear, noise, x_t, t).x_0
  np.testing.assert_array_equal(prediction.x_0, x_0)
  if variance == 'learned':
    assert parameterization.fixed_variance is None
    np.testing.assert_array_equal(prediction.log_variance, 3 * noise)
  else:
    assert parameterization.fixed_variance == variance
    assert prediction.log_variance is None
  if mean == 'xprev':
    np.testing.assert_array_equal(prediction.mean, noise)
  else:
    assert prediction.mean is None


def test_x_0_from_noise_equals_the_original_programs(original, relative_error):
  arrays, schedule, x_t = original
  x_0 = Parameterization('eps').read(schedule, arrays['noise'], x_t, arrays['t']).x_0
  assert relative_error(x_0, arrays['predict_xstart_from_eps']) < 1e-6


@pytest.mark.parametrize('clip', ['none', 'static'])
@pytest.mark.parametrize('variance', VARIANCES)
@pytest.mark.parametrize('mean', ['eps', 'xstart', 'xprev'])
def test_x_0_equals_the_original_programs(original, relative_error, mean, variance, clip):
  arrays, schedule, x_t = original
  output = arrays['model_output'][..., : 6 if variance == 'learned' else 3]
  choices = dict(mean=mean, variance=variance, clip=clip)
  x_0 = predict(schedule, output, x_t, arrays['t'], **choices).x_0
  key = f'{mean}/{variance}/clip{clip == "static":d}'
  assert relative_error(x_0, arrays[f'p_mean_variance/{key}/pred_xstart']) < 1e-5


@pytest.mark.parametrize('shape', [(5, 3, 4, 1), (5, 3, 4, 4), (1, 3, 4, 2), (2,)])
@pytest.mark.parametrize('variance', ['fixedsmall', 'fixedlarge'])
def test_an_output_of_another_shape_is_refused(linear, example, variance, shape):
  _, _, t, x_t = example
  parameterization = Parameterization('eps', variance)
  with pytest.raises(UserError, match=rf'var_type={variance} needs 2 channels') as refusal:
    parameterization.read(linear, jnp.zeros(shape), x_t, t)
  assert f'the network returned {shape} for x_t of (5, 3, 4, 2)' in str(refusal.value)


@pytest.mark.parametrize(
  ('choices', 'message'),
  [
    (
      {'mean': 'score'},
      "mean_type is 'score'; it must be one of eps, xstart, xprev, v, edm$",
    ),
    ({'mean': None}, 'diffusion.mean_type is None'),
    (
      {'variance': 'fixed'},
      "var_type is 'fixed'; it must be one of fixedsmall, fixedlarge, learned, learned_range$",
    ),
  ],
)
def test_an_unknown_parameterization_is_refused(choices, message):
  with pytest.raises(UserError, match=message):
    Parameterization(**choices)


def test_a_denoiser_gives_the_network_x_t_and_t_as_they_are(linear, example):
  _, _, t, x_t = example
  given = []

  def network(x_t, t):
    given.append((x_t, t))
    return 2 * x_t

  prediction = make_denoiser(network, Parameterization('xstart'), linear)(x_t, t)
  np.testing.assert_array_equal(given[0][0], x_t)
  np.testing.assert_array_equal(given[0][1], t)
  np.testing.assert_array_equal(prediction.x_0, 2 * x_t)


class RecordingModel:
  """Has apply as flax modules do, and keeps what it is called with."""

  def apply(self, variables, x_t, t, **choices):
    self.call = variables, x_t, t, choices
    return 'output'


@pytest.mark.parametrize(
  ('choices', 'expected'),
  [
    ({}, {}),
    ({'labels': 'LABELS'}, {'labels': 'LABELS'}),
    # A key and rows are of dropout alone.
    ({'rngs': 'KEYS', 'rows': 'ROWS'}, {}),
    (
      {'train': True, 'rngs': 'KEYS', 'rows': 'ROWS'},
      {'train': True, 'rngs': 'KEYS', 'rows': 'ROWS'},
    ),
    (
      {'train': True, 'rngs': 'KEYS', 'labels': 'LABELS'},
      {'train': True, 'rngs': 'KEYS', 'rows': None, 'labels': 'LABELS'},
    ),
  ],
)
def test_a_model_is_given_labels_where_there_are_some_and_dropout_in_training(choices, expected):
  model = RecordingModel()
  network = make_network(model, 'PARAMS', **choices)
  assert list(inspect.signature(network).parameters) == ['x_t', 't']
  assert network('X_T', 'T') == 'output'
  assert model.call == ({'params': 'PARAMS'}, 'X_T', 'T', expected)
