"""Pictures that are completed or changed, as rows of a job and on disk.

WORKDIR/edits/step_XXXXXXXX/WHAT-METHOD-SAMPLER_KEY/
  edited.npz     samples uint8 [num * N, H, W, C]: sample k of picture p is row k N + p
  pictures/      each sample as a file, NAME-k.png
  sheet.png      a picture a row: before | what is known | its samples

Row i depends on the parameters, on its picture and on (edit.seed, i) alone.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import devices, processes
from ddpm_jax.diffusion import Denoiser, NoiseSchedule
from ddpm_jax.diffusion.forward import scale_levels
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import stepwise
from ddpm_jax.evaluation.grids import make_grid, save_png, to_uint8
from ddpm_jax.evaluation.stepwise import Stepwise
from ddpm_jax.evaluation.weights import Weights
from ddpm_jax.sampling import (
  Chain,
  LinearOperator,
  clipped,
  conditioned,
  fold_rows,
  make_noise_fn,
  masking,
  noised,
)
from ddpm_jax.storage import npz, shards
from ddpm_jax.storage.identity import Identity, sampler_name, step_folder
from ddpm_jax.storage.shards import Pauses

MAX_SHEET_PICTURES = 50
ROUNDING_STD = 2 / 255 / 12**0.5  # of uint8, on [-1, 1]
Rows = dict[str, np.ndarray]


def make_edit_fns(
  denoiser_of: Callable[..., Denoiser],
  schedule: NoiseSchedule,
  shape: tuple[int, ...],
  make_chain: Callable[..., Chain],
  *,
  method: str,
  clip: str,
  operator: LinearOperator | None = None,
  noise_std: float = 0.0,
) -> Stepwise:
  """The chains of an edit, an evaluation of the network a step.

  Args:
    denoiser_of: params -> Denoiser, not clipped; (params, labels) -> Denoiser where the batch has
      labels.
    schedule: NoiseSchedule.
    shape: of one example.
    make_chain: (schedule, denoiser, noise_fn) -> Chain; of repaint also with `known` and `mask`.
    method: 'sdedit', or one of sampling.editing.METHODS.
    clip: one of CLIPS.
    operator: of what is known, for ddnm and pigdm; None for masks.
    noise_std: of what is known.

  Returns:
    Stepwise, whose state is a ChainState. The batch has ids int [B] and known float32 [B, ...] and,
    without an operator, mask bool [B, ..., 1], True where a pixel is known; not for sdedit. It may
    have labels int [B].
  """
  nothing = {'known': None, 'mask': None} if method == 'repaint' else {}
  facts = make_chain(schedule, None, None, **nothing)

  def chain_of(denoiser, noise_fn, batch):
    if method == 'sdedit':
      return make_chain(schedule, clipped(denoiser, clip), noise_fn)
    if method == 'repaint':
      known = {'known': batch['known'], 'mask': batch['mask']}
      return make_chain(schedule, clipped(denoiser, clip), noise_fn, **known)
    measured = operator or masking(batch['mask'])
    choices = {'method': method, 'clip': clip, 'noise_std': noise_std}
    informed = conditioned(schedule, denoiser, measured, batch['known'], **choices)
    return make_chain(schedule, informed, noise_fn)

  def start(batch, key):
    noise_fn = make_noise_fn(fold_rows(key, batch['ids']), shape)
    x_T = noise_fn(schedule.num_timesteps)  # steps use t < T, so T is free for x_T
    if method == 'sdedit':
      x_T = noised(schedule, batch['known'], facts.timesteps[:1], x_T)
    return facts.start(x_T)

  def advance(params, state, batch, key, first, last):
    noise_fn = make_noise_fn(fold_rows(key, batch['ids']), shape)
    denoiser = denoiser_of(params, batch['labels']) if 'labels' in batch else denoiser_of(params)
    chain = chain_of(denoiser, noise_fn, batch)
    return jax.lax.fori_loop(first, last, chain.step, state)

  return Stepwise(facts.num_steps, start, advance)


@dataclasses.dataclass(frozen=True)
class Known:
  """What is known of N pictures.

  Attributes:
    values: float32 [N, ...] on [-1, 1]: what an operator makes of a picture; the pictures
      themselves for sdedit and with a mask.
    mask: bool [N, H, W, 1], True where a pixel is known; None where there is no mask.
    operator: of the values; None with a mask and for sdedit.
  """

  values: np.ndarray
  mask: np.ndarray | None = None
  operator: LinearOperator | None = None

  def rows(self, pictures: np.ndarray) -> Rows:
    """The batch of some pictures, but for the ids."""
    rows = {'known': self.values[pictures]}
    return rows if self.mask is None else rows | {'mask': self.mask[pictures]}

  def sha256(self) -> str:
    """Of all values (hex)."""
    digest = hashlib.sha256(str(self.values.shape).encode())
    for array in (self.values, self.mask):
      digest.update(b'' if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()

  def shown(self, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 [N, *shape], for people: unknown pixels grey, other measurements as A^+ y."""
    values = jnp.asarray(self.values)
    if self.mask is not None:
      return to_uint8(np.where(self.mask, self.values, 0))
    if self.operator is None or self.values.shape[1:] == shape:
      return to_uint8(self.values)
    return to_uint8(np.asarray(self.operator.pseudo_inverse(values)))


