"""The peers: the same network in PyTorch, and another implementation's network.

  eager          diffusers' UNet2DModel with the settings of google/ddpm-cifar10-32 and dropout 0.1
  channels_last  the same, in PyTorch's layout of NHWC
  compile        the same under torch.compile, which needs a C++ compiler
  graphs         channels_last on a GPU, the whole step, with optimizer and EMA, one CUDA graph
  compile+graphs the same, its network compiled
  ddp            the Unet of denoising-diffusion-pytorch at the same widths: another network, with
                 one block a level less on the way up and linear attention at three of four levels

Of signals and volumes, which axes.py measures, the networks are those of other programs: the task
unet1d is the Unet1D of denoising-diffusion-pytorch with its GaussianDiffusion1D, and monai is
MONAI's DiffusionModelUNet.

All in float32 on all cores; on a GPU also in bfloat16, by autocast. A step is loss, backward,
clipping, Adam (fused) and EMA; noise, timesteps, flips and the batch's pictures are drawn as in
ours. interleaved.py starts this file as a process, as it does worker.py.
"""

import functools
import importlib.metadata
import importlib.util
import os
import sys
import types
from typing import NamedTuple

import numpy as np
import torch
from interleaved import DATA_BYTES, peak_mib, seconds, serve
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode

DROPOUT = 0.1
NUM_TIMESTEPS = 1000
BETAS = (1e-4, 0.02)
LEARNING_RATE = 2e-4
WARMUP_STEPS = 5000
EMA_DECAY = 0.9999
CHANNELS_LAST = ('channels_last', 'compile', 'graphs', 'compile+graphs')
GRAPH_WARMUP_STEPS = 3  # before a step is recorded, on a stream of their own


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


def import_ddp():
  """Denoising-diffusion-pytorch; its package wants torchvision, its networks do not."""
  if importlib.util.find_spec('torchvision') is None:
    stand_in = types.ModuleType('torchvision')
    stand_in.transforms = stand_in.utils = None
    sys.modules['torchvision'] = stand_in
  import denoising_diffusion_pytorch

  return denoising_diffusion_pytorch


def make_ddp():
  """Denoising-diffusion-pytorch's Unet."""
  return import_ddp().Unet(
    dim=128, dim_mults=(1, 2, 2, 2), dropout=DROPOUT, full_attn=(False, True, False, False)
  )


def set_up():
  """All cores, and the same random numbers in each process."""
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.manual_seed(0)


def make_network(name, config='cifar10'):
  """The network of a peer, which is not compiled yet."""
  set_up()
  network = make_ddp() if name == 'ddp' else Diffusers(config)
  if name in CHANNELS_LAST:
    network = network.to(memory_format=torch.channels_last)
  return network


def memory_format(name):
  """The layout of images that goes with make_network(name)."""
  return torch.channels_last if name in CHANNELS_LAST else torch.contiguous_format


def count_flops(function):
  """FLOPs of the matrix products and convolutions of a call, two a multiplication."""
  # The fused attention of the CPU is not among what the counter knows: take the plain one.
  plain = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
  with FlopCounterMode(display=False) as counter, plain:
    function()
  return counter.get_total_flops()


def about(network, function):
  """Parameters, FLOPs of a call, and versions."""
  names = ('torch', 'diffusers', 'denoising-diffusion-pytorch', 'monai')
  found = [name for name in names if importlib.util.find_spec(name.replace('-', '_'))]
  return {
    'parameters': sum(p.numel() for p in network.parameters()),
    'flops': count_flops(function),
    'versions': ', '.join(f'{name} {importlib.metadata.version(name)}' for name in found),
  }


def make_q_sample(num_axes):
  """(x_start, t, noise) -> x_t, of examples [B, C, ...] of so many axes."""
  alphas_cumprod = np.cumprod(1 - np.linspace(*BETAS, NUM_TIMESTEPS))
  scales = [
    torch.tensor(table, dtype=torch.float32).reshape(-1, *(1,) * (num_axes + 1))
    for table in (np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod))
  ]
  return lambda x_start, t, noise: scales[0][t] * x_start + scales[1][t] * noise


