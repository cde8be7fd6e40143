"""Paths as a user writes them."""

import os
import pathlib


def expanded(path: str | os.PathLike[str]) -> pathlib.Path:
  """A path with the home folder for `~`; the name of a user who is not there stays as it is."""
  return pathlib.Path(os.path.expanduser(path))
