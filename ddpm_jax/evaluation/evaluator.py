"""An evaluation: bits/dim, then metrics of samples against real images, as a report.

WORKDIR/eval/step_XXXXXXXX/
  report-METRICS-SAMPLER_KEY/    report.json and report.md: every figure, with how it was measured
  bpd-SPLIT_KEY/                 the bound; see bound.py
  features-SAMPLER_KEY/          of the samples in WORKDIR/samples/step_XXXXXXXX
WORKDIR/eval/samples-NAME_KEY/   a report on images of another program (config.eval.samples)
WORKDIR/eval/features-NAME_KEY/  of these
WORKDIR/eval/best.json           the best step so far of each way to measure; their checkpoints stay

Each part is computed in shards and a function of its identity: an interrupted evaluation goes on,
and ends in the same report.
"""

import dataclasses
import json
import math
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ddpm_jax import devices, processes
from ddpm_jax.evaluation.bound import Bound
from ddpm_jax.evaluation.images import ArrayImages, FolderImages, NpzImages
from ddpm_jax.evaluation.report import write_report
from ddpm_jax.evaluation.samples import Drawer, load_samples, samples_identity, write_samples
from ddpm_jax.evaluation.scores import Figure, Scorer
from ddpm_jax.evaluation.weights import Weights
from ddpm_jax.storage import shards
from ddpm_jax.storage.checkpoints import keep_steps
from ddpm_jax.storage.files import damaged, file_lock, read_json, write_text
from ddpm_jax.storage.identity import Identity, key_of, sampler_name, step_folder


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """All measurements of an evaluation, for any checkpoint of the model.

  Attributes:
    metrics: their names, for the name of the report.
    bounds: Bounds to measure.
    scorer: Scorer of the samples, or None.
    drawer: Drawer of the samples, or None.
    num_samples: samples to measure.
    rounding: of the samples, as write_samples.
    identity: of a report, but for the parameters.
    about: facts for every report.
    notes: lines for every report.
  """

  metrics: Sequence[str]
  bounds: Sequence[Bound]
  scorer: Scorer | None
  drawer: Drawer | None
  num_samples: int
  rounding: str
  identity: Identity
  about: Mapping[str, Any]
  notes: Sequence[str]

  def remarks(self) -> list[str]:
    """Lines on what is measured, and what is not, known before anything is."""
    of_reference = self.scorer.opened.notes if self.scorer else ()
    return list(dict.fromkeys([*self.notes, *of_reference]))

  def folder(self, workdir: pathlib.Path, weights: Weights) -> pathlib.Path:
    """The folder of a report."""
    words = ['report', *self.metrics]
    words += [sampler_name(self.identity.sampler)] if self.drawer else []
    parent = step_folder(workdir / 'eval', weights.step)
    return weights.identify(self.identity).folder(parent, '-'.join(words))

  def measure(self, workdir: pathlib.Path, weights: Weights) -> list[Figure]:
    """Measures parameters and writes the report.

    Returns:
      the figures; without metrics of images on all processes but the first.
    """
    folder = self.folder(workdir, weights)
    parent = folder.parent
    about = {
      'step': weights.step,
      'checkpoint_sha256': weights.checkpoint_sha256,
      'parameters_sha256': weights.sha256,
      **self.about,
    }
    notes = [*self.notes]
    figures = [bound.measure(parent, weights) for bound in self.bounds]
    if self.scorer:
      self.scorer.reference()  # what is wrong with it is found before samples are drawn
      scored, more_notes = self._score(workdir, parent, weights)
      figures += scored
      notes = list(dict.fromkeys([*notes, *more_notes]))
      about |= self.scorer.about()
    if processes.is_primary():
      write_report(folder, make_report(f'Evaluation of step {weights.step}', about, figures, notes))
      note_best(workdir, weights.step, figures, self.identity)
    return figures

  def _score(self, workdir, parent, weights):
    drawn = write_samples(
      self.drawer, weights, workdir, self.num_samples, rounding=self.rounding, progress=True
    )
    identity = samples_identity(self.drawer, weights, self.rounding)
    facts = {
      'sampler': self.drawer.words,
      'sample_seed': identity.seed,
      'rounding': self.rounding,
      'sampling_secs': shards.seconds(drawn),
    }
    return self.scorer.score(
      parent,
      f'features-{drawn.name.rpartition("_")[0]}',
      ArrayImages(load_samples(drawn), self.drawer.encoding),
      self.num_samples,
      identity=identity,
      facts=facts,
    )


