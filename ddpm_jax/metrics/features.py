"""Features of many images, on disk: features.npz, one row an image."""

import dataclasses
from typing import Any

from ddpm_jax import npz, parallel, shards


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
  """A network that turns images into features and logits, ready to run on all devices.

  Attributes:
    name: what it is called in reports.
    published: whether it has the weights that published numbers are measured with.
    sha256: of its weights.
    preprocessing: what it does to images.
    params: replicated parameters.
    step: (params, images [D, B, H, W, C]) -> dict of features [D, B, d] and logits [D, B, classes].
  """

  name: str
  published: bool
  sha256: str
  preprocessing: str
  params: Any
  step: Any

  def about(self):
    """What a report says of it."""
    return {name: getattr(self, name) for name in ('name', 'published', 'sha256', 'preprocessing')}


def collect_features(folder, network, images, num_images, *, request, batch_size, what=None):
  """Computes what is missing of the features of images 0, ..., num_images - 1.

  Args:
    folder: pathlib.Path of the job; see shards.
    network: FeatureNetwork.
    images: has read(indices) -> images [n, H, W, C] of values 0..255, uint8 or float32.
    num_images: N.
    request: dict of JSON values that says which images these are.
    batch_size: images at a time, over all devices.
    what: word for the progress; None for silence.

  Returns:
    dict of ids, features float32 [N, d] and logits float32 [N, classes], mapped from the file.
  """
  sizes = parallel.fitting_batch_sizes(batch_size, num_images)

  def compute(ids):
    batch = parallel.split_over_devices(images.read(ids))
    return parallel.gather_from_devices(network.step(network.params, batch))

  file = shards.collect(
    folder,
    'features',
    {'images': request, 'network': network.about()},
    num_images,
    compute,
    sizes=sizes,
    what=what,
  )
  return {name: array[:num_images] for name, array in npz.open_npz(file).items()}
