"""Guidance against closed forms: Gaussians and mixtures of them, whose scores are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import (
  Prediction,
  make_betas,
  make_schedule,
  p_mean_variance,
  timestep_subsequence,
)
from ddpm_jax.errors import UserError
from ddpm_jax.sampling import SAMPLERS, classifier_guided, guided, in_one_batch, noise_levels
from tests.analytic import LabelledMixture, batch_noise_fn, noise_level

SCHEDULE = make_schedule(make_betas('linear', 1000))
MEANS = np.array([[-0.8, 0.2], [0.5, -0.4], [0.1, 0.7]]).reshape(3, 2, 1, 1)
DATA = LabelledMixture(SCHEDULE, [0.2, 0.5, 0.3], MEANS, [0.3, 0.2, 0.4])
T = np.array([0, 10, 200, 500, 999])
LABELS = np.array([0, 1, 2, 1, 0])
X_T = np.random.default_rng(0).standard_normal((5, 2, 1, 1)).astype(np.float32)


def guide(scale, **choices):
  return guided(DATA.denoiser(LABELS), DATA.denoiser(), scale, **choices)


def scores(x_t, t, labels):
  """(score of p(x_t | label), score of p(x_t)), by derivatives of the densities."""

  def conditional(x):
    return DATA.log_densities(x, t)[jnp.arange(len(labels)), labels].sum()

  def marginal(x):
    joint = DATA.log_densities(x, t) + jnp.log(DATA.weights)[None]
    return jax.nn.logsumexp(joint, axis=1).sum()

  return jax.grad(conditional)(x_t), jax.grad(marginal)(x_t)


def score_of(x_0, x_t, t):
  """Tweedie's formula."""
  alpha, sigma = noise_level(SCHEDULE, x_t, t)
  return (alpha * x_0 - x_t) / sigma**2


@pytest.mark.parametrize('scale', [0.0, 1.0, 2.5])
def test_the_score_of_a_mixture_is_guided_by_its_closed_form(scale):
  x_0 = guide(scale)(X_T, T).x_0
  conditional, marginal = scores(X_T, T, LABELS)
  expected = marginal + scale * (conditional - marginal)
  # At t = 0 the score is x_0 less x_t, over 1e-4.
  np.testing.assert_allclose(score_of(x_0, X_T, T), expected, rtol=1e-3, atol=1e-2)


def test_an_exact_classifier_gives_the_same_as_labels():
  """Bayes' rule: p(x_t) p(k | x_t) is p(x_t | k), at any scale."""
  for scale in (1.0, 2.5):
    by_classifier = classifier_guided(
      DATA.denoiser(), DATA.log_prob, LABELS, scale, schedule=SCHEDULE
    )
    np.testing.assert_allclose(
      by_classifier(X_T, T).x_0, guide(scale)(X_T, T).x_0, rtol=1e-3, atol=1e-3
    )


def test_a_classifier_moves_a_predicted_mean_as_it_moves_x_0():
  moved = classifier_guided(DATA.denoiser(), DATA.log_prob, LABELS, 2.0, schedule=SCHEDULE)
  choices = dict(variance='fixedsmall')
  plain_mean = p_mean_variance(SCHEDULE, DATA.denoiser()(X_T, T), X_T, T, **choices)[0]

  def step_denoiser(x_t, t):
    return DATA.denoiser()(x_t, t)._replace(mean=plain_mean)

  by_mean = classifier_guided(step_denoiser, DATA.log_prob, LABELS, 2.0, schedule=SCHEDULE)
  expected = p_mean_variance(SCHEDULE, moved(X_T, T), X_T, T, **choices)[0]
  np.testing.assert_allclose(by_mean(X_T, T).mean, expected, rtol=1e-4, atol=1e-5)


def drawn(denoiser, count, sampler='dpmpp_2m', num_steps=60):
  shape = count, 2, 1, 1
  x_T, timesteps = batch_noise_fn(shape)(1000), timestep_subsequence(SCHEDULE, num_steps, 'logsnr')
  sample = SAMPLERS[sampler](SCHEDULE, denoiser, x_T, batch_noise_fn(shape), timesteps)
  return np.asarray(sample).reshape(count, 2)


@pytest.mark.parametrize('way', ['labels', 'classifier'])
@pytest.mark.parametrize('label', [0, 2])
def test_samples_given_a_label_have_its_mean_and_covariance(way, label):
  count = 20_000
  labels = jnp.full(count, label)
  denoiser = DATA.denoiser(labels)
  if way == 'classifier':
    denoiser = classifier_guided(DATA.denoiser(), DATA.log_prob, labels, 1.0, schedule=SCHEDULE)
  samples, std = drawn(denoiser, count), float(DATA.stds[label])
  error = std / np.sqrt(count)
  np.testing.assert_allclose(samples.mean(0), MEANS[label].ravel(), atol=5 * error)
  np.testing.assert_allclose(
    np.cov(samples.T), std**2 * np.eye(2), atol=5 * std**2 * np.sqrt(2 / count) + 2e-3 * std**2
  )


