"""What labels, guidance and inpainting cost: training steps and chains, against those without.

  python benchmarks/guidance.py [--config=cifar10_small] [--batch=16] [--num_steps=20] [--rounds=9]

All of them in one process and in turns; a chain is ddim's.
"""

import statistics

import numpy as np
from interleaved import alternate, machine, parse, print_table, ratio, seconds
from worker import Training, build, make_config, versions

from ddpm_jax.evaluation.editing import known_pixels
from ddpm_jax.evaluation.weights import make_weights
from ddpm_jax.sampling.guidance import noise_levels

LABELS = {'model.num_classes': 10}


def middle(config):
  """The interval of noise levels of the middle half of a chain's steps."""
  levels = np.sort(noise_levels(build.schedule(config))[build.timesteps(config)])
  quarter = len(levels) // 4
  return float(levels[quarter - 1]), float(levels[-quarter - 1])


def make_chain(config, params, labels):
  """() -> None, which draws a batch."""
  if not labels:
    config.model.num_classes = None
  drawer = build.drawer(config, config.sample.batch_size)
  ids = np.arange(drawer.sizes.host)
  return lambda: drawer.draw(params, ids)


def make_edit(config, params, method):
  """() -> None, which finds the lower halves of a batch."""
  config.model.num_classes = None
  config.edit.update(what='inpaint', method=method, jump_length=1, resamplings=1)
  if method == 'repaint':
    config.sample.sampler = 'ancestral'
  shape, count = build.image_shape(config), config.sample.batch_size
  images = np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)
  mask = np.arange(shape[0])[:, None] < shape[0] // 2
  known = known_pixels(images, np.broadcast_to(mask, shape[:2]))
  editor = build.editor(config, known, 1, build.edit_work(config))
  ids = np.arange(editor.sizes.host)
  return lambda: editor.draw(params, ids)


def main():
  """Prints machine, versions and the tables."""
  args = parse(__doc__, config='cifar10_small', batch=16, num_steps=20, rounds=9)
  print(machine(), versions(), sep='\n', end='\n\n', flush=True)

  def config_of(**changes):
    return make_config(args.config, args.batch, LABELS | changes)

  trainings = {
    'without labels': Training(config_of(**{'model.num_classes': None})),
    'with labels': Training(config_of()),
  }
  for training in trainings.values():
    training.seconds(2)
  steps = alternate({name: lambda t=t: t.seconds(4) for name, t in trainings.items()}, args.rounds)
  rows = [
    (name, f'{statistics.median(secs) / 4:.4f}', f'{ratio(secs, steps["without labels"]):.3f}')
    for name, secs in steps.items()
  ]
  print_table(('Training step', 's', 'Ratio'), rows)

  params = {
    name: make_weights(0, training.state.params, '').params for name, training in trainings.items()
  }
  few = {'sample.sampler': 'ddim', 'sample.num_steps': args.num_steps}
  led = {**few, 'sample.guidance': 2.0}
  half = {**led, 'sample.guidance_interval': middle(config_of(**few))}
  labelled, plain = params['with labels'], params['without labels']
  ancestral = {'sample.sampler': 'ancestral', 'sample.num_steps': args.num_steps}
  chains = {
    'without labels': make_chain(config_of(**few), plain, False),
    'given labels': make_chain(config_of(**few), labelled, True),
    'guided': make_chain(config_of(**led), labelled, True),
    'guided in half of the steps': make_chain(config_of(**half), labelled, True),
    'inpainted by ddnm': make_edit(config_of(**few), plain, 'ddnm'),
    'inpainted by pigdm': make_edit(config_of(**few), plain, 'pigdm'),
    'ancestral': make_chain(config_of(**ancestral), plain, False),
    'inpainted by repaint, without jumps': make_edit(config_of(**ancestral), plain, 'repaint'),
  }
  for chain in chains.values():
    chain()
  times = alternate({name: lambda c=c: seconds(c) for name, c in chains.items()}, args.rounds)
  rows = []
  for name, secs in times.items():
    against = 'ancestral' if name == 'ancestral' or 'repaint' in name else 'without labels'
    rows.append((name, f'{statistics.median(secs):.3f}', f'{ratio(secs, times[against]):.3f}'))
  print_table(('Chain', 's', 'Ratio to that of the same sampler'), rows)


if __name__ == '__main__':
  main()
