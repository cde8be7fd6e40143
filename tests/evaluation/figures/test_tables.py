"""Tables 1 and 2: where this model stands, and what its cells say."""

import csv
import types

import pytest

from ddpm_jax.evaluation.figures import paper
from ddpm_jax.evaluation.figures.tables import table1, table2
from ddpm_jax.evaluation.weights import make_weights
from ddpm_jax.storage.identity import Identity

FIGURES = {
  'train': {'name': 'bits/dim (train)', 'value': 3.724, 'count': 50_000},
  'test': {'name': 'bits/dim (test)', 'value': 3.747, 'count': 10_000},
  'fid': {'name': 'FID', 'value': 3.171, 'count': 50_000},
  'is': {'name': 'Inception score', 'value': 9.456, 'count': 50_000},
}


@pytest.fixture
def run(tmp_path):
  """Returns (figures of the evaluation, kind of the model) -> Run, as far as tables need it."""

  def run(figures, kind=('eps', 'mse', 'fixedlarge')):
    def folder(name, identity):
      assert identity == Identity(step=7, parameters=weights.sha256, seed=3)
      return tmp_path

    weights = make_weights(7, {})
    return types.SimpleNamespace(
      evaluation={name: FIGURES[name] for name in figures},
      weights=weights,
      kind=kind,
      folder=folder,
      evaluator=types.SimpleNamespace(identity=Identity(seed=3)),
    )

  return run


def read_rows(file):
  with open(file, newline='') as stream:
    return list(csv.reader(stream))


def test_table_1_ends_with_this_model(run):
  folder = table1(run(FIGURES))
  columns, *rows = read_rows(folder / 'table1.csv')
  assert tuple(columns) == paper.TABLE_1_COLUMNS
  assert [tuple(row) for row in rows[:-1]] == list(paper.TABLE_1)
  assert rows[-1] == [
    'this model, step 7',
    '9.46 [Inception score]',
    '3.17 [FID]',
    '<= 3.75 [bits/dim (test), 10,000 images], <= 3.72 [bits/dim (train), 50,000 images]',
  ]
  assert (folder / 'table1.png').exists()


@pytest.mark.parametrize(
  ('figures', 'cells'),
  [
    (['fid'], ['', '3.17 [FID]', '']),
    (['is'], ['9.46 [Inception score]', '', '']),
    (['train'], ['', '', '<= 3.72 [bits/dim (train), 50,000 images]']),
  ],
)
def test_what_was_not_measured_is_left_out(run, figures, cells):
  rows = read_rows(table1(run(figures)) / 'table1.csv')
  assert rows[-1][1:] == cells
  rows = read_rows(table2(run(figures)) / 'table2.csv')
  assert [row[-2:] for row in rows[1:] if row[:3] == ['eps', 'mse', 'fixedlarge']] == [cells[:2]]


def test_table_2_has_this_model_beside_its_kind_alone(run):
  for number, kind in enumerate(row[:3] for row in paper.TABLE_2):
    columns, *rows = read_rows(table2(run(FIGURES, kind)) / 'table2.csv')
    assert columns == [*paper.TABLE_2_COLUMNS, 'IS, this model', 'FID, this model']
    assert [tuple(row[:5]) for row in rows] == list(paper.TABLE_2)
    expected = [['', '']] * len(rows)
    expected[number] = ['9.46 [Inception score]', '3.17 [FID]']
    assert [row[5:] for row in rows] == expected


def test_table_2_has_a_row_for_a_kind_that_the_paper_has_not(run):
  rows = read_rows(table2(run(FIGURES, ('v', 'mse', 'fixedsmall'))) / 'table2.csv')
  assert len(rows) == len(paper.TABLE_2) + 2
  assert rows[-1] == [
    'v', 'mse', 'fixedsmall', 'not in the paper', 'not in the paper', '9.46 [Inception score]',
    '3.17 [FID]',
  ]  # fmt: skip
  assert {tuple(row[5:]) for row in rows[1:-1]} == {('', '')}
