"""Pipelines of diffusers, against one that the library wrote and what it computed with it."""

import functools
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

from ddpm_jax.config import build
from ddpm_jax.errors import UserError
from ddpm_jax.interop import diffusers
from ddpm_jax.interop.safetensors_file import read_safetensors, write_safetensors
from ddpm_jax.sampling import CLIPS
from tests.conftest import REFERENCE, load_reference
from tests.fuzz import SLOW_FACTOR, count_refusals, mutations
from tests.interop.test_weight_files import write_shards
from tests.torch_writer import write_torch_legacy, write_torch_zip

SAFETENSORS, BIN = diffusers.WEIGHTS
OLD_NAMES = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}


@pytest.fixture
def read(pipeline, pipeline_config, pipeline_like):
  """Returns () -> the pipeline's parameters."""
  return lambda: diffusers.read_pipeline(pipeline, pipeline_config, pipeline_like)


def same_trees(actual, expected):
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), actual, expected)


def change_json(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def with_old_names(state_dict):
  for new, old in OLD_NAMES.items():
    state_dict = {name.replace(f'.{new}.', f'.{old}.'): x for name, x in state_dict.items()}
  return state_dict


def flatten(pipeline):
  """Puts all files beside model_index.json, as the first pipelines had them."""
  for folder in ('unet', 'scheduler'):
    for path in (pipeline / folder).iterdir():
      path.rename(pipeline / path.name)
    (pipeline / folder).rmdir()


def test_network_computes_what_the_library_does(read, pipeline_config, relative_error):
  with np.load(REFERENCE / 'diffusers' / 'diffusers.npz') as arrays:
    x, t, expected = arrays['x'], arrays['t'], arrays['output']
  output = build.model(pipeline_config).apply({'params': read()}, x, t)
  assert relative_error(output, expected) < 2e-6


def test_settings_are_those_the_library_wrote(pipeline, pipeline_config):
  unet = json.loads((pipeline / 'unet' / 'config.json').read_text())
  assert diffusers.unet_settings(pipeline_config) == unet
  scheduler = json.loads((pipeline / 'scheduler' / 'scheduler_config.json').read_text())
  settings = diffusers.scheduler_settings(pipeline_config.diffusion)
  assert {name: scheduler[name] for name in settings} == settings


def test_export_of_import_is_the_same_file(pipeline, read, pipeline_config, tmp_path):
  diffusers.write_pipeline(tmp_path / 'written', pipeline_config, read())
  state_dict = read_safetensors(pipeline / 'unet' / SAFETENSORS)
  written = read_safetensors(tmp_path / 'written' / 'unet' / SAFETENSORS)
  assert sorted(written) == sorted(state_dict)
  for name, array in state_dict.items():
    np.testing.assert_array_equal(written[name], array, strict=True)
  for name in ('model_index.json', 'unet/config.json'):
    assert json.loads((tmp_path / 'written' / name).read_text()) == json.loads(
      (pipeline / name).read_text()
    )


@pytest.mark.parametrize(
  ('size', 'num_groups', 'shown'), [(16, None, 16), ((16, 32), 8, [16, 32]), ((16, 16), None, None)]
)
def test_import_of_export_is_the_same_tree(pipeline_config, size, num_groups, shown, tmp_path):
  config = pipeline_config.copy_and_resolve_references()
  config.model.update(ch_mult=(1, 1, 2), num_res_blocks=2, attn_resolutions=(16, 4))
  config.model.num_groups = num_groups
  with config.ignore_type():  # a copy has lost that of a field that takes several
    config.data.image_size = size
  like = jax.eval_shape(lambda: build.init_params(config))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), like)
  diffusers.write_pipeline(tmp_path / 'written', config, params)
  same_trees(diffusers.read_pipeline(tmp_path / 'written', config, like), params)
  settings = json.loads((tmp_path / 'written/unet/config.json').read_text())
  assert settings['sample_size'] == (shown or [16, 16])
  assert settings['norm_num_groups'] == (num_groups or 32)
  told = diffusers.read_config(tmp_path / 'written', pipeline_config)
  assert told.data.image_size == (size if shown else 16)
  for field in ('ch_mult', 'num_res_blocks', 'attn_resolutions', 'num_groups'):
    assert told.model[field] == config.model[field]


