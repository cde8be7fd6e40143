"""One's own network in place of the U-Net."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class OwnNetwork:
  """A function as a model that diffusion.make_network applies.

  Attributes:
    function: (params, x_t [B, ..., C], t int [B]) -> output [B, ..., channels], a pure function of
      arrays. It knows nothing of dropout.
  """

  function: Callable[[Any, jax.Array, jax.Array], jax.Array]

  @property
  def name(self) -> str:
    """Of the function."""
    return getattr(self.function, '__qualname__', type(self.function).__qualname__)

  def apply(self, variables: Any, x_t: jax.Array, t: jax.Array, **_: Any) -> jax.Array:
    """As flax modules have it."""
    return self.function(variables['params'], x_t, t)
