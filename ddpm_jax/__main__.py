"""Trains, samples and evaluates diffusion models.

python -m ddpm_jax --config=configs/cifar10.py --workdir=DIR [--config.train.num_steps=100 ...]
                   [--mode=train|sample|edit|compress|decompress|eval|reproduce|import|export|ema|
                    info]

A workdir that has a config needs no --config. The program ends with 0 when it is done, or when a
signal stopped training and the state is saved. Other codes are in docs/reliability.md.
"""

import contextlib
import gc
import importlib
import os
import select
import signal
import sys

from absl import app, flags, logging

from ddpm_jax.errors import UserError, check_system
from ddpm_jax.modes import command_line, huge_pages

MODES = {  # the functions, in modules of their names
  'train': 'train',
  'sample': 'sample',
  'edit': 'edit',
  'compress': 'compress',
  'decompress': 'decompress',
  'eval': 'evaluate',
  'reproduce': 'reproduce',
  'import': 'import_model',
  'export': 'export_model',
  'ema': 'ema',
  'info': 'info',
}
# Objects between two searches for circles: imports and traces make millions that stay.
GC_THRESHOLD = 100_000
LEFT_IN_PIECES = (
  'sample',
  'edit',
  'compress',
  'decompress',
  'eval',
  'reproduce',
)  # training has its own way; others are short
UNREAD = 128 + signal.SIGPIPE  # exit code, as a shell has it
# What takes less memory where there is not enough, by mode.
LESS_MEMORY = {
  'train': 'raise train.grad_accum_steps (the same steps, in parts), set model.remat=True, or '
  'lower train.global_batch_size; for samples and figures in between, sample.batch_size and '
  'eval.batch_size; on the host, data.memory_limit_gib',
  'sample': 'lower sample.batch_size; the samples are the same',
}
LESS_MEMORY_ELSEWHERE = (
  'lower sample.batch_size and eval.batch_size, or on the host data.memory_limit_gib; the results '
  'are the same'
)


def main(_: list[str]) -> None:
  """Hands over to the mode."""
  given = flags.FLAGS
  if not given['verbosity'].present:
    logging.set_verbosity(logging.WARNING)
    # Orbax writes a page at each save, and another at each error, which it raises as well.
    logging.get_absl_logger().setLevel('CRITICAL')
  from ddpm_jax import devices, numerics, processes, signals  # not before: jax takes a second

  try:
    name = MODES[given.mode]
    set_aside = numerics.pin()
    mode = getattr(importlib.import_module(f'ddpm_jax.modes.{name}'), name)
    processes.join(
      given.coordinator_address,
      given.num_processes,
      given.process_id,
      saves_at_sigterm=given.mode == 'train',
    )
    devices.connect()
    if set_aside:
      processes.say(set_aside)
    with signals.interruptible() if given.mode in LEFT_IN_PIECES else contextlib.nullcontext():
      mode(given.config, given.workdir)
    processes.barrier('done')
    if processes.has_background():  # stopped before the first step
      processes.leave(0)
  except (Exception, KeyboardInterrupt) as error:
    if isinstance(error, BrokenPipeError) and _is_unread():
      processes.leave(UNREAD)
    hint = LESS_MEMORY.get(given.mode, LESS_MEMORY_ELSEWHERE)
    processes.leave(processes.explain(error, less_memory=hint))


def _is_unread():
  """Whether stdout was a pipe that nobody reads any more, as of `| head`; then it leads nowhere."""
  poll = select.poll()
  poll.register(1, 0)
  if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
    return False
  os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
  return True


def run() -> None:
  """Runs the command line."""
  try:
    try:
      _run()
    finally:
      sys.stdout.flush()
  except BrokenPipeError:
    if not _is_unread():
      raise
    sys.exit(UNREAD)


def _run():
  try:
    check_system(sys.platform)
  except UserError as error:
    sys.exit(f'error: {error}')
  huge_pages.restart_with_them()
  gc.set_threshold(GC_THRESHOLD)
  command_line.define_flags(list(MODES))
  app.run(main, flags_parser=command_line.parse)


if __name__ == '__main__':
  run()
