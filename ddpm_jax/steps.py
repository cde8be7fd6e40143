"""Step factories: plain values in, pure functions of arrays on one device out.

Everything random is drawn per example, from its row in the global batch or its id, so that results
do not depend on how a batch is split over devices.
"""

import jax
import jax.numpy as jnp
import optax

from ddpm_jax import diffusion, likelihood, samplers
from ddpm_jax.train_state import apply_gradients, schedule_count


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
  grad_accum_steps=1,
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
    grad_accum_steps: parts of the batch that go through one after another, their gradients summed:
      less memory, and the step of the whole batch, to rounding.
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

  def loss_and_grads(params, examples, dropout_key):
    def of_part(part):
      return jax.value_and_grad(loss_fn)(params, *part, dropout_key)

    if grad_accum_steps == 1:
      return of_part(examples)
    parts = jax.tree.map(lambda x: x.reshape(grad_accum_steps, -1, *x.shape[1:]), examples)
    zeros = jax.tree.map(
      jnp.zeros_like, jax.eval_shape(of_part, jax.tree.map(lambda x: x[0], parts))
    )
    total, _ = jax.lax.scan(
      lambda total, part: (jax.tree.map(jnp.add, total, of_part(part)), None), zeros, parts
    )
    return jax.tree.map(lambda x: x / grad_accum_steps, total)

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
    loss, grads = loss_and_grads(state.params, (x_start, t, noise, rows), dropout_key)
    if axis_name is not None:
      loss, grads = jax.lax.pmean((loss, grads), axis_name)
    metrics = {
      'loss': loss,
      'grad_norm': optax.tree.norm(grads),
      'learning_rate': learning_rate_fn(schedule_count(state.opt_state)),
    }
    return apply_gradients(state, grads, optimizer, ema_decay=ema_decay), metrics

  return train_step


def make_gather_step(train_step):
  """A training step that takes its images from data on the device.

  Args:
    train_step: as make_train_step returns it.

  Returns:
    (state, batch, data, key) -> (state, metrics). With data None the batch is images uint8
    [B, H, W, C]; otherwise it is indices int32 [B] of data uint8 [N, H, W, C].
  """

  def gather_step(state, batch, data, key):
    return train_step(state, batch if data is None else data[batch], key)

  return gather_step


def make_train_steps(gather_step):
  """Several steps in one.

  Args:
    gather_step: as make_gather_step returns it.

  Returns:
    (state, batches [K, ...], data, key) -> (state, metrics), metrics being arrays [K].
  """

  def train_steps(state, batches, data, key):
    return jax.lax.scan(lambda state, batch: gather_step(state, batch, data, key), state, batches)

  return train_steps


def make_sample_step(
  model, schedule, image_shape, *, mean_type, var_type, sampler=samplers.ancestral
):
  """From x_T to x_0 for a batch of ids: by default the whole reverse chain (Alg. 2).

  Args:
    model: UNet.
    schedule: NoiseSchedule.
    image_shape: (H, W, C).
    mean_type, var_type: as diffusion.p_mean_variance.
    sampler: (schedule, denoise_fn, x_T, noise_fn, *, mean_type, var_type) -> x_0, such as one of
      samplers.SAMPLERS with its other arguments; ancestral clips x_0 to [-1, 1] in every step.

  Returns:
    (params, ids int [B], key) -> x_0 float32 [B, H, W, C], not clipped; row i is a function of
    (params, key, ids[i]) alone.
  """

  def sample_step(params, ids, key):
    noise_fn = samplers.make_noise_fn(fold_rows(key, ids), image_shape)
    return sampler(
      schedule,
      lambda x_t, t: model.apply({'params': params}, x_t, t),
      noise_fn(schedule.num_timesteps),  # steps use t < T, so T is free for x_T
      noise_fn,
      mean_type=mean_type,
      var_type=var_type,
    )

  return sample_step


def make_progressive_step(model, schedule, image_shape, *, every_steps, mean_type, var_type):
  """As make_sample_step, with the x_0 predictions on the way (Fig. 6).

  Returns:
    (params, ids int [B], key) -> predictions of x_0, float32 [B, T // every_steps, H, W, C]; slot j
    holds the one made at t = j every_steps. Ids give the same chain as in make_sample_step.
  """

  def progressive_step(params, ids, key):
    noise_fn = samplers.make_noise_fn(fold_rows(key, ids), image_shape)
    _, predictions = samplers.ancestral_progressive(
      schedule,
      lambda x_t, t: model.apply({'params': params}, x_t, t),
      noise_fn(schedule.num_timesteps),
      noise_fn,
      every_steps=every_steps,
      mean_type=mean_type,
      var_type=var_type,
    )
    return predictions

  return progressive_step


