"""Where the values of config fields are checked, before anything is built or compiled."""

import hashlib
import pathlib
from collections.abc import Callable, Iterable

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import devices, numerics, processes
from ddpm_jax.codec import COMPLETIONS, parse_goal
from ddpm_jax.config import build
from ddpm_jax.config.fields import AUTO, DATA, check_fields
from ddpm_jax.config.fitted import check_needs
from ddpm_jax.data.encoding import CONTINUOUS, STORED_DTYPES
from ddpm_jax.data.pictures import check_picture_size
from ddpm_jax.data.sources import takes_pictures
from ddpm_jax.diffusion import make_betas
from ddpm_jax.diffusion.losses import check_loss
from ddpm_jax.diffusion.prediction import check_choice, check_sigma_data
from ddpm_jax.diffusion.schedules import SPACINGS, prior_bpd_range
from ddpm_jax.diffusion.timesteps import DRAWS
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.figures import FIGURES
from ddpm_jax.evaluation.scores import METRICS, check_count
from ddpm_jax.sampling import CLIPS, depth_timesteps
from ddpm_jax.sampling.bespoke import MAX_STEPS
from ddpm_jax.sampling.editing import METHODS, check_repaint
from ddpm_jax.sampling.guidance import check_interval
from ddpm_jax.sampling.solvers import MAX_HEUN_RATIO, check_sampler, heun_ratio
from ddpm_jax.storage.files import default_cache_dir
from ddpm_jax.storage.workdir import config_dict, flatten
from ddpm_jax.training.recipe import check_decay

MAX_SIGNAL = 2e-3  # alphas_cumprod[T-1]; the paper's is 4e-5, that of quad 7e-4
PAPER_SIGNAL = 4e-5
MIN_SIGNAL = 1e-37  # least alphas_cumprod in float32, whose reciprocal samplers take
LEAST_EXACT_BITS = 4
NETWORKS = ('inception', 'efficientnet_lite0', 'digits', 'watch', 'random')  # of the features


def prepare(
  config: ConfigDict, say: Callable[[str], None] = processes.say, *, trains: bool = False
) -> None:
  """Checks the config, and turns on the cache of compiled programs, saying where it is.

  Args:
    config: ConfigDict.
    say: prints a line.
    trains: whether the program trains.

  Raises:
    UserError: a value that cannot work; or processes with different configs or programs.
  """
  check(config, trains=trains)
  for line in doubts(config):
    say(line)
  if processes.count() > 1:
    processes.check_same('config', _shared_fields(config))
  line = devices.use_compilation_cache(config.compilation_cache, default_cache_dir)
  say(f'cache of compiled programs: {line}')


def _shared_fields(config):
  """What the processes of a run must agree on: fields other than paths, and this very program."""
  own = ('compilation_cache', 'data.dir', 'eval.cache_dir', 'eval.inception_weights')
  fields = flatten(config_dict(config))
  digest = hashlib.sha256()
  for file in sorted(pathlib.Path(__file__).parents[1].rglob('*.py')):
    digest.update(file.read_bytes())
  program = {'jax': jax.__version__, 'program': digest.hexdigest()[:12]} | numerics.arithmetic()
  return {name: value for name, value in fields.items() if name not in own} | program


def check(config: ConfigDict, *, trains: bool = True) -> None:
  """Raises a UserError for the first value that cannot work, before anything compiles.

  A batch of training, which is shared in equal parts, is of no account where nothing is trained.
  """
  check_fields(config)
  _check_diffusion(config)
  if not config.network:
    _check_model(config.model, build.axes(config))
  _check_choices(config)
  _check_optim(config.optim)
  check_sample(config)
  if trains:
    for field in ('width', 'decay'):
      if config.ema[field] is not None:
        raise UserError(
          f'ema.{field} is {config.ema[field]}, and training would change the average that '
          '--mode=ema made: train in the run that it was made of, or in another workdir that '
          'begins with this one (--config.init_from)'
        )
    _check_batch(config.train)
    build.logger_maker(config)
  build.steps_per_dispatch(config)
  _check_eval(config)


def _check_optim(config):
  check_decay(config.decay, config.decay_steps, config.warmup_steps)
  for field in ('ema_decays', 'ema_widths'):
    given = config[field] or ()
    if len({f'{x:g}' for x in given}) < len(given):
      raise UserError(f'optim.{field} is {tuple(given)}, and has one twice: leave it out')


