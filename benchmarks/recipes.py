"""The worth of recipes of training at equal cost: a table for docs/results.md.

  python benchmarks/recipes.py --workdir=DIR [--config=digits] [--recipes=paper,cosine]
    [--seeds=0,1,2] [--num_steps=1600] [--columns=5,10,20] [--whole] [--num_samples=1024]

Trains each recipe with each seed in a folder of its own under DIR, as main.py does; measures the
Frechet distance of its samples to the training pictures, and bits/dim of test pictures, at the
numbers of evaluations in columns, and bits/dim of the whole chain; with whole the distance of the
whole chain as well, which takes longer than training. What is there already is not done again, so
that the command goes on where it was stopped, and several of them share DIR. The noise of samples
is the same everywhere. Each cell is the mean over seeds of training, and the deviation.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from distances import Distances, config_of
from interleaved import ROOT, parse, print_row
from worker import build, versions

from ddpm_jax.storage.files import written_whole

STEPS = '{num_steps}'  # of the training, in a field
# What differs from the paper's, by the name of the recipe.
RECIPES = {
  'paper': {},
  # predictions
  'v': {'diffusion.mean_type': 'v'},
  'xstart': {'diffusion.mean_type': 'xstart'},
  'edm': {'diffusion.mean_type': 'edm', 'train.loss_weight': 'edm', 'train.timesteps': 'lognormal'},
  # schedules
  'cosine': {'diffusion.schedule': 'cosine'},
  'sigmoid': {'diffusion.schedule': 'sigmoid'},
  'zero_snr': {'diffusion.schedule': 'linear_zero_snr', 'diffusion.mean_type': 'v'},
  # variances
  'hybrid': {'diffusion.var_type': 'learned_range', 'diffusion.loss_type': 'hybrid'},
  # weights
  'min_snr': {'train.loss_weight': 'min_snr'},
  'p2': {'train.loss_weight': 'p2'},
  'sigmoid_weight': {'train.loss_weight': 'sigmoid'},
  'kl_weight': {'train.loss_weight': 'kl'},
  # how t is drawn
  'stratified': {'train.timesteps': 'stratified'},
  'by_loss': {'train.timesteps': 'loss'},
  'lognormal': {'train.timesteps': 'lognormal'},
  # the optimizer
  'rate_cosine': {'optim.decay': 'cosine', 'optim.decay_steps': STEPS},
  'rate_inverse_sqrt': {'optim.decay': 'inverse_sqrt', 'optim.decay_steps': 400},
  'adamw': {'optim.weight_decay': 0.01},
  'ema_warmup': {'optim.ema_warmup': 0.05},
}
RECIPES |= {  # the best ones together
  'cosine_edm': RECIPES['cosine'] | RECIPES['edm'],
  'cosine_hybrid': RECIPES['cosine'] | RECIPES['hybrid'],
  'cosine_edm_hybrid': RECIPES['cosine'] | RECIPES['edm'] | RECIPES['hybrid'],
  'sigmoid_edm': RECIPES['sigmoid'] | RECIPES['edm'],
  'sigmoid_hybrid': RECIPES['sigmoid'] | RECIPES['hybrid'],
  'sigmoid_edm_hybrid': RECIPES['sigmoid'] | RECIPES['edm'] | RECIPES['hybrid'],
}
RECIPES['sigmoid_edm_hybrid_rate'] = RECIPES['sigmoid_edm_hybrid'] | RECIPES['rate_cosine']
# The nearest of samplers.py at so few and at more evaluations; after zero_snr, those it allows.
FEW = 5
FEW_SAMPLER, SAMPLER = {'sampler': 'unipc_3'}, {'sampler': 'dpmpp_2m_sde'}
ZERO_SNR_SAMPLERS = {'sampler': 'ddim'}, {'sampler': 'ddim', 'eta': 1.0}


def fields_of(name, num_steps):
  """What a recipe changes in the config of a training of so many steps: {field: value}."""
  return {field: num_steps if value is STEPS else value for field, value in RECIPES[name].items()}


def train(folder, args, fields, seed):
  """Trains in a folder, if it is not done."""
  fields = {
    'seed': seed,
    'train.num_steps': args.num_steps,
    'train.sample_every_steps': 0,
    'train.checkpoint_every_steps': args.num_steps,
    **fields,
  }
  if args.data:
    fields['data.dir'] = args.data
  options = [f'--config.{name}={value}' for name, value in fields.items()]
  command = [sys.executable, 'main.py', f'--config=configs/{args.config}.py']
  subprocess.run(
    [*command, f'--workdir={folder}', *options],
    cwd=ROOT,
    check=True,
    stdout=subprocess.DEVNULL,
  )


def measure(folder, args, columns):
  """{name: figure} of a trained model: what is known, and what is not yet."""
  file = folder / 'worth.json'
  known = json.loads(file.read_text()) if file.exists() else {}
  # all counts the steps of the chain
  names = [f'bpd {n}' for n in (*columns, 'all')]
  names += [f'distance {n}' for n in (*columns, *(['all'] if args.whole else []))]
  missing = [name for name in names if name not in known]
  if not missing:
    return known
  config = config_of(folder, args)
  config.eval.bpd_examples = args.bpd_examples
  distances = Distances(config, folder, args.num_samples)
  for name in missing:
    what, _, count = name.partition(' ')
    if what == 'bpd':
      known[name] = bits_per_dim(config, distances.weights, count)
    else:
      known[name] = distances.figure(**sampling(config, count))['value']
    with written_whole(file) as partial:
      partial.write_text(json.dumps(known, indent=1))
  return known


def sampling(config, count):
  """The fields of config.sample that draw with so many evaluations."""
  if count == 'all':
    return {'sampler': 'ancestral'}
  zero_snr = (config.diffusion.schedule or '').endswith('_zero_snr')
  samplers = ZERO_SNR_SAMPLERS if zero_snr else (FEW_SAMPLER, SAMPLER)
  return {**samplers[int(count) > FEW], 'num_steps': int(count)}


def bits_per_dim(config, weights, count):
  """Bits/dim of test pictures by a chain of so many steps."""
  num_steps = config.diffusion.num_timesteps if count == 'all' else int(count)
  bound = build.short_bound(
    config, build.source(config, 'test'), num_steps, config.diffusion.var_type
  )
  with tempfile.TemporaryDirectory() as folder:
    return float(bound.collect(pathlib.Path(folder), weights)['total_bpd'].mean())


def main():
  """Trains and measures, and prints the table of all that was asked for."""
  args = parse(
    __doc__,
    workdir=None,
    config='digits',
    data='',
    recipes=','.join(RECIPES),
    seeds='0,1,2',
    num_steps=1600,
    columns='5,10,20',
    whole=False,
    num_samples=1024,
    bpd_examples=64,
    network='',
    reference_examples=5000,
  )
  columns = args.columns.split(',')
  seeds = [int(seed) for seed in args.seeds.split(',')]
  rows = {}
  for seed in seeds:
    for name in args.recipes.split(','):
      folder = pathlib.Path(args.workdir).resolve() / f'{name}_{args.num_steps}_{seed}'
      train(folder, args, fields_of(name, args.num_steps), seed)
      found = measure(folder, args, columns)
      print(f'{folder.name}: {found}', file=sys.stderr, flush=True)
      rows.setdefault(name, []).append(found)
  print(f'{args.num_steps} steps, {args.num_samples} samples, seeds {args.seeds}, {versions()}\n')
  ends = [*columns, 'all']
  shown = [f'distance {n}' for n in (ends if args.whole else columns)] + [f'bpd {n}' for n in ends]
  print_row(['Recipe', *shown])
  print_row(['---'] * (len(shown) + 1))
  for name, found in rows.items():
    print_row([name, *(cell([figures[what] for figures in found]) for what in shown)])


def cell(values):
  """The mean, and the deviation of what a seed of training makes."""
  deviation = f' +- {np.std(values, ddof=1):.2f}' if len(values) > 1 else ''
  return f'{np.mean(values):.2f}{deviation}'


if __name__ == '__main__':
  main()
