"""The only file that turns config fields into objects."""

import dataclasses
import functools
import hashlib
import importlib
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from ddpm_jax import data, devices, numerics, processes
from ddpm_jax.config import classes
from ddpm_jax.config.fields import AUTO, DATA, check_value
from ddpm_jax.config.splits import measured, trained_on
from ddpm_jax.data.pictures import picture_axes
from ddpm_jax.diffusion import (
  Denoiser,
  NoiseSchedule,
  Parameterization,
  make_betas,
  make_denoiser,
  make_network,
  make_schedule,
  refined,
  timestep_subsequence,
  with_analytic_variance,
)
from ddpm_jax.diffusion.gaussians import LEVELS, levels_of
from ddpm_jax.diffusion.prediction import SIGMA_DATA
from ddpm_jax.diffusion.schedules import END_SIGNAL, check_timesteps, respace, with_defaults
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import features, references, stepwise
from ddpm_jax.evaluation.bound import Bound, make_bpd_fns
from ddpm_jax.evaluation.display import Display
from ddpm_jax.evaluation.editing import (
  ROUNDING_STD,
  Editor,
  Known,
  edit_identity,
  edit_name,
  make_edit_fns,
)
from ddpm_jax.evaluation.evaluator import Evaluator
from ddpm_jax.evaluation.figures.run import Coding, Run
from ddpm_jax.evaluation.flow import Flow, make_flow_fns
from ddpm_jax.evaluation.images import evenly_spaced
from ddpm_jax.evaluation.samples import Drawer, make_chain_fns
from ddpm_jax.evaluation.scores import Scorer
from ddpm_jax.evaluation.stepwise import Stepwise
from ddpm_jax.evaluation.weights import Weights, make_weights
from ddpm_jax.nn.own import OwnNetwork
from ddpm_jax.nn.unet import NUM_GROUPS, UNet
from ddpm_jax.paths import expanded
from ddpm_jax.sampling import (
  CHAINS,
  SAMPLERS,
  Chain,
  LinearOperator,
  clipped,
  depth_timesteps,
  guided,
  in_one_batch,
  repaint_chain,
  respaced,
)
from ddpm_jax.sampling.ancestral import ancestral
from ddpm_jax.sampling.editing import REPAINT_STEPS
from ddpm_jax.sampling.solvers import default_num_steps, default_spacing, num_evaluations
from ddpm_jax.storage.checkpoints import Checkpointer
from ddpm_jax.storage.files import default_cache_dir
from ddpm_jax.storage.identity import Identity
from ddpm_jax.storage.logs import Logger, RunLog, Terminal
from ddpm_jax.storage.run_record import RUN_FILE
from ddpm_jax.storage.workdir import (
  ENCODING_FIELDS,
  config_dict,
  deciding_fields,
  differences,
  flatten,
)
from ddpm_jax.training import recipe
from ddpm_jax.training.averages import Rate, rates_of
from ddpm_jax.training.loop import Plan
from ddpm_jax.training.state import TrainState, init_train_state
from ddpm_jax.training.step import TrainStep, make_train_step

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
MAX_REASON = 200  # characters of another's error
LABEL_DROPOUT = 0.1  # by default
OF_ANY_DATA = ('watch', 'random')  # networks of features that do not go by pictures
OF_ANY_PICTURES = ('inception', 'efficientnet_lite0')  # of any size, in grey or colour
MAX_OF_STATISTICS = 1_024  # examples whose mean and deviation a network of features takes
MAX_STEPS_PER_DISPATCH = 20  # by default: a signal is heard after a dispatch
STREAMS = (
  'init',
  'train',
  'sample',
  'bpd',
  'interpolate',
  'edit',
)  # of random numbers; their order is part of every result
LIKELIHOODS = ('bpd', 'flow')  # metrics of the data, without samples
# Fields of config.eval that decide no figure, or stand in an identity by themselves.
FREE_EVAL_FIELDS = ('step', 'watch', 'cache_dir', 'batch_size', 'inception_weights', 'samples')


def names(field: Sequence[str]) -> list[str]:
  """The names in a field of several: on the command line, 'a,b' is as good as "('a', 'b')"."""
  return [name for name in ','.join(field).split(',') if name]


def key(seed: int, stream: str) -> jax.Array:
  """The key of one of STREAMS; threefry, whose numbers are the same on every platform."""
  seed = int(seed) if isinstance(seed, np.integer) else seed
  check_value('seed', seed)
  words = np.uint32([seed >> 32, seed & 0xFFFFFFFF])  # jax.random.key adds an offset
  with numerics.pinned():
    root = jax.random.wrap_key_data(words, impl='threefry2x32')
    return jax.random.fold_in(root, STREAMS.index(stream))


# Diffusion and model.


def diffusion(config: ConfigDict) -> ConfigDict:
  """config.diffusion with the schedule that goes with the data's levels, unless it says one."""
  return ConfigDict(with_defaults(config.diffusion.to_dict(), levels(config)))


def betas(config: ConfigDict) -> np.ndarray:
  """The betas of config.diffusion."""
  fields = diffusion(config)
  return make_betas(
    fields.schedule,
    fields.num_timesteps,
    beta_start=fields.beta_start,
    beta_end=fields.beta_end,
    # Data of less deviation are lost in noise at more signal.
    end_signal=END_SIGNAL * (SIGMA_DATA / sigma_data(config.diffusion)) ** 2,
  )


def schedule(config: ConfigDict) -> NoiseSchedule:
  """NoiseSchedule of config.diffusion."""
  table = betas(config)
  is_fine = diffusion(config).schedule == 'logsnr'
  return make_schedule(table, decoder_variance=float(table[0]) if is_fine else None)


def levels(config: ConfigDict) -> int | None:
  """Of the data; None for values of any kind."""
  return levels_of(config.data.levels)


def encoding(config: ConfigDict) -> data.Encoding:
  """How the data's values become x_0.

  Raises:
    UserError: that is left to the data, and nobody has looked at them.
  """
  fields = config.data
  if fields.dtype is None:
    if data.takes_pictures(fields.source) or (levels(config) == LEVELS and not fields.lowest):
      return data.PICTURES
    raise UserError(
      f'data.levels is {fields.levels}, but how values are stored is left to the data, which are '
      'not read here: give data.dtype, too, such as int16'
    )
  count = levels(config)
  if count is not None:
    return data.Encoding(fields.dtype, count, fields.lowest or 0)
  return data.Encoding(fields.dtype, None, 0, tuple(fields.shift), tuple(fields.scale))


def display(config: ConfigDict) -> Display:
  """How the data are shown."""
  given = config.data.channel_names
  return Display(
    encoding(config),
    len(axes(config)),
    config.data.rate,
    None if given is None else tuple(names(given)),
    are_films=config.data.source.startswith('frames:'),
  )


def parameterization(config: ConfigDict) -> Parameterization:
  """What the network's output means, of a config.diffusion."""
  return Parameterization(
    mean=config.mean_type, variance=config.var_type, sigma_data=sigma_data(config)
  )


def sigma_data(config: ConfigDict) -> float:
  """The deviation of x_0, of a config.diffusion."""
  return SIGMA_DATA if config.sigma_data is None else float(config.sigma_data)


def axes(config: ConfigDict) -> tuple[int, ...]:
  """The length of each spatial axis: (H, W) of pictures."""
  return picture_axes(config.data.image_size)


def image_shape(config: ConfigDict) -> tuple[int, ...]:
  """Of an example: (H, W, C) of pictures."""
  return (*axes(config), config.data.channels)


