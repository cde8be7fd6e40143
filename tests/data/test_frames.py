"""Moving pictures in files: whole windows of frames, each the whole picture that is shown then."""

import pickle

import numpy as np
import PIL.Image
import pytest

from ddpm_jax.data import DamagedDataError, NoSplitError, make_source, prepare_picture, read_labels
from ddpm_jax.data.encoding import PICTURES, find_encoding
from ddpm_jax.errors import UserError

COLOURS = np.array([[255, 255, 255], [200, 30, 0], [0, 90, 255], [10, 10, 10]], np.uint8)
FORMATS = ['gif', 'webp', 'png', 'apng']


def clip(num_frames, *, height=6, width=8, seed=0):
  """A square of one colour that moves over a ground of others, uint8 [T, H, W, 3]."""
  ground = np.random.default_rng(seed).integers(0, 3, (height, width))
  frames = np.stack([ground] * num_frames)
  for t in range(num_frames):
    frames[t, 1:3, t % (width - 1) : t % (width - 1) + 2] = 3
  return COLOURS[frames]


def write(path, frames, **choices):
  path.parent.mkdir(parents=True, exist_ok=True)
  first, *others = map(PIL.Image.fromarray, frames)
  choices = {'lossless': True} | choices if path.suffix == '.webp' else choices
  first.save(path, save_all=True, append_images=others, **choices)
  return frames


def open_frames(folder, image_size=(3, 6, 8), channels=3, split='train', **choices):
  return make_source(
    f'frames:{folder}', dir=None, image_size=image_size, channels=channels, split=split, **choices
  )


@pytest.mark.parametrize('suffix', FORMATS)
@pytest.mark.parametrize(('stride', 'starts'), [(None, [0, 3]), (1, [0, 1, 2, 3, 4]), (4, [0, 4])])
def test_windows_are_those_of_each_file_and_go_over_no_end(tmp_path, suffix, stride, starts):
  clips = [
    write(tmp_path / f'b/1.{suffix}', clip(7)),
    write(tmp_path / f'b/2.{suffix}', clip(3, seed=1)),
  ]
  source = open_frames(tmp_path, stride=stride)
  expected = np.stack([clips[0][i : i + 3] for i in starts] + [clips[1]])
  assert (len(source), source.image_shape) == (len(starts) + 1, (3, 6, 8, 3))
  read = source.read(np.arange(len(source)))
  assert read.dtype == np.uint8
  np.testing.assert_array_equal(read, expected)
  order = np.array([len(starts), 1, 0, 1])
  again = pickle.loads(pickle.dumps(source))
  np.testing.assert_array_equal(again.read(order), expected[order])
  names = [f'b/1.{suffix}'.encode()] * len(starts) + [f'b/2.{suffix}'.encode()]
  assert source.picture_names() == names
  assert find_encoding(source, None, None, 3) == PICTURES


@pytest.mark.parametrize('channels', [1, 3])
def test_frames_are_cropped_resized_and_converted_as_pictures_are(tmp_path, channels):
  frames = write(tmp_path / 'a.gif', clip(4, height=20, width=50))
  source = open_frames(tmp_path, (2, 8, 10), channels)
  expected = [
    prepare_picture(PIL.Image.fromarray(frame), image_size=(8, 10), channels=channels)
    for frame in frames
  ]
  np.testing.assert_array_equal(source.read([0, 1]).reshape(4, 8, 10, channels), expected)


@pytest.mark.parametrize('suffix', ['gif', 'png'])
def test_what_a_frame_disposes_of_leaves_no_trail(tmp_path, suffix):
  frames = clip(4)
  opaque = (frames == COLOURS[3]).all(-1)
  with_alpha = np.concatenate([frames, 255 * opaque[..., None]], -1).astype(np.uint8)
  disposal = 2 if suffix == 'gif' else 1  # to the background
  write(tmp_path / f'a.{suffix}', with_alpha, disposal=disposal)
  expected = np.where(opaque[..., None], frames, 255)  # transparent pixels are on white
  np.testing.assert_array_equal(open_frames(tmp_path, (4, 6, 8)).read([0])[0], expected)


