"""benchmarks/gpu.py and traces.py: what they read of profiles, exactly; then all of it, tiny."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

PROGRAM = """HloModule jit_step, entry_computation_layout={()->f32[]}

%fused_computation (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  ROOT %add.1 = f32[4,8]{1,0} add(%p, %p)
}

%fused_dot (p.1: bf16[4,8]) -> bf16[4,4] {
  %p.1 = bf16[4,8]{1,0} parameter(0)
  ROOT %dot.1 = bf16[4,4]{1,0} dot(%p.1, %p.1), lhs_contracting_dims={1}
}

ENTRY %main (x: f32[4,8], w: bf16[4,8]) -> f32[4,8] {
  %x = f32[4,8]{1,0} parameter(0)
  %w = bf16[4,8]{1,0} parameter(1)
  %conv.1 = (f32[4,8]{1,0}, u8[100]{0}) custom-call(%x, %w), custom_call_target="__cudnn$convForward"
  %norm = f32[4,8]{1,0} fusion(%x), kind=kLoop, calls=%fused_computation, metadata={op_name="jit(step)/UNet/mid/norm1/add"}
  %att = bf16[4,4]{1,0} fusion(%w), kind=kOutput, calls=%fused_dot, metadata={op_name="jit(step)/transpose(jvp(UNet))/mid_attn_1/dot"}
  %dense = bf16[4,4]{1,0} fusion(%w), kind=kOutput, calls=%fused_dot, metadata={op_name="jit(step)/UNet/temb/dot"}
  %drop = pred[4,8]{1,0} fusion(%x), kind=kLoop, calls=%fused_computation, metadata={op_name="jit(step)/UNet/dropout_0/lt"}
  %copy.5 = f32[4,8]{1,0} copy(%x)
  ROOT %adam = f32[4,8]{1,0} fusion(%x, %norm), kind=kLoop, calls=%fused_computation, metadata={op_name="jit(step)/mul"}
}
"""  # noqa: E501


@pytest.fixture
def benchmark(monkeypatch):
  """Returns name -> the module of a benchmark."""
  monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
  return importlib.import_module


def test_program_is_read(benchmark):
  traces = benchmark('traces')
  found = traces.read_program(PROGRAM)
  a = 4 * 8 * 4  # bytes of f32[4,8]
  assert found['conv.1'] == (traces.CONVOLUTIONS, a + 100 + a + a // 2)
  assert found['norm'] == (traces.NORMS, 2 * a)
  assert found['att'] == (traces.ATTENTION, a // 2 + a // 4)
  assert found['dense'] == (traces.MATMULS, a // 2 + a // 4)
  assert found['drop'] == (traces.DROPOUT, a + a // 4)
  assert found['copy.5'] == (traces.COPIES, 2 * a)
  assert found['adam'] == (traces.REST, 3 * a)


def event(ts, dur, op=None, *, name='kernel', tid=1, pid=7):
  return {'ph': 'X', 'ts': ts, 'dur': dur, 'pid': pid, 'tid': tid, 'name': name} | (
    {'args': {'hlo_op': op}} if op else {}
  )


def test_ops_within_ops_are_counted_once(benchmark):
  events = [
    event(0, 10, 'call'),
    event(1, 4, 'add'),
    event(6, 2, 'add'),
    event(0, 3, 'add', tid=2),
    event(20, 5),  # of no op
  ]
  assert benchmark('traces').op_times(events) == {
    'call': (pytest.approx(4e-6), 1),
    'add': (pytest.approx(9e-6), 3),
  }


def test_of_an_accelerator_its_streams_count_alone(benchmark):
  def name(what, value, **place):
    return {'ph': 'M', 'name': what, 'args': {'name': value}, **place}

  events = [
    name('process_name', '/device:GPU:0', pid=7),
    name('thread_name', 'Stream #13(Compute)', pid=7, tid=1),
    name('thread_name', 'XLA Ops', pid=7, tid=2),
    event(0, 6, 'conv.1'),
    event(6, 2, name='MemcpyD2D'),
    event(8, 1, name='loop_norm'),
    event(0, 6, 'conv.1', tid=2),
    event(0, 9, 'host', pid=8),
  ]
  traces = benchmark('traces')
  times = traces.op_times(events)
  assert times == {
    'conv.1': (pytest.approx(6e-6), 1),
    'MemcpyD2D': (pytest.approx(2e-6), 1),
    'loop_norm': (pytest.approx(1e-6), 1),
  }
  program = {'conv.1': (traces.CONVOLUTIONS, 50), 'loop.norm': (traces.NORMS, 7)}
  assert traces.by_kind(times, program, 2) == {
    traces.CONVOLUTIONS: (pytest.approx(3e-6), 25),
    traces.COPIES: (pytest.approx(1e-6), 0),
    traces.NORMS: (pytest.approx(0.5e-6), 3.5),
  }


@pytest.mark.parametrize('size', [0, 1, 10, 11, 29, 30])
def test_parts_are_the_whole(benchmark, tmp_path, size):
  content = np.random.default_rng(0).bytes(size)
  names = benchmark('gpu').write_parts(tmp_path / 'average.npz', content, 10)
  assert names == sorted(path.name for path in tmp_path.iterdir())
  parts = [(tmp_path / name).read_bytes() for name in names]
  assert b''.join(parts) == content
  assert all(0 < len(part) <= 10 for part in parts)


def run(*options):
  command = [sys.executable, 'benchmarks/gpu.py', '--tiny', *options]
  environment = {key: value for key, value in os.environ.items() if key != 'XLA_FLAGS'}
  subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)


def lines_of(out):
  found = {}
  for line in (out / 'gpu.jsonl').read_text().splitlines():
    facts = json.loads(line)
    found.setdefault(facts.pop('what'), []).append(facts)
  return found


def check_training(found):
  assert [row['name'] for row in found['training']] == ['bfloat16', 'float32']
  (ceilings,), (profile,) = found['ceilings'], found['profile']
  assert ceilings['matrix_peak'] > 1e9
  assert ceilings['bandwidth'] > 1e7
  for row in found['training']:
    assert row['flops_per_sec'] == pytest.approx(row['of_peak'] * ceilings['matrix_peak'])
    assert 0 < row['of_peak'] < 2
  kinds = profile['kinds']
  assert {'attention', 'dropout', 'gaps', 'other convolutions'} <= kinds.keys()
  assert all(secs >= 0 for secs, _ in kinds.values())
  for kind, flops in profile['flops'].items():
    assert (kind in kinds) == (flops > 0)


def test_tiny_run(tmp_path):
  run(f'--out={tmp_path}', '--only=training,profile')
  check_training(lines_of(tmp_path))


@pytest.mark.slow
def test_tiny_run_of_all(tmp_path):
  run(f'--out={tmp_path}')
  found = lines_of(tmp_path)
  check_training(found)
  assert {row['start'] for row in found['main.py']} == {'cold', 'warm'}
  assert [row['programs'] for row in found['started'] if row['task'] == 'training'] == [
    'cold',
    'cold',
    'warm',
  ]
  for what in ('bound', 'features'):
    (row,) = found[what]
    assert 0 < row['over_network'] < 2
  assert found['sampling'][0]['evaluations_per_sec'] > 0
  assert 'left out' not in found
  assert 'failed' not in found


@pytest.mark.slow
def test_tiny_training(tmp_path):
  run(f'--out={tmp_path}', '--train=30')
  parts = sorted(tmp_path.glob('average.npz.*'))
  whole = tmp_path / 'average.npz'
  whole.write_bytes(b''.join(part.read_bytes() for part in parts))
  with np.load(whole) as arrays:
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float16)}
    assert all(np.isfinite(array).all() for array in arrays.values())
  assert json.loads((tmp_path / 'curve.jsonl').read_text().splitlines()[0])['loss'] > 0
  assert (tmp_path / 'grid.png').stat().st_size > 0
