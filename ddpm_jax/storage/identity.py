"""What makes a result that result.

Samples, features, bounds, reports, reproductions and the records of best.json each carry an
Identity. Results of one identity are kept and completed; those of different identities lie side by
side, in folders with a readable name and a short key of the identity:

  samples/step_00001600/ddim-50-trailing_3f2a91c0/
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

KEY_LENGTH = 8  # hexadecimal digits in the name of a folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity:
  """What decides a result. What does not decide it is None; values are those of JSON.

  Attributes:
    step: training step of the parameters.
    parameters: sha256 (hex) of the parameters.
    model: fields of config.model that decide numbers, but for the type of the computation.
    diffusion: fields of config.diffusion.
    dtype: of the computation, resolved, such as 'float32'.
    sampler: its name, number of steps, and choices.
    seed: of the random numbers.
    data: what the data are: name, split, shape and fingerprint.
    network: of the features: its name and the sha256 of its weights.
    choices: what else decides, by name.
  """

  step: int | None = None
  parameters: str | None = None
  model: Mapping[str, Any] | None = None
  diffusion: Mapping[str, Any] | None = None
  dtype: str | None = None
  sampler: Mapping[str, Any] | None = None
  seed: int | None = None
  data: Mapping[str, Any] | None = None
  network: Mapping[str, Any] | None = None
  choices: Mapping[str, Any] | None = None

  def but(self, **changes: Any) -> 'Identity':
    """This identity with other values of some attributes."""
    return dataclasses.replace(self, **changes)

  def facts(self) -> dict[str, Any]:
    """The identity as plain JSON values, without None at any depth."""
    return json.loads(json.dumps(_without_none(dataclasses.asdict(self))))

  def key(self) -> str:
    """A short name of the facts: the head of their sha256."""
    return key_of(self.facts())

  def folder(self, parent: pathlib.Path, name: str) -> pathlib.Path:
    """The folder of a result in `parent`: a readable name, and the key."""
    return parent / f'{name}_{self.key()}'


def key_of(facts: Mapping[str, Any]) -> str:
  """The head of the sha256 of JSON values."""
  text = json.dumps(facts, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def step_folder(parent: pathlib.Path, step: int) -> pathlib.Path:
  """The folder of a training step in `parent`, one of WORKDIR's."""
  return parent / f'step_{step:08d}'


def sampler_name(sampler: Mapping[str, Any] | None) -> str:
  """A sampler in a word, such as 'ddim-50-trailing': its steps, spacing, and what is unusual."""
  assert sampler is not None
  words = [sampler['sampler'], str(sampler['num_steps'])]
  words += [sampler['spacing']] if sampler.get('spacing') else []
  words += [f'eta{sampler["eta"]:g}'] if sampler.get('eta') else []
  words += [f'parts{sampler["timestep_parts"]}'] if sampler.get('timestep_parts') else []
  words += ['early'] if sampler.get('stops_early') else []
  words += [sampler['variance']] if sampler.get('variance') else []
  words += [f'churn{sampler["churn"]:g}'] if sampler.get('churn') else []
  words += [f'class-{sampler["labels"][0][0]}'] if len(sampler.get('labels') or ()) == 1 else []
  words += [f'guided-{sampler["guidance"]:g}'] if sampler.get('guidance') is not None else []
  words += [f'clip-{sampler["clip"]}'] if sampler['clip'] != 'static' else []
  return '-'.join(words)


def _without_none(value):
  if isinstance(value, Mapping):
    return {name: _without_none(x) for name, x in value.items() if x is not None}
  return value