@pytest.mark.parametrize('form', ['old names', 'flat', 'unet alone', 'zip', 'legacy'])
def test_other_forms_give_the_same(pipeline, read, pipeline_config, pipeline_like, form):
  expected = read()
  weights = pipeline / 'unet' / SAFETENSORS
  state_dict = read_safetensors(weights)
  match form:
    case 'old names':
      write_safetensors(weights, with_old_names(state_dict))
    case 'flat':
      flatten(pipeline)
    case 'unet alone':
      pipeline = pipeline / 'unet'
    case 'zip' | 'legacy':
      write = write_torch_zip if form == 'zip' else write_torch_legacy
      weights.unlink()
      write(pipeline / 'unet' / BIN, with_old_names(state_dict))
  assert diffusers.find_pipeline(pipeline)
  same_trees(diffusers.read_pipeline(pipeline, pipeline_config, pipeline_like), expected)


@pytest.mark.parametrize(
  'overrides',
  [
    {'schedule': 'quad', 'beta_start': 0.001},
    {'schedule': 'cosine', 'num_timesteps': 100},
    {'schedule': 'warmup10'},
    {'schedule': 'const'},
    {'mean_type': 'xstart', 'var_type': 'fixedsmall'},
    {'mean_type': 'v'},
  ],
)
def test_schedules_and_types_round_trip(pipeline, read, pipeline_config, overrides, tmp_path):
  config = pipeline_config.copy_and_resolve_references()
  config.diffusion.update(**overrides)
  params = read()
  diffusers.write_pipeline(tmp_path / 'written', config, params)
  same_trees(diffusers.read_pipeline(tmp_path / 'written', config, params), params)
  with pytest.raises(UserError, match=r'scheduler_config\.json: '):
    diffusers.read_pipeline(tmp_path / 'written', pipeline_config, params)


