"""Bits/dim of a split of the data: the terms for each image, on disk.

WORKDIR/eval/step_XXXXXXXX/bpd-SPLIT_KEY/
  bpd.npz     the bound, an image a row: total_bpd, prior_bpd, vb and mse at each t
  terms.csv   its mean at each t
"""

import csv
import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import numpy as np

from ddpm_jax import devices, processes
from ddpm_jax.data import PICTURES, Encoding, Labels, Source, stand_ins
from ddpm_jax.diffusion import BoundTerms, Denoiser, NoiseSchedule, all_terms, sampled_terms
from ddpm_jax.diffusion.forward import scale_levels
from ddpm_jax.diffusion.gaussians import LEVELS
from ddpm_jax.evaluation import stepwise
from ddpm_jax.evaluation.stepwise import Stepwise
from ddpm_jax.evaluation.weights import Weights
from ddpm_jax.sampling import fold_rows, make_noise_fn
from ddpm_jax.storage import earlier, npz, shards
from ddpm_jax.storage.files import written_whole
from ddpm_jax.storage.identity import Identity


def make_bpd_fns(
  denoiser_of: Callable[[Any], Denoiser],
  schedule: NoiseSchedule,
  *,
  variance: str | None,
  num_terms: int | None = None,
  levels: int | None = LEVELS,
) -> Stepwise:
  """The variational bound of a batch of images, a term a step.

  Args:
    denoiser_of: params -> Denoiser, whose x_0 is clipped, as in the original program; (params,
      labels) -> Denoiser where the batch has labels.
    schedule: NoiseSchedule.
    variance: as p_mean_variance.
    num_terms: K, for the estimate of bpd_estimate; None computes all T terms.
    levels: of the data, as vb_terms_bpd.

  Returns:
    Stepwise, whose state is in the end what bpd_loop or bpd_estimate returns. The batch has images
    [B, ..., C], as scale_levels takes them, ids int [B] and, for the bound given them, labels int
    [B]; row i is a function of (params, images[i], key, ids[i], labels[i]).
  """

  def terms(denoiser, batch, key):
    x_0 = scale_levels(batch['images'], levels)
    keys = fold_rows(key, batch['ids'])
    args = schedule, denoiser, x_0, make_noise_fn(keys, x_0.shape[1:])
    if num_terms is None:
      return all_terms(*args, variance=variance, levels=levels)

    def draw(key):  # noise uses t < T
      return jax.random.uniform(jax.random.fold_in(key, schedule.num_timesteps), (num_terms,))

    return sampled_terms(*args, jax.vmap(draw)(keys), variance=variance, levels=levels)

  return by_terms(terms, denoiser_of, num_terms or schedule.num_timesteps)


def by_terms(
  terms: Callable[..., BoundTerms], denoiser_of: Callable[..., Denoiser], num_terms: int
) -> Stepwise:
  """A likelihood of a batch, a term a step.

  Args:
    terms: (Denoiser, batch, key) -> BoundTerms, whose start needs no Denoiser.
    denoiser_of: params -> Denoiser; (params, labels) -> Denoiser where the batch has labels.
    num_terms: of them.
  """

  def start(batch, key):
    return terms(None, batch, key).start

  def advance(params, state, batch, key, first, last):
    labels = (batch['labels'],) if 'labels' in batch else ()
    step = terms(denoiser_of(params, *labels), batch, key).step
    return jax.lax.fori_loop(first, last, step, state)

  return Stepwise(num_terms, start, advance)


