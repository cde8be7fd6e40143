"""Trains, samples and evaluates diffusion models: the same program as python -m ddpm_jax.

python main.py --config=configs/cifar10.py --workdir=DIR [--config.train.num_steps=100 ...]
               [--mode=train|sample|edit|compress|decompress|eval|reproduce|import|export|ema|info]
"""

from ddpm_jax.__main__ import run

if __name__ == '__main__':
  run()
