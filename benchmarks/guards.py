"""What the guards of a long run cost: checksums, checks of the metrics, agreement on signals.

  python benchmarks/guards.py [--batch=16] [--rounds=7]

Of configs/cifar10.py: its steps and the saving and verification of its state are timed, and the
guards' work by itself.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

from turns import machine, print_table


def parse_args():
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--batch', type=int, default=16, help='images a step')
  parser.add_argument('--rounds', type=int, default=7, help='turns of each')
  return parser.parse_args()


def timed(work):
  """Seconds of work()."""
  start = time.perf_counter()
  work()
  return time.perf_counter() - start


def main():
  """Prints machine, versions and the table."""
  args = parse_args()
  import ours

  from ddpm_jax import checkpoints, logs, parallel
  from ddpm_jax.checkpoints import Checkpointer
  from ddpm_jax.workdir import config_dict

  print(machine())
  print(ours.versions(), end='\n\n')
  training = ours.TrainStep(args.batch)
  training.turn(1)
  config = training.config
  step_secs = statistics.median(training.turn(1) for _ in range(args.rounds))
  with tempfile.TemporaryDirectory() as folder:
    directory = pathlib.Path(folder)
    saving, whole = [], []
    with Checkpointer(directory, config_dict(config), keep_last=1) as checkpointer:
      for step in range(args.rounds):
        start = time.perf_counter()
        checkpointer.save(step, training.state)
        saving.append(time.perf_counter() - start)
        checkpointer.wait()
        whole.append(time.perf_counter() - start)
    newest = directory / str(args.rounds - 1)
    size = sum(file.stat().st_size for file in newest.rglob('*') if file.is_file())
    checksums = [timed(lambda: checkpoints.write_manifest(newest)) for _ in range(args.rounds)]
    verifying = [timed(lambda: checkpoints.find_fault(newest)) for _ in range(args.rounds)]
    log = logs.RunLog(None, start_step=0, num_steps=1, images_per_step=args.batch)

    def guards():
      log.add(1, training.metrics)
      log.check()
      parallel.stop_agreed(0, False)

    per_step = [timed(guards) for _ in range(100 * args.rounds)]

  interval = config.train.checkpoint_every_steps
  between = interval * step_secs
  rows = [
    (what, f'{statistics.median(secs):.3f}', f'{statistics.median(secs) / between:.4%}')
    for what, secs in {
      'save, until training goes on': saving,
      'save, all of it, in the background': whole,
      'checksums of it': checksums,
      'verification, when a run goes on': verifying,
    }.items()
  ]
  guard_secs = statistics.median(per_step)
  rows.append(
    ('metrics and signals, each step', f'{guard_secs:.6f}', f'{guard_secs / step_secs:.4%}')
  )
  print(f'{size / 2**20:.0f} MiB a checkpoint, every {interval} steps; {step_secs:.3f} s/step\n')
  print_table(['', 's', 'of training time'], rows)


if __name__ == '__main__':
  main()
