"""State dicts of pytorch_diffusion: the original program's weights under PyTorch's names."""

import jax
import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.interop import pytorch_diffusion
from ddpm_jax.interop.tensors import tensors_from_params
from tests.conftest import load_reference

# How that program's converter takes the original's variables (its names; layouts of PyTorch).
KNOWN = {
  'temb.dense.0.weight': ('temb/dense0/W', lambda w: w.T),
  'conv_in.weight': ('conv_in/W', lambda w: w.transpose(3, 2, 0, 1)),
  'down.0.block.0.conv1.weight': ('down_0/block_0/conv1/W', lambda w: w.transpose(3, 2, 0, 1)),
  'down.1.block.0.nin_shortcut.weight': (
    'down_1/block_0/nin_shortcut/W',
    lambda w: w.T[:, :, None, None],
  ),
  'down.0.block.0.temb_proj.weight': ('down_0/block_0/temb_proj/W', lambda w: w.T),
  'down.0.downsample.conv.bias': ('down_0/downsample/conv/b', lambda b: b),
  'down.1.attn.0.norm.weight': ('down_1/attn_0/norm/gamma', lambda g: g),
  'mid.attn_1.q.weight': ('mid/attn_1/q/W', lambda w: w.T[:, :, None, None]),
  'mid.attn_1.proj_out.bias': ('mid/attn_1/proj_out/b', lambda b: b),
  'mid.block_2.norm2.bias': ('mid/block_2/norm2/beta', lambda b: b),
  'up.1.upsample.conv.weight': ('up_1/upsample/conv/W', lambda w: w.transpose(3, 2, 0, 1)),
  'up.1.attn.1.k.weight': ('up_1/attn_1/k/W', lambda w: w.T[:, :, None, None]),
  'norm_out.weight': ('norm_out/gamma', lambda g: g),
  'conv_out.bias': ('conv_out/b', lambda b: b),
}


def test_names_and_layouts_are_theirs(unet_small):
  variables = load_reference('unet_small')
  state_dict = tensors_from_params(unet_small[1], pytorch_diffusion.place)
  for name, (original, layout) in KNOWN.items():
    np.testing.assert_array_equal(state_dict[name], layout(variables[f'var/model/{original}']))


def test_every_value_arrives_at_its_place(unet_small):
  _, params = unet_small
  state_dict = tensors_from_params(params, pytorch_diffusion.place)
  assert len(state_dict) == len(jax.tree.leaves(params))
  read = pytorch_diffusion.params_from_state_dict(state_dict, params)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), read, params)


def test_other_tensors_are_refused(unet_small):
  _, params = unet_small
  state_dict = tensors_from_params(params, pytorch_diffusion.place)
  state_dict['down.0.block.9.conv1.weight'] = state_dict.pop('conv_in.weight')
  with pytest.raises(UserError, match=r'1 missing: conv_in\.weight \(32, 3, 3, 3\); 1 unknown: '):
    pytorch_diffusion.params_from_state_dict(state_dict, params)
