"""Downloads by plain http(s), with a progress bar."""

import http
import pathlib
import urllib.request

_BLOCK_BYTES = 1 << 20
_TIMEOUT_SECS = 30


def fetch(
  url: str, partial: pathlib.Path, *, resume: bool = False, max_bytes: int | None = 1 << 33
) -> None:
  """Downloads to a file, which the caller gives its name once it is what it should be.

  Args:
    url: of the file.
    partial: pathlib.Path to write to; its folder is made.
    resume: whether what `partial` has is the beginning of this very file, to be completed.
    max_bytes: more is refused.

  Raises:
    OSError: no connection, or one that ended early; urllib.error.HTTPError is one.
    http.client.HTTPException: an answer that cannot be understood.
  """
  import tqdm

  start = partial.stat().st_size if resume and partial.exists() else 0
  headers = {'Range': f'bytes={start}-'} if start else {}
  request = urllib.request.Request(url, headers=headers)
  with urllib.request.urlopen(request, timeout=_TIMEOUT_SECS) as response:
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
      start = 0
    total = None if response.length is None else start + response.length  # None: not told
    received = start
    partial.parent.mkdir(parents=True, exist_ok=True)
    bar = tqdm.tqdm(desc=partial.stem, total=total, initial=start, unit='B', unit_scale=True)
    with bar, open(partial, 'ab' if start else 'wb') as file:
      while received <= max_bytes and (block := response.read(_BLOCK_BYTES)):
        file.write(block)
        received += len(block)
        bar.update(len(block))
  if received > max_bytes:
    raise OSError(f'{partial.stem} has more than {max_bytes} bytes')
  if total not in (None, received):
    raise OSError(f'the connection closed after {received} of {total} bytes')
