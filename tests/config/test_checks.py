"""Every value that cannot work is named, with what can, before anything compiles."""

import pytest

from configs import cifar10
from ddpm_jax import devices
from ddpm_jax.config.checks import check, check_metrics, doubts, prepare
from ddpm_jax.errors import UserError
from ddpm_jax.sampling import SAMPLERS
from tests.tiny import tiny_config


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('diffusion.schedule', 'cosin', "diffusion.schedule is 'cosin'; it must be one of linear, "),
    ('diffusion.num_timesteps', 0, 'diffusion.num_timesteps is 0; it must be at least 1'),
    ('diffusion.beta_start', 0.0, 'diffusion.beta_start is 0.0; it must be at least 1e-10'),
    ('diffusion.beta_end', 1.5, 'diffusion.beta_end is 1.5; it must be at most 1'),
    (
      'diffusion.mean_type',
      'noise',
      "'noise'; it must be one of eps, xstart, xprev, v, edm$",
    ),
    ('diffusion.var_type', 'small', "var_type is 'small'; it must be one of fixedsmall, "),
    ('diffusion.loss_type', 'l1', "loss_type is 'l1'; it must be one of mse, kl"),
    ('diffusion.var_type', 'learned', 'loss_type=mse does not train .*learned; use loss_type=kl'),
    ('diffusion.schedule', 'jsd', 'ends at alphas_cumprod 0, .*use xstart, v or xprev$'),
    ('diffusion.schedule', 'cosine_zero_snr', 'alphas_cumprod 0, .*use xstart, v or xprev$'),
    ('train.timesteps', 'even', "train.timesteps is 'even'; it must be one of None, uniform, str"),
    ('train.loss_weight', 'snr', "train.loss_weight is 'snr'; it must be one of simple, kl, "),
    ('train.loss_weight_number', 3.0, 'number is 3.0, but there is no train.loss_weight: give one'),
    ('diffusion.sigma_data', 0.1, '0.1, which goes with diffusion.mean_type=edm alone, and it is'),
    ('diffusion.loss_type', 'hybrid', 'hybrid trains a variance, and var_type=fixedlarge is fixed'),
    ('optim.decay', 'cosine', 'optim.decay is cosine, and optim.decay_steps None: give both'),
    ('optim.ema_widths', (0.1, 0.1), r'optim.ema_widths is \(0.1, 0.1\), and has one twice'),
    ('sample.churn', 4.0, 'sample.churn is 4.0, but sample.sampler=ancestral has none; only heun'),
    ('sample.churn_noise', 1.1, 'sample.churn_noise is 1.1, but nothing is churned: give sample'),
    (
      'data.image_size',
      9,
      r'data.image_size is 9; the 2 levels .* must be a multiple of 2; the nearest is 8$',
    ),
    ('data.image_size', 0, 'data.image_size is 0; it must be at least 1'),
    ('data.image_size', (8, 15), r'is \(8, 15\); .* multiple of 2; the nearest is \(8, 16\)$'),
    ('data.image_size', (8, 0), 'data.image_size has 0; it must be at least 1'),
    (
      'data.image_size',
      (8, 'x'),
      r"is \(8, 'x'\); it must be an integer, or the lengths of 1 to 3",
    ),
    ('data.image_size', (2, 2, 2, 2), r'\(2, 2, 2, 2\); it must be an integer, or the lengths'),
    ('data.image_size', (), r'data.image_size is \(\); it must be an integer, or the lengths'),
    ('model.num_groups', 5, 'model.ch is 32 and .* multiple of 5, the groups of a norm'),
    ('data.channels', 4, 'data.channels is 4; it must be one of 1, 3'),
    ('model.attn_resolutions', (16,), 'has 16, which never occurs; the resolutions are 8, 4'),
    ('model.ch', 48, 'model.ch is 48 and .* multiple of 32'),
    ('model.ch_mult', (), 'model.ch_mult is empty'),
    ('model.ch_mult', (1, 0), 'model.ch_mult has 0; it must be at least 1'),
    (
      'model.dtype',
      'float16',
      "model.dtype is 'float16'; it must be one of auto, float32, bfloat16",
    ),
    ('model.dropout', 1.0, r'model.dropout is 1.0; it must lie in \[0, 1\)'),
    ('model.num_res_blocks', 0, 'model.num_res_blocks is 0; it must be at least 1'),
    ('optim.ema_decay', 1.0, r'optim.ema_decay is 1.0; it must lie in \[0, 1\)'),
    ('optim.learning_rate', -1.0, 'optim.learning_rate is -1.0; it must be at least 0'),
    ('train.log_every_steps', 0, 'train.log_every_steps is 0; it must be at least 1'),
    ('train.global_batch_size', 0, 'train.global_batch_size is 0; it must be at least 1'),
    ('train.global_batch_size', -4, 'train.global_batch_size is -4; it must be at least 1'),
    ('train.grad_accum_steps', 3, 'train.grad_accum_steps is 3; it must divide the 4 images of a '),
    ('train.grad_accum_steps', 0, 'train.grad_accum_steps is 0; '),
    ('train.steps_per_dispatch', 0, 'train.steps_per_dispatch is 0; it must be at least 1'),
    ('train.steps_per_dispatch', 2, '2, which does not divide train.log_every_steps=1; change'),
    ('sample.batch_size', 0, 'sample.batch_size is 0; it must be at least 1'),
    ('eval.batch_size', -1, 'eval.batch_size is -1; it must be at least 1'),
    ('sample.num_samples', 0, 'sample.num_samples is 0; it must be at least 1'),
    ('sample.sampler', 'plms', "sample.sampler is 'plms'; it must be one of ancestral, ddim, "),
    ('sample.spacing', 'even', "sample.spacing is 'even'; it must be one of None, linspace, "),
    ('sample.num_steps', 11, r'sample.num_steps is 11; it must lie in \[1, 10\]'),
    ('sample.num_steps', 0, 'sample.num_steps is 0; it must be at least 1'),
    ('sample.eta', 0.5, 'sample.eta is 0.5, but sample.sampler=ancestral has none'),
    ('sample.variance', 'learned', "sample.variance is 'learned'; it must be one of None, fixedsm"),
    ('sample.stops_early', True, 'sample.stops_early goes with the solvers, and sample.sampler is'),
    ('sample.timesteps', (4.0, 1.0), r'they must increase strictly and lie in \[0, 9\]'),
    ('sample.timesteps', (1.0, 10.0), r'they must increase strictly and lie in \[0, 9\]'),
    ('sample.timesteps', (0.5, 9.0), 'with times between two timesteps: give sample.timestep_par'),
    ('sample.timestep_parts', 0, 'sample.timestep_parts is 0; it must be at least 1'),
    ('sample.clip', 'soft', "sample.clip is 'soft'; it must be one of none, static, dynamic"),
  ],
)
def test_names_what_cannot_work(field, value, message):
  config = tiny_config(**{'model.ch_mult': (1, 2)})
  check(config)
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=message) as raised:
    check(config)
  assert '\n' not in str(raised.value)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'diffusion.mean_type': 'xprev', 'eval.metrics': ('flow',)},
      'the likelihood of the flow takes a model that predicts x_0 or noise, not one step alone',
    ),
    (
      {
        'diffusion.mean_type': 'v',
        'diffusion.schedule': 'linear_zero_snr',
        'eval.metrics': ('bpd', 'flow'),
      },
      'on a schedule that keeps some signal: leave flow out of eval.metrics',
    ),
    ({'diffusion.mean_type': 'xprev', 'sample.variance': 'analytic'}, 'this model predicts xprev'),
    (
      {'sample.sampler': 'ddim', 'sample.spacing': 'least_bound', 'sample.num_steps': 1},
      r'is 1; of sample.spacing=least_bound it must lie in \[2, 10\]',
    ),
    (
      {'diffusion.num_timesteps': 1000, 'sample.spacing': 'least_error'},
      r'is 1000; of sample.spacing=least_error it must lie in \[1, 1\d\d\]',
    ),
    ({'ema.width': 0.1}, 'ema.width is 0.1, and training would change the average that --mode=ema'),
  ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_built(fields, message):
  with pytest.raises(UserError, match=message) as raised:
    check(tiny_config(**fields))
  assert '\n' not in str(raised.value)


