"""No split is measured as held out that was trained on."""

import json

import numpy as np
import PIL.Image
import pytest

from ddpm_jax.config import build
from ddpm_jax.errors import UserError
from ddpm_jax.storage.workdir import config_dict
from tests.tiny import tiny_config


@pytest.fixture
def folder(tmp_path):
  """A folder of 40 pictures."""
  (tmp_path / 'pictures').mkdir()
  images = np.random.RandomState(0).randint(0, 256, (40, 8, 8), np.uint8)
  for i, image in enumerate(images):
    PIL.Image.fromarray(image).save(tmp_path / f'pictures/{i:02d}.png')
  return tmp_path / 'pictures'


def store(path, config):
  """A workdir with a config alone."""
  path.mkdir()
  (path / 'config.json').write_text(json.dumps(config_dict(config)))
  return path


def measured(config, path, *names, field='eval.bpd_splits'):
  """(names of the splits that are measured, lines)."""
  sources, lines = build.measured_splits(config, path, names, field)
  return [source.split for source in sources], lines


def of(folder, **fields):
  return tiny_config(**{'data.source': f'folder:{folder}'} | fields)


def test_a_folder_of_one_set_has_no_test_figure(folder):
  names, lines = measured(of(folder), None, 'train', 'test')
  assert names == ['train']
  (line,) = lines
  assert line.startswith("No figures of the split test: eval.bpd_splits='test': ")
  with pytest.raises(UserError, match=r'^eval\.bpd_splits: No figures of the split test'):
    measured(of(folder), None, 'test')


def test_a_split_that_is_misspelt_is_named_by_its_field(folder):
  with pytest.raises(UserError, match=r"^eval\.bpd_splits='tset'"):
    measured(of(folder), None, 'train', 'tset')


def test_a_hold_out_is_measured_by_the_run_that_made_it(folder, tmp_path):
  config = of(folder, **{'data.holdout': 0.3})
  run = store(tmp_path / 'run', config)
  assert measured(config, run, 'train', 'test') == (['train', 'test'], [])
  plain = store(tmp_path / 'plain', of(folder))
  for given, workdir in ((config, plain), (of(folder, **{'data.holdout': 0.2}), run)):
    with pytest.raises(UserError, match=r'data\.holdout is .*, but the run in .* was trained with'):
      measured(given, workdir, 'train', 'test')


def test_what_was_trained_on_stands_in_the_workdir(tmp_path):
  run = store(tmp_path / 'run', tiny_config(**{'data.split': 'all'}))
  names, (line,) = measured(tiny_config(), run, 'train', 'test')
  assert names == ['train']
  assert line.startswith('No figures of the split test: this run trained on its pictures (data.spl')


@pytest.mark.parametrize('step', ['', '@4'])
def test_a_branch_has_seen_what_its_origin_has(folder, tmp_path, step):
  first = store(tmp_path / 'first', of(folder))
  second = of(folder, **{'data.holdout': 0.3, 'init_from': f'{first}{step}'})
  path = store(tmp_path / 'second', second)
  third = of(folder, **{'data.holdout': 0.3, 'init_from': str(path)})
  for config, workdir in ((second, path), (third, store(tmp_path / 'third', third))):
    names, (line,) = measured(config, workdir, 'train', 'test')
    assert names == ['train']
    assert f'{first}{step}, which this run began from, trained on its pictures' in line


def test_a_branch_on_other_data_has_not(folder, tmp_path):
  first = store(tmp_path / 'first', of(folder))
  config = tiny_config(**{'init_from': str(first)})
  assert measured(config, store(tmp_path / 'run', config), 'test') == (['test'], [])


def test_an_origin_that_does_not_tell_its_data_is_noted(tmp_path):
  origin = f'{tmp_path}/gone@3'
  line = f'{origin}, which this run began from, does not tell whether it trained on the split test.'
  for given, lines in (('digits', []), (origin, [line])):
    config = tiny_config(**{'init_from': given})
    assert measured(config, None, 'train', 'test') == (['train', 'test'], lines)


def test_links_to_pictures_that_were_trained_on_are_found(folder):
  (folder / 'train').mkdir()
  (folder / 'test').mkdir()
  for file in folder.glob('*.png'):
    file.rename(folder / 'train' / file.name)
  (folder / 'test/a.png').symlink_to(folder / 'train/05.png')
  (folder / 'test/b.png').hardlink_to(folder / 'train/06.png')
  PIL.Image.new('L', (8, 8)).save(folder / 'test/c.png')
  names, (line,) = measured(of(folder), None, 'train', 'test')
  assert names == ['train']
  assert line == (
    'No figures of the split test: 2 of its 3 pictures are files of the split train, which was '
    'trained on'
  )
