"""The evaluation loop: bits/dim, then features of samples against those of real images.

WORKDIR/eval/step_XXXXXXXX/
  report.json report.md     every figure, with how it was measured
  bpd_SPLIT/bpd.npz         the bound, an image a row: total_bpd, prior_bpd, vb and mse at each t
  bpd_SPLIT.csv             its mean at each t
  bpd_SPLIT_K_terms/bpd.npz the estimate from K terms (config.eval.bpd_terms)
  features/features.npz     of the samples in WORKDIR/samples/step_XXXXXXXX
WORKDIR/eval/training_XXXXXXXX/     the same, as measured during training
WORKDIR/eval/samples_NAME_SHA256/   the same for images of another program (config.eval.samples)
WORKDIR/eval/best.json      the best step so far of each way to measure; their checkpoints are kept

Each part is made in shards and a function of the config, the checkpoint and the data: an
interrupted evaluation goes on, and ends in the same report.
"""

import contextlib
import hashlib
import json
import math
import pathlib
import platform
import time

import jax
import numpy as np

from ddpm_jax import build, npz, parallel, shards
from ddpm_jax.bounds import Bound
from ddpm_jax.checkpoints import Checkpointer, keep_steps
from ddpm_jax.files import held, read_json, write_text
from ddpm_jax.metrics.images import open_images
from ddpm_jax.report import write_report
from ddpm_jax.sample import Sampler, fingerprint, restore_ema, write_samples
from ddpm_jax.scores import ArrayImages, Scorer
from ddpm_jax.workdir import config_dict, find_workdir, locked, open_workdir

WATCH_EVERY_SECS = 10


def evaluate(config, workdir):
  """--mode=eval: measures a checkpoint's EMA, each new checkpoint, or given images.

  Args:
    config: ConfigDict.
    workdir: folder of the run.

  Raises:
    ValueError: a config, checkpoint, data set, weights or statistics that cannot be used.
  """
  build.begin(config)
  path = open_workdir(workdir if config.eval.samples else find_workdir(workdir))
  with contextlib.ExitStack() as stack:
    if parallel.is_primary():
      stack.enter_context(locked(path, 'eval'))
    if config.eval.samples:
      report_folder = score_images(config, path)
    elif config.eval.watch:
      report_folder = watch(config, path)
    else:
      report_folder = evaluate_step(Evaluator(config), path, config.eval.step)
    if parallel.is_primary():
      print(f'done: {report_folder / "report.md"}', flush=True)


def training_evaluator(config):
  """The Evaluator of evaluations during training: fewer images, and the bound by its estimate."""
  config = config.copy_and_resolve_references()
  config.eval.update(
    num_samples=config.train.eval_num_samples,
    bpd_examples=config.train.eval_bpd_examples,
    bpd_terms=min(config.train.eval_bpd_terms, config.diffusion.num_timesteps),
  )
  return Evaluator(config)


def restore_step(config, path, step):
  """(step, replicated EMA parameters, checksum) of a checkpoint, which the run in progress keeps.

  Args:
    config: ConfigDict.
    path: WORKDIR.
    step: None for the newest.
  """
  checkpoints = path / 'checkpoints'
  if parallel.is_primary() and step is not None:
    keep_steps(checkpoints, 'evaluating', [step])
  step, ema_params, checksum = restore_ema(config, path, step)
  if parallel.is_primary():
    keep_steps(checkpoints, 'evaluating', [step])  # until it is known whether it is the best
  return step, ema_params, checksum


def step_folder(path, step):
  """The folder of a step's evaluation in WORKDIR."""
  return path / 'eval' / f'step_{step:08d}'


def evaluate_step(evaluator, path, step):
  """Measures one checkpoint; None is the newest. Returns the folder of its report."""
  step, ema_params, checksum = restore_step(evaluator.config, path, step)
  if parallel.is_primary():
    print(f'evaluates step {step}', flush=True)
  folder = step_folder(path, step)
  evaluator.measure(folder, path, step, ema_params, checkpoint_sha256=checksum)
  if parallel.is_primary():
    keep_steps(path / 'checkpoints', 'evaluating', [])
  parallel.barrier('report written')
  return folder


def watch(config, path):
  """Measures each new checkpoint up to train.num_steps. Returns the last report's folder."""
  evaluator = Evaluator(config)
  done, folder = set(), None
  if parallel.is_primary():
    print(f'waits for checkpoints up to step {config.train.num_steps}; Ctrl-C ends it', flush=True)
  while True:
    with Checkpointer(path / 'checkpoints', config_dict(config), read_only=True) as checkpointer:
      steps = [step for step in checkpointer.all_steps() if step not in done]
    for step in steps:
      done.add(step)
      try:
        folder = evaluate_step(evaluator, path, step)
      except ValueError as error:
        if 'was deleted' not in str(error) and 'no checkpoint' not in str(error):
          raise
        print(f'passes over step {step}: {error}', flush=True)
    if done and max(done) >= config.train.num_steps:
      return folder
    if not steps:
      time.sleep(WATCH_EVERY_SECS)


def score_images(config, path):
  """Measures given images, all of them, instead of our own. Returns the folder of the report."""
  if set(build.names(config.eval.metrics)) == {'bpd'}:
    raise ValueError(
      'eval.metrics=bpd is of a model, and eval.samples are images alone: name some of fid, is, '
      'kid, pr'
    )
  images = open_images(config.eval.samples, 'eval.samples')
  if images.image_shape != build.image_shape(config):
    raise ValueError(
      f'eval.samples={config.eval.samples} has images of {images.image_shape}; data.image_size and '
      f'data.channels say {build.image_shape(config)}'
    )
  request = {'images': str(config.eval.samples), 'images_sha256': images.fingerprint()}
  name = pathlib.Path(config.eval.samples).stem
  folder = path / 'eval' / f'samples_{name}_{request["images_sha256"][:8]}'
  folder.mkdir(parents=True, exist_ok=True)
  if parallel.is_primary():
    print(f'measures all {len(images)} images of {config.eval.samples}', flush=True)
  scorer = Scorer(config)
  figures, notes = scorer.score(
    folder, images, len(images), request=request, facts={'rounding': 'uint8'}
  )
  if parallel.is_primary():
    title = f'Evaluation of {config.eval.samples}'
    write_report(folder, _report(config, title, request | scorer.about(), figures, notes))
  return folder


