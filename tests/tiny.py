"""The smallest run that goes the whole path: digits, one level, ten timesteps."""

from configs import digits


def tiny_config(**overrides):
  """The tiny run's config; overrides are fields, as in {'train.num_steps': 3}."""
  config = digits.get_config()
  config.model.update(ch_mult=(1,), attn_resolutions=())
  config.diffusion.num_timesteps = 10
  config.optim.update(warmup_steps=2, ema_decay=0.5)
  config.train.update(
    global_batch_size=16,
    num_steps=6,
    log_every_steps=1,
    checkpoint_every_steps=2,
    sample_every_steps=0,
    num_samples=4,
  )
  config.sample.update(num_samples=6, batch_size=8)
  config.eval.update(num_samples=12, bpd_examples=10, batch_size=8)
  config.reproduce.update(num_samples=12, num_slots=5, num_images=2)
  config.update_from_flattened_dict(overrides)
  return config
