"""Motion of a smartwatch, 128 samples of 6 channels: embedded signals, in minutes on a laptop.

  python main.py --config=configs/watch.py --workdir=DIR

The windows are of 5.12 seconds; two of the ten people are the test split. docs/data.md has more on
signals. configs/watch.py:labels is a model given the exercise.
"""

from ddpm_jax.configs import default
from ddpm_jax.errors import UserError


def get_config(kind=''):
  config = default.get_config()
  config.data.update(
    source='watch', image_size=(128,), channels=6, levels=16_384, random_flip=False
  )
  # The motions' deviation is a twelfth of what the levels hold.
  config.diffusion.update(mean_type='edm', sigma_data=0.08)
  config.model.update(
    ch=32, ch_mult=(1, 2, 4), num_res_blocks=1, attn_resolutions=(32,), dropout=0.0
  )
  config.optim.update(learning_rate=1e-3, warmup_steps=200, ema_decay=0.995)
  config.train.update(
    global_batch_size=32,
    num_steps=3_000,
    checkpoint_every_steps=500,
    keep_checkpoint_every_steps=0,
    sample_every_steps=3_000,
    num_samples=16,
  )
  config.sample.update(num_samples=64, batch_size=64, sampler='dpmpp_2m', num_steps=50)
  config.eval.update(
    metrics=('bpd', 'fid', 'kid', 'pr'), network='watch', num_samples=64, bpd_examples=64
  )
  config.reproduce.update(num_samples=192)
  if kind not in ('', 'labels'):
    raise UserError(f'configs/watch.py:{kind} is not known; its only argument is labels')
  if kind:
    config.model.num_classes = 7
    config.train.label_dropout = 0.1
  return config