@dataclasses.dataclass(frozen=True)
class Bound:
  """Bits/dim of the first images of a split.

  Attributes:
    source: the split.
    count: images.
    work: as make_bpd_fns returns it, compiled.
    key: replicated.
    sizes: of a batch.
    identity: of the bound, but for the parameters.
    num_terms: K of the estimate, or None for all terms.
    num_timesteps: T.
    labels: of all images of the split, for the bound given them; None for the bound without.
    encoding: of the data.
  """

  source: Source
  count: int
  work: Stepwise
  key: jax.Array
  sizes: devices.BatchSizes
  identity: Identity
  num_terms: int | None
  num_timesteps: int
  labels: Labels | None = None
  encoding: Encoding = PICTURES

  stem: ClassVar[str] = 'bpd'  # of the file, and of the names of figures

  @property
  def split(self) -> str:
    """Name of the split."""
    return self.source.split

  @property
  def unit(self) -> tuple[str, float]:
    """The unit of what is told, and how many of it a bit/dim is: of values of any kind it is that
    of the density of the values as they are stored."""
    return ('bits/dim', 1.0) if self.encoding.levels is not None else ('nats/dim', math.log(2))

  def folder(self, parent: pathlib.Path, weights: Weights) -> pathlib.Path:
    """Where an evaluation's folder has it."""
    name = f'{self.stem}-{self.split}' + ('' if self.labels is None else '-labels')
    name += f'-{self.num_terms}-terms' if self.num_terms else ''
    return weights.identify(self.identity).folder(parent, name)

  def collect(self, parent: pathlib.Path, weights: Weights) -> dict[str, np.ndarray]:
    """Computes the images that the file lacks; returns its arrays, by images."""

    def compute(ids, pauses):
      batch = {'images': self.source.read(ids), 'ids': ids.astype(np.int32)}
      if self.labels is not None:
        batch['labels'] = self.labels.ids[stand_ins(self.source, ids)]
      return stepwise.run(self.work, weights.params, batch, self.key, pauses=pauses)

    identity = weights.identify(self.identity)
    file = shards.collect(
      self.folder(parent, weights),
      self.stem,
      identity.facts(),
      self.count,
      compute,
      sizes=self.sizes,
      what=f'bits/dim {self.split}',
      earlier=earlier.bound(parent, identity) if self.stem == 'bpd' else None,
    )
    return {name: array[: self.count] for name, array in npz.open_npz(file).items()}

  def measure(self, parent: pathlib.Path, weights: Weights) -> dict[str, Any]:
    """Returns the figure; writes terms.csv, of the bound but not of an estimate."""
    arrays, (_, scale) = self.collect(parent, weights), self.unit
    figure = self.figure(arrays['total_bpd'])
    figure['L_T'] = scale * float(arrays['prior_bpd'].mean(dtype=np.float64))
    folder = self.folder(parent, weights)
    if self.num_terms:
      figure['terms'] = f'{self.num_terms} of {self.num_timesteps}, stratified'
    else:
      vb = arrays['vb'].mean(axis=0, dtype=np.float64)
      figure |= {
        'L_1..T-1': scale * float(vb[1:].sum()),
        'L_0': scale * float(vb[0]) + self.encoding.log_scale(),
        'terms': 'all, one draw each',
      }
      if processes.is_primary():
        write_terms(folder / 'terms.csv', arrays)
    figure |= {'clip_denoised': True, 'seed': self.identity.seed}
    figure['secs'] = shards.seconds(folder)
    return figure

  def figure(self, totals: np.ndarray, of: str = '') -> dict[str, Any]:
    """What each figure of a likelihood says.

    Args:
      totals: [N], bits/dim of the images.
      of: words after the unit in its name.
    """
    total, error = mean_and_error(totals)
    unit, scale = self.unit
    return {
      'metric': self.stem,
      'bpd_split': self.split,
      'name': f'{unit}{of} ({self.split}{"" if self.labels is None else ", given the label"})',
      'value': total * scale + self.encoding.log_scale(),
      'standard_error': error and error * scale,
      'count': self.count,
      'split': f'{self.source.name} {self.split}, first {self.count} of {len(self.source)}',
      'data_sha256': self.identity.data['sha256'],
    }


def mean_and_error(values: np.ndarray) -> tuple[float, float | None]:
  """(mean, standard error of the mean; None for one value), in float64."""
  values = np.asarray(values, np.float64)
  error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
  return float(values.mean()), error if error is None else float(error)


def write_terms(file: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  """Writes the bound's mean at each t, as CSV."""
  with written_whole(file) as partial, open(partial, 'w', newline='') as stream:
    writer = csv.writer(stream)
    writer.writerow(['t', 'vb_bpd', 'vb_standard_error', 'x_0_mse', 'x_0_mse_standard_error'])
    for t in range(arrays['vb'].shape[1]):
      vb, mse = mean_and_error(arrays['vb'][:, t]), mean_and_error(arrays['mse'][:, t])
      writer.writerow([t, *vb, *mse])