@pytest.mark.parametrize(('metric', 'least'), [('kid', 4), ('pr', 4), ('fid', 2)])
def test_metrics_have_the_samples_that_they_need(metric, least):
  fields = {'eval.metrics': (metric,), 'eval.num_samples': least, 'train.eval_num_samples': least}
  check(tiny_config(**fields, **{'train.eval_every_steps': 2}))
  if least > 2:
    check(tiny_config(**fields | {'train.eval_num_samples': 2}))  # no such evaluations
    message = rf'eval_num_samples says 3 images; {metric} \(eval.metrics\) needs 4 at least'
    with pytest.raises(UserError, match=message):
      check(tiny_config(**fields | {'train.eval_num_samples': 3, 'train.eval_every_steps': 2}))
    with pytest.raises(UserError, match=r'eval\.num_samples says 3 images'):
      check(tiny_config(**fields | {'eval.num_samples': 3}))


def test_no_metrics_are_refused_where_something_is_to_be_measured():
  message = (
    r'^eval\.metrics is empty; name some of bpd, flow, fid, is, kid, pr, dc, kid100, as in --con'
  )
  check_metrics(('fid',))
  with pytest.raises(UserError, match=message) as raised:
    check_metrics(())
  assert '\n' not in str(raised.value)
  for nothing in ((), ('',)):
    check(tiny_config(**{'eval.metrics': nothing}))  # one may train without
    with pytest.raises(UserError, match=message):
      check(tiny_config(**{'eval.metrics': nothing, 'train.eval_every_steps': 2}))


