"""What the command line makes of its words: flags and values of fields, or one line."""

import errno
import json

import pytest
from absl import flags

from ddpm_jax.config import fields
from ddpm_jax.modes import command_line
from ddpm_jax.storage.workdir import config_dict
from tests.tiny import tiny_config


@pytest.fixture(scope='module')
def parse_flags():
  """The flags of the program, and none of them afterwards."""
  others = set(flags.FLAGS)
  command_line.define_flags(['train', 'sample'])
  yield
  flags.FLAGS.unparse_flags()
  for name in set(flags.FLAGS) - others:
    delattr(flags.FLAGS, name)


@pytest.fixture
def parse(parse_flags, tmp_path):
  """Returns (arguments, beside --workdir) -> the config."""

  def parse(*args, workdir=tmp_path / 'run'):
    flags.FLAGS.unparse_flags()
    flags.FLAGS['config'].value = None
    command_line.parse(['main.py', *([f'--workdir={workdir}'] if workdir else ()), *map(str, args)])
    return flags.FLAGS.config

  return parse


def refusal(parse, *args, **kwargs):
  """The one line that ends the program."""
  with pytest.raises(SystemExit) as info:
    parse(*args, **kwargs)
  assert isinstance(info.value.code, str)
  assert info.value.code.startswith('error: ')
  assert len(info.value.code.splitlines()) == 1
  return info.value.code


def test_an_average_is_asked_for_where_one_is_made_alone(parse, tmp_path):
  assert 'config.ema.width goes with --mode=ema alone' in refusal(parse, '--config.ema.width=0.1')
  origin = tmp_path / 'made'
  (origin / 'checkpoints' / '3').mkdir(parents=True)
  values = config_dict(tiny_config(**{'ema.width': 0.1}))
  (origin / 'config.json').write_text(json.dumps(values))
  (origin / 'format.json').write_text('{"format": 2}')
  assert parse(workdir=origin).ema.width == 0.1
  assert parse(f'--config.init_from={origin}').ema.width is None  # trains another average


@pytest.mark.parametrize(
  ('arg', 'field', 'value'),
  [
    ('--config.seed=3', 'seed', 3),
    ('-config.seed=3', 'seed', 3),
    ('--config.data.dir=None', 'data.dir', None),
    ('--config.data.dir=none', 'data.dir', 'none'),
    ('--config.eval.bpd_examples=None', 'eval.bpd_examples', None),
    ('--config.sample.eta=None', 'sample.eta', None),
    ('--config.sample.eta=1', 'sample.eta', 1.0),
    ('--config.optim.learning_rate=1e-3', 'optim.learning_rate', 1e-3),
    ('--config.train.num_steps=1_000', 'train.num_steps', 1000),
    ('--config.eval.watch', 'eval.watch', True),
    ('--noconfig.data.random_flip', 'data.random_flip', False),
    ('--config.data.random_flip=false', 'data.random_flip', False),
    ('--config.eval.metrics=fid,is', 'eval.metrics', ('fid', 'is')),
    ('--config.eval.metrics=fid, is', 'eval.metrics', ('fid', 'is')),
    ('--config.eval.bpd_splits=train+test', 'eval.bpd_splits', ('train+test',)),
    ("--config.eval.metrics=('fid','is')", 'eval.metrics', ('fid', 'is')),
    ('--config.eval.metrics=fid', 'eval.metrics', ('fid',)),
    ('--config.eval.metrics=()', 'eval.metrics', ()),
    ('--config.eval.bpd_splits=train[:50%],test', 'eval.bpd_splits', ('train[:50%]', 'test')),
    ('--config.model.ch_mult=1,', 'model.ch_mult', (1,)),
    ('--config.model.ch_mult=1,2,2', 'model.ch_mult', (1, 2, 2)),
    ('--config.model.ch_mult=[1,2]', 'model.ch_mult', (1, 2)),
    ('--config.model.attn_resolutions=()', 'model.attn_resolutions', ()),
    ('--config.model.attn_resolutions=16', 'model.attn_resolutions', (16,)),
    ('--config.import.path=a=b', 'import_.path', 'a=b'),
  ],
)  # fmt: skip
def test_words_become_values(arg, field, value, parse):
  found = fields.flat(parse(arg))
  assert found[field] == value
  assert type(found[field]) is type(value)
  others = fields.flat(parse())
  assert {name: x for name, x in found.items() if name != field} == {
    name: x for name, x in others.items() if name != field
  }


