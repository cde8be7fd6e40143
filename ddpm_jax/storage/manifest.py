"""The seal of a checkpoint: MANIFEST.json, with size and sha256 of all other files."""

import hashlib
import json
import pathlib
from typing import Any

from ddpm_jax.errors import DiskError, UserError
from ddpm_jax.storage.files import sync, sync_below

MANIFEST = 'MANIFEST.json'


def write_manifest(folder: pathlib.Path) -> None:
  """Writes size and sha256 of every file below folder to folder/MANIFEST.json.

  All of them are on disk before it is, and it is at the end; Orbax syncs the arrays only.
  """
  sync_below(folder)
  path = folder / MANIFEST
  path.write_bytes(
    _encode_manifest(
      {
        name: {'bytes': file.stat().st_size, 'sha256': _sha256(file)}
        for name, file in _files(folder).items()
      }
    )
  )
  sync(path)
  sync(folder)


def find_fault(folder: pathlib.Path) -> str | None:
  """Returns what is wrong with a step's folder, in a few words; None if each byte is as saved.

  Raises:
    DiskError: it cannot be read, which says nothing on what it has.
  """
  try:
    manifest = read_manifest(folder)['files']
    files = _files(folder)
    for name in sorted(manifest.keys() | files.keys()):
      if name not in files:
        return f'{name} is missing'
      if name not in manifest:
        return f'{name} is not in {MANIFEST}'
      size, expected = files[name].stat().st_size, manifest[name]['bytes']
      if size != expected:
        return f'{name} has {size} bytes, not {expected}'
      if _sha256(files[name]) != manifest[name]['sha256']:
        return f'{name} has another sha256 than in {MANIFEST}'
  except UserError as error:
    return str(error)
  except OSError as error:
    if folder.is_dir() and not isinstance(error, FileNotFoundError):
      raise DiskError(error.filename or folder, error) from error
    return str(error)  # deleted meanwhile
  return None


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
  """Returns {'files': {name: {'bytes', 'sha256'}}, 'checksum'}; ValueError where it is damaged."""
  path = folder / MANIFEST
  if not path.is_file():
    raise UserError(f'{MANIFEST} is missing')
  written = path.read_bytes()
  try:
    manifest = json.loads(written)
    intact = written == _encode_manifest(manifest['files'])
  except (ValueError, TypeError, KeyError, RecursionError):
    intact = False
  if not intact:
    raise UserError(f'{MANIFEST} is damaged')
  return manifest


def _encode_manifest(files):
  """The manifest's one spelling in bytes, its own checksum included: so any flipped bit shows."""
  checksum = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
  return json.dumps({'checksum': checksum, 'files': files}, sort_keys=True, indent=1).encode()


def _files(folder):
  """Returns {path relative to folder: path} of all files below it but the manifest."""
  files = {p.relative_to(folder).as_posix(): p for p in folder.rglob('*') if not p.is_dir()}
  files.pop(MANIFEST, None)
  return files


def _sha256(path):
  with path.open('rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()
