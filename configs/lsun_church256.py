"""LSUN church_outdoor 256 x 256, as in the paper (Table 3): FID 7.89 (the paper's number).

  python main.py --config=configs/lsun_church256.py --config.data.dir=LSUN --workdir=DIR

1,200,000 steps * 64 = 76.8M examples. docs/data.md says how to lay out the images.
"""

from ddpm_jax.configs import celebahq256


def get_config():
  config = celebahq256.get_config()
  config.data.update(source='lsun_church')
  config.train.update(num_steps=1_200_000)
  config.eval.update(bpd_splits=('train', 'val'), reference_examples=50_000)
  config.reproduce.update(split='val')
  return config
