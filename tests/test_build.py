"""Every value that cannot work is named, with what can, before anything compiles."""

import jax
import numpy as np
import pytest

from ddpm_jax import build, parallel, samplers
from tests.tiny import tiny_config


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('diffusion.schedule', 'cosin', "diffusion.schedule is 'cosin'; it must be one of linear, "),
    ('diffusion.num_timesteps', 0, 'diffusion.num_timesteps is 0; it must be at least 1'),
    ('diffusion.beta_start', 0.0, r'diffusion.beta_start is 0.0; a beta must lie in \(0, 1\]'),
    ('diffusion.beta_end', 1.5, r'diffusion.beta_end is 1.5; a beta must lie in \(0, 1\]'),
    ('diffusion.mean_type', 'noise', "mean_type is 'noise'; it must be one of eps, xstart, xprev"),
    ('diffusion.var_type', 'small', "var_type is 'small'; it must be one of fixedsmall, "),
    ('diffusion.loss_type', 'l1', "loss_type is 'l1'; it must be one of mse, kl"),
    ('diffusion.var_type', 'learned', 'loss_type=mse does not train .*learned; use loss_type=kl'),
    ('diffusion.schedule', 'jsd', 'ends at beta 1.*use mean_type=xstart or xprev'),
    ('data.image_size', 9, r'data.image_size is 9; the 2 levels .* must be a multiple of 2'),
    ('data.image_size', 0, 'data.image_size is 0'),
    ('data.channels', 4, 'data.channels is 4; it must be one of 1, 3'),
    ('model.attn_resolutions', (16,), 'has 16, which never occurs; the resolutions are 8, 4'),
    ('model.ch', 48, 'model.ch is 48 and .* multiple of 32'),
    ('model.ch_mult', (), 'model.ch_mult is empty'),
    ('model.ch_mult', (1, 0), 'model.ch_mult has 0'),
    ('model.dtype', 'float16', "model.dtype is 'float16'; it must be one of float32, bfloat16"),
    ('model.dropout', 1.0, r'model.dropout is 1.0; it must lie in \[0, 1\)'),
    ('model.num_res_blocks', 0, 'model.num_res_blocks is 0; it must be at least 1'),
    ('optim.ema_decay', 1.0, r'optim.ema_decay is 1.0; it must lie in \[0, 1\)'),
    ('optim.learning_rate', -1.0, 'optim.learning_rate is -1.0; it must be at least 0'),
    ('train.log_every_steps', 0, 'train.log_every_steps is 0; it must be at least 1'),
    ('train.global_batch_size', 18, 'global_batch_size is 18; .* multiple of the 4 .* as 16'),
    ('train.global_batch_size', 0, 'train.global_batch_size is 0; .* such as 4'),
    ('train.grad_accum_steps', 3, 'train.grad_accum_steps is 3; it must divide the 4 images of a '),
    ('train.grad_accum_steps', 0, 'train.grad_accum_steps is 0; '),
    ('train.steps_per_dispatch', 0, 'train.steps_per_dispatch is 0; it must be at least 1'),
    ('train.steps_per_dispatch', 2, '2, which does not divide train.log_every_steps=1; change'),
    ('sample.batch_size', 6, 'sample.batch_size is 6; .* 4 devices, such as 4'),
    ('sample.num_samples', 0, 'sample.num_samples is 0; it must be at least 1'),
    ('sample.sampler', 'plms', "sample.sampler is 'plms'; it must be one of ancestral, ddim, "),
    ('sample.spacing', 'even', "sample.spacing is 'even'; it must be one of linspace, "),
    ('sample.num_steps', 11, r'sample.num_steps is 11; it must lie in \[1, 10\]'),
    ('sample.num_steps', 0, r'sample.num_steps is 0; it must lie in \[1, 10\]'),
    ('sample.eta', 0.5, 'sample.eta is 0.5, but sample.sampler=ancestral has none'),
    ('sample.clip', 'soft', "sample.clip is 'soft'; it must be one of none, static, dynamic"),
  ],
)
def test_names_what_cannot_work(field, value, message):
  config = tiny_config(**{'model.ch_mult': (1, 2)})
  build.check(config)
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=message) as raised:
    build.check(config)
  assert '\n' not in str(raised.value)


@pytest.mark.parametrize(('metric', 'least'), [('kid', 4), ('pr', 4), ('fid', 2)])
def test_metrics_have_the_samples_that_they_need(metric, least):
  fields = {'eval.metrics': (metric,), 'eval.num_samples': least, 'train.eval_num_samples': least}
  build.check(tiny_config(**fields, **{'train.eval_every_steps': 2}))
  if least > 2:
    build.check(tiny_config(**fields | {'train.eval_num_samples': 2}))  # no such evaluations
    message = rf'eval_num_samples says 3 images; {metric} \(eval.metrics\) needs 4 at least'
    with pytest.raises(ValueError, match=message):
      build.check(
        tiny_config(**fields | {'train.eval_num_samples': 3, 'train.eval_every_steps': 2})
      )
    with pytest.raises(ValueError, match=r'eval\.num_samples says 3 images'):
      build.check(tiny_config(**fields | {'eval.num_samples': 3}))


