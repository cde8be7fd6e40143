"""The seal of a checkpoint: MANIFEST.json, with size and sha256 of all other files.

What a seal says of its folder, such as the step and the run, is sealed as well: a folder under
another name is noticed.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ddpm_jax.errors import DiskError, UserError
from ddpm_jax.storage.files import sync, sync_below

MANIFEST = 'MANIFEST.json'


def write_manifest(folder: pathlib.Path, facts: Mapping[str, Any] | None = None) -> None:
  """Writes size and sha256 of every file below folder to folder/MANIFEST.json.

  All of them are on disk before it is, and it is at the end; Orbax syncs the arrays only.

  Args:
    folder: pathlib.Path.
    facts: of the folder, such as its step: dict of JSON values.
  """
  sync_below(folder)
  path = folder / MANIFEST
  files = {
    name: {'bytes': file.stat().st_size, 'sha256': _sha256(file)}
    for name, file in _files(folder).items()
  }
  path.write_bytes(_encode_manifest({**(facts or {}), 'files': files}))
  sync(path)
  sync(folder)


def find_fault(folder: pathlib.Path, facts: Mapping[str, Any] | None = None) -> str | None:
  """Returns what is wrong with a step's folder, in a few words; None if each byte is as saved.

  Args:
    folder: pathlib.Path.
    facts: of the folder, as the seal has them if it has them: those of earlier versions do not.

  Raises:
    DiskError: it cannot be read, which says nothing on what it has.
  """
  try:
    sealed = read_manifest(folder)
    for name, value in (facts or {}).items():
      if sealed.get(name, value) != value:
        return f'it is of {name} {sealed[name]}, not {value}'
    manifest = sealed['files']
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
  """Returns {'files': {name: {'bytes', 'sha256'}}, 'checksum', and the facts of the folder}.

  Raises:
    UserError: it is damaged, or not there.
  """
  path = folder / MANIFEST
  if not path.is_file():
    raise UserError(f'{MANIFEST} is missing')
  written = path.read_bytes()
  try:
    manifest = json.loads(written)
    content = {name: value for name, value in manifest.items() if name != 'checksum'}
    intact = 'files' in content and written == _encode_manifest(content)
  except (ValueError, TypeError, AttributeError, RecursionError):
    intact = False
  if not intact:
    raise UserError(f'{MANIFEST} is damaged')
  return manifest


def _encode_manifest(content):
  """The manifest's one spelling in bytes, its own checksum included: so any flipped bit shows."""
  # Of the files alone where no more is said, as in earlier versions.
  sealed = content if content.keys() - {'files'} else content['files']
  checksum = hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()
  return json.dumps({'checksum': checksum, **content}, sort_keys=True, indent=1).encode()


def _files(folder):
  """Returns {path relative to folder: path} of all files below it but the manifest."""
  files = {p.relative_to(folder).as_posix(): p for p in folder.rglob('*') if not p.is_dir()}
  files.pop(MANIFEST, None)
  return files


def _sha256(path):
  with path.open('rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()
