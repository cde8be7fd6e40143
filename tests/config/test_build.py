"""What is built from a config: steps, keys, data on the devices, identities and their names."""

import contextlib

import jax
import numpy as np
import PIL.Image
import pytest

from ddpm_jax import devices
from ddpm_jax.config import build
from ddpm_jax.config.checks import check
from ddpm_jax.config.origins import with_data
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import features
from ddpm_jax.modes.reproduce import reproduce
from ddpm_jax.sampling import SAMPLERS
from ddpm_jax.storage.logs import Terminal
from ddpm_jax.storage.workdir import config_dict
from tests.tiny import tiny_config


@pytest.mark.parametrize('name', ['inception', 'efficientnet_lite0'])
def test_grey_images_are_repeated_which_is_noted(tmp_path, monkeypatch, name):
  asked = []

  def network(*weights, is_grey, **given):
    asked.append(is_grey)
    return features.digits_network()

  monkeypatch.setattr(features, f'{name.removesuffix("_lite0")}_network', network)
  fields = {'eval.network': name, 'eval.cache_dir': str(tmp_path)}
  for channels in (1, 3):
    scorer = build.scorer(tiny_config(**fields, **{'data.channels': channels}), ('fid',))
    assert scorer.opened.notes == (features.GREY_NOTE,) * (channels == 1)
  assert asked == [True, False]


@pytest.mark.parametrize('name', ['inception', 'efficientnet_lite0'])
def test_pictures_of_other_channels_have_no_such_features(name):
  fields = {'data.source': 'array:four.npy', 'data.channels': 4, 'eval.network': name}
  config = tiny_config(**fields)
  with pytest.raises(UserError, match='grey or colour, and these data are 8 x 8 x 4, levels 256'):
    build.feature_network(config)
  assert build.scorer_if_any(config, ('fid',)) is None  # and figures leave them out


def test_an_accelerator_takes_as_many_steps_as_all_intervals_allow(monkeypatch):
  config = tiny_config(**{'train.log_every_steps': 100, 'train.checkpoint_every_steps': 250})
  assert build.steps_per_dispatch(config) == 1
  monkeypatch.setattr(devices, 'on_cpu', lambda: False)
  assert build.steps_per_dispatch(config) == 10
  config.train.update(log_every_steps=100, checkpoint_every_steps=1000)
  assert build.steps_per_dispatch(config) == 20


def test_a_cpu_takes_single_steps_whatever_is_asked_for(monkeypatch):
  config = tiny_config(**{'train.log_every_steps': 8, 'train.checkpoint_every_steps': 12})
  config.train.steps_per_dispatch = 4
  assert build.steps_per_dispatch(config) == build.plan(config).steps_per_dispatch == 1
  monkeypatch.setattr(devices, 'on_cpu', lambda: False)
  assert build.steps_per_dispatch(config) == build.plan(config).steps_per_dispatch == 4


def test_accelerators_hold_the_data_that_fit(monkeypatch):
  config = tiny_config()
  batches = build.batches(config, build.source(config))
  assert build.device_data(config, batches) is None  # a CPU does not even ask for them
  monkeypatch.setattr(devices, 'on_cpu', lambda: False)
  np.testing.assert_array_equal(build.device_data(config, batches), batches.images)
  config.data.device_limit_gib = 1e-6
  assert build.device_data(config, batches) is None


def test_a_split_that_is_not_there_is_told_by_the_field_that_names_it():
  config = tiny_config(**{'reproduce.split': 'foo', 'eval.bpd_splits': ('bar',)})
  run = build.figures_run(config, None, None, coding=None, x_0_variances=None)
  for read, words in (
    (run.open_split, "reproduce.split='foo'"),
    (run.open_bpd_splits, "eval.bpd_splits='bar'"),
    (lambda: build.source(tiny_config(**{'data.split': 'foo'})), "data.split='foo'"),
  ):
    with pytest.raises(UserError, match=f'^{words}: digits has the splits'):
      read()


def test_nothing_to_measure_or_to_reproduce_is_refused(tmp_path):
  with pytest.raises(UserError, match=r'^eval\.bpd_splits is empty; name some'):
    build.evaluator(tiny_config(**{'eval.metrics': ('bpd',), 'eval.bpd_splits': ('',)}))
  with pytest.raises(UserError, match=r'^reproduce\.what is empty; name some of table1, table2'):
    reproduce(tiny_config(**{'reproduce.what': ()}), tmp_path)


def test_learned_variance_doubles_the_output():
  config = tiny_config(**{'diffusion.loss_type': 'kl', 'diffusion.var_type': 'learned'})
  check(config)
  params = jax.eval_shape(lambda: build.init_params(config))
  assert params['conv_out']['kernel'].shape[-1] == 2


def test_streams_and_seeds_have_keys_of_their_own():
  keys = [build.key(seed, stream) for seed in (0, 1) for stream in build.STREAMS]
  assert len({jax.random.key_data(key).tobytes() for key in map(jax.device_get, keys)}) == len(keys)


