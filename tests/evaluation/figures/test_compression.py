"""Rate and distortion: sums of the bound's terms, beside the paper's numbers."""

import csv
import types

import numpy as np
import pytest

from ddpm_jax.data import PICTURES
from ddpm_jax.evaluation.figures import paper
from ddpm_jax.evaluation.figures.compression import compression, rate_distortion
from ddpm_jax.evaluation.weights import make_weights
from ddpm_jax.storage.identity import Identity


def test_rate_and_distortion_are_sums_of_the_bound():
  rng = np.random.default_rng(0)
  vb, prior, mse = rng.random((5, 4)), rng.random(5), rng.random((5, 4))
  rate, rmse = rate_distortion(vb, prior, mse)
  # After one step only x_T has been sent, and x_{T-1} is known but for the last term.
  assert rate[0] == pytest.approx(prior.mean())
  assert rate[1] == pytest.approx(prior.mean() + vb[:, 3].mean())
  assert rate[-1] == pytest.approx(prior.mean() + vb[:, 1:].mean(axis=0).sum())
  assert rmse[0] == pytest.approx(127.5 * np.sqrt(mse[:, 3].mean()))
  assert rmse[-1] == pytest.approx(127.5 * np.sqrt(mse[:, 0].mean()))


@pytest.mark.parametrize('is_paper_data', [True, False])
def test_the_papers_numbers_stand_beside_those_of_its_data_alone(tmp_path, is_paper_data):
  rng = np.random.default_rng(0)
  arrays = {name: rng.random((3, 1000)) for name in ('vb', 'mse')} | {'prior_bpd': rng.random(3)}
  bound = types.SimpleNamespace(
    collect=lambda folder, weights: arrays, identity=Identity(seed=0), count=3, split='test'
  )

  def folder(figure, identity):
    assert figure == 'compression'
    assert identity.parameters == weights.sha256
    assert identity.choices == {'images': 3}
    return tmp_path

  weights = make_weights(2, {})
  run = types.SimpleNamespace(
    make_bound=lambda split: bound,
    encoding=PICTURES,
    split='test',
    eval_folder=tmp_path,
    weights=weights,
    is_paper_data=is_paper_data,
    folder=folder,
  )
  assert compression(run) == tmp_path
  with open(tmp_path / 'compression.csv', newline='') as stream:
    rows = list(csv.DictReader(stream))
  rate, rmse = rate_distortion(arrays['vb'], arrays['prior_bpd'], arrays['mse'])
  assert [float(row['rate_bpd']) for row in rows] == rate.tolist()
  assert [float(row['rmse']) for row in rows] == rmse.tolist()
  printed = {
    (int(row['reverse_steps']), float(row['paper_rate_bpd']), float(row['paper_rmse']))
    for row in rows
    if row['paper_rmse']
  }
  assert printed == (set(paper.TABLE_4) if is_paper_data else set())