def data_words(config: ConfigDict) -> str:
  """The shape of an example and the levels, such as '128 x 6, levels 4096', for errors."""
  shape = ' x '.join(map(str, image_shape(config)))
  return f'{shape}, levels {config.data.levels or LEVELS}'


def has_pictures(config: ConfigDict) -> bool:
  """Whether the data are pictures of 256 levels, as editing and networks of features take them."""
  return len(axes(config)) == 2 and encoding(config).is_of_pictures


def num_groups(config: ConfigDict) -> int:
  """Groups of channels in a norm, of a config.model."""
  given: int | None = config.num_groups
  return NUM_GROUPS if given is None else given


def num_classes(config: ConfigDict) -> int | None:
  """Of the labels; None for a model without.

  Raises:
    UserError: it is left to the data, and nobody has counted them.
  """
  if config.model.num_classes == DATA:
    raise UserError(f'model.num_classes={DATA}: give the number, for the data are not read here')
  count: int | None = config.model.num_classes
  return count


def label_dropout(config: ConfigDict) -> float:
  """Part of the training examples whose label is left out; 0 for a model without labels."""
  if config.model.num_classes is None:
    return 0.0
  given = config.train.label_dropout
  return LABEL_DROPOUT if given is None else given


def dtype_name(config: ConfigDict) -> str:
  """Name of what the network computes in; for auto, what suits the devices."""
  return devices.fast_dtype() if config.model.dtype == AUTO else config.model.dtype


def model(config: ConfigDict) -> UNet:
  """UNet of config.model; with a learned variance it has twice the channels.

  Raises:
    UserError: the run has a network of its own.
  """
  if config.network:
    raise UserError(
      f'this run has a network of its own, {config.network}, which no config has: load it in '
      'Python, by ddpm_jax.load(workdir, network=..., params=...)'
    )
  return UNet(
    ch=config.model.ch,
    ch_mult=tuple(config.model.ch_mult),
    num_res_blocks=config.model.num_res_blocks,
    attn_resolutions=tuple(config.model.attn_resolutions),
    out_ch=parameterization(config.diffusion).channels(config.data.channels),
    dropout=config.model.dropout,
    resamp_with_conv=config.model.resamp_with_conv,
    dtype=DTYPES[dtype_name(config)],
    remat=config.model.remat,
    on_cpu=devices.on_cpu() and dtype_name(config) == 'float32',
    num_groups=num_groups(config.model),
    num_classes=num_classes(config),
  )


def check_network(config: ConfigDict, network: OwnNetwork, params: Any) -> None:
  """Raises a UserError if one's own network returns no array, or one of another shape."""
  x_t = jax.ShapeDtypeStruct((2, *image_shape(config)), jnp.float32)
  t = jax.ShapeDtypeStruct((2,), jnp.int32)
  labels = None if network.num_classes is None else jnp.zeros(2, jnp.int32)
  meaning, noise = parameterization(config.diffusion), schedule(config)

  def output_of(params, x_t, t):
    applied = make_network(network, params, labels=labels)
    return applied(meaning.input(noise, x_t, t), meaning.time(noise, t))

  output = jax.eval_shape(output_of, params, x_t, t)
  if not isinstance(output, jax.ShapeDtypeStruct):
    raise UserError(f'{network.name} returned a {type(output).__name__}; it must return an array')
  meaning.check_output(output, x_t)


def init_params(config: ConfigDict) -> Any:
  """Fresh parameters; wrap it in jax.jit or jax.eval_shape."""
  x = jnp.zeros((1, *image_shape(config)))
  t = jnp.zeros((1,), jnp.int32)
  network = model(config).clone(on_cpu=False)  # the same parameters, with less to trace
  return network.init(key(config.seed, 'init'), x, t)['params']


def denoiser_of(
  config: ConfigDict,
  clip: str = 'static',
  network: OwnNetwork | None = None,
  noise: NoiseSchedule | None = None,
) -> Callable[..., Denoiser]:
  """(params, labels=None) -> Denoiser, its x_0 clipped; labels int [B], none for a model without.

  Args:
    config: ConfigDict.
    clip: one of CLIPS.
    network: one's own, in place of the U-Net.
    noise: whose rows t are, such as sample_schedule's; None for the model's schedule.
  """
  applied, noise = network or model(config), noise or schedule(config)
  meaning = parameterization(config.diffusion)

  def denoiser(params, labels=None):
    if labels is None:
      check_unconditional(config)
    return clipped(
      make_denoiser(make_network(applied, params, labels=labels), meaning, noise), clip
    )

  return denoiser


def check_unconditional(config: ConfigDict) -> None:
  """Raises a UserError for a model that has learned nothing without a label."""
  if config.model.num_classes is not None and not label_dropout(config):
    raise UserError(
      'this model was trained with train.label_dropout=0, and has learned nothing without a label: '
      'give labels'
    )


class Guide(NamedTuple):
  """Another model, to be guided away from."""

  config: ConfigDict
  weights: Weights


def guide(config: ConfigDict) -> Guide | None:
  """The model that config.sample.guide names; None where there is none.

  Raises:
    UserError: it is not there, or of other data, classes or noise than this one.
  """
  given = config.sample.guide
  if given is None:
    return None
  from ddpm_jax.config import origins  # not above: it imports this file

  theirs = origins.config_of(given)
  fields = ('data.image_size', 'data.channels', 'model.num_classes', 'diffusion.num_timesteps')
  fields = (*fields, *ENCODING_FIELDS)
  ours_flat, theirs_flat = flatten(config_dict(config)), flatten(config_dict(theirs))
  differing = differences(
    {name: theirs_flat[name] for name in fields},
    {name: ours_flat[name] for name in fields},
    ('there', 'here'),
  )
  if not differing and not np.allclose(betas(config), betas(theirs)):
    differing = ['diffusion.schedule: other betas']
  if differing:
    raise UserError(
      f'sample.guide={given} is a model of another shape ({"; ".join(differing)}): give one of the '
      'same data, classes and noise, such as an earlier step of this one'
    )
  return Guide(theirs, origins.read_weights(given, theirs))


def guided_denoiser_of(
  config: ConfigDict, network: OwnNetwork | None = None, guide: Guide | None = None
) -> Callable[..., Denoiser]:
  """(params, labels=None) -> Denoiser as config.sample guides it, not clipped.

  With a guide, params are (params, params of the guide).
  """
  noise = sample_schedule(config)
  sample, own = config.sample, denoiser_of(config, 'none', network, noise)
  scale = 1.0 if sample.guidance is None else float(sample.guidance)
  choices: dict[str, Any] = {
    'schedule': noise,
    'interval': None if sample.guidance_interval is None else tuple(sample.guidance_interval),
    'rescale': sample.guidance_rescale or 0.0,
  }
  other = None if guide is None else denoiser_of(guide.config, 'none', noise=noise)

  def denoiser(params, labels=None):
    if other is not None:
      params, of_guide = params
      return guided(own(params, labels), other(of_guide, labels), scale, **choices)
    if scale == 1.0:
      return own(params, labels)
    none = jnp.full_like(labels, num_classes(config))

    def of_labels(labels):
      return own(params, labels)

    both = in_one_batch(of_labels, labels, none)
    return guided(of_labels(labels), of_labels(none), scale, both=both, **choices)

  return denoiser