def test_several_names_may_come_as_one_string():
  assert build.names(('bpd', 'fid')) == build.names(('bpd,fid',)) == ['bpd', 'fid']
  assert build.names(()) == []


def test_a_report_says_which_sampler():
  def words(**fields):
    return build.sampler_words(tiny_config(**{f'sample.{k}': v for k, v in fields.items()}))

  assert words() == 'ancestral, 10 steps, fixedlarge'
  assert words(num_steps=4) == 'ancestral, 4 of 10 steps (trailing), fixedlarge'
  assert words(sampler='ddim', num_steps=5) == 'ddim, 5 of 10 steps (trailing), eta 0.0'
  assert words(sampler='ddim', eta=1.0) == 'ddim, 10 steps, eta 1.0'
  assert words(sampler='heun', num_steps=5) == 'heun, 5 of 10 steps (karras), 9 evaluations'
  assert words(sampler='heun', spacing='quad', num_steps=2).startswith('heun, 2 of 10 steps (quad)')
  assert words(sampler='unipc_2', num_steps=2, spacing='quad', clip='none') == (
    'unipc_2, 2 of 10 steps (quad), clip none'
  )
  assert words(num_steps=4, timestep_parts=8, variance='fixedsmall') == (
    'ancestral, 4 of 10 steps (trailing), fixedsmall, times rounded to 1/8'
  )
  assert words(sampler='dpmpp_2m', stops_early=True, timesteps=(2.0, 5.0, 9.0)) == (
    'dpmpp_2m, 3 of 10 steps (given), to the least noise'
  )


def test_timesteps_are_those_that_are_given_or_lead_to_the_end():
  def timesteps(**fields):
    return build.timesteps(tiny_config(**{f'sample.{k}': v for k, v in fields.items()})).tolist()

  assert timesteps(timesteps=(1.0, 4.0, 9.0)) == [1, 4, 9]
  assert timesteps(timesteps=(1.0, 4.25, 9.0), timestep_parts=4) == [4, 17, 36]
  assert timesteps(sampler='ddim', num_steps=3, spacing='linspace') == [0, 4, 9]
  early = {'sampler': 'ddim', 'num_steps': 3, 'stops_early': True}
  assert timesteps(**early, spacing='linspace') == [3, 6, 9]
  assert timesteps(**early) == [2, 6, 9]
  assert timesteps(sampler='ddim', num_steps=10, timestep_parts=4) == list(range(10))


def test_few_steps_are_the_default_of_all_samplers_but_ancestral():
  def count(name):
    config = tiny_config(**{'diffusion.num_timesteps': 1000, 'sample.sampler': name})
    return len(build.timesteps(config))

  assert {name: count(name) for name in SAMPLERS} == {
    **dict.fromkeys(SAMPLERS, 20),
    'ancestral': 1000,
    'bespoke': 10,
  }


def test_identities_tell_samplers_apart_and_leave_the_whole_chain_as_it_is():
  choices = [
    {'num_steps': 5},
    {'num_steps': 5, 'spacing': 'quad'},
    {'clip': 'dynamic'},
    {'sampler': 'ddim'},
    {'sampler': 'ddim', 'eta': 1.0},
    {'sampler': 'dpmpp_2m'},
    {'seed': 1},
    {'num_steps': 5, 'timestep_parts': 8},
    {'sampler': 'ddim', 'stops_early': True},
    {'variance': 'fixedsmall'},
    {'timesteps': (0.0, 4.0, 9.0)},
  ]

  def identity(**fields):
    return build.samples_identity(tiny_config(**{f'sample.{k}': v for k, v in fields.items()}))

  whole = identity()
  assert whole == identity(num_steps=10) == identity(num_steps=10, spacing='quad')
  identities = [whole, *(identity(**fields) for fields in choices)]
  assert len({one.key() for one in identities}) == len(identities)
  assert all(identities.index(one) == i for i, one in enumerate(identities))
  assert identity(sampler='ddim', eta=0.0) == identity(sampler='ddim')


def test_bytes_that_became_other_numbers_are_held_against_their_levels(tmp_path):
  file = tmp_path / 'x.npy'
  fields = {'data.source': f'array:{file}', 'data.image_size': (4, 4), 'data.channels': 1}
  config = tiny_config(**fields)
  np.save(file, np.zeros((5, 4, 4, 1), np.uint8))
  assert with_data(config).data.dtype is None
  for values in (np.full((5, 4, 4, 1), 300, np.int16), np.full((5, 4, 4, 1), 0.5)):
    np.save(file, values)
    assert build.stored_source(config).read(np.arange(2)).dtype == values.dtype
    with pytest.raises(UserError, match=r'and data\.levels=256 holds '):
      build.source(config).read(np.arange(2))


