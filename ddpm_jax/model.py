"""A trained model to hold: ddpm_jax.load makes it of a workdir, or of another program's model."""

import contextlib
import dataclasses
import numbers
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import devices, numerics, processes
from ddpm_jax.codec import Codec, parse_goal, read_file
from ddpm_jax.config import build, checks, classes, codecs, fitted, origins
from ddpm_jax.config.fields import check_fields, check_value
from ddpm_jax.config.files import load_config
from ddpm_jax.diffusion import Denoiser, timestep_subsequence
from ddpm_jax.diffusion.forward import scale_levels
from ddpm_jax.errors import UserError, check_system
from ddpm_jax.evaluation import stepwise
from ddpm_jax.evaluation.editing import Known, known_pixels, scaled
from ddpm_jax.evaluation.figures.interpolation import interpolate_batch, make_interpolate_fn
from ddpm_jax.evaluation.samples import Drawer, save_chain
from ddpm_jax.evaluation.weights import Weights
from ddpm_jax.nn.own import OwnNetwork
from ddpm_jax.sampling import (
  SAMPLERS,
  LinearOperator,
  average_pooling,
  channel_mean,
  ddim_encode,
)
from ddpm_jax.sampling.solvers import FEW_STEPS
from ddpm_jax.storage.files import default_cache_dir
from ddpm_jax.storage.logs import Progress
from ddpm_jax.storage.shards import Pauses

if TYPE_CHECKING:
  import PIL.Image

Rows = dict[str, np.ndarray]
Labels = int | str | Sequence[int | str] | np.ndarray | None


@numerics.pinned()
def load(
  workdir: str | os.PathLike[str],
  *,
  step: int | None = None,
  ema: bool = True,
  config: str | ConfigDict | None = None,
  network: Callable[[Any, jax.Array, jax.Array], jax.Array] | None = None,
  params: Any = None,
) -> 'Model':
  """Loads a trained model.

  Args:
    workdir: folder of a run, or WORKDIR@STEP; a model of the package, such as 'digits'; a pipeline
      of diffusers, a folder or a name on the hub; a checkpoint of the original program or of
      pytorch_diffusion, which need a config.
    step: of a workdir's checkpoints; None for the newest.
    ema: the moving average of the weights, or the weights themselves.
    config: name or path of a config, or a ConfigDict; None for that of the model.
    network: one's own, that the run was trained with; its parameters have the shapes of `params`.
    params: a tree of arrays or ShapeDtypeStructs.

  Raises:
    UserError: nothing is there, a step that is not there, or another model than the config's.
  """
  check_system(sys.platform)
  if not isinstance(workdir, str | os.PathLike):
    raise UserError(f'workdir is {workdir!r}; it must be the path of a run, or the name of a model')
  given = os.fspath(workdir)
  if config is None:
    config = origins.config_of(given)
  elif isinstance(config, str):
    config = load_config(config)
  check_fields(config)
  config = origins.with_data(config, given)
  if not jax.config.jax_compilation_cache_dir:
    devices.use_compilation_cache(config.compilation_cache, default_cache_dir)
  own = None
  if network is not None:
    if params is None:
      raise UserError('network is given without params: give a tree of the shapes that it takes')
    own = OwnNetwork(network, config.model.num_classes)
    build.check_network(config, own, params)
  weights = origins.read_weights(given, config, step=step, ema=ema, params_like=params)
  names = origins.class_names(given)
  return Model(config, weights, name=given, network=own, class_names=names)