def sample_labels(
  config: ConfigDict, names: Sequence[str] | None = None
) -> tuple[classes.Pattern, bool] | None:
  """What config.sample.labels asks for, as classes.parse_labels; None for a model without labels.

  Args:
    config: ConfigDict.
    names: of the classes; None for their numbers.
  """
  count = num_classes(config)
  if count is None:
    return None
  names = class_names(config, names)
  pattern, has_counts = classes.parse_labels(config.sample.labels or classes.EACH, count, names)
  if any(i == count for i, _ in pattern):
    check_unconditional(config)
  return pattern, has_counts


def label_words(config: ConfigDict, pattern: classes.Pattern, names: Sequence[str] | None) -> str:
  """A pattern of labels for a report, such as 'labels cat, dog'."""
  return classes.in_words(pattern, num_classes(config) or 0, class_names(config, names))


def num_samples(config: ConfigDict, names: Sequence[str] | None = None) -> int:
  """Of config.sample: those that its labels count, or num_samples."""
  found = sample_labels(config, names)
  if found is not None and found[1]:
    return sum(count for _, count in found[0])
  count: int = config.sample.num_samples
  return count


def class_names(config: ConfigDict, names: Sequence[str] | None) -> Sequence[str]:
  """The names of the classes, or their numbers where there are none."""
  return names if names is not None else [str(i) for i in range(num_classes(config) or 0)]


# Data.


def stored_source(
  config: ConfigDict, split: str | None = None, field: str = 'data.split'
) -> data.Source:
  """As `source`, whose values are as they are stored."""
  try:
    opened = data.make_source(
      config.data.source,
      dir=config.data.dir,
      image_size=config.data.image_size,
      channels=config.data.channels,
      split=split or config.data.split,
      holdout=config.data.holdout,
      stride=config.data.stride,
      feature=config.data.feature,
    )
  except UserError as error:
    if type(error) not in (UserError, data.NoSplitError):
      raise
    raise type(error)(str(error).replace('data.split=', f'{field}=')) from error
  return data.Substitutes(opened) if config.data.on_damage == 'skip' else opened


def source(config: ConfigDict, split: str | None = None, field: str = 'data.split') -> data.Source:
  """The data set of config.data, or another split of it, which a field names."""
  opened = stored_source(config, split, field)
  if not data.takes_pictures(config.data.source):
    opened = data.Encoded(opened, encoding(config))
  if processes.count() > 1:
    fingerprint = data.fingerprint(opened)
    processes.check_same('data', {opened.name: f'{len(opened)} images, sha256 {fingerprint[:12]}'})
  return opened


def labels_of(
  config: ConfigDict, source: data.Source, names: Sequence[str] | None = None
) -> data.Labels | None:
  """The labels of a source's pictures; None for a model without.

  Args:
    config: ConfigDict.
    source: the source.
    names: of the classes as the run numbers them; None to take the source's numbers.

  Raises:
    UserError: no labels, or other classes than the model's.
  """
  count = num_classes(config)
  if count is None:
    return None
  labels = data.read_labels(source, config.data.labels)
  if names is not None:
    labels = data.renumbered(labels, names)
  if len(labels.names) != count:
    raise UserError(
      f'model.num_classes is {count}, but {source.name} has {len(labels.names)} classes; '
      f'model.num_classes={DATA} takes their number, in a new workdir'
    )
  return labels


def batches(
  config: ConfigDict,
  data_source: data.Source,
  skipped_batches: Sequence[int] = (),
  labels: data.Labels | None = None,
) -> data.Batches:
  """The batches of each step, this process's share; those skipped are numbers of batches."""
  made = data.make_batches(
    data_source,
    seed=config.seed,
    global_batch_size=config.train.global_batch_size,
    process_index=processes.index(),
    process_count=processes.count(),
    memory_limit_bytes=int(config.data.memory_limit_gib * 2**30),
    num_workers=config.data.num_workers,
    skipped_batches=skipped_batches,
    labels=None if labels is None else labels.ids,
    decoded=functools.partial(decoded_file, config),
  )
  if processes.count() > 1 and labels is not None:
    processes.check_same('data', {data_source.name: f'sha256 of all labels {labels.sha256()[:12]}'})
  if processes.count() > 1 and (sha256 := made.sha256()) is not None:
    processes.check_same('data', {data_source.name: f'sha256 of all images {sha256[:12]}'})
  return made


def decoded_file(config: ConfigDict, source: data.Source) -> data.DecodedFile | None:
  """Where the decoded pictures of a source are kept between runs; None for nowhere."""
  try:
    folder = cache_dir(config) / 'decoded'
  except (RuntimeError, UserError):  # there is no home folder
    return None
  return data.decoded_file(folder, source, processes.say)


def device_data(config: ConfigDict, batches: data.Batches) -> Any:
  """All images, replicated, where the devices gather the batches themselves; else None.

  With labels, as Batches.examples.
  """
  return devices.replicate(batches.examples) if gathers(config, batches.source) else None


def gathers(config: ConfigDict, source: data.Source) -> bool:
  """Whether the devices have all images, and gather the batches themselves."""
  if devices.on_cpu():  # which has no use for them all before they are due
    return False
  limit_gib = min(config.data.memory_limit_gib, config.data.device_limit_gib)
  return data.num_bytes(source) <= limit_gib * 2**30


# Training.


def steps_per_dispatch(config: ConfigDict) -> int:
  """How many training steps the devices take before they ask for more.

  On a CPU it is one: there a dispatch costs nothing, and what XLA compiles within a loop runs at
  0.6 of its speed outside.

  Raises:
    UserError: a number that does not divide all intervals.
  """
  fields = (
    'log_every_steps',
    'checkpoint_every_steps',
    'sample_every_steps',
    'eval_every_steps',
  )
  intervals = {field: config.train[field] for field in fields if config.train[field] > 0}
  given = config.train.steps_per_dispatch
  if given is None:
    common = math.gcd(*intervals.values())
    given = max(n for n in range(1, MAX_STEPS_PER_DISPATCH + 1) if common % n == 0)
  if given < 1:
    raise UserError(f'train.steps_per_dispatch is {given}; it must be at least 1')
  for field, interval in intervals.items():
    if interval % given:
      raise UserError(
        f'train.steps_per_dispatch is {given}, which does not divide train.{field}={interval}; '
        'change one of the two'
      )
  return 1 if devices.on_cpu() else given


def plan(config: ConfigDict) -> Plan:
  """How long training is, and what it does on the way."""
  return Plan(
    num_steps=config.train.num_steps,
    log_every_steps=config.train.log_every_steps,
    checkpoint_every_steps=config.train.checkpoint_every_steps,
    sample_every_steps=config.train.sample_every_steps,
    eval_every_steps=config.train.eval_every_steps,
    steps_per_dispatch=steps_per_dispatch(config),
  )


def learning_rate(config: ConfigDict) -> recipe.LearningRate:
  """step -> learning rate."""
  optim = config.optim
  return recipe.make_learning_rate(
    optim.learning_rate, optim.warmup_steps, decay=optim.decay, decay_steps=optim.decay_steps
  )


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
  """Clipping and Adam, as config.optim says."""
  return recipe.make_optimizer(
    learning_rate(config),
    grad_clip=config.optim.grad_clip,
    b1=config.optim.adam_b1,
    b2=config.optim.adam_b2,
    eps=config.optim.adam_eps,
    weight_decay=config.optim.weight_decay,
  )


def average_rates(config: ConfigDict) -> dict[str, Rate]:
  """The averages of the parameters beside the first, by name."""
  return rates_of(config.optim.ema_decays or (), config.optim.ema_widths or ())


