"""Files of the codec beside the theory of Figure 5, and beside picture formats.

Held-out examples are compressed to the last; what their files decode to after each of their
sections is measured. The theory's curve is that of the same examples: the bound's rate, and the
error of predictions from exact samples of q(x_t | x_0).
"""

import json
import pathlib
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ddpm_jax import processes
from ddpm_jax.codec import Codec, Compressed, Decoded, Goal, read_archive, write_archive
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.coders import coded_bits_per_dim
from ddpm_jax.evaluation.figures import plots
from ddpm_jax.evaluation.figures.compression import rate_distortion, rmse_name
from ddpm_jax.evaluation.figures.run import Run, write_csv, write_markdown
from ddpm_jax.evaluation.picture_formats import format_points
from ddpm_jax.storage.files import read_json, write_text, written_whole

ARCHIVE = 'examples.ddpa'
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # of a file's bytes after its header
AS_FAR_AS_IT_GOES = Goal(rmse=1e-12)  # for values of any kind, which have no lossless end
FILES, LOSSLESS = 'files', 'lossless'
STYLES = {'WebP': 's', 'AVIF': '^', 'JPEG': 'v', 'JXL': 'D'}


class Row(NamedTuple):
  """What files reach, in means over examples.

  Attributes:
    program: FILES, or a format.
    setting: how much of the files there is, or a quality.
    bpd: bits/dim of files of their own, or in nothing but their code.
    data_bpd: those without headers, lengths, tables and checksums; None where that is not known.
    rmse: root of the mean squared error, in stored units.
    timestep: that has been reached; None of what is no part of a file, as all below.
    kl_bpd: KL of the steps so far, as the examples have them.
    theory_bpd, theory_rmse: of the curve, at the timestep.
  """

  program: str
  setting: str
  bpd: float
  data_bpd: float | None
  rmse: float
  timestep: int | None = None
  kl_bpd: float | None = None
  theory_bpd: float | None = None
  theory_rmse: float | None = None


def codec(run: Run) -> pathlib.Path:
  """Writes the table, the curves and the sheets.

  Raises:
    UserError: a model that has no codec, or several processes.
  """
  if processes.count() > 1:
    raise UserError('the figure codec works with one process: start one')
  coder, bound = run.coding.make_codec(), run.make_bound(run.split)
  arrays = bound.collect(run.eval_folder, run.weights)
  count = min(run.coding.num_examples, bound.count)
  examples = np.asarray(bound.source.read(np.arange(count)))
  identity = run.weights.identify(bound.identity)
  choices = {**run.coding.choices, 'table': coder.table.sha256.hex(), 'examples': count}
  folder = run.folder('codec', identity.but(choices={**(identity.choices or {}), **choices}))
  files, encoding_secs = _compress(run, coder, examples, folder)
  begin = time.perf_counter()
  decoded, predictions = _decode(run, coder, files)
  decoding_secs = time.perf_counter() - begin
  vb, prior, mse = (arrays[name][:count] for name in ('vb', 'prior_bpd', 'mse'))
  theory = rate_distortion(vb, prior, mse, coder.half_range)
  rows = _of_files(run, coder, examples, files, predictions, theory)
  rows += _of_programs(run, examples)
  write_csv(folder / 'codec.csv', Row._fields, rows)
  notes = [
    *_on_exactness(run, decoded, examples),
    f'Compressed in {encoding_secs / count:.3g} s an example, decoded in '
    f'{decoding_secs / count:.3g} s, with what compiling took.',
    'bits/dim (bpd) are of a file an example; data bits/dim without headers, lengths, tables and '
    'checksums. KL is that of the steps of the files, without what it costs to code.',
    'If the pictures were JPEGs once, as those of many data sets, JPEG finds again what it left.',
  ]
  _write_report(folder, f'{count} examples of {bound.split}, compressed', rows, notes)
  _plot(run, folder, rows, theory)
  ends = [True, *(step.ends_section for step in coder.table.steps(run.schedule))]
  _write_sheets(run, coder, folder, files, examples, predictions[ends])
  return folder


def _compress(run, coder: Codec, examples, folder) -> tuple[list[Compressed], float]:
  """(the files, the seconds that they took), which are kept."""
  archive, seconds = folder / ARCHIVE, folder / 'seconds.json'
  if archive.is_file() and seconds.is_file():
    return read_archive(archive.read_bytes(), str(archive)), read_json(seconds)['compressing']
  goal = AS_FAR_AS_IT_GOES if run.encoding.levels is None else Goal()
  begin = time.perf_counter()
  files = run.coding.compress(coder, examples, goal)
  secs = time.perf_counter() - begin
  with written_whole(archive) as partial:
    partial.write_bytes(write_archive(files))
  write_text(seconds, json.dumps({'compressing': secs}) + '\n')
  return files, secs


def _decode(run, coder, files) -> tuple[list[Decoded], np.ndarray]:
  """(what whole files decode to; predictions of x_0 before and after steps, [S + 1, N, ...])."""
  decoded, predictions = [], []
  for first in range(0, len(files), run.batch_size):
    told: list[np.ndarray] = []
    decoded += coder.decode(files[first : first + run.batch_size], at_steps=told.append)
    predictions.append(np.stack(told))
  return decoded, np.concatenate(predictions, axis=1)


