"""One's own network in place of the U-Net."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class OwnNetwork:
  """A function as a model that diffusion.make_network applies.

  Attributes:
    function: (params, x_t [B, ..., C], t int [B]) -> output [B, ..., channels], a pure function of
      arrays. It knows nothing of dropout. Of a model with labels it has a fourth argument, labels
      int [B], which are num_classes for examples without.
    num_classes: of the labels; None for a network without.
  """

  function: Callable[..., jax.Array]
  num_classes: int | None = None

  @property
  def name(self) -> str:
    """Of the function."""
    return getattr(self.function, '__qualname__', type(self.function).__qualname__)

  def apply(
    self,
    variables: Any,
    x_t: jax.Array,
    t: jax.Array,
    *,
    labels: jax.Array | None = None,
    **_: Any,
  ) -> jax.Array:
    """As flax modules have it."""
    if self.num_classes is None:
      return self.function(variables['params'], x_t, t)
    if labels is None:
      labels = jnp.full(x_t.shape[:1], self.num_classes)
    return self.function(variables['params'], x_t, t, labels)
