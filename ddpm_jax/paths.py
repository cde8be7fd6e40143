"""Paths as a user writes them."""

import os
import pathlib

from ddpm_jax.errors import UserError


def expanded(path: str | os.PathLike[str]) -> pathlib.Path:
  """A path with the home folder for `~`; the name of a user who is not there stays as it is.

  Raises:
    UserError: there is no home folder.
  """
  found = pathlib.Path(os.path.expanduser(path))
  if found.parts[:1] == ('~',):
    raise UserError(f'{path}: this user has no home folder; give a path without ~')
  return found
