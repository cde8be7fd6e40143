"""A workdir to draw from, for tests that need no trained model."""

from ddpm_jax.config import build
from ddpm_jax.trainer import make_init, restore_or_init
from tests.tiny import tiny_config


def save_untrained(folder):
  """Saves the checkpoint 2 of a workdir, of a state that never saw a step; returns the workdir."""
  config = tiny_config()
  with build.checkpointer(config, folder) as checkpoints:
    checkpoints.save(2, restore_or_init(config, checkpoints, make_init(config)))
  return folder
