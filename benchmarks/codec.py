"""Times of the codec, and its memory.

  python benchmarks/codec.py [--workdir=DIR] [--data=DIR] [--target=rmse:12] [--count=16]
    [--rounds=5] [--bits=16]

Of a model's held-out pictures: one to the target, several at a time, decoding beside the same
evaluations of the network alone. Then the search for a chunk of so many bits beside a
plain one, which takes one example after the other and draws all its candidates at once;
both must choose the same. At last the largest memory by the number of candidates.
"""

import functools
import multiprocessing
import statistics
import sys

import jax
import jax.numpy as jnp
import numpy as np
from interleaved import alternate, machine, parse, peak_mib, print_table, ratio, seconds
from worker import build, versions

import ddpm_jax
from ddpm_jax.codec import Search, parse_goal
from ddpm_jax.codec.candidates import FOLD, fold, gaussian_pairs
from ddpm_jax.codec.channel import Pace, Pieces, codebook_key, kl_of
from ddpm_jax.codec.encoder import BEYOND_NATS, encode_step, index_prices
from ddpm_jax.codec.range_coder import RangeEncoder

SEARCH = Search()
SIZE = 32  # elements of the chunk that is searched for
RATIO = 0.9  # deviation of q over that of p
MEMORY_BITS = (2, 4, 6)  # of the search


def open_codec(workdir, data, count):
  """(the model's codec, so many of its held-out examples)."""
  model = ddpm_jax.load(workdir)
  config = model.config
  if data:
    config.data.dir = data
  codec = model._codec(True)  # the bytes around it are no part of what is timed
  return codec, build.source(config, 'test').read(np.arange(count))


def pictures(args):
  """Prints the table of pictures."""
  codec, examples = open_codec(args.workdir, args.data, args.count)
  goal = parse_goal(args.target)
  files = codec.encode(examples, goal)
  first = [codec.encode(examples[:1], goal), codec.decode(files[:1])]  # which compile
  assert len(first[0][0].sections) == len(files[0].sections)
  reached = max(len(file.sections) for file in files)
  steps, sections = [], 0
  for step in codec.table.steps(codec.schedule):
    if sections == reached:
      break
    steps.append(step.timestep)
    sections += step.ends_section
  noise = np.random.default_rng(0).standard_normal(examples.shape, np.float32)

  def evaluate():
    for t in steps:
      codec.predict(noise, t)

  evaluate()
  work = {
    'one': lambda: codec.encode(examples[:1], goal),
    'several': lambda: codec.encode(examples, goal),
    'decode': lambda: codec.decode(files),
    'evaluations': evaluate,
  }
  timed = {name: functools.partial(seconds, function) for name, function in work.items()}
  found = alternate(timed, args.rounds)
  median = {name: statistics.median(values) for name, values in found.items()}
  each = [x / args.count for x in found['several']]
  mean_bytes = np.mean([len(file.to_bytes()) for file in files])
  rows = [
    ['one to the target, s', f'{median["one"]:.2f}'],
    [f'{args.count} at a time, s each', f'{median["several"] / args.count:.2f}'],
    ['throughput of several over one', f'{ratio(found["one"], each):.1f}'],
    [f'decoding {args.count}, s', f'{median["decode"]:.2f}'],
    ['over its evaluations of the network', f'{ratio(found["decode"], found["evaluations"]):.3f}'],
  ]
  print_table([f'{args.target}, {mean_bytes:.0f} bytes, {len(steps)} steps', ''], rows)


def step_of(bits, count):
  """(pieces, shift [count, d], ratio [d]) of a step of one chunk, of this KL in each example."""
  pieces = Pieces(np.array([SIZE]), np.array([16 * bits]))
  rest = 2 * (bits * np.log(2) - SIZE * ((RATIO**2 - 1) / 2 - np.log(RATIO)))
  directions = np.random.default_rng(0).standard_normal((count, SIZE))
  directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
  shift = np.sqrt(rest) * directions
  return pieces, shift.astype(np.float32), np.full(SIZE, RATIO, np.float32)


