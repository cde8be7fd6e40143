"""The bound of an image is a function of it, its id and the key, in whatever batch it comes."""

import jax
import numpy as np
import pytest

from ddpm_jax.evaluation.bound import make_bpd_fns
from tests.tiny import SCHEDULE, denoiser_of, in_one_piece, live_params


@pytest.mark.parametrize('num_terms', [None, 4])
def test_bound_of_an_image_depends_on_it_its_id_and_the_key_alone(num_terms):
  step = in_one_piece(
    make_bpd_fns(denoiser_of, SCHEDULE, variance='fixedlarge', num_terms=num_terms)
  )
  images = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 1), np.uint8)

  def bound(rows, seed=0):
    batch = {'images': images[rows], 'ids': np.asarray(rows, np.int32)}
    return jax.tree.map(np.asarray, step(live_params(), batch, jax.random.key(seed)))

  all_rows = bound([0, 1, 2, 3])
  assert all_rows['vb'].shape == (4, num_terms or 10)
  for rows in ([3, 1], [2]):
    for name, values in bound(rows).items():
      np.testing.assert_allclose(values, all_rows[name][rows], rtol=1e-4, atol=1e-6)
  assert (bound([0, 1, 2, 3], seed=1)['total_bpd'] != all_rows['total_bpd']).all()
