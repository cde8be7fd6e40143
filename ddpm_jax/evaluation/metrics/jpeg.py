"""Whether images went through JPEG: its blocks of 8 x 8 pixels leave steps at their edges.

That tells coarse JPEG from none, not fine JPEG: photographs of 32 x 32 pixels have a blockiness of
1.23 after quality 50, 1.09 after 75, 1.04 after 85, 1.02 after 90 and 1.01 after 95. Halved
resolution of colours adds 0.02 to 0.04 where the channels have nothing to do with each other.
"""

import numpy as np

BLOCK = 8
LIMIT = 1.03  # natural images lie within a hundredth of 1


def blockiness(images: np.ndarray) -> float:
  """Mean absolute step across the edges of 8 x 8 blocks, over that beside the edges.

  Args:
    images: [N, H, W, C], H and W at least 16; a few hundred give a second digit.

  Returns:
    a float: 1 for images that were never cut into blocks, more after JPEG; NaN for images too
    small, or without any step.
  """
  ratios = []
  for axis in (1, 2):
    steps = np.abs(np.diff(np.asarray(images, np.float32), axis=axis))
    steps = steps.mean(axis=tuple(i for i in range(4) if i != axis), dtype=np.float64)
    edges = np.arange(BLOCK - 1, len(steps) - 1, BLOCK)
    beside = (steps[edges - 1] + steps[edges + 1]).sum() / 2
    ratios.append(steps[edges].sum() / beside if len(edges) and beside else np.nan)
  return float(np.mean(ratios))
