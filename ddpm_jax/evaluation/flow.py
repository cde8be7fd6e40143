"""The likelihood of a split by the probability flow, on disk as the bound is: flow.npz.

WORKDIR/eval/step_XXXXXXXX/flow-SPLIT_KEY/flow.npz has total_bpd, an image a row, and traces, the
integral of each probe.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import numpy as np

from ddpm_jax.diffusion import Denoiser, NoiseSchedule
from ddpm_jax.diffusion.flow import dequantised, flow_terms
from ddpm_jax.diffusion.forward import scale_levels
from ddpm_jax.diffusion.gaussians import LEVELS
from ddpm_jax.evaluation.bound import Bound, by_terms
from ddpm_jax.evaluation.stepwise import Stepwise
from ddpm_jax.evaluation.weights import Weights
from ddpm_jax.sampling import fold_rows
from ddpm_jax.storage import shards


def make_flow_fns(
  denoiser_of: Callable[..., Denoiser],
  schedule: NoiseSchedule,
  timesteps: np.ndarray,
  *,
  num_probes: int,
  levels: int | None = LEVELS,
) -> Stepwise:
  """The flow's likelihood of a batch of images, a step at a time.

  Args:
    denoiser_of: params -> Denoiser, not clipped; (params, labels) -> Denoiser where the batch has
      labels.
    schedule: NoiseSchedule.
    timesteps: as flow_terms.
    num_probes: random signs of Hutchinson's estimate; 0 for the trace itself.
    levels: of the data; None for values of any kind.

  Returns:
    Stepwise, whose state is in the end what flow_terms says; the batch as make_bpd_fns has it.
  """
  uniform, signs = schedule.num_timesteps + 1, schedule.num_timesteps + 2  # the bound's are below

  def terms(denoiser, batch, key):
    x_0, keys = scale_levels(batch['images'], levels), fold_rows(key, batch['ids'])

    def draw(draw_of, stream, shape):
      return jax.vmap(lambda key: draw_of(jax.random.fold_in(key, stream), shape))(keys)

    x_0 = dequantised(x_0, draw(jax.random.uniform, uniform, x_0.shape[1:]), levels)
    probes = None
    if num_probes:
      shape = (num_probes, *x_0.shape[1:])
      probes = draw(jax.random.rademacher, signs, shape).swapaxes(0, 1).astype(x_0.dtype)
    return flow_terms(schedule, denoiser, x_0, timesteps, probes, levels=levels)

  return by_terms(terms, denoiser_of, len(timesteps) - 1)


@dataclasses.dataclass(frozen=True)
class Flow(Bound):
  """Bits/dim of the first images of a split by the flow; attributes as Bound, num_terms the steps.

  Attributes:
    num_probes: as make_flow_fns.
  """

  num_probes: int = 1

  stem: ClassVar[str] = 'flow'

  def measure(self, parent: pathlib.Path, weights: Weights) -> dict[str, Any]:
    """Returns the figure."""
    arrays = self.collect(parent, weights)
    figure = self.figure(arrays['total_bpd'], ' of the flow')
    dequantised = '' if self.encoding.levels is None else 'uniform dequantisation, '
    trace = 'exact divergence'
    if self.num_probes:
      trace = f"Hutchinson's divergence, random signs: {self.num_probes}"
    return figure | {
      'terms': f"{dequantised}{self.num_terms} steps of Heun's method to t=0, {trace}",
      'clip_denoised': False,
      'seed': self.identity.seed,
      'secs': shards.seconds(self.folder(parent, weights)),
    }