def random_data(shape, batch):
  """Bytes of noise to train on, [N, C, ...]."""
  count = max(DATA_BYTES // int(np.prod(shape)), batch)
  return torch.randint(0, 256, (count, *shape), dtype=torch.uint8)


def check_device(name, device):
  """Raises where a peer needs a GPU that is not there."""
  if name.endswith('graphs') and device != 'cuda':
    raise ValueError(f'{name} needs a GPU')


def recorded(step):
  """A step as one CUDA graph: () -> its result, after it was done."""
  stream = torch.cuda.Stream()
  stream.wait_stream(torch.cuda.current_stream())
  with torch.cuda.stream(stream):
    for _ in range(GRAPH_WARMUP_STEPS):
      step()
  torch.cuda.current_stream().wait_stream(stream)
  graph = torch.cuda.CUDAGraph()
  with torch.cuda.graph(graph):
    result = step()

  def replay():
    graph.replay()
    return result

  return replay


def training_functions(name, network, compute_loss, steps):
  """What a task of training can be asked for: seconds of a step, and of several.

  Args:
    name: of the peer, which says whether it is compiled, or recorded as a graph.
    network: whose parameters are trained.
    compute_loss: network, or what it was compiled to -> the loss of a batch, which it draws.
    steps: the number of several.
  """
  device = os.environ['JAX_PLATFORMS']
  check_device(name, device)
  params = list(network.parameters())
  ema = [p.detach().clone() for p in params]
  update_ema = get_ema_multi_avg_fn(EMA_DECAY)
  # On the device, so that the warm-up needs no word from the host.
  steps_done, learning_rate = torch.zeros(()), torch.zeros(())
  options = dict(capturable=True) if device == 'cuda' else {}
  optimizer = torch.optim.Adam(params, learning_rate, fused=True, **options)

  def train(run):
    loss = compute_loss(run)
    loss.backward()
    nn.utils.clip_grad_norm_(params, 1.0)
    learning_rate.copy_(LEARNING_RATE * (steps_done / WARMUP_STEPS).clamp(max=1))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)  # here, so that a graph is recorded without gradients
    steps_done.add_(1)
    update_ema(ema, params, None)
    return loss

  run = torch.compile(network) if name.startswith('compile') else network
  step = functools.partial(train, run)
  if name.endswith('graphs'):
    step = recorded(step)

  def train_steps(count):
    for _ in range(count):
      loss = step()
    loss.item()  # waits for all of it

  def facts():
    peak = peak_mib()  # counting takes memory
    return {**about(network, lambda: train(network)), 'peak_mib': peak}

  return {
    'step': lambda: seconds(lambda: train_steps(1)),
    'steps': lambda: seconds(lambda: train_steps(steps)),
    'facts': facts,
  }


def training(name, config, batch, steps, dtype):
  """Task: seconds of a step, and of several."""
  if config not in NETWORKS or (name == 'ddp' and config != 'cifar10'):
    raise ValueError(f'no network like that of {config}')
  device = os.environ['JAX_PLATFORMS']
  torch.set_default_device(device)
  network = make_network(name, config).to(device).train()
  # What autocast keeps from one use to the next would not be made anew by a graph.
  autocast = torch.autocast(
    device,
    torch.bfloat16,
    enabled=dtype == 'bfloat16',
    cache_enabled=not name.endswith('graphs'),
  )
  size = NETWORKS[config].image_size
  q_sample, data = make_q_sample(2), random_data((3, size, size), batch)

  def compute_loss(run):
    images = data[torch.randint(len(data), (batch,))]
    x_start = images.float() / 127.5 - 1
    flip = torch.rand(batch, 1, 1, 1) < 0.5
    x_start = torch.where(flip, x_start.flip(-1), x_start)
    noise = torch.randn_like(x_start)
    t = torch.randint(NUM_TIMESTEPS, (batch,))
    x_t = q_sample(x_start, t, noise).contiguous(memory_format=memory_format(name))
    with autocast:
      return functional.mse_loss(run(x_t, t).float(), noise)

  return training_functions(name, network, compute_loss, steps)


