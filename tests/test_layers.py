"""The house's rules on who imports whom, read from the source."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / 'ddpm_jax').rglob('*.py'))

# Rooms, from the ground up: a file imports its own room and those of lower floors; between rooms of
# one floor, arrows go one way (test_rooms_have_no_circle).
FLOORS = {
  'errors': 0,
  'heeding': 0,
  'paths': 0,
  'numerics': 1,
  'processes': 1,
  'refusals': 1,
  'signals': 1,
  'diffusion': 2,
  'data': 2,
  'storage': 2,
  'sampling': 3,
  'nn': 3,
  'devices': 3,
  'interop': 3,
  'codec': 4,
  'training': 4,
  'evaluation': 4,
  'config': 5,
  'model': 6,
  'trainer': 6,
  'modes': 7,
  '__main__': 8,
}
MATHEMATICS = ('diffusion', 'sampling')
LIBRARIES = {  # of rooms that need few
  'errors': {'numpy'},
  'diffusion': {'numpy', 'jax'},
  'sampling': {'numpy', 'jax'},
  'codec': {'numpy', 'jax'},
  'nn': {'numpy', 'jax', 'flax'},
}

# Only devices.py knows how many devices there are and places arrays on them, and only processes.py
# makes the processes meet.
DEVICE_NAMES = {
  'pmap',
  'shard_map',
  'device_put',
  'Mesh',
  'make_mesh',
  'NamedSharding',
  'PartitionSpec',
}
PROCESS_NAMES = {'process_index', 'multihost_utils'}
# JAX has no setting for the address at which Gloo listens.
PRIVATE = {'ddpm_jax.processes': {'jaxlib'}}


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
  """'diffusion' of 'ddpm_jax.diffusion.bound'; '' of the package itself."""
  return module.split('.')[1] if '.' in module else ''


def rooms_imported(path):
  imported = imported_modules(parse(path))
  return {room_of(module) for module in imported if module in MODULES} - {''}


def each_file(*rooms):
  chosen = [path for path in FILES if not rooms or room_of(module_name(path)) in rooms]
  assert chosen
  return pytest.mark.parametrize('path', chosen, ids=[module_name(path) for path in chosen])


def parse(path):
  return ast.parse(path.read_text())


def test_every_room_has_its_floor():
  assert {room_of(module) for module in MODULES} - {''} == set(FLOORS)


@each_file()
def test_imports_point_one_way(path):
  own = room_of(module_name(path)) or '__main__'  # what the package hands on is of the top
  for room in rooms_imported(path):
    assert FLOORS[room] <= FLOORS[own], f'{room} is above'
  for module in imported_modules(parse(path)):
    assert module.split('.')[0] not in ('main', 'configs', 'tests'), module


def test_rooms_have_no_circle():
  arrows = {room: set() for room in FLOORS}
  for path in FILES:
    if own := room_of(module_name(path)):
      arrows[own] |= rooms_imported(path) - {own}
  while arrows:  # take away what rests on nothing that is left
    free = {room for room, others in arrows.items() if not others & arrows.keys()}
    assert free, f'a circle among {sorted(arrows)}'
    arrows = {room: others for room, others in arrows.items() if room not in free}


@each_file(*LIBRARIES)
def test_pure_rooms_import_their_libraries_alone(path):
  allowed = set(sys.stdlib_module_names) | {'ddpm_jax'} | LIBRARIES[room_of(module_name(path))]
  assert {module.split('.')[0] for module in imported_modules(parse(path))} <= allowed


@each_file(*LIBRARIES)
def test_pure_rooms_read_and_write_no_files(path):
  names = {node.id for node in ast.walk(parse(path)) if isinstance(node, ast.Name)}
  assert not names & {'open', 'print', 'input'}
  modules = {module.split('.')[0] for module in imported_modules(parse(path))}
  assert not modules & {'os', 'pathlib', 'logging', 'random', 'time', 'urllib'}


@each_file()
def test_devices_and_processes_have_one_file_each(path):
  names = set()
  if module_name(path) != 'ddpm_jax.devices':
    names |= DEVICE_NAMES
  if module_name(path) != 'ddpm_jax.processes':
    names |= PROCESS_NAMES
  for node in ast.walk(parse(path)):
    if isinstance(node, ast.Attribute) and node.attr in names:
      assert ast.unparse(node.value).split('.')[0] != 'jax', ast.unparse(node)
    if isinstance(node, ast.ImportFrom) and node.module.split('.')[0] == 'jax':
      assert not {alias.name for alias in node.names} & names


@each_file()
def test_nobody_imports_private_jax_or_another_framework(path):
  for module in imported_modules(parse(path)):
    assert not module.startswith('jax._src'), module
    others = {'tensorflow', 'torch', 'torchvision', 'jaxlib'} - PRIVATE.get(
      module_name(path), set()
    )
    assert module.split('.')[0] not in others, module
  names = {ast.unparse(node) for node in ast.walk(parse(path)) if isinstance(node, ast.Attribute)}
  assert not any(name.startswith('jax._src') for name in names)


def test_only_modes_and_formats_of_others_know_the_config():
  for path in FILES:
    if 'ml_collections' in imported_modules(parse(path)):
      assert room_of(module_name(path)) in (
        'modes',
        'config',
        'model',
        'trainer',
        'storage',
        'interop',
      ), path


def test_a_user_who_is_not_there_is_no_traceback():
  """pathlib's expanduser raises a RuntimeError for ~nobody/a; that of os.path leaves it a name."""
  for path in FILES:
    if module_name(path) != 'ddpm_jax.devices':  # which tells it
      assert '.expanduser()' not in path.read_text(), path


def test_reading_of_pictures_needs_no_jax():
  # Its worker processes start quickly and take no device.
  for path in (ROOT / 'ddpm_jax' / 'data').glob('*.py'):
    for module in imported_modules(parse(path)):
      assert module.split('.')[0] not in ('jax', 'flax', 'optax'), path
      allowed = tuple(
        f'ddpm_jax.{name}'
        for name in ('data', 'errors', 'paths', 'refusals', 'storage.files', 'storage.npz')
      )
      assert module not in MODULES or module.startswith(allowed), path


def test_what_a_network_predicts_is_read_in_one_file():
  # Its names are known to prediction.py, the config's builders and other programs' formats.
  mentions = 0
  for path in FILES:
    module = module_name(path)
    if module == 'ddpm_jax.diffusion.prediction' or room_of(module) == 'interop':
      continue
    mentions += sum(path.read_text().count(word) for word in ('mean_type', 'var_type'))
  assert mentions <= 12
