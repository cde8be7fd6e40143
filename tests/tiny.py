"""The smallest run that goes the whole path, and the smallest network that does all of it.

The run: digits, one level, ten timesteps. The network: 4 x 4 pixels, ten timesteps.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from configs import digits
from ddpm_jax.diffusion import (
  Parameterization,
  make_betas,
  make_denoiser,
  make_network,
  make_schedule,
)
from ddpm_jax.evaluation.samples import make_chain_fns
from ddpm_jax.nn.unet import UNet
from ddpm_jax.sampling import CHAINS, clipped

MODEL = UNet(32, (1,), 1, (), 1, dropout=0.1)
SCHEDULE = make_schedule(make_betas('linear', 10, beta_start=0.1, beta_end=0.5))
SHAPE = 4, 4, 1


def tiny_config(**overrides):
  """The tiny run's config; overrides are fields, as in {'train.num_steps': 3}."""
  config = digits.get_config()
  config.model.update(ch_mult=(1,), attn_resolutions=())
  config.diffusion.num_timesteps = 10
  config.optim.update(warmup_steps=2, ema_decay=0.5)
  config.train.update(
    global_batch_size=16,
    num_steps=6,
    log_every_steps=1,
    checkpoint_every_steps=2,
    sample_every_steps=0,
    num_samples=4,
  )
  config.sample.update(num_samples=6, batch_size=8)
  config.eval.update(num_samples=12, bpd_examples=10, batch_size=8)
  config.reproduce.update(num_samples=12, num_slots=5, num_images=2)
  config.update_from_flattened_dict(overrides)
  return config


class OneLayer(nn.Module):
  """A network that compiles at once: of any number of axes, and of labels."""

  on_cpu: bool = False  # as the U-Net's
  num_classes: int | None = None

  @nn.compact
  def __call__(self, x, t, train=False, rows=None, labels=None):
    axes = (1,) * (x.ndim - 2)
    output = nn.Conv(x.shape[-1], (3,) * len(axes))(x) * (1 + t.reshape(-1, *axes, 1) / 10)
    if self.num_classes is None:
      return output
    if labels is None:
      labels = jnp.full(x.shape[:1], self.num_classes)
    of_label = nn.Embed(self.num_classes + 1, x.shape[-1], name='class_embedding')(labels)
    return output + of_label.reshape(-1, *axes, x.shape[-1])


@functools.cache
def fresh_params(model=MODEL):
  """The parameters of a network for SHAPE before training: its output is 0."""
  key = jax.random.key(0, impl='unsafe_rbg')  # fast to compile
  x = jnp.zeros((1, *SHAPE))
  return jax.device_get(jax.jit(model.init)(key, x, jnp.zeros(1, jnp.int32))['params'])


def live_params():
  """Parameters of MODEL that make all of it matter."""
  return jax.tree.map(lambda p: p + np.float32(0.02), fresh_params())


def random_params(model):
  """Parameters of a network for SHAPE, none of them all but zero."""
  leaves, treedef = jax.tree.flatten(fresh_params(model))
  rng = np.random.default_rng(0)
  leaves = [leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves]
  return jax.tree.unflatten(treedef, leaves)


def denoiser_of(params):
  """The Denoiser of MODEL, which predicts eps, its x_0 clipped."""
  network = make_network(MODEL, params)
  return clipped(make_denoiser(network, Parameterization('eps'), SCHEDULE))


def make_sample_fn(name='ancestral', **choices):
  """(params, ids, key) -> x_0 of MODEL, by a whole chain of a sampler."""
  make_chain = functools.partial(CHAINS[name], variance='fixedlarge', **choices)
  whole = in_one_piece(make_chain_fns(denoiser_of, SCHEDULE, SHAPE, make_chain))
  return lambda params, ids, key: whole(params, ids, key).x


def in_one_piece(work):
  """(params, batch, key, first=0) -> the state of a Stepwise after all steps, compiled."""

  @functools.partial(jax.jit, static_argnames='first')
  def run(params, batch, key, first=0):
    return work.advance(params, work.start(batch, key), batch, key, first, work.num_steps)

  return run


@functools.cache
def _sample_step():
  return make_sample_fn()


def draw_samples(ids, seed=0):
  """The samples of MODEL with live_params, by ancestral sampling."""
  return np.asarray(_sample_step()(live_params(), jnp.asarray(ids), jax.random.key(seed)))
