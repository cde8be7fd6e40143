"""Handwritten digits, 8 x 8: the embedded data set, the whole path in minutes on a laptop.

  python main.py --workdir=DIR

1,600 steps * 64 = 102,400 examples, 68 epochs of the 1,497 training digits.

  python main.py --config=configs/digits.py:labels --workdir=DIR

is a model of the digits given their label: docs/labels.md.
"""

from ddpm_jax.configs import default
from ddpm_jax.errors import UserError


def get_config(kind=''):
  config = default.get_config()
  config.data.update(source='digits', image_size=8, channels=1, random_flip=False)
  config.model.update(ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), dropout=0.0)
  config.optim.update(learning_rate=2e-3, warmup_steps=200, ema_decay=0.995)
  config.train.update(
    global_batch_size=64,
    num_steps=1_600,
    checkpoint_every_steps=400,
    keep_checkpoint_every_steps=0,
    sample_every_steps=800,
    num_samples=40,
  )
  config.sample.update(num_samples=100, batch_size=100)
  config.eval.update(network='digits', num_samples=100, bpd_examples=64)
  config.reproduce.update(num_samples=64)
  if kind not in ('', 'labels'):
    raise UserError(f'configs/digits.py:{kind} is not known; its only argument is labels')
  if kind:
    config.model.num_classes = 10
    config.train.label_dropout = 0.1
  return config