@pytest.mark.parametrize(
  ('mean_type', 'prediction_type'),
  [('eps', 'epsilon'), ('xstart', 'sample'), ('v', 'v_prediction')],
)
def test_predictions_go_by_the_librarys_names(
  pipeline, read, pipeline_config, mean_type, prediction_type, tmp_path
):
  config = pipeline_config.copy_and_resolve_references()
  config.diffusion.mean_type = mean_type
  params = read()
  diffusers.write_pipeline(tmp_path / 'written', config, params)
  settings = json.loads((tmp_path / 'written/scheduler/scheduler_config.json').read_text())
  assert settings['prediction_type'] == prediction_type
  change_json(pipeline / 'scheduler' / 'scheduler_config.json', prediction_type=prediction_type)
  same_trees(diffusers.read_pipeline(pipeline, config, params), params)
  for other in {'eps', 'xstart', 'v', 'xprev'} - {mean_type}:
    config.diffusion.mean_type = other
    message = rf'prediction_type="{prediction_type}", not ".*" \(config: diffusion\.mean_type\)'
    with pytest.raises(UserError, match=message):
      diffusers.read_pipeline(pipeline, config, params)


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    ({'model.resamp_with_conv': False}, r'model\.resamp_with_conv=False'),
    ({'data.image_size': (16,)}, r'data\.image_size=\(16,\): UNet2DModel .* takes pictures'),
    ({'model.ch_mult': (2, 2)}, r'model\.ch_mult=\(2, 2\): .*use a multiplier of 1 there'),
    (
      {'diffusion.mean_type': 'xprev'},
      r'diffusion\.mean_type=xprev: .*eps or xstart or v here',
    ),
    ({'diffusion.var_type': 'learned'}, r'diffusion\.var_type=learned: .*fixedlarge or fixedsm'),
  ],
)
def test_what_the_library_lacks_is_not_exported(pipeline_config, overrides, message, tmp_path):
  config = pipeline_config.copy_and_resolve_references()
  with config.ignore_type():
    config.update_from_flattened_dict(overrides)
  with pytest.raises(UserError, match=message):
    diffusers.write_pipeline(tmp_path / 'written', config, {})
  assert not (tmp_path / 'written').exists()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'freq_shift': 0}, r'freq_shift=0, not 1 \(the only one here\)$'),
    ({'flip_sin_to_cos': True}, 'flip_sin_to_cos=true, not false'),
    ({'attention_head_dim': 8}, 'attention_head_dim=8, not null'),
    ({'attention_head_dim': 32}, 'attention_head_dim=32, not null'),
    ({'attention_head_dim': True}, 'attention_head_dim=true, not null'),
    ({'attention_head_dim': [8, 8]}, r'attention_head_dim=\[8, 8\], not null'),
    ({'attention_head_dim': [64]}, r'attention_head_dim=\[64\], not null'),
    ({'downsample_padding': 1, 'norm_eps': 1e-5}, 'downsample_padding=1, .*; norm_eps=1e-05, not'),
    ({'class_embed_type': 'timestep'}, 'class_embed_type="timestep", not null'),
    ({'resnet_time_scale_shift': 'scale_shift'}, 'resnet_time_scale_shift='),
    ({'_class_name': 'UNet2DConditionModel'}, '_class_name="UNet2DConditionModel", not'),
    ({'a\nb' * 1000: 1}, 'a ba b[ab ]*=1, a setting not known here'),
    ({'cross_attention_dim': 768}, 'cross_attention_dim=768, a setting not known here'),
    ({'down_block_types': ['SkipDownBlock2D', 'DownBlock2D']}, r'config: model\.attn_resolutions'),
    ({'block_out_channels': [64, 64]}, r'=\[64, 64\], not \[32, 64\] \(config: model\.ch and'),
    ({'layers_per_block': 2}, r'layers_per_block=2, not 1 \(config: model\.num_res_blocks\)'),
    ({'sample_size': 32}, r'sample_size=32, not 16 \(config: data\.image_size\)'),
  ],
)
def test_other_networks_are_refused_by_the_settings_name(pipeline, read, changes, message):
  change_json(pipeline / 'unet' / 'config.json', **changes)
  with pytest.raises(UserError, match=rf'unet/config\.json: settings of another.*{message}'):
    read()


@pytest.mark.parametrize('head_dim', [None, 64, [None, None], [8, 64], [32, 64]])
def test_one_head_may_be_told_by_its_channels(pipeline, read, head_dim):
  expected = read()
  change_json(pipeline / 'unet' / 'config.json', attention_head_dim=head_dim)
  same_trees(read(), expected)


EMA_SETTINGS = {
  'decay': 0.9999, 'inv_gamma': 1.0, 'min_decay': 0.0, 'optimization_step': 1234, 'power': 0.75,
  'update_after_step': 0, 'use_ema_warmup': True,
}  # fmt: skip


@pytest.fixture
def checkpoint(pipeline):
  """The pipeline as diffusers' training program leaves a checkpoint, the average being twice."""
  folder = pipeline / 'checkpoint-1000'
  folder.mkdir()
  (pipeline / 'unet').rename(folder / 'unet')
  shutil.copytree(folder / 'unet', folder / 'unet_ema')
  state_dict = read_safetensors(folder / 'unet' / SAFETENSORS)
  doubled = {name: 2 * tensor for name, tensor in state_dict.items()}
  write_safetensors(folder / 'unet_ema' / SAFETENSORS, doubled)
  change_json(folder / 'unet_ema' / 'config.json', **EMA_SETTINGS)
  for name in ('optimizer.bin', 'scheduler.bin', 'random_states_0.pkl'):
    (folder / name).write_bytes(b'')
  return folder


