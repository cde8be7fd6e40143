"""Files of a workdir with another content: one line that names the file, or made anew."""

import json

import pytest

from ddpm_jax import trainer
from ddpm_jax.config.origins import config_of, settled
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.evaluator import note_best
from ddpm_jax.modes.info import info
from ddpm_jax.storage import logs, shards
from ddpm_jax.storage.checkpoints import keep_steps
from ddpm_jax.storage.identity import Identity
from ddpm_jax.storage.workdir import check_format, config_dict, locked, store_config
from tests.storage.test_checkpoints import save_steps
from tests.tiny import tiny_config

CONTENTS = (
  b'', b'{', b'{}', b'[]', b'[1]', b'["a"]', b'[-1]', b'[true]', b'3', b'null', b'NaN', b'"x"',
  b'{"a": 1}', b'{"seed": 1e400}', b'{"model": 3}', b'{"diffusion": []}', b'{"init_from": [3]}',
  b'\xff\xfe', b'\0' * 99, b'[' * 100_000, b'9' * 5000,
)  # fmt: skip


@pytest.fixture
def workdir(tmp_path):
  """What begins as a run: its config and a checkpoint's name."""
  store_config(tmp_path, tiny_config())
  for name in ('checkpoints/2', 'eval/step_00000002/report_ab', 'samples/step_00000002/ddim_ab'):
    (tmp_path / name).mkdir(parents=True)
  return tmp_path


def read_config(workdir):
  assert config_of(str(workdir)).diffusion.num_timesteps > 0


def go_on(workdir):
  store_config(workdir, settled(tiny_config(), workdir))


def measure(workdir):
  note_best(workdir, 2, [{'metric': 'bpd', 'name': 'bits', 'value': 1.0}], Identity(seed=0))


READERS = {
  'config.json': (read_config, go_on),
  'format.json': (check_format,),
  'skipped_batches.json': (trainer.read_skipped,),
  'eval/best.json': (measure,),
}


@pytest.mark.parametrize('content', CONTENTS, ids=lambda content: repr(content[:9]))
@pytest.mark.parametrize('name', READERS)
def test_another_content_is_one_line_that_names_the_file(name, content, workdir):
  (workdir / name).write_bytes(content)
  for read in READERS[name]:
    try:
      read(workdir)
    except UserError as error:
      said = (workdir / name).name, 'holds a run of another config (data.channels: workdir absent'
      assert any(words in str(error) for words in said)  # noqa: PT017
      assert '\n' not in str(error)  # noqa: PT017
    else:  # which a reader may take for its own
      assert content in (b'{}', b'[]', b'[1]', b'{"a": 1}'), read


@pytest.mark.parametrize('content', CONTENTS, ids=lambda content: repr(content[:9]))
def test_what_is_for_reading_alone_stops_nobody(content, workdir, capsys):
  for name in ('metrics.jsonl', 'eval/step_00000002/report_ab/report.json'):
    (workdir / name).write_bytes(content)
  (workdir / 'samples/step_00000002/ddim_ab/samples.npz').write_bytes(content)
  info(tiny_config(), str(workdir))
  out = capsys.readouterr().out
  assert 'report      eval/step_00000002/report_ab: report.json is damaged\n' in out
  assert 'samples     samples.npz in samples/step_00000002/ddim_ab is damaged\n' in out
  logs._drop_after(workdir / 'metrics.jsonl', 3)
  assert (workdir / 'metrics.jsonl').read_bytes() == b''
  (workdir / 'seconds.txt').write_bytes(content)
  assert shards.seconds(workdir) in (None, 0.0, 3.0)
  (workdir / '.train.lock').write_bytes(content)
  with locked(workdir, 'train'), pytest.raises(UserError, match='in use by another'):
    locked(workdir, 'train').__enter__()


@pytest.mark.parametrize('content', [b'two', b'\xff', b'{"2": 1}'])
def test_a_list_of_checkpoints_to_keep_that_is_damaged_deletes_none(content, tmp_path, capsys):
  directory = tmp_path / 'checkpoints'
  save_steps(directory, [2, 4], keep_last=1)
  assert not (directory / '2').exists()
  (directory / 'KEEP.best').write_bytes(content)
  save_steps(directory, [6, 8], keep_last=1)
  assert sorted(path.name for path in directory.glob('[0-9]')) == ['4', '6', '8']
  assert 'KEEP.best is damaged: no checkpoint is deleted until' in capsys.readouterr().out
  keep_steps(directory, 'best', [4])
  save_steps(directory, [10], keep_last=1)
  assert sorted(path.name for path in directory.glob('[0-9]*')) == ['10', '4']


def test_a_config_with_a_value_out_of_range_is_named(workdir):
  stored = config_dict(tiny_config())
  stored['seed'] = 2**63
  (workdir / 'config.json').write_text(json.dumps(stored))
  with pytest.raises(UserError, match=r'config\.json: seed is 9223372036854775808; it must be at '):
    config_of(str(workdir))
