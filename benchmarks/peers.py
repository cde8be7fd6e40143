"""The peers: the same network in PyTorch, and another implementation's network.

  eager          diffusers' UNet2DModel with the settings of google/ddpm-cifar10-32 and dropout 0.1
  channels_last  the same, in PyTorch's layout of NHWC
  compile        the same under torch.compile, which needs a C++ compiler
  ddp            the Unet of denoising-diffusion-pytorch at the same widths: another network, with
                 one block a level less on the way up and linear attention at three of four levels

All in float32 on all cores; on a GPU also in bfloat16, by autocast. A step is loss, backward,
clipping, Adam (fused) and EMA; noise, timesteps, flips and the batch's pictures are drawn as in
ours.
"""

import importlib.util
import os
import sys
import time
import types
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode
from turns import DATA_BYTES, OTHER_NETWORKS

DROPOUT = 0.1
NUM_TIMESTEPS = 1000
BETAS = (1e-4, 0.02)
LEARNING_RATE = 2e-4
WARMUP_STEPS = 5000
EMA_DECAY = 0.9999


class Network(NamedTuple):
  """What tells one published network from another."""

  image_size: int
  widths: tuple[int, ...]
  attention: int  # the level that has it
  dropout: float  # of its training


NETWORKS = {
  'cifar10': Network(32, (128, 256, 256, 256), 1, DROPOUT),
  'celebahq256': Network(256, (128, 128, 256, 256, 512, 512), 4, 0.0),
}


class Diffusers(nn.Module):
  """UNet2DModel as google/ddpm-cifar10-32 and -celebahq-256 were published."""

  def __init__(self, config):
    super().__init__()
    from diffusers import UNet2DModel

    network = NETWORKS[config]
    levels = len(network.widths)
    down, up = ['DownBlock2D'] * levels, ['UpBlock2D'] * levels
    down[network.attention], up[-1 - network.attention] = 'AttnDownBlock2D', 'AttnUpBlock2D'
    self.unet = UNet2DModel(
      sample_size=network.image_size,
      in_channels=3,
      out_channels=3,
      block_out_channels=network.widths,
      layers_per_block=2,
      down_block_types=tuple(down),
      up_block_types=tuple(up),
      attention_head_dim=None,
      downsample_padding=0,
      norm_num_groups=32,
      norm_eps=1e-6,
      act_fn='silu',
      flip_sin_to_cos=False,
      freq_shift=1,
      dropout=network.dropout,
    )

  def forward(self, x, t):
    """x [B, 3, H, W], t int [B] -> as x."""
    return self.unet(x, t, return_dict=False)[0]


def make_ddp():
  """Denoising-diffusion-pytorch's Unet; its package wants torchvision, its network does not."""
  if importlib.util.find_spec('torchvision') is None:
    stand_in = types.ModuleType('torchvision')
    stand_in.transforms = stand_in.utils = None
    sys.modules['torchvision'] = stand_in
  from denoising_diffusion_pytorch import Unet

  return Unet(
    dim=128, dim_mults=(1, 2, 2, 2), dropout=DROPOUT, full_attn=(False, True, False, False)
  )


def make_network(name, config='cifar10'):
  """The network of a peer, which is not compiled yet."""
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.manual_seed(0)
  network = make_ddp() if name == 'ddp' else Diffusers(config)
  if name in ('channels_last', 'compile'):
    network = network.to(memory_format=torch.channels_last)
  return network


def memory_format(name):
  """The layout of images that goes with make_network(name)."""
  return torch.channels_last if name in ('channels_last', 'compile') else torch.contiguous_format


def count_flops(function):
  """FLOPs of the matrix products and convolutions of a call, two a multiplication."""
  # The fused attention of the CPU is not among what the counter knows: take the plain one.
  plain = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
  with FlopCounterMode(display=False) as counter, plain:
    function()
  return counter.get_total_flops()


def versions():
  """Names and versions, in words."""
  from importlib.metadata import version

  names = ('torch', 'diffusers', 'denoising-diffusion-pytorch')
  found = [name for name in names if importlib.util.find_spec(name.replace('-', '_'))]
  return ', '.join(f'{name} {version(name)}' for name in found)


