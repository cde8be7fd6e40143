"""Pipelines of the library diffusers (DDPMPipeline with a UNet2DModel) as our model and back.

  down_blocks.0.resnets.1.conv1.weight       down_0_block_1/conv1/kernel
  up_blocks.0.attentions.2.to_q.weight       up_1_attn_2/q/kernel, with two levels: they count up
  mid_block.attentions.0.group_norm.weight   mid_attn_1/norm/scale

A pipeline is a folder: model_index.json, unet/ (settings and weights), scheduler/. The first ones
published have the files of unet/ and scheduler/ beside model_index.json, and other names for the
layers of attention. A checkpoint of the library's training program has unet/ and, with the moving
average, unet_ema/.

The network is ours for one choice of its settings: convolutions of stride 2 pad at the end alone
(downsample_padding 0), embeddings are [sin | cos] (flip_sin_to_cos False) with half - 1 in the
denominator (freq_shift 1), and attention has one head (attention_head_dim null, or as many as the
channels). Of a model with labels, the table of classes (num_class_embeds) has all our rows, the
last without a label, as _row_without_label says; where train.label_dropout is 0, it has not that.
"""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.gaussians import LEVELS
from ddpm_jax.errors import UserError
from ddpm_jax.interop import tensors
from ddpm_jax.interop.safetensors_file import write_safetensors
from ddpm_jax.interop.state_dicts import chosen_sets, describe, find_sets, several
from ddpm_jax.interop.tensors import params_from_tensors, tensors_from_params, torch_name
from ddpm_jax.interop.weight_files import find_weights, read_weights
from ddpm_jax.nn.unet import NUM_GROUPS
from ddpm_jax.sampling.clip import DYNAMIC_QUANTILE

WEIGHTS = ('diffusion_pytorch_model.safetensors', 'diffusion_pytorch_model.bin')
UNET_CONFIG = 'config.json'
SCHEDULER_CONFIG = 'scheduler_config.json'
_VERSION = '0.42.1'  # the library whose files these are like
_TABLE = 'class_embedding.weight'  # of labels
_NO_LABEL = '_row_without_label'  # of what we write: the last row of the table is of no class
EMA = 'unet_ema'  # folder of the moving average, in a checkpoint of training
_RAW = 'non_ema'  # variant of the weights, where the file without a variant is their average
_MAX_STEP = 2**31
_MAX_CLASSES = 10**6
_MAX_JSON_BYTES = 1 << 20
_MAX_SHOWN = 100
_MAX_LISTED = 8
_BETAS_TOLERANCE = 1e-6  # the library computes in float32

_SCHEDULERS = ('DDPMScheduler', 'DDIMScheduler')
_SCHEDULES = {'linear': 'linear', 'quad': 'scaled_linear', 'cosine': 'squaredcos_cap_v2'}
_PREDICTIONS = {'eps': 'epsilon', 'xstart': 'sample', 'v': 'v_prediction'}
_NO_MAX = 1e6  # of sample_max_value: no predicted x_0 is as large
_CLIPS: dict[str, dict[str, Any]] = {
  'none': {'clip_sample': False},
  'static': {},
  'dynamic': {
    'clip_sample': False,
    'thresholding': True,
    'dynamic_thresholding_ratio': DYNAMIC_QUANTILE,
    'sample_max_value': _NO_MAX,
  },
}
_VARIANCES = {'fixedlarge': 'fixed_large', 'fixedsmall': 'fixed_small'}

