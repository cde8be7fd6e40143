"""The notebook runs as it stands, and has its outputs."""

import pathlib

import nbclient
import nbformat
import pytest

FILE = pathlib.Path(__file__).resolve().parents[1] / 'examples' / 'quickstart.ipynb'
SHORTENED = {'num_steps=400': 'num_steps=4', 'num_steps=100,': 'num_steps=2,'}  # of training


@pytest.fixture
def notebook():
  return nbformat.read(FILE, as_version=4)


def test_outputs_are_kept(notebook):
  cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
  assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
  shown = [output for cell in cells for output in cell.outputs]
  assert not [output for output in shown if output.output_type == 'error']
  assert sum('image/png' in output.get('data', {}) for output in shown) >= 5


@pytest.mark.slow  # three minutes
def test_notebook_runs(notebook, monkeypatch, tmp_path):
  monkeypatch.setenv('PYTHONPATH', str(FILE.parents[1]))
  for cell in notebook.cells:
    for text, shorter in SHORTENED.items():
      cell.source = cell.source.replace(text, shorter)
  nbclient.NotebookClient(
    notebook, timeout=600, resources={'metadata': {'path': tmp_path}}
  ).execute()
