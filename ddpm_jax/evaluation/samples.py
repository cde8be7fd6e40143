"""Samples on disk: WORKDIR/samples/step_XXXXXXXX/SAMPLER_KEY/samples.npz and grid.png.

Image i depends on the parameters and on (sample.seed, i) alone.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ddpm_jax import devices, processes
from ddpm_jax.data import Encoding
from ddpm_jax.diffusion import Denoiser, NoiseSchedule
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import stepwise
from ddpm_jax.evaluation.display import Display
from ddpm_jax.evaluation.grids import save_gif
from ddpm_jax.evaluation.stepwise import Stepwise
from ddpm_jax.evaluation.weights import Weights
from ddpm_jax.sampling import Chain, fold_rows, make_noise_fn
from ddpm_jax.storage import earlier, npz, shards
from ddpm_jax.storage.identity import Identity, sampler_name, step_folder
from ddpm_jax.storage.shards import Pauses

MAX_COLUMNS = 10  # of a grid by class
MAX_FRAMES = 60  # of an animation


def make_chain_fns(
  denoiser_of: Callable[[Any], Denoiser],
  schedule: NoiseSchedule,
  shape: tuple[int, ...],
  make_chain: Callable[..., Chain],
) -> Stepwise:
  """The chains of a sampler, from x_T to x_0, an evaluation of the network a step.

  Args:
    denoiser_of: params -> Denoiser; (params, labels) -> Denoiser where the batch has labels.
    schedule: NoiseSchedule.
    shape: of one example.
    make_chain: (schedule, denoiser, noise_fn) -> Chain, such as one of CHAINS with its choices.

  Returns:
    Stepwise of a batch of ids int [B], or of {'ids': these, 'labels': int [B]}, whose state is a
    ChainState.
  """
  facts = make_chain(schedule, None, None)

  def start(batch, key):
    noise_fn = make_noise_fn(fold_rows(key, _split(batch)[0]), shape)
    return facts.start(noise_fn(schedule.num_timesteps))  # steps use t < T, so T is free for x_T

  def advance(params, state, batch, key, first, last):
    ids, labels = _split(batch)
    noise_fn = make_noise_fn(fold_rows(key, ids), shape)
    chain = make_chain(schedule, denoiser_of(params, *labels), noise_fn)
    return jax.lax.fori_loop(first, last, chain.step, state)

  return Stepwise(facts.num_steps, start, advance)


def _split(batch):
  """(ids, (labels,)), or (ids, ()) of a batch without."""
  return (batch['ids'], (batch['labels'],)) if isinstance(batch, dict) else (batch, ())


@dataclasses.dataclass(frozen=True)
class Drawer:
  """A compiled sampler, for batches of one size.

  Attributes:
    chain: as make_chain_fns returns it, compiled.
    timesteps: int64 [S], of its evaluations; float64 of real times.
    key: replicated.
    sizes: of a batch.
    identity: of the samples, but for the parameters.
    words: the sampler in words, for reports.
    pattern: int32 [n], of a model with labels: sample i has the class pattern[i % n].
    class_names: of such a model.
    display: how samples are shown.
    guide: parameters of another model, replicated, to be guided away from.
  """

  chain: Stepwise
  timesteps: np.ndarray
  key: jax.Array
  sizes: devices.BatchSizes
  identity: Identity
  words: str
  pattern: np.ndarray | None = None
  class_names: tuple[str, ...] | None = None
  display: Display = dataclasses.field(default_factory=Display)
  guide: Any = None

  @property
  def encoding(self) -> Encoding:
    """Of the data."""
    return self.display.encoding

  def labels(self, ids: np.ndarray) -> np.ndarray | None:
    """The classes of samples, int32; None of a model without labels."""
    return None if self.pattern is None else self.pattern[ids % len(self.pattern)]

  def _batch(self, ids):
    labels = self.labels(ids)
    return ids if labels is None else {'ids': ids, 'labels': labels}

  def _params(self, params):
    return params if self.guide is None else (params, self.guide)

  def draw(self, params: Any, ids: np.ndarray, pauses: Pauses | None = None) -> np.ndarray:
    """x_0 of ids [sizes.host], this process's share: float32 [n, ...], unclipped."""
    batch, params = self._batch(ids), self._params(params)
    return stepwise.run(self.chain, params, batch, self.key, pauses=pauses).x

  def predictions(self, params: Any, ids: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
    """Yields (t, x_0 predicted at t float32 [n, ...]) at each evaluation of a chain, then x_0
    itself as (-1, x_0)."""
    batch, params = devices.split_over_devices(self._batch(ids)), self._params(params)
    state = self.chain.start(batch, self.key)
    for i, t in enumerate(self.timesteps):
      state = stepwise.advance(self.chain, params, state, batch, self.key, i, i + 1)
      yield t.item(), devices.gather_from_devices(state.predictions[0])
    yield -1, devices.gather_from_devices(state.x)


def write_samples(
  drawer: Drawer,
  weights: Weights,
  workdir: pathlib.Path,
  num_samples: int,
  *,
  rounding: str = 'uint8',
  progress: bool = False,
) -> pathlib.Path:
  """Draws the samples 0, ..., num_samples - 1 that are missing; writes samples.npz and grid.png.

  Samples of the same identity are kept and completed. Samples that another process is drawing are
  waited for.

  Args:
    drawer: Drawer.
    weights: Weights.
    workdir: WORKDIR.
    num_samples: N.
    rounding: 'uint8', as the data are stored; or 'float' for x_0 in float32, neither clipped nor
      rounded.
    progress: whether to print the progress.

  Returns:
    the folder written to.
  """

  encoding = drawer.encoding

  def compute(ids, pauses):
    x_0 = drawer.draw(weights.params, ids, pauses)
    arrays = {'samples': encoding.decode(x_0) if rounding == 'uint8' else x_0}
    labels = drawer.labels(ids)
    return arrays if labels is None else arrays | {'labels': labels}

  def draw_grid(file):
    arrays = npz.open_npz(file)
    most = drawer.display.most_shown
    rows, layout = np.arange(min(most, len(arrays['samples']))), {}
    if drawer.class_names is not None:
      rows, layout = by_class(np.asarray(arrays['labels']), drawer.class_names, most)
    samples = arrays['samples'][np.maximum(rows, 0)]
    stored = samples if rounding == 'uint8' else encoding.decode(samples)
    drawer.display.save(folder / 'grid.png', stored, is_empty=rows < 0, **layout)

  identity = samples_identity(drawer, weights, rounding)
  name = sampler_name(identity.sampler) + ('' if rounding == 'uint8' else '-float')
  folder = identity.folder(step_folder(workdir / 'samples', weights.step), name)
  shards.collect(
    folder,
    'samples',
    identity.facts(),
    num_samples,
    compute,
    sizes=drawer.sizes,
    what='samples' if progress else None,
    finish=draw_grid,
    earlier=earlier.samples(workdir, identity),
  )
  return folder


def samples_identity(drawer: Drawer, weights: Weights, rounding: str) -> Identity:
  """Of samples, rounded to uint8 or not."""
  identity = weights.identify(drawer.identity)
  return identity if rounding == 'uint8' else identity.but(choices={'rounding': rounding})


def by_class(
  labels: np.ndarray, names: Sequence[str], most: int
) -> tuple[np.ndarray, dict[str, Any]]:
  """Which samples a grid shows whose every row is of one class.

  Args:
    labels: int [N], of the samples; the number of the names for those without a label.
    names: of the classes.
    most: images of the grid, about; each class has one at least.

  Returns:
    (samples int [n], -1 where a cell stays empty; the columns and the captions that Display.grid
    takes).
  """
  found, counts = np.unique(labels, return_counts=True)
  of_class = max(1, most // len(found))
  columns = min(of_class, MAX_COLUMNS, int(counts.max()))
  cells, captions = [], []
  for class_ in found[:most]:
    own = np.flatnonzero(labels == class_)[:of_class]
    cells.append(np.pad(own, (0, -len(own) % columns), constant_values=-1))
    captions += [[*names, 'none'][class_], *[''] * (len(cells[-1]) // columns - 1)]
  return np.concatenate(cells), {'columns': columns, 'captions': captions}


def load_samples(folder: pathlib.Path, num_samples: int | None = None) -> np.ndarray:
  """The samples that write_samples wrote to a folder, mapped from the file."""
  return npz.open_npz(folder / 'samples.npz')['samples'][:num_samples]


def write_pictures(folder: pathlib.Path, num_samples: int, display: Display) -> pathlib.Path:
  """Writes each sample that write_samples wrote as a file of its own, unless it is there.

  Returns:
    the folder of the files, 00000000.png, ....
  """
  pictures = folder / 'pictures'
  if processes.is_primary():
    pictures.mkdir(exist_ok=True)
    for i, image in enumerate(load_samples(folder, num_samples)):
      if not (file := pictures / f'{i:08d}.png').exists():
        display.save_one(file, image)
  return pictures


def write_animation(
  drawer: Drawer, weights: Weights, folder: pathlib.Path, num_samples: int
) -> pathlib.Path:
  """Writes chain.gif: the predictions of x_0 on the way to the first samples.

  Returns:
    the file.
  """
  file = folder / 'chain.gif'
  count = min(num_samples, drawer.display.most_shown, drawer.sizes.global_)
  if processes.count() > 1:
    raise UserError('sample.animate=True draws with one process; leave it out, or start one')
  return file if file.exists() else save_chain(file, drawer, weights.params, count)


def save_chain(file: pathlib.Path, drawer: Drawer, params: Any, num: int) -> pathlib.Path:
  """Writes the predictions of x_0 on the way to the first `num` samples as an animation."""
  ids = np.minimum(np.arange(drawer.sizes.host), num - 1)
  steps = (drawer.encoding.decode(x_0[:num]) for _, x_0 in drawer.predictions(params, ids))
  chosen = chosen_frames(steps, len(drawer.timesteps))
  save_gif(file, drawer.display.animation(chosen))
  return file


def chosen_frames(predictions: Iterable[np.ndarray], num_steps: int) -> list[np.ndarray]:
  """The MAX_FRAMES of num_steps predictions, evenly spaced, and the one after them all."""
  chosen = set(np.linspace(0, num_steps, MAX_FRAMES).round().astype(int).tolist())
  return [frame for i, frame in enumerate(predictions) if i in chosen]
