"""The network: every layer and gradient of the original program's, then our own promises."""

import fnmatch
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.interop.tf_ddpm import params_from_tf, tf_name
from ddpm_jax.nn import unet, winograd
from ddpm_jax.nn.unet import AttnBlock, Downsample, ExampleDropout, ResnetBlock, UNet, Upsample
from tests.compiling import RUNS_LONG

PARAMETER_COUNTS = {
  'shapes_cifar10_unet2d16b2.json': 35_746_307,
  'shapes_cifar10_unet2d16b2_learned.json': 35_749_766,
  'shapes_celebahq256_lsun256_unet2d16b2c112244.json': 113_673_219,
  'shapes_lsun256_large_ch192_inferred.json': 255_677_955,
}
LEAF = {'W': 'kernel', 'b': 'bias', 'gamma': 'scale', 'beta': 'bias'}

# In exact arithmetic these gradients of unet_small are zero: a softmax over keys does not see their
# bias, and a norm with one channel a group takes away what is constant over a channel.
ZERO_GRADIENTS = (
  'model/*/attn_*/k/b',
  'model/down_0/block_0/conv1/b',
  'model/down_0/block_0/temb_proj/*',
  'model/up_0/block_?/conv1/b',
  'model/up_0/block_?/temb_proj/*',
  'model/up_0/block_1/conv2/b',
  'model/up_0/block_1/nin_shortcut/b',
)


def layer_params(arrays, scope):
  """Our parameters from the variables below var/SCOPE/."""
  params = {}
  for name, array in arrays.items():
    if name.startswith(f'var/{scope}/'):
      *modules, leaf = name.removeprefix(f'var/{scope}/').split('/')
      target = params
      for module in modules:
        target = target.setdefault(module, {})
      target[LEAF[leaf]] = array
  return params


@pytest.mark.parametrize('dim', [32, 33, 128, 192])
def test_timestep_embedding_equals_the_original_programs(reference, dim):
  arrays = reference('timestep_embedding')
  embedding = unet.timestep_embedding(arrays['t'], dim)
  # The angles go up to t, and so does their rounding: 6e-8 t, in each program.
  error = np.abs(embedding - arrays[f'emb_{dim}'])
  assert (error <= 1.2e-7 * (1 + arrays['t'][:, None])).all()


def test_timestep_embedding_is_sines_then_cosines_of_geometric_frequencies():
  embedding = np.asarray(unet.timestep_embedding(jnp.array([0, 3]), 6))
  frequencies = np.array([1, 1e-2, 1e-4])
  np.testing.assert_allclose(embedding[0], [0, 0, 0, 1, 1, 1])
  expected = np.concatenate([np.sin(3 * frequencies), np.cos(3 * frequencies)])
  np.testing.assert_allclose(embedding[1], expected, rtol=1e-5)


@pytest.mark.parametrize(
  ('layer', 'scope', 'source', 'output'),
  [
    (unet._norm(32, None), 'gn', lambda z: z['in/x'], 'group_norm'),
    (unet._conv(8, 2, dtype=None, name=None), 'conv_s1', lambda z: z['in/x'][..., :8], 'conv_s1'),
    (
      unet._conv(8, 2, dtype=None, name=None, strides=2),
      'conv_s2e',
      lambda z: z['in/x'][..., :8],
      'conv_s2_even',
    ),
    (
      unet._conv(8, 2, dtype=None, name=None, strides=2),
      'conv_s2o',
      lambda z: z['in/x_odd'][..., :8],
      'conv_s2_odd',
    ),
    (unet._dense(32, dtype=None, name=None), 'nin', lambda z: z['in/x'], 'nin'),
    (unet._dense(48, dtype=None, name=None), 'dense', lambda z: z['in/temb'], 'dense'),
    (Upsample(True, jnp.float32), 'up', lambda z: z['in/x'][:, :4, :4], 'upsample'),
    (Upsample(False, jnp.float32), None, lambda z: z['in/x'][..., :4], 'upsample_noconv'),
    (Downsample(True, jnp.float32), 'down', lambda z: z['in/x'], 'downsample'),
    (Downsample(False, jnp.float32), None, lambda z: z['in/x'][..., :4], 'downsample_noconv'),
    (AttnBlock(jnp.float32), 'attn', lambda z: z['in/x'], 'attn_block'),
  ],
  ids=lambda value: value if isinstance(value, str) else '',
)
def test_layer_equals_the_original_programs(
  reference, relative_error, layer, scope, source, output
):
  arrays = reference('layers')
  result = layer.apply({'params': layer_params(arrays, scope)}, source(arrays))
  assert relative_error(result, arrays[f'out/{output}']) < 1e-5


