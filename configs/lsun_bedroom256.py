"""LSUN bedroom 256 x 256, as in the paper (Table 3): FID 6.36 (the paper's number).

  python main.py --config=configs/lsun_bedroom256.py --config.data.dir=LSUN --workdir=DIR

2,400,000 steps * 64 = 153.6M examples. docs/data.md says how to lay out the images. Flips are on,
as the original program's command line has them; the paper says that this set went without
(--config.data.random_flip=False).
"""

from ddpm_jax.configs import celebahq256


def get_config():
  config = celebahq256.get_config()
  config.data.update(source='lsun_bedroom')
  config.train.update(num_steps=2_400_000)
  config.eval.update(bpd_splits=('train', 'val'), reference_examples=50_000)
  config.reproduce.update(split='val')
  return config