@dataclasses.dataclass(frozen=True)
class Editor:
  """A compiled edit of some pictures, for batches of one size.

  Attributes:
    work: as make_edit_fns returns it, compiled.
    key: replicated.
    sizes: of a batch.
    known: Known.
    identity: of the samples, but for the parameters.
    name: what is done and how, for the folder.
    words: the same for people.
    labels: int32 [num * N], of the rows; None for none.
    guide: parameters of another model, replicated, to be guided away from.
  """

  work: Stepwise
  key: jax.Array
  sizes: devices.BatchSizes
  known: Known
  identity: Identity
  name: str
  words: str
  labels: np.ndarray | None = None
  guide: Any = None

  def draw(self, params: Any, ids: np.ndarray, pauses: Pauses | None = None) -> Rows:
    """{'samples': uint8 [n, ...]} of rows; row k N + p is sample k of picture p.

    Known pixels are the picture's own.
    """
    rows = self.known.rows(ids % len(self.known.values))
    batch = rows | {'ids': ids.astype(np.int32)}
    if self.labels is not None:
      batch['labels'] = self.labels[ids]
    params = params if self.guide is None else (params, self.guide)
    samples = to_uint8(stepwise.run(self.work, params, batch, self.key, pauses=pauses).x)
    if self.known.mask is not None:
      samples = np.where(rows['mask'], to_uint8(rows['known']), samples)
    return {'samples': samples}


def write_edits(
  editor: Editor,
  weights: Weights,
  workdir: pathlib.Path,
  before: np.ndarray,
  names: Sequence[str],
  num: int,
) -> pathlib.Path:
  """Draws the samples that are missing; writes edited.npz, pictures/ and sheet.png.

  Args:
    editor: Editor.
    weights: Weights.
    workdir: WORKDIR.
    before: uint8 [N, H, W, C], the pictures as they were given, for the sheet.
    names: of the pictures, for their files.
    num: samples of each.

  Returns:
    the folder written to.
  """
  identity = weights.identify(editor.identity)
  folder = identity.folder(step_folder(workdir / 'edits', weights.step), editor.name)
  count = len(names)

  def finish(file):
    samples = npz.open_npz(file)['samples'][: count * num]
    samples = samples.reshape(num, count, *samples.shape[1:]).swapaxes(0, 1)
    (folder / 'pictures').mkdir(exist_ok=True)
    for name, of_picture in zip(names, samples, strict=True):
      for k, image in enumerate(of_picture):
        if not (path := folder / 'pictures' / f'{name}-{k}.png').exists():
          save_png(path, image)
    save_png(folder / 'sheet.png', make_sheet(editor.known, before, samples))

  shards.collect(
    folder,
    'edited',
    identity.facts(),
    count * num,
    lambda ids, pauses: editor.draw(weights.params, ids, pauses),
    sizes=editor.sizes,
    what='pictures',
    finish=finish,
  )
  processes.barrier('edits written')
  return folder


