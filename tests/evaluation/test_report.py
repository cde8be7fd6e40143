"""No figure passes for a published one that it does not compare with."""

import pytest

from ddpm_jax.evaluation.report import figure_name, to_markdown
from ddpm_jax.evaluation.scores import METRICS

INCEPTION = {'name': 'InceptionV3', 'published': True}
CLASSIFIER = {'name': 'digits classifier', 'published': False}
NAMES = {figure: names for metric in METRICS.values() for figure, names in metric.names.items()}


@pytest.mark.parametrize(
  ('metric', 'network', 'count', 'name'),
  [
    ('fid', INCEPTION, 50_000, 'FID'),
    ('fid', INCEPTION, 49_999, 'FID-49999'),
    ('is', INCEPTION, 50_000, 'Inception score'),
    ('is', INCEPTION, 49_999, 'Inception score of 49,999 images'),
    ('kid', INCEPTION, 60_000, 'KID'),
    ('precision', INCEPTION, 12, 'Precision of 12 images'),
    ('fid', CLASSIFIER, 50_000, 'Frechet distance (digits classifier), 50,000 images'),
    ('kid', CLASSIFIER, 49_999, 'Kernel distance (digits classifier), 49,999 images'),
    ('is', CLASSIFIER, 50_000, 'Classifier score (digits classifier), 50,000 images'),
  ],
)
def test_names_say_what_was_measured(metric, network, count, name):
  assert figure_name(NAMES[metric], network, count) == name
  assert figure_name(NAMES[metric], network, count, ['against test', 'unrounded']) == (
    f'{name} (against test, unrounded)'
  )


def test_every_fact_of_a_figure_is_in_the_report_for_people():
  figure = {
    'metric': 'fid',
    'name': 'FID-12',
    'value': 0.123456,
    'count': 12,
    'sanity': 1234.567,
    'sampler': 'ddim, 5 of 10 steps',
  }
  bound = {'metric': 'bpd', 'name': 'bits/dim', 'value': 3.75, 'count': 5000}
  report = {
    'title': 'Evaluation of step 4',
    'about': {'step': 4},
    'notes': ['A note.'],
    'figures': [figure, bound | {'standard_error': 0.01}],
  }
  lines = to_markdown(report).splitlines()
  assert lines[0] == '# Evaluation of step 4'
  assert '**A note.**' in lines
  assert '| FID-12 | 0.1235 |  | 12 | 1234.57 |' in lines
  assert '| bits/dim | 3.7500 | 0.01 | 5,000 |  |' in lines
  assert '* step: 4' in lines
  assert lines[lines.index('### FID-12') :][:3] == [
    '### FID-12', '', '* sampler: ddim, 5 of 10 steps'
  ]  # fmt: skip
