"""Every field, once, with its unit. Values are the paper's for CIFAR-10; other files are deltas."""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder


def get_config():
  return ConfigDict(
    {
      'compilation_cache': placeholder(str),  # folder, or off; none: ~/.cache/ddpm_jax/programs
      'seed': 0,  # of initialisation, batches, noise and dropout
      # Model to begin from: WORKDIR or WORKDIR@STEP, a model of the package (digits), or one of
      # another program, as import.path.
      'init_from': placeholder(str),
      'init_optimizer': False,  # take over the state of the optimizer, too, from a workdir
      'network': placeholder(str),  # name of one's own, of a run from Python; none: model's U-Net
      'data': {
        # digits | cifar10 | tfds:NAME | folder:PATH | array:PATH | signals:PATH |
        # volumes:PATH | frames:PATH | watch | brain_blocks | celebahq256 | lsun_*
        'source': 'cifar10',
        'dir': placeholder(str),  # folder of the data; none: TFDS's own
        'split': 'train',
        'holdout': placeholder(float),  # part of train that is test, where there is none; none: 0
        # Samples between windows of signals:PATH, or frames of frames:PATH; none: the window
        'stride': placeholder(int),
        'feature': placeholder(str),  # of tfds:NAME, an image or a tensor; none: the one that fits
        # Pixels of the side of square pictures; or the length of each axis, as (48, 64), height and
        # width. Pictures of other sizes are centre-cropped to that form and resized.
        'image_size': FieldReference(32, field_type=object),
        'channels': 3,  # of pictures 1 (grey) or 3 (colour)
        # Of whole numbers, up to 65,536; or continuous, for values of any kind. None: 256 of bytes,
        # and continuous for floating-point numbers
        'levels': placeholder(object),
        # How values are stored, which the training split says where these are None: their type;
        # the first level; and of continuous ones, x_0 = (value - shift) / scale, for each channel
        'dtype': placeholder(str),
        'lowest': placeholder(int),
        'shift': placeholder(tuple),
        'scale': placeholder(tuple),
        # How examples are shown: samples or frames a second, and the names of channels. None: the
        # training split says it, if it can
        'rate': placeholder(float),
        'channel_names': placeholder(tuple),
        'random_flip': True,  # mirror left-right with probability 1/2, in training
        'memory_limit_gib': 4.0,  # sets up to this size are decoded once and held in memory
        'device_limit_gib': 1.0,  # and up to this size on accelerators, which gather the batches
        # Of model.num_classes. None: those that the data bring; folders: the folder that a picture
        # lies in, of folder:PATH; or the name of a label of TFDS
        'labels': placeholder(str),
        'on_damage': 'stop',  # stop | skip: the next picture takes a damaged one's place, up to 1%
        'num_workers': 4,  # processes that read sets beyond it; 0: none
      },
      'diffusion': {
        # linear | quad | const | jsd | warmup10 | warmup50 | cosine | logsnr | sigmoid |
        # linear_scaled, linear with its betas times 1000 / num_timesteps | linear_zero_snr and
        # others that end without signal; none: linear, or for more than 256 levels logsnr
        'schedule': placeholder(str),
        'num_timesteps': 1000,
        'beta_start': placeholder(float),  # none: 1e-4; of logsnr the square of a level's width
        'beta_end': 0.02,
        'mean_type': 'eps',  # eps | xstart | xprev | v | edm
        'sigma_data': placeholder(float),  # deviation of x_0, for mean_type=edm; none: 0.5
        'var_type': 'fixedlarge',  # fixedsmall | fixedlarge | learned | learned_range
        'loss_type': 'mse',  # mse | kl | hybrid, which trains a learned variance
      },
      'model': {
        'ch': 128,  # channels of the first level; a multiple of num_groups
        'num_groups': placeholder(int),  # of channels, in each norm; none: 32
        'ch_mult': (1, 2, 2, 2),
        'num_res_blocks': 2,  # a level
        'attn_resolutions': (16,),  # lengths of the first axis, such as a picture's height
        'dropout': 0.1,  # rate
        'resamp_with_conv': True,
        # Of labels: a number, or data: as many as the data have. None: a model without labels
        'num_classes': placeholder(object),
        'remat': False,  # compute blocks anew in the backward pass: less memory, more time
        # Of the computation: float32 | bfloat16 | auto, bfloat16 on accelerators that have it;
        # parameters, and the bound on the likelihood, are float32 always
        'dtype': 'auto',
      },
      'optim': {
        'learning_rate': 2e-4,
        'warmup_steps': 5000,
        'grad_clip': 1.0,  # global norm; 0: none
        'ema_decay': 0.9999,  # a step
        'adam_b1': 0.9,
        'adam_b2': 0.999,
        'adam_eps': 1e-8,
        'decay': placeholder(str),  # of the rate: cosine | inverse_sqrt; none: constant
        # Of cosine, the step where the rate is 0; of inverse_sqrt, that where it begins to fall
        'decay_steps': placeholder(int),
        'weight_decay': placeholder(float),  # AdamW's, a step and unit of rate; none: Adam
        # Of ema_decay: the half-life is at most so much of the steps done; none: no warm-up
        'ema_warmup': placeholder(float),
        # Averages that checkpoints carry beside it, for --mode=ema: of other decays, and EDM2's
        # power-function averages of these widths, of which those of other widths can be made
        'ema_decays': placeholder(tuple),
        'ema_widths': placeholder(tuple),
      },
      'train': {
        'global_batch_size': 128,  # images a step, over all devices and processes
        'grad_accum_steps': 1,  # parts of a device's batch, one after another: less memory
        # Of the squared error of x_0: simple | kl | min_snr | p2 | sigmoid | edm; none: that of the
        # prediction as it is
        'loss_weight': placeholder(str),
        # gamma of min_snr (none: 5) and of p2 (none: 1), bias of sigmoid (none: 2)
        'loss_weight_number': placeholder(float),
        # How t is drawn: uniform | stratified, over the batch | loss, by the last losses at each |
        # lognormal, by the logarithm of the noise level; none: uniform. The objective is the same
        'timesteps': placeholder(str),
        'label_dropout': placeholder(float),  # part of the examples without label; none: 0.1
        'num_steps': 800_000,  # 800,000 steps * 128 = 102.4M examples
        'steps_per_dispatch': placeholder(int),  # none: 1 on a CPU, else as many as all of the
        # intervals below divide by, up to 20
        'on_nonfinite': 'stop',  # stop | skip: go on from the last checkpoint, without that batch
        'log_every_steps': 100,
        'logger': placeholder(str),  # of one's own, MODULE:FUNCTION: docs/training.md
        'checkpoint_every_steps': 5_000,
        'keep_last_checkpoints': 3,
        'keep_checkpoint_every_steps': 100_000,  # and these for good; 0: none
        'sample_every_steps': 50_000,  # 0: never
        'num_samples': 64,  # images each time
        'eval_every_steps': 0,  # 0: never. eval says what is measured, but for these three:
        'eval_num_samples': 1_024,  # images
        'eval_bpd_examples': 512,  # a split
        'eval_bpd_terms': 32,  # of the T terms of the bound, drawn anew for each example
      },
      'sample': {
        'step': placeholder(int),  # checkpoint; none: the newest
        'num_samples': 64,  # images, with ids 0, 1, ...
        'batch_size': 64,  # images a compiled chain, over all devices
        'seed': 0,  # image i depends on (seed, i) alone
        # ancestral | ddim | dpmpp_2m | dpmpp_3m | dpmpp_2m_sde | dpmpp_3m_sde | heun | unipc_2 |
        # unipc_3 | ipndm | deis_2 | deis_3 | bespoke, which is fitted to the checkpoint
        'sampler': 'ancestral',
        # S of the T; none: all T for ancestral, 10 for bespoke, 20 for the others. heun has 2 S - 1
        # evaluations
        'num_steps': placeholder(int),
        # linspace | leading | trailing | quad | logsnr | karras, EDM's | least_bound | least_error,
        # which are fitted to the checkpoint; none: karras for heun, least_error for bespoke, and
        # trailing for the others
        'spacing': placeholder(str),
        'timesteps': placeholder(tuple),  # in place of spacing: numbers in [0, T-1], increasing
        'timestep_parts': placeholder(int),  # of a timestep, that times are rounded to; none: 1
        'stops_early': False,  # at the noise of t = 0, in place of the x_0 predicted last
        # Of a step of ancestral: fixedsmall | fixedlarge | analytic, fitted to the checkpoint;
        # none: the model's
        'variance': placeholder(str),
        'eta': placeholder(float),  # ddim's, in [0, 1]; none: 0, no noise
        # heun's, EDM's S_churn; none: 0, no noise
        'churn': placeholder(float),
        'churn_interval': placeholder(tuple),  # (S_tmin, S_tmax), noise levels; none: all
        'churn_noise': placeholder(float),  # S_noise, deviation of the added noise; none: 1
        # Of a model with labels: classes by name or number, each, or none, one or several; with
        # counts, as cat*10,dog*5, these are all samples. None: each in turn
        'labels': placeholder(str),
        'guidance': placeholder(float),  # scale; none: 1, no guidance
        'guidance_interval': placeholder(tuple),  # (low, high), noise levels that are; none: all
        'guidance_rescale': placeholder(float),  # in [0, 1], of the deviation of x_0; none: 0
        # Model to be guided away from, WORKDIR or WORKDIR@STEP; none: this one, without labels
        'guide': placeholder(str),
        'clip': 'static',  # of the predicted x_0: none | static, to [-1, 1] | dynamic, Imagen's
        'files': placeholder(str),  # png: each sample as a file of its own, too
        'animate': False,  # also an animated GIF of the chain's predictions of x_0
      },
      'edit': {  # one's own pictures, by sample's step, sampler and batch_size: docs/editing.md
        'what': 'inpaint',  # inpaint | superresolution | colourise | deblur | sdedit
        'method': placeholder(str),  # ddnm | pigdm | repaint, for inpaint; none: pigdm
        'images': placeholder(str),  # a picture, several with commas between them, or a folder
        'mask': placeholder(str),  # picture, white where pixels are known; none: their transparency
        'num': 4,  # samples a picture
        'seed': 0,  # sample i depends on (seed, i) and its picture alone
        'scale': 2,  # of superresolution
        'blur': 1.0,  # of deblur, pixels: standard deviation of a Gaussian kernel
        'depth': 0.5,  # of sdedit, in (0, 1]: share of the T steps gone through again
        'jump_length': 10,  # of repaint, steps back
        'resamplings': 10,  # of repaint, passes through each such stretch; 1: no jumps
      },
      # One's own pictures to files whose size is the rate, in sample's batch_size: docs/codec.md
      'compress': {
        'images': placeholder(str),  # a picture, several with commas between them, or a folder
        'target': 'lossless',  # lossless | bytes:N, a file | rmse:R, of 255
        'search': 'fast',  # fast | exact, of decoded states: the chain's law, for time and bits
        # fast: vectors are 2^bits times as many as a chunk's KL asks for; none: 4. exact: ratios
        # are searched for up to 2^bits; none: 17
        'search_bits': placeholder(int),
        'seed': 0,  # of the codebooks
        'margin_bits': 15,  # predictions elsewhere may differ by 2^-this of x_0, if lossless
        'archive': False,  # one file for all pictures, whose header stands there once
      },
      'decompress': {
        'files': placeholder(str),  # a file of --mode=compress, several, or a folder
        'realism': 0.0,  # in [0, 1], of what is not exact: the prediction, to the completion
        'completion': 'flow',  # flow, the probability flow's | ancestral, with noise
        'seed': 0,  # of that noise
      },
      'eval': {
        # pr: precision and recall; dc: density and coverage; kid100: as published programs draw it;
        # flow: bits/dim of the probability flow
        'metrics': ('bpd', 'fid', 'is', 'kid', 'pr'),
        'step': placeholder(int),  # checkpoint; none: the newest
        'watch': False,  # each new checkpoint of a run in progress, until its last
        'batch_size': 64,  # images a compiled step, over all devices
        'seed': 0,  # of the noise of the bound
        'bpd_splits': ('train', 'test'),
        'bpd_examples': placeholder(int),  # a split; none: all of it
        'bpd_labels': placeholder(str),  # given | none: without them; none: given
        'flow_steps': 50,  # of the flow, two evaluations and products with the Jacobian each
        'flow_probes': 1,  # of Hutchinson's estimate of its divergence; 0: exact, for small data
        'bpd_terms': placeholder(int),  # K of the T terms, an unbiased estimate; none: all
        'num_samples': 50_000,  # images for the other metrics, drawn as sample says
        'samples': placeholder(str),  # folder or .npz of images to score instead of our own
        'rounding': 'uint8',  # uint8, as published programs | float, as the original's loop
        # of the features: inception | efficientnet_lite0 | digits | watch | random
        'network': 'inception',
        'inception_weights': placeholder(str),  # file; none: downloaded once, into the cache
        'inception_sha256': placeholder(str),  # of that file; none: of the published weights
        'reference': placeholder(str),  # .npz of published statistics or images; none: the data
        'reference_split': 'train',  # of the data
        'reference_examples': placeholder(int),  # images; none: all of the split
        'cache_dir': placeholder(str),  # weights, reference features, decoded pictures;
        # none: ~/.cache/ddpm_jax
      },
      'reproduce': {  # the paper's tables and figures, of the model that eval.step says
        'what': (  # any of these
          'table1',
          'table2',
          'bound',
          'compression',
          'progressive',
          'shared',
          'interpolation',
          'neighbours',
          'comparison',
        ),  # and codec: examples compressed, which takes minutes; few_steps: the bound of few steps
        'split': 'test',  # of the images to compress and to interpolate
        'num_samples': 1_024,  # chains whose x_0 predictions are measured
        'num_slots': 20,  # predictions kept of a chain, at most
        'num_images': 8,  # rows of a picture
        'num_coded': 64,  # examples that codec compresses
      },
      'ema': {  # --mode=ema: the average to make a workdir with, of the run that init_from names
        'width': placeholder(float),  # of a power-function average, part of the steps
        'decay': placeholder(float),  # or one of optim.ema_decays
      },
      'import_': {  # --config.import.path=... on the command line
        'path': placeholder(str),  # model of another program to make a workdir of: docs/models.md
        # Of several sets of weights at import.path or init_from: that to take, such as ema; or the
        # weights and their moving average, such as model,ema. None: there is one, or names tell.
        'weights': placeholder(str),
      },
      'export': {
        'path': placeholder(str),  # folder to write, a pipeline of diffusers
        'step': placeholder(int),  # checkpoint; none: the newest
      },
    },
    convert_dict=True,
  )