class Model:
  """A trained model.

  Everything is computed on all devices of this process. The first call of a kind compiles it.
  Where an argument is None, the model's config says it. An interrupted call (Ctrl-C) raises
  KeyboardInterrupt, and the same call goes on from there; `drawn` has what is there meanwhile.

  Attributes:
    config: ConfigDict; a change of it changes nothing here.
    step: training step of the weights.
    params: the parameters.
    schedule: NoiseSchedule.
    encoding: how the data's values become x_0.
    class_names: of the labels 0, 1, ...; None for a model without labels.
    drawn: uint8 samples that the last call had drawn when it was interrupted; None if it was not.
  """

  def __init__(
    self,
    config: ConfigDict,
    weights: Weights,
    *,
    name: str,
    network: OwnNetwork | None = None,
    class_names: Sequence[str] | None = None,
  ):
    """Holds parameters that are on all devices; `load` is how to make one."""
    self.config = config.copy_and_resolve_references()
    self.step, self.params = weights.step, weights.params
    self.schedule = build.schedule(config)
    self.encoding = build.encoding(config)
    self.class_names: tuple[str, ...] | None = None
    if build.num_classes(config) is not None:
      self.class_names = tuple(build.class_names(config, class_names))
    self.drawn: np.ndarray | None = None
    self._config = config.copy_and_resolve_references().lock()
    self._name, self._network, self._weights = name, network, weights
    self._compiled: dict[Any, Any] = {}  # by what they depend on
    # An interrupted call, its batches, and how far the one in hand was.
    self._left: tuple[Any, list[Rows], Any] = None, [], None

  def __repr__(self) -> str:
    """Name, step, parameters and shape."""
    count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
    shape = ' x '.join(map(str, self.shape))
    return f'Model({self._name}, step {self.step}, {count:,} parameters, {shape})'

  @property
  def shape(self) -> tuple[int, ...]:
    """Of one example, (H, W, C)."""
    return build.image_shape(self._config)

  def sample(
    self,
    num: int,
    *,
    seed: int = 0,
    labels: Labels = None,
    sampler: str | None = None,
    num_steps: int | None = None,
    guidance: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
    guide: str | None = None,
    batch_size: int | None = None,
    progress: bool = False,
  ) -> np.ndarray:
    """Draws samples, those of --mode=sample. Sample i depends on (seed, i) alone.

    Args:
      num: samples.
      seed: of them.
      labels: the class of all samples, by number or name, 'none' for no label, or [num] of them,
        one for each; or a text as config.sample.labels has it, such as 'each' or 'cat,dog', which
        the samples take in turn. None for each in turn.
      sampler: one of sampling.SAMPLERS.
      num_steps: steps of it; for another sampler than the config's, None is its usual number.
      guidance: scale; 1 is none.
      guidance_interval: noise levels (low, high] that are guided; None for all.
      guide: a model to be guided away from, WORKDIR or WORKDIR@STEP; None for this one without
        labels.
      batch_size: samples that go through together, over all devices.
      progress: whether to print how far it is.

    Returns:
      uint8 [num, H, W, C].

    Raises:
      UserError: a number or name that cannot be used.
    """
    choices = {
      'sampler': sampler,
      'num_steps': num_steps,
      'batch_size': batch_size,
      'guidance': guidance,
      'guidance_interval': guidance_interval,
      'guide': guide,
    }
    config, drawer = self._drawer(num, seed, labels, **choices)

    def compute(ids, pauses):
      return {'samples': self.encoding.decode(drawer.draw(self.params, ids, pauses))}

    what = 'samples' if progress else None
    given = None if drawer.pattern is None else drawer.pattern.tobytes()
    asked = 'sample', num, config.sample.to_json(), given
    return self._rows(asked, num, compute, drawer.sizes, what)['samples']

  def chain(
    self,
    num: int,
    *,
    seed: int = 0,
    labels: Labels = None,
    sampler: str | None = None,
    num_steps: int | None = None,
    guidance: float | None = None,
  ) -> Iterator[tuple[float, np.ndarray]]:
    """Watches a chain: yields (t, the x_0 predicted at t) from noise on, and at last (-1, x_0).

    Args:
      num: samples, which go through together. The last of what is yielded is sample(num, ...), up
        to the rounding of another batch.
      seed, labels, sampler, num_steps, guidance: as sample.

    Yields:
      (t, uint8 [num, H, W, C]); t is an int, or a float of real times.
    """
    choices = {'sampler': sampler, 'num_steps': num_steps, 'guidance': guidance}
    _, drawer = self._drawer(num, seed, labels, batch_size=num, **choices)
    ids = np.minimum(np.arange(drawer.sizes.host), num - 1)
    for t, x_0 in drawer.predictions(self.params, ids):
      yield t, self.encoding.decode(x_0[:num])

  def animate(
    self,
    file: str | os.PathLike[str],
    num: int = 16,
    *,
    seed: int = 0,
    labels: Labels = None,
    sampler: str | None = None,
    num_steps: int | None = None,
    guidance: float | None = None,
  ) -> pathlib.Path:
    """Writes a chain's predictions of x_0 as an animated GIF, a grid a frame; Args as chain."""
    path = pathlib.Path(file)
    if not path.parent.is_dir():  # before the chain is computed
      raise UserError(f'{path}: there is no folder {path.parent}')
    choices = {'sampler': sampler, 'num_steps': num_steps, 'guidance': guidance}
    _, drawer = self._drawer(num, seed, labels, batch_size=num, **choices)
    return save_chain(path, drawer, self.params, num)

  def picture(self, examples: np.ndarray, *, columns: int | None = None) -> 'PIL.Image.Image':
    """Examples, as the data are stored, in a grid as samples are shown: a PIL image."""
    from PIL import Image

    grid = build.display(self._config).grid(self._stored(examples), columns=columns)
    return Image.fromarray(grid)

  def bits_per_dim(
    self,
    examples: np.ndarray,
    *,
    labels: Labels = None,
    seed: int = 0,
    num_terms: int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
  ) -> Rows:
    """The variational bound of examples, as --mode=eval has it.

    Args:
      examples: uint8 [N, H, W, C].
      labels: the class of all examples, by number or name, or [N] of them, one for each: the bound
        given the label. None for the bound without.
      seed: of the noise; row i depends on (seed, i) and the example alone.
      num_terms: K of the T terms, an unbiased estimate; None for all of them.
      batch_size: examples that go through together, over all devices.
      progress: whether to print how far it is.

    Returns:
      dict of float64 arrays, in bits/dim: total_bpd [N], prior_bpd [N], vb [N, T] or [N, K], the
      term at each t; and mse [N, T] or [N, K], of the predicted x_0, on [-1, 1]. Of an estimate
      also t, int [N, K].

    Raises:
      UserError: examples of another kind, or more terms than there are.
    """
    total = self._config.diffusion.num_timesteps
    if num_terms is not None and not 1 <= num_terms <= total:
      raise UserError(f'num_terms is {num_terms}; it must lie in [1, {total}]')

    def make():
      return build.bpd_fns(self._config, num_terms, self._network)

    choices = {'seed': seed, 'batch_size': batch_size, 'progress': progress}
    return self._likelihoods(examples, labels, ('bpd', num_terms), make, **choices)

  def flow_bits_per_dim(
    self,
    examples: np.ndarray,
    *,
    labels: Labels = None,
    seed: int = 0,
    num_steps: int | None = None,
    num_probes: int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
  ) -> Rows:
    """The likelihood of the probability flow (Song et al. 2021), as eval.metrics=flow has it.

    Args:
      examples, labels, batch_size, progress: as bits_per_dim.
      seed: of the dequantisation and of the probes.
      num_steps: of Heun's method, at most T - 1; None for config.eval.flow_steps.
      num_probes: random signs for the divergence; 0 for the exact one, a product with the Jacobian
        for each element of an example; None for config.eval.flow_probes.

    Returns:
      dict of total_bpd float64 [N], in bits/dim of levels, or of the density of values of any
      kind; and traces float64 [N, num_probes], whose spread says how far one probe is off: a
      difference of 1 in a trace is one of 1 / (d ln 2) bits/dim, of d elements.

    Raises:
      UserError: examples of another kind, or steps that cannot be.
    """
    config = self._config
    most = config.diffusion.num_timesteps - 1
    steps = build.num_flow_steps(config) if num_steps is None else num_steps
    if not 1 <= steps <= most:
      raise UserError(f'num_steps is {steps}; it must lie in [1, {most}]')
    probes = config.eval.flow_probes if num_probes is None else num_probes
    if probes < 0:
      raise UserError(f'num_probes is {probes}; it must be at least 0')

    def make():
      return build.flow_fns(config, steps, probes, self._network)

    choices = {'seed': seed, 'batch_size': batch_size, 'progress': progress}
    rows = self._likelihoods(examples, labels, ('flow', steps, probes), make, **choices)
    return {name: rows[name] for name in ('total_bpd', 'traces')}

  def _likelihoods(self, examples, labels, what, make, *, seed, batch_size, progress) -> Rows:
    """Rows of a Stepwise, make(), which is named by what it depends on."""
    examples = self._check(examples)
    bound = self._keep(what, make)
    key = devices.replicate(build.key(seed, 'bpd'))
    sizes = devices.fitting_batch_sizes(
      _positive('batch_size', batch_size or self._config.eval.batch_size), len(examples)
    )
    given = None if labels is None else self._labels(labels, len(examples))

    def compute(ids, pauses):
      batch = {'images': examples[ids], 'ids': ids.astype(np.int32)}
      if given is not None:
        batch['labels'] = given[ids]
      return stepwise.run(bound, self.params, batch, key, pauses=pauses)

    of_labels = None if given is None else given.tobytes()
    asked = *what, seed, sizes, examples.tobytes(), of_labels
    rows = self._rows(asked, len(examples), compute, sizes, 'bits/dim' if progress else None)
    return {name: x if x.dtype.kind == 'i' else np.float64(x) for name, x in rows.items()}

  def denoiser(self, labels: Labels = None, *, clip: str = 'none') -> Denoiser:
    """(x_t, t) -> Prediction, for the samplers and functions of ddpm_jax.sampling.

    Args:
      labels: the class of all examples, by number or name, or [B] of them, one for each. None for
        no label.
      clip: one of sampling.CLIPS, of the predicted x_0.
    """
    denoiser_of = build.denoiser_of(self._config, clip, self._network)
    if labels is None:
      return denoiser_of(self.params)
    count = np.size(labels)
    given = self._labels(labels, count)

    def denoiser(x_t, t):
      of_rows = np.broadcast_to(given, x_t.shape[:1]) if count == 1 else given
      return denoiser_of(self.params, jnp.asarray(of_rows))(x_t, t)

    return denoiser

  def invert(self, examples: np.ndarray, *, num_steps: int = FEW_STEPS) -> np.ndarray:
    """DDIM's inversion (Song et al. 2021): the x_T that `decode` makes the examples of.

    Args:
      examples: uint8 [N, H, W, C].
      num_steps: of the T; more of them lose less.

    Returns:
      x_T float32 [N, H, W, C].
    """
    timesteps = self._timesteps(num_steps)

    def invert(params, images):
      denoiser = build.denoiser_of(self._config, 'none', self._network)(params)
      return ddim_encode(
        self.schedule, denoiser, scale_levels(images, self.encoding.levels), timesteps
      )

    return self._map(('invert', num_steps), invert, self._check(examples))

  def decode(self, x_T: np.ndarray, *, num_steps: int = FEW_STEPS) -> np.ndarray:
    """The examples of x_T float [N, H, W, C] by deterministic DDIM, unclipped: uint8."""
    x_T = np.asarray(x_T, np.float32)
    if x_T.shape[1:] != self.shape:
      raise UserError(f'x_T is {list(x_T.shape)}; this model has {["N", *self.shape]}')
    timesteps = self._timesteps(num_steps)

    def decode(params, x):
      denoiser = build.denoiser_of(self._config, 'none', self._network)(params)
      return SAMPLERS['ddim'](self.schedule, denoiser, x, None, timesteps)

    return self.encoding.decode(self._map(('decode', num_steps), decode, x_T))

  def interpolate(
    self,
    examples: np.ndarray,
    others: np.ndarray,
    *,
    num: int = 9,
    num_steps: int | None = None,
    seed: int = 0,
  ) -> np.ndarray:
    """Interpolates between pairs of examples in the latent space (Sec. 4.4, Ho et al. 2020).

    Both are noised with the same noise, mixed, and decoded by ancestral sampling.

    Args:
      examples: uint8 [N, H, W, C].
      others: uint8 [N, H, W, C].
      num: mixtures of a pair: from its first example's reconstruction to its second's.
      num_steps: how deep they are noised, in [0, T]: deeper is more varied. None for T / 2.
      seed: of the noise.

    Returns:
      uint8 [N, num, H, W, C].
    """
    examples, others = self._check(examples), self._check(others)
    if examples.shape != others.shape:
      raise UserError(
        f'examples is {list(examples.shape)} and others {list(others.shape)}: they are pairs, so '
        'they must be as many'
      )
    total = self._config.diffusion.num_timesteps
    num_steps = total // 2 if num_steps is None else num_steps
    if not 0 <= num_steps <= total:
      raise UserError(f'num_steps is {num_steps}; it must lie in [0, {total}]')
    weights = np.linspace(0, 1, _positive('num', num), dtype=np.float32)
    variance = build.parameterization(self._config.diffusion).fixed_variance
    denoiser_of = build.denoiser_of(self._config, network=self._network)
    interpolate = self._keep(
      'interpolate',
      lambda: stepwise.compiled(
        make_interpolate_fn(
          denoiser_of, self.schedule, variance=variance, levels=self.encoding.levels
        )
      ),
    )
    shape = len(examples), num
    sizes = devices.fitting_batch_sizes(self._config.sample.batch_size, len(examples) * num)
    key = devices.replicate(build.key(seed, 'interpolate'))

    def compute(ids, pauses):
      pair, weight = np.unravel_index(ids, shape)
      batch = {
        'images': examples[pair],
        'other_images': others[pair],
        'weights': weights[weight],
        'ids': pair.astype(np.int32),
      }
      x_0 = interpolate_batch(interpolate, self.params, batch, key, num_steps, pauses)
      return {'samples': self.encoding.decode(x_0)}

    asked = 'interpolate', seed, num, num_steps, examples.tobytes(), others.tobytes()
    rows = self._rows(asked, len(examples) * num, compute, sizes, None)
    return rows['samples'].reshape(*shape, *self.shape)

  @numerics.pinned()
  def compress(
    self,
    examples: np.ndarray,
    *,
    target: str = 'lossless',
    seed: int = 0,
    search: str = 'fast',
    search_bits: int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
  ) -> list[bytes]:
    """Compresses examples (Sec. 4.3, Ho et al. 2020), each to a file that docs/codec.md describes.

    The beginning of a file decodes to a less exact example. The first call of a model without a
    table fits one on training data, and keeps it in the workdir, or in the user's cache.

    Args:
      examples: [N, ..., C] as the data are stored; uint8 [N, H, W, C] of pictures.
      target: 'lossless'; 'bytes:N', files of up to N bytes; or 'rmse:R', of a root mean squared
        error of the prediction up to R, in the unit of the levels. Where that cannot be reached,
        the nearest is.
      seed: of the codebooks.
      search: 'fast' or 'exact', whose decoded states have the law of the chain's, exactly, for more
        bits and time.
      search_bits: as config.compress.search_bits.
      batch_size: examples that go through together.
      progress: whether to print how far it is.

    Returns:
      the files.

    Raises:
      UserError: examples of another kind, another target, or a model that has no codec.
    """
    examples, goal = self._check(examples), parse_goal(target)
    config = self._config.copy_and_resolve_references()
    _set(config, 'compress', search=search, search_bits=search_bits, seed=seed)
    checks.check_compress(config)
    if batch_size is not None:
      config.sample.batch_size = _positive('batch_size', batch_size)
    codec = self._codec(progress)
    files = codecs.encode(config, codec, examples, goal, progress=progress)
    return [file.to_bytes() for file in files]

  @numerics.pinned()
  def decompress(
    self,
    files: Sequence[bytes],
    *,
    realism: float = 0.0,
    completion: str = 'flow',
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
  ) -> np.ndarray:
    """Decodes what `compress` wrote, each file as far as it is there; warns of damaged ones.

    Args:
      files: of this model, whole or cut.
      realism: of what is not exact, in [0, 1]: 0 is the prediction, of the least squared error; 1 a
        completion, which looks like the data; a number between mixes them.
      completion: 'flow', along the probability flow; or 'ancestral', with noise.
      seed: of the completion's noise.
      batch_size: files that go through together.
      progress: whether to print how far it is.

    Returns:
      [N, ..., C] as the data are stored.

    Raises:
      UserError: no files, or one of another model or kind.
    """
    if isinstance(files, (bytes, bytearray, str)) or not all(isinstance(x, bytes) for x in files):
      raise UserError('files are no list of bytes: give what compress returned, as in [file]')
    if not len(files):
      raise UserError('files are none: give one at least')
    if not isinstance(realism, numbers.Real):
      raise UserError(f'realism is {realism!r}; it must be a number in [0, 1]')
    config = self._config.copy_and_resolve_references()
    _set(config, 'decompress', realism=float(realism), completion=completion, seed=seed)
    checks.check_decompress(config)
    read = [read_file(data, f'file {i}') for i, data in enumerate(files)]
    if batch_size is not None:
      config.sample.batch_size = _positive('batch_size', batch_size)
    found, notes = codecs.decode(config, self._codec(progress), read, progress=progress)
    for note in notes:
      warnings.warn(note, stacklevel=3)
    return found

  def _codec(self, progress) -> Codec:
    folder = codecs.table_folder(self._name, self._weights.sha256)
    say = processes.say if progress else lambda line: None

    def make():
      return codecs.make_codec(self._config, self._weights, folder, network=self._network, say=say)

    return self._keep('codec', make)

  def inpaint(
    self,
    examples: np.ndarray,
    masks: np.ndarray,
    *,
    method: str | None = None,
    jump_length: int | None = None,
    resamplings: int | None = None,
    **choices: Any,
  ) -> np.ndarray:
    """Finds the unknown pixels of examples; the known ones stay, byte for byte.

    Args:
      examples: uint8 [N, H, W, C].
      masks: [N, H, W], or [H, W] for all; True where a pixel is known.
      method: one of ddnm, pigdm, repaint; docs/editing.md says when to take which. The sampler of
        repaint is ancestral, with 250 steps where no number is given.
      jump_length, resamplings: of repaint.
      **choices: as edit.

    Returns:
      uint8 [N, num, H, W, C].
    """
    known = known_pixels(self._check(examples), masks)
    fields = {'method': method, 'jump_length': jump_length, 'resamplings': resamplings}
    return self._edit('inpaint', known, fields, **choices)

  def superresolve(
    self, examples: np.ndarray, *, method: str | None = None, **choices: Any
  ) -> np.ndarray:
    """Finds the pictures that small examples are the block means of.

    Args:
      examples: uint8 [N, H / s, W / s, C], s a whole number such as 2 or 4.
      method: ddnm or pigdm.
      **choices: as edit.

    Returns:
      uint8 [N, num, H, W, C].
    """
    array = np.asarray(examples)
    scale = self.shape[0] // array.shape[1] if array.ndim == 4 and array.shape[1] else 0
    if scale < 2 or tuple(side * scale for side in array.shape[1:3]) != self.shape[:2]:
      raise UserError(
        f'examples are {list(array.shape)}; of a model of {list(self.shape)}, small ones have '
        'sides that are a half, a third, ... of its own'
      )
    operator = self._keep(('average_pooling', scale), lambda: average_pooling(scale, self.shape))
    return self.edit(array, operator, method=method, **choices)

  def colourise(
    self, examples: np.ndarray, *, method: str | None = None, **choices: Any
  ) -> np.ndarray:
    """Finds the colours of grey examples, the means of the channels: uint8 [N, H, W, 1].

    Args:
      examples: uint8 [N, H, W, 1].
      method: ddnm or pigdm.
      **choices: as edit.

    Returns:
      uint8 [N, num, H, W, C].
    """
    operator = self._keep('channel_mean', lambda: channel_mean(self.shape[-1]))
    return self.edit(examples, operator, method=method, **choices)

  def edit(
    self,
    measurements: np.ndarray,
    operator: LinearOperator,
    *,
    method: str | None = None,
    **choices: Any,
  ) -> np.ndarray:
    """Finds the pictures that a linear operator made measurements of.

    Args:
      measurements: [N, ...], as the operator returns them for examples on [-1, 1]: float, or uint8
        for values of [-1, 1].
      operator: of ddpm_jax.sampling: average_pooling, channel_mean, blur, or linear_operator of any
        linear function. Given again, the same object compiles nothing anew.
      method: ddnm or pigdm.
      **choices: num=1, samples of each; seed=0; labels, the class of all samples or [N], one for
        each picture, or a text as of sample, whose labels the samples of a picture have in turn;
        sampler, num_steps, guidance, guidance_interval, guide, batch_size and progress as sample.

    Returns:
      uint8 [N, num, H, W, C].

    Raises:
      UserError: measurements of another shape than the operator's.
    """
    array = np.asarray(measurements)
    like = jax.ShapeDtypeStruct((1, *self.shape), np.float32)
    expected = jax.eval_shape(operator.apply, like).shape[1:]
    if not len(array) or array.shape[1:] != expected or array.dtype.kind not in 'uf':
      raise UserError(
        f'what is measured is {array.dtype}{list(array.shape)}; of this operator it must be uint8 '
        f'or float {["N", *expected]}'
      )
    known = Known(scaled(array), operator=operator)
    return self._edit('deblur', known, {'method': method}, **choices)

  def sdedit(self, examples: np.ndarray, *, depth: float = 0.5, **choices: Any) -> np.ndarray:
    """Makes other pictures like examples (SDEdit, Meng et al. 2022): noised, and drawn from there.

    Args:
      examples: uint8 [N, H, W, C].
      depth: in (0, 1], the share of the noise steps that is gone through again: deeper is freer.
      **choices: as edit.

    Returns:
      uint8 [N, num, H, W, C].
    """
    known = Known(scaled(self._check(examples)))
    return self._edit('sdedit', known, {'depth': float(depth)}, **choices)

  def _edit(
    self,
    what,
    known,
    fields,
    *,
    num=1,
    seed=0,
    labels=None,
    sampler=None,
    progress=False,
    **choices,
  ):
    """uint8 [N, num, H, W, C]; fields are those of config.edit that are given."""
    if not self.encoding.is_of_pictures:
      raise UserError(
        f'edits take values of 256 levels in uint8, and this model has {self.encoding.dtype}, '
        f'levels {self._config.data.levels}'
      )
    if fields.get('method') == 'repaint':
      sampler = sampler or 'ancestral'
    config = self._sampling(sampler=sampler, **choices)
    given = {name: value for name, value in fields.items() if value is not None}
    _set(config, 'edit', what=what, seed=seed, num=_positive('num', num), **given)
    checks.check_edit(config)
    config = build.edit_config(config)
    count, of_pictures = len(known.values), None
    self._check_has_labels(labels)
    config.sample.labels = labels if isinstance(labels, str) else None
    if labels is not None and not isinstance(labels, str):
      of_pictures = self._labels(labels, count)
    sample = {**config.sample.to_dict(), 'seed': None, 'num_samples': None, 'labels': None}
    edit = {**config.edit.to_dict(), 'seed': None, 'num': None}

    def compile_work():
      guide = build.guide(config)
      return guide, build.edit_work(config, known.operator, self._network, guide)

    guide, work = self._keep(('edit', str(sample), str(edit), known.operator), compile_work)
    given = {'guide': guide, 'names': self.class_names, 'labels': of_pictures}
    editor = build.editor(config, known, num, work, **given)
    of_labels = None if editor.labels is None else editor.labels.tobytes()
    asked = 'edit', str(edit), str(sample), known.operator, seed, num, known.sha256(), of_labels
    rows = self._rows(
      asked,
      num * count,
      lambda ids, pauses: editor.draw(self.params, ids, pauses),
      editor.sizes,
      'pictures' if progress else None,
    )
    return rows['samples'].reshape(num, count, *self.shape).swapaxes(0, 1)

  def _sampling(
    self,
    *,
    sampler=None,
    num_steps=None,
    guidance=None,
    guidance_interval=None,
    guide=None,
    batch_size=None,
  ) -> ConfigDict:
    """The config of a call, with what it chooses of config.sample."""
    config = self._config.copy_and_resolve_references()
    if sampler is not None and sampler != config.sample.sampler:
      theirs = ('num_steps', 'eta', 'spacing', 'timesteps', 'variance')
      _set(config, 'sample', sampler=sampler, stops_early=False, **dict.fromkeys(theirs))
    if num_steps is not None:
      config.sample.timesteps = None
    choices = {
      'num_steps': num_steps,
      'guidance': float(guidance) if isinstance(guidance, numbers.Real) else guidance,
      'guidance_interval': None
      if guidance_interval is None
      else tuple(map(float, guidance_interval)),
      'guide': guide,
      'batch_size': None if batch_size is None else _positive('batch_size', batch_size),
    }
    _set(config, 'sample', **{field: x for field, x in choices.items() if x is not None})
    return config

  def _drawer(self, num, seed, labels, **choices) -> tuple[ConfigDict, Drawer]:
    """The config of a call, and the compiled sampler for it; choices as _sampling."""
    _positive('num', num)
    config = self._sampling(**choices)
    _set(config, 'sample', seed=seed)
    pattern = self._pattern(labels, num, config)
    config.sample.labels = None
    checks.check_sample(config)
    config, estimates = fitted.fit(config, self._weights, self._name, network=self._network)
    size = devices.fitting_batch_sizes(config.sample.batch_size, num).global_
    of_program = {**config.sample.to_dict(), 'batch_size': size, 'seed': None, 'num_samples': None}
    drawer = self._keep(
      ('sample', str(of_program)),
      lambda: build.drawer(config, num, self._network, self.class_names, estimates),
    )
    key = devices.replicate(build.key(seed, 'sample'))
    return config, dataclasses.replace(drawer, key=key, pattern=pattern)

  def _pattern(self, labels, num, config):
    """int32 [n], the classes that samples have in turn; None of a model without labels."""
    if labels is None:
      labels = config.sample.labels
    if self.class_names is None:
      self._check_has_labels(labels)
      return None
    if labels is None or isinstance(labels, str):
      config.sample.labels = labels
      return classes.expanded(build.sample_labels(config, self.class_names)[0])
    return self._labels(labels, num)

  def _check_has_labels(self, labels):
    if labels is not None and self.class_names is None:
      raise UserError('labels are given, but this model was trained without any: leave them out')

  def _labels(self, labels, count):
    """int32 [count], classes by number or name, one for all or one for each.

    Raises:
      UserError: a model without labels, another number of them, or a class that is not there.
    """
    self._check_has_labels(labels)
    given = np.asarray(labels).reshape(-1).tolist() if np.ndim(labels) else [labels] * count
    if len(given) != count:
      raise UserError(f'there are {len(given)} labels; there must be {count}, or one for all')
    known = {x: classes.class_of(x, len(self.class_names), self.class_names) for x in set(given)}
    if len(self.class_names) in known.values():
      build.check_unconditional(self._config)
    return np.array([known[x] for x in given], np.int32)

  def _timesteps(self, num_steps):
    return timestep_subsequence(self.schedule, num_steps, build.spacing(self._config, 'ddim'))

  def _keep(self, what, make):
    """make(), once."""
    if what not in self._compiled:
      self._compiled[what] = make()
    return self._compiled[what]

  def _check(self, examples):
    """The examples as an array, encoded.

    Raises:
      UserError: not such as the model was trained on.
    """
    return self.encoding.encode(self._stored(examples))

  def _stored(self, examples):
    """As _check, and as they are stored."""
    array, encoding = np.asarray(examples), self.encoding
    if not array.size:
      raise UserError('examples are none: give one image at least')
    kinds = 'uif' if encoding.levels is None else 'ui'
    fits = array.dtype == np.uint8 if encoding.is_of_pictures else array.dtype.kind in kinds
    if not fits or array.shape[1:] != self.shape:
      shape = ', '.join(map(str, ('N', *self.shape)))
      levels = 'any values'
      if encoding.levels is not None:
        levels = f'levels {encoding.lowest} to {encoding.lowest + encoding.levels - 1}'
      raise UserError(
        f'examples are {array.dtype}{list(array.shape)}; this model takes {encoding.dtype} '
        f'[{shape}], of {levels}'
      )
    return array

  def _map(self, what, function, array):
    """function(params, rows) for all rows of an array."""
    sizes = devices.fitting_batch_sizes(self._config.sample.batch_size, len(array))
    step = self._keep(what, lambda: devices.compile_batch_fn(function, in_axes=(None, 0)))

    def compute(ids, _):
      rows = step(self.params, devices.split_over_devices(array[ids]))
      return {'rows': devices.gather_from_devices(rows)}

    return self._rows((what, array.tobytes()), len(array), compute, sizes, None)['rows']

  def _rows(self, asked, num_rows, compute, sizes, what):
    """Computes rows batch by batch; an interrupted call of the same is gone on with."""
    batches, kept = self._left[1:] if self._left[0] == asked else ([], None)
    self._left, self.drawn = (None, [], None), None
    done = len(batches) * sizes.host
    pauses = _Batch(0, None, kept)
    with contextlib.ExitStack() as stack:
      progress = None
      if what is not None:
        progress = stack.enter_context(
          contextlib.closing(Progress(what, num_rows, done=min(done, num_rows)))
        )
      try:
        for first in range(done, num_rows, sizes.host):
          count = min(sizes.host, num_rows - first)
          pauses = _Batch(count, progress, pauses.state)
          ids = np.minimum(np.arange(first, first + sizes.host), num_rows - 1)
          batches.append(compute(ids, pauses))
          pauses.state = None
          if progress:
            progress.add(count)
      except BaseException:
        self._left = asked, batches, pauses.state
        if batches and 'samples' in batches[0]:
          self.drawn = np.concatenate([batch['samples'] for batch in batches])
        raise
    return {
      name: np.concatenate([batch[name] for batch in batches])[:num_rows] for name in batches[0]
    }


class _Batch(Pauses):
  """A batch of a call: shows how far it is, and has its newest state."""

  def __init__(self, count, progress, state):
    self._count, self._progress, self.state = count, progress, state

  def kept(self, _):
    return self.state

  def pause(self, step, num_steps, state):
    self.state = step, state()
    if self._progress:
      self._progress.reach(self._count * step / num_steps)


def _set(config, section, **choices):
  """Sets fields of a section; of a value of another type, a UserError names the field."""
  for field, value in choices.items():
    if isinstance(value, bool | int | float | str):
      check_value(f'{section}.{field}', value)
  config[section].update(choices)


def _positive(name, value):
  if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
    raise UserError(f'{name} is {value!r}; it must be an integer, at least 1')
  return int(value)
