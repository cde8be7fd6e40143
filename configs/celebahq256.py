"""CelebA-HQ 256 x 256, as in the paper (Figs. 1, 9): 113.7M parameters.

  python main.py --config=configs/celebahq256.py --config.data.dir=IMAGES --workdir=DIR

500,000 steps * 64 = 32M examples; the paper ran 2.2 steps/s on a TPU v3-8, 63 h. It gives no FID.
docs/data.md says how to lay out the images. All of them are trained on: there is no test split.
"""

from ddpm_jax.configs import default


def get_config():
  config = default.get_config()
  config.data.update(source='celebahq256', image_size=256)
  config.diffusion.update(schedule='linear', beta_start=1e-4, var_type='fixedsmall')
  config.model.update(ch_mult=(1, 1, 2, 2, 4, 4), dropout=0.0)
  config.optim.update(learning_rate=2e-5)
  config.train.update(global_batch_size=64, num_steps=500_000, num_samples=16)
  config.sample.update(num_samples=16, batch_size=16)
  config.eval.update(bpd_splits=('train',), bpd_examples=300)
  config.reproduce.update(split='train')
  return config
