"""Parameters that are sampled from and measured, with what names them."""

import hashlib
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax.storage.identity import Identity


class Weights(NamedTuple):
  """Parameters of one training step.

  Attributes:
    step: training step.
    params: the parameters, replicated.
    sha256: of the parameters.
    checkpoint_sha256: of the checkpoint's manifest; None if they are not from a checkpoint.
  """

  step: int
  params: Any
  sha256: str
  checkpoint_sha256: str | None = None

  def identify(self, identity: Identity) -> Identity:
    """An identity, completed by these parameters."""
    return identity.but(step=self.step, parameters=self.sha256)


def parameters_sha256(params: Any) -> str:
  """sha256 (hex) of all parameters."""
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(params):
    digest.update(np.asarray(leaf).tobytes())
  return digest.hexdigest()


def make_weights(step: int, params: Any, checkpoint_sha256: str | None = None) -> Weights:
  """Weights, with the sha256 of all parameters."""
  return Weights(step, params, parameters_sha256(params), checkpoint_sha256)