def test_checkpoints_of_training_have_weights_average_and_step(
  checkpoint, pipeline_config, pipeline_like
):
  read = functools.partial(diffusers.read_models, checkpoint, pipeline_config, pipeline_like)
  params, ema_params, step = read()
  assert step == 1234
  same_trees(jax.tree.map(lambda x: 2 * x, params), ema_params)
  for chosen, expected in (
    ('unet', (params, params)),
    ('unet_ema', (ema_params, ema_params)),
    ('unet_ema,unet', (ema_params, params)),
  ):
    same_trees(read(chosen)[:2], expected)
  # The scheduler of the whole training lies beside the checkpoints.
  change_json(checkpoint.parent / 'scheduler/scheduler_config.json', num_train_timesteps=100)
  with pytest.raises(UserError, match='num_train_timesteps=100, not 1000'):
    read()
  shutil.rmtree(checkpoint.parent / 'scheduler')
  change_json(checkpoint / 'unet_ema' / 'config.json', norm_eps=1e-5)
  with pytest.raises(UserError, match=r'unet_ema/config\.json: .* norm_eps=1e-05, not 1e-06'):
    read()
  change_json(checkpoint / 'unet_ema' / 'config.json', norm_eps=1e-6, optimization_step='x')
  assert read()[2] == 1000  # of the folder's name
  shutil.rmtree(checkpoint / 'unet')
  same_trees(read()[:2], (ema_params, ema_params))
  assert diffusers.find_pipeline(checkpoint)


def test_variants_are_weights_and_average_or_are_chosen(pipeline, pipeline_config, pipeline_like):
  read = functools.partial(diffusers.read_models, pipeline, pipeline_config, pipeline_like)
  plain = pipeline / 'unet' / SAFETENSORS
  (params, _, step), state_dict = read(), read_safetensors(plain)
  assert step == 0
  doubled = {name: 2 * tensor for name, tensor in state_dict.items()}
  write_safetensors(plain.with_name('diffusion_pytorch_model.non_ema.safetensors'), doubled)
  raw, ema_params, _ = read()
  same_trees((ema_params, jax.tree.map(lambda x: 2 * x, params)), (params, raw))
  half = {name: tensor.astype(np.float16) for name, tensor in state_dict.items()}
  write_safetensors(plain.with_name('diffusion_pytorch_model.fp16.safetensors'), half)
  same_trees(read()[:2], (raw, params))
  narrow = jax.tree.map(lambda x: np.asarray(x, np.float16).astype(np.float32), params)
  same_trees(read('fp16')[:2], (narrow, narrow))
  plain.unlink()
  same_trees(read()[:2], (raw, narrow))
  write_safetensors(plain.with_name('diffusion_pytorch_model.bf16.safetensors'), half)
  message = r'unet: it has 2 sets of weights: bf16, fp16; choose one by --config\.import\.weights'
  with pytest.raises(UserError, match=message):
    read()
  same_trees(read('non_ema,fp16')[:2], (raw, narrow))
  with pytest.raises(UserError, match=r'import\.weights is fp8, and the sets .* are bf16, fp16, n'):
    read('fp8')


@pytest.mark.parametrize('form', ['safetensors', 'bin'])
def test_shards_give_the_same(pipeline, read, form):
  expected = read()
  weights = pipeline / 'unet' / SAFETENSORS
  write_shards(pipeline / 'unet', read_safetensors(weights), form, 3)
  weights.unlink()
  same_trees(read(), expected)


