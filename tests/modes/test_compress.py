"""Pictures to files and back by the command line: what is written, and what is refused."""

import csv

import numpy as np
import PIL.Image
import pytest

from ddpm_jax.codec import read_file
from ddpm_jax.data.digits import load_digits
from ddpm_jax.errors import UserError
from ddpm_jax.modes.compress import compress
from ddpm_jax.modes.decompress import decompress
from tests.tiny import tiny_config

pytestmark = pytest.mark.usefixtures('one_layer')
DIGITS = load_digits('test')[0][:3].reshape(3, 8, 8).astype(np.uint8)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
  folder = tmp_path_factory.mktemp('own')
  for i, digit in enumerate(DIGITS):
    PIL.Image.fromarray(digit).save(folder / f'digit{i}.png')
  return folder


def run(mode, workdir, kind, **fields):
  """The folder of the results."""
  before = {*workdir.glob(f'{kind}/*/*')}
  mode(tiny_config(**fields), workdir)
  (folder,) = {*workdir.glob(f'{kind}/*/*')} - before
  return folder


def compressed(workdir, pictures, **fields):
  fields = {'compress.images': str(pictures), **fields}
  return run(compress, workdir, 'compressed', **fields)


def decoded(workdir, files, **fields):
  folder = run(decompress, workdir, 'decompressed', **{'decompress.files': str(files), **fields})
  assert (folder / 'sheet.png').is_file()
  found = sorted(path for path in folder.glob('*.png') if path.name != 'sheet.png')
  return [path.stem for path in found], np.stack([np.asarray(PIL.Image.open(x)) for x in found])


def test_pictures_come_back_and_a_table_is_kept(workdir, pictures, capsys):
  folder = compressed(workdir, pictures)
  assert folder.name.startswith('lossless-fast_')
  said = capsys.readouterr().out
  assert 'fits the table of the codec' in said
  assert '3 examples in' in said
  (table,) = (workdir / 'codec').iterdir()
  assert str(table) in said
  names, images = decoded(workdir, folder)
  assert names == ['digit0', 'digit1', 'digit2']
  np.testing.assert_array_equal(images, DIGITS)
  with open(folder / 'sizes.csv') as stream:
    rows = list(csv.DictReader(stream))
  for row in rows:
    data = (folder / f'{row["name"]}.ddpc').read_bytes()
    assert int(row['bytes']) == len(data)
    assert int(row['payload_bytes']) == sum(map(len, read_file(data).sections)) - 4
  archive = compressed(workdir, pictures, **{'compress.archive': True})
  assert 'fits the table' not in capsys.readouterr().out
  names, images = decoded(workdir, archive)
  assert names == [f'pictures-000{i}' for i in range(3)]
  np.testing.assert_array_equal(images, DIGITS)


def test_two_archives_together_lose_nothing(workdir, pictures, tmp_path):
  first = compressed(workdir, pictures, **{'compress.archive': True, 'compress.seed': 4})
  second = compressed(
    workdir, pictures / 'digit2.png', **{'compress.archive': True, 'compress.seed': 5}
  )
  given = ','.join(str(folder / 'pictures.ddpa') for folder in (first, second))
  names, images = decoded(workdir, given)
  assert len(names) == 4
  found = dict(zip(names, images, strict=True))
  for i in range(3):
    np.testing.assert_array_equal(found[f'pictures-000{i}'], DIGITS[i])
  np.testing.assert_array_equal(found['0003-pictures-0000'], DIGITS[2])


def test_what_a_file_has_less_than_its_picture_is_told(workdir, pictures, tmp_path, capsys):
  grey = PIL.Image.fromarray(DIGITS[0])
  grey.convert('RGB').save(tmp_path / 'same.png')
  red = np.stack([DIGITS[1], DIGITS[0], DIGITS[0]], -1)
  PIL.Image.fromarray(red).save(tmp_path / 'colour.png')
  PIL.Image.fromarray(DIGITS[0].astype(np.uint16) * 257).save(tmp_path / 'deep.png')
  PIL.Image.new('LA', (8, 8), (255, 128)).save(tmp_path / 'clear.png')
  compressed(workdir, tmp_path)
  said = capsys.readouterr().out
  for name, is_told in (('same', False), ('colour', True), ('deep', True), ('clear', True)):
    line = f'{tmp_path / name}.png is compressed as grey of 8 bits, which has less than the picture'
    assert (line in said) == is_told
  PIL.Image.fromarray(DIGITS[0].astype(np.float32)).save(tmp_path / 'float.tif')
  with pytest.raises(UserError, match=r'compress.images: .*float.tif is of mode F, more than 16'):
    compressed(workdir, tmp_path / 'float.tif')


def test_cut_files_give_a_picture_and_a_warning(workdir, pictures, tmp_path, capsys):
  folder = compressed(workdir, pictures, **{'compress.seed': 3})
  for file in folder.glob('*.ddpc'):
    (tmp_path / file.name).write_bytes(file.read_bytes()[:-1])
  names, images = decoded(workdir, tmp_path, **{'decompress.realism': 0.5})
  assert len(names) == 3
  assert images.shape == DIGITS.shape
  said = capsys.readouterr().out
  assert said.count('warning: ') == 3
  assert f'{tmp_path / "digit0.ddpc"} is cut off or damaged' in said


def test_a_target_that_cannot_be_met_is_told(workdir, pictures, capsys):
  folder = compressed(workdir, pictures, **{'compress.target': 'bytes:10'})
  assert folder.name.startswith('bytes-10-fast')
  assert '3 examples take more than 10 bytes, digit0 first' in capsys.readouterr().out
  _, images = decoded(workdir, folder)
  assert (images == images[0]).all()  # the mean of the training data


@pytest.mark.parametrize(
  ('mode', 'fields', 'words'),
  [
    (compress, {}, 'compress.images is not given'),
    (compress, {'compress.images': 'x', 'compress.target': 'all'}, 'compress.target is'),
    (compress, {'compress.images': 'x', 'compress.search': 'slow'}, 'compress.search is'),
    (compress, {'compress.images': 'missing'}, 'compress.images=missing does not exist'),
    (compress, {'compress.images': 'x', 'diffusion.mean_type': 'xprev'}, 'predicts xprev'),
    (decompress, {}, 'decompress.files is not given'),
    (decompress, {'decompress.files': 'missing'}, 'missing does not exist'),
    (decompress, {'decompress.files': 'x', 'decompress.completion': 'x'}, 'completion is'),
    (decompress, {'decompress.files': 'x', 'decompress.realism': 2.0}, 'realism is'),
  ],
)
def test_what_cannot_be_used_is_refused(workdir, mode, fields, words):
  with pytest.raises(UserError, match=words):
    mode(tiny_config(**fields), workdir)


def test_other_files_are_refused(workdir, pictures, tmp_path):
  with pytest.raises(UserError, match=r'has no files that end with \.ddpc'):
    decompress(tiny_config(**{'decompress.files': str(pictures)}), workdir)
  with pytest.raises(UserError, match='is no compressed example'):
    decompress(tiny_config(**{'decompress.files': str(pictures / 'digit0.png')}), workdir)
  table = next((workdir / 'codec').iterdir())
  content = table.read_bytes()
  table.write_bytes(content[:100])
  with pytest.raises(UserError, match='not an intact'):
    compressed(workdir, pictures, **{'compress.seed': 9})
  table.write_bytes(content)
