"""Recordings in files: whole windows of each, and one line for what does not go together."""

import numpy as np
import pytest

from ddpm_jax.data import DamagedDataError, NoSplitError, make_source, read_labels
from ddpm_jax.data.encoding import find_encoding
from ddpm_jax.errors import UserError

soundfile = pytest.importorskip('soundfile')
RNG = np.random.default_rng(0)


def record(path, samples, *, subtype='PCM_16', rate=8000):
  path.parent.mkdir(parents=True, exist_ok=True)
  soundfile.write(path, samples, rate, subtype=subtype)
  return samples


def noise(length, channels=2):
  return RNG.integers(-30_000, 30_000, (length, channels)).astype(np.int16)


def open_signals(folder, length=10, channels=2, split='train', **choices):
  return make_source(
    f'signals:{folder}', dir=None, image_size=(length,), channels=channels, split=split, **choices
  )


@pytest.mark.parametrize('suffix', ['wav', 'flac'])
@pytest.mark.parametrize(
  ('stride', 'starts'), [(None, [0, 10, 20]), (4, [0, 4, 8, 12, 16, 20, 24])]
)
def test_windows_are_those_of_each_file_and_go_over_no_end(tmp_path, suffix, stride, starts):
  recordings = [
    record(tmp_path / f'b/1.{suffix}', noise(35)), record(tmp_path / f'b/2.{suffix}', noise(10)),
  ]  # fmt: skip
  source = open_signals(tmp_path, stride=stride)
  expected = [recordings[0][i : i + 10] for i in starts] + [recordings[1]]
  assert (len(source), source.image_shape, source.rate) == (len(starts) + 1, (10, 2), 8000)
  read = source.read(np.arange(len(source)))
  assert read.dtype == np.int16
  np.testing.assert_array_equal(read, expected)
  names = [f'b/1.{suffix}'.encode()] * len(starts) + [f'b/2.{suffix}'.encode()]
  assert source.picture_names() == names


@pytest.mark.parametrize(
  ('subtype', 'dtype'),
  [('PCM_U8', 'int8'), ('PCM_16', 'int16'), ('PCM_24', 'float32'), ('PCM_32', 'float64'),
   ('FLOAT', 'float32'), ('DOUBLE', 'float64')],
)  # fmt: skip
def test_samples_of_every_depth_are_kept(tmp_path, subtype, dtype):
  samples = np.round(RNG.uniform(-1, 1, (20, 1)) * 100) / 128
  record(tmp_path / 'a.wav', samples, subtype=subtype)
  source = open_signals(tmp_path, channels=1)
  read = source.read(np.arange(2)).reshape(20, 1)
  assert read.dtype == dtype
  full_scale = {'int8': 128, 'int16': 32768}.get(dtype, 1)
  np.testing.assert_allclose(read / full_scale, samples, atol=1e-6)
  encoding = find_encoding(source, 65536 if dtype == 'int16' else None, None, 1)
  assert encoding.levels == {'int8': 256, 'int16': 65536}.get(dtype)


@pytest.mark.parametrize(
  ('text', 'dtype'), [('1,2\n3,-4\n5,6\n', 'int32'), ('ax,ay\n1.5,2\n3,-4e-1\n5,6\n', 'float64')]
)
def test_columns_of_a_table_are_channels(tmp_path, text, dtype):
  (tmp_path / 'a.csv').write_text(text)
  source = open_signals(tmp_path, length=3)
  read = source.read(np.array([0]))
  assert (read.dtype, read.shape) == (dtype, (1, 3, 2))
  assert read[0, 1].tolist() == ([3, -4] if dtype == 'int32' else [3, -0.4])
  assert source.channel_names == (None if dtype == 'int32' else ('ax', 'ay'))
  assert source.rate is None


def test_splits_go_by_the_folder_or_by_the_file(tmp_path):
  for i in range(20):
    record(tmp_path / f'all/{i}.wav', noise(50))
  parts = [open_signals(tmp_path / 'all', split=x, holdout=0.3) for x in ('train', 'test')]
  files = [set(part.picture_names()) for part in parts]
  assert not files[0] & files[1]
  assert len(files[0] | files[1]) == 20
  assert [part.rate for part in parts] == [8000, 8000]
  with pytest.raises(NoSplitError, match=r'--config\.data\.holdout=0\.1'):
    open_signals(tmp_path / 'all', split='test')
  train = record(tmp_path / 'split/train/a.wav', noise(10))
  test = record(tmp_path / 'split/test/b.wav', noise(10))
  for split, samples in (('train', train), ('test', test)):
    np.testing.assert_array_equal(
      open_signals(tmp_path / 'split', split=split).read([0])[0], samples
    )


