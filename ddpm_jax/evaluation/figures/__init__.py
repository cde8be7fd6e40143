"""The paper's tables and figures, by one command: data, and a picture.

WORKDIR/reproduce/step_XXXXXXXX/FIGURE_KEY/
  table1          Table 1: this model in the paper's list              csv, png
  table2          Table 2: this model among the ablations              csv, png
  bound           the bound, term by term                              csv, png
  compression     Table 4 and Figure 5: rate and distortion            csv, png
  progressive     Figures 6 and 10: x_0 predictions, their metrics     csv, png;
                  the predictions themselves are in predictions_KEY/
  shared          Figure 7: samples that share x_t                     npz, png
  interpolation   Figures 8 and 9: between real images                 npz, png
  comparison      beside real data and simple models: likelihood,      csv, md, png
                  distances, structure, copies, classifiers
  codec           files of the codec beside theory and formats         csv, md, png
  few_steps       the bound of few steps, by the variance of a step    csv, md, png
  neighbours      nearest training images by pixels and by features    csv, png

A new figure is a file, and its entry here: Run -> the folder that it was written to.
"""

import pathlib
from collections.abc import Callable, Mapping

from ddpm_jax.evaluation.figures.bound_by_steps import few_steps
from ddpm_jax.evaluation.figures.bound_terms import bound
from ddpm_jax.evaluation.figures.codec import codec
from ddpm_jax.evaluation.figures.comparison import comparison
from ddpm_jax.evaluation.figures.compression import compression
from ddpm_jax.evaluation.figures.interpolation import interpolation
from ddpm_jax.evaluation.figures.neighbours import neighbours
from ddpm_jax.evaluation.figures.progressive import progressive
from ddpm_jax.evaluation.figures.run import Run
from ddpm_jax.evaluation.figures.shared import shared
from ddpm_jax.evaluation.figures.tables import table1, table2

FIGURES: Mapping[str, Callable[[Run], pathlib.Path]] = {
  'table1': table1,
  'table2': table2,
  'bound': bound,
  'compression': compression,
  'progressive': progressive,
  'shared': shared,
  'interpolation': interpolation,
  'neighbours': neighbours,
  'comparison': comparison,
  'codec': codec,
  'few_steps': few_steps,
}