@pytest.mark.parametrize(
  ('features', 'scope', 'output'),
  [(64, 'res_same', 'resnet_block_same'), (32, 'res_nin', 'resnet_block_32')],
)
def test_resnet_block_equals_the_original_programs(
  reference, relative_error, features, scope, output
):
  arrays = reference('layers')
  result = ResnetBlock(features, 0.0, jnp.float32).apply(
    {'params': layer_params(arrays, scope)},
    arrays['in/x'],
    arrays['in/temb'],
    np.arange(2),
    train=False,
  )
  assert relative_error(result, arrays[f'out/{output}']) < 1e-5


def test_attention_does_not_know_where_a_pixel_lies(reference):
  arrays = reference('layers')
  params, x = {'params': layer_params(arrays, 'attn')}, arrays['in/x']
  order = np.random.default_rng(0).permutation(64)

  def permute(x):
    return x.reshape(2, 64, 64)[:, order].reshape(x.shape)

  block = AttnBlock(jnp.float32)
  np.testing.assert_allclose(
    block.apply(params, permute(x)), permute(np.asarray(block.apply(params, x))), atol=1e-5
  )


@pytest.fixture(scope='module')
def small_gradients(reference, unet_small):
  """Returns output, loss and the gradients by TF name of unet_small, and grad_x."""
  arrays = reference('unet_small')
  model, params = unet_small

  @jax.jit
  def run(params, x):
    def loss_fn(params, x):
      output = model.apply({'params': params}, x, arrays['t'])
      return jnp.mean(jnp.square(output)), output

    return jax.value_and_grad(loss_fn, (0, 1), has_aux=True)(params, x)

  (loss, output), (grads, grad_x) = run(params, arrays['x'])
  leaves = jax.tree_util.tree_leaves_with_path(grads)
  return output, loss, {tf_name([key.key for key in path]): g for path, g in leaves}, grad_x


def test_small_network_equals_the_original_programs(reference, relative_error, small_gradients):
  arrays = reference('unet_small')
  output, loss, _, grad_x = small_gradients
  assert relative_error(output, arrays['output']) < 1e-5
  assert loss == pytest.approx(arrays['loss'], rel=1e-5)
  assert relative_error(grad_x, arrays['grad_x']) < 5e-5


def test_small_networks_gradients_equal_the_original_programs(
  reference, relative_error, small_gradients
):
  _, _, grads, _ = small_gradients
  expected = {**reference('unet_small_grads_1'), **reference('unet_small_grads_2')}
  assert {f'grad/{name}' for name in grads} == set(expected)
  num_zero = 0
  for name, gradient in grads.items():
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in ZERO_GRADIENTS):
      assert np.abs(gradient).max() < 1e-6, name
      assert np.abs(expected[f'grad/{name}']).max() < 1e-7, name
      num_zero += 1
    else:
      assert relative_error(gradient, expected[f'grad/{name}']) < 5e-5, name
  assert num_zero < 20


