"""Features of images by a network, on disk: features.npz, one row an image."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import devices, numerics
from ddpm_jax.errors import UserError
from ddpm_jax.interop.efficientnet_weights import load_efficientnet
from ddpm_jax.interop.inception_weights import INCEPTION_SHA256, load_inception
from ddpm_jax.nn import digits_classifier, efficientnet, inception
from ddpm_jax.nn.classifier import Classifier, random_params
from ddpm_jax.storage import npz, shards
from ddpm_jax.storage.files import written_whole
from ddpm_jax.storage.identity import Identity

GREY_NOTE = 'Grey images are repeated to three channels, for the network of features.'
GREY_WORDS = 'grey repeated to three channels, '
DIGITS_FILE = pathlib.Path(digits_classifier.__file__).with_suffix('.npz')
WATCH_FILE = DIGITS_FILE.with_name('watch_classifier.npz')
NUM_EXERCISES = 7


class Images(Protocol):
  """A set of images of values 0..255; or of examples of any kind, as Encoding.encode has them."""

  def read(self, indices: np.ndarray) -> np.ndarray:
    """Returns [n, ..., C]."""


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
  """A network that turns images into features and logits, ready to run on all devices.

  Attributes:
    name: what it is called in reports.
    published: whether it has the weights that published numbers are measured with.
    sha256: of its weights.
    preprocessing: what it does to images.
    params: replicated parameters.
    extract: (params, images [D, B, ..., C]) -> dict of features [D, B, d] and of logits
      [D, B, classes].
    has_classes: whether logits mean something.
  """

  name: str
  published: bool
  sha256: str
  preprocessing: str
  params: Any
  extract: Callable[..., dict[str, jax.Array]]
  has_classes: bool = True

  def about(self) -> dict[str, Any]:
    """What decides its features, and what a report says of it."""
    names = ('name', 'published', 'sha256', 'preprocessing')
    facts = {name: getattr(self, name) for name in names}
    return facts | ({'arithmetic': found} if (found := numerics.arithmetic()) else {})

  def num_features(self, image_shape: tuple[int, ...]) -> int:
    """d, for images of a shape; nothing is computed."""
    blank = np.zeros((devices.fitting_batch_sizes(1, 1).host, *image_shape), np.uint8)
    output = devices.result_shapes(self.extract, self.params, devices.split_over_devices(blank))
    return output['features'].shape[-1]


def make_feature_fn(
  network: Any, features: str, logits: str, *, repeats_grey: bool = False
) -> Callable[[Any, jax.Array], dict[str, jax.Array]]:
  """A network's features of a batch of images.

  Args:
    network: module whose output is a dict.
    features, logits: the keys in it.
    repeats_grey: whether one channel is repeated to three.

  Returns:
    (params, images [B, H, W, C] of values 0..255, uint8 or float32) -> dict of features [B, d] and
    logits [B, classes].
  """

  def feature_fn(params, images):
    if repeats_grey and images.shape[-1] == 1:
      images = jnp.repeat(images, 3, axis=-1)
    output = network.apply({'params': params}, images)
    return {'features': output[features], 'logits': output[logits]}

  return feature_fn


def inception_network(
  weights: str | None, *, cache_dir: pathlib.Path, sha256: str | None, is_grey: bool = False
) -> FeatureNetwork:
  """The Inception network of FID, of colour and of grey images, which are repeated.

  Args and Raises as load_inception, and is_grey: whether the data are, which their features note.
  """
  params, sha256 = load_inception(weights, cache_dir=cache_dir, sha256=sha256 or INCEPTION_SHA256)
  published = sha256 == INCEPTION_SHA256
  size = inception.IMAGE_SIZE
  return FeatureNetwork(
    name='InceptionV3 of 2015-12-05' + ('' if published else f' with other weights, {sha256[:8]}'),
    published=published,
    sha256=sha256,
    preprocessing=(GREY_WORDS if is_grey else '')
    + f'bilinear to {size} x {size} as TensorFlow 1, (v - 128) / 128',
    params=devices.replicate(params),
    extract=_compile(inception.InceptionV3(), '2048', 'logits_unbiased', repeats_grey=True),
  )


def efficientnet_network(*, is_grey: bool = False) -> FeatureNetwork:
  """EfficientNet-Lite0, of a package of PyPI; of colour and of grey images, which are repeated.

  Args:
    is_grey: whether the data are, which their features note.

  Raises:
    UserError: as load_efficientnet.
  """
  params, sha256 = load_efficientnet()
  size = efficientnet.IMAGE_SIZE
  return FeatureNetwork(
    name='EfficientNet-Lite0 of ImageNet',
    published=False,
    sha256=sha256,
    preprocessing=(GREY_WORDS if is_grey else '')
    + f'all of the picture, bicubic with antialiasing to {size} x {size}, (v - 127) / 128',
    params=devices.replicate(params),
    extract=_compile(efficientnet.EfficientNetLite(), 'features', 'logits', repeats_grey=True),
  )


def digits_network() -> FeatureNetwork:
  """The classifier of the embedded digits, which the package ships."""
  params, sha256 = load_digits_classifier()
  return FeatureNetwork(
    name='digits classifier',
    published=False,
    sha256=sha256,
    preprocessing='8 x 8 pixels, as they are',
    params=devices.replicate(params),
    extract=_compile(digits_classifier.DigitsClassifier(), 'features', 'logits'),
  )


def watch_network(levels: int | None) -> FeatureNetwork:
  """The classifier of watch's exercises, which the package ships."""
  network = Classifier(NUM_EXERCISES, levels)
  params, sha256 = load_params(network, np.zeros((1, 128, 6), np.float32), WATCH_FILE)
  return FeatureNetwork(
    name='classifier of exercises',
    published=False,
    sha256=sha256,
    preprocessing='samples, as they are',
    params=devices.replicate(params),
    extract=_compile(network, 'features', 'logits'),
  )