@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.', 'model.', 'ema.'])
def test_prefixes_of_wrappers_are_known(pipeline, pipeline_config, pipeline_like, prefix):
  read = functools.partial(diffusers.read_models, pipeline, pipeline_config, pipeline_like)
  expected = read()[0]
  weights = pipeline / 'unet' / SAFETENSORS
  state_dict = with_old_names(read_safetensors(weights))
  prefixed = {f'{prefix}{name}': tensor for name, tensor in state_dict.items()}
  write_safetensors(weights, prefixed)
  same_trees(read()[0], expected)
  weights.unlink()
  other = {name: 2 * tensor for name, tensor in state_dict.items()}
  write_torch_zip(weights.with_suffix('.bin'), {'net': prefixed, 'average': other, 'step': 3})
  message = rf'\.bin: it has 2 sets of weights: net\.{prefix[:-1]}, average; choose one by'
  with pytest.raises(UserError, match=message):
    read()
  params, ema_params, _ = read('net,average')
  same_trees((params, jax.tree.map(lambda x: 2 * x, params)), (expected, ema_params))


def test_settings_left_out_are_the_librarys_defaults(pipeline, read):
  path = pipeline / 'unet' / 'config.json'
  settings = json.loads(path.read_text())
  for name in ('act_fn', 'mid_block_scale_factor', 'add_attention', 'dropout', 'sample_size'):
    del settings[name]
  path.write_text(json.dumps(settings))
  read()
  for name in ('attention_head_dim', 'freq_shift', 'norm_eps', 'flip_sin_to_cos'):
    path.write_text(json.dumps({key: x for key, x in settings.items() if key != name}))
    with pytest.raises(UserError, match=f'{name}='):
      read()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'beta_end': 0.01}, r'its betas are not those of config\.diffusion'),
    ({'beta_schedule': 'sigmoid'}, 'no schedule known here: beta_schedule="sigmoid"'),
    ({'beta_start': [1, 2]}, 'no schedule known here'),
    ({'trained_betas': [0.1, 0.2]}, 'no schedule known here'),
    ({'num_train_timesteps': 100}, r'=100, not 1000 \(config: diffusion\.num_timesteps\)'),
    ({'variance_type': 'fixed_small'}, r'"fixed_large" \(config: diffusion\.var_type\)'),
    ({'prediction_type': 'v_prediction'}, r'"epsilon" \(config: diffusion\.mean_type\)'),
    ({'rescale_betas_zero_snr': True}, 'rescale_betas_zero_snr=true, not false'),
    ({'timestep_values': [1, 2]}, 'timestep_values=.1, 2., a setting not known here'),
    ({'_class_name': 'EulerDiscreteScheduler'}, 'it is a "EulerDiscreteScheduler", not'),
  ],
)
def test_other_schedulers_are_refused_by_the_settings_name(pipeline, read, changes, message):
  change_json(pipeline / 'scheduler' / 'scheduler_config.json', **changes)
  with pytest.raises(UserError, match=rf'scheduler_config\.json: .*{message}'):
    read()


@pytest.mark.parametrize(
  ('changes', 'clip'),
  [
    ({}, 'static'),
    ({'clip_sample': False}, 'none'),
    ({'clip_sample': False, 'thresholding': True, 'sample_max_value': 1e6}, 'dynamic'),
    ({'thresholding': True, 'sample_max_value': 1e9}, 'dynamic'),
    ({'thresholding': True}, 'static'),  # at most 1, and at least 1
    ({'thresholding': True, 'sample_max_value': 1.5}, r'sample_max_value=1\.5; that of .*dynamic'),
    (
      {'thresholding': True, 'sample_max_value': 1e6, 'dynamic_thresholding_ratio': 0.9},
      r'dynamic_thresholding_ratio=0\.9, sample_max_value=1000000\.0; that of',
    ),
    ({'clip_sample_range': 2.0}, r'clip_sample_range=2\.0; that of sample\.clip=static is 1'),
  ],
)
def test_clipping_of_a_scheduler_is_ours_or_named_and_refuses_no_model(
  pipeline, read, changes, clip
):
  change_json(pipeline / 'scheduler' / 'scheduler_config.json', **changes)
  read()
  if clip in diffusers._CLIPS:
    assert diffusers.clip_of(pipeline) == clip
  else:
    with pytest.raises(UserError, match=rf'scheduler_config\.json: no sample\.clip is .*{clip}'):
      diffusers.clip_of(pipeline)