def make_branch_step(model, schedule, image_shape, *, mean_type, var_type):
  """Samples that share a chain down to x_t and go their own ways from there (Fig. 7).

  Returns:
    (params, batch, key) -> x_0 float32 [B, H, W, C], not clipped. The batch has int [B] arrays:
    ids, the chains; branches, one's own way within a chain; and timesteps, the t of the last shared
    x_t, in [0, T-1]: T-1 shares the first noise alone.
  """
  num_timesteps = schedule.num_timesteps

  def branch_step(params, batch, key):
    shared_keys = fold_rows(key, batch['ids'])
    own_keys = jax.vmap(jax.random.fold_in)(shared_keys, num_timesteps + 1 + batch['branches'])

    def noise_fn(t):
      # The step at time t makes x_{t-1}.
      keys = jnp.where(t > batch['timesteps'], shared_keys, own_keys)
      return samplers.make_noise_fn(keys, image_shape)(t)

    return samplers.ancestral(
      schedule,
      lambda x_t, t: model.apply({'params': params}, x_t, t),
      samplers.make_noise_fn(shared_keys, image_shape)(num_timesteps),
      noise_fn,
      mean_type=mean_type,
      var_type=var_type,
    )

  return branch_step


def make_interpolate_step(model, schedule, *, mean_type, var_type):
  """Interpolation of images in the latent space (Sec. 4.4, Figs. 8 and 9).

  Both images are noised num_steps times with the same noise, mixed, and decoded; num_steps = 0
  mixes the pixels. One id has the same noise at every weight.

  Returns:
    (params, batch, (key, num_steps)) -> x_0 float32 [B, H, W, C], not clipped. The batch has images
    and other_images uint8 [B, H, W, C], weights float32 [B] of the other image, and ids int [B].
  """

  def interpolate_step(params, batch, key_and_steps):
    key, num_steps = key_and_steps
    noise_fn = samplers.make_noise_fn(fold_rows(key, batch['ids']), batch['images'].shape[1:])
    t = jnp.full(batch['ids'].shape, jnp.maximum(num_steps - 1, 0))
    noise = noise_fn(schedule.num_timesteps)

    def encode(images):
      x_start = scale_images(images)
      noised = diffusion.q_sample(schedule, x_start, t, noise)
      return jnp.where(num_steps > 0, noised, x_start)

    weights = batch['weights'][:, None, None, None]
    mixed = (1 - weights) * encode(batch['images']) + weights * encode(batch['other_images'])
    return samplers.ancestral(
      schedule,
      lambda x_t, t: model.apply({'params': params}, x_t, t),
      mixed,
      noise_fn,
      mean_type=mean_type,
      var_type=var_type,
      num_steps=num_steps,
    )

  return interpolate_step


def make_bpd_step(model, schedule, *, mean_type, var_type, num_terms=None):
  """The variational bound of a batch of images, with x_0 clipped as in the original program.

  Args:
    model: UNet.
    schedule: NoiseSchedule.
    mean_type, var_type: as diffusion.p_mean_variance.
    num_terms: K, for the estimate of likelihood.bpd_estimate; None computes all T terms.

  Returns:
    (params, batch, key) -> what likelihood.bpd_loop or bpd_estimate returns. The batch has images
    uint8 [B, H, W, C] and ids int [B]; row i is a function of (params, images[i], key, ids[i]).
  """

  def bpd_step(params, batch, key):
    x_start = scale_images(batch['images'])
    keys = fold_rows(key, batch['ids'])
    noise_fn = samplers.make_noise_fn(keys, x_start.shape[1:])
    args = (
      schedule,
      lambda x_t, t: model.apply({'params': params}, x_t, t),
      x_start,
      noise_fn,
    )
    choices = dict(mean_type=mean_type, var_type=var_type, clip_denoised=True)
    if num_terms is None:
      return likelihood.bpd_loop(*args, **choices)

    def draw(key):  # noise uses t < T
      return jax.random.uniform(jax.random.fold_in(key, schedule.num_timesteps), (num_terms,))

    uniforms = jax.vmap(draw)(keys)
    return likelihood.bpd_estimate(*args, uniforms, **choices)

  return bpd_step


def make_feature_step(network, features, logits):
  """A network's features of a batch of images.

  Args:
    network: module whose output is a dict.
    features, logits: the keys in it.

  Returns:
    (params, images [B, H, W, C] of values 0..255, uint8 or float32) -> dict of features [B, d] and
    logits [B, classes].
  """

  def feature_step(params, images):
    output = network.apply({'params': params}, images)
    return {'features': output[features], 'logits': output[logits]}

  return feature_step
