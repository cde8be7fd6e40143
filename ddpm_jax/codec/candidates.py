"""Numbers that the encoder and the decoder both draw: Gaussians by counter, the same everywhere.

The bits are those of Threefry-2x32 with 20 rounds (Salmon et al. 2011), of integers; the Gaussians
follow by the formula of Box and Muller, and may differ in the last digits between machines.
"""

from types import ModuleType
from typing import Any

import numpy as np

GENERATOR = 1  # its number in files
FOLD = 1 << 12  # vectors that a codebook is folded from
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
# Taylor's series of the sine and the cosine, highest powers first; exact to float32 up to pi / 4.
_SINE = (1 / 362880, -1 / 5040, 1 / 120, -1 / 6)
_COSINE = (1 / 40320, -1 / 720, 1 / 24, -1 / 2)


def threefry(xp: ModuleType, key: tuple[Any, Any], counter: tuple[Any, Any]) -> tuple[Any, Any]:
  """Threefry-2x32-20 of uint32 arrays that broadcast together.

  Args:
    xp: numpy or jax.numpy.
    key, counter: pairs of uint32 arrays.

  Returns:
    two uint32 arrays of 32 random bits.
  """
  keys = (key[0], key[1], key[0] ^ key[1] ^ xp.uint32(_PARITY))
  x, y = counter[0] + keys[0], counter[1] + keys[1]
  for group in range(5):
    for rotation in _ROTATIONS[group % 2]:
      x = x + y
      y = ((y << xp.uint32(rotation)) | (y >> xp.uint32(32 - rotation))) ^ x
    x = x + keys[(group + 1) % 3]
    y = y + keys[(group + 2) % 3] + xp.uint32(group + 1)
  return x, y


def gaussian_pairs(
  xp: ModuleType, key: tuple[Any, Any], candidates: Any, pairs: Any
) -> tuple[Any, Any]:
  """The Gaussians 2 p and 2 p + 1 of candidates, float32.

  With the two words a, b of a counter as fractions in (0, 1) of 2^32, z_{2p} = r cos(2 pi b) and
  z_{2p+1} = r sin(2 pi b), where r^2 = -2 log a.

  Args:
    xp: numpy or jax.numpy.
    key: pair of uint32 arrays.
    candidates, pairs: uint32 arrays, the counter.
  """
  a, b = threefry(xp, key, (candidates, pairs))
  uniform = (a.astype(xp.float32) + xp.float32(0.5)) * xp.float32(2**-32)
  radius = xp.sqrt(xp.float32(-2) * xp.log(uniform))
  cosine, sine = cosine_and_sine(xp, b)
  return radius * cosine, radius * sine


def cosine_and_sine(xp: ModuleType, turns: Any) -> tuple[Any, Any]:
  """Of the angles 2 pi turns / 2^32, float32, from uint32.

  An angle is a quarter turn and up to an eighth more or less, which integers tell apart. XLA's own
  functions take angles of any size: on a CPU they were eight tenths of a search.
  """
  quarter = (turns + xp.uint32(1 << 29)) >> xp.uint32(30)
  rest = (turns - (quarter << xp.uint32(30))).astype(xp.int32)
  angle = rest.astype(xp.float32) * xp.float32(2 * np.pi * 2**-32)
  square = angle * angle
  sine = angle + angle * square * _series(xp, _SINE, square)
  cosine = xp.float32(1) + square * _series(xp, _COSINE, square)
  is_odd = (quarter & xp.uint32(1)) == 1
  first, second = xp.where(is_odd, sine, cosine), xp.where(is_odd, cosine, sine)
  first = xp.where((quarter + xp.uint32(1)) & xp.uint32(2) != 0, -first, first)
  return first, xp.where(quarter & xp.uint32(2) != 0, -second, second)


def _series(xp, coefficients, x):
  value = xp.float32(coefficients[0])
  for coefficient in coefficients[1:]:
    value = value * x + xp.float32(coefficient)
  return value


def gaussians(
  seed: int,
  key: np.ndarray,
  candidates: np.ndarray,
  places: np.ndarray,
  sizes: np.ndarray | int = 0,
) -> np.ndarray:
  """One Gaussian for each address, float32; what the decoder draws.

  Args:
    seed: of the file.
    key: uint32, which codebook (channel.codebook_key).
    candidates: uint32, which of its vectors, 0, 1, ....
    places: uint32, which element of the vector.
    sizes: of the vectors, where the codebook is folded: candidate FOLD f + a is vector a as `fold`
      has it; 0 where it is not. All broadcast together.
  """
  key, candidates, places, sizes = np.broadcast_arrays(
    *(np.asarray(x, np.uint32) for x in (key, candidates, places, sizes))
  )
  folds, vectors = np.where(sizes, np.divmod(candidates, FOLD), (np.zeros_like(key), candidates))
  with np.errstate(over='ignore'):  # of scalars; sums of 32 bits wrap around
    signs, places = fold(np, (np.uint32(seed), key), folds, places, np.maximum(sizes, places + 1))
    even, odd = gaussian_pairs(np, (np.uint32(seed), key), vectors, places >> np.uint32(1))
  return np.where(places & np.uint32(1), odd, even) * signs


def fold(
  xp: ModuleType, key: tuple[Any, Any], folds: Any, places: Any, sizes: Any
) -> tuple[Any, Any]:
  """What a fold of a vector u has at some places: signs * u[from].

  Args:
    xp: numpy or jax.numpy.
    key: pair of uint32 arrays.
    folds: uint32, which of them; 0 is u itself.
    places: uint32.
    sizes: uint32, of the vectors. All broadcast together.

  Returns:
    (signs float32, 1 or -1, from uint32): a shift by some places, round and round.
  """
  counter, word = folds | xp.uint32(1 << 31), places >> xp.uint32(5)
  shift, _ = threefry(xp, key, (counter, xp.uint32(0)))
  words = threefry(xp, key, (counter, xp.uint32(1) + (word >> xp.uint32(1))))
  bits = xp.where(word & xp.uint32(1), words[1], words[0]) >> (places & xp.uint32(31))
  is_turned = (folds > 0) & (bits & xp.uint32(1) == 1)
  shift = xp.where(folds > 0, shift % sizes, xp.uint32(0))
  return xp.where(is_turned, xp.float32(-1), xp.float32(1)), (places + shift) % sizes
