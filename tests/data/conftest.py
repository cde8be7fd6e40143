import numpy as np
import pytest


@pytest.fixture
def pictures():
  """Returns five random colour pictures, uint8 [5, 6, 6, 3]."""
  return np.random.RandomState(0).randint(0, 256, (5, 6, 6, 3), np.uint8)


@pytest.fixture
def write_tfds():
  """Returns a function that prepares a tiny TFDS data set as ArrayRecord."""
  import PIL.Image
  import tensorflow_datasets as tfds

  def write(root, name, images, *, version='1.0.0', config=None, feature='image', labels=None):
    labels = labels or {}  # {feature: (names, a class for each image)}

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
      VERSION = tfds.core.Version(version)
      BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []
      pkg_dir_path = None

      def _info(self):
        features = {'index': tfds.features.Scalar(np.int64)}
        if feature:
          features[feature] = tfds.features.Image(shape=(None, None, 3))
        for label, (names, _) in labels.items():
          features[label] = tfds.features.ClassLabel(names=names)
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

      def _split_generators(self, dl_manager):
        return {'train': self._generate_examples()}

      def _generate_examples(self):
        for i, image in enumerate(images):
          picture = {feature: PIL.Image.fromarray(image)} if feature else {}
          yield i, {'index': i, **picture} | {label: ids[i] for label, (_, ids) in labels.items()}

    Tiny.name = name
    Tiny(data_dir=root, file_format='array_record').download_and_prepare()

  return write


@pytest.fixture
def write_features():
  """Returns a function that prepares a TFDS data set, tiny, of features and their values."""
  import tensorflow_datasets as tfds

  def write(root, **given):  # name: (feature, values)
    features = {name: feature for name, (feature, _) in given.items()}
    examples = zip(*(values for _, values in given.values()), strict=True)

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
      VERSION = tfds.core.Version('1.0.0')
      pkg_dir_path = None

      def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

      def _split_generators(self, dl_manager):
        return {'train': self._generate_examples()}

      def _generate_examples(self):
        for i, values in enumerate(examples):
          yield i, dict(zip(features, values, strict=True))

    Tiny.name = 'tiny'
    Tiny(data_dir=root, file_format='array_record').download_and_prepare()

  return write


@pytest.fixture
def sorted_rows():
  """Returns a function that sorts pictures, to compare sets of them (TFDS shuffles on writing)."""
  return lambda images: sorted(image.tobytes() for image in images)
