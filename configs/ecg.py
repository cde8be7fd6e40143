"""Electrocardiograms, 1,024 samples of one lead: one's own recordings, such as MIT-BIH's.

  python main.py --config=configs/ecg.py --workdir=DIR --config.data.source=signals:PATH \
    --config.data.holdout=0.1

PATH has a file for each recording, WAV or FLAC of 16 bits at its own rate, or CSV (with
--config.data.rate=360); or PATH/train and PATH/test have, without data.holdout. All are of one rate
and one lead: --config.data.channels=2 for two. An array [N, 1024, 1] is array:PATH, without
data.stride. No window goes over a recording's end, and no recording lies on both sides of a split:
give each person one file, or one side.

Values are whole numbers of 12 bits, -2,048 to 2,047: those of MIT-BIH (11 bits around 1,024, at 360
samples a second) less 1,024. PTB-XL's, in microvolts at 500, take --config.data.levels=65536. A
window is of 2.8 or 2.0 seconds, two heartbeats or three. Two cores take some three hours.
"""

from ddpm_jax.configs import default


def get_config():
  config = default.get_config()
  config.data.update(
    source='signals:ecg',
    image_size=(1024,),
    channels=1,
    levels=4096,
    stride=256,
    random_flip=False,
  )
  # Heartbeats fill a small part of the levels; this is the deviation of x_0 of MIT-BIH.
  config.diffusion.update(mean_type='edm', sigma_data=0.06)
  config.model.update(
    ch=32, ch_mult=(1, 1, 2, 2, 4), num_res_blocks=1, attn_resolutions=(64,), dropout=0.0
  )
  config.optim.update(learning_rate=5e-4, warmup_steps=500, ema_decay=0.999)
  config.train.update(
    global_batch_size=32,
    num_steps=20_000,
    checkpoint_every_steps=1_000,
    keep_checkpoint_every_steps=0,
    sample_every_steps=5_000,
    num_samples=16,
  )
  config.sample.update(num_samples=16, batch_size=16, sampler='dpmpp_2m', num_steps=50)
  config.eval.update(
    metrics=('bpd', 'fid', 'kid', 'pr'), network='random', num_samples=64, bpd_examples=64
  )
  config.reproduce.update(num_samples=64)
  return config
