"""What a sampler takes of its checkpoint by measurement: the analytic variance, and timesteps that
are the best for it.

It is measured once and kept, in WORKDIR/fitted, or in the user's cache for a model without workdir:
  moments_KEY.npz  the mean squared error of x_0 as predicted of training data, at some timesteps
  flow_KEY.npz     of fine solutions of the probability flow, at some timesteps: the products that
                   the errors of steps follow from
  bespoke_KEY.npz  the coefficients of a bespoke solver for some timesteps
"""

import hashlib
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.config import build, origins
from ddpm_jax.config.predictions import predict_of, training_examples
from ddpm_jax.diffusion import NoiseSchedule, timestep_subsequence
from ddpm_jax.diffusion.forward import scale_levels
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.weights import Weights
from ddpm_jax.nn.own import OwnNetwork
from ddpm_jax.sampling.bespoke import fine_solution, fit_bespoke
from ddpm_jax.sampling.optimised import (
  FlowProducts,
  check_least_bound,
  check_least_error,
  least_bound,
  least_error,
  solved_products,
)
from ddpm_jax.sampling.solvers import make_levels
from ddpm_jax.storage.files import damaged, make_writable
from ddpm_jax.storage.npz import open_npz, write_npz

MAX_TIMESTEPS = 128  # that are measured; between them, moments are interpolated
FLOW_ELEMENTS = 2**18  # of the solutions' states, of 16 to 256 solutions
FLOW_EXAMPLES = 16, 256
BESPOKE_ELEMENTS = 2**17  # of the x_T of a bespoke solver, of 4 to 128 of them; half are held out
BESPOKE_EXAMPLES = 4, 128
SEED = 0

Say = Callable[[str], None]
Arrays = dict[str, np.ndarray]


class Fit(NamedTuple):
  """What a sampler takes of its checkpoint.

  Attributes:
    config: with config.sample.timesteps, where the spacing is fitted.
    estimates: x_0_variances, float64 [T], where the analytic variance is asked for; coefficients,
      float64 [S, S + 1], of a bespoke solver.
  """

  config: ConfigDict
  estimates: build.Estimates = build.NO_ESTIMATES


def needs_fit(config: ConfigDict) -> bool:
  """Whether config.sample asks for what is fitted to a checkpoint."""
  sample = config.sample
  is_bespoke = sample.sampler == build.BESPOKE
  return sample.variance == build.ANALYTIC or is_bespoke or build.is_fitted(config)


def check_needs(config: ConfigDict) -> None:
  """Raises a UserError where config.sample asks for a fit that no checkpoint of the model has."""
  if not needs_fit(config):
    return
  if build.parameterization(config.diffusion).is_step:
    raise UserError(
      'this model predicts xprev, one step of the whole chain, and sample.variance=analytic, '
      f'sample.sampler=bespoke and sample.spacing={" or ".join(build.FITTED_SPACINGS)} are of '
      'steps of any length: leave them out'
    )
  if not build.is_fitted(config) or config.sample.timesteps is not None:
    return
  noise, count, spacing = (
    build.sample_schedule(config),
    build.num_steps(config),
    build.spacing(config),
  )
  if spacing == 'least_bound':
    check_least_bound(noise, count)
  else:
    check_least_error(len(_fine_timesteps(noise)), count)


def fit(
  config: ConfigDict,
  weights: Weights,
  given: str,
  *,
  network: OwnNetwork | None = None,
  say: Say = lambda line: None,
) -> Fit:
  """What config.sample asks for; measured, where it is not kept from before.

  Args:
    config: ConfigDict, checked.
    weights: Weights.
    given: the model, as origins has it.
    network: one's own, in place of the U-Net.
    say: told what is measured, and where it is kept.

  Raises:
    UserError: a model of one step alone, a number of steps that cannot be, or a damaged file.
  """
  if not needs_fit(config):
    return Fit(config)
  check_needs(config)
  build.check_unconditional(config)
  spacing, chosen, estimates = build.spacing(config), None, {}
  if config.sample.variance == build.ANALYTIC:
    estimates['x_0_variances'] = x_0_variances(config, weights, given, network=network, say=say)
  if spacing == 'least_bound':
    noise = build.sample_schedule(config)
    errors = _errors(noise, _moments_of(config, weights, given, network, say))
    count, variance = build.num_steps(config), build.sample_variance(config)
    chosen = least_bound(noise, errors, count, variance=variance)
  if spacing == 'least_error':
    parts = config.sample.timestep_parts or 1
    name = f'flow_{_key(weights)}{"" if parts == 1 else f"_{parts}"}.npz'
    file = origins.kept_folder(given, 'fitted') / name
    found = _kept(file, lambda: _flow(config, weights, network), say)
    levels = make_levels(build.sample_schedule(config), np.sort(found.pop('timesteps')))
    rows = least_error(FlowProducts(levels, **found), build.num_steps(config))
    chosen = levels.timesteps[rows][::-1]
  if chosen is not None:
    config = config.copy_and_resolve_references().unlock()
    config.sample.timesteps = tuple(build.times(build.sample_schedule(config))[chosen].tolist())
    config.sample.spacing = spacing
    config.lock()
  if config.sample.sampler == build.BESPOKE:
    asked = *build.timesteps(config).tolist(), config.sample.timestep_parts, config.sample.clip
    name = f'bespoke_{_key(weights)}_{hashlib.sha256(str(asked).encode()).hexdigest()[:8]}.npz'
    file = origins.kept_folder(given, 'fitted') / name
    found = _kept(file, lambda: _bespoke(config, weights, network, say), say)
    estimates['coefficients'] = found['coefficients']
  return Fit(config, estimates)


