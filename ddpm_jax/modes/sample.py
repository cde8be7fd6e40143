"""--mode=sample: draws with the newest checkpoint's moving average."""

import pathlib

from ml_collections import ConfigDict

from ddpm_jax import processes
from ddpm_jax.config import build, checks
from ddpm_jax.config.fitted import fit
from ddpm_jax.config.origins import class_names, is_workdir, read_weights, with_data
from ddpm_jax.evaluation.samples import write_animation, write_pictures, write_samples
from ddpm_jax.evaluation.weights import Weights
from ddpm_jax.paths import expanded
from ddpm_jax.storage.logs import Terminal
from ddpm_jax.storage.workdir import find_workdir, open_workdir


def sample(config: ConfigDict, workdir: str) -> None:
  """Draws config.sample.num_samples images.

  Args:
    config: ConfigDict.
    workdir: folder of the run; or, with config.init_from, any folder for the samples of that model.

  Raises:
    UserError: no checkpoint, or one of another model.
  """
  config = with_data(config, workdir, config.init_from)
  checks.prepare(config)
  with Terminal().waiting('reads the checkpoint'):
    path, weights = find_weights(config, workdir)
  model = model_of(config, workdir)
  names = class_names(model)
  config, estimates = fit(config, weights, model, say=processes.say)
  count = build.num_samples(config, names)
  drawer = build.drawer(config, count, names=names, estimates=estimates)
  processes.say(
    f'{count} samples of step {weights.step}, seed {config.sample.seed}: {drawer.words}'
  )
  folder = write_samples(drawer, weights, path, count, progress=True)
  written = [folder / 'samples.npz', folder / 'grid.png']
  if config.sample.files:
    written.append(write_pictures(folder, count, drawer.display))
  if config.sample.animate:
    written.append(write_animation(drawer, weights, folder, count))
  processes.say(f'done: {" and ".join(map(str, written))}')


def model_of(config: ConfigDict, workdir: str) -> str:
  """WORKDIR, or config.init_from where it has no model."""
  begins = config.init_from and not is_workdir(expanded(workdir))
  return config.init_from if begins else workdir


def find_weights(config: ConfigDict, workdir: str) -> tuple[pathlib.Path, Weights]:
  """(WORKDIR, the weights of its checkpoint, or of config.init_from where it has none)."""
  if model_of(config, workdir) != workdir:
    path = open_workdir(workdir)
    return path, read_weights(config.init_from, config, step=config.sample.step)
  path = open_workdir(find_workdir(workdir))
  return path, build.restore_weights(config, path, config.sample.step)
