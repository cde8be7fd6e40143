"""--mode=decompress: the examples of the files that --mode=compress wrote."""

import hashlib
import pathlib

import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import processes
from ddpm_jax.codec import Compressed, read_archive, read_file
from ddpm_jax.codec.format import is_archive
from ddpm_jax.config import build, checks, codecs
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.grids import save_png
from ddpm_jax.evaluation.images import check_regular
from ddpm_jax.modes.compress import ARCHIVE, SUFFIX, open_codec
from ddpm_jax.paths import expanded
from ddpm_jax.refusals import raise_refusal
from ddpm_jax.storage.files import written_whole
from ddpm_jax.storage.identity import step_folder


def decompress(config: ConfigDict, workdir: str) -> None:
  """Decodes the files that config.decompress names, each as far as it is there.

  Args:
    config: ConfigDict.
    workdir: as of --mode=compress; its model has to be the one that compressed.

  Raises:
    UserError: files that cannot be used, or of another model.
  """
  checks.check_decompress(config)
  named = _read(config.decompress.files)
  opened = open_codec(config, workdir, '--mode=decompress')
  examples, notes = codecs.decode(opened.config, opened.codec, [*named.values()], progress=True)
  for note in notes:
    processes.say(f'warning: {note}')
  folder = step_folder(opened.path / 'decompressed', opened.weights.step)
  folder = folder / _name(config, named)
  folder.mkdir(parents=True, exist_ok=True)
  if build.has_pictures(opened.config):
    for name, picture in zip(named, examples, strict=True):
      save_png(folder / f'{name}.png', picture)
  else:
    with written_whole(folder / 'examples.npz') as partial, open(partial, 'wb') as stream:
      np.savez(stream, samples=examples, names=[*named])
  display = build.display(opened.config)
  display.save(folder / 'sheet.png', examples[: display.most_shown])
  processes.say(f'done: {len(named)} examples in {folder}')


def _name(config, named):
  fields = config.decompress.to_dict() | {'files': None}
  digest = hashlib.sha256(repr(sorted(fields.items())).encode())
  for name, file in named.items():
    digest.update(name.encode() + file.to_bytes())
  return f'realism-{config.decompress.realism:g}_{digest.hexdigest()[:8]}'


def _read(given: str | None) -> dict[str, Compressed]:
  """The files by name, those of archives by their numbers."""
  if given is None:
    raise UserError(
      'decompress.files is not given: name a file of --mode=compress, several with commas between '
      'them, or a folder, as in --config.decompress.files=FOLDER'
    )
  paths = [expanded(given)]
  if not paths[0].exists():
    paths = [expanded(part.strip()) for part in given.split(',') if part.strip()]
  found: dict[str, Compressed] = {}
  for path in paths:
    if not path.exists():
      raise UserError(f'decompress.files={path} does not exist; give files of --mode=compress')
    check_regular(path, 'decompress.files')
    files = _of_folder(path) if path.is_dir() else [path]
    for file in files:
      data = _bytes_of(file)
      if is_archive(data):
        several = read_archive(data, str(file))
        named = {f'{file.stem}-{i:04d}': one for i, one in enumerate(several)}
      else:
        named = {file.stem: read_file(data, str(file))}
      for name, one in named.items():
        found[f'{len(found):04d}-{name}' if name in found else name] = one
  if not found:
    raise UserError(f'decompress.files={given!r} names no file')
  return found


def _of_folder(folder: pathlib.Path) -> list[pathlib.Path]:
  endings = SUFFIX, pathlib.Path(ARCHIVE).suffix
  files = sorted(file for file in folder.iterdir() if file.suffix in endings)
  if not files:
    raise UserError(f'decompress.files={folder} has no files that end with {" or ".join(endings)}')
  return files


def _bytes_of(file):
  try:
    return file.read_bytes()
  except OSError as error:
    raise_refusal(file, error)
    raise UserError(f'decompress.files={file} cannot be read ({error.strerror})') from error
