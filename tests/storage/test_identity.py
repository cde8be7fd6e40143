"""What tells results apart: every attribute does, and nothing else."""

import dataclasses
import hashlib
import json
import pathlib

import pytest

from ddpm_jax.storage.identity import Identity, key_of, sampler_name, step_folder

DDIM = {'sampler': 'ddim', 'num_steps': 5, 'spacing': 'trailing', 'eta': 0.0, 'clip': 'static'}
WHOLE = Identity(
  step=4,
  parameters='ab' * 32,
  model={'ch': 32, 'ch_mult': (1, 2), 'remat': None},
  diffusion={'schedule': 'linear', 'num_timesteps': 10, 'beta_end': 0.02},
  dtype='float32',
  sampler={'sampler': 'ancestral', 'num_steps': 10, 'spacing': None, 'eta': None, 'clip': 'static'},
  seed=0,
  data={'test': {'name': 'digits', 'split': 'test', 'sha256': None}},
  network={'name': 'digits classifier', 'published': False},
  choices={'metrics': ['bpd', 'fid'], 'bpd_terms': None},
)
OTHERS = {
  'step': 0,
  'parameters': 'cd' * 32,
  'model': {'ch': 64, 'ch_mult': (1, 2), 'remat': None},
  'diffusion': {'schedule': 'linear', 'num_timesteps': 10, 'beta_end': 0.03},
  'dtype': 'bfloat16',
  'sampler': DDIM,
  'seed': 1,
  'data': {'test': {'name': 'digits', 'split': 'train', 'sha256': None}},
  'network': {'name': 'digits classifier', 'published': True},
  'choices': {'metrics': ['fid', 'bpd'], 'bpd_terms': None},
}
NAMES = [field.name for field in dataclasses.fields(Identity)]


def has_none(value):
  if isinstance(value, dict):
    return any(has_none(x) for x in value.values())
  return value is None


def test_an_identity_cannot_be_changed():
  with pytest.raises(dataclasses.FrozenInstanceError):
    WHOLE.step = 5
  other = WHOLE.but(step=5)
  assert (WHOLE.step, other.step) == (4, 5)
  assert other.but(step=4) == WHOLE


def test_facts_are_plain_json_values_without_none():
  facts = WHOLE.facts()
  assert list(facts) == NAMES
  assert not has_none(facts)
  assert json.loads(json.dumps(facts)) == facts
  assert facts['model'] == {'ch': 32, 'ch_mult': [1, 2]}
  assert facts['sampler'] == {'sampler': 'ancestral', 'num_steps': 10, 'clip': 'static'}
  assert facts['data'] == {'test': {'name': 'digits', 'split': 'test'}}
  assert facts['seed'] == 0  # which decides, as None does not
  assert Identity(step=4).facts() == {'step': 4}
  assert Identity().facts() == {}


def test_facts_are_a_copy():
  facts = WHOLE.facts()
  facts['model']['ch'] = 0
  assert WHOLE.facts()['model']['ch'] == 32


@pytest.mark.parametrize('name', NAMES)
def test_key_changes_with_every_attribute(name):
  assert OTHERS.keys() == set(NAMES)
  keys = {WHOLE.key(), WHOLE.but(**{name: OTHERS[name]}).key(), WHOLE.but(**{name: None}).key()}
  assert len(keys) == 3


def reversed_order(value):
  if isinstance(value, dict):
    return {name: reversed_order(value[name]) for name in reversed(value)}
  return value


def test_key_does_not_change_with_none_nor_with_the_order_of_fields():
  for name in NAMES:
    value = getattr(WHOLE, name)
    if isinstance(value, dict):
      assert list(reversed_order(value)) != list(value) or len(value) == 1
      assert WHOLE.but(**{name: reversed_order(value)}).key() == WHOLE.key()
      assert WHOLE.but(**{name: value | {'new': None}}).key() == WHOLE.key()
      assert WHOLE.but(**{name: value | {'new': False}}).key() != WHOLE.key()
  assert WHOLE.but(model={'ch': 32, 'ch_mult': [1, 2]}).key() == WHOLE.key()  # tuples are lists


def test_key_is_the_head_of_a_sha256_of_the_facts():
  text = json.dumps({'seed': 3, 'step': 4}, sort_keys=True)
  assert text == '{"seed": 3, "step": 4}'
  expected = hashlib.sha256(text.encode()).hexdigest()[:8]
  assert Identity(step=4, seed=3).key() == key_of({'step': 4, 'seed': 3}) == expected


def test_folders_can_be_read():
  parent = step_folder(pathlib.Path('run/samples'), 1600)
  folder = Identity(sampler=DDIM).folder(parent, sampler_name(DDIM))
  key = Identity(sampler=DDIM).key()
  assert folder == pathlib.Path(f'run/samples/step_00001600/ddim-5-trailing_{key}')
  assert len(key) == 8
  assert set(key) <= set('0123456789abcdef')


@pytest.mark.parametrize(
  ('sampler', 'name'),
  [
    ({'sampler': 'ancestral', 'num_steps': 1000, 'spacing': None, 'eta': None}, 'ancestral-1000'),
    ({'sampler': 'ancestral', 'num_steps': 100, 'spacing': 'quad'}, 'ancestral-100-quad'),
    ({'sampler': 'ddim', 'num_steps': 50, 'spacing': 'trailing', 'eta': 0.0}, 'ddim-50-trailing'),
    ({'sampler': 'ddim', 'num_steps': 10, 'spacing': None, 'eta': 1.0}, 'ddim-10-eta1'),
    (
      {'sampler': 'ddim', 'num_steps': 5, 'spacing': 'leading', 'eta': 0.25},
      'ddim-5-leading-eta0.25',
    ),
    (
      {'sampler': 'dpmpp_2m', 'num_steps': 20, 'spacing': 'karras', 'clip': 'none'},
      'dpmpp_2m-20-karras-clip-none',
    ),
    (
      {'sampler': 'unipc_3', 'num_steps': 10, 'spacing': 'trailing', 'clip': 'dynamic'},
      'unipc_3-10-trailing-clip-dynamic',
    ),
  ],
)
def test_sampler_in_a_word(sampler, name):
  assert sampler_name({'clip': 'static'} | sampler) == name
