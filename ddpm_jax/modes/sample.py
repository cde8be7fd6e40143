"""--mode=sample: draws with the newest checkpoint's moving average."""

from ml_collections import ConfigDict

from ddpm_jax import processes
from ddpm_jax.config import build, checks
from ddpm_jax.evaluation.samples import write_samples
from ddpm_jax.storage.workdir import find_workdir, open_workdir


def sample(config: ConfigDict, workdir: str) -> None:
  """Draws config.sample.num_samples images.

  Args:
    config: ConfigDict.
    workdir: folder of the run.

  Raises:
    UserError: no checkpoint, or one of another model.
  """
  checks.prepare(config)
  path = open_workdir(find_workdir(workdir))
  weights, count = build.restore_weights(config, path), config.sample.num_samples
  drawer = build.drawer(config, count)
  processes.say(
    f'{count} samples of step {weights.step}, seed {config.sample.seed}: {drawer.words}'
  )
  folder = write_samples(drawer, weights, path, count, progress=True)
  processes.say(f'done: {folder / "samples.npz"} and {folder / "grid.png"}')