def test_cifar10_network_equals_the_original_programs(reference, relative_error, abstract_params):
  arrays = reference('unet_cifar')
  like = abstract_params('shapes_cifar10_unet2d16b2.json')
  shapes = {
    tf_name([key.key for key in path]): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(like)
  }
  rng = np.random.default_rng(int(arrays['seed']))
  variables = {}
  for i, name in enumerate(sorted(shapes)):
    z = rng.standard_normal(shapes[name])
    values = 1.0 + 0.1 * z if name.endswith('/gamma') else 0.05 * z
    variables[name] = values.astype(np.float32)
    assert variables[name].flat[0] == arrays['check_first'][i]
    assert variables[name].flat[-1] == arrays['check_last'][i]
  model = UNet(128, (1, 2, 2, 2), 2, (16,), 3)
  params = params_from_tf(variables, like)
  output = jax.jit(model.apply)({'params': params}, arrays['x'], arrays['t'])
  assert relative_error(output, arrays['output']) < 1e-5


@pytest.mark.parametrize('name', PARAMETER_COUNTS)
def test_parameters_are_as_many_as_published(abstract_params, name):
  leaves = jax.tree.leaves(abstract_params(name))
  assert sum(leaf.size for leaf in leaves) == PARAMETER_COUNTS[name]
  assert {leaf.dtype for leaf in leaves} == {jnp.dtype('float32')}


def test_initial_values_have_the_originals_bounds_and_spread(reference):
  # To draw 36 million values takes as long as all else, unless LLVM vectorises it.
  model = UNet(128, (1, 2, 2, 2), 2, (16,), 3)
  params = init_params(model, (1, 32, 32, 3), compiler_options=RUNS_LONG)
  values = {
    tf_name([key.key for key in path]): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  rows = reference('shapes_cifar10_unet2d16b2.json')['variables_in_creation_order']
  assert len(rows) == len(values)
  for row in rows:
    name, value = row['name'], values[row['name']]
    if not name.endswith('/W'):
      np.testing.assert_array_equal(value, row['init_mean'], err_msg=name)
      continue
    zero_scale = name.endswith(('/conv2/W', '/proj_out/W', 'conv_out/W'))
    limit = row['uniform_limit_scale1'] * (1e-5 if zero_scale else 1)
    # A uniform distribution's largest of n values is within a few 1/n of its bound.
    assert 1 - 20 / value.size < np.abs(value).max() / limit < 1 + 1e-6, name
    std_error = 1 / np.sqrt(value.size)
    assert abs(value.std() / (limit / np.sqrt(3)) - 1) < 4 * std_error, name
    assert abs(value.mean()) < 5 * std_error * limit / np.sqrt(3), name
    assert abs(row['init_std'] / (limit / np.sqrt(3)) - 1) < 4 * std_error, name


def init_params(model, shape, **options):
  key = jax.random.key(0, impl='unsafe_rbg')  # fast to compile
  init = jax.jit(model.init, **options)
  return init(key, jnp.zeros(shape), jnp.zeros(shape[0], jnp.int32))['params']


@pytest.mark.parametrize('shape', [(2, 8, 8, 1), (2, 8, 16, 3)])
def test_grey_and_oblong_images_pass_and_the_initial_output_is_nothing(shape):
  model = UNet(32, (1, 1), 1, (4,), shape[-1])
  x, key = jax.random.normal(jax.random.key(1), shape), jax.random.key(0, impl='unsafe_rbg')
  output, _ = jax.jit(model.init_with_output)(key, x, jnp.array([0, 999]))
  assert output.shape == shape
  assert 0 < np.abs(output).max() < 1e-3


def test_resampling_without_convolutions_has_no_parameters():
  like = {}
  for with_conv in (True, False):
    model = UNet(32, (1, 1), 1, (), 3, resamp_with_conv=with_conv)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros(1))
    like[with_conv] = variables['params']
  assert set(like[True]) - set(like[False]) == {'down_0_downsample', 'up_1_upsample'}


