import subprocess
import sys

import pytest

from ddpm_jax import data
from ddpm_jax.errors import UserError


def source(name='digits', **changes):
  return data.make_source(
    name, **{**dict(dir=None, image_size=8, channels=1, split='train'), **changes}
  )


@pytest.mark.parametrize(
  'name',
  ['imagenet', '', ':', 'folder', 'folder:', 'tfds', 'tfds:', 'digits:x', 'cifar10:', 'cifar10:3'],
)
def test_unknown_source_lists_the_forms(name):
  with pytest.raises(UserError, match=r'data\.source=.*must be one of') as raised:
    source(name)
  for form in ('digits', 'tfds:NAME', 'cifar10', 'folder:PATH', 'celebahq256', 'lsun_church'):
    assert form in str(raised.value)


@pytest.mark.parametrize(
  ('name', 'module', 'function', 'first'),
  [
    ('digits', data.digits, 'make_digits_source', None),
    ('cifar10', data.cifar10, 'make_cifar10_source', 'cifar10'),
    ('cifar10:3.0.2', data.cifar10, 'make_cifar10_source', 'cifar10:3.0.2'),
    ('tfds:cifar10', data.cifar10, 'make_cifar10_source', 'cifar10'),
    ('tfds:cifar10:3.0.2', data.cifar10, 'make_cifar10_source', 'cifar10:3.0.2'),
    ('tfds:a/b:1.0.0', data.tfds, 'make_tfds_source', 'a/b:1.0.0'),
    ('folder:~/a:b', data.folder, 'make_folder_source', '~/a:b'),
    ('celebahq256', data.celebahq, 'make_celebahq256_source', None),
    ('lsun_church', data.lsun, 'make_lsun_source', 'lsun_church'),
  ],
)
def test_each_name_opens_its_source(monkeypatch, name, module, function, first):
  calls, opened = [], ['a picture']
  monkeypatch.setattr(module, function, lambda *args, **kwargs: calls.append(args) or opened)
  assert source(name) is opened
  assert calls == [(first,) if first else ()]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(image_size=0), r'data\.image_size=0: must be at least 1'),
    (dict(channels=4), r'data\.channels=4: must be 1 \(grey\) or 3 \(RGB\)'),
  ],
)
def test_bad_shapes(changes, message):
  with pytest.raises(UserError, match=message):
    source(**changes)


def test_the_package_and_the_digits_are_light():
  """`main.py --help` and a first run on the digits must not wait for the big libraries."""
  code = """
import sys
from ddpm_jax import data
source = data.make_source('digits', dir=None, image_size=8, channels=1, split='train')
options = dict(seed=0, global_batch_size=4, process_index=0, process_count=1)
batches = data.make_batches(source, memory_limit_bytes=1 << 20, num_workers=0, **options)
next(batches.iterate(0))
heavy = {'jax', 'flax', 'grain', 'tensorflow_datasets', 'tensorflow', 'torch', 'lmdb', 'PIL'}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
  subprocess.run([sys.executable, '-c', code], check=True)