def average_words(config: ConfigDict) -> str:
  """The average of a run's parameters for a report, such as 'moving average of decay 0.9999'."""
  if config.ema.width is not None:
    return f'power-function average of width {config.ema.width}'
  decay = config.optim.ema_decay if config.ema.decay is None else config.ema.decay
  return f'moving average of decay {decay}'


def init_state(config: ConfigDict, params: Any) -> TrainState:
  """The state of a run before its first step."""
  by_loss = config.train.timesteps == 'loss'
  return init_train_state(
    params,
    optimizer(config),
    timesteps_by_loss=config.diffusion.num_timesteps if by_loss else None,
    rates=average_rates(config),
  )


def train_step(config: ConfigDict, network: OwnNetwork | None = None) -> TrainStep:
  """The training step over all devices, compiled, as devices.compile_train_step returns it."""
  step = make_train_step(
    network or model(config),
    schedule(config),
    optimizer(config),
    learning_rate(config),
    parameterization=parameterization(config.diffusion),
    loss_type=config.diffusion.loss_type,
    ema_decay=config.optim.ema_decay,
    random_flip=config.data.random_flip,
    levels=levels(config),
    grad_accum_steps=config.train.grad_accum_steps,
    num_classes=num_classes(config),
    label_dropout=label_dropout(config),
    loss_weight=config.train.loss_weight,
    loss_weight_number=config.train.loss_weight_number,
    timesteps=config.train.timesteps or 'uniform',
    ema_warmup=config.optim.ema_warmup,
    rates=average_rates(config),
    axis_name=devices.AXIS,
  )
  return devices.compile_train_step(step, several=steps_per_dispatch(config) > 1)


def step_shapes(
  config: ConfigDict, source: data.Source, labels: data.Labels | None = None
) -> tuple[Any, Any]:
  """(block, data) of a dispatch of the training step, as ShapeDtypeStructs.

  Args:
    config: ConfigDict.
    source: of the pictures.
    labels: of them, if there are any.
  """

  def examples(*lead):
    images = jax.ShapeDtypeStruct((*lead, *source.image_shape), data.dtype_of(source))
    if labels is None:
      return images
    return {'images': images, 'labels': jax.ShapeDtypeStruct(lead, labels.ids.dtype)}

  sizes = devices.batch_sizes(config.train.global_batch_size, 'train.global_batch_size')
  num_steps = steps_per_dispatch(config)
  several = num_steps > 1
  lead = (num_steps, sizes.host) if several else (sizes.host,)
  if gathers(config, source):
    block, everything = jax.ShapeDtypeStruct(lead, np.int32), examples(len(source))
  else:
    block, everything = examples(*lead), None
  split = functools.partial(devices.split_over_devices, axis=int(several))
  block = jax.eval_shape(split, block)
  if several:
    block = devices.Steps(block, jax.ShapeDtypeStruct((), np.int32))
  return block, everything


def checkpointer(
  config: ConfigDict, path: pathlib.Path, *, read_only: bool = False
) -> Checkpointer:
  """The checkpoints of WORKDIR."""
  return Checkpointer(
    path / 'checkpoints',
    config_dict(config),
    keep_last=config.train.keep_last_checkpoints,
    keep_every_steps=config.train.keep_checkpoint_every_steps or None,
    read_only=read_only,
    is_primary=processes.is_primary(),
    record=path / RUN_FILE,
  )


def run_log(config: ConfigDict, path: pathlib.Path, start_step: int, terminal: Terminal) -> RunLog:
  """What training tells, from a step on."""
  return RunLog(
    path if processes.is_primary() else None,
    start_step=start_step,
    num_steps=config.train.num_steps,
    images_per_step=config.train.global_batch_size,
    terminal=terminal,
    hyperparameters=flatten(config_dict(config)),
    logger=_own_logger(config, path, start_step) if processes.is_primary() else None,
  )


def _own_logger(config, path, start_step) -> Logger | None:
  make = logger_maker(config)
  if make is None:
    return None
  made = make(str(path), config_dict(config), start_step)
  if not callable(made):
    raise UserError(
      f'train.logger={config.train.logger} returned {made!r:.80}; it must return a function that '
      'takes a step and its figures'
    )
  return made


def logger_maker(config: ConfigDict) -> Callable[[str, dict[str, Any], int], Logger] | None:
  """The function that config.train.logger names; None where it names none.

  Raises:
    UserError: there is none of that name.
  """
  given = config.train.logger
  if given is None:
    return None
  module, _, name = given.partition(':')
  try:
    found = getattr(importlib.import_module(module), name)
  except Exception as error:  # whatever a user's module raises
    why = ' '.join(f'{type(error).__name__}: {error}'.split())[:MAX_REASON]  # one line
    raise UserError(
      f'train.logger={given}: {why}; give MODULE:FUNCTION, of a module that Python finds and '
      'imports (PYTHONPATH names folders)'
    ) from error
  if not callable(found):
    raise UserError(f'train.logger={given}: that is no function; give MODULE:FUNCTION')
  return cast(Callable[[str, dict[str, Any], int], Logger], found)


def restore_weights(
  config: ConfigDict, path: pathlib.Path, step: int | None = None, params_like: Any = None
) -> Weights:
  """The moving average of a step, or of the newest that verifies, on every device.

  Args:
    config: ConfigDict.
    path: WORKDIR.
    step: None for the newest.
    params_like: a tree of the shapes of one's own network; None for the U-Net's.
  """
  if params_like is None:
    params_like = jax.eval_shape(lambda: init_params(config))
  with checkpointer(config, path, read_only=True) as checkpoints:
    step, params, checksum = checkpoints.restore_ema(params_like, step)
  return make_weights(step, devices.replicate(params), checksum)


# Sampling.


ANALYTIC = 'analytic'
BESPOKE = 'bespoke'
FITTED_SPACINGS = ('least_bound', 'least_error')  # see config.fitted
Estimates: TypeAlias = Mapping[str, np.ndarray]  # of a checkpoint
NO_ESTIMATES: Estimates = MappingProxyType({})


def is_fitted(config: ConfigDict) -> bool:
  """Whether the timesteps of config.sample are fitted to a checkpoint."""
  return spacing(config) in FITTED_SPACINGS


def num_steps(config: ConfigDict) -> int:
  """S of config.sample."""
  sample = config.sample
  if sample.num_steps is None and sample.timesteps is not None:
    return len(sample.timesteps)
  count: int | None = sample.num_steps
  if count is None:
    count = default_num_steps(sample.sampler, config.diffusion.num_timesteps)
  return count


def sample_schedule(config: ConfigDict) -> NoiseSchedule:
  """The process whose rows are the timesteps of config.sample; all T have no times between them."""
  whole, parts = schedule(config), config.sample.timestep_parts
  if parts is None or num_steps(config) >= whole.num_timesteps:
    return whole
  return refined(whole, parts)


def times(noise: NoiseSchedule) -> np.ndarray:
  """The times of the rows of a schedule, float64."""
  return np.arange(noise.num_timesteps, dtype=np.float64) if noise.times is None else noise.times


