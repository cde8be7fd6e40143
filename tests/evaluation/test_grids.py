"""Images for people."""

import numpy as np
import PIL.Image
import pytest

from ddpm_jax.diffusion.forward import scale_levels
from ddpm_jax.evaluation import grids


def test_uint8_and_scaled_images_are_inverse():
  levels = np.arange(256, dtype=np.uint8)
  np.testing.assert_array_equal(grids.to_uint8(np.asarray(scale_levels(levels))), levels)


def test_uint8_clips_and_rounds_to_the_nearest_level():
  x = np.array([-3.0, -1.0, 0.003, 0.005, 1.0, 7.0])
  assert grids.to_uint8(x).tolist() == [0, 0, 128, 128, 255, 255]


@pytest.mark.parametrize('channels', [1, 3])
def test_grid_shows_each_image_in_its_place(channels):
  images = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones(
    (1, 70, 70, channels), np.uint8
  )
  grid = grids.make_grid(images, columns=3, padding=2)
  assert grid.shape == (2 * 72 + 2, 3 * 72 + 2, 3)
  centres = grid[36::72, 36::72]
  assert centres[..., 0].tolist() == [[1, 2, 3], [4, 5, 0]]
  assert (grid[:2] == 0).all()


def test_small_images_are_enlarged_pixel_by_pixel():
  image = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
  grid = grids.make_grid(image, padding=0)
  assert grid.shape == (64, 64, 3)
  np.testing.assert_array_equal(grid[::8, ::8, 0], image[0, :, :, 0])


def test_png_holds_the_pixels(tmp_path):
  image = np.random.RandomState(0).randint(0, 256, (5, 7, 3), np.uint8)
  grids.save_png(tmp_path / 'grid.png', image)
  np.testing.assert_array_equal(np.asarray(PIL.Image.open(tmp_path / 'grid.png')), image)
  assert [path.name for path in tmp_path.iterdir()] == ['grid.png']


def test_captions_stand_beside_the_rows():
  images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3)).astype(np.uint8)
  plain = grids.make_grid(images, columns=2)
  captioned = grids.make_grid(images, columns=2, captions=['cat', ''])
  margin = captioned.shape[1] - plain.shape[1]
  assert margin > 10
  np.testing.assert_array_equal(captioned[:, margin:], plain)
  assert captioned[:66, :margin].max() > 200  # a text, beside the first row alone
  assert captioned[66:, :margin].max() == 0


def test_headings_and_a_note_stand_above_and_below():
  images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3)).astype(np.uint8)
  plain = grids.make_grid(images, columns=2)
  texts = grids.make_grid(images, columns=2, headings=['', 'right'], note='what it is')
  (top,) = [y for y in range(texts.shape[0]) if np.array_equal(texts[y : y + len(plain)], plain)]
  assert texts[:top, :66].max() == 0  # an empty text
  assert texts[:top, 66:].max() > 200
  assert texts[top + len(plain) :].max() > 200


@pytest.mark.parametrize(('size', 'columns'), [((64, 64), 3), ((64, 256), 2), ((256, 64), 6)])
def test_a_grid_is_about_square(size, columns):
  grid = grids.make_grid(np.full((9, *size, 1), 255, np.uint8), padding=1)
  assert (grid.shape[1] - 1) / (size[1] + 1) == columns


def test_an_animation_has_its_frames_for_their_time(tmp_path):
  frames = [np.full((4, 4, 3), level, np.uint8) for level in (0, 100, 200)]
  for times, expected in (({}, [60, 60, 1500]), ({'frame_ms': 33.3, 'last_ms': 1}, [30, 30, 10])):
    grids.save_gif(tmp_path / 'a.gif', frames, **times)
    with PIL.Image.open(tmp_path / 'a.gif') as gif:
      durations = []
      for i in range(gif.n_frames):
        gif.seek(i)
        durations.append(gif.info['duration'])
    assert durations == expected
