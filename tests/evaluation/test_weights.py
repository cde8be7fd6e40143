"""Parameters and what names them."""

import hashlib

import jax
import numpy as np

from ddpm_jax import devices
from ddpm_jax.evaluation.weights import make_weights
from ddpm_jax.storage.identity import Identity

PARAMS = {
  'a': {'kernel': np.arange(6, dtype=np.float32).reshape(2, 3), 'bias': np.ones(3, np.float32)},
  'b': np.float32([0.5]),
}


def test_sha256_is_over_all_parameters_in_the_order_of_their_names():
  content = b''.join(
    np.float32(values).tobytes() for values in ([1, 1, 1], [0, 1, 2, 3, 4, 5], [0.5])
  )
  expected = hashlib.sha256(content).hexdigest()
  assert make_weights(4, PARAMS).sha256 == expected
  assert make_weights(4, devices.replicate(PARAMS)).sha256 == expected


def test_sha256_changes_with_every_parameter():
  leaves, structure = jax.tree.flatten(PARAMS)
  hashes = {make_weights(4, PARAMS).sha256}
  for number, leaf in enumerate(leaves):
    changed = leaf.copy()
    changed.flat[-1] = np.nextafter(changed.flat[-1], np.float32(9))  # by one bit
    changed = [*leaves[:number], changed, *leaves[number + 1 :]]
    hashes.add(make_weights(4, jax.tree.unflatten(structure, changed)).sha256)
  assert len(hashes) == 4


def test_an_identity_is_completed_by_step_and_parameters():
  weights = make_weights(4, PARAMS, 'of the manifest')
  identity = Identity(seed=3, choices={'terms': 4})
  completed = weights.identify(identity)
  assert completed == Identity(step=4, parameters=weights.sha256, seed=3, choices={'terms': 4})
  assert identity.step is None
  assert weights.checkpoint_sha256 == 'of the manifest'
  assert make_weights(4, PARAMS).checkpoint_sha256 is None
  assert make_weights(4, PARAMS).identify(identity) == completed  # which it does not decide
