"""How the suite compiles: most programs in the least time, those that run long as users do."""

import os

import jax

# XLA's emitters of fused loops are half of what compiling takes. jaxlib 0.10 can do without.
_EMITTERS = {'xla_cpu_use_fusion_emitters': True} if jax.__version_info__ < (0, 11) else {}

# XLA_FLAGS of the process that runs tests, and of some that it starts. The others optimise.
SHORT_TO_COMPILE = ' '.join(
  ['--xla_backend_optimization_level=0', *(f'--{name}=false' for name in _EMITTERS)]
)
if os.environ.get('OPTIMISED'):  # as `make test-slow` has it
  SHORT_TO_COMPILE = ''
# compiler_options of a program that runs long.
RUNS_LONG = {'xla_backend_optimization_level': 2, **_EMITTERS}


def environment() -> dict[str, str]:
  """That of a process which compiles in the least time, and has as many devices as this one."""
  return os.environ | {'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} {SHORT_TO_COMPILE}'}