def test_bfloat16_is_near_float32_and_keeps_parameters_and_output_float32(
  reference, relative_error, unet_small, small_gradients
):
  arrays = reference('unet_small')
  _, params = unet_small
  model = UNet(32, (1, 2), 1, (8,), 3, dtype=jnp.bfloat16)
  initial = jax.eval_shape(model.init, jax.random.key(0), arrays['x'], arrays['t'])
  assert {leaf.dtype for leaf in jax.tree.leaves(initial)} == {jnp.dtype('float32')}
  output = jax.jit(model.apply)({'params': params}, arrays['x'], arrays['t'])
  assert output.dtype == jnp.float32
  # bfloat16 has 8 bits; the error must be there, or nothing was computed in it.
  assert 1e-4 < relative_error(output, small_gradients[0]) < 0.03


def dropout(rate, x, rows, *, train=True, seed=0):
  rngs = {'dropout': jax.random.key(seed)}
  return ExampleDropout(rate).apply({}, x, rows, train=train, rngs=rngs)


def test_dropout_keeps_its_share_and_the_mean():
  x = jnp.full((10, 100, 100), 3.0)
  dropped = np.asarray(dropout(0.3, x, jnp.arange(10)))
  kept = dropped != 0
  np.testing.assert_allclose(dropped[kept], 3 / 0.7, rtol=1e-6)
  assert kept.mean() == pytest.approx(0.7, abs=5 * np.sqrt(0.3 * 0.7 / x.size))
  assert (dropout(0.3, x, jnp.arange(10), train=False) == x).all()
  assert (dropout(0.0, x, jnp.arange(10)) == x).all()


def test_dropout_masks_belong_to_the_row_and_not_to_the_place_in_the_batch():
  x = jnp.ones((6, 50))
  rows = jnp.array([5, 3, 0, 3, 9, 1])
  dropped = dropout(0.5, x, rows)
  np.testing.assert_array_equal(dropped[1], dropped[3])
  assert (dropped[0] != dropped[1]).any()
  np.testing.assert_array_equal(dropout(0.5, x[:2], rows[4:]), dropped[4:])
  assert (dropout(0.5, x, rows, seed=1) != dropped).any()


def test_network_drops_out_in_training_only_and_alike_in_any_split_of_the_batch():
  model = UNet(32, (1,), 1, (), 3, dropout=0.3)
  x = jax.random.normal(jax.random.key(1), (4, 4, 4, 3))
  t = jnp.array([0, 10, 500, 999])
  params = jax.tree.map(lambda p: p + 0.1, init_params(model, x.shape))

  def apply(x, t, rows, train, key):
    rngs = {'dropout': key}
    return model.apply({'params': params}, x, t, train=train, rows=rows, rngs=rngs)

  rows, key = jnp.arange(4), jax.random.key(2)
  train = jax.jit(functools.partial(apply, train=True, key=key))
  whole = train(x, t, rows)
  halves = [train(x[i], t[i], rows[i]) for i in (slice(0, 2), slice(2, 4))]
  np.testing.assert_allclose(np.concatenate(halves), whole, rtol=1e-5, atol=1e-5)
  evaluate = jax.jit(functools.partial(apply, train=False))
  evaluated = evaluate(x, t, rows, key=key)
  np.testing.assert_array_equal(evaluate(x, t, rows, key=jax.random.key(3)), evaluated)
  assert np.abs(whole - evaluated).max() > 0.01


def test_rematerialisation_changes_nothing_but_memory(unet_small, reference, relative_error):
  model, params = unet_small
  x, t = reference('unet_small')['x'], reference('unet_small')['t']

  def gradients(remat):
    network = model.clone(remat=remat, dropout=0.3)

    def loss(params):
      y = network.apply({'params': params}, x, t, train=True, rngs={'dropout': jax.random.key(1)})
      return jnp.sum(jnp.square(y))

    compiled = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
    return compiled(params), compiled.memory_analysis().temp_size_in_bytes

  (value, plain), memory = gradients(False)
  (remat_value, remat), remat_memory = gradients(True)
  assert relative_error(remat_value, value) < 1e-6
  flat, plain_flat = (
    np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (remat, plain)
  )
  assert relative_error(flat, plain_flat) < 1e-5
  assert remat_memory < memory


