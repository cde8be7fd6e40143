"""The bound of few steps: by variance, and all steps are the bound itself."""

import csv

import pytest

from ddpm_jax.evaluation.figures import bound_by_steps
from ddpm_jax.modes.reproduce import reproduce
from tests.tiny import tiny_config


def read_csv(file):
  with open(file, newline='') as stream:
    return list(csv.DictReader(stream))


def test_the_bound_of_few_steps_stands_by_variance(workdir, monkeypatch):
  monkeypatch.setattr(bound_by_steps, 'NUM_STEPS', (4, 100))
  what = {'reproduce.what': ('few_steps', 'bound'), 'eval.bpd_splits': ('test',)}
  reproduce(tiny_config(**what), workdir)
  (folder,) = (workdir / 'reproduce/step_00000002').glob('few_steps_*')
  rows = read_csv(folder / 'few_steps.csv')
  assert [(row['variance'], row['steps']) for row in rows] == [
    (variance, steps) for variance in bound_by_steps.VARIANCES for steps in ('4', '10')
  ]
  values = {(row['variance'], row['steps']): float(row['value']) for row in rows}
  for steps in ('4', '10'):  # the best of one number a step, but for L_0 and other examples
    fixed = min(values['fixedsmall', steps], values['fixedlarge', steps])
    assert values['analytic', steps] < fixed + 0.1
  assert values['analytic', '4'] < values['fixedsmall', '4'] - 0.1
  (file,) = (workdir / 'reproduce/step_00000002').glob('bound_*/bound.csv')
  whole = sum(float(row['vb_bpd']) for row in read_csv(file))
  assert values['fixedlarge', '10'] == pytest.approx(whole, rel=1e-4)
  assert '| analytic |' in (folder / 'few_steps.md').read_text()
  assert (folder / 'few_steps.png').exists()
