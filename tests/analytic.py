"""Networks and data of which everything is known, for the tests of the mathematics."""

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion import (
  Parameterization,
  Prediction,
  make_denoiser,
  q_posterior_mean_variance,
)
from ddpm_jax.sampling import clipped

ORIGINAL_VARIANCES = ('fixedsmall', 'fixedlarge', 'learned')
MIXTURE = {'weights': [0.3, 0.7], 'means': [-0.8, 0.5], 'stds': [0.3, 0.2]}


def reference_network(variance):
  """(x_t, t) -> output: what the original program's loops had for a network, for T = 10.

  For a learned variance it returns the log-variance, too.
  """

  def network(x, t):
    a = (t.astype(jnp.float32) / 10).reshape(-1, 1, 1, 1)
    output = 0.8 * jnp.tanh(0.7 * x + 0.3 * a - 0.1) + 0.1 * x * a
    if variance != 'learned':
      return output
    return jnp.concatenate([output, -3 - 2 * a + 0.5 * jnp.sin(x)], axis=-1)

  return network


def noise_level(schedule, x_t, t):
  """(sqrt(alphas_cumprod), sqrt(1 - alphas_cumprod)) at t, to multiply x_t by."""
  shape = (-1,) + (1,) * (x_t.ndim - 1)
  tables = np.sqrt(schedule.alphas_cumprod), np.sqrt(1 - schedule.alphas_cumprod)
  return tuple(jnp.asarray(table, x_t.dtype)[t].reshape(shape) for table in tables)


def true_output(mean, schedule, x_0, eps, x_t, t):
  """What a network that knew x_0 and eps would return, by the kind of its prediction.

  It is linear in them: their expectations given x_t make the expectation of the output.
  """
  alpha, sigma = noise_level(schedule, x_t, t)
  return {
    'eps': eps,
    'xstart': x_0,
    'xprev': q_posterior_mean_variance(schedule, x_0, x_t, t)[0],
    'v': alpha * eps - sigma * x_0,
    # (x_0 - c_skip x) / c_out with x = x_t / alpha, of data whose deviation is 1/2.
    'edm': (sigma * x_0 - alpha / 4 * eps) / (0.5 * jnp.sqrt(sigma**2 + alpha**2 / 4)),
  }[mean]


def given(mean, schedule, x, time):
  """(x_t, t) of which a network of a kind of prediction is given x and time."""
  if mean != 'edm':
    return x, time
  log_sigmas = 0.5 * np.log(1 / schedule.alphas_cumprod - 1)
  t = jnp.argmin(jnp.abs(jnp.asarray(log_sigmas, time.dtype)[None] - 4 * time[:, None]), axis=1)
  alpha, sigma = noise_level(schedule, x, t)
  return x * jnp.sqrt(sigma**2 + alpha**2 / 4), t


def network_from_eps(mean, schedule, eps_network):
  """The network of another prediction that says the same as one that predicts eps."""

  def network(x, time):
    x_t, t = given(mean, schedule, x, time)
    eps = eps_network(x_t, t)
    alpha, sigma = noise_level(schedule, x_t, t)
    return true_output(mean, schedule, (x_t - sigma * eps) / alpha, eps, x_t, t)

  return network


def mixture_network(schedule, weights, means, stds):
  """(x_t, t) -> E[eps | x_t] for pixels that are independent draws of a Gaussian mixture."""

  def network(x, t):
    alpha, sigma = (level[..., None] for level in noise_level(schedule, x, t))
    w, m, d = (jnp.asarray(v, x.dtype).reshape(*[1] * x.ndim, -1) for v in (weights, means, stds))
    variance = alpha**2 * d**2 + sigma**2
    offset = x[..., None] - alpha * m
    shares = jax.nn.softmax(jnp.log(w / jnp.sqrt(variance)) - offset**2 / (2 * variance), axis=-1)
    return (shares * sigma * offset / variance).sum(-1)

  return network


def gaussian_posterior_variances(schedule, std):
  """For pixels of variance std^2: those of x_0 given x_t and of x_{t-1} given x_t, float64 [T]."""
  noise = 1 - schedule.alphas_cumprod
  of_x_0 = std**2 * noise / (schedule.alphas_cumprod * std**2 + noise)
  # By the law of total variance.
  return of_x_0, schedule.posterior_variance + schedule.posterior_mean_coef1**2 * of_x_0


def with_log_variance(network, log_variances, mean='eps', schedule=None):
  """The network with log_variances[t] in channels of its own, as a learned variance has them."""

  def wider_network(x, time):
    _, t = given(mean, schedule, x, time)
    log_variance = jnp.asarray(log_variances, x.dtype)[t].reshape(-1, *[1] * (x.ndim - 1))
    return jnp.concatenate([network(x, time), jnp.broadcast_to(log_variance, x.shape)], axis=-1)

  return wider_network


def range_channels(schedule, log_variances):
  """The channels of learned_range that stand for log_variances, float64 [T]."""
  least, most = schedule.posterior_log_variance_clipped, np.log(schedule.betas)
  return 2 * (log_variances - least) / (most - least) - 1


def predict(schedule, output, x_t, t, *, mean, variance, clip='none'):
  """The Prediction from a network that returns `output`, whatever it is given."""
  parameterization = Parameterization(mean, variance)
  denoiser = make_denoiser(lambda x_t, t: output, parameterization, schedule)
  return clipped(denoiser, clip)(x_t, t)


def batch_noise_fn(shape, seed=0):
  """t -> noise ~ N(0, I) of this shape, a function of the seed and t."""
  return lambda t: jax.random.normal(jax.random.fold_in(jax.random.key(seed), t), shape)