def test_steps_per_dispatch_names_the_interval_that_it_does_not_divide():
  config = tiny_config(**{'train.log_every_steps': 8, 'train.checkpoint_every_steps': 12})
  for given, field in ((8, 'checkpoint_every_steps=12'), (12, 'log_every_steps=8')):
    config.train.steps_per_dispatch = given
    with pytest.raises(UserError, match=f'does not divide train.{field}'):
      check(config)
  config.train.steps_per_dispatch = 4
  check(config)


def test_bfloat16_is_refused_where_it_is_lacking(monkeypatch):
  monkeypatch.setattr(devices, 'lacks_bfloat16', lambda: 'V100 (compute capability 7.0)')
  check(tiny_config())
  with pytest.raises(UserError, match=r'bfloat16, which V100 .* lacks; use float32'):
    check(tiny_config(**{'model.dtype': 'bfloat16'}))


@pytest.mark.parametrize('schedule', ['linear', 'quad', 'const', 'warmup10', 'warmup50', 'cosine'])
@pytest.mark.parametrize('sampler', SAMPLERS)
def test_default_settings_leave_no_doubt(schedule, sampler):
  config = cifar10.get_config()
  config.diffusion.schedule = schedule
  config.sample.sampler = sampler
  assert doubts(config) == []


@pytest.mark.parametrize(
  ('num_timesteps', 'signal', 'bits', 'way'),
  [
    (50, '0.603', '0.67', 'beta_start=0.002 --config.diffusion.beta_end=0.4 or'),
    (100, '0.364', '0.33', 'beta_start=0.001 --config.diffusion.beta_end=0.2 or'),
    (200, '0.132', '0.1', 'beta_start=0.0005 --config.diffusion.beta_end=0.1 or'),
    (10, '0.904', '1.7', 'schedule=cosine'),
  ],
)
def test_signal_left_at_the_end_is_said_with_the_way_out(num_timesteps, signal, bits, way, capsys):
  config = tiny_config(**{'diffusion.num_timesteps': num_timesteps})
  prepare(config)
  (line,) = [line for line in capsys.readouterr().out.splitlines() if 'x_T' in line]
  assert f'alphas_cumprod[T-1] is {signal} and L_T ' in line
  assert f' to {bits} bits/dim' in line
  assert f'In a new run: --config.diffusion.{way}' in line
  for arg in line.partition('In a new run: ')[2].split(' or ')[0].split():
    field, value = arg.removeprefix('--config.').split('=')
    config.update_from_flattened_dict({field: value if 'schedule' in field else float(value)})
  assert doubts(config) == []


