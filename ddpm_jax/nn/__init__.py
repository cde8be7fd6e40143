"""Networks."""

from ddpm_jax.nn.unet import UNet, timestep_embedding

__all__ = ['UNet', 'timestep_embedding']