def random_network(levels: int | None, x_0: np.ndarray) -> FeatureNetwork:
  """Random convolutions, for data without a network that was trained on them.

  Args:
    levels: of the data; None for values of any kind.
    x_0: float [N, ..., C], training examples whose mean and deviation inputs are freed of.
  """
  network = Classifier(1, levels)
  params = random_params(network, x_0)
  digest = hashlib.sha256()
  for name, leaf in flat_names(params).items():
    digest.update(name.encode() + np.ascontiguousarray(leaf).tobytes())
  return FeatureNetwork(
    name='random convolutions',
    published=False,
    sha256=digest.hexdigest(),
    preprocessing='each channel freed of the mean and the deviation of training examples',
    params=devices.replicate(params),
    extract=_compile(network, 'pooled', 'logits'),
    has_classes=False,
  )


def _compile(network, features, logits, *, repeats_grey=False):
  function = make_feature_fn(network, features, logits, repeats_grey=repeats_grey)
  return devices.compile_batch_fn(function, in_axes=(None, 0))


def flat_names(params: Any) -> dict[str, Any]:
  """{'Conv_0/kernel': leaf} of nested parameters."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


def save_params(params: Any, file: pathlib.Path) -> None:
  """Writes the .npz that load_params reads."""
  with written_whole(file) as partial, open(partial, 'wb') as stream:
    np.savez_compressed(stream, **flat_names(params))


def load_digits_classifier(file: pathlib.Path = DIGITS_FILE) -> tuple[Any, str]:
  """As load_params, of the digits classifier."""
  images = np.zeros((1, *digits_classifier.IMAGE_SHAPE), np.uint8)
  return load_params(digits_classifier.DigitsClassifier(), images, file)


def load_params(network: Any, example: np.ndarray, file: pathlib.Path) -> tuple[Any, str]:
  """(params of a network, sha256 of their file).

  Args:
    network: module.
    example: a batch that it takes.
    file: .npz of an array a parameter.

  Raises:
    UserError: the file is not that of this network.
  """
  like = jax.eval_shape(network.init, jax.random.key(0), example)['params']
  with np.load(file) as stored:
    arrays = dict(stored)
  leaves = flat_names(like)
  if {name: array.shape for name, array in arrays.items()} != {
    name: leaf.shape for name, leaf in leaves.items()
  }:
    raise UserError(f'{file} is of another network; scripts/train_{file.stem}.py makes it')
  params = jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in leaves])
  return params, hashlib.sha256(file.read_bytes()).hexdigest()


def collect_features(
  folder: pathlib.Path,
  network: FeatureNetwork,
  images: Images,
  num_images: int,
  *,
  identity: Identity,
  batch_size: int,
  what: str | None = None,
) -> dict[str, np.ndarray]:
  """Computes the features that the file lacks, of images 0, ..., num_images - 1.

  Args:
    folder: of the job; see shards.
    network: FeatureNetwork.
    images: Images.
    num_images: N.
    identity: of the images and the network; see features_identity.
    batch_size: images at a time, over all devices.
    what: word for the progress; None for silence.

  Returns:
    dict of ids, features float32 [N, d] and logits float32 [N, classes], mapped from the file.
  """
  sizes = devices.fitting_batch_sizes(batch_size, num_images)

  def compute(ids, _):
    batch = devices.split_over_devices(images.read(ids))
    return devices.gather_from_devices(network.extract(network.params, batch))

  file = shards.collect(
    folder,
    'features',
    identity.facts(),
    num_images,
    compute,
    sizes=sizes,
    what=what,
  )
  return {name: array[:num_images] for name, array in npz.open_npz(file).items()}


def features_identity(images: Identity, network: FeatureNetwork) -> Identity:
  """Of the features of images of an identity."""
  return images.but(network=network.about())