def make_sheet(known: Known, before: np.ndarray, samples: np.ndarray) -> np.ndarray:
  """uint8 [height, width, 3]: a row for each of the first pictures.

  Args:
    known: Known, of N pictures.
    before: uint8 [N, H, W, C].
    samples: uint8 [N, num, H, W, C].
  """
  columns = [before[:, None], known.shown(before.shape[1:])[:, None], samples]
  if known.mask is None and known.operator is None:  # nothing is hidden
    del columns[1]
  rows = np.concatenate(columns, axis=1)[:MAX_SHEET_PICTURES]
  return make_grid(rows.reshape(-1, *before.shape[1:]), columns=rows.shape[1])


def edit_identity(
  identity: Identity, known: Known, *, what: str, method: str | None, choices: Mapping[str, Any]
) -> Identity:
  """What decides edited pictures, but for the parameters; of samples' identity."""
  facts = {'what': what, 'method': method, **choices}
  return identity.but(data={'sha256': known.sha256()}, choices=facts)


def edit_name(what: str, method: str | None, identity: Identity) -> str:
  """Such as 'inpaint-ddnm-ancestral-1000'."""
  return '-'.join([what, *([method] if method else []), sampler_name(identity.sampler)])


def known_pixels(examples: np.ndarray, masks: np.ndarray) -> Known:
  """The known pixels of pictures.

  Args:
    examples: uint8 [N, H, W, C].
    masks: [N, H, W], or [H, W] for all; True, or not 0, where a pixel is known.

  Raises:
    UserError: masks of another size, of no pixels or of all.
  """
  masks, count = np.asarray(masks), len(examples)
  size = examples.shape[1:-1]
  if masks.shape == size:
    masks = np.broadcast_to(masks, (count, *size))
  if masks.shape != (count, *size):
    raise UserError(
      f'masks are {list(masks.shape)}; of these examples they must be {[count, *size]}, or '
      f'{list(size)} for all'
    )
  masks = masks != 0
  for which, are in (('nothing is', ~masks), ('all is', masks)):
    (rows,) = np.nonzero(are.all(axis=tuple(range(1, are.ndim))))
    if rows.size:
      raise UserError(
        f'{which} known of picture {rows[0]}; a mask is True (opaque or white) where a pixel is '
        'known, and False where it is to be found'
      )
  return Known(scaled(examples), masks[..., None])


def scaled(examples: np.ndarray) -> np.ndarray:
  """uint8 -> float32 on [-1, 1]; floats stay as they are."""
  examples = np.asarray(examples)
  is_picture = examples.dtype == np.uint8
  return np.asarray(scale_levels(examples)) if is_picture else examples.astype(np.float32)


def known_of(
  what: str,
  images: np.ndarray,
  masks: np.ndarray | None,
  *,
  shape: tuple[int, ...],
  operator: LinearOperator | None,
) -> Known:
  """What is known of pictures that are to be edited.

  Args:
    what: 'inpaint', 'superresolution', 'colourise', 'deblur' or 'sdedit'.
    images: uint8 [N, h, w, C]; for superresolution small ones, or whole ones to be made small.
    masks: of inpaint, as known_pixels.
    shape: of an example.
    operator: of what is known; None for inpaint and sdedit.
  """
  if masks is not None:
    return known_pixels(images, masks)
  values = scaled(images)
  is_whole = what == 'colourise' or (what == 'superresolution' and images.shape[1:] == shape)
  if operator is not None and is_whole:
    values = np.asarray(operator.apply(jnp.asarray(values)))
  return Known(values, operator=operator)
