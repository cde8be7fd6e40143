"""Sets of weights are found wherever they lie, named, and chosen."""

import re

import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.interop.state_dicts import chosen_sets, describe, find_sets

NAMES = {'conv.weight', 'conv.bias', 'mid.conv.weight', 'out.bias'}


def make(prefix='', value=0.0, names=NAMES):
  return {f'{prefix}{name}': np.full(2, value) for name in names}


def find(root):
  return find_sets(root, NAMES, len(NAMES))


@pytest.mark.parametrize(
  ('root', 'found'),
  [
    (make(), ['']),
    (make('module.'), ['module']),
    (make('_orig_mod.'), ['_orig_mod']),
    (make('model.'), ['model']),
    (make('ema.'), ['ema']),
    (make('_orig_mod.module.'), ['_orig_mod.module']),
    ({**make('module.'), 'epoch': 3, 'step': np.int64(3)}, ['module']),
    ({'state_dict': make('model.')}, ['state_dict.model']),
    ({'model': make(), 'ema': make(), 'step': 3}, ['model', 'ema']),
    ({**make('model.'), **make('ema.'), 'ema.decay': np.ones(1)}, ['model', 'ema']),
    ({**make(), **make('ema.')}, ['', 'ema']),
    ([make('module.'), {'state': {0: {'exp_avg': np.ones(2)}}}, 3, make()], ['0.module', '3']),
    ({'a': {'b': [make()]}}, ['a.b.0']),
    ({'other': {'x': np.ones(2)}, 'net': make()}, ['net']),
    ({'x': np.ones(2), 'y': np.ones(2)}, ['']),  # of another network, by itself
    ({'net': {'x': np.ones(2)}}, []),
    ({'conv': 3}, []),
    ([], []),
    (3, []),
  ],
)
def test_sets_go_by_where_they_lie(root, found):
  sets = find(root)
  assert list(sets) == found
  for name, tensors in sets.items():
    names = {'x', 'y'} if 'x' in tensors else NAMES | ({'decay'} if 'decay' in tensors else set())
    assert tensors.keys() == names, name


def test_tensors_keep_their_values_and_what_is_missing_can_be_named():
  sets = find({**make('model.', 1.0), **make('ema.', 2.0, sorted(NAMES)[:2])})
  assert {name: len(tensors) for name, tensors in sets.items()} == {'model': 4, 'ema': 2}
  assert (sets['model']['conv.bias'] == 1).all()
  assert (sets['ema']['conv.bias'] == 2).all()
  few = make('model.', names=['out.bias'])
  assert {name: set(tensors) for name, tensors in find(few).items()} == {'': set(few)}


def test_a_container_within_itself_ends():
  root = {'a': make()}
  root['b'] = root
  assert list(find(root)) == ['a']


SETS = {'model': 1, 'ema.module': 2, 'old.a': 3, 'old.b': 4}


def test_the_only_set_needs_no_choice():
  assert chosen_sets({'x': 1}, None) == [1]
  assert chosen_sets({'x': 1}, 'x') == [1]


@pytest.mark.parametrize(
  ('chosen', 'values'),
  [('model', [1]), ('ema', [2]), ('ema.module', [2]), ('model,ema', [1, 2]), ('old.b', [4])],
)
def test_sets_are_chosen_by_name(chosen, values):
  assert chosen_sets(SETS, chosen) == values


@pytest.mark.parametrize(
  ('chosen', 'message'),
  [
    (
      None,
      'it has 4 sets of weights: model, ema.module, old.a, old.b; choose one by --config.import.'
      'weights=NAME, or the weights and their moving average by --config.import.weights=NAME,NAME',
    ),
    ('old', 'import.weights is old, and the sets of weights there are model, ema.module, old.a'),
    ('em', 'import.weights is em, and the sets'),
    ('model,ema,old.a', 'import.weights=model,ema,old.a names 3 sets; name one, or two'),
  ],
)
def test_a_choice_that_cannot_be_is_answered_by_the_names(chosen, message):
  with pytest.raises(UserError, match=f'^{re.escape(message)}'):
    chosen_sets(SETS, chosen)


def test_what_a_file_holds_is_described_in_short():
  root = {'model': make(names=['a', 'b']), 'optimizer': {'x\ny': np.ones(1)}, 'step': 3}
  expected = 'model (2 tensors, such as a), optimizer (1 tensors, such as x y)'
  assert describe(root) == expected
  assert describe(3) == 'a int without tensors'
  many = describe({str(i): {'x' * 500: np.ones(1)} for i in range(100)})
  assert many.endswith(', and 92 more')
  assert len(many) < 1100