def timesteps(config: ConfigDict) -> np.ndarray:
  """The timesteps of config.sample, int64 [S], rows of its schedule.

  Of a spacing that is fitted, these are a stand-in as long as config.sample.timesteps has none.
  """
  sample, noise, count = config.sample, sample_schedule(config), num_steps(config)
  if sample.timesteps is not None:
    places = np.asarray(sample.timesteps, np.float64) * (sample.timestep_parts or 1)
    return check_timesteps(noise, np.rint(places).astype(np.int64))
  name = default_spacing(sample.sampler) if is_fitted(config) else spacing(config)
  found = timestep_subsequence(noise, count, name)
  if sample.stops_early and found[0] == 0 and count < noise.num_timesteps:
    found = timestep_subsequence(noise, count + 1, name)[1:]
  return found


def spacing(config: ConfigDict, sampler: str | None = None) -> str:
  """Where the timesteps lie of config.sample's sampler, or of another."""
  if config.sample.spacing:
    return str(config.sample.spacing)
  if config.sample.timesteps is not None:
    return 'given'
  name = sampler or config.sample.sampler
  return 'least_error' if name == BESPOKE else default_spacing(name)


def sample_variance(config: ConfigDict) -> str | None:
  """The variance of a step of config.sample, as p_mean_variance; None where it is predicted."""
  given = config.sample.variance
  if given is None:
    return parameterization(config.diffusion).fixed_variance
  return None if given == ANALYTIC else given


def chain(config: ConfigDict, estimates: Estimates = NO_ESTIMATES) -> functools.partial[Chain]:
  """The sampler of config.sample: (schedule, denoiser, noise_fn) -> Chain."""
  choices: dict[str, Any] = {'timesteps': timesteps(config), 'variance': sample_variance(config)}
  if config.sample.stops_early:
    choices['stops_early'] = True
  if config.sample.eta is not None:
    choices['eta'] = config.sample.eta
  if config.sample.sampler == BESPOKE:
    choices['coefficients'] = estimates.get('coefficients')
  choices |= churn_choices(config)
  return functools.partial(CHAINS[config.sample.sampler], **choices)


def check_fit(config: ConfigDict, estimates: Estimates = NO_ESTIMATES) -> None:
  """Raises a UserError if what is fitted to a checkpoint is asked for, and not given."""
  sample, missing = config.sample, []
  if sample.variance == ANALYTIC and 'x_0_variances' not in estimates:
    missing.append('variance=analytic')
  if sample.sampler == BESPOKE and 'coefficients' not in estimates:
    missing.append('sampler=bespoke')
  if is_fitted(config) and sample.timesteps is None:
    missing.append(f'spacing={spacing(config)}')
  if missing:
    raise UserError(
      f'sample.{missing[0]} is fitted to a checkpoint, which --mode=sample and --mode=eval of one '
      'step do; training, eval.watch and --mode=edit do not: leave it out here'
    )


def _digest(array):
  return hashlib.sha256(np.float64(array).tobytes()).hexdigest()


def churn_choices(config: ConfigDict) -> dict[str, Any]:
  """What config.sample says of heun's churn; nothing where there is none."""
  if not config.sample.churn:
    return {}
  given = {name: config.sample[name] for name in ('churn', 'churn_interval', 'churn_noise')}
  return {name: x for name, x in given.items() if x is not None}


def model_identity(config: ConfigDict) -> Identity:
  """What the model and the process are, for every result of theirs."""
  fields = deciding_fields(config, 'model')
  del fields['dtype']
  dtype: str | None = dtype_name(config)
  if config.network:
    fields, dtype = {'network': config.network}, None
  if arithmetic := numerics.arithmetic():
    dtype = ', '.join([dtype or 'own', *(f'{name}={x}' for name, x in arithmetic.items())])
  if not encoding(config).is_of_pictures:
    fields['encoding'] = encoding(config).facts()
  return Identity(model=fields, diffusion=deciding_fields(config, 'diffusion'), dtype=dtype)


def samples_identity(config: ConfigDict) -> Identity:
  """What decides samples, but for the parameters."""
  count, sample = len(timesteps(config)), config.sample
  is_whole = count == config.diffusion.num_timesteps
  given = sample.timesteps
  sampler = {
    'sampler': sample.sampler,
    'num_steps': count,
    'spacing': None if is_whole else spacing(config),
    'eta': (sample.eta or 0.0) if sample.sampler == 'ddim' else None,
    'clip': sample.clip,
    'timesteps': None if given is None else list(given),
    'timestep_parts': None if sample_schedule(config).times is None else sample.timestep_parts,
    'stops_early': True if sample.stops_early else None,
    'variance': sample.variance,
    **churn_choices(config),
  }
  return model_identity(config).but(sampler=sampler, seed=sample.seed)


def guidance_facts(config: ConfigDict, guide: Guide | None) -> dict[str, Any]:
  """What guidance decides of samples."""
  sample = config.sample
  if guide is None and sample.guidance in (None, 1):
    return {}
  return {
    'guidance': float(sample.guidance),
    'interval': None if sample.guidance_interval is None else list(sample.guidance_interval),
    'rescale': sample.guidance_rescale or None,
    'guide': None if guide is None else guide.weights.sha256,
  }


def sampler_words(config: ConfigDict) -> str:
  """The sampler for a report, such as 'ddim, 50 of 1000 steps (trailing), eta 0.0'."""
  sample, total = config.sample, config.diffusion.num_timesteps
  count = len(timesteps(config))
  words = [sample.sampler, f'{total} steps']
  if count < total:
    words[1] = f'{count} of {total} steps ({spacing(config)})'
  evaluations = num_evaluations(sample.sampler, count)
  if evaluations != count:
    words.append(f'{evaluations} evaluations')
  if SAMPLERS[sample.sampler] is ancestral:
    words.append(sample.variance or config.diffusion.var_type)
  if sample_schedule(config).times is not None:
    words.append(f'times rounded to 1/{sample.timestep_parts}')
  if sample.stops_early:
    words.append('to the least noise')
  if sample.sampler == 'ddim':
    words.append(f'eta {sample.eta or 0.0}')
  words += [f'{name.replace("_", " ")} {x}' for name, x in churn_choices(config).items()]
  if sample.clip != 'static':
    words.append(f'clip {sample.clip}')
  return ', '.join(words)


def drawer(
  config: ConfigDict,
  max_samples: int,
  network: OwnNetwork | None = None,
  names: Sequence[str] | None = None,
  estimates: Estimates = NO_ESTIMATES,
) -> Drawer:
  """The compiled sampler of config.sample.

  Args:
    config: ConfigDict.
    max_samples: samples that are asked for at once; sample.batch_size at most go through together.
    network: as denoiser_of.
    names: of the classes, of a model with labels; None for their numbers.
    estimates: of the checkpoint, as config.fitted.Fit has it.

  Raises:
    UserError: what is fitted to a checkpoint is asked for and not given.
  """
  check_fit(config, estimates)
  make_chain, noise_schedule = chain(config, estimates), sample_schedule(config)
  away_from, found = guide(config), sample_labels(config, names)
  facts, words = guidance_facts(config, away_from), [sampler_words(config)]
  pattern = None
  if found is not None:
    pattern = classes.expanded(found[0])
    facts['labels'] = [list(run) for run in found[0]]
    words.append(label_words(config, found[0], names))
  if 'guidance' in facts:
    words.append(guidance_words(config))
  identity = samples_identity(config)
  denoiser_of = guided_denoiser_of(config, network, away_from)

  facts |= {name: _digest(array) for name, array in estimates.items()}
  variances = estimates.get('x_0_variances')
  if variances is not None:
    variances = np.interp(times(noise_schedule), np.arange(len(variances)), variances)

  def clipped_of(*of):
    denoiser = clipped(denoiser_of(*of), config.sample.clip)
    return denoiser if variances is None else with_analytic_variance(denoiser, variances)

  rows = make_chain(noise_schedule, None, None).timesteps
  work = make_chain_fns(clipped_of, noise_schedule, image_shape(config), make_chain)
  return Drawer(
    chain=stepwise.compiled(work),
    timesteps=rows if noise_schedule.times is None else noise_schedule.times[rows],
    key=devices.replicate(key(config.sample.seed, 'sample')),
    sizes=devices.fitting_batch_sizes(config.sample.batch_size, max_samples),
    identity=identity.but(sampler={**(identity.sampler or {}), **facts}),
    words=', '.join(words),
    pattern=pattern,
    class_names=None if pattern is None else tuple(class_names(config, names)),
    display=display(config),
    guide=None if away_from is None else away_from.weights.params,
  )


