"""What tests of modes share: a workdir."""

import pytest

from tests.untrained import save_untrained


@pytest.fixture(scope='module')
def workdir(one_layer, tmp_path_factory):
  """A workdir with a checkpoint of that network, of a state that never saw a step."""
  return save_untrained(tmp_path_factory.mktemp('trained'))
