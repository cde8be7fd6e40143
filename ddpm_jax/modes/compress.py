"""--mode=compress: one's own examples to files whose size is the rate of Sec. 4.3."""

import csv
import hashlib
import pathlib
import time
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import processes
from ddpm_jax.codec import Codec, Compressed, parse_goal, write_archive
from ddpm_jax.config import build, checks, codecs
from ddpm_jax.config.origins import with_data
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.own_pictures import read_examples, read_pictures
from ddpm_jax.evaluation.weights import Weights
from ddpm_jax.modes.sample import find_weights, model_of
from ddpm_jax.storage.files import written_whole
from ddpm_jax.storage.identity import step_folder
from ddpm_jax.storage.logs import Terminal

SUFFIX, ARCHIVE = '.ddpc', 'pictures.ddpa'


class Opened(NamedTuple):
  """A model, ready to compress."""

  config: ConfigDict
  path: pathlib.Path
  weights: Weights
  codec: Codec


def open_codec(config: ConfigDict, workdir: str, what: str) -> Opened:
  """The codec of a workdir's model, or of config.init_from where it has none.

  Raises:
    UserError: no checkpoint, a model that has no codec, or several processes.
  """
  if processes.count() > 1:
    raise UserError(f'{what} works with one process: start one')
  config = with_data(config, workdir, config.init_from)
  checks.prepare(config)
  codecs.check_codec(config)
  with Terminal().waiting('reads the checkpoint'):
    path, weights = find_weights(config, workdir)
  folder = codecs.table_folder(str(model_of(config, workdir)), weights.sha256)
  return Opened(
    config, path, weights, codecs.make_codec(config, weights, folder, say=processes.say)
  )


def compress(config: ConfigDict, workdir: str) -> None:
  """Compresses the pictures, or the array of other examples, that config.compress names.

  Args:
    config: ConfigDict.
    workdir: folder of the run; or, with config.init_from, any folder for the files of that model.

  Raises:
    UserError: examples that cannot be used, no checkpoint, or a model that has no codec.
  """
  checks.check_compress(config)
  if config.compress.images is None:
    raise UserError(
      'compress.images is not given: name a picture, several with commas between them, or a '
      'folder, as in --config.compress.images=PICTURE.png; of other data a .npy or .npz file'
    )
  goal = parse_goal(config.compress.target, 'compress.target')
  opened = open_codec(config, workdir, '--mode=compress')
  config = opened.config
  names, examples = _read(config)
  begin = time.perf_counter()
  files = codecs.encode(config, opened.codec, examples, goal, progress=True)
  secs = time.perf_counter() - begin
  folder = step_folder(opened.path / 'compressed', opened.weights.step) / _name(config, examples)
  folder.mkdir(parents=True, exist_ok=True)
  named = dict(zip(names, files, strict=True))
  written = {f'{name}{SUFFIX}': file.to_bytes() for name, file in named.items()}
  if config.compress.archive:
    written = {ARCHIVE: write_archive(files)}
  for name, data in written.items():
    with written_whole(folder / name) as partial:
      partial.write_bytes(data)
  _write_sizes(folder / 'sizes.csv', named, opened.codec)
  for line in _remarks(goal, named):
    processes.say(line)
  total, values = sum(map(len, written.values())), examples.size
  payload = sum(map(opened.codec.payload_bytes, files))
  processes.say(
    f'{len(files)} examples in {secs:.1f} s: {total} bytes, {8 * total / values:.3f} bits/dim; '
    f'without headers and checksums {8 * payload / values:.3f}'
  )
  processes.say(f'done: {folder}')


def _read(config) -> tuple[list[str], np.ndarray]:
  """(the names of the examples, the examples as Encoding.encode has them)."""
  given, field, shape = config.compress.images, 'compress.images', build.image_shape(config)
  if not build.has_pictures(config):
    names, values = read_examples(given, field, shape=shape)
    return names, build.encoding(config).encode(values, lambda row: f'{field}: {names[row]}')
  *size, channels = shape
  pictures = read_pictures(
    given, field, sizes=[(size[0], size[1])], channels=channels, what='--mode=compress'
  )
  for line in pictures.remarks:
    processes.say(line)
  kind = 'grey' if channels == 1 else 'RGB'
  for file in pictures.converted:
    processes.say(f'{file} is compressed as {kind} of 8 bits, which has less than the picture')
  return pictures.names, pictures.images


def _name(config, examples):
  """A readable name, and a short key of the examples and the choices."""
  fields = config.compress.to_dict() | {'images': None}
  digest = hashlib.sha256(repr(sorted(fields.items())).encode())
  digest.update(np.ascontiguousarray(examples).tobytes())
  target = config.compress.target.replace(':', '-')
  return f'{target}-{config.compress.search}_{digest.hexdigest()[:8]}'


def _write_sizes(file, named, codec):
  with written_whole(file) as partial, open(partial, 'w', newline='') as stream:
    rows = csv.writer(stream)
    rows.writerow(('name', 'bytes', 'payload_bytes', 'sections'))
    for name, compressed in named.items():
      payload = codec.payload_bytes(compressed)
      rows.writerow((name, len(compressed.to_bytes()), payload, len(compressed.sections)))


def _remarks(goal, named: dict[str, Compressed]):
  """Lines on examples whose target cannot be met."""
  over = [x for x in named if goal.num_bytes and len(named[x].to_bytes()) > goal.num_bytes]
  if over:
    yield (
      f'{len(over)} examples take more than {goal.num_bytes} bytes, {over[0]} first: the least '
      'there is are those of the header'
    )
