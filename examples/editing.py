"""Completes digits of which the upper half is known, three ways each.

  python examples/editing.py

Writes edited.png: a digit a row, before | what is known | three samples.
"""

import numpy as np

import ddpm_jax

model = ddpm_jax.load('digits')
digits = model.sample(4, seed=1)
mask = np.zeros((8, 8), bool)
mask[:4] = True  # known
edited = model.inpaint(digits, mask, num=3)
known = np.where(mask[..., None], digits, 128).astype(np.uint8)
rows = np.concatenate([digits[:, None], known[:, None], edited], axis=1)
model.picture(rows.reshape(-1, *model.shape), columns=5).save('edited.png')
