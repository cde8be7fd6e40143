"""Files that are whole or absent, and locks that are waited for."""

import errno
import os
import pathlib
import re
import threading

import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.storage import files


def test_text_is_written_and_nothing_else_is_left(tmp_path):
  files.write_text(tmp_path / 'a.txt', 'one\n')
  files.write_text(tmp_path / 'a.txt', 'two\n')
  assert [path.name for path in tmp_path.iterdir()] == ['a.txt']
  assert (tmp_path / 'a.txt').read_text() == 'two\n'


def test_full_disk_leaves_the_earlier_file_and_says_so(tmp_path):
  file = tmp_path / 'a.txt'
  files.write_text(file, 'earlier')

  def write_half():
    with files.written_whole(file) as partial:
      partial.write_text('half of i')
      raise OSError(errno.ENOSPC, 'No space left on device')

  with pytest.raises(UserError, match=r'a\.txt cannot be written \(No space left on device\)'):
    write_half()
  assert [path.name for path in tmp_path.iterdir()] == ['a.txt']
  assert file.read_text() == 'earlier'


def test_a_folder_is_whole_or_absent(tmp_path):
  folder = tmp_path / 'a'

  def write(*names, error=None):
    with files.written_whole(folder) as partial:
      (partial / 'b').mkdir(parents=True)
      for name in names:
        (partial / 'b' / name).touch()
      if error is not None:
        raise error

  for error, raised in (
    (OSError(errno.EROFS, 'Read-only file system'), 'a cannot be written (Read-only file system)'),
    (RuntimeError('I/O error: No space left on device (os error 28)'), 'written (No space left on'),
    (KeyError('a defect'), 'a defect'),
  ):
    with pytest.raises(Exception, match=re.escape(raised)) as info:
      write('one', error=error)
    assert isinstance(info.value, files.WriteError) != isinstance(error, KeyError)
    assert list(tmp_path.iterdir()) == []
  with pytest.raises(KeyboardInterrupt):  # what it leaves is no part of the next
    write('one', error=KeyboardInterrupt())
  write('two')
  assert [path.name for path in folder.rglob('*')] == ['b', 'two']
  assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_is_gone_is_named(tmp_path):
  with pytest.raises(UserError, match='No such file or directory'):
    files.write_text(tmp_path / 'gone' / 'a.txt', 'text')


def test_second_holder_waits_for_the_first(tmp_path, capsys):
  file, order = tmp_path / 'made' / 'cache.lock', []

  def second():
    with files.file_lock(file, waiting_for='the cache'):
      order.append('second')

  thread = threading.Thread(target=second)
  with files.file_lock(file, waiting_for='the cache'):
    thread.start()
    thread.join(0.3)
    order.append('first')
  thread.join(10)
  assert order == ['first', 'second']
  assert capsys.readouterr().out == 'waits for the cache\n'


def test_content_is_on_disk_before_the_name_is(tmp_path, monkeypatch):
  synced = []

  def fsync(descriptor):
    path = os.readlink(f'/proc/self/fd/{descriptor}')
    synced.append((os.path.basename(path), (tmp_path / 'a.txt').exists()))

  monkeypatch.setattr(files.os, 'fsync', fsync)
  files.write_text(tmp_path / 'a.txt', 'text')
  assert synced == [('.a.txt.partial', False), (tmp_path.name, True)]


def test_file_systems_that_cannot_sync_folders_will_do(tmp_path, monkeypatch):
  def fsync(descriptor):
    raise OSError(errno.EINVAL, 'Invalid argument')

  monkeypatch.setattr(files.os, 'fsync', fsync)
  files.write_text(tmp_path / 'a.txt', 'text')
  assert (tmp_path / 'a.txt').read_text() == 'text'


@pytest.mark.parametrize('content', [b'', b'{"step": 1', b'\\xff\\xfe'])
def test_damaged_json_is_named(tmp_path, content):
  file = tmp_path / 'a.json'
  file.write_bytes(content)
  with pytest.raises(
    UserError, match=r'a\.json is damaged \(.*\): put back what it had, or delete'
  ):
    files.read_json(file)


def test_absent_json_is_another_matter(tmp_path):
  with pytest.raises(FileNotFoundError):
    files.read_json(tmp_path / 'a.json')


def test_default_cache_dir(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  assert files.default_cache_dir() == tmp_path / 'ddpm_jax'
  for value in ('', 'relative'):
    monkeypatch.setenv('XDG_CACHE_HOME', value)
    assert files.default_cache_dir() == pathlib.Path.home() / '.cache/ddpm_jax'