def test_a_chain_that_begins_below_the_noise_is_said():
  config = cifar10.get_config()
  config.sample.update(sampler='ddim', num_steps=4, spacing='leading')
  (line,) = doubts(config)
  assert line.startswith(
    '4 steps of sample.spacing=leading begin at t=750, where alphas_cumprod is '
  )
  config.sample.timestep_parts = 4  # rows of the process in between
  assert 'begin at t=749.5, where alphas_cumprod is ' in doubts(config)[0]
  config.sample.update(spacing=None, num_steps=None, timesteps=(0.5, 250.0, 999.0))
  assert doubts(config) == []
  config.sample.update(timesteps=None, timestep_parts=None, num_steps=4)
  config.sample.spacing = 'trailing'
  assert doubts(config) == []


def test_a_bespoke_solver_has_few_steps_and_ends_at_x_0():
  config = cifar10.get_config()
  config.sample.update(sampler='bespoke', num_steps=20)
  check(config)
  config.sample.num_steps = 21
  with pytest.raises(
    UserError, match=r'num_steps is 21; sample\.sampler=bespoke.* at most 20 steps'
  ):
    check(config)
  config.sample.update(num_steps=5, stops_early=True)
  with pytest.raises(
    UserError, match=r'sample\.sampler=bespoke is fitted to end at x_0: leave one'
  ):
    check(config)


def test_heun_over_too_great_a_step_is_said():
  config = cifar10.get_config()
  config.diffusion.schedule = 'cosine'
  config.sample.update(sampler='heun', spacing='trailing')
  (line,) = doubts(config)
  assert 'falls by a factor of 1.6e+03 in the first, and samples are poor; take sample.spac' in line
  config.sample.spacing = None
  assert doubts(config) == []


def test_clipping_that_a_prediction_of_one_step_does_not_go_through_is_refused():
  xprev = {'diffusion.mean_type': 'xprev', 'diffusion.var_type': 'fixedlarge'}
  with pytest.raises(UserError, match=r'sample\.clip=dynamic .* of one step alone .*: use static$'):
    check(tiny_config(**xprev, **{'sample.clip': 'dynamic'}))


def test_a_prediction_of_one_step_is_refused_for_longer_ones():
  xprev = {'diffusion.mean_type': 'xprev', 'diffusion.var_type': 'fixedlarge'}
  check(tiny_config(**xprev))
  message = (
    r'of 10 steps cannot use a prediction of one step alone \(diffusion\.mean_type\): use '
    r'sample\.sampler=ancestral with all steps$'
  )
  for choice in ({'sample.sampler': 'ddim'}, {'sample.num_steps': 9}):
    with pytest.raises(UserError, match=message):
      check(tiny_config(**xprev, **choice))


def test_a_batch_that_the_devices_do_not_divide_is_no_mistake():
  """The machine has four: training leaves out those that are too many, the others round up."""
  fields = ('train.global_batch_size', 'sample.batch_size', 'eval.batch_size')
  check(tiny_config(**dict.fromkeys(fields, 6)))
  with pytest.raises(UserError, match='must divide the 2 images of a device'):
    check(tiny_config(**{'train.global_batch_size': 6, 'train.grad_accum_steps': 3}))


def test_a_batch_of_training_is_of_no_account_where_nothing_is_trained():
  config = tiny_config(**{'train.global_batch_size': 3})
  check(config, trains=False)