def test_the_folder_of_a_file_is_its_class(tmp_path):
  record(tmp_path / 'walk/a.wav', noise(30))
  record(tmp_path / 'run/b.wav', noise(20))
  labels = read_labels(open_signals(tmp_path), 'folders')
  assert labels.names == ('run', 'walk')
  assert labels.ids.tolist() == [0, 0, 1, 1, 1]


def test_what_is_left_out_is_counted(tmp_path):
  record(tmp_path / 'a.wav', noise(30))
  record(tmp_path / 'b.wav', noise(9))
  (tmp_path / 'notes.txt').write_text('no recording')
  (tmp_path / 'link.wav').symlink_to(tmp_path / 'a.wav')
  remarks = '\n'.join(open_signals(tmp_path).remarks)
  assert '1 of the 2 recordings are shorter than 10 samples (b.wav), and left out' in remarks
  assert '2 recordings; left out are 2: ' in remarks
  assert 'notes.txt' in remarks


def test_a_value_that_is_not_finite_is_named_or_passed_over(tmp_path):
  samples = RNG.normal(size=(40, 1)).astype(np.float32)
  samples[25] = np.nan
  record(tmp_path / 'a.wav', samples, subtype='FLOAT')
  source = open_signals(tmp_path, channels=1)
  message = r'a\.wav, samples 20 to 29: a value is not finite.*data\.on_damage=skip'
  with pytest.raises(DamagedDataError, match=message):
    source.read(np.arange(4))
  with pytest.raises(UserError, match=message):
    find_encoding(source, None, None, 1)
  np.testing.assert_array_equal(
    source.read([0, 1, 3]).reshape(-1), samples[[*range(20), *range(30, 40)], 0]
  )


def test_other_files_are_named(tmp_path):
  record(tmp_path / 'a.wav', noise(30))
  for name, choices, message in (
    ('rate.wav', {'rate': 16000}, 'a.wav has 8000 samples a second, and rate.wav 16000; give'),
    ('mono.wav', {'samples': noise(30, 1)}, 'a.wav has 2 channels, and mono.wav 1; give'),
    ('wide.wav', {'subtype': 'PCM_24'}, 'a.wav has int16 as the type of samples, and wide.wav f'),
  ):  # fmt: skip
    record(tmp_path / name, **({'samples': noise(30)} | choices))
    with pytest.raises(UserError, match=message):
      open_signals(tmp_path)
    (tmp_path / name).unlink()


@pytest.mark.parametrize('content', [b'', b'no sound', b'RIFF\x00\x00\x00\x00WAVEfmt '])
def test_damaged_files_are_named(tmp_path, content):
  (tmp_path / 'a.wav').write_bytes(content)
  with pytest.raises(DamagedDataError, match=r'a\.wav is no recording, or damaged') as error:
    open_signals(tmp_path)
  assert '\n' not in str(error.value)


def test_a_file_that_was_cut_off_since_is_named(tmp_path):
  record(tmp_path / 'a.wav', noise(30))
  source = open_signals(tmp_path)
  record(tmp_path / 'a.wav', noise(15))
  with pytest.raises(DamagedDataError, match=r'a\.wav is (cut off|damaged)'):
    source.read([1])


@pytest.mark.parametrize('text', ['', 'a,b\n', '1,2\n3\n', '1,x\n', '1;2\n3;4\n'])
def test_tables_that_are_none_are_named(tmp_path, text):
  (tmp_path / 'a.csv').write_text(text)
  with pytest.raises(UserError) as error:
    open_signals(tmp_path, length=1)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('choices', 'message'),
  [
    (
      {'length': 31},
      r'is \(31,\), but the longest of the recordings in .* has 30 samples: give at most',
    ),
    ({'channels': 6}, r'have 2: give --config\.data\.channels=2'),
  ],
)
def test_windows_that_do_not_fit_are_named(tmp_path, choices, message):
  record(tmp_path / 'a.wav', noise(30))
  with pytest.raises(UserError, match=message):
    open_signals(tmp_path, **choices)


def test_nothing_to_read_is_named(tmp_path):
  with pytest.raises(UserError, match=r'no recordings in .*; looked for \.csv \.flac \.wav'):
    open_signals(tmp_path)
  with pytest.raises(UserError, match='does not exist; give a folder of recordings'):
    open_signals(tmp_path / 'nothing')
  record(tmp_path / 'a.wav', noise(30))
  with pytest.raises(UserError, match='has signals: give the samples of a window, with a comma'):
    make_source(f'signals:{tmp_path}', dir=None, image_size=8, channels=2, split='train')
  with pytest.raises(UserError, match=r'data\.stride is 3, which goes with data\.source=signals'):
    make_source('digits', dir=None, image_size=8, channels=1, split='train', stride=3)
