import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.interop.torch_inception import inception_params_like, params_from_torch
from ddpm_jax.nn.inception import InceptionV3, resize_bilinear_tf1
from tests.torch_writer import fill_state_dict

FEATURES = ('64', '192', '768', '2048', 'logits', 'logits_unbiased')


@pytest.fixture(scope='module')
def state_dict(reference):
  seed = int(reference('inception')['seed'])
  return fill_state_dict(reference('inception_shapes.json'), seed)


@pytest.fixture(scope='module')
def features(reference, state_dict):
  """The features of the reference's images of both sizes, {'a' or 'b': {name: array}}."""
  apply = jax.jit(lambda params, images: InceptionV3().apply({'params': params}, images))
  params = params_from_torch(state_dict)
  return {group: apply(params, reference('inception')[f'{group}/images']) for group in 'ab'}


@pytest.mark.parametrize('group', ['a', 'b'])
def test_features_are_the_reference_ones(reference, relative_error, features, group):
  assert set(features[group]) == set(FEATURES)
  for name in FEATURES:
    assert features[group][name].dtype == np.float32
    assert relative_error(features[group][name], reference('inception')[f'{group}/{name}']) < 1e-5


def test_float_images_are_as_good_as_uint8(reference):
  # The network begins with the resize, where the dtype ends.
  images = reference('inception')['a/images']
  np.testing.assert_array_equal(
    resize_bilinear_tf1(images.astype(np.float32)), resize_bilinear_tf1(images)
  )


@pytest.mark.parametrize('group', ['a', 'b'])
def test_resize_is_the_reference_one(reference, relative_error, group):
  arrays = reference('inception')
  resized = resize_bilinear_tf1(arrays[f'{group}/images'])
  assert resized.shape == (len(resized), 299, 299, 3)
  crop = resized[:, 100:140, 200:240]
  assert relative_error(crop, arrays[f'{group}/resized_crop']) < 1e-6


def test_resize_interpolates_between_top_left_corners():
  # Row i of the output lies at row i / 2 of the input; below the last row there is nothing else.
  ramp = jnp.array([0.0, 10.0, 30.0])[None, :, None, None] * jnp.ones((1, 1, 3, 1))
  resized = resize_bilinear_tf1(ramp, 6)
  np.testing.assert_allclose(resized[0, :, 0, 0], [0, 5, 10, 20, 30, 30], rtol=1e-6)
  np.testing.assert_allclose(resized, resized[:, :, :1].repeat(6, 2), rtol=1e-6)


def test_resize_to_the_same_size_changes_nothing():
  images = np.random.RandomState(0).randint(0, 256, (2, 9, 9, 3)).astype(np.uint8)
  np.testing.assert_array_equal(resize_bilinear_tf1(images, 9), images)


def test_downsizing_takes_every_nth_pixel():
  images = np.random.RandomState(0).randint(0, 256, (1, 12, 8, 3)).astype(np.uint8)
  np.testing.assert_array_equal(resize_bilinear_tf1(images, 4), images[:, ::3, ::2])


def test_batch_norm_is_folded(state_dict):
  # Against the norm's own formula, for one layer.
  params = params_from_torch(state_dict)['Mixed_6b']['branch7x7_2']
  gamma, beta, mean, variance = (
    state_dict[f'Mixed_6b.branch7x7_2.bn.{name}'].astype(np.float64)
    for name in ('weight', 'bias', 'running_mean', 'running_var')
  )
  x = np.random.RandomState(0).randn(7, 128)
  kernel = state_dict['Mixed_6b.branch7x7_2.conv.weight'].astype(np.float64)  # [128, 128, 1, 7]
  convolved = np.einsum('wi,oiw->o', x, kernel[:, :, 0])
  normed = (convolved - mean) / np.sqrt(variance + 0.001) * gamma + beta
  folded = np.einsum('wi,wio->o', x, params['kernel'][0]) + params['bias']
  np.testing.assert_allclose(folded, normed, atol=1e-4)


def test_params_are_of_the_wanted_form(state_dict):
  params, like = params_from_torch(state_dict), inception_params_like()
  assert jax.tree.map(lambda array: (array.shape, array.dtype), params) == jax.tree.map(
    lambda array: (array.shape, array.dtype), like
  )


def test_counters_of_training_are_not_needed(state_dict):
  without = {name: array for name, array in state_dict.items() if 'num_batches_tracked' not in name}
  assert len(without) == len(state_dict) - 94
  params_from_torch(without)


def test_missing_tensors(state_dict):
  part = {name: array for name, array in state_dict.items() if not name.startswith('fc.')}
  with pytest.raises(UserError, match=r'2 missing: fc\.weight \(1008, 2048\), fc\.bias \(1008,\)$'):
    params_from_torch(part)


def test_unknown_tensors(state_dict):
  with pytest.raises(UserError, match=r'1 unknown: AuxLogits\.fc\.bias \(1000,\)$'):
    params_from_torch(state_dict | {'AuxLogits.fc.bias': np.zeros(1000)})


def test_tensors_of_another_shape(state_dict):
  other = {'fc.weight': np.zeros((1000, 2048)), 'fc.bias': np.zeros(1000)}
  match = r'2 of another shape: fc\.weight \(1000, 2048\), wanted \(1008, 2048\), fc\.bias '
  with pytest.raises(UserError, match=match):
    params_from_torch(state_dict | other)