# What the library takes where a file leaves a setting out; and what else means the same.
_UNET_DEFAULTS = {
  'act_fn': 'silu',
  'add_attention': True,
  'attention_head_dim': 8,
  'attn_norm_num_groups': None,
  'block_out_channels': [224, 448, 672, 896],
  'center_input_sample': False,
  'class_embed_type': None,
  'down_block_types': ['DownBlock2D', 'AttnDownBlock2D', 'AttnDownBlock2D', 'AttnDownBlock2D'],
  'downsample_padding': 1,
  'downsample_type': 'conv',
  'dropout': 0.0,
  'flip_sin_to_cos': True,
  'freq_shift': 0,
  'in_channels': 3,
  'layers_per_block': 2,
  'mid_block_scale_factor': 1,
  'mid_block_type': 'UNetMidBlock2D',
  'norm_eps': 1e-5,
  'norm_num_groups': NUM_GROUPS,
  'num_class_embeds': None,
  'num_train_timesteps': None,
  'out_channels': 3,
  'resnet_time_scale_shift': 'default',
  'sample_size': None,
  'time_embedding_dim': None,
  'time_embedding_type': 'positional',
  'up_block_types': ['AttnUpBlock2D', 'AttnUpBlock2D', 'AttnUpBlock2D', 'UpBlock2D'],
  'upsample_type': 'conv',
}
_SCHEDULER_DEFAULTS = {
  'beta_end': 0.02,
  'beta_schedule': 'linear',
  'beta_start': 0.0001,
  'clip_sample': True,
  'clip_sample_range': 1.0,
  'dynamic_thresholding_ratio': 0.995,
  'num_train_timesteps': 1000,
  'prediction_type': 'epsilon',
  'rescale_betas_zero_snr': False,
  'sample_max_value': 1.0,
  'thresholding': False,
  'trained_betas': None,
  'variance_type': 'fixed_small',
}
# Of unet_ema/: how the average was made.
_EMA_SETTINGS = (
  'decay',
  'inv_gamma',
  'min_decay',
  'optimization_step',
  'power',
  'update_after_step',
  'use_ema_warmup',
)
# Of a scheduler, which change nothing in a chain of all steps, or choose how to sample.
_FREE_SCHEDULER_SETTINGS = (
  'clip_sample',
  'clip_sample_range',
  'dynamic_thresholding_ratio',
  'sample_max_value',
  'set_alpha_to_one',
  'steps_offset',
  'tensor_format',
  'thresholding',
  'timestep_spacing',
)
_BETA_SETTINGS = ('beta_end', 'beta_schedule', 'beta_start', 'trained_betas')
_SYNONYMS = {'swish': 'silu', 'fixed_small_log': 'fixed_small'}
# Where our config chooses what a setting says; no other setting can be chosen.
_UNET_FIELDS = {
  'block_out_channels': 'model.ch and model.ch_mult',
  'down_block_types': 'model.attn_resolutions',
  'in_channels': 'data.channels',
  'layers_per_block': 'model.num_res_blocks',
  'norm_num_groups': 'model.num_groups',
  'num_class_embeds': 'model.num_classes',
  'out_channels': 'data.channels and diffusion.var_type',
  'sample_size': 'data.image_size',
  'up_block_types': 'model.attn_resolutions',
}
_SCHEDULER_FIELDS = {
  'num_train_timesteps': 'diffusion.num_timesteps',
  'prediction_type': 'diffusion.mean_type',
  'variance_type': 'diffusion.var_type',
}

_OLD_ATTENTION = re.compile(r'(\.attentions\.\d+\.)(query|key|value|proj_attn)\.')
_NEW_ATTENTION = {'query': 'to_q', 'key': 'to_k', 'value': 'to_v', 'proj_attn': 'to_out.0'}
_LAYERS = {
  'nin_shortcut': 'conv_shortcut',
  'temb_proj': 'time_emb_proj',
  'norm': 'group_norm',
  'q': 'to_q',
  'k': 'to_k',
  'v': 'to_v',
  'proj_out': 'to_out.0',
}
_MODULES = {
  'class_embedding': 'class_embedding',
  'norm_out': 'conv_norm_out',
  'temb_dense0': 'time_embedding.linear_1',
  'temb_dense1': 'time_embedding.linear_2',
  'mid_block_1': 'mid_block.resnets.0',
  'mid_attn_1': 'mid_block.attentions.0',
  'mid_block_2': 'mid_block.resnets.1',
}
_KINDS = {'block': 'resnets', 'attn': 'attentions'}


