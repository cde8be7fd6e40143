"""The codec of a model: its predictions, and its table, which is fitted once and kept."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import processes
from ddpm_jax.codec import Codec, Compressed, Goal, Search, Table, fit_table
from ddpm_jax.codec.format import VERSION
from ddpm_jax.codec.table import VERSION as TABLE_VERSION
from ddpm_jax.codec.table import check_arrays
from ddpm_jax.config import build, origins
from ddpm_jax.config.predictions import predict_of, training_examples
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.figures.run import Coding
from ddpm_jax.evaluation.weights import Weights
from ddpm_jax.heeding import heed
from ddpm_jax.nn.own import OwnNetwork
from ddpm_jax.storage.files import damaged, make_writable
from ddpm_jax.storage.logs import Progress
from ddpm_jax.storage.npz import open_npz, write_npz


def check_codec(config: ConfigDict) -> None:
  """Raises a UserError for a model that the codec cannot use."""
  if build.parameterization(config.diffusion).is_step:
    raise UserError(
      'this model predicts xprev, one step of the whole chain, and the codec takes longer ones: '
      'take a model that predicts eps, xstart or v'
    )
  build.check_unconditional(config)


def search_of(config: ConfigDict) -> Search:
  """How config.compress searches."""
  is_exact = config.compress.search == 'exact'
  bits = config.compress.search_bits
  if bits is None:
    bits = 17 if is_exact else Search().bits
  return Search(is_exact, bits)


def make_codec(
  config: ConfigDict,
  weights: Weights,
  folder: pathlib.Path,
  *,
  network: OwnNetwork | None = None,
  say: Callable[[str], None] = lambda line: None,
) -> Codec:
  """The codec of a model; fits its table where the folder has none.

  Args:
    config: ConfigDict.
    weights: Weights.
    folder: where the table is kept.
    network: one's own, in place of the U-Net.
    say: told when a table is fitted, and where it is kept.

  Raises:
    UserError: a model that the codec cannot use, or a table that is damaged.
  """
  check_codec(config)
  predict, shape = predict_of(config, weights, network), build.image_shape(config)
  file = folder / _name(weights.sha256)
  levels = build.levels(config)
  if file.is_file():
    arrays = {name: np.array(x) for name, x in open_npz(file, verify=True).items()}
    if not check_arrays(arrays, shape, levels):
      raise damaged(file, 'it is no table of this model')
    table = Table(arrays)
  else:
    say('fits the table of the codec on training data, once')
    table = fit_table(build.schedule(config), predict, training_examples(config), levels=levels)
    make_writable(folder)
    write_npz(file, table.arrays)
    say(f'keeps it in {file}, which files are decoded with, too')
  return Codec(build.schedule(config), table, predict, shape, bytes.fromhex(weights.sha256[:16]))


def figures_coding(config: ConfigDict, path: pathlib.Path, weights: Weights) -> Coding:
  """What figures of the codec's files need of the model of a workdir."""

  def compress(codec, examples, goal):
    return encode(config, codec, examples, goal, progress=True)

  return Coding(
    num_examples=config.reproduce.num_coded,
    choices={
      'format': VERSION,
      'search': dataclasses.asdict(search_of(config)),
      'seed': config.compress.seed,
      'margin_bits': config.compress.margin_bits,
    },
    make_codec=lambda: make_codec(
      config, weights, table_folder(str(path), weights.sha256), say=processes.say
    ),
    compress=compress,
  )


def encode(
  config: ConfigDict,
  codec: Codec,
  examples: np.ndarray,
  goal: Goal,
  *,
  progress: bool,
) -> list[Compressed]:
  """Compresses examples as config.compress says, config.sample.batch_size of them at a time.

  Args:
    config: ConfigDict.
    codec: Codec.
    examples: [N, ..., C] as Encoding.encode has them.
    goal: Goal.
    progress: whether to print how far it is.
  """
  choices = {'seed': config.compress.seed, 'search': search_of(config)}
  choices['margin_bits'] = config.compress.margin_bits

  def work(part, told):
    return codec.encode(part, goal, progress=told, **choices)

  return [x for part in _in_batches(config, examples, work, progress) for x in part]


def decode(
  config: ConfigDict, codec: Codec, files: Sequence[Compressed], *, progress: bool
) -> tuple[np.ndarray, list[str]]:
  """Decodes files as config.decompress says.

  Args:
    config: ConfigDict.
    codec: Codec.
    files: Compressed.
    progress: whether to print how far it is.

  Returns:
    (examples [N, ..., C] as they are stored, lines on files that are not whole).
  """
  encoding, choices, notes = build.encoding(config), config.decompress, []
  for file in files:
    codec.check(file)

  def work(part, told):
    decoded = codec.decode(part, progress=told)
    notes.extend(x.note for x in decoded if x.note)
    x_0 = np.stack([x.x_0 for x in decoded])
    if choices.realism and any(x.levels is None for x in decoded):
      completed = codec.complete(decoded, choices.completion, seed=choices.seed)
      x_0 = x_0 + np.float32(choices.realism) * (completed - x_0)
    examples = encoding.decode(x_0)
    for row, found in enumerate(decoded):
      if found.levels is not None:
        examples[row] = encoding.stored(found.levels)
    return examples

  return np.concatenate(_in_batches(config, files, work, progress)), notes


def _in_batches(config, rows, work, progress):
  """[work(some of the rows, told how many steps of how many are done)]."""
  size, found = config.sample.batch_size, []
  with contextlib.ExitStack() as stack:
    bar, count = None, 0
    if progress:
      bar = stack.enter_context(contextlib.closing(Progress('examples', len(rows))))

    def told(done, total):
      heed()
      if bar:
        bar.reach(count * done / total)

    for first in range(0, len(rows), size):
      count = min(size, len(rows) - first)
      found.append(work(rows[first : first + count], told))
      if bar:
        bar.add(count)
  return found


def table_folder(given: str, sha256: str) -> pathlib.Path:
  """Where the table of a model is kept: its workdir; the package, of the models that it brings; or
  the user's cache.

  Args:
    given: the model, as origins has it.
    sha256: of its parameters.
  """
  folder = origins.find_folder(given)
  if folder is not None and (folder / _name(sha256)).is_file():
    return folder
  return origins.kept_folder(given, 'codec')


def _name(sha256):
  return f'codec{TABLE_VERSION}_{sha256[:16]}.npz'
