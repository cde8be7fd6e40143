"""CIFAR-10, unconditional, as in the paper: Tables 1 and 2, and every row of the ablation.

  python main.py --config=configs/cifar10.py --workdir=DIR

reproduces L_simple, the paper's best: FID 3.17 and Inception score 9.46, at most 3.75 bits/dim
(the paper's numbers). 800,000 steps * 128 = 102.4M examples; the paper needed 10.6 h on a TPU v3-8.

The rows of Table 2 are arguments, PREDICTION-LOSS-VARIANCE, e.g. configs/cifar10.py:eps-kl-learned.
IS and FID as the paper has them; "-" where it says that training was unstable:

  xprev-kl-learned       IS 7.28   FID 23.69
  xprev-kl-fixedlarge    IS 8.06   FID 13.22
  xprev-mse-fixedlarge   -
  eps-kl-learned         -
  eps-kl-fixedlarge      IS 7.67   FID 13.51
  eps-mse-fixedlarge     IS 9.46   FID  3.17   the default

xstart predictions and the variance fixedsmall, which the paper mentions without numbers, go too.
configs/cifar10.py:labels is L_simple given the label, which the paper has not: docs/labels.md.
"""

from ddpm_jax.configs import default
from ddpm_jax.errors import UserError

PREDICTIONS = ('eps', 'xstart', 'xprev')
LOSSES = ('mse', 'kl')
VARIANCES = ('fixedlarge', 'fixedsmall', 'learned')


def get_config(ablation='eps-mse-fixedlarge'):
  config = default.get_config()
  config.diffusion.update(schedule='linear', beta_start=1e-4)
  if ablation == 'labels':
    config.model.num_classes = 10
    config.train.label_dropout = 0.1
    return config
  parts = ablation.split('-')
  choices = (PREDICTIONS, LOSSES, VARIANCES)
  known = len(parts) == 3 and all(
    part in allowed for part, allowed in zip(parts, choices, strict=True)
  )
  if not known:
    raise UserError(
      f'configs/cifar10.py:{ablation} is neither labels nor PREDICTION-LOSS-VARIANCE; '
      f'they are {" or ".join(PREDICTIONS)}, {" or ".join(LOSSES)}, {" or ".join(VARIANCES)}'
    )
  mean_type, loss_type, var_type = parts
  config.diffusion.update(mean_type=mean_type, loss_type=loss_type, var_type=var_type)
  return config
