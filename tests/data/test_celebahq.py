import numpy as np
import PIL.Image
import pytest

from ddpm_jax import data
from ddpm_jax.errors import UserError


def source(root, split='train'):
  return data.make_source('celebahq256', dir=root, image_size=6, channels=3, split=split)


def test_a_folder_of_pictures(tmp_path, pictures):
  for i, image in enumerate(pictures):
    PIL.Image.fromarray(image).save(tmp_path / f'{i}.png')
  np.testing.assert_array_equal(source(tmp_path).read(np.arange(5)), pictures)


def test_prepared_by_tfds(tmp_path, pictures, write_tfds, sorted_rows):
  write_tfds(tmp_path, 'celeb_a_hq', pictures, config='256', version='2.0.0')
  assert sorted_rows(source(tmp_path).read(np.arange(5))) == sorted_rows(pictures)


def test_without_a_folder(tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  with pytest.raises(UserError, match=r"data\.source='celebahq256': set data\.dir"):
    source(None)


def test_empty_folder(tmp_path):
  with pytest.raises(UserError, match=r"data\.source='celebahq256': no pictures in"):
    source(tmp_path)
