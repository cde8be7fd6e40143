"""The tiny pipeline of diffusers that lies in reference/."""

import shutil

import jax
import pytest

from configs import default
from ddpm_jax.config import build
from tests.conftest import REFERENCE


@pytest.fixture(scope='session')
def pipeline_config():
  """The config whose model it is."""
  config = default.get_config()
  config.data.image_size = 16
  config.model.update(ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(8,))
  return config


@pytest.fixture(scope='session')
def pipeline_like(pipeline_config):
  """Its parameters as ShapeDtypeStructs."""
  return jax.eval_shape(lambda: build.init_params(pipeline_config))


@pytest.fixture
def pipeline(tmp_path):
  """A copy of its folder."""
  return shutil.copytree(REFERENCE / 'diffusers' / 'pipeline', tmp_path / 'pipeline')
