"""Every field has a type and a range; no value of any kind gets past them as nonsense."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from ddpm_jax.config import build, fields
from ddpm_jax.config.checks import check
from ddpm_jax.configs import default
from ddpm_jax.errors import UserError
from ddpm_jax.training import averages
from tests.tiny import tiny_config

HUGE = (2**31, 2**32, 2**63, 2**64, -(2**63), 10**400, 1e38, 1e39, 1e300)
TINY = (1e-45, 1e-17, 1e-300, -1e-300, 5e-324, 1 - 1e-9, 1 - 2**-53)
WEIRD = (
  None, True, False, 0, 1, -1, 2, 0.0, -0.0, 0.5, 1.0, 1.5, float('nan'), float('inf'),
  -float('inf'), *HUGE, *TINY, '', 'x', ' ', 'None', 'a\0b', 'a\nb', '\udcff', 'x' * 5000, b'x',
  (), (1,), (1.0,), (True,), (0,), (-1,), (2**63,), (None,), ('x',), ('',), ((1,),), ('a', 1),
  [], [1], {}, {'a': 1}, object, 1j, np.int64(1), np.float32(1), np.zeros(2),
)  # fmt: skip


def changed(field, value):
  """The tiny config with any value in a field, whatever its type."""
  config = tiny_config()
  config.unlock()
  *sections, name = field.split('.')
  section = config
  for part in sections:
    section = section[part]
  with section.ignore_type():
    section[name] = value
  return config


def use(config, field):
  """What is built of a config before data are opened and anything compiles."""
  if field.startswith(('model.', 'data.channels', 'data.image_size', 'diffusion.var')):
    jax.eval_shape(lambda: build.init_params(config))
  build.optimizer(config)
  tables = vars(build.schedule(config))
  others = ('sqrt_recip_alphas_cumprod', 'sqrt_recipm1_alphas_cumprod', 'times')
  assert all(np.isfinite(tables[name]).all() for name in tables.keys() - set(others))
  assert np.isfinite(np.float32(build.learning_rate(config)(2**31 - 1)))
  build.timesteps(config)
  build.plan(config)
  build.samples_identity(config).facts()
  build.eval_choices(config)
  build.about_config(config)
  for number in (config.data.memory_limit_gib, config.data.device_limit_gib):
    assert int(number * 2**30) >= 0


def test_every_number_has_its_limits_and_the_default_lies_within():
  numbers = {field for field, kind in fields.TYPES.items() if kind in fields.NUMBERS}
  numbers |= {field for field, kind in fields.TYPES.items() if kind is object}
  tuples = fields.TUPLES_OF_INTS + fields.TUPLES_OF_FLOATS
  assert set(fields.LIMITS) == numbers | set(tuples)
  fields.check_fields(default.get_config())


@pytest.mark.parametrize('field', list(fields.TYPES))
def test_any_value_is_used_or_refused_by_the_fields_name(field):
  name = fields.shown(field)
  if field == 'network':  # of runs from Python, which have no U-Net
    return
  for value in WEIRD:
    try:
      config = changed(field, value)
    except (TypeError, ValueError, AttributeError, OverflowError):  # ConfigDict itself refuses
      continue
    try:
      check(config)
    except UserError as error:
      assert name.rpartition('.')[2] in str(error), error  # noqa: PT017
      assert '\n' not in str(error), error  # noqa: PT017
      assert len(str(error)) < 6000  # noqa: PT017
    else:
      use(config, field)


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('seed', True, 'seed is True; it must be an integer$'),
    ('seed', 2**32, 'seed is 4294967296; it must be at most 4294967295$'),
    ('seed', -1, 'seed is -1; it must be at least 0$'),
    ('seed', None, 'seed is None; it must be an integer$'),
    ('sample.seed', 2**63, 'sample.seed is 9223372036854775808; it must be at most 4294967295$'),
    ('model.ch_mult', (1.0,), 'model.ch_mult has 1.0; it must be a tuple of integers, such as'),
    ('model.attn_resolutions', (4, True), 'model.attn_resolutions has True; it must be a tuple'),
    ('eval.metrics', (1,), 'eval.metrics has 1; it must be a tuple of names, such as'),
    ('eval.metrics', 'fid', "eval.metrics is 'fid'; it must be a tuple of names"),
    ('data.memory_limit_gib', float('inf'), 'data.memory_limit_gib is inf; it must be a finite nu'),
    ('optim.learning_rate', float('inf'), 'optim.learning_rate is inf; it must be a finite number'),
    ('optim.learning_rate', 1e39, r'optim.learning_rate is 1e\+39; it must be at most 3.4e\+38'),
    ('optim.adam_eps', float('nan'), 'optim.adam_eps is nan; it must be a finite number$'),
    ('optim.adam_eps', 0.0, 'optim.adam_eps is 0.0; it must be at least 1e-30$'),
    ('optim.ema_decay', 1 - 1e-9, r'optim.ema_decay is 0.999999999; it must lie in \[0, 1\)$'),
    ('diffusion.beta_start', 1e-17, 'diffusion.beta_start is 1e-17; it must be at least 1e-10$'),
    ('diffusion.num_timesteps', 10**9, 'num_timesteps is 1000000000; it must be at most 1000000$'),
    (
      'diffusion.num_timesteps',
      20_000,
      'of 20000 timesteps .* alphas_cumprod 1.*e-88, where',
    ),
    ('data.dir', '', 'data.dir is empty; leave it out, or give a value$'),
    ('import_.path', 3, 'import.path is 3; it must be text, or None$'),
    ('sample.eta', 2.0, 'sample.eta is 2.0; it must be at most 1$'),
    ('sample.num_steps', 2.0, 'sample.num_steps is 2.0; it must be an integer, or None$'),
    ('data.random_flip', 1, 'data.random_flip is 1; it must be True or False$'),
    ('train.num_steps', 10**400, 'train.num_steps is 10{99}...; it must be at most 2147483647$'),
  ],
)
def test_a_value_is_refused_with_what_is_allowed(field, value, message):
  with pytest.raises(UserError, match=f'^.*{message}'):
    check(changed(field, value))


def test_seeds_that_are_allowed_have_keys_of_their_own():
  seeds = (0, 1, 2**31 - 1, 2**31, 2**32 - 2, fields.MAX_SEED)
  keys = {jax.random.key_data(build.key(seed, 'train')).tobytes() for seed in seeds}
  assert len(keys) == len(seeds)
  key = build.key(np.int64(3), 'train')
  assert jax.random.key_data(key).tolist() == jax.random.key_data(build.key(3, 'train')).tolist()
  for seed in (-1, 2**32, 2**63, 0.5, None, True):
    with pytest.raises(UserError, match=r'^seed is '):
      build.key(seed, 'train')


def test_a_field_that_nobody_reads_is_refused_with_the_nearest():
  config = tiny_config()
  config.train.num_stpes = 3
  with pytest.raises(UserError, match=r'no field train\.num_stpes; did you mean train\.num_steps'):
    check(config)
  with pytest.raises(UserError, match=r'lacks \d+ fields, compilation_cache first; begin with '):
    check(ConfigDict({'seed': 1}))


def test_widths_of_averages_have_the_limit_of_those_who_make_them():
  assert fields.LIMITS['ema.width'][1] == averages.MAX_WIDTH
