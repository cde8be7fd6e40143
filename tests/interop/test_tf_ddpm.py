"""Names, shapes and values of the original program's variables."""

import jax
import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.interop.tf_ddpm import params_from_tf, tf_name

SHAPES_FILES = (
  'shapes_cifar10_unet2d16b2.json',
  'shapes_cifar10_unet2d16b2_learned.json',
  'shapes_celebahq256_lsun256_unet2d16b2c112244.json',
  'shapes_lsun256_large_ch192_inferred.json',
)


@pytest.mark.parametrize('name', SHAPES_FILES)
def test_names_and_shapes_are_the_originals_each_used_once(reference, abstract_params, name):
  rows = reference(name)['variables_in_creation_order']
  expected = sorted((row['name'], tuple(row['shape'])) for row in rows)
  leaves = jax.tree_util.tree_leaves_with_path(abstract_params(name))
  actual = sorted((tf_name([key.key for key in path]), leaf.shape) for path, leaf in leaves)
  assert actual == expected
  assert len({name for name, _ in actual}) == len(actual)


@pytest.fixture
def small(reference, unet_small):
  """Returns the original's variables by name, and a tree of the form they should take."""
  variables = {
    name.removeprefix('var/'): array
    for name, array in reference('unet_small').items()
    if name.startswith('var/')
  }
  like = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), unet_small[1])
  return variables, like


def test_every_value_arrives_at_its_place(small):
  variables, like = small
  params = params_from_tf(variables, like)
  assert jax.tree.structure(params) == jax.tree.structure(like)
  there = {
    tf_name([key.key for key in path]): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  assert set(there) == set(variables)
  for name, array in variables.items():
    np.testing.assert_array_equal(there[name], array, err_msg=name)
  np.testing.assert_array_equal(
    params['down_0_block_0']['conv1']['kernel'], variables['model/down_0/block_0/conv1/W']
  )
  np.testing.assert_array_equal(
    params['mid_attn_1']['norm']['bias'], variables['model/mid/attn_1/norm/beta']
  )


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda v: v.pop('model/conv_in/W'), r'1 missing: model/conv_in/W \(3, 3, 3, 32\)$'),
    (lambda v: v.update(global_step=3), r'1 unknown: global_step \(\)$'),
    (
      lambda v: v.update({'model/conv_out/b': np.zeros(6)}),
      r'1 of another shape: model/conv_out/b \(6,\), wanted \(3,\)$',
    ),
    (
      lambda v: [v.pop(name) for name in list(v) if '/norm1/' in name],
      r'\d+ missing: (model/[^,]*\(\d+,\), ){5}and \d+ more$',
    ),
  ],
)
def test_variables_that_do_not_fit_are_named(small, change, message):
  variables, like = small
  change(variables)
  with pytest.raises(UserError, match=message):
    params_from_tf(variables, like)