@pytest.mark.parametrize('clip', CLIPS)
def test_clipping_is_exported_and_comes_back(clip, pipeline_config, tmp_path):
  config = pipeline_config.copy_and_resolve_references()
  config.sample.clip = clip
  diffusers.write_pipeline(tmp_path, config, {'conv_in': {}})
  settings = json.loads((tmp_path / 'scheduler/scheduler_config.json').read_text())
  assert settings['clip_sample'] == (clip == 'static')
  assert settings['thresholding'] == (clip == 'dynamic')
  assert diffusers.clip_of(tmp_path) == clip
  assert diffusers.read_config(tmp_path, pipeline_config).sample.clip == clip


def test_settings_of_the_first_versions_go_by_todays_names(pipeline, read):
  path = pipeline / 'scheduler' / 'scheduler_config.json'
  settings = json.loads(path.read_text())
  del settings['prediction_type']
  first = {'predict_epsilon': True, 'tensor_format': 'pt', 'timestep_values': None}
  path.write_text(json.dumps(settings | first))
  read()
  path.write_text(json.dumps(settings | first | {'predict_epsilon': False}))
  with pytest.raises(UserError, match='prediction_type="sample", not "epsilon"'):
    read()


def test_ddim_pipelines_have_no_variance(pipeline, read):
  path = pipeline / 'scheduler' / 'scheduler_config.json'
  settings = json.loads(path.read_text()) | {'_class_name': 'DDIMScheduler'}
  del settings['variance_type']
  path.write_text(json.dumps(settings | {'set_alpha_to_one': True}))
  read()


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda d: d.pop('conv_in.weight'), r'1 missing: conv_in\.weight \(32, 3, 3, 3\)$'),
    (lambda d: d.update(more=np.zeros((2, 3))), r'1 unknown: more \(2, 3\)$'),
    (lambda d: d.update({'a\nb': np.zeros(2)}), r'1 unknown: a b \(2,\)$'),
    (lambda d: d.update({'a' * 1000: np.zeros(2)}), r'1 unknown: a{200}$'),
    (
      lambda d: d.update({'conv_out.weight': np.zeros((6, 32, 3, 3))}),
      r'conv_out\.weight \(6, 32, 3, 3\), wanted \(3, 32, 3, 3\)$',
    ),
    (
      lambda d: d.update({'mid_block.attentions.0.query.bias': np.zeros(64)}),
      'under old and new names',
    ),
    (lambda d: d.update({'conv_in.bias': np.full(32, np.inf)}), r'conv_in\.bias has other than'),
  ],
)
def test_other_tensors_are_refused(pipeline, read, change, message):
  path = pipeline / 'unet' / SAFETENSORS
  state_dict = read_safetensors(path)
  change(state_dict)
  write_safetensors(path, state_dict)
  with pytest.raises(UserError, match=rf'{SAFETENSORS}: .*{message}'):
    read()


def test_half_precision_is_widened(pipeline, read):
  path = pipeline / 'unet' / SAFETENSORS
  state_dict = read_safetensors(path)
  for dtype in (np.float16, ml_dtypes.bfloat16, np.float64):
    write_safetensors(path, {name: array.astype(dtype) for name, array in state_dict.items()})
    kernel = read()['temb_dense0']['kernel']
    assert kernel.dtype == np.float32
    expected = state_dict['time_embedding.linear_1.weight'].T.astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(kernel, expected)


