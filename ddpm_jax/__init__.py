"""Denoising diffusion probabilistic models (Ho, Jain, Abbeel 2020, arXiv 2006.11239) in JAX."""
