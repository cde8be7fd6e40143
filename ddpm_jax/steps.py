"""Step factories: plain values in, pure functions of arrays on one device out.

Everything random is drawn per example, from its row in the global batch or its id, so that results
do not depend on how a batch is split over devices.
"""

import jax
import jax.numpy as jnp
import optax

from ddpm_jax import diffusion, samplers
from ddpm_jax.train_state import apply_gradients


def scale_images(images):
  """uint8 [0, 255] -> float32 [-1, 1]."""
  return images.astype(jnp.float32) / 127.5 - 1.0


def fold_rows(key, rows):
  """A key for each row: key array [B]."""
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)


def make_train_step(
  model,
  schedule,
  optimizer,
  learning_rate_fn,
  *,
  mean_type,
  var_type,
  loss_type,
  ema_decay,
  random_flip,
  axis_name=None,
):
  """One step of Alg. 1: draw t and noise, descend, average.

  Args:
    model: UNet.
    schedule: NoiseSchedule.
    optimizer: optax transformation.
    learning_rate_fn: step -> learning rate, for the metrics.
    mean_type, var_type, loss_type: as diffusion.training_losses.
    ema_decay: of the parameters' moving average.
    random_flip: mirror each image left-right with probability 1/2.
    axis_name: of the devices that share a batch, each with an equal part; None for one device.

  Returns:
    (state, images uint8 [B, H, W, C], key) -> (state, metrics), metrics being scalars: loss and
    grad_norm (before clipping), each of the global batch, and learning_rate.
  """

  def loss_fn(params, x_start, t, noise, rows, dropout_key):
    def denoise_fn(x_t, t):
      return model.apply(
        {'params': params}, x_t, t, train=True, rows=rows, rngs={'dropout': dropout_key}
      )

    losses = diffusion.training_losses(
      schedule,
      denoise_fn,
      x_start,
      t,
      noise,
      mean_type=mean_type,
      var_type=var_type,
      loss_type=loss_type,
    )
    return losses.mean()

  def draw(key, shape):
    t_key, noise_key, flip_key = jax.random.split(key, 3)
    t = jax.random.randint(t_key, (), 0, schedule.num_timesteps)
    return t, jax.random.normal(noise_key, shape), jax.random.bernoulli(flip_key)

  def train_step(state, images, key):
    rows = jnp.arange(images.shape[0])
    if axis_name is not None:
      rows += images.shape[0] * jax.lax.axis_index(axis_name)
    draw_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
    t, noise, flip = jax.vmap(draw, in_axes=(0, None))(fold_rows(draw_key, rows), images.shape[1:])
    x_start = scale_images(images)
    if random_flip:
      x_start = jnp.where(flip[:, None, None, None], x_start[:, :, ::-1], x_start)
    loss, grads = jax.value_and_grad(loss_fn)(state.params, x_start, t, noise, rows, dropout_key)
    if axis_name is not None:
      loss, grads = jax.lax.pmean((loss, grads), axis_name)
    metrics = {
      'loss': loss,
      'grad_norm': optax.tree.norm(grads),
      'learning_rate': learning_rate_fn(state.step),
    }
    return apply_gradients(state, grads, optimizer, ema_decay=ema_decay), metrics

  return train_step


def make_sample_step(model, schedule, image_shape, *, mean_type, var_type):
  """The whole reverse chain (Alg. 2) for a batch of ids.

  Args:
    model: UNet.
    schedule: NoiseSchedule.
    image_shape: (H, W, C).
    mean_type, var_type: as diffusion.p_mean_variance; x_0 is clipped to [-1, 1] in every step.

  Returns:
    (params, ids int [B], key) -> x_0 float32 [B, H, W, C], not clipped; row i is a function of
    (params, key, ids[i]) alone.
  """

  def sample_step(params, ids, key):
    noise_fn = samplers.make_noise_fn(fold_rows(key, ids), image_shape)
    return samplers.ancestral(
      schedule,
      lambda x_t, t: model.apply({'params': params}, x_t, t),
      noise_fn(schedule.num_timesteps),  # steps use t < T, so T is free for x_T
      noise_fn,
      mean_type=mean_type,
      var_type=var_type,
    )

  return sample_step