def x_0_variances(
  config: ConfigDict,
  weights: Weights,
  given: str,
  *,
  network: OwnNetwork | None = None,
  say: Say = lambda line: None,
) -> np.ndarray:
  """Of the analytic variance, float64 [T]; Args as fit."""
  return _errors(build.schedule(config), _moments_of(config, weights, given, network, say))


def _errors(noise: NoiseSchedule, found: Arrays) -> np.ndarray:
  """The mean squared error of the predicted x_0 at the times of all rows, float64.

  For a model that is exact it is the mean variance of x_0 given x_t, which the analytic variance
  goes by (Bao et al. 2022); for others it is the best one number for the mean that the model has.
  Next to the estimate from the predicted noise, a few examples suffice where noise is high.
  """
  return np.exp(np.interp(build.times(noise), found['t'], np.log(found['x_0'])))


def _moments_of(config, weights, given, network, say) -> Arrays:
  file = origins.kept_folder(given, 'fitted') / f'moments_{_key(weights)}.npz'
  return _kept(file, lambda: _moments(config, weights, network), say)


def _key(weights):
  return weights.sha256[:16]


def _moments(config, weights, network) -> Arrays:
  """t int [G], increasing, and the mean squared error of the predicted x_0 at each, float64 [G]."""
  whole, predict = build.schedule(config), predict_of(config, weights, network)
  timesteps = np.unique([0, *_some(whole), whole.num_timesteps - 1])
  x_0 = np.asarray(scale_levels(training_examples(config), build.levels(config)))
  errors = []
  for t in timesteps.tolist():
    a, s = whole.sqrt_alphas_cumprod[t], whole.sqrt_one_minus_alphas_cumprod[t]
    noise = np.random.default_rng((SEED, t)).standard_normal(x_0.shape, np.float32)
    x_t = np.float32(a) * x_0 + np.float32(s) * noise
    errors.append(np.square(predict(x_t, t).astype(np.float64) - x_0).mean())
  return {'t': timesteps, 'x_0': np.array(errors)}


def _flow(config, weights, network) -> Arrays:
  """timesteps int [G], the noisiest first, and FlowProducts of DPM-Solver++(2M) on them."""
  levels = _fine_levels(config)
  predict = predict_of(config, weights, network, noise=build.sample_schedule(config))
  found = solved_products(levels, predict, _noise(config, FLOW_ELEMENTS, FLOW_EXAMPLES))
  return {'timesteps': levels.timesteps, 'xx': found.xx, 'xd': found.xd, 'dd': found.dd}


def _bespoke(config, weights, network, say) -> Arrays:
  """The coefficients of a bespoke solver [S, S + 1] and its held-out error, for the timesteps."""
  noise, sample = build.sample_schedule(config), config.sample
  levels = make_levels(noise, build.timesteps(config))
  # In float32: the fit goes by small differences.
  predict = predict_of(build.in_float32(config), weights, network, clip=sample.clip, noise=noise)
  x_T = _noise(config, BESPOKE_ELEMENTS, BESPOKE_EXAMPLES)
  x_0 = fine_solution(_fine_levels(config), predict, x_T)
  found = fit_bespoke(levels, predict, x_T, x_0, num_held_out=len(x_T) // 2)
  say(
    f'x_0 differs from a fine solution by {found.error:.2g}, in units of [-1, 1], where dpmpp_2m '
    f'at the same timesteps does by {found.before:.2g} (root mean squares, of x_T held out)'
  )
  return {'coefficients': found.coefficients, 'error': np.array(found.error)}


def _fine_levels(config):
  noise = build.sample_schedule(config)
  return make_levels(noise, _fine_timesteps(noise))


def _fine_timesteps(noise):
  return np.unique([*_some(noise), noise.num_timesteps - 1])


def _noise(config, num_elements, examples):
  """Noise of at most so many elements, of (least, most) examples."""
  shape = build.image_shape(config)
  count = int(np.clip(num_elements // np.prod(shape), *examples))
  return np.random.default_rng(SEED).standard_normal((count, *shape), np.float32)


def _some(noise):
  """At most MAX_TIMESTEPS rows of a schedule."""
  name = 'logsnr' if noise.alphas_cumprod[-1] else 'linspace'
  return timestep_subsequence(noise, min(MAX_TIMESTEPS, noise.num_timesteps), name)


def _kept(file: pathlib.Path, measure: Callable[[], Arrays], say: Say) -> Arrays:
  """The arrays of a file; measured and kept, where there is none."""
  if file.is_file():
    found = {name: np.array(x) for name, x in open_npz(file, verify=True).items()}
    if not all(np.isfinite(x).all() for x in found.values()):
      raise damaged(file, 'it has values that are not finite')
    return found
  say('fits the sampler to the checkpoint, once')
  found = measure()
  make_writable(file.parent)
  write_npz(file, found)
  say(f'keeps it in {file}')
  return found
