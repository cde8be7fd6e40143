"""The model whose figures are made, and what every figure needs of it.

WORKDIR/reproduce/step_XXXXXXXX/FIGURE_KEY/ has a figure's data and pictures. What takes long is
computed in shards: an interrupted command goes on.
"""

import csv
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ddpm_jax import devices
from ddpm_jax.codec import Codec, Compressed, Goal
from ddpm_jax.data import Encoding, Labels, Source
from ddpm_jax.diffusion import Denoiser, NoiseSchedule
from ddpm_jax.evaluation.bound import Bound
from ddpm_jax.evaluation.display import Display
from ddpm_jax.evaluation.evaluator import Evaluator
from ddpm_jax.evaluation.figures import plots
from ddpm_jax.evaluation.samples import Drawer
from ddpm_jax.evaluation.scores import Figure, Scorer
from ddpm_jax.evaluation.weights import Weights
from ddpm_jax.storage import npz, shards
from ddpm_jax.storage.files import write_text, written_whole
from ddpm_jax.storage.identity import Identity, step_folder
from ddpm_jax.storage.shards import Pauses

NUM_COLUMNS = 10  # of Table 4 and of the pictures of progress


@dataclasses.dataclass(frozen=True)
class Coding:
  """What a figure of the codec's files needs.

  Attributes:
    num_examples: to be compressed, at most.
    choices: that decide the files, of config.compress.
    make_codec: () -> Codec.
    compress: (Codec, examples, Goal) -> their files.
  """

  num_examples: int
  choices: Mapping[str, Any]
  make_codec: Callable[[], Codec]
  compress: Callable[[Codec, np.ndarray, Goal], list[Compressed]]


@dataclasses.dataclass(frozen=True)
class Run:
  """A trained model, and builders of what figures need.

  Attributes:
    workdir: WORKDIR.
    weights: Weights.
    identity: of the whole chain's samples, but for the parameters: model, diffusion, seed.
    schedule: NoiseSchedule.
    denoiser_of: params -> Denoiser, its x_0 clipped.
    variance: as p_mean_variance.
    kind: (prediction, loss, variance), as Table 2 names them.
    image_shape: of an example, (H, W, C) of pictures.
    display: how examples are shown.
    open_split: () -> Source of the images to compress and to interpolate.
    open_bpd_splits: () -> Sources of the bound.
    metrics: of config.eval.
    num_samples, num_slots, num_images: as config.reproduce has them.
    batch_size: images a compiled chain, over all devices.
    is_paper_data: whether the data are those of the paper's numbers.
    key_of: name of a stream -> replicated key.
    open_training: () -> Source of training.
    labels_of: Source -> its Labels; None for a model without.
    make_bound: Source -> Bound, of all terms.
    make_short_bound: (Source, number of steps, name of a variance) -> Bound of a shorter chain.
    make_scorer: names of metrics -> Scorer; None for data that no network of features takes.
    make_drawer: number of samples -> Drawer, of config.sample's sampler.
    make_evaluator: () -> Evaluator.
    coding: Coding.
  """

  workdir: pathlib.Path
  weights: Weights
  identity: Identity
  schedule: NoiseSchedule
  denoiser_of: Callable[[Any], Denoiser]
  variance: str | None
  kind: tuple[str, str, str]
  image_shape: tuple[int, ...]
  display: Display
  open_split: Callable[[], Source]
  open_bpd_splits: Callable[[], Sequence[Source]]
  metrics: Sequence[str]
  num_samples: int
  num_slots: int
  num_images: int
  batch_size: int
  is_paper_data: bool
  key_of: Callable[[str], jax.Array]
  open_training: Callable[[], Source]
  labels_of: Callable[[Source], Labels | None]
  make_bound: Callable[[Source], Bound]
  make_short_bound: Callable[[Source, int, str], Bound]
  make_scorer: Callable[[Sequence[str]], Scorer | None]
  make_drawer: Callable[[int], Drawer]
  make_evaluator: Callable[[], Evaluator]
  coding: Coding

  @property
  def encoding(self) -> Encoding:
    """Of the data."""
    return self.display.encoding

  @functools.cached_property
  def split(self) -> Source:
    """The images to compress and to interpolate."""
    return self.open_split()

  @functools.cached_property
  def bpd_splits(self) -> Sequence[Source]:
    """The splits of the bound."""
    return self.open_bpd_splits()

  @property
  def eval_folder(self) -> pathlib.Path:
    """Of this step's evaluations."""
    return step_folder(self.workdir / 'eval', self.weights.step)

  @functools.cached_property
  def evaluator(self) -> Evaluator:
    """The Evaluator of config.eval."""
    return self.make_evaluator()

  @functools.cached_property
  def evaluation(self) -> dict[str, Figure]:
    """The figures of this step's evaluation, by metric (bits/dim by split)."""
    figures = self.evaluator.measure(self.workdir, self.weights)
    return {figure.get('bpd_split', figure['metric']): figure for figure in figures}

  def identify(self, **choices: Any) -> Identity:
    """The identity of something that is drawn from this model."""
    return self.weights.identify(self.identity).but(choices=choices)

  def folder(self, figure: str, identity: Identity) -> pathlib.Path:
    """The folder of a figure, made."""
    folder = identity.folder(step_folder(self.workdir / 'reproduce', self.weights.step), figure)
    folder.mkdir(parents=True, exist_ok=True)
    return folder

  def collect(
    self,
    folder: pathlib.Path,
    name: str,
    identity: Identity,
    count: int,
    compute: Callable[[np.ndarray, Pauses], dict[str, np.ndarray]],
    *,
    what: str,
  ) -> np.ndarray:
    """The rows of shards.collect, [count, ...]."""
    sizes = devices.fitting_batch_sizes(self.batch_size, count)
    file = shards.collect(folder, name, identity.facts(), count, compute, sizes=sizes, what=what)
    return npz.open_npz(file)[name][:count]


def write_csv(file: pathlib.Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
  """Writes a table of values."""
  with written_whole(file) as partial, open(partial, 'w', newline='') as stream:
    writer = csv.writer(stream)
    writer.writerow(columns)
    writer.writerows(rows)


def write_table(
  folder: pathlib.Path,
  name: str,
  columns: Sequence[str],
  rows: Sequence[Sequence[str]],
  *,
  marked: Sequence[int] = (),
) -> None:
  """Writes a table as CSV and as a picture."""
  write_csv(folder / f'{name}.csv', columns, rows)
  plots.plot_table(folder / f'{name}.png', columns, [list(row) for row in rows], marked=marked)


def write_markdown(
  file: pathlib.Path,
  title: str,
  columns: Sequence[str],
  rows: Iterable[Sequence[str]],
  notes: Iterable[str],
) -> None:
  """Writes a table with a title above it and notes below."""
  lines = [f'# {title}', '', f'| {" | ".join(columns)} |', f'|{"---|" * len(columns)}']
  lines += [f'| {" | ".join(row)} |' for row in rows]
  lines += ['', *(f'* {note}' for note in notes)]
  write_text(file, '\n'.join(lines) + '\n')
