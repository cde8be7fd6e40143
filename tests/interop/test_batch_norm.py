import numpy as np

from ddpm_jax.interop import batch_norm


def test_folded_convolution_is_the_convolution_and_its_norm():
  # At one position, against the norm's own formula.
  rng = np.random.default_rng(0)
  kernel = rng.standard_normal((5, 3, 2, 4))  # out, in, H, W
  gamma, beta, mean, variance = rng.uniform(0.5, 2, (4, 5))
  state_dict = {
    'a.conv.weight': kernel,
    'a.bn.weight': gamma,
    'a.bn.bias': beta,
    'a.bn.running_mean': mean,
    'a.bn.running_var': variance,
  }
  x = rng.standard_normal((2, 4, 3))
  convolved = np.einsum('hwi,oihw->o', x, kernel)
  normed = (convolved - mean) / np.sqrt(variance + 1e-3) * gamma + beta
  found, bias = batch_norm.folded(state_dict, 'a.conv', 'a.bn')
  np.testing.assert_allclose(np.einsum('hwi,hwio->o', x, found) + bias, normed, rtol=1e-12)
  shapes = batch_norm.shapes('a.conv', 'a.bn', found.shape)
  assert shapes == {name: array.shape for name, array in state_dict.items()}


def test_counters_are_left_out():
  state_dict = {'a.bn.num_batches_tracked': np.array(3), 'a.bn.bias': np.zeros(5)}
  assert batch_norm.without_counters(state_dict).keys() == {'a.bn.bias'}
