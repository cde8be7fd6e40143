"""Public functions and methods say their types, and the package says that it is typed."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1] / 'ddpm_jax'
FILES = sorted(ROOT.rglob('*.py'))


def public_functions(body):
  """Functions, and methods of classes, whose names have no underscore at their head."""
  for node in body:
    if isinstance(node, ast.FunctionDef) and not node.name.startswith('_'):
      yield node
    if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
      yield from public_functions(node.body)


def missing_annotations(function):
  arguments = function.args
  every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
  every += [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
  missing = [x.arg for x in every if x.annotation is None and x.arg not in ('self', 'cls')]
  return missing + (['return'] if function.returns is None else [])


@pytest.mark.parametrize('path', FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_public_functions_are_annotated(path):
  found = {
    function.name: missing
    for function in public_functions(ast.parse(path.read_text()).body)
    if (missing := missing_annotations(function))
  }
  assert not found


def test_an_annotation_that_lacks_is_found():
  (function,) = public_functions(ast.parse('def f(x, *, y: int): ...').body)
  assert missing_annotations(function) == ['x', 'return']


def test_the_package_is_marked_as_typed():
  assert (ROOT / 'py.typed').is_file()
