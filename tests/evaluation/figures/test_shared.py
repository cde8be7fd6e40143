"""Samples that share a part of their chain."""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.evaluation.figures.shared import make_branch_fn
from tests.tiny import SCHEDULE, SHAPE, denoiser_of, draw_samples, in_one_piece, live_params


def test_branches_share_the_chain_down_to_their_timestep():
  step = in_one_piece(make_branch_fn(denoiser_of, SCHEDULE, SHAPE, variance='fixedlarge'))

  def draw(ids, branches, timesteps):
    arrays = map(jnp.asarray, (ids, branches, timesteps))
    batch = dict(zip(('ids', 'branches', 'timesteps'), arrays, strict=True))
    return np.asarray(step(live_params(), batch, jax.random.key(0)).x)

  # All of the chain: the sample of this id, whatever the branch.
  whole = draw([5, 5, 6], [0, 1, 0], [0, 0, 0])
  np.testing.assert_allclose(whole, draw_samples([5, 5, 6]), atol=1e-5)
  # The fewer steps are one's own, the closer are the branches of one chain.
  distances = []
  for timestep in (1, 9):
    branches = draw([0] * 8, list(range(8)), [timestep] * 8)
    distances.append(branches.std(axis=0).mean())
  assert 0.01 < distances[0] < 0.6 * distances[1]
