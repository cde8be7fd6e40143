"""The bound's terms at each t: means over the images, and the prior."""

import csv
import types

import numpy as np
import pytest

from ddpm_jax.data import PICTURES, Encoding
from ddpm_jax.evaluation.bound import Bound
from ddpm_jax.evaluation.figures.bound_terms import bound
from ddpm_jax.evaluation.weights import make_weights
from ddpm_jax.storage.identity import Identity


@pytest.fixture
def run_of(tmp_path):
  """Returns (arrays of splits, encoding) -> what `bound` takes, and a list of its identities."""

  def make(arrays, encoding=PICTURES):
    identities = []

    def make_bound(split):
      made = types.SimpleNamespace(
        split=split,
        count=len(arrays[split]['vb']),
        identity=Identity(data={'split': split}),
        collect=lambda folder, weights: arrays[split],
        encoding=encoding,
      )
      made.unit = Bound.unit.fget(made)
      return made

    def folder(figure, identity):
      assert figure == 'bound'
      identities.append(identity)
      return tmp_path

    def run(*splits):
      return types.SimpleNamespace(
        bpd_splits=splits,
        make_bound=make_bound,
        eval_folder=tmp_path,
        weights=make_weights(7, {}),
        identity=Identity(seed=0),
        folder=folder,
      )

    return run, identities

  return make


def make_arrays():
  rng = np.random.default_rng(0)
  return {
    split: {name: rng.random((count, 4)).astype(np.float32) for name in ('vb', 'mse')}
    | {'prior_bpd': rng.random(count).astype(np.float32)}
    for split, count in (('train', 5), ('test', 3))
  }


def test_each_split_has_the_mean_of_each_term(run_of, tmp_path):
  arrays = make_arrays()
  run, identities = run_of(arrays)
  assert bound(run('train', 'test')) == tmp_path
  with open(tmp_path / 'bound.csv', newline='') as stream:
    rows = list(csv.DictReader(stream))
  assert [(row['split'], row['t'], row['images']) for row in rows] == [
    (split, t, images)
    for split, images in (('train', '5'), ('test', '3'))
    for t in ('0', '1', '2', '3', 'prior')
  ]
  for split, part in (('train', rows[:5]), ('test', rows[5:])):
    for column, name in (('vb_bpd', 'vb'), ('x_0_mse', 'mse')):
      values = [float(row[column]) for row in part[:4]]
      assert values == pytest.approx(arrays[split][name].mean(axis=0, dtype=np.float64), rel=1e-12)
    prior = arrays[split]['prior_bpd'].mean(dtype=np.float64)
    assert float(part[4]['vb_bpd']) == pytest.approx(prior, rel=1e-12)
    assert part[4]['x_0_mse'] == ''
  assert (tmp_path / 'bound.png').exists()
  bound(run('test'))
  assert identities[0].key() != identities[1].key()
  assert {identity.step for identity in identities} == {7}


def test_terms_of_values_of_any_kind_are_nats_of_the_values_as_they_are_stored(run_of, tmp_path):
  arrays = make_arrays()
  run, _ = run_of(arrays, Encoding('float32', None, 0, (1.0, 2.0), (4.0, 0.5)))
  bound(run('test'))
  with open(tmp_path / 'bound.csv', newline='') as stream:
    found = [float(row['vb_nats']) for row in csv.DictReader(stream)]
  nats = np.log(2) * arrays['test']['vb'].mean(axis=0, dtype=np.float64)
  nats[0] += np.log([4.0, 0.5]).mean()  # a density of x_0 is this much of one of the values
  prior = np.log(2) * arrays['test']['prior_bpd'].mean(dtype=np.float64)
  assert found == pytest.approx([*nats, prior], rel=1e-12)
