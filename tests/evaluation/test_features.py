"""The step that takes features and logits from a network's output."""

import jax.numpy as jnp
import numpy as np

from ddpm_jax.evaluation.features import make_feature_fn


class Network:
  """Its output, by names: the mean of each channel, once times params."""

  def apply(self, variables, images):
    mean = images.mean(axis=(1, 2))
    return {'pool': mean, 'last': mean * variables['params'], 'other': mean}


def test_grey_is_repeated_to_three_channels_where_the_network_takes_colour():
  images = np.random.default_rng(0).random((2, 4, 4, 1), np.float32)
  step = make_feature_fn(Network(), 'pool', 'last', repeats_grey=True)
  grey, colour = step(2.0, images), step(2.0, images.repeat(3, axis=-1))
  assert grey['features'].shape == (2, 3)
  np.testing.assert_array_equal(grey['features'], colour['features'])
  assert make_feature_fn(Network(), 'pool', 'last')(2.0, images)['features'].shape == (2, 1)


def test_feature_step_names_what_it_takes():
  output = make_feature_fn(Network(), 'pool', 'last')(2.0, jnp.ones((3, 4, 4, 1)))
  assert output.keys() == {'features', 'logits'}
  np.testing.assert_array_equal(output['logits'], 2 * np.ones((3, 1)))