def test_inception_takes_no_grey_images():
  config = tiny_config(**{'eval.network': 'inception'})
  build.check(config)  # one may train on them
  with pytest.raises(ValueError, match=r'not data.channels=1; use eval.metrics=bpd, or') as raised:
    build.feature_network(config)
  assert '\n' not in str(raised.value)


def test_steps_per_dispatch_names_the_interval_that_it_does_not_divide():
  config = tiny_config(**{'train.log_every_steps': 8, 'train.checkpoint_every_steps': 12})
  for wanted, field in ((8, 'checkpoint_every_steps=12'), (12, 'log_every_steps=8')):
    config.train.steps_per_dispatch = wanted
    with pytest.raises(ValueError, match=f'does not divide train.{field}'):
      build.check(config)
  config.train.steps_per_dispatch = 4
  assert build.steps_per_dispatch(config) == 4


def test_an_accelerator_takes_as_many_steps_as_all_intervals_allow(monkeypatch):
  config = tiny_config(**{'train.log_every_steps': 100, 'train.checkpoint_every_steps': 250})
  assert build.steps_per_dispatch(config) == 1
  monkeypatch.setattr(parallel, 'on_cpu', lambda: False)
  assert build.steps_per_dispatch(config) == 10
  config.train.update(log_every_steps=100, checkpoint_every_steps=1000)
  assert build.steps_per_dispatch(config) == 20


def test_accelerators_hold_the_data_that_fit(monkeypatch):
  config = tiny_config()
  assert build.device_data(config, None) is None  # a CPU does not even ask for them
  batches = build.batches(config, build.source(config))
  monkeypatch.setattr(parallel, 'on_cpu', lambda: False)
  np.testing.assert_array_equal(build.device_data(config, batches), batches.images)
  config.data.device_limit_gib = 1e-6
  assert build.device_data(config, batches) is None


def test_bfloat16_is_refused_where_it_is_lacking(monkeypatch):
  monkeypatch.setattr(parallel, 'lacks_bfloat16', lambda: 'V100 (compute capability 7.0)')
  build.check(tiny_config())
  with pytest.raises(ValueError, match=r'bfloat16, which V100 .* lacks; use float32'):
    build.check(tiny_config(**{'model.dtype': 'bfloat16'}))


def test_learned_variance_doubles_the_output():
  config = tiny_config(**{'diffusion.loss_type': 'kl', 'diffusion.var_type': 'learned'})
  build.check(config)
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
  assert words(sampler='heun', num_steps=5) == 'heun, 5 of 10 steps (trailing), 9 evaluations'
  assert words(sampler='heun', spacing='karras', num_steps=2).startswith(
    'heun, 2 of 10 steps (karras)'
  )
  assert words(sampler='unipc_2', num_steps=2, spacing='quad', clip='none') == (
    'unipc_2, 2 of 10 steps (quad), clip none'
  )


def test_few_steps_are_the_default_of_all_samplers_but_ancestral():
  def count(name):
    config = tiny_config(**{'diffusion.num_timesteps': 1000, 'sample.sampler': name})
    return len(build.timesteps(config))

  assert {name: count(name) for name in samplers.SAMPLERS} == {
    **dict.fromkeys(samplers.SAMPLERS, 20),
    'ancestral': 1000,
  }


def test_a_prediction_of_one_step_is_refused_for_longer_ones():
  xprev = {'diffusion.mean_type': 'xprev', 'diffusion.var_type': 'fixedlarge'}
  build.check(tiny_config(**xprev))
  for choice in ({'sample.sampler': 'ddim'}, {'sample.num_steps': 9}):
    with pytest.raises(ValueError, match=r'of 10 steps cannot use .*xprev.*: use .*ancestral with'):
      build.check(tiny_config(**xprev, **choice))


def test_requests_tell_samplers_apart_and_leave_the_whole_chain_as_it_was():
  choices = [
    {'num_steps': 5},
    {'num_steps': 5, 'spacing': 'quad'},
    {'clip': 'dynamic'},
    {'sampler': 'ddim'},
    {'sampler': 'ddim', 'eta': 1.0},
    {'sampler': 'dpmpp_2m'},
  ]

  def request(**fields):
    return build.sampler_request(tiny_config(**{f'sample.{k}': v for k, v in fields.items()}))

  assert request() == request(num_steps=10) == request(num_steps=10, spacing='quad') == {}
  requests = [request(), *(request(**fields) for fields in choices)]
  assert all(requests.index(one) == i for i, one in enumerate(requests))
  assert request(sampler='ddim', eta=0.0) == request(sampler='ddim')