def _check_batch(config):
  with devices.dividing(config.global_batch_size):
    sizes = devices.batch_sizes(config.global_batch_size, 'train.global_batch_size')
  parts = config.grad_accum_steps
  if parts < 1 or sizes.device % parts:
    raise UserError(
      f'train.grad_accum_steps is {parts}; it must divide the {sizes.device} images of a device '
      f'(train.global_batch_size={sizes.global_})'
    )


def doubts(config: ConfigDict) -> list[str]:
  """Lines on settings that run, and whose results cannot be good."""
  lines, schedule = [], build.schedule(config)
  signal = float(schedule.alphas_cumprod[-1])
  if signal > MAX_SIGNAL:
    least, greatest = prior_bpd_range(schedule)
    lines.append(
      f'x_T is far from noise: alphas_cumprod[T-1] is {signal:.3g} and L_T {least:.2g} to '
      f'{greatest:.2g} bits/dim, so samples, which begin with noise alone, cannot be right. In a '
      f'new run: {" or ".join(_less_signal(build.diffusion(config), signal))}'
    )
  noise, timesteps = build.sample_schedule(config), build.timesteps(config)
  at_first = float(noise.alphas_cumprod[timesteps[-1]])
  if at_first > MAX_SIGNAL >= signal:
    lines.append(
      f'{len(timesteps)} steps of sample.spacing={build.spacing(config)} begin at '
      f't={build.times(noise)[timesteps[-1]]:g}, where alphas_cumprod is {at_first:.3g}: samples, '
      'which begin with noise alone, cannot be right. Take more steps, or sample.spacing=trailing'
    )
  ratio = heun_ratio(noise, timesteps)
  if config.sample.sampler == 'heun' and ratio > MAX_HEUN_RATIO:
    lines.append(
      f'sample.sampler=heun with {len(timesteps)} steps of sample.spacing={build.spacing(config)}: '
      f'the noise level falls by a factor of {ratio:.2g} in the first, and samples are poor; take '
      'sample.spacing=karras, or more steps'
    )
  return lines


def _less_signal(diffusion, signal):
  """Settings that leave less signal in x_T: the betas scaled to the paper's, and cosine."""
  factor = float(f'{np.log(PAPER_SIGNAL) / np.log(signal):.2g}')
  scaled = {name: float(f'{diffusion[name] * factor:.4g}') for name in ('beta_start', 'beta_end')}
  if max(scaled.values()) < 1:
    betas = make_betas(diffusion.schedule, diffusion.num_timesteps, **scaled)
    if np.prod(1 - betas) <= MAX_SIGNAL:
      yield ' '.join(f'--config.diffusion.{name}={value:g}' for name, value in scaled.items())
  yield '--config.diffusion.schedule=cosine'


def check_metrics(metrics: Iterable[str]) -> None:
  """Raises a UserError if there is nothing to measure."""
  if not list(metrics):
    raise UserError(
      f'eval.metrics is empty; name some of {", ".join((*build.LIKELIHOODS, *METRICS))}, as in '
      '--config.eval.metrics=bpd,fid'
    )


def _check_axes(config):
  """Whether the data have axes such as their source has them, and as they are to be treated."""
  axes, source = build.axes(config), config.data.source
  if source and takes_pictures(source):
    check_picture_size(config.data.image_size, source)
  if config.data.random_flip and len(axes) == 1:
    raise UserError(
      'data.random_flip=True would turn signals back to front: give --config.data.random_flip=False'
    )


def _check_encoding(config):
  """Whether the fields of a config.data that say how values are stored go together."""
  if takes_pictures(config.source):
    pictures = {'levels': 256, 'dtype': 'uint8', 'lowest': 0, 'shift': None, 'scale': None}
    for field, usual in pictures.items():
      if config[field] not in (None, usual):
        raise UserError(
          f'data.{field} is {config[field]}, but data.source={config.source} has pictures of 256 '
          'levels: leave it out'
        )
  check_choice('data.dtype', config.dtype, (None, *STORED_DTYPES))
  for field in ('shift', 'scale'):
    given = config[field]
    if given is None:
      continue
    if config.levels != CONTINUOUS:
      raise UserError(f'data.{field} is given, which goes with data.levels={CONTINUOUS} alone')
    if len(given) != config.channels:
      raise UserError(
        f'data.{field} has {len(given)} numbers; there must be one for each of the '
        f'{config.channels} channels (data.channels)'
      )
  names = build.names(config.channel_names or ())
  if config.channel_names is not None and len(names) != config.channels:
    raise UserError(
      f'data.channel_names has {len(names)} names; there must be one for each of the '
      f'{config.channels} channels (data.channels)'
    )
  if (config.shift is None) != (config.scale is None):
    raise UserError('of data.shift and data.scale one is given alone: give both, or neither')
  if config.dtype is not None and config.levels == CONTINUOUS and config.shift is None:
    raise UserError(f'data.dtype is {config.dtype}, but data.shift and data.scale are not given')
  is_whole = config.dtype is not None and config.levels != CONTINUOUS
  if is_whole and np.dtype(config.dtype).kind == 'f':
    raise UserError(f'data.dtype is {config.dtype}, which goes with data.levels={CONTINUOUS} alone')


