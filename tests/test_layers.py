"""The house's rules on who imports whom, read from the source."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / 'ddpm_jax').rglob('*.py'))

# Rooms, from the ground up: a file imports its own room and those below. Files not named here are
# of the room of devices and I/O.
ROOMS = {
  'schedules gaussians diffusion likelihood samplers': 1,  # mathematics
  'unet winograd inception digits_classifier': 2,  # networks
  'train_state steps': 3,  # pure steps
  'build': 5,
  'train sample bounds scores evaluate reproduce import_model export_model': 6,  # loops
}
ROOM = {name: room for names, room in ROOMS.items() for name in names.split()}
LIBRARIES = {1: {'numpy', 'jax'}, 2: {'flax'}, 3: {'optax'}}  # each room has those below it too

# Only parallel.py may know how many devices and processes there are, and place arrays on them.
DEVICE_NAMES = {
  'pmap',
  'shard_map',
  'device_put',
  'Mesh',
  'make_mesh',
  'NamedSharding',
  'PartitionSpec',
  'process_index',
  'process_count',
  'multihost_utils',
}


def module_name(path):
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {module_name(path) for path in FILES}


def imported_modules(tree):
  """Dotted names of all modules a file imports, at its top or within a function."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, 'relative import'
      for alias in node.names:
        inner = f'{node.module}.{alias.name}'
        yield inner if inner in MODULES else node.module


def room_of(module):
  return ROOM.get(module.split('.')[1], 4) if '.' in module else 0


def each_file(*, below_room=None):
  chosen = [
    path for path in FILES if below_room is None or 0 < room_of(module_name(path)) < below_room
  ]
  return pytest.mark.parametrize('path', chosen, ids=[module_name(path) for path in chosen])


def parse(path):
  return ast.parse(path.read_text())


@each_file()
def test_imports_point_one_way(path):
  own = room_of(module_name(path))
  for module in imported_modules(parse(path)):
    if module in MODULES:
      assert room_of(module) <= own, f'{module} is above'
    assert module.split('.')[0] not in ('main', 'configs', 'tests'), module


@each_file(below_room=4)
def test_pure_rooms_import_their_libraries_alone(path):
  allowed = set(sys.stdlib_module_names) | {'ddpm_jax'}
  for room in range(1, room_of(module_name(path)) + 1):
    allowed |= LIBRARIES[room]
  assert {module.split('.')[0] for module in imported_modules(parse(path))} <= allowed


@each_file(below_room=4)
def test_pure_rooms_read_and_write_no_files(path):
  names = {node.id for node in ast.walk(parse(path)) if isinstance(node, ast.Name)}
  assert not names & {'open', 'print', 'input'}
  modules = {module.split('.')[0] for module in imported_modules(parse(path))}
  assert not modules & {'os', 'pathlib', 'logging', 'random', 'time', 'urllib'}


@each_file()
def test_devices_are_in_parallel_alone(path):
  if module_name(path) == 'ddpm_jax.parallel':
    return
  for node in ast.walk(parse(path)):
    if isinstance(node, ast.Attribute) and node.attr in DEVICE_NAMES:
      assert ast.unparse(node.value).split('.')[0] != 'jax', ast.unparse(node)
    if isinstance(node, ast.ImportFrom) and node.module.split('.')[0] == 'jax':
      assert not {alias.name for alias in node.names} & DEVICE_NAMES


@each_file()
def test_nobody_imports_private_jax_or_another_framework(path):
  for module in imported_modules(parse(path)):
    assert not module.startswith('jax._src'), module
    assert module.split('.')[0] not in ('tensorflow', 'torch', 'torchvision', 'jaxlib'), module
  names = {ast.unparse(node) for node in ast.walk(parse(path)) if isinstance(node, ast.Attribute)}
  assert not any(name.startswith('jax._src') for name in names)


def test_only_loops_build_things_from_the_config():
  importers = {
    module_name(path) for path in FILES if 'ddpm_jax.build' in imported_modules(parse(path))
  }
  assert importers
  assert {room_of(module) for module in importers} == {6}


def test_reading_of_pictures_needs_no_jax():
  # Its worker processes start quickly and take no device.
  for path in (ROOT / 'ddpm_jax' / 'data').glob('*.py'):
    for module in imported_modules(parse(path)):
      assert module.split('.')[0] not in ('jax', 'flax', 'optax'), path
      ours = module.startswith('ddpm_jax.data') or module == 'ddpm_jax.files'
      assert module not in MODULES or ours, path
