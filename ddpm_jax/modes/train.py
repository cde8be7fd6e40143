"""--mode=train: trains until it is done, or a signal stops it."""

from ml_collections import ConfigDict

from ddpm_jax import trainer
from ddpm_jax.training.signals import Signals


def train(config: ConfigDict, workdir: str) -> None:
  """Trains from the newest checkpoint, or from the start, to config.train.num_steps.

  SIGTERM and SIGINT end the run after the step in hand, with a checkpoint.

  Args:
    config: ConfigDict.
    workdir: folder of the run.

  Raises:
    UserError, NotFiniteError, WriteError: as trainer.run.
  """
  trainer.run(config, workdir, Signals())