def search(pieces, shift, scale, how=SEARCH):
  """The vectors that the codec sends: int [count, d]."""
  encoders = [RangeEncoder() for _ in shift]
  privates = [np.random.default_rng(i) for i in range(len(shift))]
  args = {'seed': 0, 'shift': shift, 'ratio': scale, 'privates': privates}
  return encode_step(encoders, 0, pieces, how, [Pace() for _ in shift], **args).vectors


@jax.jit
def best_of_all(key, linear, square, constant, most, prices):
  """The vector of greatest min(L, most) - price, of as many as there are prices."""
  size, num_folds = len(square), -(-len(prices) // FOLD)
  vectors, pairs, places, folds = (
    jnp.arange(n, dtype=jnp.uint32) for n in (FOLD, size // 2, size, num_folds)
  )
  key = jnp.uint32(0), key
  u = jnp.stack(gaussian_pairs(jnp, key, vectors[:, None], pairs[None]), axis=-1)
  signs, taken = fold(jnp, key, folds[:, None], places[None], jnp.uint32(size))
  z = signs[:, None] * u.reshape(FOLD, size)[:, taken].swapaxes(0, 1)
  z = z.reshape(-1, size)[: len(prices)]
  values = z @ linear - z * z @ square + constant
  return jnp.argmax(jnp.minimum(values, most) - prices)


def search_plainly(pieces, shift, scale):
  """As search: one example after the other, all candidates at once."""
  vectors = np.zeros(shift.shape, np.uint32)
  ((chunk,),) = Pace().cut(pieces, SEARCH)
  for row, mean in enumerate(shift):
    m, s = mean.astype(np.float64), scale.astype(np.float64)
    kl = kl_of(m, s)
    prices = index_prices(kl, chunk, SEARCH)
    vectors[row] = best_of_all(
      np.uint32(codebook_key(SEARCH, 0, 0, 1)),
      np.float32(m / s**2),
      np.float32((1 / s**2 - 1) / 2),
      np.float32((-(m**2) / (2 * s**2) - np.log(s)).sum()),
      np.float32(kl + BEYOND_NATS),
      np.repeat(prices, 1 << np.arange(len(prices))).astype(np.float32),
    )
  return vectors


def searches(args):
  """Prints the table of searches."""
  rows = []
  for count in (1, args.count):
    step = step_of(args.bits, count)
    work = {'ours': lambda s=step: search(*s), 'plain': lambda s=step: search_plainly(*s)}
    ours, plain = (work[name]() for name in ('ours', 'plain'))
    same = (ours == plain).mean()
    timed = {name: functools.partial(seconds, function) for name, function in work.items()}
    found = alternate(timed, args.rounds)
    median = {name: f'{statistics.median(values):.2f}' for name, values in found.items()}
    times = f'{ratio(found["plain"], found["ours"]):.1f}'
    rows.append([count, median['ours'], median['plain'], times, f'{same:.0%}'])
  header = ['examples', 'ours, s', 'plain, s', 'times faster', 'the same vectors']
  print(f'a chunk of {SIZE} elements and {args.bits} bits')
  print_table(header, rows)


def peak_of(bits, count):
  """Largest resident memory of a process that searches with so many bits, MiB."""
  pieces, shift, scale = step_of(12, count)
  search(pieces, 3 * shift, scale, Search(bits=bits))  # no vector will do, so that all are tried
  return peak_mib()


def main():
  """Prints machine, versions and tables."""
  args = parse(__doc__, workdir='digits', data='', target='rmse:12', count=16, rounds=5, bits=16)
  print(f'{machine()}, {versions()}\n', flush=True)
  pictures(args)
  searches(args)
  rows = []
  for bits in MEMORY_BITS:
    with multiprocessing.get_context('spawn').Pool(1) as pool:
      rows.append([f'2^{12 + bits}', f'{pool.apply(peak_of, (bits, args.count)):.0f}'])
  print_table(['candidates', 'peak memory, MiB'], rows)


if __name__ == '__main__':
  sys.exit(main())