@pytest.mark.parametrize(
  ('fields', 'num_axes', 'are_films'),
  [
    ({}, 2, False),
    ({'data.source': 'frames:clips', 'data.image_size': (4, 8, 8)}, 3, True),
    ({'data.source': 'volumes:scans', 'data.image_size': (4, 8, 8)}, 3, False),
    ({'data.source': 'array:a.npy', 'data.image_size': (8,), 'data.rate': 8.0}, 1, False),
  ],
)
def test_data_are_shown_by_their_axes_and_their_source(fields, num_axes, are_films):
  config = tiny_config(**{'data.levels': 256, **fields})
  display = build.display(config)
  assert (display.num_axes, display.are_films) == (num_axes, are_films)
  assert display.rate == fields.get('data.rate')
  assert display.most_shown == (16 if num_axes == 1 else 100)


def test_a_logger_of_ones_own_is_made_of_the_run_or_named(tmp_path, monkeypatch):
  (tmp_path / 'my_logger.py').write_text('def make(workdir, config, start_step):\n  return print\n')
  monkeypatch.syspath_prepend(tmp_path)
  config = tiny_config(**{'train.logger': 'my_logger:make'})
  check(config)
  assert build.logger_maker(config)('workdir', {}, 0) is print
  assert build.logger_maker(tiny_config()) is None
  for given in ('my_logger', 'my_logger:other', 'no_logger:make', ':make'):
    with pytest.raises(UserError, match=rf'train\.logger={given}: .*; give MODULE:FUNCTION'):
      check(tiny_config(**{'train.logger': given}))


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('make = 3', 'that is no function'),
    ('def make(', 'SyntaxError: '),
    ('raise RuntimeError("not today")', 'RuntimeError: not today'),
    ('raise ValueError("not today,\\nnor tomorrow")', 'ValueError: not today, nor tomorrow'),
  ],
)
def test_a_logger_that_cannot_be_is_refused_in_one_line(text, message, tmp_path, monkeypatch):
  name = f'logger_{len(text)}'
  (tmp_path / f'{name}.py').write_text(f'{text}\n')
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(UserError, match=f'train.logger={name}:make: {message}') as raised:
    check(tiny_config(**{'train.logger': f'{name}:make'}))
  assert '\n' not in str(raised.value)
  with pytest.raises(UserError, match=r'train\.logger=\.\.x:make: TypeError: '):
    check(tiny_config(**{'train.logger': '..x:make'}))


def test_a_logger_that_makes_nothing_is_refused(tmp_path, monkeypatch):
  (tmp_path / 'no_function.py').write_text('def make(workdir, config, start_step):\n  pass\n')
  monkeypatch.syspath_prepend(tmp_path)
  config = tiny_config(**{'train.logger': 'no_function:make'})
  with pytest.raises(UserError, match=r'train\.logger=no_function:make returned None; it must'):
    build.run_log(config, tmp_path, start_step=0, terminal=Terminal())


def test_decoded_pictures_are_kept_in_the_cache_folder(tmp_path):
  pictures, cache = tmp_path / 'pictures', tmp_path / 'cache'
  pictures.mkdir()
  for i in range(5):
    PIL.Image.fromarray(np.full((8, 8), i, np.uint8)).save(pictures / f'{i}.png')
  fields = {'data.source': f'folder:{pictures}', 'eval.cache_dir': str(cache)}
  config = tiny_config(**fields)
  with contextlib.closing(build.batches(config, build.source(config))) as batches:
    images = batches.images
  assert {path.suffix for path in (cache / 'decoded').iterdir()} == {'.npy', '.json', '.lock'}
  with contextlib.closing(build.batches(config, build.source(config))) as batches:
    np.testing.assert_array_equal(batches.images, images)
    assert isinstance(batches.images, np.memmap)


def test_pictures_are_decoded_without_a_home_folder(tmp_path, monkeypatch):
  def fail():
    raise RuntimeError('no home')

  monkeypatch.setattr(build, 'default_cache_dir', fail)
  PIL.Image.new('L', (8, 8)).save(tmp_path / '1.png')
  config = tiny_config(**{'data.source': f'folder:{tmp_path}'})
  with contextlib.closing(build.batches(config, build.source(config))) as batches:
    assert batches.images.shape == (1, 8, 8, 1)


def test_the_bound_is_of_a_float32_network(monkeypatch):
  config = tiny_config(**{'model.dtype': 'bfloat16', 'eval.bpd_splits': ('test',)})
  taken = []
  monkeypatch.setattr(build, 'denoiser_of', lambda config, **_: taken.append(config.model.dtype))
  monkeypatch.setattr(build, 'make_bpd_fns', lambda *_, **__: None)
  monkeypatch.setattr(build.stepwise, 'compiled', lambda work: work)
  (bound,) = build.bounds(config, ['test'], None)
  assert taken == ['float32']
  assert bound.identity.dtype == 'float32'
  assert config_dict(config)['model']['dtype'] == 'bfloat16'
  assert build.eval_choices(config)['bpd_dtype'] == 'float32'
  assert 'bpd_dtype' not in build.eval_choices(tiny_config())