def check_compress(config: ConfigDict) -> None:
  """Raises a UserError for a config.compress that cannot run, whatever the examples."""
  check_fields(config)
  check_choice('compress.search', config.compress.search, ('fast', 'exact'))
  bits = config.compress.search_bits
  if config.compress.search == 'exact' and bits is not None and bits < LEAST_EXACT_BITS:
    raise UserError(
      f'compress.search_bits is {bits}; of compress.search=exact it must be at least '
      f'{LEAST_EXACT_BITS}, since chunks are split the more, and slowly, the fewer there are'
    )
  parse_goal(config.compress.target, 'compress.target')


def check_decompress(config: ConfigDict) -> None:
  """Raises a UserError for a config.decompress that cannot run, whatever the files."""
  check_fields(config)
  check_choice('decompress.completion', config.decompress.completion, COMPLETIONS)


def check_pictures(config: ConfigDict, what: str) -> None:
  """Raises a UserError for data that are no pictures of 256 levels, which `what` is for."""
  if not build.has_pictures(config):
    raise UserError(
      f'{what} is for pictures of 256 levels, and these data are {build.data_words(config)}'
    )


def _check_diffusion(config):
  parameterization = build.parameterization(config.diffusion)
  train = config.train
  check_loss(
    parameterization, config.diffusion.loss_type, train.loss_weight, train.loss_weight_number
  )
  if config.diffusion.sigma_data is not None:
    check_sigma_data(parameterization)
  signal = np.cumprod(1 - build.betas(config))[-1]
  config = build.diffusion(config)
  if signal < MIN_SIGNAL and parameterization.needs_signal:
    raise UserError(
      f'diffusion.schedule={config.schedule} of {config.num_timesteps} timesteps (beta_start='
      f'{config.beta_start}, beta_end={config.beta_end}) ends at alphas_cumprod {signal:g}, where '
      f'x_T holds nothing of x_0 and '
      f'mean_type={parameterization.mean} cannot be sampled; use xstart, v or xprev'
    )