def test_the_embedding_of_a_label_is_added_to_that_of_the_timestep():
  """The oracle is a network without labels, whose last bias before the sum is moved by the row."""
  shape = dict(ch=32, ch_mult=(2,), num_res_blocks=1, attn_resolutions=(), out_ch=1)
  labelled, plain = UNet(**shape, num_classes=3), UNet(**shape)
  rng = np.random.default_rng(0)
  x, t = rng.standard_normal((4, 4, 4, 1)).astype(np.float32), jnp.array([0, 3, 7, 9])
  like = jax.eval_shape(labelled.init, jax.random.key(0), x, t)['params']
  params = jax.tree.map(lambda p: 0.2 * rng.standard_normal(p.shape).astype(np.float32), like)
  table = params['class_embedding']['embedding']
  assert table.shape == (4, 128)  # one row more, for no label
  rest = {name: value for name, value in params.items() if name != 'class_embedding'}
  labels = np.array([2, 0, 3, 1])
  apply, apply_plain = jax.jit(labelled.apply), jax.jit(plain.apply)
  outputs = apply({'params': params}, x, t, labels=labels)
  for i, label in enumerate(labels):
    moved = {'bias': rest['temb_dense1']['bias'] + table[label]}
    variables = {'params': rest | {'temb_dense1': rest['temb_dense1'] | moved}}
    expected = apply_plain(variables, x, t)[i]
    np.testing.assert_allclose(outputs[i], expected, rtol=1e-4, atol=1e-5)
  without = apply({'params': params}, x, t)
  np.testing.assert_allclose(without[2], outputs[2], rtol=1e-4, atol=1e-5)
  assert not np.allclose(without[0], outputs[0])


def test_without_labels_parameters_are_drawn_as_with_them():
  shape = dict(ch=32, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), out_ch=1)
  x, t = jnp.zeros((1, 4, 4, 1)), jnp.zeros(1, jnp.int32)
  plain, labelled = (
    jax.jit(model.init)(jax.random.key(0), x, t)['params']
    for model in (UNet(**shape), UNet(**shape, num_classes=2))
  )
  assert labelled.pop('class_embedding')
  jax.tree.map(np.testing.assert_array_equal, plain, labelled)


# Oracles for any number of axes: the layers in float64, written out in NumPy.