def test_two_sets_of_labels_in_one_batch_are_as_one_after_the_other():
  others = np.roll(LABELS, 1)
  seen = []

  def denoiser_of(labels):
    denoiser = DATA.denoiser(labels)

    def counted(x_t, t):
      seen.append(x_t.shape[0])
      return denoiser(x_t, t)

    return counted

  both = in_one_batch(denoiser_of, jnp.asarray(LABELS), jnp.asarray(others))
  choices = DATA.denoiser(LABELS), DATA.denoiser(others), 2.0
  np.testing.assert_allclose(
    guided(*choices, both=both)(X_T, T).x_0, guided(*choices)(X_T, T).x_0, rtol=1e-6
  )
  assert seen == [10]


def test_noise_levels_outside_of_an_interval_are_not_guided():
  levels = noise_levels(SCHEDULE)
  assert levels[999] == pytest.approx(157.4, rel=1e-3)  # EDM's greatest sigma of this schedule
  interval = float(levels[10]), float(levels[500])  # open below
  some = jax.jit(guide(3.0, schedule=SCHEDULE, interval=interval))(X_T, T).x_0
  everywhere, nowhere = guide(3.0)(X_T, T).x_0, DATA.denoiser(LABELS)(X_T, T).x_0
  inside = np.array([False, False, True, True, False])
  np.testing.assert_allclose(some[inside], everywhere[inside], rtol=1e-5)
  np.testing.assert_allclose(some[~inside], nowhere[~inside], rtol=1e-5)
  assert not np.allclose(everywhere[~inside], nowhere[~inside])


def test_outside_of_an_interval_one_evaluation_is_computed_by_the_same_program():
  rows, traced = [], []

  def denoiser_of(labels):
    def counted(x_t, t):
      traced.append(x_t.shape[0])
      jax.debug.callback(lambda: rows.append(x_t.shape[0]))
      return DATA.denoiser(labels)(x_t, t)

    return counted

  labels = jnp.asarray(LABELS)
  both = in_one_batch(denoiser_of, labels, labels)
  levels = noise_levels(SCHEDULE)
  denoiser = guided(
    denoiser_of(labels), denoiser_of(labels), 2.0,
    both=both, schedule=SCHEDULE, interval=(float(levels[300]), float(levels[700])),
  )  # fmt: skip
  timesteps = np.array([100, 300, 500, 700, 900])
  sample = jax.jit(
    lambda x: SAMPLERS['ddim'](SCHEDULE, denoiser, x, batch_noise_fn(x.shape), timesteps)
  )
  sample(X_T).block_until_ready()
  jax.effects_barrier()
  assert rows == [5, 10, 10, 5, 5]
  assert len(traced) == 2  # an evaluation alone, and one of both


@pytest.mark.parametrize('interval', [(0.3,), (5.0, 0.3), (1.0, 1.0), (-1.0, 2.0), (0.1, 0.2, 0.3)])
def test_what_is_no_interval_is_refused(interval):
  with pytest.raises(UserError, match='it must be two noise levels, the lower one first'):
    guide(2.0, schedule=SCHEDULE, interval=interval)


def test_rescaling_brings_the_deviation_back():
  plain = np.asarray(DATA.denoiser(LABELS)(X_T, T).x_0)
  led = np.asarray(guide(4.0)(X_T, T).x_0)
  for rescale in (0.5, 1.0):
    x_0 = np.asarray(guide(4.0, rescale=rescale)(X_T, T).x_0)
    ratio = plain.std(axis=(1, 2, 3)) / led.std(axis=(1, 2, 3))
    expected = led * (rescale * ratio + 1 - rescale).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(x_0, expected, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(x_0.std(axis=(1, 2, 3)), plain.std(axis=(1, 2, 3)), rtol=1e-4)


def test_a_mean_is_led_as_x_0_is_and_a_learned_variance_is_the_denoisers_own():
  def fixed(value):
    return lambda x_t, t: Prediction(x_t * 0 + value, x_t * 0 - value, x_t * 0 + 2 * value)

  x_0, log_variance, mean, _ = guided(fixed(3.0), fixed(1.0), 2.0)(X_T, T)
  assert (x_0[0, 0, 0, 0], log_variance[0, 0, 0, 0], mean[0, 0, 0, 0]) == (5.0, -3.0, 10.0)
  with pytest.raises(UserError, match='guidance_rescale changes the predicted x_0'):
    guided(fixed(3.0), fixed(1.0), 2.0, rescale=0.5)(X_T, T)