def _report(config, title, about, figures, notes):
  """What write_report takes; `about` is completed by what is known of config and program."""
  text = json.dumps(config_dict(config), sort_keys=True)
  about = about | {
    'config_sha256': hashlib.sha256(text.encode()).hexdigest(),
    'jax': jax.__version__,
    'matmul_precision': jax.config.jax_default_matmul_precision or 'default of the device',
    'numpy': np.__version__,
    'python': platform.python_version(),
    'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
  }
  return {'title': title, 'notes': notes, 'about': about, 'figures': figures}


class Evaluator:
  """All measurements that config.eval names, compiled once, for any checkpoint of the model."""

  def __init__(self, config):
    self.config = config
    wanted = config.eval
    unrelated = ('step', 'watch', 'cache_dir', 'batch_size', 'inception_weights')
    self._request = {k: v for k, v in config_dict(config)['eval'].items() if k not in unrelated}
    self._request |= build.sampler_request(config) | build.dtype_request(config)
    self._bounds = []
    metrics = build.names(wanted.metrics)
    if 'bpd' in metrics:
      step = build.bpd_step(config)
      self._bounds = [Bound(config, split, step) for split in build.names(wanted.bpd_splits)]
    self._scorer = Scorer(config) if set(metrics) - {'bpd'} else None
    self._sampler = None
    if self._scorer:
      self._sampler = Sampler(config, wanted.num_samples)

  def measure(self, folder, path, step, ema_params, *, checkpoint_sha256=None):
    """Measures parameters and writes the report.

    Args:
      folder: pathlib.Path for it.
      path: WORKDIR.
      step: training step of the parameters.
      ema_params: replicated parameters.
      checkpoint_sha256: of the checkpoint's manifest; None if they are not from a checkpoint.

    Returns:
      the figures, a list of dicts; without metrics of images on all processes but the first.
    """
    config = self.config
    folder.mkdir(parents=True, exist_ok=True)
    ema_sha256 = fingerprint(ema_params)
    about = {
      'step': step,
      'parameters': f'moving average of decay {config.optim.ema_decay}',
      'checkpoint_sha256': checkpoint_sha256,
      'parameters_sha256': ema_sha256,
    }
    notes = []
    trained_on = config.data.split
    if trained_on == 'all' or 'test' in trained_on:
      notes.append(f'The test images were trained on: data.split is {trained_on}.')
    figures = [bound.measure(folder, ema_params, ema_sha256) for bound in self._bounds]
    if self._scorer:
      scored, more_notes = self._score(path, step, folder, ema_params, ema_sha256)
      figures += scored
      notes += more_notes
      about |= self._scorer.about()
    if parallel.is_primary():
      title = f'Evaluation of step {step}'
      write_report(folder, _report(config, title, about, figures, notes))
      note_best(path, step, figures, self._request)
    return figures

  def _score(self, path, step, folder, ema_params, ema_sha256):
    config = self.config
    count = config.eval.num_samples
    drawn = write_samples(
      self._sampler, ema_params, path, step, count, rounding=config.eval.rounding, tell=True
    )
    facts = {
      'sampler': build.sampler_words(config),
      'sample_seed': config.sample.seed,
      'rounding': config.eval.rounding,
      'sampling_secs': shards.seconds(drawn),
    }
    images = ArrayImages(npz.open_npz(drawn / 'samples.npz')['samples'])
    request = {
      'parameters_sha256': ema_sha256,
      'rounding': config.eval.rounding,
      **self._sampler.request,
    }
    return self._scorer.score(folder, images, count, request=request, facts=facts)


def note_best(path, step, figures, request):
  """Keeps the checkpoint of the best step so far: by the Frechet distance, otherwise by bits/dim.

  Only evaluations of one request compare: best.json has the best step of each, by the request's
  key. A value that is not finite is never the best.

  Args:
    path: WORKDIR.
    step: that was measured.
    figures: of the report.
    request: dict of JSON values on how it was measured.

  Raises:
    ValueError: best.json is damaged, or cannot be written.
  """
  candidates = [f for metric in ('bpd', 'fid') for f in figures if f['metric'] == metric]
  if not candidates or not math.isfinite(candidates[-1]['value']):
    return
  name, value = candidates[-1]['name'], candidates[-1]['value']
  new = {'step': step, 'figure': name, 'value': value, 'request': request}

  def key(best):
    return shards.request_key({name: best[name] for name in ('figure', 'request')})

  file = path / 'eval' / 'best.json'
  with held(file.with_name('.best.lock'), waiting_for=f'another evaluation that writes {file}'):
    records = read_json(file) if file.exists() else {}
    if 'request' in records:  # a single one, of an earlier version of this program
      records = {key(records): records}
    best = records.get(key(new))
    if best and best['step'] != step and best['value'] <= value:
      return
    records[key(new)] = new
    write_text(file, json.dumps(records, indent=2) + '\n')
    keep_steps(path / 'checkpoints', 'best', sorted({best['step'] for best in records.values()}))
  print(f'best so far: step {step}, {name} {value:.4f}', flush=True)