def _of_files(run, coder, examples, files, predictions, theory) -> list[Row]:
  """Of the files up to each of their sections; and whole."""
  steps, dims = coder.table.steps(run.schedule), examples[0].size
  x_0 = run.encoding.x_0(run.encoding.stored(examples))
  kls = np.cumsum(coder.kls(x_0, predictions).mean(1)) / dims
  rates, rmses = theory
  rows, sections = [], 0

  def row(setting, parts, rmse, *more):
    sizes = [(len(part.to_bytes()), coder.payload_bytes(part)) for part in parts]
    bpd, data_bpd = (8 * np.mean(sizes, axis=0) / dims).tolist()
    return Row(FILES, setting, bpd, data_bpd, float(rmse), *more)

  for step, kl, prediction in zip(steps, kls, predictions[1:], strict=True):
    if step.ends_section:
      sections += 1
      parts = [file.first(sections) for file in files]
      square = np.square(prediction - x_0).mean(dtype=np.float64)
      place = run.schedule.num_timesteps - 1 - step.timestep
      more = step.timestep, float(kl), float(rates[place]), float(rmses[place])
      setting = f'{sections} sections' if sections > 1 else '1 section'
      rows.append(row(setting, parts, coder.half_range * np.sqrt(square), *more))
  if run.encoding.levels is not None:
    rows.append(row(LOSSLESS, files, 0.0))
  return rows


def _of_programs(run, examples) -> list[Row]:
  """Of formats for pictures; otherwise of programs that compress without loss."""
  dims = examples[0].size
  if run.display.num_axes == 2 and run.encoding.levels == 256 and examples.shape[-1] in (1, 3):
    return [
      Row(
        point.name,
        LOSSLESS if point.quality is None else f'quality {point.quality}',
        8 * point.file_bytes / dims,
        8 * point.data_bytes / dims,
        point.rmse,
      )
      for point in format_points(examples)
    ]
  if run.encoding.levels is None:
    return []
  found = coded_bits_per_dim(examples, levels=run.encoding.levels)
  return [Row(name, LOSSLESS, each, None, 0.0) for name, (each, _) in found.items()]


def _on_exactness(run, decoded, examples):
  if run.encoding.levels is not None:
    pairs = zip(decoded, examples, strict=True)
    exact = sum(x.levels is not None and np.array_equal(x.levels, y) for x, y in pairs)
    yield f'{exact} of {len(decoded)} were decoded exactly.'


def _write_report(folder, title, rows: Sequence[Row], notes):
  def cell(value):
    return '' if value is None else f'{value:.5g}' if isinstance(value, float) else str(value)

  shown = [[cell(value) for value in row] for row in rows]
  write_markdown(folder / 'codec.md', title, Row._fields, shown, notes)


def _plot(run, folder, rows: Sequence[Row], theory):
  curves = [('theory (Figure 5)', *theory, '-')]
  for program, style in {FILES: 'o', **STYLES}.items():
    chosen = [row for row in rows if row.program == program and row.setting != LOSSLESS]
    if chosen:
      rmse = [row.rmse for row in chosen]
      curves.append((program, [row.bpd for row in chosen], rmse, f'{style}-'))
      curves.append((f'{program}, data alone', [row.data_bpd for row in chosen], rmse, f'{style}:'))
  y_name = rmse_name(run.encoding.levels)
  panel = {'title': 'Distortion at a rate', 'x': 'bits/dim', 'y': y_name, 'curves': curves}
  plots.plot_curves(folder / 'codec.png', [panel, {**panel, 'logx': True}])


def _write_sheets(run, coder, folder, files, examples, predictions):
  """Some examples at shares of their files' bytes, the header left out: predictions, which are
  those of sections, and what the model completes."""
  shown, lossy = min(run.num_images, len(files)), len(predictions) - 1
  lengths = [[len(f.first(k).body()) for k in range(len(f.sections) + 1)] for f in files[:shown]]
  sections = np.array(
    [[max(np.searchsorted(x, s * x[-1], 'right') - 1, 0) for s in SHARES] for x in lengths]
  )
  exact = run.encoding.stored(examples[:shown])
  layout = {
    'columns': len(SHARES),
    'captions': [f'{len(file.to_bytes())} bytes' for file in files[:shown]],
    'headings': [f'{share:.0%}' for share in SHARES],
    'values': run.display.value_range(exact),
  }

  def write(name, x_0):
    cells = run.encoding.decode(x_0)
    whole = np.flatnonzero(sections.ravel() > lossy)
    cells[whole] = exact[whole // len(SHARES)]
    run.display.save(folder / name, cells, **layout)

  rows, columns = np.repeat(np.arange(shown), len(SHARES)), np.minimum(sections.ravel(), lossy)
  write('sheet.png', predictions[columns, rows])
  parts = [files[i].first(int(k)) for i, k in zip(rows, columns, strict=True)]
  completed = []
  for first in range(0, len(parts), run.batch_size):
    decoded = coder.decode(parts[first : first + run.batch_size])
    completed.append(coder.complete(decoded, 'ancestral', seed=first))
  write('sheet_completed.png', np.concatenate(completed))
