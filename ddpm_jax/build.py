"""The only file that turns config fields into objects, and where their values are checked."""

import functools
import hashlib
import math
import pathlib

import jax
import jax.numpy as jnp

from ddpm_jax import data, diffusion, parallel, samplers, schedules, steps
from ddpm_jax.digits_classifier import DigitsClassifier
from ddpm_jax.inception import IMAGE_SIZE as INCEPTION_SIZE
from ddpm_jax.inception import InceptionV3
from ddpm_jax.metrics.digits import load_digits_classifier
from ddpm_jax.metrics.features import FeatureNetwork
from ddpm_jax.metrics.weights import INCEPTION_SHA256, default_cache_dir, load_inception
from ddpm_jax.train_state import make_learning_rate, make_optimizer
from ddpm_jax.unet import NUM_GROUPS, UNet
from ddpm_jax.workdir import config_dict, flatten

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
MAX_STEPS_PER_DISPATCH = 20  # by default: a signal is heard after a dispatch
METRICS = {'bpd': 1, 'fid': 2, 'is': 1, 'kid': 4, 'pr': 4}  # with the images that each needs
REPRODUCTIONS = (
  'table1',
  'table2',
  'bound',
  'compression',
  'progressive',
  'shared',
  'interpolation',
  'neighbours',
)
STREAMS = (
  'init',
  'train',
  'sample',
  'bpd',
  'interpolate',
)  # of random numbers; their order is part of every result


def begin(config):
  """Checks the config, and turns on the cache of compiled programs, saying where it is."""
  check(config)
  if parallel.process_count() > 1:
    parallel.check_same('config', _shared_fields(config))
  line = parallel.use_compilation_cache(config.compilation_cache, default_cache_dir)
  if parallel.is_primary():
    print(f'cache of compiled programs: {line}', flush=True)


def _shared_fields(config):
  """What the processes of a run must agree on: fields other than paths, and this very program."""
  own = ('compilation_cache', 'data.dir', 'eval.cache_dir', 'eval.inception_weights')
  fields = flatten(config_dict(config))
  digest = hashlib.sha256()
  for file in sorted(pathlib.Path(__file__).parent.rglob('*.py')):
    digest.update(file.read_bytes())
  program = {'jax': jax.__version__, 'program': digest.hexdigest()[:12]}
  return {name: value for name, value in fields.items() if name not in own} | program


def check(config):
  """Raises a ValueError for the first value that cannot work, before anything compiles."""
  _check_diffusion(config.diffusion)
  _check_model(config.model, config.data.image_size)
  _check_numbers(config)
  _check_sample(config)
  sizes = parallel.batch_sizes(config.train.global_batch_size, 'train.global_batch_size')
  parts = config.train.grad_accum_steps
  if parts < 1 or sizes.device % parts:
    raise ValueError(
      f'train.grad_accum_steps is {parts}; it must divide the {sizes.device} images of a device '
      f'(train.global_batch_size={sizes.global_})'
    )
  steps_per_dispatch(config)
  parallel.batch_sizes(config.sample.batch_size, 'sample.batch_size')
  parallel.batch_sizes(config.eval.batch_size, 'eval.batch_size')
  _check_eval(config)


def names(field):
  """The names in a field of several: on the command line, 'a,b' is as good as "('a', 'b')"."""
  return [name for name in ','.join(field).split(',') if name]


def _check_choice(field, value, choices):
  if value not in choices:
    allowed = ', '.join(str(choice) for choice in choices)
    raise ValueError(f'{field} is {value!r}; it must be one of {allowed}')


def check_count(what, count, metrics, *, times=1):
  """Raises a ValueError if a metric needs more images.

  Args:
    what: the words before the number, such as 'the reference has'.
    count: number of images.
    metrics: names of METRICS.
    times: how many such sets they are to be divided into.
  """
  for metric in metrics:
    least = times * METRICS[metric]
    if count < least:
      raise ValueError(f'{what} {count} images; {metric} (eval.metrics) needs {least} at least')


