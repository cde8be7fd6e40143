"""The Inception score (Salimans et al. 2016): exp E KL(p(y|x) || p(y)), in float64."""

import itertools

import numpy as np

from ddpm_jax.errors import UserError

BLOCK = 4096  # images in memory at a time


def inception_score(logits: np.ndarray, *, num_splits: int = 10) -> tuple[float, float]:
  """The score, over equal parts of the images in their order.

  Args:
    logits: float [N, classes], may be mapped from a file.
    num_splits: parts, at most N; 10 in most papers, 1 in the original program.

  Returns:
    (mean, std) of the parts' scores, each between 1 and the number of classes.

  Raises:
    UserError: more splits than images, or logits that are not finite.
  """
  if not 1 <= num_splits <= len(logits):
    raise UserError(f'{num_splits} splits of {len(logits)} images; from 1 to {len(logits)} work')
  edges = [len(logits) * i // num_splits for i in range(num_splits + 1)]
  scores = [_score(logits[a:b]) for a, b in itertools.pairwise(edges)]
  return float(np.mean(scores)), float(np.std(scores))


def _score(logits):
  """exp of (mean over images of sum p log p, minus sum of mean p log mean p)."""
  mean, negative_entropy = np.zeros(logits.shape[1]), 0.0
  for first in range(0, len(logits), BLOCK):
    block = np.asarray(logits[first : first + BLOCK], np.float64)
    if not np.isfinite(block).all():
      raise UserError('logits are not finite: the images, or the network, are broken')
    log_p = block - block.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    mean += p.sum(axis=0) / len(logits)
    negative_entropy += (p * log_p).sum() / len(logits)
  positive = mean[mean > 0]
  return np.exp(negative_entropy - (positive * np.log(positive)).sum())
