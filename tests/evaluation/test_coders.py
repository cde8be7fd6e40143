"""What FLAC, xz and PNG make of examples: their files hold all of them, and noise stays noise."""

import numpy as np
import pytest

from ddpm_jax.evaluation.coders import coded_bits_per_dim

pytest.importorskip('soundfile')


@pytest.mark.parametrize(
  ('shape', 'levels', 'programs'),
  [
    ((400, 2), 1 << 16, {'xz', 'FLAC'}),
    ((400, 9), 1 << 12, {'xz'}),  # FLAC has eight channels
    ((20, 24, 3), 256, {'xz', 'PNG'}),
    ((20, 24, 2), 256, {'xz'}),
    ((12, 10, 8, 1), 256, {'xz', 'PNG'}),
  ],
)
def test_noise_takes_all_its_bits(shape, levels, programs):
  dtype = np.uint8 if levels <= 256 else np.uint16
  examples = np.random.default_rng(0).integers(0, levels, (8, *shape)).astype(dtype)
  found = coded_bits_per_dim(examples, levels=levels)
  assert found.keys() == programs
  entropy = np.log2(levels)
  for name, (each, whole) in found.items():
    assert entropy * 0.999 < whole < entropy * 1.35, name  # xz keeps whole bytes of 12 bits
    assert whole <= each, name


def test_what_is_constant_costs_next_to_nothing():
  examples = np.full((4, 3_000, 2), 7, np.uint16)
  for name, (_, whole) in coded_bits_per_dim(examples, levels=1 << 14).items():
    assert whole < 0.2, name


def test_flac_holds_the_samples_themselves(monkeypatch):
  """What is counted decodes to the examples: nothing was clipped on the way."""
  import io

  import soundfile

  files = []
  write = soundfile.write

  def keep(stream, *args, **kwargs):
    write(stream, *args, **kwargs)
    files.append(stream.getvalue())

  monkeypatch.setattr(soundfile, 'write', keep)
  levels = 1 << 16
  examples = np.random.default_rng(0).integers(0, levels, (2, 50, 3)).astype(np.uint16)
  examples[0, 0], examples[0, 1] = 0, levels - 1
  coded_bits_per_dim(examples, levels=levels)
  decoded, _ = soundfile.read(io.BytesIO(files[-1]), dtype='int16')
  np.testing.assert_array_equal(decoded.astype(int) + levels // 2, examples.reshape(-1, 3))
