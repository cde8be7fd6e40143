"""How t is drawn: each way is unbiased, and losses are kept as improved DDPM keeps them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import make_betas, make_schedule
from ddpm_jax.diffusion.timesteps import (
  HISTORY,
  LossHistory,
  drawn,
  lognormal_chances,
  loss_chances,
  no_losses,
  stratified,
  with_losses,
)

T = 20
SCHEDULE = make_schedule(make_betas('linear', T, beta_end=0.5))


def full_history():
  size = np.random.default_rng(0).lognormal(0, 2, (T, HISTORY)).astype(np.float32)
  return LossHistory(jnp.asarray(size), jnp.full(T, HISTORY))


CHANCES = {
  'lognormal': lognormal_chances(SCHEDULE),
  'lognormal of jsd': lognormal_chances(make_schedule(make_betas('jsd', T))),
  'loss': loss_chances(full_history()),
  'no losses': loss_chances(no_losses(T)),
}


@pytest.mark.parametrize('name', CHANCES)
def test_drawn_timesteps_have_their_chances_and_count_for_a_uniform_one(name):
  chances, count = np.asarray(CHANCES[name], np.float64), 200_000
  assert chances.sum() == pytest.approx(1, abs=1e-5)
  assert chances.min() > 0
  t, counts = drawn(CHANCES[name], jax.random.uniform(jax.random.key(0), (count,)))
  found = np.bincount(t, minlength=T) / count
  assert (np.abs(found - chances) < 5 * np.sqrt(chances / count)).all()
  np.testing.assert_allclose(counts, 1 / (T * chances[t]), rtol=1e-5)
  assert counts.max() <= (10.01 if 'log' in name else 1001)
  # A loss that is the square of t, as if t were uniform.
  losses = np.asarray(counts, np.float64) * np.asarray(t) ** 2
  expected, error = np.mean(np.arange(T) ** 2), losses.std() / np.sqrt(count)
  assert losses.mean() == pytest.approx(expected, abs=5 * error)


def test_no_losses_are_uniform_and_losses_draw_by_their_size():
  np.testing.assert_allclose(CHANCES['no losses'], 1 / T, rtol=1e-6)
  size = np.sqrt(np.asarray(full_history().squares, np.float64).mean(axis=1))
  expected = 0.999 * size / size.sum() + 0.001 / T
  np.testing.assert_allclose(CHANCES['loss'], expected, rtol=1e-5)
  # One loss of one t that lacks: uniform.
  waiting = full_history()._replace(counts=full_history().counts.at[3].set(HISTORY - 1))
  np.testing.assert_allclose(loss_chances(waiting), 1 / T, rtol=1e-6)
  zero = full_history()._replace(squares=jnp.zeros((T, HISTORY)))
  np.testing.assert_allclose(loss_chances(zero), 1 / T, rtol=1e-6)


def test_the_last_losses_of_each_timestep_are_kept():
  rng, history, kept = np.random.default_rng(1), no_losses(T), [[] for _ in range(T)]
  for batch in range(12):
    t = rng.integers(0, 3 if batch % 3 == 0 else T, 40)  # more at once than are kept, too
    losses = rng.random(40).astype(np.float32)
    history = jax.jit(with_losses)(history, t, losses)
    for i, loss in zip(t, losses, strict=True):
      kept[i] = [*kept[i], loss][-HISTORY:]
    for i in range(T):
      found = np.sort(np.asarray(history.squares[i]))[HISTORY - len(kept[i]) :]
      np.testing.assert_allclose(found, np.sort(np.square(kept[i])), rtol=1e-6)
      assert min(int(history.counts[i]), HISTORY) == len(kept[i])


@pytest.mark.parametrize('batch_size', [4, 20, 64])
def test_a_stratified_batch_has_one_timestep_of_each_part_and_is_unbiased(batch_size):
  uniforms = jax.random.uniform(jax.random.key(0), (500, batch_size))
  rows = np.arange(batch_size)
  t = np.asarray(stratified(uniforms, rows[None], batch_size, T))
  edges = rows / batch_size * T
  assert (t >= np.floor(edges)).all()
  assert (t < np.ceil(edges + T / batch_size)).all()
  means = np.square(t).mean(axis=1)
  error = means.std() / np.sqrt(500)
  assert means.mean() == pytest.approx(np.mean(np.arange(T) ** 2), abs=5 * error + 1e-9)
  independent = np.square(np.random.default_rng(0).integers(0, T, (500, batch_size))).mean(axis=1)
  assert means.std() < 0.6 * independent.std()
  last = stratified(jnp.array([1 - 2**-24]), np.array([batch_size - 1]), batch_size, T)
  assert last == T - 1
