"""Trains one's own network on the digits: python examples/own_network.py DIR."""

import sys

import jax
import jax.numpy as jnp

import ddpm_jax
from ddpm_jax.data.digits import load_digits

workdir, num_steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2000


def apply(params, x, t):
  """Any function of parameters, x_t [B, H, W, C] and t [B] that returns [B, H, W, C]."""
  angles = t[:, None] * jnp.exp(-jnp.arange(32) / 4)
  h = jnp.concatenate([x.reshape(len(x), -1), jnp.sin(angles), jnp.cos(angles)], axis=1)
  for kernel in params[:-1]:
    h = jax.nn.silu(h @ kernel)
  return (h @ params[-1]).reshape(x.shape)


sizes = [(64 + 64, 256), (256, 256), (256, 64)]
keys = jax.random.split(jax.random.key(0), 3)
params = [jax.random.normal(k, s) / s[0] ** 0.5 for k, s in zip(keys, sizes, strict=True)]
train_images, test_images = (load_digits(split)[0] for split in ('train', 'test'))
model = ddpm_jax.train(workdir, train_images, network=apply, params=params, num_steps=num_steps)
model.picture(model.sample(16, sampler='dpmpp_2m')).save(f'{workdir}/samples.png')
print(f'{model.bits_per_dim(test_images[:32])["total_bpd"].mean():.2f} bits/dim of test digits')
