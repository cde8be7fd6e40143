"""The folder of a run: one process a mode, one config."""

import errno
import json
import os

import pytest

from ddpm_jax.errors import UserError, WriteError
from ddpm_jax.storage.workdir import (
  deciding_fields,
  differing_fields,
  find_workdir,
  locked,
  open_workdir,
  store_arithmetic,
  store_config,
)
from tests.tiny import tiny_config


def test_makes_missing_folders_and_leaves_nothing_in_them(tmp_path):
  path = open_workdir(tmp_path / 'a/b')
  assert path.is_dir()
  assert list(path.iterdir()) == []


def test_folder_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match=r'--workdir=.*/file/run cannot be written \(Not a dir'):
    open_workdir(tmp_path / 'file/run')


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('lr=[1e-3]', r'has \[ and \] in it, which the library of checkpoints takes for something'),
    ('st*r', r'has \* in it'),
    ('wh?t', r'has \? in it'),
    ('back\\slash', r'has \\ in it'),
    ('gs:/bucket', 'has gs:/ in it'),
    ('not\udcffutf8', r'not\\udcffutf8. is not UTF-8; give a folder whose path is'),
  ],
)
def test_paths_that_checkpoints_cannot_have_are_refused_before_anything_is_made(
  tmp_path, name, message
):
  with pytest.raises(UserError, match=message) as info:
    open_workdir(tmp_path / name, saves_steps=True)
  assert '\n' not in str(info.value)
  assert list(tmp_path.iterdir()) == []
  if name[0] not in 'bgn':  # what is there can be read
    assert open_workdir(tmp_path / name).is_dir()


@pytest.mark.parametrize('address', ['gs://bucket/run', 's3://bucket', 'file:///a/b'])
def test_an_address_is_no_folder(address, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  for use in (open_workdir, find_workdir):
    with pytest.raises(UserError, match='is an address; give a local folder'):
      use(address)
  assert list(tmp_path.iterdir()) == []


def test_a_user_who_is_not_there_is_a_name_like_others(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  assert open_workdir('~nobody-of-this-name/run').is_dir()
  assert [path.name for path in tmp_path.iterdir()] == ['~nobody-of-this-name']


def test_second_process_of_a_mode_is_refused_and_told_of_the_first(tmp_path):
  with locked(tmp_path, 'train'):
    with locked(tmp_path, 'sample'):
      pass
    with (
      pytest.raises(UserError, match=r'in use by another --mode=train \(process \d+\)'),
      locked(tmp_path, 'train'),
    ):
      pass
  with locked(tmp_path, 'train'):
    pass


def test_lock_on_a_full_disk_names_its_file(tmp_path, monkeypatch):
  def fail(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, 'write', fail)
  with (
    pytest.raises(WriteError, match=r'\.train\.lock cannot be written \(No space left'),
    locked(tmp_path, 'train'),
  ):
    pass


def begin_run(path):
  """What the first logged step leaves."""
  (path / 'metrics.jsonl').write_text('{"step": 1}\n')


def test_config_that_decides_the_course_must_stay_once_the_run_has_begun(tmp_path):
  store_config(tmp_path, tiny_config(**{'model.ch': 96}))
  store_config(tmp_path, tiny_config())  # such as after a mistake in the first command
  begin_run(tmp_path)
  with pytest.raises(
    UserError, match=r'model\.ch: workdir 32, config 64; seed: workdir 0, config 7'
  ):
    store_config(tmp_path, tiny_config(**{'model.ch': 64, 'seed': 7}))
  assert json.loads((tmp_path / 'config.json').read_text())['model']['ch'] == 32


def test_a_folder_of_pictures_may_move_and_no_other_source(tmp_path):
  store_config(tmp_path, tiny_config(**{'data.source': 'folder:/a'}))
  begin_run(tmp_path)
  for moved in ('folder:/b/c', 'folder:a/', 'folder:/a/'):
    store_config(tmp_path, tiny_config(**{'data.source': moved}))
    assert json.loads((tmp_path / 'config.json').read_text())['data']['source'] == moved
  with pytest.raises(UserError, match=r'data\.source: workdir folder:.*, config digits'):
    store_config(tmp_path, tiny_config())


def test_damaged_config_is_named(tmp_path):
  (tmp_path / 'config.json').touch()
  begin_run(tmp_path)
  with pytest.raises(UserError, match=r'config\.json is damaged'):
    store_config(tmp_path, tiny_config())


def test_length_and_logging_may_change(tmp_path):
  store_config(tmp_path, tiny_config())
  begin_run(tmp_path)
  store_config(tmp_path, tiny_config(**{'train.num_steps': 99, 'train.log_every_steps': 7}))
  assert json.loads((tmp_path / 'config.json').read_text())['train']['num_steps'] == 99


def test_fields_that_decide_nothing_are_left_out():
  fields = deciding_fields(tiny_config(), 'model')
  assert fields['ch'] == 32
  assert 'remat' not in fields


def test_differing_fields_knows_sections_fields_and_absence():
  stored = {'model': {'ch': 1, 'gone': 2}, 'modelling': 3, 'data': {'dir': 4, 'size': 5}}
  current = {'model': {'ch': 1, 'new': 6}, 'modelling': 4, 'data': {'dir': 9, 'size': 8}}
  assert differing_fields(stored, current, ('model', 'data.size'), stored_name='old') == [
    'data.size: old 5, config 8',
    'model.gone: old 2, config absent',
    'model.new: old absent, config 6',
  ]


def test_workdir_without_checkpoints_is_not_found(tmp_path):
  with pytest.raises(UserError, match='holds no checkpoint'):
    find_workdir(tmp_path)
  (tmp_path / 'checkpoints').mkdir()
  assert find_workdir(tmp_path) == tmp_path


def test_a_run_keeps_the_arithmetic_that_it_began_with(tmp_path):
  fast = {'XLA_FLAGS: xla_cpu_enable_fast_math': 'true'}
  store_arithmetic(tmp_path, fast)  # such as in a first command that failed
  store_arithmetic(tmp_path, {'NVIDIA_TF32_OVERRIDE': '0'})
  begin_run(tmp_path)
  store_arithmetic(tmp_path, {'NVIDIA_TF32_OVERRIDE': '0'})
  with pytest.raises(
    UserError, match=r'another arithmetic \(NVIDIA_TF32_OVERRIDE: then 0, now abs'
  ):
    store_arithmetic(tmp_path, {})


def test_a_run_of_the_usual_arithmetic_keeps_that_without_a_file(tmp_path):
  store_arithmetic(tmp_path, {})
  begin_run(tmp_path)
  store_arithmetic(tmp_path, {})
  assert not (tmp_path / 'arithmetic.json').exists()
  with pytest.raises(UserError, match=r'\(NVIDIA_TF32_OVERRIDE: then absent, now 0\): set that as'):
    store_arithmetic(tmp_path, {'NVIDIA_TF32_OVERRIDE': '0'})


def test_fields_that_earlier_versions_lack_decide_nothing_until_they_are_given():
  config = tiny_config()
  assert 'sigma_data' not in deciding_fields(config, 'diffusion')
  config.diffusion.sigma_data = 0.1
  assert deciding_fields(config, 'diffusion')['sigma_data'] == 0.1
