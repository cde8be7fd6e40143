"""Edited pictures: what is known stays, what cannot be used is refused, nothing is drawn twice."""

import jax
import numpy as np
import PIL.Image
import pytest

from ddpm_jax.data.digits import load_digits
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.editing import ROUNDING_STD, known_of, known_pixels
from ddpm_jax.modes.edit import edit
from ddpm_jax.sampling import blur, gaussian_kernel
from ddpm_jax.storage import shards
from tests.tiny import tiny_config

pytestmark = pytest.mark.usefixtures('one_layer')
MASK = np.zeros((8, 8), bool)
MASK[:4] = True
DIGITS = load_digits('test')[0][:3].reshape(3, 8, 8, 1)


@pytest.fixture
def pictures(tmp_path):
  """A folder of three digits, their lower halves transparent."""
  folder = tmp_path / 'own'
  folder.mkdir()
  for i, digit in enumerate(DIGITS):
    alpha = np.where(MASK, 255, 0).astype(np.uint8)
    save(folder / f'digit{i}.png', np.dstack([digit, alpha]))
  return folder


def save(file, array):
  PIL.Image.fromarray(np.uint8(array)).save(file)
  return file


def config_of(images, **fields):
  fields = {'images': str(images), 'num': 2, 'method': 'ddnm', **fields}
  return tiny_config(**{f'edit.{name}': value for name, value in fields.items()})


def run(workdir, images, **fields):
  """The folder of the results."""
  before = {*workdir.glob('edits/*/*')}
  edit(config_of(images, **fields), workdir)
  (folder,) = {path for path in workdir.glob('edits/*/*') if path.is_dir()} - before
  return folder


def test_known_pixels_stay_and_each_sample_is_a_file(workdir, pictures):
  folder = run(workdir, pictures)
  assert folder.name.startswith('inpaint-ddnm-ancestral-10_')
  with np.load(folder / 'edited.npz') as arrays:
    samples = arrays['samples'].reshape(2, 3, 8, 8, 1)
  np.testing.assert_array_equal(samples[:, :, MASK], [DIGITS[:, MASK]] * 2)
  assert len({sample.tobytes() for sample in samples.reshape(6, -1)}) == 6
  names = sorted(path.name for path in (folder / 'pictures').iterdir())
  assert names == [f'digit{i}-{k}.png' for i in range(3) for k in range(2)]
  written = np.asarray(PIL.Image.open(folder / 'pictures/digit2-1.png'))
  np.testing.assert_array_equal(written, samples[1, 2, ..., 0])
  # Each row: before, what is known, two samples; cells of 64 pixels with 2 between.
  sheet = np.asarray(PIL.Image.open(folder / 'sheet.png'))
  assert sheet.shape == (3 * 66 + 2, 4 * 66 + 2, 3)
  hidden = sheet[2 : 2 + 64 : 8, 68 : 68 + 64 : 8, 0]
  np.testing.assert_array_equal(hidden, np.where(MASK, DIGITS[0, ..., 0], 128))


def test_nothing_is_drawn_twice_and_more_complete_what_is_there(workdir, pictures, monkeypatch):
  folder, written, original = run(workdir, pictures, seed=1), [], shards.save
  first = np.load(folder / 'edited.npz')['samples']
  monkeypatch.setattr(
    shards, 'save', lambda file, ids, arrays: written.extend(ids) or original(file, ids, arrays)
  )
  edit(config_of(pictures, seed=1), workdir)
  assert written == []
  edit(config_of(pictures, seed=1, num=3), workdir)
  assert written == [6, 7, 8]
  np.testing.assert_array_equal(np.load(folder / 'edited.npz')['samples'][:6], first)
  assert (folder / 'pictures/digit0-2.png').exists()


def test_other_pictures_and_masks_are_other_results(workdir, pictures):
  one = run(workdir, pictures / 'digit0.png')
  mask = save(pictures.parent / 'mask.png', np.where(MASK.T, 255, 0))
  other = run(workdir, pictures / 'digit0.png', mask=str(mask))
  assert one != other
  samples = np.load(other / 'edited.npz')['samples']
  white = np.where(MASK[..., None], DIGITS[0], 255)  # under what is transparent
  np.testing.assert_array_equal(samples[:, MASK.T], [white[MASK.T]] * 2)


@pytest.mark.parametrize(
  ('fields', 'name'),
  [
    ({'what': 'superresolution', 'method': 'pigdm'}, 'superresolution-pigdm-ancestral-10'),
    ({'what': 'deblur'}, 'deblur-ddnm-ancestral-10'),
    ({'what': 'sdedit', 'method': None}, 'sdedit-ancestral-10'),
    ({'method': 'repaint', 'jump_length': 2, 'resamplings': 2}, 'inpaint-repaint-ancestral-10'),
  ],
)
def test_each_kind_of_edit_is_made(fields, name, workdir, pictures):
  folder = run(workdir, pictures, **fields)
  assert folder.name.rpartition('_')[0] == name
  assert np.load(folder / 'edited.npz')['samples'].shape == (6, 8, 8, 1)


