"""Denoising diffusion probabilistic models (Ho, Jain, Abbeel 2020, arXiv 2006.11239) in JAX.

  model = ddpm_jax.load('digits')  # the model of the package; or a workdir
  images = model.sample(16)

Importing takes no device and no jax: what is used is imported when it is first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from ddpm_jax import diffusion, sampling
  from ddpm_jax.config.files import load_config
  from ddpm_jax.model import Model, load
  from ddpm_jax.trainer import train

__version__ = '0.2.0'
__all__ = ['Model', 'diffusion', 'load', 'load_config', 'sampling', 'train']

_HOMES = {
  'Model': 'ddpm_jax.model',
  'load': 'ddpm_jax.model',
  'load_config': 'ddpm_jax.config.files',
  'train': 'ddpm_jax.trainer',
}
_ROOMS = ('diffusion', 'sampling', 'nn', 'data', 'evaluation', 'interop')


def __getattr__(name: str) -> Any:
  if name in _HOMES:
    return getattr(importlib.import_module(_HOMES[name]), name)
  if name in _ROOMS:
    return importlib.import_module(f'ddpm_jax.{name}')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return sorted({*__all__, *_ROOMS, '__version__'})
