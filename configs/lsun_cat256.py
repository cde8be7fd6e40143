"""LSUN cat 256 x 256, as in the paper (Table 3): FID 19.75 (the paper's number).

  python main.py --config=configs/lsun_cat256.py --config.data.dir=LSUN --workdir=DIR

1,800,000 steps * 64 = 115.2M examples. docs/data.md says how to lay out the images. No flips, as
the original program's command line has it; the paper says that only LSUN bedroom went without.
"""

from ddpm_jax.configs import celebahq256


def get_config():
  config = celebahq256.get_config()
  config.data.update(source='lsun_cat', random_flip=False)
  config.train.update(num_steps=1_800_000)
  config.eval.update(reference_examples=50_000)
  return config
