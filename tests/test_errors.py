"""What is told in one line, and what keeps its traceback."""

import ast
import errno
import importlib
import os
import pathlib
import pkgutil

import numpy as np
import PIL.Image
import pytest

import ddpm_jax
from ddpm_jax import processes
from ddpm_jax.errors import DiskError, NotFiniteError, UserError, WriteError
from ddpm_jax.evaluation.images import open_images
from ddpm_jax.evaluation.own_pictures import read_pictures
from ddpm_jax.interop.safetensors_file import read_safetensors, write_safetensors
from ddpm_jax.interop.tensors import from_layout
from ddpm_jax.interop.tf_bundle import read_bundle
from ddpm_jax.interop.torch_file import read_torch_file
from ddpm_jax.refusals import refusal_behind
from ddpm_jax.storage.npz import open_npz
from tests.tf_writer import write_bundle
from tests.torch_writer import write_torch_legacy, write_torch_zip

ROOT = pathlib.Path(ddpm_jax.__file__).parent
FILES = sorted(ROOT.rglob('*.py'))
ONE_LINE = {UserError, NotFiniteError}
# Beside these, what a module raises for another part of itself, or to Python.
INTERNAL = {
  # Of a name that the package lacks, or an object while it is unpickled.
  'AttributeError': ['__init__.py', 'data/encoding.py'],
  'FileNotFoundError': ['storage/sealed_path.py'],  # to JAX
  'Interrupted': ['heeding.py'],
  'KeyboardInterrupt': ['signals.py'],  # of Ctrl-C, heeded
  'NotImplementedError': ['data/pictures.py'],  # of an abstract method
  # Which callers explain.
  'OSError': [
    'data/downloads.py',
    'data/pictures.py',
    'data/tfds.py',
    'interop/hub.py',
    'refusals.py',
    'storage/checkpoints.py',
  ],
  'RuntimeError': ['storage/checkpoints.py'],  # a defect, in the background
}


def explained(error, capsys):
  """(exit code, stderr) of an error."""
  code = processes.explain(error)
  return code, capsys.readouterr().err


def exceptions_of_the_package():
  for module in pkgutil.walk_packages([str(ROOT)], 'ddpm_jax.'):
    for value in vars(importlib.import_module(module.name)).values():
      is_error = isinstance(value, type) and issubclass(value, BaseException)
      if is_error and value.__module__.startswith('ddpm_jax.'):
        yield value


def test_all_exceptions_of_the_package_are_told_in_one_line():
  found = set(exceptions_of_the_package())
  assert found >= {UserError, DiskError, WriteError, NotFiniteError}
  others = {error for error in found if not issubclass(error, tuple(ONE_LINE))}
  assert {error.__name__ for error in others} == {'Interrupted'}  # which never gets out


def made(tree):
  """The names of exceptions that a module makes: raised at once, or returned to be raised."""
  for node in ast.walk(tree):
    name = getattr(getattr(node, 'func', None) or getattr(node, 'exc', None), 'id', '')
    is_call = isinstance(node, ast.Call) and name.endswith(('Error', 'Exception', 'Interrupt'))
    is_class = isinstance(node, ast.Raise) and not name.islower()  # not as in `raise error`
    if name and (is_call or is_class):
      yield name


def test_a_module_raises_what_is_told_in_one_line():
  """Python's own exceptions are for defects, which nobody raises: they are assertions."""
  own = {error.__name__ for error in exceptions_of_the_package()} - {'Interrupted'}
  found = {}
  for path in FILES:
    for name in set(made(ast.parse(path.read_text()))) - own:
      found.setdefault(name, []).append(path.relative_to(ROOT).as_posix())
  assert found == INTERNAL


def test_what_a_module_makes_is_seen():
  source = 'raise ValueError(1)\nerror = KeyError()\nraise error\nraise StopError\nx = print(1)'
  assert sorted(made(ast.parse(source))) == ['KeyError', 'StopError', 'ValueError']


@pytest.mark.parametrize('error', [UserError('mend this'), DiskError('a', OSError(5, 'Input'))])
@pytest.mark.parametrize('statement', ['raise error', 'raise error from KeyError(1)'])
@pytest.mark.parametrize('file', [pathlib.Path(__file__), ROOT / 'nn' / 'unet.py'])
def test_a_mistake_of_the_user_is_one_line_wherever_it_is_raised(error, statement, file, capsys):
  with pytest.raises(UserError) as info:
    exec(compile(statement, file, 'exec'), {'error': error})
  code, err = explained(info.value, capsys)
  assert code == (74 if isinstance(error, DiskError) else 1)
  assert err == f'error: {error}\n'


