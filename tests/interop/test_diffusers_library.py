"""The library diffusers itself, both ways; where it is installed, with torch."""

import jax
import numpy as np
import pytest

from configs import celebahq256, cifar10
from ddpm_jax.config import build
from ddpm_jax.diffusion import prediction, schedules
from ddpm_jax.diffusion.forward import q_sample
from ddpm_jax.interop import diffusers
from ddpm_jax.interop.safetensors_file import read_safetensors, write_safetensors
from tests.interop.test_diffusers import with_old_names

pytestmark = pytest.mark.slow
REASON = 'needs `pip install diffusers torch`, which the requirements leave out'
torch = pytest.importorskip('torch', reason=REASON)
library = pytest.importorskip('diffusers', reason=REASON)


def predict(unet, x, t):
  """The library's network on x [B, H, W, C]."""
  with torch.no_grad():
    output = unet(torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(t)).sample
  return output.numpy().transpose(0, 2, 3, 1)


def draw(config, seed):
  """Parameters that make every layer matter, x [2, H, W, C] and t [2]."""
  rng = np.random.default_rng(seed)
  like = jax.eval_shape(lambda: build.init_params(config))
  params = jax.tree.map(lambda leaf: rng.normal(0, 0.05, leaf.shape).astype(np.float32), like)
  x = rng.standard_normal((2, *build.image_shape(config)), np.float32)
  return params, x, np.array([3, 950])


@pytest.mark.parametrize(
  'overrides',
  [
    {},
    {'ch_mult': (1, 1, 2), 'num_res_blocks': 2, 'attn_resolutions': (16, 4)},
    {'ch_mult': (1,), 'attn_resolutions': ()},
  ],
)
def test_library_computes_the_same_with_what_we_write(
  pipeline_config, overrides, tmp_path, relative_error
):
  config = pipeline_config.copy_and_resolve_references()
  config.model.update(**overrides)
  params, x, t = draw(config, 0)
  diffusers.write_pipeline(tmp_path / 'written', config, params)
  pipeline = library.DDPMPipeline.from_pretrained(tmp_path / 'written')
  output = build.model(config).apply({'params': params}, x, t)
  assert relative_error(predict(pipeline.unet, x, t), output) < 1e-5
  assert pipeline.scheduler.config.variance_type == 'fixed_large'


@pytest.mark.parametrize('label_dropout', [0.0, 0.1])
def test_library_computes_the_same_with_labels(
  pipeline_config, label_dropout, tmp_path, relative_error
):
  config = pipeline_config.copy_and_resolve_references()
  config.model.num_classes = 3
  config.train.label_dropout = label_dropout
  params, x, t = draw(config, 0)
  diffusers.write_pipeline(tmp_path / 'written', config, params)
  unet = library.UNet2DModel.from_pretrained(tmp_path / 'written/unet')
  labels = np.array([2, 0 if label_dropout == 0 else 3])
  output = build.model(config).apply({'params': params}, x, t, labels=labels)
  with torch.no_grad():
    found = unet(
      torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(t), class_labels=torch.tensor(labels)
    ).sample.numpy()
  assert relative_error(found.transpose(0, 2, 3, 1), output) < 1e-5


def test_we_compute_the_same_with_what_the_library_writes(
  pipeline_config, tmp_path, relative_error
):
  torch.manual_seed(0)
  settings = diffusers.unet_settings(pipeline_config)
  unet = library.UNet2DModel(**{k: v for k, v in settings.items() if not k.startswith('_')})
  scheduler = library.DDPMScheduler(variance_type='fixed_large')
  like, x, t = draw(pipeline_config, 1)
  for safe in (True, False):
    folder = tmp_path / str(safe)
    pipeline = library.DDPMPipeline(unet=unet, scheduler=scheduler)
    pipeline.save_pretrained(folder, safe_serialization=safe)
    params = diffusers.read_pipeline(folder, pipeline_config, like)
    output = build.model(pipeline_config).apply({'params': params}, x, t)
    assert relative_error(output, predict(unet, x, t)) < 1e-5


def test_library_reads_old_names_as_we_do(pipeline, pipeline_config, pipeline_like, relative_error):
  path = pipeline / 'unet' / diffusers.WEIGHTS[0]
  write_safetensors(path, with_old_names(read_safetensors(path)))
  unet = library.DDPMPipeline.from_pretrained(pipeline).unet
  params = diffusers.read_pipeline(pipeline, pipeline_config, pipeline_like)
  _, x, t = draw(pipeline_config, 2)
  output = build.model(pipeline_config).apply({'params': params}, x, t)
  assert relative_error(output, predict(unet, x, t)) < 1e-5


@pytest.mark.parametrize('config', [cifar10, celebahq256])
def test_full_size_networks_have_the_same_tensors(config):
  config = config.get_config()
  settings = diffusers.unet_settings(config)
  with torch.device('meta'):
    unet = library.UNet2DModel(**{k: v for k, v in settings.items() if not k.startswith('_')})
  like = jax.eval_shape(lambda: build.init_params(config))
  params = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), like)
  shapes = {name: x.shape for name, x in diffusers.state_dict_from_params(params).items()}
  assert shapes == {name: tuple(x.shape) for name, x in unet.state_dict().items()}


@pytest.mark.parametrize('schedule', list(schedules.SCHEDULES))
def test_schedules_are_the_same(pipeline_config, schedule):
  config = pipeline_config.copy_and_resolve_references()
  config.diffusion.update(schedule=schedule, num_timesteps=100)
  settings = diffusers.scheduler_settings(config.diffusion)
  scheduler = library.DDPMScheduler.from_config(settings)
  np.testing.assert_allclose(scheduler.betas, build.betas(config), rtol=1e-6)


@pytest.mark.parametrize('mean_type', ['eps', 'xstart', 'v'])
def test_predictions_mean_the_same(pipeline_config, mean_type):
  config = pipeline_config.copy_and_resolve_references()
  config.diffusion.mean_type = mean_type
  settings = diffusers.scheduler_settings(config.diffusion) | {'clip_sample': False}
  scheduler = library.DDPMScheduler.from_config(settings)
  x_0, eps = np.random.default_rng(3).standard_normal((2, 1, 4, 4, 3), np.float32)
  schedule, t = build.schedule(config), np.array([700])
  x_t = q_sample(schedule, x_0, t, eps)
  output = prediction.Parameterization(mean_type).target(schedule, x_0, eps, x_t, t)
  x_t, output = (torch.tensor(np.asarray(x)) for x in (x_t, output))
  step = scheduler.step(output, int(t[0]), x_t)
  np.testing.assert_allclose(step.pred_original_sample, x_0, rtol=1e-4, atol=1e-4)


def test_defaults_are_the_librarys():
  unet = library.UNet2DModel(block_out_channels=(32, 32, 32, 32)).config
  for name, value in diffusers._UNET_DEFAULTS.items():
    if name != 'block_out_channels':
      assert unet[name] == (tuple(value) if isinstance(value, list) else value), name
  scheduler = library.DDPMScheduler().config
  for name, value in diffusers._SCHEDULER_DEFAULTS.items():
    assert scheduler[name] == value, name
