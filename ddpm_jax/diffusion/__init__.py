"""The mathematics of diffusion: schedules, the process q, predictions, losses and the bound."""

from ddpm_jax.diffusion.analytic import mean_square_eps, with_analytic_variance, x_0_variances
from ddpm_jax.diffusion.bound import (
  BoundTerms,
  all_terms,
  bpd_estimate,
  bpd_loop,
  prior_bpd,
  sampled_terms,
  vb_terms_bpd,
)
from ddpm_jax.diffusion.forward import q_mean_variance, q_posterior_mean_variance, q_sample
from ddpm_jax.diffusion.gaussians import discretized_gaussian_log_likelihood, normal_kl
from ddpm_jax.diffusion.losses import training_losses
from ddpm_jax.diffusion.prediction import (
  Denoiser,
  Network,
  Parameterization,
  Prediction,
  make_denoiser,
  make_network,
)
from ddpm_jax.diffusion.reverse import p_mean_variance, p_sample
from ddpm_jax.diffusion.schedules import (
  NoiseSchedule,
  make_betas,
  make_schedule,
  refined,
  timestep_subsequence,
)

__all__ = [
  'BoundTerms',
  'Denoiser',
  'Network',
  'NoiseSchedule',
  'Parameterization',
  'Prediction',
  'all_terms',
  'bpd_estimate',
  'bpd_loop',
  'discretized_gaussian_log_likelihood',
  'make_betas',
  'make_denoiser',
  'make_network',
  'make_schedule',
  'mean_square_eps',
  'normal_kl',
  'p_mean_variance',
  'p_sample',
  'prior_bpd',
  'q_mean_variance',
  'q_posterior_mean_variance',
  'q_sample',
  'refined',
  'sampled_terms',
  'timestep_subsequence',
  'training_losses',
  'vb_terms_bpd',
  'with_analytic_variance',
  'x_0_variances',
]
