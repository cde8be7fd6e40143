"""Trains the digits classifier of --mode=eval, and writes ddpm_jax/nn/digits_classifier.npz.

  python scripts/train_digits_classifier.py

A minute on two CPU cores. It learns from the 1,497 training digits alone, shifted by up to a pixel
and with a little noise; on the 300 test digits about 99% are right.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax.data.digits import load_digits
from ddpm_jax.evaluation.features import DIGITS_FILE, save_params
from ddpm_jax.nn.digits_classifier import DigitsClassifier

BATCH_SIZE = 128
NOISE = 16.0  # standard deviation, of 255
WEIGHT_DECAY = 1e-2


def train(num_steps, *, seed=0):
  """Returns the parameters after so many steps."""
  images, labels = load_digits('train')
  images, labels = jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32)
  model = DigitsClassifier()
  key = jax.random.key(seed)
  params = model.init(key, images[:1])['params']
  rate = optax.warmup_cosine_decay_schedule(0.0, 2e-3, num_steps // 20, num_steps)
  optimizer = optax.adamw(rate, weight_decay=WEIGHT_DECAY)

  def augment(key, image):
    shift_key, noise_key = jax.random.split(key)
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
    row, column = jax.random.randint(shift_key, (2,), 0, 3)
    shifted = jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)
    return jnp.clip(shifted + NOISE * jax.random.normal(noise_key, image.shape), 0, 255)

  def loss_fn(params, images, labels):
    logits = model.apply({'params': params}, images)['logits']
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  @jax.jit
  def step(params, opt_state, i):
    batch_key, augment_key = jax.random.split(jax.random.fold_in(key, i))
    rows = jax.random.randint(batch_key, (BATCH_SIZE,), 0, len(images))
    batch = jax.vmap(augment)(jax.random.split(augment_key, BATCH_SIZE), images[rows])
    grads = jax.grad(loss_fn)(params, batch, labels[rows])
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  opt_state = optimizer.init(params)
  for i in range(num_steps):  # not a scan: XLA's CPU convolutions are slow within a loop
    params, opt_state = step(params, opt_state, i)
  return params


def accuracy(params, split):
  """Share of a split's digits that are classified as labelled."""
  images, labels = load_digits(split)
  logits = DigitsClassifier().apply({'params': params}, images)['logits']
  return float((np.argmax(logits, axis=1) == labels).mean())


def main():
  """Trains, tells the accuracy, writes the file."""
  params = train(2000)
  print(f'right: {accuracy(params, "train"):.4f} of train, {accuracy(params, "test"):.4f} of test')
  save_params(params, DIGITS_FILE)
  print(f'{DIGITS_FILE}: {DIGITS_FILE.stat().st_size:,} bytes')


if __name__ == '__main__':
  main()