def test_missing_and_broken_files(pipeline, read):
  settings = pipeline / 'unet' / 'config.json'
  whole = settings.read_text()
  for text, message in (
    ('{', 'not JSON'),
    ('[' * 100_000, 'not JSON'),
    ('[]', 'not an object'),
    (' ' * (1 << 20) + '{}', 'more than'),
    ('\udcff', 'not JSON'),
  ):
    settings.write_text(text, errors='surrogateescape')
    with pytest.raises(UserError, match=rf'unet/config\.json: .*{message}'):
      read()
  settings.write_text(whole)
  (pipeline / 'unet' / SAFETENSORS).unlink()
  with pytest.raises(UserError, match=r'unet: it has none of diffusion_pytorch_model'):
    read()
  shutil.rmtree(pipeline / 'unet')
  assert not diffusers.find_pipeline(pipeline)


@pytest.mark.parametrize('name', [SAFETENSORS, 'diffusion_pytorch_model.bin'])
def test_pointers_of_git_lfs_are_known(pipeline, read, name):
  (pipeline / 'unet' / SAFETENSORS).rename(pipeline / 'unet' / name)
  text = 'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 143041660\n'
  (pipeline / 'unet' / name).write_text(text)
  with pytest.raises(UserError, match=rf'{name}: not the weights, but a pointer.*git lfs pull'):
    read()


WEIRD = (None, True, -1, 0, 1e400, -1e400, float('nan'), 10**30, '', 'x', [], [[]], {}, {'a': 1})
LISTS = ([None, None], [1e400] * 2, [1, 'x'], [[1], [2, 3]], [0.1] * 1000)


@pytest.mark.parametrize('name', ['unet/config.json', 'scheduler/scheduler_config.json'])
def test_any_setting_of_any_kind_is_refused_or_does_not_matter(pipeline, read, name):
  path = pipeline / name
  settings = json.loads(path.read_text())
  (pipeline / 'unet' / SAFETENSORS).unlink()  # past the settings, this is what is answered
  inputs = [settings | {key: value} for key in settings for value in (*WEIRD, *LISTS)]

  def read_changed(changed):
    path.write_text(json.dumps(changed))
    read()

  assert count_refusals(read_changed, None, inputs) == len(inputs)


@pytest.mark.parametrize('factor', [1, pytest.param(SLOW_FACTOR, marks=pytest.mark.slow)])
def test_mutated_settings_are_refused_or_do_not_matter(pipeline, pipeline_config, tmp_path, factor):
  # A tree of one leaf reads quickly.
  like = {'conv_in': {'bias': jax.ShapeDtypeStruct((2,), np.float32)}}
  write_safetensors(pipeline / 'unet' / SAFETENSORS, {'conv_in.bias': np.ones(2, np.float32)})
  for name in ('unet/config.json', 'scheduler/scheduler_config.json'):
    path = pipeline / name
    whole = path.read_bytes()

    def read(content, path=path):
      path.write_bytes(content)
      return diffusers.read_pipeline(pipeline, pipeline_config, like)

    def judge(params):
      np.testing.assert_array_equal(params['conv_in']['bias'], [1, 1])

    assert count_refusals(read, judge, mutations(whole, 300 * factor)) > 150 * factor
    path.write_bytes(whole)


def test_names_of_all_layers_are_known(abstract_params):
  # No name of ours comes through unchanged but those that are the same there.
  params = abstract_params('shapes_celebahq256_lsun256_unet2d16b2c112244.json')
  place = diffusers._make_place(params)
  shapes = load_reference('shapes_celebahq256_lsun256_unet2d16b2c112244.json')
  names = {
    place(tuple(key.key for key in path), leaf.ndim)[0]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  assert len(names) == shapes['num_variables']
  allowed = ('conv_in', 'conv_out', 'conv_norm_out', 'time_embedding', 'mid_block')
  sides = ('down_blocks', 'up_blocks')
  assert {name.split('.')[0] for name in names} == {*allowed, *sides}
  assert 'up_blocks.1.attentions.2.to_out.0.weight' in names  # level 4 of 6
  assert 'up_blocks.0.upsamplers.0.conv.bias' in names
  assert 'down_blocks.4.downsamplers.0.conv.bias' in names