def test_small_pictures_are_taken_as_they_are(workdir, tmp_path):
  small = save(tmp_path / 'small.png', DIGITS[0, ::2, ::2, 0])
  folder = run(workdir, small, what='superresolution')
  samples = np.load(folder / 'edited.npz')['samples'].astype(float)
  blocks = samples.reshape(2, 4, 2, 4, 2)
  inside = ((blocks > 0) & (blocks < 255)).all((2, 4))  # not clipped
  measured = np.broadcast_to(DIGITS[0, ::2, ::2, 0], inside.shape)
  assert inside.any()
  assert np.abs(blocks.mean((2, 4)) - measured)[inside].max() <= 1


def test_what_is_known_is_what_the_operator_makes_of_a_whole_picture():
  operator = blur(gaussian_kernel(1.0), (8, 8, 1))
  assert operator.gram is None
  known = known_of('deblur', DIGITS, None, shape=(8, 8, 1), operator=operator)
  np.testing.assert_allclose(known.values, DIGITS / 127.5 - 1, atol=1e-6)
  assert 0.002 < ROUNDING_STD < 0.0025


def test_an_interrupted_edit_goes_on(workdir, pictures, monkeypatch):
  undisturbed = np.load(run(workdir, pictures, seed=2) / 'edited.npz')['samples']
  original = jax.block_until_ready

  def interrupt(value):
    monkeypatch.setattr(jax, 'block_until_ready', original)
    raise KeyboardInterrupt

  other = workdir.parent / 'other'
  other.mkdir()
  (other / 'checkpoints').symlink_to(workdir / 'checkpoints')
  monkeypatch.setattr(jax, 'block_until_ready', interrupt)
  with pytest.raises(KeyboardInterrupt):
    edit(config_of(pictures, seed=2), other)
  assert not [*other.glob('edits/*/*/edited.npz')]
  edit(config_of(pictures, seed=2), other)
  (file,) = other.glob('edits/*/*/edited.npz')
  np.testing.assert_array_equal(np.load(file)['samples'], undisturbed)


def test_what_cannot_be_edited_is_refused_in_one_line(workdir, pictures, tmp_path):
  big = save(tmp_path / 'big.png', np.zeros((10, 12)))
  whole = save(tmp_path / 'whole.png', DIGITS[0, ..., 0])
  black, white = (save(tmp_path / f'{v}.png', np.full((8, 8), v)) for v in (0, 255))
  no_picture = tmp_path / 'text.png'
  no_picture.write_text('text')
  empty = tmp_path / 'empty'
  empty.mkdir()
  refused = [
    (tmp_path / 'none.png', {}, r'none.png does not exist'),
    (empty, {}, 'has no pictures'),
    (no_picture, {}, 'cannot be read as a picture'),
    (f'{whole},{big}', {}, 'whole.png is 8 x 8 and .*big.png 12 x 10; .* one size'),
    (big, {}, 'big.png is 12 x 10 pixels; for inpaint, this model takes 8 x 8'),
    (whole, {}, 'all of each is known'),
    (whole, {'mask': str(big)}, 'big.png is 12 x 10 pixels and the pictures are 8 x 8'),
    (whole, {'mask': f'{black},{white}'}, '2 masks for 1 pictures'),
    (whole, {'mask': str(black)}, 'nothing is known of picture 0'),
    (whole, {'mask': str(white)}, 'all is known of picture 0'),
    (whole, {'what': 'sdedit', 'method': None, 'mask': str(white)}, 'edit.mask is of no use'),
    (whole, {'what': 'sdedit'}, 'edit.method is ddnm, but edit.what=sdedit has none'),
    (whole, {'what': 'sdedit', 'method': None, 'depth': 0.0}, 'depth is 0.0'),
    (whole, {'what': 'superresolution', 'scale': 3}, 'scale is 3; .* divide the 8 x 8'),
    (whole, {'what': 'colourise'}, 'has no colours'),
    (whole, {'what': 'upscale'}, "edit.what is 'upscale'; it must be one of inpaint"),
    (whole, {'method': 'dps'}, "edit.method is 'dps'; it must be one of ddnm, pigdm, repaint"),
    (whole, {'what': 'deblur', 'method': 'repaint'}, 'edit.method=repaint replaces known pixels'),
  ]
  for images, fields, words in refused:
    with pytest.raises(UserError, match=words) as caught:
      edit(config_of(images, **fields), workdir)
    assert '\n' not in str(caught.value)
  with pytest.raises(UserError, match=r'edit\.images is not given'):
    edit(tiny_config(), workdir)
  config = config_of(whole, method='repaint')
  config.sample.update(sampler='ddim', num_steps=5)
  with pytest.raises(UserError, match=r'goes with sample\.sampler=ancestral alone, not ddim'):
    edit(config, workdir)


def test_masks_of_another_shape_are_refused():
  with pytest.raises(UserError, match=r'masks are \[4, 4\]; .* \[3, 8, 8\], or \[8, 8\] for all'):
    known_pixels(DIGITS, np.ones((4, 4)))