# Editing.

EDITS = {  # what is done: the fields of config.edit that decide it
  'inpaint': (),
  'superresolution': ('scale',),
  'colourise': (),
  'deblur': ('blur',),
  'sdedit': ('depth',),
}
OF_REPAINT = ('jump_length', 'resamplings')
DEFAULT_METHOD = 'pigdm'


def edit_method(config: ConfigDict) -> str | None:
  """The method of config.edit; None for sdedit, which has none."""
  if config.edit.what == 'sdedit':
    return None
  return config.edit.method or DEFAULT_METHOD


def edit_config(config: ConfigDict) -> ConfigDict:
  """The config with the sampler of an edit: repaint's has 250 steps unless others are asked for."""
  config = config.copy_and_resolve_references().unlock()
  is_step = parameterization(config.diffusion).is_step
  if edit_method(config) == 'repaint' and config.sample.num_steps is None and not is_step:
    config.sample.num_steps = min(REPAINT_STEPS, config.diffusion.num_timesteps)
  return config


def edit_work(
  config: ConfigDict,
  operator: LinearOperator | None = None,
  network: OwnNetwork | None = None,
  guide: Guide | None = None,
) -> Stepwise:
  """The compiled chains of an edit.

  Args:
    config: ConfigDict, as edit_config returns it.
    operator: of what is known; None with a mask and for sdedit.
    network: as denoiser_of.
    guide: of config.sample.
  """
  check_fit(config)
  method, edit, noise_schedule = edit_method(config), config.edit, sample_schedule(config)
  make_chain = chain(config)
  if method is None:
    kept = depth_timesteps(noise_schedule, timesteps(config), edit.depth)
    make_chain = functools.partial(make_chain, timesteps=kept)
  if method == 'repaint':
    jumps = {name: edit[name] for name in OF_REPAINT}
    make_chain = functools.partial(repaint_chain, **make_chain.keywords, **jumps)
  return stepwise.compiled(
    make_edit_fns(
      guided_denoiser_of(config, network, guide),
      noise_schedule,
      image_shape(config),
      make_chain,
      method=method or 'sdedit',
      clip=config.sample.clip,
      operator=operator,
      noise_std=ROUNDING_STD if operator and operator.gram is None else 0.0,
    )
  )


def edit_labels(
  config: ConfigDict, names: Sequence[str] | None = None
) -> tuple[classes.Pattern, str] | None:
  """The classes that the samples of each picture have in turn, and these in words.

  None without sample.labels: the class is left open.

  Raises:
    UserError: counts; or no labels where they are needed.
  """
  if config.sample.labels is None:
    check_unconditional(config)
    if config.sample.guidance not in (None, 1) and config.sample.guide is None:
      raise UserError(
        f'sample.guidance is {config.sample.guidance}, but no labels are given to be guided to: '
        'name some, as in --config.sample.labels=each'
      )
    return None
  found = sample_labels(config, names)
  assert found is not None, 'check_sample refuses labels of a model without'
  pattern, has_counts = found
  if has_counts:
    raise UserError(
      f'sample.labels is {config.sample.labels}; an edit takes no counts: edit.num samples of each '
      'picture have the labels in turn'
    )
  return pattern, label_words(config, pattern, names)


def editor(
  config: ConfigDict,
  known: Known,
  num: int,
  work: Stepwise,
  *,
  guide: Guide | None = None,
  names: Sequence[str] | None = None,
  labels: np.ndarray | None = None,
) -> Editor:
  """An edit of pictures.

  Args:
    config: ConfigDict, as edit_config returns it.
    known: Known, of N pictures.
    num: samples of each.
    work: of edit_work.
    guide: of config.sample.
    names: of the classes, of a model with labels; None for their numbers.
    labels: int32 [N], of the pictures, in place of sample.labels.
  """
  method, edit, facts = edit_method(config), config.edit, guidance_facts(config, guide)
  words = [edit.what, *([method] if method else []), sampler_words(config)]
  if labels is not None:
    facts['labels'] = [[label, 1] for label in labels.tolist()]
    labels = np.tile(labels, num)
  elif (found := edit_labels(config, names)) is not None:
    facts['labels'] = [list(run) for run in found[0]]
    in_turn = np.resize(classes.expanded(found[0]), num)
    labels = np.repeat(in_turn, len(known.values))
    words.append(found[1])
  fields = EDITS[edit.what] + (OF_REPAINT if method == 'repaint' else ())
  identity = samples_identity(config)
  identity = edit_identity(
    identity.but(seed=edit.seed, sampler={**(identity.sampler or {}), **facts}),
    known,
    what=edit.what,
    method=method,
    choices={name: edit[name] for name in fields},
  )
  words += [f'{name} {edit[name]}' for name in fields]
  words += [guidance_words(config)] if 'guidance' in facts else []
  return Editor(
    work=work,
    key=devices.replicate(key(edit.seed, 'edit')),
    sizes=devices.fitting_batch_sizes(config.sample.batch_size, num * len(known.values)),
    known=known,
    identity=identity,
    name=edit_name(edit.what, method, identity),
    words=', '.join(words),
    labels=labels,
    guide=None if guide is None else guide.weights.params,
  )


def guidance_words(config: ConfigDict) -> str:
  """Guidance for a report, such as 'guidance 2 at noise levels 0.3 to 5'."""
  sample = config.sample
  words = f'guidance {sample.guidance:g}'
  words += f' away from {sample.guide}' if sample.guide else ''
  if sample.guidance_interval is not None:
    words += ' at noise levels {:g} to {:g}'.format(*sample.guidance_interval)
  return words + (f', rescaled {sample.guidance_rescale:g}' if sample.guidance_rescale else '')


# Evaluation.


def cache_dir(config: ConfigDict) -> pathlib.Path:
  """Where weights and reference features are kept between runs."""
  return expanded(config.eval.cache_dir or default_cache_dir())


def feature_network(config: ConfigDict) -> features.FeatureNetwork:
  """The network of config.eval.network, with its weights, ready to run.

  Raises:
    UserError: weights that cannot be used, or images that it does not take.
  """
  network = config.eval.network
  if network == 'random':
    return features.random_network(levels(config), training_examples(config, MAX_OF_STATISTICS))
  if network == 'watch':
    return features.watch_network(levels(config))
  if not _takes_data(config):
    raise UserError(
      f'the features of eval.network={network} are of pictures of 256 levels, in grey or colour, '
      f'and these data are {data_words(config)}: give --config.eval.network=random'
    )
  if network == 'digits':
    return features.digits_network()
  is_grey = config.data.channels == 1
  if network == 'efficientnet_lite0':
    return features.efficientnet_network(is_grey=is_grey)
  return features.inception_network(
    config.eval.inception_weights,
    cache_dir=cache_dir(config),
    sha256=config.eval.inception_sha256,
    is_grey=is_grey,
  )