def _check_diffusion(config):
  diffusion.check_loss(config.mean_type, config.var_type, config.loss_type)
  betas = _make_betas(config)
  if betas[-1] == 1 and config.mean_type == 'eps':
    raise ValueError(
      f'diffusion.schedule={config.schedule} ends at beta 1, where x_T holds nothing of x_0 and '
      'mean_type=eps cannot be sampled; use mean_type=xstart or xprev'
    )


def _check_model(config, image_size):
  _check_choice('model.dtype', config.dtype, DTYPES)
  if config.dtype == 'bfloat16' and parallel.lacks_bfloat16():
    raise ValueError(
      f'model.dtype is bfloat16, which {parallel.lacks_bfloat16()} lacks; use float32'
    )
  if not config.ch_mult:
    raise ValueError('model.ch_mult is empty; give one multiplier a level, such as (1, 2, 2)')
  halvings = len(config.ch_mult) - 1
  if image_size < 1 or image_size % 2**halvings:
    raise ValueError(
      f'data.image_size is {image_size}; the {halvings + 1} levels of model.ch_mult halve it '
      f'{halvings} times, so it must be a multiple of {2**halvings}'
    )
  resolutions = [image_size // 2**level for level in range(halvings + 1)]
  for resolution in config.attn_resolutions:
    if resolution not in resolutions:
      raise ValueError(
        f'model.attn_resolutions has {resolution}, which never occurs; '
        f'the resolutions are {", ".join(map(str, resolutions))}'
      )
  for mult in config.ch_mult:
    if mult < 1 or config.ch < 1 or config.ch * mult % NUM_GROUPS:
      raise ValueError(
        f'model.ch is {config.ch} and model.ch_mult has {mult}; '
        f'each product must be a positive multiple of {NUM_GROUPS}, the groups of a norm'
      )


def _check_sample(config):
  wanted = config.sample
  noise = schedule(config)
  samplers.check_sampler(noise, wanted.sampler, eta=wanted.eta, clip=wanted.clip)
  samplers.check_prediction(
    noise, wanted.sampler, len(timesteps(config)), config.diffusion.mean_type
  )


def _check_eval(config):
  for metric in names(config.eval.metrics):
    _check_choice('eval.metrics', metric, METRICS)
  check_count('eval.num_samples says', config.eval.num_samples, names(config.eval.metrics))
  if config.train.eval_every_steps:
    count = config.train.eval_num_samples
    check_count('train.eval_num_samples says', count, names(config.eval.metrics))
  for what in names(config.reproduce.what):
    _check_choice('reproduce.what', what, REPRODUCTIONS)
  _check_choice('eval.rounding', config.eval.rounding, ('uint8', 'float'))
  _check_choice('eval.network', config.eval.network, ('inception', 'digits'))
  if config.eval.network == 'digits' and image_shape(config) != (8, 8, 1):
    raise ValueError(
      'eval.network=digits takes images of 8 x 8 pixels and one channel, not '
      f'data.image_size={config.data.image_size} and data.channels={config.data.channels}; '
      'use eval.network=inception'
    )
  for field in ('bpd_examples', 'bpd_terms', 'reference_examples', 'step'):
    value = config.eval[field]
    if value is not None and value < (0 if field == 'step' else 1):
      raise ValueError(f'eval.{field} is {value}; leave it out or give a positive number')
  if (config.eval.bpd_terms or 0) > config.diffusion.num_timesteps:
    raise ValueError(
      f'eval.bpd_terms is {config.eval.bpd_terms}; there are '
      f'{config.diffusion.num_timesteps} terms (diffusion.num_timesteps)'
    )
  if config.eval.watch and (config.eval.samples or config.eval.step is not None):
    raise ValueError('eval.watch goes with neither eval.samples nor eval.step; leave them out')


def _check_numbers(config):
  _check_choice('data.channels', config.data.channels, (1, 3))
  _check_choice('train.on_nonfinite', config.train.on_nonfinite, ('stop', 'skip'))
  _check_choice('data.on_damage', config.data.on_damage, ('stop', 'skip'))
  at_least = {
    'model.num_res_blocks': 1,
    'optim.warmup_steps': 0,
    'train.num_steps': 0,
    'train.log_every_steps': 1,
    'train.checkpoint_every_steps': 1,
    'train.keep_last_checkpoints': 1,
    'train.keep_checkpoint_every_steps': 0,
    'train.sample_every_steps': 0,
    'train.num_samples': 1,
    'train.eval_every_steps': 0,
    'train.eval_num_samples': 2,
    'train.eval_bpd_examples': 1,
    'train.eval_bpd_terms': 1,
    'sample.num_samples': 1,
    'eval.num_samples': 2,
    'reproduce.num_samples': 2,
    'reproduce.num_images': 1,
    'reproduce.num_slots': 1,
    'data.num_workers': 0,
    'data.memory_limit_gib': 0,
    'data.device_limit_gib': 0,
    'optim.learning_rate': 0,
    'optim.grad_clip': 0,
  }
  for field, least in at_least.items():
    section, name = field.split('.')
    if not config[section][name] >= least:
      raise ValueError(f'{field} is {config[section][name]}; it must be at least {least}')
  for field in ('model.dropout', 'optim.ema_decay', 'optim.adam_b1', 'optim.adam_b2'):
    section, name = field.split('.')
    if not 0 <= config[section][name] < 1:
      raise ValueError(f'{field} is {config[section][name]}; it must lie in [0, 1)')


def _make_betas(config):
  return schedules.make_betas(
    config.schedule,
    config.num_timesteps,
    beta_start=config.beta_start,
    beta_end=config.beta_end,
  )


def schedule(config):
  """NoiseSchedule of config.diffusion."""
  return schedules.make_schedule(_make_betas(config.diffusion))


def key(seed, stream):
  """The key of one of STREAMS; threefry, whose numbers are the same on every platform."""
  root = jax.random.key(seed, impl='threefry2x32')
  return jax.random.fold_in(root, STREAMS.index(stream))


def image_shape(config):
  """(H, W, C)."""
  return (config.data.image_size, config.data.image_size, config.data.channels)


def model(config):
  """UNet of config.model; with a learned variance it has twice the channels."""
  learned = config.diffusion.var_type == 'learned'
  return UNet(
    ch=config.model.ch,
    ch_mult=tuple(config.model.ch_mult),
    num_res_blocks=config.model.num_res_blocks,
    attn_resolutions=tuple(config.model.attn_resolutions),
    out_ch=config.data.channels * (2 if learned else 1),
    dropout=config.model.dropout,
    resamp_with_conv=config.model.resamp_with_conv,
    dtype=DTYPES[config.model.dtype],
    remat=config.model.remat,
    winograd=parallel.on_cpu() and config.model.dtype == 'float32',
  )


def init_params(config):
  """Fresh parameters; wrap it in jax.jit or jax.eval_shape."""
  x = jnp.zeros((1, *image_shape(config)))
  t = jnp.zeros((1,), jnp.int32)
  return model(config).init(key(config.seed, 'init'), x, t)['params']


def source(config, split=None):
  """The data set of config.data, or another split of it."""
  opened = data.make_source(
    config.data.source,
    dir=config.data.dir,
    image_size=config.data.image_size,
    channels=config.data.channels,
    split=split or config.data.split,
  )
  if config.data.on_damage == 'skip':
    opened = data.Substitutes(opened)
  if parallel.process_count() > 1:
    fingerprint = data.fingerprint(opened)
    parallel.check_same('data', {opened.name: f'{len(opened)} images, sha256 {fingerprint[:12]}'})
  return opened


def batches(config, data_source, skipped_batches=()):
  """The batches of each step, this process's share; those skipped are numbers of batches."""
  made = data.make_batches(
    data_source,
    seed=config.seed,
    global_batch_size=config.train.global_batch_size,
    process_index=parallel.process_index(),
    process_count=parallel.process_count(),
    memory_limit_bytes=int(config.data.memory_limit_gib * 2**30),
    num_workers=config.data.num_workers,
    skipped_batches=skipped_batches,
  )
  if parallel.process_count() > 1 and (sha256 := made.sha256()) is not None:
    parallel.check_same('data', {data_source.name: f'sha256 of all images {sha256[:12]}'})
  return made


def device_data(config, batches):
  """All images, replicated, where the devices gather the batches themselves; else None."""
  if parallel.on_cpu():  # which has no use for them all before they are due
    return None
  images = batches.images
  if images is None or images.nbytes > config.data.device_limit_gib * 2**30:
    return None
  return parallel.replicate(images)


def steps_per_dispatch(config):
  """How many training steps the devices take before they ask for more.

  Raises:
    ValueError: a number that does not divide all intervals.
  """
  fields = (
    'log_every_steps',
    'checkpoint_every_steps',
    'sample_every_steps',
    'eval_every_steps',
  )
  intervals = {field: config.train[field] for field in fields if config.train[field] > 0}
  wanted = config.train.steps_per_dispatch
  if wanted is None:
    if parallel.on_cpu():
      return 1
    common = math.gcd(*intervals.values())
    return max(n for n in range(1, MAX_STEPS_PER_DISPATCH + 1) if common % n == 0)
  if wanted < 1:
    raise ValueError(f'train.steps_per_dispatch is {wanted}; it must be at least 1')
  for field, interval in intervals.items():
    if interval % wanted:
      raise ValueError(
        f'train.steps_per_dispatch is {wanted}, which does not divide train.{field}={interval}; '
        'change one of the two'
      )
  return wanted


def learning_rate(config):
  """step -> learning rate."""
  return make_learning_rate(config.optim.learning_rate, config.optim.warmup_steps)


def optimizer(config):
  """Clipping and Adam, as config.optim says."""
  return make_optimizer(
    learning_rate(config),
    grad_clip=config.optim.grad_clip,
    b1=config.optim.adam_b1,
    b2=config.optim.adam_b2,
    eps=config.optim.adam_eps,
  )


def train_steps(config):
  """(state, batches [K, D, B, ...], data, key) -> (state, metrics [K]), compiled."""
  step = steps.make_train_step(
    model(config),
    schedule(config),
    optimizer(config),
    learning_rate(config),
    mean_type=config.diffusion.mean_type,
    var_type=config.diffusion.var_type,
    loss_type=config.diffusion.loss_type,
    ema_decay=config.optim.ema_decay,
    random_flip=config.data.random_flip,
    grad_accum_steps=config.train.grad_accum_steps,
    axis_name=parallel.AXIS,
  )
  return parallel.pmap_train_steps(steps.make_gather_step(step))


def _predictions(config):
  return dict(mean_type=config.diffusion.mean_type, var_type=config.diffusion.var_type)


def timesteps(config):
  """The timesteps of config.sample, int64 [S]."""
  wanted, num_steps = config.sample, config.sample.num_steps
  if num_steps is None:
    num_steps = samplers.default_num_steps(wanted.sampler, config.diffusion.num_timesteps)
  return schedules.timestep_subsequence(schedule(config), num_steps, wanted.spacing)


def sampler(config):
  """The sampler of config.sample, for steps.make_sample_step."""
  choices = {'timesteps': timesteps(config), 'clip': config.sample.clip}
  if config.sample.eta is not None:
    choices['eta'] = config.sample.eta
  return functools.partial(samplers.SAMPLERS[config.sample.sampler], **choices)


def dtype_request(config):
  """What the type of the computation adds to a request: nothing for float32."""
  return {} if config.model.dtype == 'float32' else {'dtype': config.model.dtype}


def sampler_request(config):
  """What decides samples beyond seed, model and diffusion: nothing for the whole reverse chain."""
  wanted, count = config.sample, len(timesteps(config))
  request = {'sampler': wanted.sampler, 'clip': wanted.clip}
  if count < config.diffusion.num_timesteps:
    request |= {'num_steps': count, 'spacing': wanted.spacing}
  if wanted.sampler == 'ddim':
    request['eta'] = wanted.eta or 0.0
  if request == {'sampler': 'ancestral', 'clip': 'static'}:
    return {}
  return {'sample': request}


def sampler_words(config):
  """The sampler for a report, such as 'ddim, 50 of 1000 steps (trailing), eta 0.0'."""
  wanted, total = config.sample, config.diffusion.num_timesteps
  count = len(timesteps(config))
  words = [wanted.sampler, f'{total} steps']
  if count < total:
    words[1] = f'{count} of {total} steps ({wanted.spacing})'
  evaluations = samplers.num_evaluations(wanted.sampler, count)
  if evaluations != count:
    words.append(f'{evaluations} evaluations')
  if wanted.sampler == 'ancestral':
    words.append(config.diffusion.var_type)
  if wanted.sampler == 'ddim':
    words.append(f'eta {wanted.eta or 0.0}')
  if wanted.clip != 'static':
    words.append(f'clip {wanted.clip}')
  return ', '.join(words)


def sample_step(config):
  """(params, ids [D, B], key) -> x_0 [D, B, H, W, C] over all devices, compiled."""
  step = steps.make_sample_step(
    model(config),
    schedule(config),
    image_shape(config),
    sampler=sampler(config),
    **_predictions(config),
  )
  return parallel.pmap_batch_step(step)


def progressive_step(config, every_steps):
  """(params, ids [D, B], key) -> predictions [D, B, T // every_steps, H, W, C]."""
  step = steps.make_progressive_step(
    model(config),
    schedule(config),
    image_shape(config),
    every_steps=every_steps,
    **_predictions(config),
  )
  return parallel.pmap_batch_step(step)


def branch_step(config):
  """(params, batch, key) -> x_0 [D, B, H, W, C]; see steps.make_branch_step."""
  step = steps.make_branch_step(
    model(config), schedule(config), image_shape(config), **_predictions(config)
  )
  return parallel.pmap_batch_step(step)


def interpolate_step(config):
  """(params, batch, (key, num_steps)) -> x_0 [D, B, H, W, C]; see steps.make_interpolate_step."""
  step = steps.make_interpolate_step(model(config), schedule(config), **_predictions(config))
  return parallel.pmap_batch_step(step)


def bpd_step(config):
  """(params, batch, key) -> dict of the bound's terms; see steps.make_bpd_step."""
  step = steps.make_bpd_step(
    model(config), schedule(config), num_terms=config.eval.bpd_terms, **_predictions(config)
  )
  return parallel.pmap_batch_step(step)


def cache_dir(config):
  """Where weights and reference features are kept between runs."""
  return pathlib.Path(config.eval.cache_dir or default_cache_dir()).expanduser()


def feature_network(config):
  """The network of config.eval.network, with its weights, ready to run.

  Raises:
    ValueError: weights that cannot be used, or images that it does not take.
  """
  if config.eval.network == 'digits':
    params, sha256 = load_digits_classifier()
    step = steps.make_feature_step(DigitsClassifier(), 'features', 'logits')
    name, preprocessing = 'digits classifier', '8 x 8 pixels, as they are'
  elif config.data.channels != 3:
    raise ValueError(
      f'eval.network=inception takes images of three channels, not data.channels='
      f'{config.data.channels}; use eval.metrics=bpd, or eval.network=digits for the digits'
    )
  else:
    params, sha256 = load_inception(
      config.eval.inception_weights,
      cache_dir=cache_dir(config),
      sha256=config.eval.inception_sha256 or INCEPTION_SHA256,
    )
    step = steps.make_feature_step(InceptionV3(), '2048', 'logits_unbiased')
    name = 'InceptionV3 of 2015-12-05'
    if sha256 != INCEPTION_SHA256:
      name += f' with other weights, {sha256[:8]}'
    preprocessing = (
      f'bilinear to {INCEPTION_SIZE} x {INCEPTION_SIZE} as TensorFlow 1, (v - 128) / 128'
    )
  return FeatureNetwork(
    name=name,
    published=sha256 == INCEPTION_SHA256,
    sha256=sha256,
    preprocessing=preprocessing,
    params=parallel.replicate(params),
    step=parallel.pmap_batch_step(step, in_axes=(None, 0)),
  )