def score_images(
  scorer: Scorer,
  images: NpzImages | FolderImages,
  workdir: pathlib.Path,
  about: Mapping[str, Any],
  identity: Identity,
) -> pathlib.Path:
  """Measures given images, all of them, instead of our own.

  Args:
    scorer: Scorer.
    images: as open_images gives them.
    workdir: WORKDIR.
    about: facts for the report.
    identity: of the report, but for the images.

  Returns:
    the folder of the report.
  """
  sha256 = images.fingerprint()
  of_images = Identity(choices={'images': images.name, 'sha256': sha256})
  stem = pathlib.Path(images.name).stem
  identity = identity.but(choices={**(identity.choices or {}), **(of_images.choices or {})})
  folder = identity.folder(workdir / 'eval', f'samples-{stem}')
  processes.say(f'measures all {len(images)} images of {images.name}')
  figures, notes = scorer.score(
    folder.parent,
    f'features-{stem}',
    images,
    len(images),
    identity=of_images,
    facts={'rounding': 'uint8'},
  )
  notes = [*images.remarks, *notes]
  if processes.is_primary():
    about = {'images': images.name, 'images_sha256': sha256, **scorer.about(), **about}
    write_report(folder, make_report(f'Evaluation of {images.name}', about, figures, notes))
  return folder


def make_report(
  title: str, about: Mapping[str, Any], figures: Sequence[Figure], notes: Sequence[str]
) -> dict[str, Any]:
  """What write_report takes; `about` is completed by what is known of the program."""
  about = {
    **about,
    'jax': jax.__version__,
    'matmul_precision': jax.config.jax_default_matmul_precision or 'default of the device',
    'numpy': np.__version__,
    'python': platform.python_version(),
    'devices': f'{len(devices.in_use())} x {jax.devices()[0].device_kind}',
  }
  return {'title': title, 'notes': list(notes), 'about': about, 'figures': list(figures)}


def _are_records(records):
  """Whether these are the records of a best.json."""
  return isinstance(records, dict) and all(
    isinstance(best, dict)
    and isinstance(best.get('step'), int)
    and isinstance(best.get('value'), int | float)
    for best in records.values()
  )


def note_best(
  workdir: pathlib.Path, step: int, figures: Sequence[Figure], identity: Identity
) -> None:
  """Keeps the checkpoint of the best step so far: by the Frechet distance, otherwise by bits/dim.

  Only evaluations of one identity compare: best.json has the best step of each, by its key. A
  value that is not finite is never the best.

  Args:
    workdir: WORKDIR.
    step: that was measured.
    figures: of the report.
    identity: of the report, but for step and parameters.

  Raises:
    UserError: best.json is damaged, or cannot be written.
  """
  candidates = [f for metric in ('bpd', 'fid') for f in figures if f['metric'] == metric]
  if not candidates or not math.isfinite(candidates[-1]['value']):
    return
  name, value = candidates[-1]['name'], candidates[-1]['value']
  new = {'step': step, 'figure': name, 'value': value, 'request': identity.facts()}
  key = key_of({name: new[name] for name in ('figure', 'request')})
  file = workdir / 'eval' / 'best.json'
  lock = file.with_name('.best.lock')
  with file_lock(lock, waiting_for=f'another evaluation that writes {file}'):
    records = read_json(file) if file.exists() else {}
    if isinstance(records, dict) and 'request' in records:  # the first versions had one alone
      records = {'first': records}
    if not _are_records(records):
      raise damaged(file, 'no records')
    best = records.get(key)
    if best and best['step'] != step and best['value'] <= value:
      return
    records[key] = new
    write_text(file, json.dumps(records, indent=2) + '\n')
    steps = sorted({best['step'] for best in records.values()})
    keep_steps(workdir / 'checkpoints', 'best', steps)
  processes.say(f'best so far: step {step}, {name} {value:.4f}')
