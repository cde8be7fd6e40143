"""Files that are whole or absent, and locks that are waited for."""

import errno
import threading

import pytest

from ddpm_jax import files


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

  with pytest.raises(ValueError, match=r'a\.txt cannot be written \(No space left on device\)'):
    write_half()
  assert [path.name for path in tmp_path.iterdir()] == ['a.txt']
  assert file.read_text() == 'earlier'


def test_a_folder_that_is_gone_is_named(tmp_path):
  with pytest.raises(ValueError, match='No such file or directory'):
    files.write_text(tmp_path / 'gone' / 'a.txt', 'text')


def test_second_holder_waits_for_the_first(tmp_path, capsys):
  file, order = tmp_path / 'made' / 'cache.lock', []

  def second():
    with files.held(file, waiting_for='the cache'):
      order.append('second')

  thread = threading.Thread(target=second)
  with files.held(file, waiting_for='the cache'):
    thread.start()
    thread.join(0.3)
    order.append('first')
  thread.join(10)
  assert order == ['first', 'second']
  assert capsys.readouterr().out == 'waits for the cache\n'
