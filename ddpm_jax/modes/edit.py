"""--mode=edit: completes and changes one's own pictures, as config.edit says."""

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import processes
from ddpm_jax.config import build, checks
from ddpm_jax.config.origins import class_names, with_data
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.editing import known_of, write_edits
from ddpm_jax.evaluation.own_pictures import OwnPictures, read_masks, read_pictures
from ddpm_jax.modes.sample import find_weights, model_of
from ddpm_jax.sampling import (
  LinearOperator,
  average_pooling,
  blur,
  channel_mean,
  gaussian_kernel,
)
from ddpm_jax.storage.logs import Terminal


def edit(config: ConfigDict, workdir: str) -> None:
  """Edits the pictures that config.edit names.

  Args:
    config: ConfigDict.
    workdir: folder of the run; or, with config.init_from, any folder for the results of that model.

  Raises:
    UserError: pictures or a mask that cannot be used, no checkpoint, or one of another model.
  """
  config = with_data(config, workdir, config.init_from)
  checks.prepare(config)
  checks.check_pictures(config, '--mode=edit')
  checks.check_edit(config)
  config = build.edit_config(config)
  what, shape = config.edit.what, build.image_shape(config)
  operator = _operator(config)
  pictures = _read(config)
  masks = _masks(config, pictures)
  known = known_of(what, pictures.images, masks, shape=shape, operator=operator)
  with Terminal().waiting('reads the checkpoint'):
    path, weights = find_weights(config, workdir)
  guide = build.guide(config)
  work = build.edit_work(config, operator, guide=guide)
  names = class_names(model_of(config, workdir))
  editor = build.editor(config, known, config.edit.num, work, guide=guide, names=names)
  for line in pictures.remarks:
    processes.say(line)
  processes.say(
    f'{config.edit.num} of each of {len(pictures.names)} pictures, by step {weights.step}, seed '
    f'{config.edit.seed}: {editor.words}'
  )
  before = pictures.images
  if before.shape[1:] != shape:  # small ones
    scale = shape[0] // before.shape[1]
    before = before.repeat(scale, axis=1).repeat(scale, axis=2)
  folder = write_edits(editor, weights, path, before, pictures.names, config.edit.num)
  processes.say(f'done: {folder / "sheet.png"} and {folder / "pictures"}')


def _operator(config) -> LinearOperator | None:
  """Of what is known; None for inpaint and sdedit."""
  shape = build.image_shape(config)
  if config.edit.what == 'superresolution':
    return average_pooling(config.edit.scale, shape)
  if config.edit.what == 'colourise':
    return channel_mean(shape[-1])
  if config.edit.what == 'deblur':
    return blur(gaussian_kernel(config.edit.blur), shape)
  return None


def _read(config) -> OwnPictures:
  given, (height, width, channels) = config.edit.images, build.image_shape(config)
  if given is None:
    raise UserError(
      'edit.images is not given: name a picture, several with commas between them, or a folder, as '
      'in --config.edit.images=PICTURE.png'
    )
  sizes, what, scale = [(height, width)], config.edit.what, config.edit.scale
  if what == 'superresolution':
    sizes, what = [(height // scale, width // scale), *sizes], f'{what} x{scale}'
  return read_pictures(given, 'edit.images', sizes=sizes, channels=channels, what=what)


def _masks(config, pictures) -> np.ndarray | None:
  """bool [N, H, W] of inpaint."""
  if config.edit.what != 'inpaint':
    if config.edit.mask:
      raise UserError(f'edit.mask is of no use for edit.what={config.edit.what}: leave it out')
    return None
  if config.edit.mask:
    count, *size = pictures.images.shape[:3]
    return read_masks(config.edit.mask, 'edit.mask', size=tuple(size), count=count)
  if pictures.opaque is None:
    raise UserError(
      'no picture of edit.images is transparent anywhere, so all of each is known: erase the part '
      'that is to be found, or give a mask, white where pixels are known: --config.edit.mask=FILE'
    )
  return pictures.opaque
