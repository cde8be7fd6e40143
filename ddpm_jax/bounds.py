"""Bits/dim of a split of the data, as the evaluation has it: all terms for each image, on disk."""

import csv

import numpy as np

from ddpm_jax import build, npz, parallel, shards
from ddpm_jax.data import fingerprint
from ddpm_jax.files import written_whole
from ddpm_jax.workdir import config_dict


class Bound:
  """Bits/dim of one split of the data."""

  def __init__(self, config, split, step):
    self._config, self._split, self._step = config, split, step
    self._source = build.source(config, split)
    self._count = min(len(self._source), config.eval.bpd_examples or len(self._source))
    self._sizes = parallel.fitting_batch_sizes(config.eval.batch_size, self._count)
    self._key = parallel.replicate(build.key(config.eval.seed, 'bpd'))
    self._data_sha256 = fingerprint(self._source)

  def folder(self, folder):
    """Where an evaluation's folder has it: the bound, or an estimate from K terms."""
    terms = self._config.eval.bpd_terms
    return folder / (f'bpd_{self._split}_{terms}_terms' if terms else f'bpd_{self._split}')

  def collect(self, folder, params, params_sha256):
    """Computes what is missing of bpd.npz in self.folder(folder); returns its arrays, by images."""
    config = self._config

    def compute(ids):
      batch = {'images': self._source.read(ids), 'ids': ids.astype(np.int32)}
      bound = self._step(params, parallel.split_over_devices(batch), self._key)
      return parallel.gather_from_devices(bound)

    file = shards.collect(
      self.folder(folder),
      'bpd',
      {
        'parameters_sha256': params_sha256,
        'data': config.data.source,
        'split': self._split,
        'data_sha256': self._data_sha256,
        'seed': config.eval.seed,
        'terms': config.eval.bpd_terms or 'all',
        'diffusion': config_dict(config)['diffusion'],
        **build.dtype_request(config),
      },
      self._count,
      compute,
      sizes=self._sizes,
      what=f'bits/dim {self._split}',
    )
    return {name: array[: self._count] for name, array in npz.open_npz(file).items()}

  def measure(self, folder, params, params_sha256):
    """Returns the figure; writes bpd_SPLIT.csv, of the bound but not of an estimate."""
    arrays = self.collect(folder, params, params_sha256)
    config = self._config
    total, error = mean_and_error(arrays['total_bpd'])
    figure = {
      'metric': 'bpd',
      'bpd_split': self._split,
      'name': f'bits/dim ({self._split})',
      'value': total,
      'standard_error': error,
      'count': self._count,
      'split': f'{self._source.name} {self._split}, first {self._count} of {len(self._source)}',
      'data_sha256': self._data_sha256,
      'L_T': float(arrays['prior_bpd'].mean(dtype=np.float64)),
    }
    if config.eval.bpd_terms:
      figure |= {
        'terms': f'{config.eval.bpd_terms} of {config.diffusion.num_timesteps}, stratified'
      }
    else:
      vb = arrays['vb'].mean(axis=0, dtype=np.float64)
      figure |= {
        'L_1..T-1': float(vb[1:].sum()),
        'L_0': float(vb[0]),
        'terms': 'all, one draw each',
      }
      if parallel.is_primary():
        write_terms(folder / f'bpd_{self._split}.csv', arrays)
    figure |= {'clip_denoised': True, 'seed': config.eval.seed}
    figure['secs'] = shards.seconds(self.folder(folder))
    return figure


def mean_and_error(values):
  """(mean, standard error of the mean; None for one value), in float64."""
  values = np.asarray(values, np.float64)
  error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
  return float(values.mean()), error if error is None else float(error)


def write_terms(file, arrays):
  """The bound's mean at each t, as CSV."""
  with written_whole(file) as partial, open(partial, 'w', newline='') as stream:
    writer = csv.writer(stream)
    writer.writerow(['t', 'vb_bpd', 'vb_standard_error', 'x_0_mse', 'x_0_mse_standard_error'])
    for t in range(arrays['vb'].shape[1]):
      vb, mse = mean_and_error(arrays['vb'][:, t]), mean_and_error(arrays['mse'][:, t])
      writer.writerow([t, *vb, *mse])
