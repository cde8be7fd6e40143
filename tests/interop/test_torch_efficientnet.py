import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.interop.torch_efficientnet import expected_shapes, params_from_torch
from ddpm_jax.nn.efficientnet import EfficientNetLite, Stage

NETWORK = EfficientNetLite(
  stages=(Stage(1, 3, 1, 1, 4),), stem_channels=4, num_features=5, num_classes=3, image_size=8
)


@pytest.fixture
def state_dict():
  return {name: np.ones(shape, np.float32) for name, shape in expected_shapes(NETWORK).items()}


def test_names_and_shapes_are_those_of_the_published_file(reference):
  published = reference('efficientnet_shapes.json')
  counters = {name for name in published if name.endswith('num_batches_tracked')}
  expected = {name: list(shape) for name, shape in expected_shapes(EfficientNetLite()).items()}
  assert expected == {name: shape for name, shape in published.items() if name not in counters}
  assert len(counters) == 49


def test_kernels_are_turned_and_norms_folded(state_dict):
  # Every norm here is (x - 1) / sqrt(1.001) + 1. What it does to other numbers is batch_norm's.
  kernels = {
    '_conv_stem': np.arange(4 * 3 * 9.0).reshape(4, 3, 3, 3),
    '_blocks.0._depthwise_conv': np.arange(4 * 9.0).reshape(4, 1, 3, 3),
  }
  state_dict |= {f'{name}.weight': kernel for name, kernel in kernels.items()}
  state_dict['_fc.weight'] = np.arange(15.0).reshape(3, 5)
  params = params_from_torch(NETWORK, state_dict)
  for name, leaf in (
    ('_conv_stem', params['conv_stem']),
    ('_blocks.0._depthwise_conv', params['blocks_0']['depthwise_conv']),
  ):
    expected = kernels[name].transpose(2, 3, 1, 0) / np.sqrt(1.001)
    np.testing.assert_allclose(leaf['kernel'], expected, rtol=1e-6)
    np.testing.assert_allclose(leaf['bias'], 1 - 1 / np.sqrt(1.001), rtol=1e-4)
  np.testing.assert_array_equal(params['fc']['kernel'], state_dict['_fc.weight'].T)


def test_counters_of_training_are_not_needed(state_dict):
  params_from_torch(NETWORK, state_dict | {'_bn0.num_batches_tracked': np.array(7)})


@pytest.mark.parametrize(
  ('name', 'shape', 'message'),
  [
    ('_fc.bias', None, r'1 missing: _fc\.bias \(3,\)$'),
    ('_blocks.0._bn0.bias', (4,), r'1 unknown: _blocks\.0\._bn0\.bias \(4,\)$'),
    ('_fc.bias', (4,), r'1 of another shape: _fc\.bias \(4,\), wanted \(3,\)$'),
  ],
)
def test_other_tensors_are_named(state_dict, name, shape, message):
  state_dict[name] = np.zeros(shape or ())
  if shape is None:
    del state_dict[name]
  with pytest.raises(UserError, match=f'^not this EfficientNet-Lite: {message}'):
    params_from_torch(NETWORK, state_dict)
