"""--mode=train: trains to config.train.num_steps, or until a signal stops the run."""

from ddpm_jax.trainer import run as train

__all__ = ['train']