def _takes_data(config):
  """Whether the network of config.eval.network is of such data."""
  network = config.eval.network
  if network in OF_ANY_DATA:
    return True
  return has_pictures(config) and (network == 'digits' or config.data.channels in (1, 3))


def training_examples(config: ConfigDict, most: int) -> np.ndarray:
  """x_0 float32 [N, ..., C] of the training split, evenly spaced examples of it."""
  opened, values = source(config), encoding(config)
  encoded = opened.read(evenly_spaced(min(most, len(opened)), len(opened)))
  return values.x_0(values.stored(encoded))


def scorer(config: ConfigDict, metrics: Sequence[str]) -> Scorer:
  """Metrics of images against the reference of config.eval.

  Raises:
    UserError: weights, reference or data that cannot be used.
  """
  network, count = feature_network(config), config.eval.reference_examples
  if config.eval.reference:
    if not has_pictures(config):
      raise UserError(
        'eval.reference is of pictures of 256 levels, and these data are '
        f'{data_words(config)}: leave it out, and they are measured against the split of '
        'eval.reference_split'
      )
    path = expanded(config.eval.reference)
    any_channels = config.eval.network in OF_ANY_PICTURES
    opened = references.open_file(
      path, count, image_shape=image_shape(config), any_channels=any_channels
    )
  else:
    opened = references.open_source(
      source(config, config.eval.reference_split, 'eval.reference_split'), count
    )
  if config.eval.network in OF_ANY_PICTURES and config.data.channels == 1:
    opened = dataclasses.replace(opened, notes=(*opened.notes, features.GREY_NOTE))
  return Scorer(
    metrics=metrics,
    network=network,
    opened=opened,
    image_shape=image_shape(config),
    cache=references.open_cache(cache_dir(config)),
    batch_size=config.eval.batch_size,
  )


def scorer_if_any(config: ConfigDict, metrics: Sequence[str]) -> Scorer | None:
  """The Scorer of those metrics that the network has; None for data that it does not take."""
  if not _takes_data(config):
    return None
  has_classes = config.eval.network != 'random'
  return scorer(config, [name for name in metrics if name != 'is' or has_classes])


def bpd_fns(
  config: ConfigDict, num_terms: int | None, network: OwnNetwork | None = None
) -> Stepwise:
  """The bound of a batch, compiled: as make_bpd_fns returns it.

  Args:
    config: ConfigDict.
    num_terms: K of the estimate, or None for all terms.
    network: as denoiser_of.
  """
  return stepwise.compiled(
    make_bpd_fns(
      denoiser_of(in_float32(config), network=network),
      schedule(config),
      variance=parameterization(config.diffusion).fixed_variance,
      num_terms=num_terms,
      levels=levels(config),
    )
  )


def flow_fns(
  config: ConfigDict, num_steps: int, num_probes: int, network: OwnNetwork | None = None
) -> Stepwise:
  """The flow's likelihood of a batch, compiled: as make_flow_fns returns it.

  Args:
    config: ConfigDict.
    num_steps: S, at most T - 1.
    num_probes: as make_flow_fns.
    network: as denoiser_of.
  """
  check_flow(config)
  noise = schedule(config)
  steps = timestep_subsequence(noise, num_steps + 1, 'logsnr')
  steps[-1] = noise.num_timesteps - 1
  return stepwise.compiled(
    make_flow_fns(
      denoiser_of(in_float32(config), 'none', network),
      noise,
      steps,
      num_probes=num_probes,
      levels=levels(config),
    )
  )


def check_flow(config: ConfigDict) -> None:
  """Raises a UserError for a model whose flow has no likelihood."""
  if parameterization(config.diffusion).is_step or not schedule(config).alphas_cumprod[-1]:
    raise UserError(
      'the likelihood of the flow takes a model that predicts x_0 or noise, not one step alone, '
      'on a schedule that keeps some signal: leave flow out of eval.metrics'
    )


def num_flow_steps(config: ConfigDict) -> int:
  """The steps of the flow's likelihood: config.eval's, or as many as there can be."""
  return min(config.eval.flow_steps, config.diffusion.num_timesteps - 1)


def flows(
  config: ConfigDict, splits: Sequence[data.Source], names: Sequence[str] | None = None
) -> list[Flow]:
  """The flow's likelihood on splits of the data; names as bounds."""
  num_steps, num_probes = num_flow_steps(config), config.eval.flow_probes
  work = flow_fns(config, num_steps, num_probes)
  found = []
  for bound in bounds(config, splits, None, names, work=work):
    choices = {**(bound.identity.choices or {}), 'flow_steps': num_steps, 'probes': num_probes}
    fields = {'identity': bound.identity.but(choices=choices), 'num_terms': num_steps}
    found.append(Flow(**{**vars(bound), **fields}, num_probes=num_probes))
  return found


def in_float32(config: ConfigDict) -> ConfigDict:
  """The config of a network that computes in float32, as the bound does whatever it trained in."""
  config = config.copy_and_resolve_references()
  config.model.dtype = 'float32'
  return config


def bounds(
  config: ConfigDict,
  splits: Sequence[str | data.Source],
  num_terms: int | None,
  names: Sequence[str] | None = None,
  *,
  work: Stepwise | None = None,
) -> list[Bound]:
  """The bound on splits of the data, by one compiled step.

  Args:
    config: ConfigDict.
    splits: their names, or the splits themselves.
    num_terms: K of the estimate, or None for all terms.
    names: of the classes, of a model with labels; None for those of the split.
    work: what is computed; None for the bound.
  """
  if config.eval.bpd_labels == 'none':
    check_unconditional(config)
  work = work or bpd_fns(config, num_terms)
  bounds = []
  for split in splits:
    opened = source(config, split) if isinstance(split, str) else split
    count = min(len(opened), config.eval.bpd_examples or len(opened))
    choices: dict[str, Any] = {'terms': num_terms} if num_terms else {}
    labels = None if config.eval.bpd_labels == 'none' else labels_of(config, opened, names)
    if labels is not None:
      choices['labels'] = labels.sha256()
    identity = model_identity(in_float32(config)).but(
      seed=config.eval.seed,
      data=references.source_identity(opened),
      choices=choices or None,
    )
    bounds.append(
      Bound(
        source=opened,
        count=count,
        work=work,
        key=devices.replicate(key(config.eval.seed, 'bpd')),
        sizes=devices.fitting_batch_sizes(config.eval.batch_size, count),
        identity=identity,
        num_terms=num_terms,
        num_timesteps=config.diffusion.num_timesteps,
        labels=labels,
        encoding=encoding(config),
      )
    )
  return bounds