def _check_model(config, axes):
  check_choice('model.dtype', config.dtype, (AUTO, *build.DTYPES))
  if config.dtype == 'bfloat16' and devices.lacks_bfloat16():
    raise UserError(f'model.dtype is bfloat16, which {devices.lacks_bfloat16()} lacks; use float32')
  if not config.ch_mult:
    raise UserError('model.ch_mult is empty; give one multiplier a level, such as (1, 2, 2)')
  halvings = len(config.ch_mult) - 1
  if odd := [length for length in axes if length % 2**halvings]:
    nearest = [max(2**halvings, round(n / 2**halvings) * 2**halvings) for n in axes]
    taken = nearest[0] if len({*axes}) == 1 and len(axes) == 2 else f'{tuple(nearest)}'
    raise UserError(
      f'data.image_size is {odd[0] if len({*axes}) == 1 else axes}; the {halvings + 1} levels of '
      f'model.ch_mult halve it {halvings} times, so it must be a multiple of {2**halvings}; the '
      f'nearest is {taken}'
    )
  resolutions = [axes[0] // 2**level for level in range(halvings + 1)]
  for resolution in config.attn_resolutions:
    if resolution not in resolutions:
      raise UserError(
        f'model.attn_resolutions has {resolution}, which never occurs; '
        f'the resolutions are {", ".join(map(str, resolutions))}'
      )
  groups = build.num_groups(config)
  for mult in config.ch_mult:
    if config.ch * mult % groups:
      raise UserError(
        f'model.ch is {config.ch} and model.ch_mult has {mult}; each product must be a positive '
        f'multiple of {groups}, the groups of a norm (model.num_groups)'
      )


def check_sample(config: ConfigDict) -> None:
  """Raises a UserError for a config.sample that cannot run."""
  sample = config.sample
  check_choice('sample.clip', sample.clip, CLIPS)
  check_needs(config)
  check_choice('sample.files', sample.files, (None, 'png'))
  if sample.clip == 'dynamic' and build.parameterization(config.diffusion).is_step:
    raise UserError(
      'sample.clip=dynamic changes the predicted x_0, which a prediction of one step alone '
      'does not go through: use static'
    )
  _check_labels(config)
  _check_steps(config)
  check_sampler(
    build.schedule(config),
    sample.sampler,
    len(build.timesteps(config)),
    eta=sample.eta,
    is_step=build.parameterization(config.diffusion).is_step,
    churn=sample.churn,
    churn_choices={name: sample[name] for name in ('churn_interval', 'churn_noise')},
  )


def _check_steps(config):
  """Where and how far the steps go, and their variance."""
  sample, total = config.sample, config.diffusion.num_timesteps
  check_choice(
    'sample.variance', sample.variance, (None, 'fixedsmall', 'fixedlarge', build.ANALYTIC)
  )
  check_choice('sample.spacing', sample.spacing, (None, *SPACINGS, *build.FITTED_SPACINGS))
  if sample.sampler != 'ancestral' and sample.variance is not None:
    raise UserError(
      f'sample.variance is {sample.variance}, of a step of ancestral, and sample.sampler is '
      f'{sample.sampler}: leave it out'
    )
  if sample.sampler == build.BESPOKE and (count := len(build.timesteps(config))) > MAX_STEPS:
    raise UserError(
      f'sample.num_steps is {count}; sample.sampler=bespoke, whose coefficients are fitted, has at '
      f'most {MAX_STEPS} steps: take fewer, or another solver'
    )
  if sample.sampler == build.BESPOKE and sample.stops_early:
    raise UserError(
      'sample.stops_early ends at the least noise, and sample.sampler=bespoke is fitted to end at '
      'x_0: leave one of them out'
    )
  if sample.sampler == 'ancestral' and sample.stops_early:
    raise UserError(
      'sample.stops_early goes with the solvers, and sample.sampler is ancestral, whose last step '
      'is the decoder: leave it out, or take another sampler'
    )
  if (given := sample.timesteps) is None:
    return
  for field in ('spacing', 'num_steps'):
    if sample[field] is not None:
      raise UserError(
        f'sample.{field} is {sample[field]}, and sample.timesteps says where the steps lie: leave '
        'one of them out'
      )
  parts = sample.timestep_parts or 1
  if not given or min(np.diff([-1, *given, total])) <= 0:
    raise UserError(
      f'sample.timesteps is {tuple(given)}; they must increase strictly and lie in [0, {total - 1}]'
    )
  if any((x * parts) % 1 for x in given) and parts == 1:
    raise UserError(
      f'sample.timesteps is {tuple(given)}, with times between two timesteps: give '
      'sample.timestep_parts, too, such as 8'
    )


def check_edit(config: ConfigDict) -> None:
  """Raises a UserError for a config.edit that cannot run, whatever the pictures."""
  edit = config.edit
  check_choice('edit.what', edit.what, build.EDITS)
  if edit.method is not None:
    check_choice('edit.method', edit.method, METHODS)
    if edit.what == 'sdedit':
      raise UserError(f'edit.method is {edit.method}, but edit.what=sdedit has none: leave it out')
  if edit.method == 'repaint':
    if edit.what != 'inpaint':
      raise UserError(
        f'edit.method=repaint replaces known pixels, and edit.what={edit.what} knows none: use '
        'ddnm or pigdm'
      )
    if config.sample.sampler != 'ancestral':
      raise UserError(
        f'edit.method=repaint goes with sample.sampler=ancestral alone, not {config.sample.sampler}'
        ': it has jumps of its own; ddnm and pigdm go with every sampler'
      )
  check_repaint(edit.jump_length, edit.resamplings)
  depth_timesteps(build.schedule(config), None, edit.depth)
  check_sample(build.edit_config(config))


def _check_labels(config):
  """Whether labels and guidance go with the model; the names of classes are not known yet."""
  sample, has_labels = config.sample, config.model.num_classes is not None
  if sample.labels is not None and not has_labels:
    raise UserError(
      f'sample.labels is {sample.labels}, but this model was trained without labels: leave it out'
    )
  if sample.guidance is None:
    for field in ('guide', 'guidance_interval', 'guidance_rescale'):
      if sample[field] is not None:
        raise UserError(
          f'sample.{field} is {sample[field]}, but nothing is guided: give the scale, as in '
          '--config.sample.guidance=2'
        )
    return
  if sample.guidance_interval is not None:
    check_interval(tuple(sample.guidance_interval))
  if sample.guidance_rescale and build.parameterization(config.diffusion).is_step:
    raise UserError(
      'sample.guidance_rescale changes the predicted x_0, which a prediction of one step alone '
      'does not go through: leave it out'
    )
  if sample.guide is None and not has_labels:
    raise UserError(
      f'sample.guidance is {sample.guidance}, but this model was trained without labels: name a '
      'lesser model to be guided away from, --config.sample.guide=WORKDIR@STEP'
    )
  if sample.guide is None and sample.guidance != 1 and not build.label_dropout(config):
    raise UserError(
      f'sample.guidance is {sample.guidance}, but this model was trained with '
      'train.label_dropout=0: it knows nothing without a label to be guided away from; name '
      'another model, --config.sample.guide=WORKDIR@STEP'
    )


def _check_eval(config):
  for metric in build.names(config.eval.metrics):
    check_choice('eval.metrics', metric, (*build.LIKELIHOODS, *METRICS))
    if metric == 'flow':
      build.check_flow(config)
  check_count('eval.num_samples says', config.eval.num_samples, build.names(config.eval.metrics))
  if config.train.eval_every_steps:
    check_metrics(build.names(config.eval.metrics))
    count = config.train.eval_num_samples
    check_count('train.eval_num_samples says', count, build.names(config.eval.metrics))
  for what in build.names(config.reproduce.what):
    check_choice('reproduce.what', what, FIGURES)
  check_choice('eval.bpd_labels', config.eval.bpd_labels, (None, 'given', 'none'))
  if config.eval.bpd_labels is not None and config.model.num_classes is None:
    raise UserError(
      f'eval.bpd_labels is {config.eval.bpd_labels}, but this model was trained without labels: '
      'leave it out'
    )
  check_choice('eval.rounding', config.eval.rounding, ('uint8', 'float'))
  if config.eval.rounding == 'float':
    check_pictures(config, 'eval.rounding=float')
  check_choice('eval.network', config.eval.network, NETWORKS)
  is_picture = len(build.axes(config)) == 2
  if config.eval.network == 'digits' and is_picture and build.image_shape(config) != (8, 8, 1):
    raise UserError(
      'eval.network=digits takes images of 8 x 8 pixels and one channel, not '
      f'data.image_size={config.data.image_size} and data.channels={config.data.channels}; '
      'use eval.network=inception or efficientnet_lite0'
    )
  if config.eval.network == 'watch' and (len(build.axes(config)), config.data.channels) != (1, 6):
    raise UserError(
      'eval.network=watch takes signals of 6 channels, and these data are '
      f'{build.data_words(config)}: use eval.network=random'
    )
  if config.eval.network == 'random' and 'is' in build.names(config.eval.metrics):
    raise UserError(
      'eval.network=random has no classes, which the metric is goes by: leave it out, as in '
      '--config.eval.metrics=bpd,fid,kid,pr'
    )
  if (config.eval.bpd_terms or 0) > config.diffusion.num_timesteps:
    raise UserError(
      f'eval.bpd_terms is {config.eval.bpd_terms}; there are '
      f'{config.diffusion.num_timesteps} terms (diffusion.num_timesteps)'
    )
  if config.eval.watch and (config.eval.samples or config.eval.step is not None):
    raise UserError('eval.watch goes with neither eval.samples nor eval.step; leave them out')


def _check_choices(config):
  if config.data.labels is not None and config.model.num_classes is None:
    raise UserError(
      f'data.labels is {config.data.labels}, but model.num_classes is None, a model without '
      f'labels; give --config.model.num_classes={DATA}, too'
    )
  if takes_pictures(config.data.source):
    check_choice('data.channels', config.data.channels, (1, 3))
  _check_axes(config)
  _check_encoding(config.data)
  check_choice('train.timesteps', config.train.timesteps, (None, *DRAWS))
  check_choice('train.on_nonfinite', config.train.on_nonfinite, ('stop', 'skip'))
  check_choice('data.on_damage', config.data.on_damage, ('stop', 'skip'))