def convolved(x, params, stride=1):
  """A convolution of width 3 along each axis, with TF's SAME padding."""
  axes, kernel = x.shape[1:-1], params['kernel']
  lengths = [-(-n // stride) for n in axes]
  padding = [max((length - 1) * stride + 3 - n, 0) for n, length in zip(axes, lengths, strict=True)]
  padded = np.pad(x, [(0, 0), *((total // 2, total - total // 2) for total in padding), (0, 0)])
  result = params['bias'] + np.zeros((len(x), *lengths, kernel.shape[-1]))
  for offsets in itertools.product(range(3), repeat=len(axes)):
    rows = [
      slice(offset, offset + (length - 1) * stride + 1, stride)
      for offset, length in zip(offsets, lengths, strict=True)
    ]
    result += padded[:, *rows] @ kernel[offsets]
  return result


def normed(x, params, num_groups):
  groups = x.reshape(len(x), -1, num_groups, x.shape[-1] // num_groups)
  mean, variance = (f(groups, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
  groups = (groups - mean) / np.sqrt(variance + 1e-6)
  return groups.reshape(x.shape) * params['scale'] + params['bias']


def swish(x):
  return x / (1 + np.exp(-x))


def dense(x, params):
  return x @ params['kernel'] + params['bias']


def resnet_block(x, temb, params, num_groups):
  h = convolved(swish(normed(x, params['norm1'], num_groups)), params['conv1'])
  temb = dense(swish(temb), params['temb_proj'])
  h = h + temb.reshape(len(x), *(1,) * (x.ndim - 2), -1)
  h = convolved(swish(normed(h, params['norm2'], num_groups)), params['conv2'])
  return (dense(x, params['nin_shortcut']) if 'nin_shortcut' in params else x) + h


def attention(x, params, num_groups):
  h = normed(x, params['norm'], num_groups).reshape(len(x), -1, x.shape[-1])
  q, k, v = (dense(h, params[name]) for name in 'qkv')
  weights = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(x.shape[-1]))
  h = weights / weights.sum(-1, keepdims=True) @ v
  return x + dense(h, params['proj_out']).reshape(x.shape)


def pooled(x):
  for axis in range(1, x.ndim - 1):
    x = (x.take(range(0, x.shape[axis], 2), axis) + x.take(range(1, x.shape[axis], 2), axis)) / 2
  return x


def network(model, params, x, t):
  """UNet in float64, for any number of axes; without dropout and labels."""
  frequencies = 10_000.0 ** (-np.arange(model.ch // 2) / (model.ch // 2 - 1))
  angles = t[:, None] * frequencies
  temb = dense(np.concatenate([np.sin(angles), np.cos(angles)], 1), params['temb_dense0'])
  temb = dense(swish(temb), params['temb_dense1'])

  def block(h, name, attends):
    h = resnet_block(h, temb, params[name], model.num_groups)
    attends = attends and h.shape[1] in model.attn_resolutions
    return attention(h, params[name.replace('block', 'attn')], model.num_groups) if attends else h

  h = convolved(x, params['conv_in'])
  skips, levels = [h], len(model.ch_mult)
  for level in range(levels):
    for i in range(model.num_res_blocks):
      h = block(h, f'down_{level}_block_{i}', True)
      skips.append(h)
    if level < levels - 1:
      name = f'down_{level}_downsample'
      h = convolved(h, params[name]['conv'], 2) if model.resamp_with_conv else pooled(h)
      skips.append(h)
  h = block(h, 'mid_block_1', False)
  h = attention(h, params['mid_attn_1'], model.num_groups)
  h = block(h, 'mid_block_2', False)
  for level in reversed(range(levels)):
    for i in range(model.num_res_blocks + 1):
      h = block(np.concatenate([h, skips.pop()], -1), f'up_{level}_block_{i}', True)
    if level:
      for axis in range(1, h.ndim - 1):
        h = h.repeat(2, axis)
      if model.resamp_with_conv:
        h = convolved(h, params[f'up_{level}_upsample']['conv'])
  return convolved(swish(normed(h, params['norm_out'], model.num_groups)), params['conv_out'])


def random_params(model, shape, rng):
  like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(shape[0]))
  return jax.tree.map(
    lambda leaf: (rng.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))).astype(
      np.float32
    ),
    like['params'],
  )


@pytest.mark.parametrize(
  ('shape', 'attn_resolutions', 'resamp_with_conv', 'on_cpu'),
  [
    ((2, 16, 3), (8,), True, False),
    ((2, 16, 3), (), False, True),
    ((2, 8, 4, 1), (4,), True, False),
    ((2, 4, 8, 4, 2), (2,), True, False),
    ((2, 4, 8, 4, 2), (2,), True, True),
    ((2, 2, 2, 4, 1), (), False, True),
  ],
)
def test_networks_of_any_number_of_axes_equal_float64(
  relative_error, monkeypatch, shape, attn_resolutions, resamp_with_conv, on_cpu
):
  """Outputs, and the gradient of a loss along a random direction of parameters and input."""
  for name in ('MIN_CHANNELS_OF_VOLUMES', 'MIN_POSITIONS_OF_VOLUMES'):
    monkeypatch.setattr(winograd, name, 16)
  model = UNet(8, (1, 2), 1, attn_resolutions, 2, resamp_with_conv=resamp_with_conv, num_groups=4)
  model = model.clone(on_cpu=on_cpu)
  rng = np.random.default_rng(len(shape))
  params, x = random_params(model, shape, rng), rng.standard_normal(shape).astype(np.float32)
  t, weights = np.array([3, 700]), rng.standard_normal((*shape[:-1], 2))

  def loss(params, x):
    output = model.apply({'params': params}, x, t)
    return (output * weights.astype(np.float32)).sum(), output

  in_float64 = jax.tree.map(np.float64, (params, x))
  expected = network(model, *in_float64, t)
  gradients, output = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)
  assert output.shape == (*shape[:-1], 2)
  assert relative_error(output, expected) < 1e-5
  direction = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), (params, x))
  slope = sum(
    (np.float64(g) * d).sum()
    for g, d in zip(jax.tree.leaves(gradients), jax.tree.leaves(direction), strict=True)
  )
  step = 1e-6

  def moved(by):
    return network(model, *jax.tree.map(lambda a, d: a + by * d, in_float64, direction), t)

  assert slope == pytest.approx(
    ((moved(step) - moved(-step)) * weights).sum() / (2 * step), rel=1e-4
  )


@pytest.mark.parametrize(('length', 'stride'), [(8, 1), (8, 2), (7, 2), (1, 1), (1, 2)])
@pytest.mark.parametrize('num_axes', [1, 2, 3])
@pytest.mark.parametrize('convolve', [None, unet._cpu_conv])
def test_convolutions_of_any_number_of_axes_equal_float64(
  relative_error, convolve, num_axes, length, stride
):
  rng = np.random.default_rng(0)
  x = rng.standard_normal((*(2, length, 6, 5)[: num_axes + 1], 3))
  params = {'kernel': rng.standard_normal((3,) * num_axes + (3, 4)), 'bias': np.arange(4.0)}
  layer = unet._conv(4, num_axes, dtype=None, name=None, strides=stride, convolve=convolve)
  assert relative_error(layer.apply({'params': params}, x), convolved(x, params, stride)) < 1e-6


def test_a_signal_is_a_picture_of_one_row(relative_error):
  """Kernels of a picture are those of the signal in their middle row, and nothing beside it."""
  model = UNet(8, (2,), 2, (16,), 3, num_groups=4)
  rng = np.random.default_rng(1)
  params, t = random_params(model, (2, 16, 3), rng), jnp.array([5, 900])
  x = rng.standard_normal((2, 16, 3)).astype(np.float32)

  def in_a_row(path, leaf):
    return (
      np.pad(leaf[None], [(1, 1)] + [(0, 0)] * 3)
      if path[-1].key == 'kernel' and (leaf.ndim == 3)
      else leaf
    )

  rows = jax.tree_util.tree_map_with_path(in_a_row, params)
  # Attention where the first axis is as long as attn_resolutions says.
  picture = jax.jit(model.clone(attn_resolutions=(1,)).apply)({'params': rows}, x[:, None], t)
  assert relative_error(picture[:, 0], jax.jit(model.apply)({'params': params}, x, t)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(('length', 'stride'), [(8, 1), (8, 2), (7, 2)])
@pytest.mark.parametrize('num_axes', [1, 2, 3])
def test_convolutions_equal_pytorchs(relative_error, num_axes, length, stride):
  torch = pytest.importorskip('torch')
  rng = np.random.default_rng(0)
  x = rng.standard_normal((2,) + (length,) * num_axes + (3,)).astype(np.float32)
  kernel = rng.standard_normal((3,) * num_axes + (3, 4)).astype(np.float32)
  bias = rng.standard_normal(4).astype(np.float32)
  channels_second = [0, num_axes + 1, *range(1, num_axes + 1)]
  convolve = getattr(torch.nn.functional, f'conv{num_axes}d')
  total = max((-(-length // stride) - 1) * stride + 3 - length, 0)
  sides = (total // 2, total - total // 2) * num_axes
  theirs = convolve(
    torch.nn.functional.pad(torch.from_numpy(x.transpose(channels_second)), sides),
    torch.from_numpy(kernel.transpose(num_axes + 1, num_axes, *range(num_axes))),
    torch.from_numpy(bias),
    stride=stride,
  ).numpy()
  layer = unet._conv(4, num_axes, dtype=None, name=None, strides=stride)
  ours = layer.apply({'params': {'kernel': kernel, 'bias': bias}}, x)
  assert relative_error(np.asarray(ours).transpose(channels_second), theirs) < 1e-5
