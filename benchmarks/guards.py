"""What the guards of a long run cost: checksums, checks of the metrics, agreement on signals.

  python benchmarks/guards.py [--batch=16] [--rounds=7]

Of configs/cifar10.py: its steps and the saving and verification of its state are timed, and the
guards' work by itself.
"""

import pathlib
import statistics
import tempfile

from interleaved import machine, parse, print_table, seconds
from worker import Training, build, make_config, versions

from ddpm_jax import processes
from ddpm_jax.storage.logs import RunLog
from ddpm_jax.storage.manifest import find_fault, write_manifest


def main():
  """Prints machine, versions and the table."""
  args = parse(__doc__, batch=16, rounds=7, config='cifar10')
  print(machine(), versions(), sep='\n', end='\n\n')
  config = make_config(args.config, args.batch, {'train.keep_last_checkpoints': 1})
  training = Training(config)
  training.seconds(1)
  step_secs = statistics.median(training.seconds(1) for _ in range(args.rounds))
  with tempfile.TemporaryDirectory() as workdir:
    path = pathlib.Path(workdir)
    saving, whole = [], []
    with build.checkpointer(config, path) as checkpointer:
      for step in range(args.rounds):
        saving.append(seconds(lambda: checkpointer.save(step, training.state)))  # noqa: B023
        whole.append(saving[-1] + seconds(checkpointer.wait))
    newest = path / 'checkpoints' / str(args.rounds - 1)
    size = sum(file.stat().st_size for file in newest.rglob('*') if file.is_file())
    checksums = [seconds(lambda: write_manifest(newest)) for _ in range(args.rounds)]
    verifying = [seconds(lambda: find_fault(newest)) for _ in range(args.rounds)]
  log = RunLog(None, start_step=0, num_steps=1, images_per_step=args.batch)

  def guard():
    log.add(1, training.metrics)
    log.check()
    processes.stop_agreed(0, False)

  guard_secs = statistics.median(seconds(guard) for _ in range(100 * args.rounds))
  interval = config.train.checkpoint_every_steps
  rows = [
    (
      what,
      f'{statistics.median(secs):.3f}',
      f'{statistics.median(secs) / (interval * step_secs):.4%}',
    )
    for what, secs in {
      'save, until training goes on': saving,
      'save, all of it, in the background': whole,
      'checksums of it': checksums,
      'verification, when a run goes on': verifying,
    }.items()
  ]
  rows.append(
    ('metrics and signals, each step', f'{guard_secs:.6f}', f'{guard_secs / step_secs:.4%}')
  )
  print(f'{size / 2**20:.0f} MiB a checkpoint, every {interval} steps; {step_secs:.3f} s/step\n')
  print_table(['', 's', 'of training time'], rows)


if __name__ == '__main__':
  main()