def find_pipeline(path: pathlib.Path) -> bool:
  """Whether a folder is a pipeline, a checkpoint of training, or the unet/ of one."""
  path = pathlib.Path(path)
  return any((path / name / UNET_CONFIG).is_file() for name in ('unet', EMA, ''))


def read_pipeline(path: pathlib.Path, config: ConfigDict, params_like: Any) -> Any:
  """The params of read_models."""
  return read_models(path, config, params_like)[0]


def read_models(
  path: pathlib.Path, config: ConfigDict, params_like: Any, chosen: str | None = None
) -> tuple[Any, Any, int]:
  """Reads the network of a pipeline whose settings are those of our config.

  Args:
    path: the folder; with the scheduler's settings, those are compared too.
    config: ConfigDict.
    params_like: a tree of arrays or ShapeDtypeStructs, as UNet.init gives it.
    chosen: of several sets of weights, as state_dicts.chosen_sets has it. None for unet/ and, as
      the moving average, unet_ema/; or for the variant non_ema and, as the average, the file
      without a variant; or for the only one.

  Returns:
    (params, ema_params, step): of one set, both are it; step is 0 where none is told.

  Raises:
    UserError: another network, a setting that differs from config or that we do not have, a
      damaged file; in one line, which names it.
  """
  path = pathlib.Path(path)
  unet, scheduler = _folders(path)
  for folder in (unet, path / EMA):
    if folder == unet or (folder / UNET_CONFIG).is_file():
      _check_unet(folder / UNET_CONFIG, unet_settings(config))
  if (scheduler / SCHEDULER_CONFIG).is_file():
    _check_scheduler(scheduler / SCHEDULER_CONFIG, config.diffusion)
  files = _weights_of(path, unet)
  raw, average, inner = _choose(unet, files, chosen)
  found = {name: _read_params(files[name], params_like, inner) for name in {raw, average}}
  return found[raw][0], found[average][-1], _step_of(path)


def _weights_of(path, unet):
  """{name: file} of the sets of weights: unet, its variants, and unet_ema."""
  files = {variant or 'unet': file for variant, file in find_weights(unet).items()}
  if not files:
    there = ', '.join(sorted(file.name for file in unet.iterdir())[:_MAX_LISTED])
    raise UserError(f'{unet}: it has none of {", ".join(WEIGHTS)}; it has {there}')
  if unet != path / EMA and (path / EMA).is_dir() and (found := find_weights(path / EMA)):
    files[EMA] = found.get('') or next(iter(found.values()))
  return files


def _choose(unet, files, chosen):
  """(name of the weights, name of their average, what is left to choose within a file)."""
  if chosen is not None and (len(files) > 1 or chosen in files):
    names = chosen_sets({name: name for name in files}, chosen)
    return names[0], names[-1], None
  variants = {name: file for name, file in files.items() if name not in ('unet', EMA, _RAW)}
  if 'unet' not in files and len(variants) > 1:
    raise UserError(f'{unet}: {several(variants)}')
  plain = 'unet' if 'unet' in files else next(iter(variants), _RAW)
  if EMA in files:
    return plain, EMA, chosen
  return _RAW if _RAW in files else plain, plain, chosen


def _read_params(file, params_like, chosen):
  """[params], or [params, ema_params] of a file with both."""
  root = read_weights(file)
  try:
    names, num_names = names_of(params_like)
    sets = find_sets(root, names, num_names)
    if not sets:
      raise UserError(f'no weights of this network, but {describe(root)}')
    return [params_from_state_dict(found, params_like) for found in chosen_sets(sets, chosen)]
  except UserError as error:
    raise UserError(f'{file}: {error}') from error


def names_of(params_like: Any) -> tuple[set[str], int]:
  """(the names of all tensors of our network there, old ones too; how many tensors there are)."""
  names = tensors.names_of(params_like, _make_place(params_like))
  old = {
    name.replace(f'.{new}.', f'.{old}.')
    for old, new in _NEW_ATTENTION.items()
    for name in names
    if '.attentions.' in name
  }
  return names | old, len(names)


