"""Where version 1 of this program has the results that identities name now.

Version 1 had one folder a step, samples/step_XXXXXXXX and eval/step_XXXXXXXX/bpd_SPLIT, with what
decided them in request.json. Such results move to their folders of today when they are asked for.
"""

import pathlib
from typing import Any

from ddpm_jax.storage.identity import Identity, step_folder

Earlier = tuple[pathlib.Path, dict[str, Any]]  # (folder, what its request.json says)

# Version 1 noted data.source where that is now the name of what was opened.
DATA_SOURCES = {
  'tfds:cifar10': 'cifar10',
  'tfds:cifar10:3.0.2': 'cifar10:3.0.2',
  'tfds:celeb_a_hq/256': 'celebahq256',
}


def samples(workdir: pathlib.Path, identity: Identity) -> Earlier:
  """Samples of an identity in a workdir of version 1."""
  assert identity.step is not None
  assert identity.sampler is not None
  choices = identity.choices or {}
  parent = 'samples_float' if choices.get('rounding') == 'float' else 'samples'
  facts, sampler = identity.facts(), dict(identity.sampler)
  request = {
    'seed': identity.seed,
    'diffusion': facts['diffusion'],
    'model': facts['model'] | {'dtype': identity.dtype},
    'ema_sha256': identity.parameters,
  }
  if sampler.get('spacing') is None:
    del sampler['num_steps']
  sampler = {name: value for name, value in sampler.items() if value is not None}
  if sampler != {'sampler': 'ancestral', 'clip': 'static'}:
    request['sample'] = sampler
  return step_folder(workdir / parent, identity.step), request


def bound(parent: pathlib.Path, identity: Identity) -> Earlier:
  """A bound of an identity in the evaluation's folder of version 1."""
  assert identity.data is not None
  name, split = identity.data['name'], identity.data['split']
  terms = (identity.choices or {}).get('terms')
  request = {
    'parameters_sha256': identity.parameters,
    'data': DATA_SOURCES.get(name, name),
    'split': split,
    'data_sha256': identity.data['sha256'],
    'seed': identity.seed,
    'terms': terms or 'all',
    'diffusion': identity.facts()['diffusion'],
  }
  if identity.dtype != 'float32':
    request['dtype'] = identity.dtype
  return parent / (f'bpd_{split}_{terms}_terms' if terms else f'bpd_{split}'), request
