"""No figure passes for a published one that it does not compare with."""

import pytest

from ddpm_jax.report import metric_name

INCEPTION = {'name': 'InceptionV3', 'published': True}
CLASSIFIER = {'name': 'digits classifier', 'published': False}


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
  assert metric_name(metric, network, count) == name
  assert metric_name(metric, network, count, ['against test', 'unrounded']) == (
    f'{name} (against test, unrounded)'
  )
