"""What tests of modes share: a network that compiles at once."""

import pytest

from ddpm_jax.config import build
from tests.tiny import OneLayer
from tests.untrained import save_untrained


@pytest.fixture(scope='module')
def one_layer():
  """A network that compiles at once."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(build, 'model', lambda config: OneLayer())
    yield


@pytest.fixture(scope='module')
def workdir(one_layer, tmp_path_factory):
  """A workdir with a checkpoint of that network, of a state that never saw a step."""
  return save_untrained(tmp_path_factory.mktemp('trained'))
