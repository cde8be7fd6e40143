"""Trains the digits model of the package, measures it, and writes ddpm_jax/models/digits/.

  python scripts/make_digits_model.py [WORKDIR]

Five minutes on two CPU cores. The folder has the moving average in float16, the config, and about:
the command, the step, and the figures of these very weights.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np

from ddpm_jax import __version__
from ddpm_jax.config.files import CONFIG_FILE, MODELS
from ddpm_jax.config.origins import PACKAGED_ABOUT, PACKAGED_WEIGHTS, config_of, read_weights
from ddpm_jax.interop.safetensors_file import write_safetensors
from ddpm_jax.interop.tensors import tensors_from_params
from ddpm_jax.storage.files import read_json, write_text

ROOT = pathlib.Path(__file__).resolve().parents[1]
COMMAND = (
  '--config=configs/digits.py',
  '--config.sample.sampler=dpmpp_2m',  # a second for what takes the whole chain a minute
  '--config.sample.num_steps=10',
)
FIGURES = ('--config.eval.num_samples=1500', '--config.eval.bpd_examples=300')


def run(*args):
  """Runs the command line."""
  subprocess.run([sys.executable, str(ROOT / 'main.py'), *map(str, args)], check=True, cwd=ROOT)


def main(scratch):
  """Trains and measures in a folder, and writes the model."""
  trained, measured, folder = scratch / 'trained', scratch / 'measured', MODELS / 'digits'
  run(*COMMAND, f'--workdir={trained}')
  config = config_of(str(trained))
  weights = read_weights(str(trained), config)
  tensors = tensors_from_params(weights.params, lambda path, _: ('.'.join(path), 'same'))
  folder.mkdir(parents=True, exist_ok=True)
  write_safetensors(
    folder / PACKAGED_WEIGHTS, {name: np.float16(tensor) for name, tensor in tensors.items()}
  )
  shutil.copy(trained / CONFIG_FILE, folder / CONFIG_FILE)
  about = {
    'command': ' '.join(['python -m ddpm_jax', *COMMAND, '--workdir=DIR']),
    'step': weights.step,
    'version': __version__,
  }
  write_text(folder / PACKAGED_ABOUT, json.dumps(about, indent=2) + '\n')
  # The figures are those of the weights in float16.
  run(f'--workdir={measured}', *COMMAND, '--mode=import', f'--config.import.path={folder}')
  run(f'--workdir={measured}', '--mode=eval', *FIGURES)
  (report,) = measured.glob('eval/step_*/report-*/report.json')
  about['figures'] = {f['name']: round(f['value'], 4) for f in read_json(report)['figures']}
  write_text(folder / PACKAGED_ABOUT, json.dumps(about, indent=2) + '\n')


if __name__ == '__main__':
  if len(sys.argv) > 1:
    main(pathlib.Path(sys.argv[1]))
  else:
    with tempfile.TemporaryDirectory() as scratch_dir:
      main(pathlib.Path(scratch_dir))