def test_the_picture_for_programs_without_apng_is_no_frame(tmp_path):
  frames = clip(4)
  write(tmp_path / 'a.png', frames, default_image=True)
  source = open_frames(tmp_path, stride=1)
  np.testing.assert_array_equal(source.read([0]), frames[None, 1:])
  assert len(source) == 1


def test_splits_go_by_the_folder_or_by_the_file(tmp_path):
  for i in range(20):
    write(tmp_path / f'all/{i}.gif', clip(7, seed=i))
  parts = [open_frames(tmp_path / 'all', split=x, holdout=0.3) for x in ('train', 'test')]
  files = [set(part.picture_names()) for part in parts]
  assert not files[0] & files[1]
  assert len(files[0] | files[1]) == 20
  with pytest.raises(NoSplitError, match=r'--config\.data\.holdout=0\.1'):
    open_frames(tmp_path / 'all', split='test')
  for i, split in enumerate(('train', 'test')):
    frames = write(tmp_path / f'split/{split}/a.gif', clip(3, seed=i))
    read = open_frames(tmp_path / 'split', split=split).read([0])
    np.testing.assert_array_equal(read[0], frames)


def test_the_folder_of_a_file_is_its_class(tmp_path):
  write(tmp_path / 'walk/a.gif', clip(9))
  write(tmp_path / 'run/b.gif', clip(6))
  labels = read_labels(open_frames(tmp_path), 'folders')
  assert labels.names == ('run', 'walk')
  assert labels.ids.tolist() == [0, 0, 1, 1, 1]


def test_what_is_left_out_is_counted(tmp_path):
  write(tmp_path / 'a.gif', clip(9))
  write(tmp_path / 'b.gif', clip(2))
  PIL.Image.fromarray(clip(1)[0]).save(tmp_path / 'still.png')
  (tmp_path / 'notes.txt').write_text('no picture')
  remarks = '\n'.join(open_frames(tmp_path).remarks)
  assert '2 of the 3 moving pictures are shorter than 3 frames (b.gif, still.png)' in remarks
  assert '3 moving pictures; left out are 1: 1 .txt (notes.txt)' in remarks


@pytest.mark.parametrize('content', [b'', b'no picture', b'GIF89a', b'\x89PNG\r\n\x1a\n'])
def test_damaged_files_are_named(tmp_path, content):
  (tmp_path / 'a.gif').write_bytes(content)
  with pytest.raises(DamagedDataError, match=r'a\.gif is no moving picture, or damaged') as error:
    open_frames(tmp_path)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('suffix', FORMATS)
def test_a_file_that_was_cut_off_since_is_named(tmp_path, suffix):
  file = tmp_path / f'a.{suffix}'
  write(file, clip(9))
  source = open_frames(tmp_path)
  write(file, clip(4))
  with pytest.raises(DamagedDataError, match=r'a\..* is no moving picture, or damaged'):
    source.read([2])


@pytest.mark.parametrize(
  ('choices', 'message'),
  [
    ({'image_size': (10, 6, 8)}, r'is \(10, 6, 8\), but the longest of the .* has 9 frames: give'),
    ({'image_size': (6, 8)}, r'give frames, height and width, as in .*image_size=16,64,64'),
    ({'image_size': 8}, 'give frames, height and width'),
    ({'channels': 2}, r'data\.channels=2: must be 1 \(grey\) or 3 \(RGB\)'),
  ],
)
def test_windows_that_do_not_fit_are_named(tmp_path, choices, message):
  write(tmp_path / 'a.gif', clip(9))
  with pytest.raises(UserError, match=message):
    open_frames(tmp_path, **choices)


def test_nothing_to_read_is_named(tmp_path):
  with pytest.raises(UserError, match=r'no moving pictures in .*; looked for \.apng \.gif \.png'):
    open_frames(tmp_path)
  with pytest.raises(UserError, match='does not exist; give a folder of moving pictures'):
    open_frames(tmp_path / 'nothing')
