"""Blocks of one averaged brain, 16 x 16 x 16: embedded volumes, in minutes on a laptop.

  python main.py --config=configs/brain_blocks.py --workdir=DIR

The blocks are of 16 mm, and those of a slab in the middle are the test split. docs/data.md has more
on volumes.
"""

from ddpm_jax.configs import default


def get_config():
  config = default.get_config()
  config.data.update(source='brain_blocks', image_size=(16, 16, 16), channels=1, random_flip=False)
  config.model.update(
    ch=16, num_groups=8, ch_mult=(1, 2, 4), num_res_blocks=1, attn_resolutions=(4,), dropout=0.0
  )
  config.optim.update(learning_rate=1e-3, warmup_steps=200, ema_decay=0.995)
  config.train.update(
    global_batch_size=16,
    num_steps=400,
    checkpoint_every_steps=200,
    keep_checkpoint_every_steps=0,
    sample_every_steps=0,
    num_samples=16,
  )
  config.sample.update(num_samples=48, batch_size=48, sampler='dpmpp_2m', num_steps=50)
  config.eval.update(
    metrics=('bpd', 'fid', 'kid', 'pr'),
    network='random',
    num_samples=48,
    bpd_examples=8,
    batch_size=8,
  )
  config.reproduce.update(num_samples=48)
  return config