def short_bound(
  config: ConfigDict,
  split: data.Source,
  num_steps: int,
  variance: str,
  *,
  names: Sequence[str] | None = None,
  x_0_variances: np.ndarray | None = None,
) -> Bound:
  """The bound of the chain of few steps, evenly spaced.

  Args:
    config: ConfigDict.
    split: of the data.
    num_steps: S.
    variance: of a step: fixedsmall, fixedlarge, analytic, or the model's own.
    names: as bounds.
    x_0_variances: of the analytic variance.
  """
  whole, own_of = schedule(config), denoiser_of(in_float32(config))
  steps = timestep_subsequence(whole, num_steps, 'linspace')
  is_whole = num_steps == whole.num_timesteps
  noise = whole if is_whole else respace(whole, steps)

  def short_of(*of):
    denoiser = own_of(*of)
    if variance == ANALYTIC:
      denoiser = with_analytic_variance(denoiser, x_0_variances)
    return denoiser if is_whole else respaced(whole, denoiser, steps)[1]

  fixed = variance if variance in ('fixedsmall', 'fixedlarge') else None
  work = make_bpd_fns(short_of, noise, variance=fixed, levels=levels(config))
  (bound,) = bounds(config, [split], None, names, work=stepwise.compiled(work))
  choices = {**(bound.identity.choices or {}), 'num_steps': num_steps, 'variance': variance}
  if variance == ANALYTIC:
    choices['x_0_variances'] = _digest(x_0_variances)
  identity = bound.identity.but(choices=choices)
  return dataclasses.replace(bound, identity=identity, num_timesteps=num_steps)


def measured_splits(
  config: ConfigDict, path: pathlib.Path | None, splits: Sequence[str], field: str
) -> tuple[list[data.Source], list[str]]:
  """config.splits.measured, for the run of WORKDIR."""
  trained = trained_on(config, path)
  return measured(
    config, splits, trained, field=field, open_split=lambda split: source(config, split, field)
  )


def evaluator(
  config: ConfigDict,
  path: pathlib.Path | None = None,
  estimates: Estimates = NO_ESTIMATES,
) -> Evaluator:
  """All measurements that config.eval names.

  Args:
    config: ConfigDict.
    path: WORKDIR, whose run says what was trained on; None for the config to say that.
    estimates: as drawer.
  """
  metrics = names(config.eval.metrics)
  likelihoods = [metric for metric in metrics if metric in LIKELIHOODS]
  of_images = [metric for metric in metrics if metric not in LIKELIHOODS]
  splits = names(config.eval.bpd_splits) if likelihoods else []
  if likelihoods and not splits:
    raise UserError(
      'eval.bpd_splits is empty; name some, as in --config.eval.bpd_splits=test, or '
      f'leave {" and ".join(likelihoods)} out of eval.metrics'
    )
  sources, notes = measured_splits(config, path, splits, 'eval.bpd_splits')
  notes += [line for opened in sources for line in getattr(opened, 'remarks', ())]
  classes_of = None if path is None else data.read_class_names(path)
  bounds_of: list[Bound] = []
  if 'bpd' in likelihoods:
    bounds_of += bounds(config, sources, config.eval.bpd_terms, classes_of)
  if 'flow' in likelihoods:
    bounds_of += flows(config, sources, classes_of)
  identity, images_scorer, images_drawer = model_identity(config), None, None
  facts = {bound.split: bound.identity.data for bound in bounds_of}
  if of_images:
    images_scorer = scorer(config, of_images)
    images_drawer = drawer(config, config.eval.num_samples, names=classes_of, estimates=estimates)
    of_scorer = images_scorer.identity()
    identity = images_drawer.identity.but(network=of_scorer['network'])
    facts |= of_scorer['data']
  return Evaluator(
    metrics=metrics,
    bounds=bounds_of,
    scorer=images_scorer,
    drawer=images_drawer,
    num_samples=config.eval.num_samples,
    rounding=config.eval.rounding,
    identity=identity.but(data=facts, choices=eval_choices(config)),
    about={
      'parameters': average_words(config),
      **about_config(config),
    },
    notes=list(dict.fromkeys(notes)),
  )


def eval_choices(config: ConfigDict) -> dict[str, Any]:
  """The fields of config.eval that decide a report."""
  fields = config_dict(config)['eval']
  fields |= {name: names(fields[name]) for name in ('metrics', 'bpd_splits')}
  if 'flow' not in fields['metrics']:
    del fields['flow_steps'], fields['flow_probes']
  if 'bpd' in fields['metrics'] and dtype_name(config) != 'float32':
    fields['bpd_dtype'] = 'float32'  # reports of before had it as the samples have
  return {name: value for name, value in fields.items() if name not in FREE_EVAL_FIELDS}


def about_config(config: ConfigDict) -> dict[str, str]:
  """What a report says of the config."""
  text = json.dumps(config_dict(config), sort_keys=True)
  about = {'config_sha256': hashlib.sha256(text.encode()).hexdigest()}
  return about | ({'began_from': config.init_from} if config.init_from else {})


def training_evaluator(config: ConfigDict, path: pathlib.Path | None = None) -> Evaluator:
  """The Evaluator of evaluations during training: fewer images, and the bound by its estimate."""
  config = config.copy_and_resolve_references()
  config.eval.update(
    num_samples=config.train.eval_num_samples,
    bpd_examples=config.train.eval_bpd_examples,
    bpd_terms=min(config.train.eval_bpd_terms, config.diffusion.num_timesteps),
  )
  return evaluator(config, path)


def figures_run(
  config: ConfigDict,
  path: pathlib.Path,
  weights: Weights,
  *,
  coding: Coding,
  x_0_variances: Callable[[], np.ndarray],
) -> Run:
  """What the paper's tables and figures need of a trained model.

  Args:
    config: ConfigDict.
    path: WORKDIR.
    weights: Weights.
    coding: Coding.
    x_0_variances: () -> those of the analytic variance.
  """
  kind = config.diffusion.mean_type, config.diffusion.loss_type, config.diffusion.var_type

  def open_measured(splits, field, otherwise=()):
    """The splits that can be measured; or another, which is said."""
    try:
      sources, lines = measured_splits(config, path, splits, field)
    except UserError as error:
      if not otherwise or not all(map(data.is_held_out, splits)):
        raise
      sources, lines = [source(config, split) for split in otherwise], [str(error)]
      lines.append(f'Takes the split {otherwise[0]}, which was trained on')
    for line in lines:
      processes.say(line)
    return sources

  return Run(
    workdir=path,
    weights=weights,
    identity=model_identity(config).but(seed=config.sample.seed),
    schedule=schedule(config),
    denoiser_of=denoiser_of(config),
    variance=parameterization(config.diffusion).fixed_variance,
    kind=kind,
    image_shape=image_shape(config),
    display=display(config),
    open_split=lambda: open_measured(
      [config.reproduce.split], 'reproduce.split', otherwise=[config.data.split]
    )[0],
    open_bpd_splits=lambda: open_measured(names(config.eval.bpd_splits), 'eval.bpd_splits'),
    metrics=names(config.eval.metrics),
    num_samples=config.reproduce.num_samples,
    num_slots=config.reproduce.num_slots,
    num_images=config.reproduce.num_images,
    batch_size=config.sample.batch_size,
    is_paper_data='cifar10' in config.data.source and config.diffusion.num_timesteps == 1000,
    key_of=lambda stream: devices.replicate(key(config.sample.seed, stream)),
    open_training=lambda: source(config),
    make_bound=lambda opened: bounds(config, [opened], None, data.read_class_names(path))[0],
    make_short_bound=lambda opened, count, variance: short_bound(
      config,
      opened,
      count,
      variance,
      names=data.read_class_names(path),
      x_0_variances=x_0_variances() if variance == ANALYTIC else None,
    ),
    make_scorer=lambda metrics: scorer_if_any(config, metrics),
    labels_of=lambda opened: labels_of(config, opened, data.read_class_names(path)),
    make_drawer=lambda count: drawer(config, count, names=data.read_class_names(path)),
    make_evaluator=lambda: evaluator(config, path),
    coding=coding,
  )
