"""Settings from outside that change random numbers or arithmetic: JAX's, and the environment's.

Those that nobody needs are pinned: for the whole program, or, where the user's own program has the
say, around each computation. The others are choices: a run keeps them, and all its processes share
them.
"""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax

# What every result goes by; a setting that this version of JAX lacks is passed over.
PINNED = {
  'jax_threefry_partitionable': True,
  'jax_default_prng_impl': 'threefry2x32',
  'jax_enable_custom_prng': False,
  'jax_legacy_prng_key': 'allow',
  'jax_random_seed_offset': 0,
  'jax_high_dynamic_range_gumbel': False,
  'jax_accurate_erf_inv': False,
  'jax_enable_x64': False,
  'jax_default_dtype_bits': '64',
  'jax_numpy_dtype_promotion': 'standard',
  'jax_disable_jit': False,
  'jax_disable_most_optimizations': False,
}
# What ends a run at a number that is not finite, which train.on_nonfinite answers. They change no
# number, so that a user's own program keeps them.
DEBUGGING = {'jax_debug_nans': False, 'jax_debug_infs': False}
# Those of PINNED that JAX can set for a block of code.
_CONTEXTS = {
  name: name.removeprefix('jax_')
  for name in PINNED
  if callable(getattr(jax, name.removeprefix('jax_'), None))
}
# Variables of the environment that choose an arithmetic.
_VARIABLES = ('NVIDIA_TF32_OVERRIDE', 'ONEDNN_DEFAULT_FPMATH_MODE', 'DNNL_DEFAULT_FPMATH_MODE')
_FLAGS = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')
# Flags of the compiler that do, by a word of their names.
_OF_ARITHMETIC = re.compile(
  'fast_m|precision|ftz|denormal|tf32|bf16|f16|fp8|f8|approx|algsimp|hlo_passes|opt(imization)?_level'
)


def _differing(usual=PINNED):
  """{name: value} of the settings that have another value than the usual one now."""
  now = {name: getattr(jax.config, name, value) for name, value in usual.items()}
  return {name: value for name, value in now.items() if value != usual[name]}


def pin() -> str | None:
  """Sets JAX's settings for the whole program.

  Returns:
    a line on those that are set aside; None if there are none.
  """
  usual = PINNED | DEBUGGING
  aside = _differing(usual)
  for name in aside:
    jax.config.update(name, usual[name])
  if not aside:
    return None
  words = ', '.join(f'{name.upper()}={value}' for name, value in sorted(aside.items()))
  return f'set aside: {words}; numbers do not go by the environment'


@contextlib.contextmanager
def pinned() -> Iterator[None]:
  """Sets JAX's settings in a block of code, in this thread; others keep their own."""
  with contextlib.ExitStack() as stack:
    for name in _differing().keys() & _CONTEXTS.keys():
      stack.enter_context(getattr(jax, _CONTEXTS[name])(PINNED[name]))
    yield


def arithmetic(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
  """What chooses an arithmetic other than the usual one, by name: mostly nothing.

  Args:
    environ: the environment.
  """
  found = {name: environ[name] for name in _VARIABLES if environ.get(name)}
  for variable in _FLAGS:
    for flag in sorted(_flags(environ.get(variable, ''))):
      if _OF_ARITHMETIC.search(flag.partition('=')[0]):
        found[f'{variable}: {flag.partition("=")[0]}'] = flag.partition('=')[2] or 'true'
  if (precision := jax.config.jax_default_matmul_precision) not in (None, 'default'):
    found['JAX_DEFAULT_MATMUL_PRECISION'] = str(precision)
  left = _differing().keys() - _CONTEXTS.keys()
  return found | {name.upper(): getattr(jax.config, name) for name in sorted(left)}


def _flags(text):
  """The flags in XLA_FLAGS, or in the file that is named there."""
  if text and not text.lstrip().startswith('-'):
    with contextlib.suppress(OSError):
      text = pathlib.Path(text.strip()).read_text()
  return {flag.lstrip('-') for flag in text.split() if flag.startswith('-')}
