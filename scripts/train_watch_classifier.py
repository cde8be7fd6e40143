"""Trains the classifier of watch's exercises, and writes ddpm_jax/nn/watch_classifier.npz.

  python scripts/train_watch_classifier.py

Some minutes on two CPU cores. It learns from the eight people of the training split alone; of the
windows of the other two, about 89% are right.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np

from ddpm_jax.data.encoding import Encoding
from ddpm_jax.data.watch import NUM_LEVELS, make_watch_source
from ddpm_jax.evaluation.features import WATCH_FILE, save_params
from ddpm_jax.evaluation.metrics.transfer import accuracy, train_classifier

WINDOW = 128  # samples


def load(split):
  """(x_0, classes) of a split."""
  source = make_watch_source(image_size=(WINDOW,), channels=6, split=split)
  encoding = Encoding('int16', NUM_LEVELS, -NUM_LEVELS // 2)
  labels = source.labels(None)
  assert labels is not None
  return encoding.x_0(source.read(np.arange(len(source)))), labels


def main():
  """Trains, tells the accuracy, writes the file."""
  x_0, labels = load('train')
  num_classes = len(labels.names)
  params = train_classifier(x_0, labels.ids, num_classes, num_steps=1_500)
  for split in ('train', 'test'):
    x_0, labels = load(split)
    print(f'right: {accuracy(params, x_0, labels.ids, num_classes):.4f} of {split}')
  save_params(params, WATCH_FILE)
  print(f'{WATCH_FILE}: {WATCH_FILE.stat().st_size:,} bytes')


if __name__ == '__main__':
  main()
