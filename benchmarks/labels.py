"""Labels and guidance on the digits, in figures: docs/labels.md.

  python -m benchmarks.labels WORKDIR [--what=bpd,guidance] [--seeds=5] [--count=1024]
    [--sampler=dpmpp_2m] [--num_steps=20]

WORKDIR is that of `make digits-labels`. Prints bits/dim of the test digits given their labels,
paired with the model's own without and with the model in the box; then, for each scale and
interval, how often the digits' classifier sees the class that was asked for, how far the most
frequent and the rarest class are from their share, and the Frechet distance to the training digits.
"""

import argparse

import numpy as np

import ddpm_jax
from ddpm_jax import devices
from ddpm_jax.data.digits import load_digits
from ddpm_jax.evaluation.features import digits_network
from ddpm_jax.evaluation.metrics.frechet import accumulate, frechet_distance

SETTINGS = [  # scale, interval of noise levels
  (1.0, None),
  (1.5, None),
  (2.0, None),
  (3.0, None),
  (1.5, (0.3, 5.0)),
  (2.0, (0.3, 5.0)),
  (3.0, (0.3, 5.0)),
]


def main():
  """Prints the tables."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('workdir')
  parser.add_argument('--what', default='bpd,guidance')
  parser.add_argument('--seeds', type=int, default=5)
  parser.add_argument('--count', type=int, default=1024)
  parser.add_argument('--sampler', default='dpmpp_2m')
  parser.add_argument('--num_steps', type=int, default=20)
  args = parser.parse_args()
  model = ddpm_jax.load(args.workdir)
  if 'bpd' in args.what:
    print_bits_per_dim(model)
  if 'guidance' in args.what:
    print_guidance(model, args)


def print_bits_per_dim(model):
  """Bits/dim given the labels and without, paired over the test digits."""
  images, labels = load_digits('test')
  given, without = (model.bits_per_dim(images, labels=x)['total_bpd'] for x in (labels, None))
  unlabelled = ddpm_jax.load('digits').bits_per_dim(images)['total_bpd']
  print(f'bits/dim of {len(images)} test digits given their labels: {given.mean():.4f}')
  pairs = {'without, by the same model': without, 'the model in the box': unlabelled}
  for name, others in pairs.items():
    paired = others - given
    error = paired.std(ddof=1) / np.sqrt(len(paired))
    print(f'{name}: {others.mean():.4f}, more by {paired.mean():.4f} +- {error:.4f}')


def print_guidance(model, args):
  """The table of scales and intervals."""
  network = digits_network()

  def features(images):
    found = network.extract(network.params, devices.split_over_devices(images))
    return {name: devices.gather_from_devices(x) for name, x in found.items()}

  reference = accumulate([features(load_digits('train')[0])['features']])
  images, labels = load_digits('test')
  seen = features(images)['logits'].argmax(-1)
  print(f'the classifier sees the label of {np.mean(seen == labels):.1%} of the test digits')
  print('| scale | noise levels | class seen | shares off by, at most | Frechet distance |')
  print('|---|---|---|---|---|')
  asked = np.resize(np.arange(10), args.count)
  for scale, interval in SETTINGS:
    hits, shares, distances = [], [], []
    for seed in range(args.seeds):
      samples = model.sample(
        args.count,
        seed=seed,
        labels=asked,
        guidance=scale,
        guidance_interval=interval,
        sampler=args.sampler,
        num_steps=args.num_steps,
      )
      found = features(samples)
      seen = found['logits'].argmax(-1)
      hits.append(np.mean(seen == asked))
      counts = np.bincount(asked, minlength=10)
      shares.append(np.abs(np.bincount(seen, minlength=10) / counts - 1).max())
      distances.append(frechet_distance(accumulate([found['features']]), reference))
    levels = 'all' if interval is None else '{:g} to {:g}'.format(*interval)
    distance = f'{np.mean(distances):.4f} ({min(distances):.4f} to {max(distances):.4f})'
    row = f'{scale:g}', levels, f'{np.mean(hits):.1%}', f'{np.max(shares):.1%}', distance
    print('| ' + ' | '.join(row) + ' |', flush=True)


if __name__ == '__main__':
  main()
