"""A config file whose argument is a folder: --config=.../stored.py:WORKDIR is the config there."""

from ml_collections import ConfigDict

from ddpm_jax.config.origins import config_of


def get_config(path: str) -> ConfigDict:
  """The config of a workdir or of a model."""
  return config_of(path)