class VectorMixture:
  """Examples of `shape` that are draws of a mixture of Gaussians with full covariances.

  Args:
    weights: [K].
    means: [K, d], d the elements of an example.
    covariances: [K, d, d].
    shape: of an example.
  """

  def __init__(self, weights, means, covariances, shape):
    self.weights, self.means, self.covariances = map(np.asarray, (weights, means, covariances))
    self.shape, self.size = shape, self.means.shape[1]

  def denoiser(self, schedule):
    """(x_t, t) -> the Prediction of E[x_0 | x_t]."""
    abar = schedule.alphas_cumprod[:, None, None, None]
    inverse = np.linalg.inv(abar * self.covariances + (1 - abar) * np.eye(self.size))
    tables = {
      'gain': np.sqrt(abar) * self.covariances @ inverse,
      'inverse': inverse,
      'log_weight': np.log(self.weights) + 0.5 * np.linalg.slogdet(inverse)[1],
      'center': np.sqrt(abar[..., 0]) * self.means,
    }
    tables = {name: jnp.asarray(table, jnp.float32) for name, table in tables.items()}

    def denoiser(x_t, t):
      now = {name: table[t] for name, table in tables.items()}
      z = x_t.reshape(len(x_t), 1, self.size) - now['center']
      distance = jnp.einsum('bki,bkij,bkj->bk', z, now['inverse'], z)
      shares = jax.nn.softmax(now['log_weight'] - 0.5 * distance, axis=-1)
      means = jnp.asarray(self.means, x_t.dtype)[None] + jnp.einsum('bkij,bkj->bki', now['gain'], z)
      return Prediction((shares[..., None] * means).sum(1).reshape(x_t.shape))

    return denoiser

  def posterior(self, matrix, y):
    """Mean [d] and covariance [d, d] of x_0 given matrix x_0 = y, for a matrix [m, d] of rank m."""
    shares, means, covariances = [], [], []
    for weight, mean, cov in zip(self.weights, self.means, self.covariances, strict=True):
      gram, offset = matrix @ cov @ matrix.T, y - matrix @ mean
      gain = cov @ matrix.T @ np.linalg.inv(gram)
      distance = offset @ np.linalg.solve(gram, offset)
      shares.append(weight * np.exp(-0.5 * distance) / np.sqrt(np.linalg.det(gram)))
      means.append(mean + gain @ offset)
      covariances.append(cov - gain @ matrix @ cov)
    shares = np.array(shares) / np.sum(shares)
    mean = shares @ np.array(means)
    between = np.array(means) - mean
    return mean, np.einsum('k,kij->ij', shares, np.array(covariances)) + between.T @ (
      shares[:, None] * between
    )


def _correlated(variance, correlation):
  index = np.arange(4)
  return variance * correlation ** np.abs(index[:, None] - index)


# 2 x 2 pixels: of independent ones, of a line of correlated ones, and two kinds of pictures.
PICTURES = {
  'independent': VectorMixture(
    [1.0], [[0.3, -0.2, 0.1, 0.4]], [0.25 * np.eye(4)], (2, 2, 1)
  ),
  'correlated': VectorMixture(
    [1.0], [[0.3, -0.2, 0.1, 0.4]], [_correlated(0.25, 0.7)], (2, 2, 1)
  ),
  'mixture': VectorMixture(
    [0.4, 0.6],
    [[0.5, 0.5, 0.3, 0.2], [-0.5, -0.3, -0.5, 0.1]],
    [_correlated(0.06, 0.5), _correlated(0.09, -0.3)],
    (2, 2, 1),
  ),
}  # fmt: skip


class LabelledMixture:
  """Data of classes that are Gaussians: x_0 of class k ~ N(means[k], stds[k]^2 I).

  Attributes:
    weights [K], means [K, ..., C], stds [K].
  """

  def __init__(self, schedule, weights, means, stds):
    self.schedule = schedule
    self.weights, self.means, self.stds = (
      np.asarray(x, np.float32) for x in (weights, means, stds)
    )

  def log_densities(self, x_t, t):
    """log p(x_t | k), [B, K]."""
    alpha, sigma = (level[:, None] for level in noise_level(self.schedule, x_t, t))
    axes = tuple(range(2, x_t.ndim + 1))
    variance = alpha**2 * self.stds.reshape(1, -1, *[1] * (x_t.ndim - 1)) ** 2 + sigma**2
    terms = jnp.square(x_t[:, None] - alpha * self.means[None]) / variance
    return -0.5 * (terms + jnp.log(2 * np.pi * variance)).sum(axes)

  def log_prob(self, x_t, t, labels):
    """log p(k | x_t) by Bayes' rule, [B]: an exact classifier of noisy examples."""
    joint = self.log_densities(x_t, t) + jnp.log(self.weights)[None]
    return jax.nn.log_softmax(joint)[jnp.arange(len(labels)), labels]

  def denoiser(self, labels=None):
    """E[x_0 | x_t, label]; without labels E[x_0 | x_t]."""

    def denoiser(x_t, t):
      alpha, sigma = (level[:, None] for level in noise_level(self.schedule, x_t, t))
      variance = self.stds.reshape(1, -1, *[1] * (x_t.ndim - 1)) ** 2
      gain = alpha * variance / (alpha**2 * variance + sigma**2)
      x_0 = self.means[None] + gain * (x_t[:, None] - alpha * self.means[None])
      if labels is None:
        shares = jax.nn.softmax(self.log_densities(x_t, t) + jnp.log(self.weights)[None])
      else:
        shares = jax.nn.one_hot(labels, len(self.weights))
      return Prediction((x_0 * shares.reshape(*shares.shape, *[1] * (x_t.ndim - 1))).sum(1))

    return denoiser
