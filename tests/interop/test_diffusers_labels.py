"""Pipelines of diffusers whose network has a table of classes."""

import json

import jax
import numpy as np
import pytest

from ddpm_jax.config import build
from ddpm_jax.errors import UserError
from ddpm_jax.interop import diffusers
from ddpm_jax.interop.safetensors_file import read_safetensors


def labelled(config, label_dropout):
  config = config.copy_and_resolve_references()
  config.model.num_classes = 3
  config.train.label_dropout = label_dropout
  return config


def params_of(config):
  rng = np.random.default_rng(0)
  like = jax.eval_shape(lambda: build.init_params(config))
  return jax.tree.map(lambda leaf: rng.normal(0, 0.05, leaf.shape).astype(np.float32), like)


@pytest.mark.parametrize(('label_dropout', 'num_rows'), [(None, 4), (0.1, 4), (0.0, 3)])
def test_what_is_written_is_read(pipeline_config, label_dropout, num_rows, tmp_path):
  config = labelled(pipeline_config, label_dropout)
  params = params_of(config)
  diffusers.write_pipeline(tmp_path, config, params)
  settings = json.loads((tmp_path / 'unet/config.json').read_text())
  table = read_safetensors(tmp_path / 'unet' / diffusers.WEIGHTS[0])['class_embedding.weight']
  ours = params['class_embedding']['embedding']
  assert settings['num_class_embeds'] == num_rows
  np.testing.assert_array_equal(table, ours[:num_rows])
  config = diffusers.read_config(tmp_path, pipeline_config)
  assert config.model.num_classes == 3
  assert (config.train.label_dropout == 0) == (num_rows == 3)
  again = diffusers.read_pipeline(tmp_path, config, params)
  expected = params | {
    'class_embedding': {'embedding': ours * (np.arange(4) < num_rows).astype(np.float32)[:, None]}
  }
  jax.tree.map(np.testing.assert_array_equal, again, expected)


def test_without_labels_nothing_is_written_of_them(pipeline_config):
  settings = diffusers.unet_settings(pipeline_config)
  assert settings['num_class_embeds'] is None
  assert '_row_without_label' not in settings


@pytest.mark.parametrize('num_rows', [0, -1, '3', 2**40, [3], True])
def test_a_table_of_no_rows_is_one_line(pipeline_config, num_rows, tmp_path):
  config = labelled(pipeline_config, 0.0)
  diffusers.write_pipeline(tmp_path, config, params_of(config))
  file = tmp_path / 'unet/config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | {'num_class_embeds': num_rows}))
  with pytest.raises(UserError, match=r'config\.json: num_class_embeds=.* is no number of classes'):
    diffusers.read_config(tmp_path, pipeline_config)


def test_another_number_of_classes_is_named(pipeline_config, tmp_path):
  config = labelled(pipeline_config, 0.1)
  diffusers.write_pipeline(tmp_path, config, params_of(config))
  config.model.num_classes = 4
  with pytest.raises(UserError, match=r'num_class_embeds=4, not 5 \(config: model\.num_classes\)'):
    diffusers.read_pipeline(tmp_path, config, params_of(config))