def unet1d(name, batch, steps, shape, network):
  """Task: as training, of Unet1D and the loss that GaussianDiffusion1D computes.

  Args:
    name: eager or compile.
    batch: signals a step.
    steps: as of training.
    shape: (length, channels).
    network: arguments of Unet1D.
  """
  length, channels = shape
  set_up()
  ddp = import_ddp()
  model = ddp.Unet1D(channels=channels, **network)
  diffusion = ddp.GaussianDiffusion1D(model, seq_length=length).train()
  data = random_data((channels, length), batch)

  def compute_loss(run):
    return run(data[torch.randint(len(data), (batch,))].float() / 255)

  return training_functions(name, diffusion, compute_loss, steps)


def monai(name, batch, steps, shape, network):
  """Task: as training, of DiffusionModelUNet.

  Args:
    name: eager, channels_last or compile.
    batch: volumes a step.
    steps: as of training.
    shape: (depth, height, width, channels).
    network: arguments of DiffusionModelUNet.
  """
  from monai.networks.nets import DiffusionModelUNet

  *axes, channels = shape
  set_up()
  layout = torch.channels_last_3d if name == 'channels_last' else torch.contiguous_format
  model = DiffusionModelUNet(3, channels, channels, **network).train().to(memory_format=layout)
  q_sample, data = make_q_sample(3), random_data((channels, *axes), batch)

  def compute_loss(run):
    x_start = data[torch.randint(len(data), (batch,))].float() / 127.5 - 1
    noise, t = torch.randn_like(x_start), torch.randint(NUM_TIMESTEPS, (batch,))
    x_t = q_sample(x_start, t, noise).contiguous(memory_format=layout)
    return functional.mse_loss(run(x_t, t), noise)

  return training_functions(name, model, compute_loss, steps)


def device_mib():
  """Most memory of the device that was set aside at once, MiB; on a CPU, of the process."""
  if os.environ['JAX_PLATFORMS'] == 'cuda':
    return torch.cuda.max_memory_reserved() / 2**20
  return peak_mib()


def inference(name, config, batch, timesteps, dtype='float32'):
  """Task: seconds of evaluations; of a chain, by diffusers' DDPMScheduler in a Python loop."""
  from diffusers import DDPMScheduler

  if config != 'cifar10':
    raise ValueError(f'no network like that of {config}')
  device = os.environ['JAX_PLATFORMS']
  check_device(name, device)
  if name == 'graphs':
    raise ValueError(f'{name} is of training; compile+graphs samples')
  network = make_network(name).to(device).eval()
  run = network
  if name.startswith('compile'):  # whose own mode of graphs is made for inference
    run = torch.compile(network, mode='reduce-overhead' if name.endswith('graphs') else None)
  autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == 'bfloat16')
  scheduler = DDPMScheduler(
    timesteps,
    beta_start=BETAS[0],
    beta_end=BETAS[1],
    variance_type='fixed_large',
    clip_sample=True,
  )
  torch.set_default_device(device)

  def draw_noise():
    return torch.randn(batch, 3, 32, 32).contiguous(memory_format=memory_format(name))

  x_T = draw_noise()

  @torch.inference_mode()
  @autocast
  def evaluate(count):
    t = torch.full((batch,), timesteps // 2)
    for _ in range(count):
      eps = run(x_T, t)
    eps.cpu()  # waits for all of it

  @torch.inference_mode()
  def chain():  # to images in NumPy
    x = draw_noise()
    for t in scheduler.timesteps:
      with autocast:
        eps = run(x, torch.full((batch,), int(t)))
      x = scheduler.step(eps.float(), t, x).prev_sample
    x.cpu().numpy()

  @torch.inference_mode()
  def facts():
    return about(network, lambda: network(x_T, torch.zeros(batch, dtype=torch.int64)))

  return {
    'evaluation': lambda: seconds(lambda: evaluate(1)),
    'evaluations': lambda: seconds(lambda: evaluate(timesteps)),
    'chain': lambda: seconds(chain),
    'facts': facts,
  }


if __name__ == '__main__':
  tasks = {'training': training, 'inference': inference, 'unet1d': unet1d, 'monai': monai}
  serve(tasks, device_mib=device_mib)