def defect_in_the_package():
  exec(compile('np.zeros(3).reshape(2, 2)', ROOT / 'nn' / 'unet.py', 'exec'), {'np': np})


@pytest.mark.parametrize(
  ('defect', 'file', 'message'),
  [
    (defect_in_the_package, 'nn/unet.py', 'ValueError: cannot reshape array of size 3 into'),
    (lambda: from_layout(np.zeros(3), 'conv'), 'interop/tensors.py', "ValueError: axes don't"),
  ],
)
def test_a_defect_in_the_package_keeps_its_traceback(defect, file, message, capsys):
  with pytest.raises(ValueError, match=message.removeprefix('ValueError: ')) as info:
    defect()
  code, err = explained(info.value, capsys)
  assert code == 1
  assert err.startswith('Traceback (most recent call last)')
  assert f'File "{ROOT / file}"' in err
  assert err.splitlines()[-1].startswith(message)


def test_a_file_that_the_system_refuses_is_named():
  cause = OSError(errno.ENOSPC, 'No space left on device')
  then = 'mend that, and the same command goes on'
  assert str(DiskError('a/b', cause)) == f'a/b cannot be used (No space left on device); {then}'
  assert str(WriteError('a/b', cause)) == f'a/b cannot be written (No space left on device); {then}'
  assert str(WriteError('a/b', OSError('in words'))) == f'a/b cannot be written (in words); {then}'


ARRAYS = {'x': np.arange(6, dtype=np.float32)}


def write_pictures(path, _):
  for file in (path, path.with_name('y.png')):
    PIL.Image.new('RGB', (4, 4)).save(file)


@pytest.mark.parametrize('number', [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize(
  ('name', 'write', 'read'),
  [
    ('x.npz', lambda path, arrays: np.savez(path, **arrays), open_npz),
    ('x.npz', lambda path, arrays: np.savez_compressed(path, **arrays), open_npz),
    ('x.safetensors', write_safetensors, read_safetensors),
    ('x.pth', write_torch_zip, read_torch_file),
    ('x.pth', write_torch_legacy, read_torch_file),
    ('x.index', lambda p, arrays: write_bundle(p.with_suffix(''), arrays), read_bundle),
    ('x.png', write_pictures, lambda path: open_images(path.parent, 'eval.samples')),
    (
      'x.png',
      write_pictures,
      lambda path: read_pictures(str(path), 'f', sizes=[(4, 4)], channels=3, what='x'),
    ),
  ],
)
def test_a_file_that_the_system_fails_to_read_is_no_damaged_one(
  tmp_path, fail_reads, capsys, name, write, read, number
):
  file = tmp_path / name
  write(file, ARRAYS)
  path = file.with_suffix('') if name == 'x.index' else file
  read(path)
  fail_reads(file, number)
  with pytest.raises(DiskError) as info:
    read(path)
  line = f'{file} cannot be used ({os.strerror(number)}); mend that, and the same command goes on'
  assert explained(info.value, capsys) == (74, f'error: {line}\n')


def raise_from(cause, effect):
  try:
    raise cause
  except type(cause):
    raise effect  # noqa: B904


@pytest.mark.parametrize(
  ('cause', 'code'),
  [
    (OSError(errno.EACCES, 'Permission denied'), 74),
    (RuntimeError('status: Permission denied [os error 13]'), 74),
    (UserError('a picture is damaged: Permission denied'), 1),
    (OSError(errno.ENOENT, 'No such file'), 1),
    (OSError('no network'), 1),
  ],
)
def test_the_code_of_an_answer_is_that_of_the_refusal_behind(cause, code, capsys):
  with pytest.raises(UserError) as info:
    raise_from(cause, UserError('--workdir=x cannot be written; give a folder that can'))
  expected = code, 'error: --workdir=x cannot be written; give a folder that can\n'
  assert explained(info.value, capsys) == expected
  with pytest.raises(UserError) as info:
    raise UserError('x') from None
  assert refusal_behind(info.value) is None


def test_the_first_metric_that_is_not_finite_is_named():
  metrics = {'loss': 1.0, 'grad_norm': float('inf'), 'x': float('nan')}
  error = NotFiniteError(7, metrics)
  assert (error.step, error.metrics) == (7, metrics)
  assert str(error).startswith('the grad_norm is inf at step 7; the last checkpoint is from before')
  assert '\n' not in str(error)
