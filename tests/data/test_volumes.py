"""NIfTI files: whole numbers are kept exactly, and what does not go together is one line."""

import numpy as np
import pytest

from ddpm_jax.data import DamagedDataError, make_source, read_labels
from ddpm_jax.data.encoding import find_encoding
from ddpm_jax.errors import UserError

nibabel = pytest.importorskip('nibabel')
RNG = np.random.default_rng(0)
SHAPE = (4, 6, 8)


def scan(path, values, *, slope=None, inter=None):
  path.parent.mkdir(parents=True, exist_ok=True)
  image = nibabel.Nifti1Image(values, np.eye(4))
  image.header.set_data_dtype(values.dtype)
  if slope is not None:
    image.header.set_slope_inter(slope, inter)
  nibabel.save(image, path)
  return values


def open_volumes(folder, axes=SHAPE, channels=1, split='train', **choices):
  return make_source(
    f'volumes:{folder}', dir=None, image_size=axes, channels=channels, split=split, **choices
  )


@pytest.mark.parametrize('suffix', ['.nii', '.nii.gz'])
@pytest.mark.parametrize('dtype', ['uint8', 'int16', 'uint16', 'float32'])
def test_values_are_kept_exactly(tmp_path, suffix, dtype):
  volumes = [
    scan(tmp_path / f'{i}{suffix}', RNG.integers(0, 200, SHAPE).astype(dtype)) for i in range(3)
  ]
  source = open_volumes(tmp_path)
  read = source.read(np.array([2, 0]))
  assert (len(source), source.image_shape, read.dtype) == (3, (*SHAPE, 1), dtype)
  np.testing.assert_array_equal(read[..., 0], [volumes[2], volumes[0]])


def test_a_fourth_axis_has_the_channels(tmp_path):
  values = scan(tmp_path / 'a.nii', RNG.integers(0, 9, (*SHAPE, 2)).astype(np.int16))
  np.testing.assert_array_equal(open_volumes(tmp_path, channels=2).read([0])[0], values)


def test_scaled_values_are_of_any_kind(tmp_path):
  stored = RNG.integers(-100, 100, SHAPE).astype(np.int16)
  image = nibabel.Nifti1Image(stored * 0.5 + 3, np.eye(4))
  image.header.set_data_dtype(np.int16)
  nibabel.save(image, tmp_path / 'a.nii')
  source = open_volumes(tmp_path)
  read = source.read([0])
  assert read.dtype == np.float32
  np.testing.assert_allclose(read[0, ..., 0], stored * 0.5 + 3, atol=1e-2)
  assert find_encoding(source, None, None, 1).levels is None


def test_splits_and_labels_go_by_folders(tmp_path):
  for split in ('train', 'test'):
    for kind in ('a', 'b'):
      scan(tmp_path / split / kind / 'x.nii.gz', RNG.integers(0, 9, SHAPE).astype(np.uint8))
  for split in ('train', 'test'):
    labels = read_labels(open_volumes(tmp_path, split=split), 'folders')
    assert (labels.names, labels.ids.tolist()) == (('a', 'b'), [0, 1])
  assert len(open_volumes(tmp_path, split='all')) == 4


def test_an_npz_file_is_read_as_an_array(tmp_path):
  values = RNG.integers(0, 256, (5, *SHAPE)).astype(np.uint8)
  np.savez(tmp_path / 'organ.npz', train_images=values, train_labels=np.arange(5)[:, None] % 2)
  source = open_volumes(tmp_path / 'organ.npz')
  np.testing.assert_array_equal(source.read(np.arange(5))[..., 0], values)
  assert read_labels(source).ids.tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize('content', [b'', b'no scan', bytes(348), bytes(400)])
@pytest.mark.parametrize('suffix', ['.nii', '.nii.gz'])
def test_damaged_files_are_named(tmp_path, suffix, content):
  (tmp_path / f'a{suffix}').write_bytes(content)
  with pytest.raises(UserError, match=r'a\.nii') as error:
    open_volumes(tmp_path)
  assert '\n' not in str(error.value)


def test_a_file_that_was_cut_off_since_is_named(tmp_path):
  scan(tmp_path / 'a.nii', RNG.integers(0, 9, SHAPE).astype(np.int16))
  source = open_volumes(tmp_path)
  whole = (tmp_path / 'a.nii').read_bytes()
  (tmp_path / 'a.nii').write_bytes(whole[:-50])
  with pytest.raises(DamagedDataError, match=r'a\.nii is no NIfTI file, or damaged'):
    source.read([0])


def test_values_that_are_not_finite_are_named(tmp_path):
  values = RNG.normal(size=SHAPE).astype(np.float32)
  values[1, 2, 3] = np.inf
  scan(tmp_path / 'a.nii', values)
  with pytest.raises(DamagedDataError, match=r'a\.nii: a value is not finite\. .*on_damage=skip'):
    open_volumes(tmp_path).read([0])


def test_volumes_that_do_not_go_together_are_named(tmp_path):
  scan(tmp_path / 'a.nii', np.zeros(SHAPE, np.int16))
  with pytest.raises(UserError, match=r'a\.nii is \[4, 6, 8, 1\], .* give .*image_size=\(4,6,8\)'):
    open_volumes(tmp_path, (4, 4, 4))
  scan(tmp_path / 'b.nii', np.zeros(SHAPE, np.float32))
  with pytest.raises(UserError, match=r'several types: int16 \(a\.nii\), float32 \(b\.nii\)'):
    open_volumes(tmp_path)
  scan(tmp_path / 'b.nii', np.zeros((4, 6, 2), np.int16))
  with pytest.raises(UserError, match=r'b\.nii is \[4, 6, 2, 1\], .* or volumes of one shape'):
    open_volumes(tmp_path)


def test_nothing_to_read_is_named(tmp_path):
  with pytest.raises(UserError, match=r'no volumes in .*; looked for \.nii \.nii\.gz'):
    open_volumes(tmp_path)
  with pytest.raises(UserError, match=r'does not exist; give a folder of volumes, or an \.npz'):
    open_volumes(tmp_path / 'nothing')
