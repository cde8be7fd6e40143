"""The training step (Alg. 1): plain values in, a pure function of arrays on one device out.

Everything random is drawn per example, from its row in the global batch, so that results do not
depend on how a batch is split over devices.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ddpm_jax.diffusion.forward import scale_levels
from ddpm_jax.diffusion.gaussians import LEVELS
from ddpm_jax.diffusion.losses import training_losses
from ddpm_jax.diffusion.prediction import Parameterization, check_choice, make_network
from ddpm_jax.diffusion.schedules import NoiseSchedule
from ddpm_jax.diffusion.timesteps import (
  DRAWS,
  drawn,
  lognormal_chances,
  loss_chances,
  stratified,
  with_losses,
)
from ddpm_jax.sampling.noise import fold_rows
from ddpm_jax.training.averages import Rate
from ddpm_jax.training.recipe import LearningRate, schedule_count
from ddpm_jax.training.state import NO_RATES, TrainState, apply_gradients

LABELS = 0x6C61626C  # of the key that a step draws with: which examples lose their label

Metrics = dict[str, jax.Array]
TrainStep = Callable[..., tuple[TrainState, Metrics]]


def make_train_step(
  model: Any,
  schedule: NoiseSchedule,
  optimizer: optax.GradientTransformation,
  learning_rate_fn: LearningRate,
  *,
  parameterization: Parameterization,
  loss_type: str,
  ema_decay: float,
  random_flip: bool,
  levels: int | None = LEVELS,
  grad_accum_steps: int = 1,
  num_classes: int | None = None,
  label_dropout: float = 0.0,
  loss_weight: str | None = None,
  loss_weight_number: float | None = None,
  timesteps: str = 'uniform',
  ema_warmup: float | None = None,
  rates: Mapping[str, Rate] = NO_RATES,
  axis_name: str | None = None,
) -> TrainStep:
  """One step of Alg. 1: draw t and noise, descend, average.

  Args:
    model: UNet, or another model that make_network applies.
    schedule: NoiseSchedule.
    optimizer: optax transformation.
    learning_rate_fn: step -> learning rate, for the metrics.
    parameterization, loss_type: as training_losses.
    ema_decay: of the parameters' moving average.
    random_flip: mirror each example along its last spatial axis, as a picture left-right, with
      probability 1/2.
    levels: of the data; None for examples that are x_0 as they are.
    grad_accum_steps: parts of the batch that go through one after another, their gradients summed:
      less memory, and the step of the whole batch, to rounding.
    num_classes: of the labels; None for a model without.
    label_dropout: probability that an example's label is left out, so that the model learns the
      distribution of all classes, too.
    loss_weight, loss_weight_number: as training_losses has the weight.
    timesteps: how t is drawn, one of DRAWS; 'loss' needs a state with a loss_history.
    ema_warmup, rates: as apply_gradients.
    axis_name: of the devices that share a batch, each with an equal part; None for one device.

  Returns:
    (state, batch, data, key) -> (state, metrics), metrics being scalars: loss and grad_norm (before
    clipping), each of the global batch, and learning_rate. With data None the batch is images
    [B, ..., C]; otherwise it is indices int32 [B] of data [N, ..., C] on the device. With
    num_classes, in place of images there are {'images': images, 'labels': int32 [B] or [N]}.
  """

  check_choice('train.timesteps', timesteps, DRAWS)

  def loss_fn(params, x_0, t, noise, rows, labels, counts, dropout_key):
    network = make_network(
      model, params, labels=labels, train=True, rngs={'dropout': dropout_key}, rows=rows
    )
    losses = training_losses(
      schedule,
      network,
      x_0,
      t,
      noise,
      parameterization=parameterization,
      loss_type=loss_type,
      levels=levels,
      weight=loss_weight,
      weight_number=loss_weight_number,
    )
    mean = losses.mean() if counts is None else (counts * losses).mean()
    return mean, losses if timesteps == 'loss' else None

  def accumulate(params, examples, dropout_key):
    def of_part(part):
      (loss, losses), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, *part, dropout_key)
      return (loss, grads), losses

    parts = jax.tree.map(lambda x: x.reshape(grad_accum_steps, -1, *x.shape[1:]), examples)
    zeros = jax.tree.map(
      jnp.zeros_like, jax.eval_shape(of_part, jax.tree.map(lambda x: x[0], parts))[0]
    )

    def add_part(total, part):
      sums, losses = of_part(part)
      return jax.tree.map(jnp.add, total, sums), losses

    total, losses = jax.lax.scan(add_part, zeros, parts)
    loss, grads = jax.tree.map(lambda x: x / grad_accum_steps, total)
    return (loss, None if losses is None else losses.reshape(-1)), grads

  def draw(key, shape):
    t_key, noise_key, flip_key = jax.random.split(key, 3)
    if timesteps == 'uniform':
      t = jax.random.randint(t_key, (), 0, schedule.num_timesteps)
    else:
      t = jax.random.uniform(t_key)  # what t is made of
    return t, jax.random.normal(noise_key, shape), jax.random.bernoulli(flip_key)

  def timesteps_of(uniforms, rows, history):
    """(t, how often the loss of each counts; None for once)."""
    if timesteps == 'stratified':
      size = len(rows) * (1 if axis_name is None else jax.lax.psum(1, axis_name))
      return stratified(uniforms, rows, size, schedule.num_timesteps), None
    if timesteps == 'lognormal':
      return drawn(lognormal_chances(schedule, parameterization.sigma_data), uniforms)
    return drawn(loss_chances(history), uniforms)

  def kept_labels(labels, key, rows):
    def is_left_out(key):
      return jax.random.bernoulli(key, label_dropout)

    left_out = jax.vmap(is_left_out)(fold_rows(jax.random.fold_in(key, LABELS), rows))
    return jnp.where(left_out, num_classes, labels)

  def train_step(state, batch, data, key):
    if data is not None:
      batch = jax.tree.map(lambda x: x[batch], data)
    images, labels = (batch, None) if num_classes is None else (batch['images'], batch['labels'])
    rows = jnp.arange(images.shape[0])
    if axis_name is not None:
      rows += images.shape[0] * jax.lax.axis_index(axis_name)
    step_key = jax.random.fold_in(key, state.step)
    draw_key, dropout_key = jax.random.split(step_key)
    t, noise, flip = jax.vmap(draw, in_axes=(0, None))(fold_rows(draw_key, rows), images.shape[1:])
    counts = None
    if timesteps != 'uniform':
      t, counts = timesteps_of(t, rows, state.loss_history)
    x_0 = scale_levels(images, levels)
    if random_flip:
      x_0 = jnp.where(jnp.expand_dims(flip, range(1, x_0.ndim)), x_0[..., ::-1, :], x_0)
    if labels is not None and label_dropout:
      labels = kept_labels(labels, step_key, rows)
    examples = x_0, t, noise, rows, labels, counts
    if grad_accum_steps == 1:
      (loss, losses), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        state.params, *examples, dropout_key
      )
    else:
      (loss, losses), grads = accumulate(state.params, examples, dropout_key)
    if axis_name is not None:
      loss, grads = jax.lax.pmean((loss, grads), axis_name)
    if timesteps == 'loss':
      if axis_name is not None:
        t, losses = (jax.lax.all_gather(x, axis_name, tiled=True) for x in (t, losses))
      state = state.replace(loss_history=with_losses(state.loss_history, t, losses))
    metrics = {
      'loss': loss,
      'grad_norm': optax.tree.norm(grads),
      'learning_rate': learning_rate_fn(schedule_count(state.opt_state)),
    }
    averaging = {'ema_decay': ema_decay, 'ema_warmup': ema_warmup, 'rates': rates}
    return apply_gradients(state, grads, optimizer, **averaging), metrics

  return train_step