class TrainStep:
  """Training in PyTorch."""

  def __init__(self, name, batch_size, config='cifar10', device='cpu', dtype='float32'):
    if name in OTHER_NETWORKS and config != 'cifar10':
      raise ValueError(f'no network like that of {config}')
    torch.set_default_device(device)
    self._memory_format = memory_format(name)
    self._batch_size = batch_size
    self._network = make_network(name, config).to(device).train()
    self._autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == 'bfloat16')
    self._run = torch.compile(self._network) if name == 'compile' else self._network
    self._optimizer = torch.optim.Adam(self._network.parameters(), LEARNING_RATE, fused=True)
    self._warmup = torch.optim.lr_scheduler.LambdaLR(
      self._optimizer, lambda step: min(step / WARMUP_STEPS, 1)
    )
    self._ema = AveragedModel(self._network, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    alphas_cumprod = np.cumprod(1 - np.linspace(*BETAS, NUM_TIMESTEPS))
    self._scales = [
      torch.tensor(table, dtype=torch.float32)[:, None, None, None]
      for table in (np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod))
    ]
    size = NETWORKS[config].image_size
    num_images = max(DATA_BYTES // (3 * size**2), batch_size)
    self._images = torch.randint(0, 256, (num_images, 3, size, size), dtype=torch.uint8)

  def _step(self, run):
    images = self._images[torch.randint(len(self._images), (self._batch_size,))]
    x_start = images.float() / 127.5 - 1
    flip = torch.rand(self._batch_size, 1, 1, 1) < 0.5
    x_start = torch.where(flip, x_start.flip(-1), x_start)
    noise = torch.randn_like(x_start)
    t = torch.randint(NUM_TIMESTEPS, (self._batch_size,))
    x_t = self._scales[0][t] * x_start + self._scales[1][t] * noise
    x_t = x_t.contiguous(memory_format=self._memory_format)
    with self._autocast:
      loss = functional.mse_loss(run(x_t, t).float(), noise)
    self._optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(self._network.parameters(), 1.0)
    self._optimizer.step()
    self._warmup.step()
    self._ema.update_parameters(self._network)
    return loss

  def facts(self):
    """Parameters, FLOPs of a step, and versions."""
    return {
      'parameters': sum(p.numel() for p in self._network.parameters()),
      'flops': count_flops(lambda: self._step(self._network)),
      'versions': versions(),
    }

  def turn(self, num_steps):
    """Seconds of so many steps."""
    start = time.perf_counter()
    for _ in range(num_steps):
      loss = self._step(self._run)
    loss.item()  # waits for all of it
    return time.perf_counter() - start


class SampleStep:
  """Sampling in PyTorch: diffusers' DDPMScheduler in a Python loop."""

  def __init__(self, name, batch_size, num_timesteps):
    from diffusers import DDPMScheduler

    network = make_network(name).eval()
    self._module = network
    self._run = torch.compile(network) if name == 'compile' else network
    self._scheduler = DDPMScheduler(
      num_timesteps,
      beta_start=BETAS[0],
      beta_end=BETAS[1],
      variance_type='fixed_large',
      clip_sample=True,
    )
    self._memory_format = memory_format(name)
    self._shape = (batch_size, 3, 32, 32)
    self._x = self._noise()

  def _noise(self):
    return torch.randn(self._shape).contiguous(memory_format=self._memory_format)

  def _times(self, t):
    return torch.full(self._shape[:1], t)

  @torch.inference_mode()
  def network(self, num_evaluations):
    """Seconds of so many evaluations of the network, one after the other."""
    t = self._times(self._scheduler.config.num_train_timesteps // 2)
    start = time.perf_counter()
    for _ in range(num_evaluations):
      self._run(self._x, t)
    return time.perf_counter() - start

  @torch.inference_mode()
  def chain(self):
    """Seconds of a batch of samples, from noise to images in NumPy."""
    start = time.perf_counter()
    x = self._noise()
    for t in self._scheduler.timesteps:
      x = self._scheduler.step(self._run(x, self._times(int(t))), t, x).prev_sample
    x.numpy()
    return time.perf_counter() - start

  @torch.inference_mode()
  def facts(self):
    """Parameters, FLOPs of an evaluation, and versions."""
    return {
      'parameters': sum(p.numel() for p in self._module.parameters()),
      'flops': count_flops(lambda: self._module(self._x, self._times(0))),
      'versions': versions(),
    }
