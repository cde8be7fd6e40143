"""A small U-Net on CIFAR-10, which two CPU cores train to visible structure within two hours.

  python main.py --config=configs/cifar10_small.py --workdir=DIR

4,800 steps * 32 = 153,600 examples, 3.1 epochs. The curve, samples and numbers of such a run are in
docs/results.md. configs/cifar10_small.py:labels is a model given the label: docs/labels.md.
"""

from ddpm_jax.configs import default
from ddpm_jax.errors import UserError


def get_config(kind=''):
  config = default.get_config()
  config.model.update(
    ch=32, ch_mult=(1, 2, 4, 4), num_res_blocks=1, attn_resolutions=(8,), dropout=0.0
  )
  config.optim.update(learning_rate=1e-3, warmup_steps=500, ema_decay=0.995)
  config.train.update(
    global_batch_size=32,
    num_steps=4_800,
    log_every_steps=50,
    checkpoint_every_steps=400,
    keep_checkpoint_every_steps=1_200,
    sample_every_steps=1_200,
    num_samples=16,
  )
  config.sample.update(num_samples=64, batch_size=64)
  if kind not in ('', 'labels'):
    raise UserError(f'configs/cifar10_small.py:{kind} is not known; its only argument is labels')
  if kind:
    config.model.num_classes = 10
    config.train.label_dropout = 0.1
  return config
