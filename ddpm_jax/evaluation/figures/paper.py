"""The paper's own numbers, to stand beside what is measured (Ho, Jain, Abbeel 2020).

FID and Inception score are of 50,000 samples, with the inception network and statistics of the
OpenAI and TTUR programs.
"""

# Table 1, CIFAR-10: (model, Inception score, FID, bits/dim on test, on train). Strings as printed.
TABLE_1_COLUMNS = ('Model', 'IS', 'FID', 'NLL test (train)')
TABLE_1 = (
  ('Conditional', '', '', ''),
  ('EBM', '8.30', '37.9', ''),
  ('JEM', '8.76', '38.4', ''),
  ('BigGAN', '9.22', '14.73', ''),
  ('StyleGAN2 + ADA (v1)', '10.06', '2.67', ''),
  ('Unconditional', '', '', ''),
  ('Diffusion (original)', '', '', '<= 5.40'),
  ('Gated PixelCNN', '4.60', '65.93', '3.03 (2.90)'),
  ('Sparse Transformer', '', '', '2.80'),
  ('PixelIQN', '5.29', '49.46', ''),
  ('EBM', '6.78', '38.2', ''),
  ('NCSNv2', '', '31.75', ''),
  ('NCSN', '8.87 +- 0.12', '25.32', ''),
  ('SNGAN', '8.22 +- 0.05', '21.7', ''),
  ('SNGAN-DDLS', '9.09 +- 0.10', '15.42', ''),
  ('StyleGAN2 + ADA (v1)', '9.74 +- 0.05', '3.26', ''),
  ('DDPM (L, fixed isotropic Sigma)', '7.67 +- 0.13', '13.51', '<= 3.70 (3.69)'),
  ('DDPM (L_simple)', '9.46 +- 0.11', '3.17', '<= 3.75 (3.72)'),
)

# Table 2, the ablation: (mean_type, loss_type, var_type) as our configs name them, IS, FID;
# 'unstable' is the paper's word for training that was.
TABLE_2_COLUMNS = ('Prediction', 'Loss', 'Variance', 'IS', 'FID')
TABLE_2 = (
  ('xprev', 'kl', 'learned', '7.28 +- 0.10', '23.69'),
  ('xprev', 'kl', 'fixedlarge', '8.06 +- 0.09', '13.22'),
  ('xprev', 'mse', 'fixedlarge', 'unstable', 'unstable'),
  ('eps', 'kl', 'learned', 'unstable', 'unstable'),
  ('eps', 'kl', 'fixedlarge', '7.67 +- 0.13', '13.51'),
  ('eps', 'mse', 'fixedlarge', '9.46 +- 0.11', '3.17'),
)

# Table 4, progressive lossy compression on CIFAR-10's test set:
# (reverse steps of 1,000, rate in bits/dim, distortion as RMSE on [0, 255]).
TABLE_4 = (
  (1000, 1.77581, 0.95136),
  (900, 0.11994, 12.02277),
  (800, 0.05415, 18.47482),
  (700, 0.02866, 24.43656),
  (600, 0.01507, 30.80948),
  (500, 0.00716, 38.03236),
  (400, 0.00282, 46.12765),
  (300, 0.00081, 54.18826),
  (200, 0.00013, 60.97170),
  (100, 0.00000, 67.60125),
)

# Sec. 4.3, CIFAR-10's test set: the bound cut into rate and distortion, bits/dim.
RATE_BPD, DISTORTION_BPD = 1.78, 1.97
