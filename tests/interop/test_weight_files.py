"""Weights of diffusers in whichever files: whole, in shards, variants."""

import json

import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.interop.safetensors_file import write_safetensors
from ddpm_jax.interop.weight_files import find_weights, read_weights
from tests.torch_writer import write_torch_zip

STEM = 'diffusion_pytorch_model'
TENSORS = {name: np.full(2, i, np.float32) for i, name in enumerate('abcde')}


def write_shards(folder, tensors, form='safetensors', count=2, variant=''):
  """Writes an index and its shards as diffusers does; returns the index."""
  write = write_safetensors if form == 'safetensors' else write_torch_zip
  names = sorted(tensors)
  places = {}
  for i in range(count):
    file = f'{STEM}{variant}-{i + 1:05d}-of-{count:05d}.{form}'
    part = {name: tensors[name] for name in names[i::count]}
    write(folder / file, part)
    places |= dict.fromkeys(part, file)
  index = folder / f'{STEM}.{form}.index{variant}.json'
  index.write_text(json.dumps({'metadata': {'total_size': 0}, 'weight_map': places}))
  return index


@pytest.mark.parametrize(
  ('names', 'found'),
  [
    ([], {}),
    ([f'{STEM}.bin', f'{STEM}.safetensors'], {'': f'{STEM}.safetensors'}),
    ([f'{STEM}.bin', f'{STEM}.safetensors.index.json'], {'': f'{STEM}.safetensors.index.json'}),
    ([f'{STEM}.bin.index.json', f'{STEM}.bin'], {'': f'{STEM}.bin'}),
    (
      [f'{STEM}.safetensors', f'{STEM}.fp16.safetensors', f'{STEM}.non_ema.bin'],
      {
        '': f'{STEM}.safetensors',
        'fp16': f'{STEM}.fp16.safetensors',
        'non_ema': f'{STEM}.non_ema.bin',
      },
    ),
    ([f'{STEM}.safetensors.index.fp16.json'], {'fp16': f'{STEM}.safetensors.index.fp16.json'}),
    (['model.safetensors', 'config.json', 'model_index.json'], {'': 'model.safetensors'}),
    (['optimizer.bin', 'scheduler.bin', 'random_states_0.pkl', f'{STEM}-00001-of-00002.bin'], {}),
  ],
)
def test_files_are_found_by_their_names(names, found, tmp_path):
  for name in names:
    (tmp_path / name).touch()
  assert {variant: file.name for variant, file in find_weights(tmp_path).items()} == found


@pytest.mark.parametrize('form', ['safetensors', 'bin'])
@pytest.mark.parametrize('variant', ['', '.fp16'])
@pytest.mark.parametrize('count', [1, 2, 5])
def test_shards_are_one(form, variant, count, tmp_path):
  index = write_shards(tmp_path, TENSORS, form, count, variant)
  assert find_weights(tmp_path) == {variant[1:]: index}
  tensors = read_weights(index)
  assert tensors.keys() == TENSORS.keys()
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(tensor, TENSORS[name], strict=True)


def test_a_shard_that_lacks_or_is_anothers_is_named(tmp_path):
  index = write_shards(tmp_path, TENSORS)
  first, second = sorted(tmp_path.glob('*.safetensors'))
  whole = second.read_bytes()
  second.write_bytes(first.read_bytes())
  with pytest.raises(
    UserError, match=rf'{second.name}: its tensors are not those that .*index\.js'
  ):
    read_weights(index)
  second.write_bytes(whole[:-1])
  with pytest.raises(UserError, match=f'{second.name}: not a whole safetensors file'):
    read_weights(index)
  second.write_text('version https://git-lfs.github.com/spec/v1')
  with pytest.raises(UserError, match=f'{second.name}: not the weights, but a pointer'):
    read_weights(index)
  second.unlink()
  with pytest.raises(
    UserError, match=f'index.json: 1 of its 2 shards are not there: {second.name}'
  ):
    read_weights(index)


@pytest.mark.parametrize(
  'text',
  [
    '', '{', '[]', '3', '{}', '{"weight_map": {}}', '{"weight_map": []}',
    '{"weight_map": {"a": 3}}',
    '{"weight_map": {"a": "../a.safetensors"}}', '{"weight_map": {"a": "/a.safetensors"}}',
    '{"weight_map": {"a": "x/a.safetensors"}}', '{"weight_map": {"a": "index.json"}}',
    '{"weight_map": {"a": ".safetensors"}}', '[' * 100_000, ' ' * (1 << 20) + '{}',
  ],
)  # fmt: skip
def test_an_index_that_is_none_is_named_in_one_line(text, tmp_path):
  index = tmp_path / f'{STEM}.safetensors.index.json'
  index.write_text(text)
  with pytest.raises(UserError, match=rf'{STEM}\.safetensors\.index\.json: ') as error:
    read_weights(index)
  assert '\n' not in str(error.value)
