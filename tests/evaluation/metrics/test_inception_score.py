"""The Inception score against its bounds, and the numbers of two other programs."""

import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.metrics import inception_score as module
from ddpm_jax.evaluation.metrics.inception_score import inception_score


def test_uniform_predictions_score_one():
  mean, std = inception_score(np.full((60, 7), 3.0), num_splits=4)
  assert mean == pytest.approx(1, abs=1e-12)
  assert std == pytest.approx(0, abs=1e-12)


def test_equal_predictions_score_one():
  logits = np.tile(np.random.default_rng(0).standard_normal(9), (50, 1))
  assert inception_score(logits)[0] == pytest.approx(1, abs=1e-12)


def test_sure_and_balanced_predictions_score_the_number_of_classes():
  logits = 1e4 * np.tile(np.eye(6), (10, 1))  # exp overflows unless it is shifted
  mean, std = inception_score(logits, num_splits=5)
  assert mean == pytest.approx(6, rel=1e-12)
  assert std == pytest.approx(0, abs=1e-12)


def test_score_is_the_exponential_of_the_mean_divergence():
  logits = np.random.default_rng(1).standard_normal((40, 5))
  p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  divergences = (p * np.log(p / p.mean(axis=0))).sum(axis=1)
  score, _ = inception_score(logits, num_splits=1)
  assert score == pytest.approx(np.exp(divergences.mean()), rel=1e-13)


def test_splits_are_in_order_and_cover_all():
  logits = np.random.default_rng(2).standard_normal((10, 4))
  parts = [logits[:3], logits[3:6], logits[6:]]  # 10 * i // 3
  scores = [inception_score(part, num_splits=1)[0] for part in parts]
  mean, std = inception_score(logits, num_splits=3)
  assert mean == pytest.approx(np.mean(scores), rel=1e-13)
  assert std == pytest.approx(np.std(scores), rel=1e-12)


def test_blocks_do_not_change_the_score(monkeypatch):
  logits = np.random.default_rng(3).standard_normal((100, 4)).astype(np.float32)
  whole = inception_score(logits, num_splits=2)
  monkeypatch.setattr(module, 'BLOCK', 7)
  assert inception_score(logits, num_splits=2) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize('case', ['logits_a', 'logits_1008', 'logits_big'])
def test_score_equals_the_original_programs(reference, case):
  arrays = reference('metrics')
  score, std = inception_score(arrays[case], num_splits=1)
  assert score == pytest.approx(float(arrays[f'{case}/is_float64_in']), rel=1e-12)
  assert score == pytest.approx(float(arrays[f'{case}/is_float32_in']), rel=1e-6)
  assert std == 0


def test_score_equals_torch_fidelitys(reference):
  arrays = reference('fidelity_metrics')
  mean, std = inception_score(arrays['logits'])
  assert mean == pytest.approx(float(arrays['is_mean']), rel=1e-12)
  assert std == pytest.approx(float(arrays['is_std']), rel=1e-10)  # over the parts, not N - 1
  one, _ = inception_score(arrays['logits'], num_splits=1)
  assert one == pytest.approx(float(arrays['is_one_split']), rel=1e-12)


@pytest.mark.parametrize('num_splits', [0, 6])
def test_splits_that_are_impossible_are_refused(num_splits):
  with pytest.raises(UserError, match='splits of 5 images'):
    inception_score(np.zeros((5, 3)), num_splits=num_splits)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(value):
  logits = np.random.default_rng(4).standard_normal((20, 3))
  logits[13, 2] = value
  with pytest.raises(UserError, match='logits are not finite') as caught:
    inception_score(logits, num_splits=2)
  assert '\n' not in str(caught.value)
