"""The input pipeline's images/s against what the training step of configs/cifar10.py consumes.

  python benchmarks/input_pipeline.py [--batch=16] [--rounds=7]

The pictures are noise, in the number and size of CIFAR-10, in memory; and PNG files, read as they
are needed. Pipeline and step take turns, so that each has the whole machine.
"""

import statistics
import tempfile

import PIL.Image
from interleaved import alternate, machine, parse, print_table, ratio, seconds
from worker import Training, build, devices, make_config, random_source, versions

from ddpm_jax.modes import huge_pages

NUM_IMAGES = 50_000
NUM_FILES = 5_000


def make_pipeline(config, source, num_batches):
  """() -> images/s of so many batches, up to the arrays that a step is called with."""
  iterator = build.batches(config, source).iterate(0)

  def take():
    for _ in range(num_batches):
      devices.split_over_devices(next(iterator))

  return lambda: num_batches * config.train.global_batch_size / seconds(take)


def main():
  """Prints machine, versions and the table."""
  huge_pages.restart_with_them()
  args = parse(__doc__, batch=16, rounds=7, config='cifar10')
  print(machine())
  print(versions(), end='\n\n')
  config = make_config(args.config, args.batch, {'data.num_workers': 0})
  training = Training(config)

  def train():
    training.seconds(1)  # not counted
    return args.batch / training.seconds(1)

  with tempfile.TemporaryDirectory() as folder:
    pictures = random_source(config, NUM_IMAGES)
    for i in range(NUM_FILES):
      PIL.Image.fromarray(pictures.read([i])[0]).save(f'{folder}/{i:05d}.png')
    folder_changes = {'data.source': f'folder:{folder}', 'data.memory_limit_gib': 0.0}
    of_files = make_config(args.config, args.batch, {'data.num_workers': 0, **folder_changes})
    functions = {
      'training step': train,
      'in memory': make_pipeline(config, pictures, 4_000),
      'PNG files': make_pipeline(of_files, build.source(of_files), 100),
    }
    alternate(functions, 1)
    rates = alternate(functions, args.rounds)
  print_table(
    ['', 'images/s', 'over the step'],
    [
      [name, f'{statistics.median(values):,.1f}', f'{ratio(values, rates["training step"]):,.0f}']
      for name, values in rates.items()
    ],
  )


if __name__ == '__main__':
  main()