def _step_of(path):
  """The step that the average or the folder's name, checkpoint-STEP, tells; otherwise 0."""
  if (path / EMA / UNET_CONFIG).is_file():
    told = _read_json(path / EMA / UNET_CONFIG).get('optimization_step')
    if type(told) is int and 0 <= told < _MAX_STEP:
      return told
  match = re.fullmatch(r'checkpoint-(\d{1,9})', path.resolve().name)
  return int(match[1]) if match else 0


def _folders(path):
  """(folder of the network, folder of the scheduler)."""
  path = pathlib.Path(path)
  unet = next((path / name for name in ('unet', EMA) if (path / name).is_dir()), path)
  parents = [path]
  if path.name.startswith('checkpoint-'):  # of training, which has the scheduler's beside it
    parents.append(path.parent)
  folders = [parent / 'scheduler' for parent in parents if (parent / 'scheduler').is_dir()]
  return unet, folders[0] if folders else path


def read_config(path: pathlib.Path, config: ConfigDict) -> ConfigDict:
  """A config with what a pipeline's settings say of model, diffusion and shape of the data.

  Whether our network is theirs, read_pipeline checks. A pipeline does not tell its data:
  data.source is empty.

  Args:
    path: the folder.
    config: ConfigDict of whatever the settings do not say; not changed.

  Raises:
    UserError: settings that no config has.
  """
  unet, scheduler = _folders(path)
  config = config.copy_and_resolve_references()
  theirs = _UNET_DEFAULTS | _read_json(unet / UNET_CONFIG)
  size, widths = theirs['sample_size'], theirs['block_out_channels']
  size = size[0] if isinstance(size, list) and len(set(map(str, size))) == 1 else size
  lengths = size if isinstance(size, list) and len(size) == 2 else [size]
  numbers = [*lengths, theirs['in_channels'], theirs['layers_per_block']]
  numbers += widths if isinstance(widths, list) and widths else [None]
  if not all(isinstance(n, int) and n > 0 for n in numbers):
    raise UserError(
      f'{unet / UNET_CONFIG}: sample_size={_shown(theirs["sample_size"])}, block_out_channels='
      f'{_shown(widths)}, in_channels={_shown(theirs["in_channels"])} and layers_per_block='
      f'{_shown(theirs["layers_per_block"])} are not all positive integers; give the config of the '
      'model instead'
    )
  blocks = theirs['down_block_types']
  num_rows = theirs['num_class_embeds']
  if num_rows is not None:
    has_row = theirs.get(_NO_LABEL) is True
    if type(num_rows) is not int or not has_row < num_rows <= _MAX_CLASSES:
      raise UserError(
        f'{unet / UNET_CONFIG}: num_class_embeds={_shown(num_rows)} is no number of classes'
      )
    config.model.num_classes = num_rows - has_row
    if not has_row:
      config.train.label_dropout = 0.0
  with config.ignore_type():  # a number or a tuple
    config.data.image_size = size if lengths == [size] else tuple(size)
  config.data.update(source='', channels=theirs['in_channels'])
  groups = theirs['norm_num_groups']
  if groups != NUM_GROUPS:
    if type(groups) is not int or groups < 1:
      raise UserError(f'{unet / UNET_CONFIG}: norm_num_groups={_shown(groups)} is no number')
    config.model.num_groups = groups
  config.model.update(
    ch=widths[0],
    ch_mult=tuple(width // widths[0] for width in widths),
    num_res_blocks=theirs['layers_per_block'],
    attn_resolutions=tuple(
      lengths[0] // 2**level for level, block in enumerate(blocks) if str(block).startswith('Attn')
    ),
  )
  if not (scheduler / SCHEDULER_CONFIG).is_file():
    return config
  config.sample.clip = clip_of(path)
  settings = _scheduler_of(scheduler / SCHEDULER_CONFIG)
  config.diffusion.update(
    schedule=_schedule_of(scheduler / SCHEDULER_CONFIG, settings),
    num_timesteps=settings['num_train_timesteps'],
    beta_start=float(settings['beta_start']),
    beta_end=float(settings['beta_end']),
  )
  for field, ours, setting in (
    ('mean_type', _PREDICTIONS, 'prediction_type'),
    ('var_type', _VARIANCES, 'variance_type'),
  ):
    value = _SYNONYMS.get(settings[setting], settings[setting])
    names = {theirs: name for name, theirs in ours.items()}
    if value in names:  # otherwise read_pipeline says that it differs
      config.diffusion[field] = names[value]
  return config


def _schedule_of(path, settings):
  """The name of the schedule here that has a scheduler's betas."""
  betas = _their_betas(path, settings)
  limits = dict(beta_start=settings['beta_start'], beta_end=settings['beta_end'])
  for name in schedules.SCHEDULES:
    ours = schedules.make_betas(name, len(betas), **limits)
    if np.allclose(betas, ours, rtol=_BETAS_TOLERANCE, atol=0):
      return name
  raise UserError(
    f'{path}: its trained_betas are those of no schedule known here: '
    f'{", ".join(schedules.SCHEDULES)}'
  )


def write_pipeline(path: pathlib.Path, config: ConfigDict, params: Any) -> None:
  """Writes a folder that DDPMPipeline.from_pretrained loads.

  Args:
    path: a folder, which is made.
    config: ConfigDict.
    params: the parameters to write, most often the moving average.

  Raises:
    UserError: the config has something that the library has not.
  """
  unet, scheduler = unet_settings(config), scheduler_settings(config.diffusion, config.sample.clip)
  path = pathlib.Path(path)
  index = {
    '_class_name': 'DDPMPipeline',
    '_diffusers_version': _VERSION,
    'scheduler': ['diffusers', 'DDPMScheduler'],
    'unet': ['diffusers', 'UNet2DModel'],
  }
  for name, settings in (
    ('model_index.json', index),
    (f'unet/{UNET_CONFIG}', unet),
    (f'scheduler/{SCHEDULER_CONFIG}', scheduler),
  ):
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_text(json.dumps(settings, indent=2, sort_keys=True) + '\n')
  state_dict = state_dict_from_params(params)
  if _TABLE in state_dict:
    state_dict[_TABLE] = state_dict[_TABLE][: num_class_embeds(config)]
  write_safetensors(path / 'unet' / WEIGHTS[0], state_dict)


def params_from_state_dict(state_dict: Mapping[str, np.ndarray], params_like: Any) -> Any:
  """Our parameters from a UNet2DModel's state dict, with old or new names of attention layers.

  Args, Returns and Raises as params_from_tensors.
  """
  renamed = {
    _OLD_ATTENTION.sub(lambda found: f'{found[1]}{_NEW_ATTENTION[found[2]]}.', name): tensor
    for name, tensor in state_dict.items()
  }
  if len(renamed) != len(state_dict):
    raise UserError('it has layers of attention under old and new names')
  if _TABLE in renamed and 'class_embedding' in params_like:
    rows = params_like['class_embedding']['embedding'].shape[0]
    table = np.asarray(renamed[_TABLE])
    if table.ndim == 2 and len(table) == rows - 1:  # all of them are classes
      renamed[_TABLE] = np.pad(table, ((0, 1), (0, 0)))
  return params_from_tensors(renamed, params_like, _make_place(params_like))


def state_dict_from_params(params: Any) -> dict[str, np.ndarray]:
  """A UNet2DModel's state dict, dict of arrays by name, from our parameters."""
  return tensors_from_params(params, _make_place(params))


def _make_place(params_like):
  """(path, ndim) -> (name, layout) there; the tree says how many levels there are."""
  num_levels = sum(bool(re.fullmatch(r'down_\d+_block_0', module)) for module in params_like)

  def module_name(module):
    if module in _MODULES:
      return _MODULES[module]
    side, _, rest = module.partition('_')
    if side not in ('down', 'up'):
      return module
    level, kind, *number = rest.split('_')
    level = int(level) if side == 'down' else num_levels - 1 - int(level)
    return f'{side}_blocks.{level}.{_KINDS.get(kind, f"{kind}rs")}.{number[0] if number else 0}'

  def place(path, ndim):
    module = '.'.join([module_name(path[0]), *(_LAYERS.get(layer, layer) for layer in path[1:-1])])
    is_shortcut = path[-2] == 'nin_shortcut'
    return torch_name(module, path, ndim, 'conv_1x1' if is_shortcut else 'linear')

  return place


def unet_settings(config: ConfigDict) -> dict[str, Any]:
  """The settings of UNet2DModel that make it our network.

  Raises:
    UserError: there are none.
  """
  if not config.model.resamp_with_conv:
    raise UserError('model.resamp_with_conv=False: UNet2DModel of diffusers has no such network')
  if config.model.ch_mult[0] != 1:
    raise UserError(
      f'model.ch_mult={tuple(config.model.ch_mult)}: UNet2DModel of diffusers has no such network, '
      'for its first level is as wide as its first convolution; use a multiplier of 1 there'
    )
  size = config.data.image_size
  lengths = [size] if isinstance(size, int) else list(size)
  if not isinstance(size, int) and len(lengths) != 2:
    raise UserError(
      f'data.image_size={size}: UNet2DModel of diffusers takes pictures, of height and width, alone'
    )
  height = lengths[0]
  resolutions = [height // 2**i for i in range(len(config.model.ch_mult))]
  attends = [resolution in config.model.attn_resolutions for resolution in resolutions]
  learned = config.diffusion.var_type in ('learned', 'learned_range')
  return _UNET_DEFAULTS | {
    '_class_name': 'UNet2DModel',
    '_diffusers_version': _VERSION,
    'attention_head_dim': None,
    'block_out_channels': [config.model.ch * mult for mult in config.model.ch_mult],
    'down_block_types': ['AttnDownBlock2D' if attend else 'DownBlock2D' for attend in attends],
    'downsample_padding': 0,
    'flip_sin_to_cos': False,
    'freq_shift': 1,
    'in_channels': config.data.channels,
    'layers_per_block': config.model.num_res_blocks,
    'norm_eps': 1e-6,
    'num_class_embeds': (num_rows := num_class_embeds(config)),
    **({_NO_LABEL: True} if num_rows not in (None, config.model.num_classes) else {}),
    'norm_num_groups': config.model.num_groups or NUM_GROUPS,
    'out_channels': config.data.channels * (2 if learned else 1),
    'sample_size': size if isinstance(size, int) else list(size),
    'up_block_types': ['AttnUpBlock2D' if attend else 'UpBlock2D' for attend in attends[::-1]],
  }


def num_class_embeds(config: ConfigDict) -> int | None:
  """Rows of the table of classes there: ours, whose last is of no class if that was trained."""
  count = config.model.num_classes
  return None if count is None else count + (config.train.label_dropout != 0)


def scheduler_settings(diffusion: ConfigDict, clip: str = 'static') -> dict[str, Any]:
  """The settings of DDPMScheduler for config.diffusion and config.sample.clip.

  Raises:
    UserError: there are none.
  """
  diffusion = _of_pictures(diffusion)
  for field, known in (('mean_type', _PREDICTIONS), ('var_type', _VARIANCES)):
    if diffusion[field] not in known:
      raise UserError(
        f'diffusion.{field}={diffusion[field]}: DDPMScheduler of diffusers has nothing like it, '
        f'only what is {" or ".join(known)} here'
      )
  settings = _SCHEDULER_DEFAULTS | {
    '_class_name': 'DDPMScheduler',
    '_diffusers_version': _VERSION,
    'beta_end': diffusion.beta_end,
    'beta_start': diffusion.beta_start,
    'num_train_timesteps': diffusion.num_timesteps,
    'prediction_type': _PREDICTIONS[diffusion.mean_type],
    'variance_type': _VARIANCES[diffusion.var_type],
    **_CLIPS[clip],
  }
  if diffusion.schedule in _SCHEDULES:
    return settings | {'beta_schedule': _SCHEDULES[diffusion.schedule]}
  return settings | {'trained_betas': _our_betas(diffusion).tolist()}


def _of_pictures(diffusion):
  """A config.diffusion with the schedule of pictures where it leaves that open."""
  return ConfigDict(schedules.with_defaults(diffusion.to_dict(), LEVELS))


def _our_betas(diffusion):
  return schedules.make_betas(
    diffusion.schedule,
    diffusion.num_timesteps,
    beta_start=diffusion.beta_start,
    beta_end=diffusion.beta_end,
  )


def _check_unet(path, expected):
  theirs = _UNET_DEFAULTS | _read_json(path)
  if theirs['sample_size'] in (None, [expected['sample_size']] * 2):
    theirs['sample_size'] = expected['sample_size']
  theirs['dropout'] = expected['dropout']  # of training, where model.dropout says it
  if _has_one_head(theirs['attention_head_dim'], expected):
    theirs['attention_head_dim'] = None
  theirs = {name: value for name, value in theirs.items() if name not in _EMA_SETTINGS}
  _compare(path, theirs, expected, _UNET_FIELDS)


def _has_one_head(head_dim, expected):
  """Whether a head has all channels, at each level with attention and in the middle."""
  widths, blocks = expected['block_out_channels'], expected['down_block_types']
  dims = head_dim if isinstance(head_dim, list) else [head_dim] * len(widths)
  if len(dims) != len(widths):
    return False
  last = len(widths) - 1
  return all(
    dim is None or (type(dim) is int and dim == width)
    for level, (dim, width) in enumerate(zip(dims, widths, strict=True))
    if level == last or blocks[level].startswith('Attn')
  )


def _check_scheduler(path, diffusion):
  theirs, diffusion = _scheduler_of(path), _of_pictures(diffusion)
  if theirs.get('_class_name') not in _SCHEDULERS:
    raise UserError(f'{path}: it is a {_shown(theirs.get("_class_name"))}, not a DDPMScheduler')
  expected = _SCHEDULER_DEFAULTS | {
    '_class_name': theirs['_class_name'],
    'num_train_timesteps': diffusion.num_timesteps,
    'prediction_type': _PREDICTIONS.get(diffusion.mean_type, diffusion.mean_type),
    'variance_type': _VARIANCES.get(diffusion.var_type, diffusion.var_type),
  }
  expected |= {name: theirs[name] for name in _BETA_SETTINGS}  # their result is compared below
  expected |= {name: theirs[name] for name in _FREE_SCHEDULER_SETTINGS if name in theirs}
  if theirs['_class_name'] != 'DDPMScheduler':
    theirs['variance_type'] = expected['variance_type']
  _compare(path, theirs, expected, _SCHEDULER_FIELDS)
  betas, known = _their_betas(path, theirs), _our_betas(diffusion)
  if betas.shape != known.shape or not np.allclose(betas, known, rtol=_BETAS_TOLERANCE, atol=0):
    raise UserError(
      f'{path}: its betas are not those of config.diffusion: beta_schedule, beta_start, beta_end '
      f'and trained_betas say {_shown(theirs["beta_schedule"])} from {betas[0]:.6g} to '
      f'{betas[-1]:.6g}, diffusion.schedule={diffusion.schedule} is from {known[0]:.6g} to '
      f'{known[-1]:.6g}'
    )


def _scheduler_of(path):
  """All settings of a scheduler; those of the first versions by today's names."""
  settings = _read_json(path)
  predicts_eps = settings.pop('predict_epsilon', None)
  if isinstance(predicts_eps, bool):
    settings.setdefault('prediction_type', 'epsilon' if predicts_eps else 'sample')
  if settings.get('timestep_values') is None:
    settings.pop('timestep_values', None)
  return _SCHEDULER_DEFAULTS | settings


def clip_of(path: pathlib.Path) -> str | None:
  """The sample.clip that a pipeline's scheduler says; None where it has no scheduler.

  Its threshold is at most sample_max_value and at least 1: of 1, it is the fixed one.

  Raises:
    UserError: one that we do not have.
  """
  file = _folders(path)[1] / SCHEDULER_CONFIG
  if not file.is_file():
    return None
  settings = _scheduler_of(file)
  if settings['thresholding'] is True:
    ratio, most = settings['dynamic_thresholding_ratio'], settings['sample_max_value']
    if most == 1:
      return 'static'
    names = 'dynamic_thresholding_ratio', 'sample_max_value'
    is_ours = ratio == DYNAMIC_QUANTILE and type(most) in (int, float) and most >= _NO_MAX
    known = f'{DYNAMIC_QUANTILE}, with a sample_max_value of 1 or at least {_NO_MAX:g}'
    clip = 'dynamic'
  elif settings['clip_sample'] is False:
    return 'none'
  else:
    names, clip = ('clip_sample_range',), 'static'
    is_ours, known = settings['clip_sample_range'] == 1, '1'
  if not is_ours:
    shown = ', '.join(f'{name}={_shown(settings[name])}' for name in names)
    raise UserError(f'{file}: no sample.clip is {shown}; that of sample.clip={clip} is {known}')
  return clip


def _their_betas(path, settings):
  """float64 [T]."""
  given = settings['trained_betas']
  try:
    if given is not None:
      betas = np.array(given, np.float64)
      if betas.shape == (settings['num_train_timesteps'],):
        return betas
      raise UserError(f'trained_betas of shape {betas.shape}')
    if not all(isinstance(settings[name], int | float) for name in ('beta_start', 'beta_end')):
      raise UserError('no numbers')
    names = {theirs: name for name, theirs in _SCHEDULES.items()}
    return schedules.make_betas(
      names[settings['beta_schedule']],
      settings['num_train_timesteps'],
      beta_start=settings['beta_start'],
      beta_end=settings['beta_end'],
    )
  except (LookupError, TypeError, ValueError) as error:
    raise UserError(
      f'{path}: no schedule known here: beta_schedule={_shown(settings["beta_schedule"])}, '
      f'beta_start={_shown(settings["beta_start"])}, beta_end={_shown(settings["beta_end"])}, '
      f'trained_betas={_shown(given)}; beta_schedule can be {" or ".join(_SCHEDULES.values())}'
    ) from error


def _compare(path, theirs, expected, fields):
  """Raises a UserError that names the settings which differ; fields choose some in our config."""
  differences = []
  for name in sorted(theirs):
    if name.startswith('_') and name != '_class_name':
      continue
    value = theirs[name]
    value = _SYNONYMS.get(value, value) if isinstance(value, str) else value
    if name not in expected:
      name = ' '.join(name.split())[:_MAX_SHOWN]
      differences.append(f'{name}={_shown(value)}, a setting not known here')
    elif value != expected[name]:
      can_be = f'config: {fields[name]}' if name in fields else 'the only one here'
      differences.append(f'{name}={_shown(value)}, not {_shown(expected[name])} ({can_be})')
  if differences:
    more = f'; and {len(differences) - _MAX_LISTED} more' if len(differences) > _MAX_LISTED else ''
    listed = '; '.join(differences[:_MAX_LISTED])
    raise UserError(f'{path}: settings of another model: {listed}{more}')


def _shown(value):
  text = json.dumps(value)
  return text if len(text) <= _MAX_SHOWN else f'{text[:_MAX_SHOWN]}...'


def _read_json(path):
  """The object of a JSON file of small size."""
  if not path.is_file():
    raise UserError(f'{path}: no such file')
  if path.stat().st_size > _MAX_JSON_BYTES:
    raise UserError(f'{path}: settings of more than {_MAX_JSON_BYTES} bytes')
  try:
    settings = json.loads(path.read_bytes())
  except (ValueError, RecursionError) as error:
    raise UserError(f'{path}: not JSON: it is damaged') from error
  if not isinstance(settings, dict):
    raise UserError(f'{path}: not an object of settings')
  return settings
