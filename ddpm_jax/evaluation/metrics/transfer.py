"""Train on one set, test on another: what labelled examples are worth to a classifier.

Esteban et al. 2017 (TSTR and TRTS), with the small classifier of nn/classifier.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax.nn.classifier import Classifier, standardisation

NUM_STEPS = 400
BATCH_SIZE = 64
LEARNING_RATE = 2e-3


def train_classifier(
  x_0: np.ndarray,
  classes: np.ndarray,
  num_classes: int,
  *,
  seed: int = 0,
  num_steps: int = NUM_STEPS,
  noise: float = 0.1,
) -> dict:
  """The parameters of a Classifier of values of any kind.

  Args:
    x_0: float [N, ..., C].
    classes: int [N].
    num_classes: of the logits.
    seed: of the first parameters, the batches and the noise.
    num_steps: of Adam, each with a batch of BATCH_SIZE, drawn with replacement.
    noise: that is added to batches, in standard deviations of a channel.
  """
  network = Classifier(num_classes, levels=None)
  x_0, classes = jnp.asarray(x_0, jnp.float32), jnp.asarray(classes, jnp.int32)
  key = jax.random.key(seed)
  fixed = standardisation(np.asarray(x_0))
  params = network.init(key, x_0[:1])['params'] | fixed
  deviation = noise * jnp.expand_dims(fixed['deviation'], range(x_0.ndim - 1))
  rate = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, num_steps // 20, num_steps)
  optimizer = optax.adam(rate)

  def loss_fn(learned, batch, labels):
    logits = network.apply({'params': learned | fixed}, batch)['logits']
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  @jax.jit
  def step(learned, opt_state, i):
    row_key, noise_key = jax.random.split(jax.random.fold_in(key, i))
    rows = jax.random.randint(row_key, (BATCH_SIZE,), 0, len(x_0))
    batch = x_0[rows]
    batch += deviation * jax.random.normal(noise_key, batch.shape)
    grads = jax.grad(loss_fn)(learned, batch, classes[rows])
    updates, opt_state = optimizer.update(grads, opt_state, learned)
    return optax.apply_updates(learned, updates), opt_state

  learned = {name: leaf for name, leaf in params.items() if name not in fixed}
  opt_state = optimizer.init(learned)
  for i in range(num_steps):  # not a scan: XLA's CPU convolutions are slow within a loop
    learned, opt_state = step(learned, opt_state, i)
  return learned | fixed


def accuracy(params: dict, x_0: np.ndarray, classes: np.ndarray, num_classes: int) -> float:
  """The share of examples whose likeliest class is their own."""
  network = Classifier(num_classes, levels=None)
  logits = jax.jit(network.apply)({'params': params}, jnp.asarray(x_0, jnp.float32))['logits']
  return float((np.argmax(logits, axis=1) == classes).mean())
