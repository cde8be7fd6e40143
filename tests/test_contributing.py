"""docs/contributing.md: each of its changes applies to one file, and works."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
TEXT = (ROOT / 'docs/contributing.md').read_text()

# What each change makes possible, run in a copy of the package that has it.
USES = {
  'ddpm_jax/diffusion/schedules.py': """
from ddpm_jax.diffusion import make_betas, make_schedule
betas = make_betas('sqrt', 100)
assert betas[0] == 1e-4 and abs(betas[-1] - 0.02) < 1e-12 and (betas[1:] > betas[:-1]).all()
assert make_schedule(betas).num_timesteps == 100
""",
  'ddpm_jax/diffusion/prediction.py': """
import numpy as np
from ddpm_jax.diffusion import Parameterization, make_betas, make_schedule, q_sample
schedule = make_schedule(make_betas('linear', 100))
x_0, eps = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 1)).astype(np.float32)
t = np.array([0, 50, 99])
x_t, meaning = q_sample(schedule, x_0, t, eps), Parameterization('score')
target = meaning.target(schedule, x_0, eps, x_t, t)
np.testing.assert_allclose(meaning.read(schedule, target, x_t, t).x_0, x_0, atol=1e-4)
""",
  'ddpm_jax/data/sources.py': """
import numpy as np, tempfile
from ddpm_jax.data import fingerprint, make_source
file = tempfile.mkdtemp() + '/images.npy'
images = np.arange(320).astype(np.uint8).reshape(5, 8, 8, 1)
np.save(file, images)
source = make_source(f'npy:{file}', dir=None, image_size=8, channels=1, split='train')
assert (source.read(np.array([4, 0])) == images[[4, 0]]).all() and fingerprint(source)
""",
  'ddpm_jax/evaluation/scores.py': """
import numpy as np
from ddpm_jax.evaluation.references import Reference
from ddpm_jax.evaluation.scores import METRICS
real = np.random.default_rng(0).normal(size=(100, 4))
reference = Reference({}, (), (), None, {'features': real})
figures = METRICS['spread'].measure({'features': 2 * real}, reference)
assert abs(figures['spread']['value'] - 2) < 1e-9
""",
  'ddpm_jax/sampling/solvers.py': """
import jax, jax.numpy as jnp
from ddpm_jax.diffusion import Prediction, make_betas, make_schedule, timestep_subsequence
from ddpm_jax.sampling import SAMPLERS, make_noise_fn
schedule = make_schedule(make_betas('linear', 100))
noise_fn = make_noise_fn(jax.random.split(jax.random.key(0), 2), (4, 4, 1))
steps = timestep_subsequence(schedule, 5, 'trailing')
denoiser = lambda x_t, t: Prediction(0.5 * jnp.ones_like(x_t))
x_0 = SAMPLERS['restart'](schedule, denoiser, noise_fn(100), noise_fn, steps, variance=None)
assert jnp.allclose(x_0, 0.5)
""",
}


def changes():
  """{file: (text before, text after)} of each diff of the page."""
  found = {}
  for diff in re.findall(r'```diff\n(.*?)```', TEXT, flags=re.DOTALL):
    header, body = diff.split('@@\n')
    lines = body.splitlines(keepends=True)
    before = ''.join(line[1:] for line in lines if line[0] == ' ')
    after = ''.join(line[1:] for line in lines)
    found[re.search(r'\+\+\+ b/(\S+)', header)[1]] = before, after
  return found


def test_every_kind_of_addition_is_one_file():
  assert changes().keys() == USES.keys()
  assert TEXT.count('```diff') == len(USES)


@pytest.mark.parametrize('file', USES)
def test_the_change_applies_and_works(file, tmp_path):
  before, after = changes()[file]
  shutil.copytree(ROOT / 'ddpm_jax', tmp_path / 'ddpm_jax')
  text = (tmp_path / file).read_text()
  assert text.count(before) == 1, before
  (tmp_path / file).write_text(text.replace(before, after))
  command = [sys.executable, '-c', USES[file]]
  subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