def test_the_last_word_holds_and_a_value_may_stand_by_itself(parse):
  assert parse('--config.seed=3', '--config.seed', '4').seed == 4
  assert parse('--config.data.dir=a', '--config.data.dir=None').data.dir is None
  assert parse('--config', 'cifar10', '--config.seed', '4').data.source == 'cifar10'


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--config.seed=None'], 'seed is None; it must be an integer'),
    (['--config.train.num_steps=many'], "train.num_steps is 'many'; it must be an integer"),
    (['--config.train.num_steps=1e3'], "train.num_steps is '1e3'; it must be an integer"),
    (['--config.train.num_steps='], "train.num_steps is ''; it must be an integer"),
    (['--config.optim.learning_rate=fast'], "learning_rate is 'fast'; it must be a number"),
    (['--config.eval.watch=maybe'], "eval.watch is 'maybe'; it must be True or False"),
    (['--config.model.ch_mult=(1,'], "model.ch_mult is '(1,'; it must be a tuple of integers"),
    (['--config.model.ch_mult=None'], 'model.ch_mult is None; it must be a tuple of integers'),
    (['--config.model.ch_mult=' + '(' * 10_000], "model.ch_mult is '((((((("),
    (['--config.model.ch_mult=1,a'], "model.ch_mult is '1,a'; it must be a tuple of integers"),
    (['--config.model.ch_mult=1.0,'], 'model.ch_mult has 1.0; it must be a tuple of integers'),
    (['--config.seed=' + '9' * 10_000], "seed is '99999"),
    (['--config.init_from='], 'init_from is empty; leave it out, or give a value'),
    (['--config.data.dir='], 'data.dir is empty; leave it out, or give a value'),
    (['--config='], '--config is empty, as of a variable of the shell that is not set'),
    (['--config.seed'], '--config.seed needs a value: --config.seed=VALUE'),
    (['--noconfig.seed=3'], '--noconfig.seed=3 needs a value: --config.seed=VALUE'),
    (['-config.sed=3'], 'there is no config.sed; did you mean seed? fields there: compilation_c'),
    (['--config.num_steps=3'], 'there is no config.num_steps; did you mean '),
    (['--config.train=3'], 'config.train is a section; fields there: checkpoint_every_steps, '),
    (['--config.=3'], 'there is no config.; fields there: '),
    (['--config.import=3'], 'there is no config.import; did you mean import? fields there: '),
    (['--num_processes=two'], "invalid literal for int() with base 10: 'two'"),
  ],
)
def test_what_cannot_be_understood_is_one_line(args, message, parse):
  assert message in refusal(parse, *args)


def test_an_empty_path_is_not_the_current_folder(parse):
  line = refusal(parse, '--workdir=', workdir=None)
  assert '--workdir is empty, as of a variable of the shell that is not set' in line
  assert '--workdir=DIR is missing' in refusal(parse, workdir=None)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('def get_config(:', r'own.py:1: SyntaxError: '),
    ('x = 1\nimport nothing_of_this_name', 'own.py:2: ModuleNotFoundError: No module named'),
    ('x = 1', 'own.py has no get_config(), which returns the ConfigDict'),
    ('get_config = 3', 'own.py has no get_config()'),
    ('def get_config():\n  pass', 'own.py: get_config returns a NoneType; it must return a Con'),
    ('def get_config():\n  return {}', 'own.py: get_config returns a dict; it must return a Conf'),
    ('def get_config():\n  return 1 / 0', 'own.py:2: ZeroDivisionError: division by zero'),
    ('raise SystemExit(3)', 'own.py:1: SystemExit: 3'),
    ('def get_config():\n  c = get()\n  c.seed = "x"\n  return c', 'own.py:3: TypeError: '),
    (
      'def get_config():\n  c = get()\n  c.train.steps = 3\n  return c',
      'no field train.steps; did',
    ),
    ('def get_config():\n  c = get()\n  del c.train\n  return c', 'own.py: it lacks '),
    ('\0', 'own.py:'),
  ],
)
def test_a_config_that_fails_is_one_line_with_its_place(text, message, parse, tmp_path):
  file = tmp_path / 'own.py'
  file.write_text(text.replace('get()', '__import__("configs.default").default.get_config()'))
  assert message in refusal(parse, f'--config={file}')


def test_a_config_that_the_system_fails_to_read_has_the_code_of_that(
  parse, tmp_path, fail_reads, capsys
):
  stored = tmp_path / 'config.json'
  stored.write_text(json.dumps(config_dict(tiny_config())))
  parse(f'--config={stored}')
  fail_reads(stored, errno.EIO)
  with pytest.raises(SystemExit) as info:
    parse(f'--config={stored}')
  assert info.value.code == 74
  err = capsys.readouterr().err
  assert err.startswith('error: ')
  assert 'Input/output error' in err
  assert err.count('\n') == 1


def test_a_config_may_be_named_by_a_workdir_or_its_file(parse, tmp_path):
  stored = tmp_path / 'a:b'
  stored.mkdir()
  (stored / 'config.json').write_text(json.dumps(config_dict(tiny_config(seed=7))))
  for given in (stored, stored / 'config.json'):
    config = parse(f'--config={given}', '--config.train.num_steps=3')
    assert (config.seed, config.diffusion.num_timesteps, config.train.num_steps) == (7, 10, 3)
  assert 'takes no argument, but' in refusal(parse, '--config=celebahq256:more')
  (tmp_path / 'notes.txt').write_text('seed = 7')
  assert 'notes.txt is no config' in refusal(parse, f'--config={tmp_path}/notes.txt')


def test_help_has_every_flag_and_field(parse, capsys):
  for word in ('--help', '-h', '--helpfull'):
    with pytest.raises(SystemExit) as info:
      parse(word, workdir=None)
    assert info.value.code == 0
    out = capsys.readouterr().out
    for name in ('--workdir', '--mode', '--config ', '--num_processes', 'train, sample'):
      assert name in out
    assert all(f'--config.{fields.shown(field)}=' in out for field in fields.TYPES)
    assert '--config.import.path=None\n' in out
